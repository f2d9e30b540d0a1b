"""Start the ablations from the paper's setting ("full"), or from one that two CPU cores can run ("small").

"small" is configs/small.py, and needs local files (triplets for supervised ablations):

    --config.data.files=sentences.txt --config.eval.data=sts-dev.csv

No row was tuned: learning rate and length are the same in all rows, except where they are what varies. The small
supervised ablations take a third of the steps of configs/small.py:sup, and so encode as many texts as the unsupervised
ones: a step has 128 triplets, where those have 64 pairs of views.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from simcse_jax.recipes import base, small, sup, unsup

NEUTRAL = "-neutral"


def unsupervised(variant: str) -> ConfigDict:
    """Return unsupervised SimCSE, of BERT-base or a small encoder."""
    makers: dict[str, Callable[[], ConfigDict]] = {"full": unsup.get_config, "small": _small}
    return base.choose(makers, variant)()


def supervised(variant: str) -> ConfigDict:
    """Return supervised SimCSE, of BERT-base or a small encoder on fewer triplets a step."""
    makers: dict[str, Callable[[], ConfigDict]] = {"full": sup.get_config, "small": _small_supervised}
    return base.choose(makers, variant)()


def with_neutral(variant: str) -> ConfigDict:
    """Return supervised SimCSE; the rows of "full-neutral" and "small-neutral" need a column of neutral sentences."""
    base.choose(dict.fromkeys(("full", "small", "full-neutral", "small-neutral")), variant)
    return supervised(variant.removesuffix(NEUTRAL))


def has_neutral(variant: str) -> bool:
    """Return whether some rows use neutral sentences."""
    return variant.endswith(NEUTRAL)


def _small(variant: str = "unsup") -> ConfigDict:
    config = small.get_config(variant)
    config.eval.data = base.get_config().eval.data  # a sweep compares rows by their dev scores
    return config


def _small_supervised() -> ConfigDict:
    config = _small("sup")
    config.train.steps = config.eval.every_steps = small.STEPS // 3
    return config
