"""Masked language modelling beside supervised SimCSE (the paper's appendix D).

    python -m simcse_jax.sweep --config=configs/ablations/mlm.py --seeds=0..4

Judged on STS-B dev, as it trains, and on the transfer tasks: the paper finds that it helps only these. The table
compares by the latter; with --table --measure=dev/spearman by the former.
"""

from ml_collections import ConfigDict

from configs.ablations import start


def get_config(variant: str = "full") -> ConfigDict:
    """Supervised SimCSE."""
    return start.supervised(variant)


def rows(_variant: str = "full") -> dict[str, dict[str, object]]:
    """The paper's, none first."""
    return {"none": {}, **{str(weight): {"mlm.weight": weight} for weight in (0.01, 0.1, 1.0)}}


def judged(_variant: str = "full") -> str:
    """What the point is about."""
    return "transfer"
