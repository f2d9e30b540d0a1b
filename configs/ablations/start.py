"""What the ablations start from: the paper's setting ("full"), or one that two CPU cores can run ("small").

"small" is configs/small.py, and wants local files (supervised ones triplets):

    --config.data.files=sentences.txt --config.eval.data=sts-dev.csv

No row was tuned: rate and length are the same in all, but where they are what varies. The small supervised ones take
a third of the steps of configs/small.py:sup, and so as many texts as the unsupervised: 128 triplets a step, where
those have 64 pairs of views.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import base, small, sup, unsup

NEUTRAL = "-neutral"


def unsupervised(variant: str) -> ConfigDict:
    """Unsupervised SimCSE: BERT-base, or a small encoder."""
    makers: dict[str, Callable[[], ConfigDict]] = {"full": unsup.get_config, "small": small.get_config}
    return base.choose(makers, variant)()


def supervised(variant: str) -> ConfigDict:
    """Supervised SimCSE: BERT-base, or a small encoder on fewer triplets a step."""
    makers: dict[str, Callable[[], ConfigDict]] = {"full": sup.get_config, "small": _small_supervised}
    return base.choose(makers, variant)()


def with_neutral(variant: str) -> ConfigDict:
    """Supervised SimCSE; of "full-neutral" and "small-neutral" the rows want a column of neutral sentences too."""
    base.choose(dict.fromkeys(("full", "small", "full-neutral", "small-neutral")), variant)
    return supervised(variant.removesuffix(NEUTRAL))


def has_neutral(variant: str) -> bool:
    """Whether the rows have neutral sentences in them."""
    return variant.endswith(NEUTRAL)


def _small_supervised() -> ConfigDict:
    config = small.get_config("sup")
    config.train.steps = config.eval.every_steps = small.STEPS // 3
    return config
