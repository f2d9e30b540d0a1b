"""Compare poolers and the MLP on [CLS] (the paper's table 6), unsupervised or with :full-sup and :small-sup supervised.

python -m simcse_jax.sweep --config=configs/ablations/pooling.py --seeds=0..4
python -m simcse_jax.sweep --config=configs/ablations/pooling.py:full-sup --seeds=0..4
"""

from ml_collections import ConfigDict

from simcse_jax.recipes import base
from simcse_jax.recipes.ablations import start

SUPERVISED = {"full": False, "small": False, "full-sup": True, "small-sup": True}


def get_config(variant: str = "full") -> ConfigDict:
    """Return unsupervised or supervised SimCSE."""
    make = start.supervised if base.choose(SUPERVISED, variant) else start.unsupervised
    return make(variant.removesuffix("-sup"))


def rows(variant: str = "full") -> dict[str, dict[str, object]]:
    """Return the rows of the paper, the recipe's own first."""
    own = get_config(variant).model
    poolers = {
        "[CLS], MLP in training": ("cls", "cls_before_pooler"),
        "[CLS], MLP": ("cls", "cls"),
        "[CLS], no MLP": ("cls_before_pooler", "cls_before_pooler"),
        "first-last average": ("avg_first_last", "avg_first_last"),
        "average": ("avg", "avg"),
    }
    order = sorted(poolers, key=lambda label: poolers[label] != (own.train_pooler, own.pooler))
    return {label: {"model.train_pooler": poolers[label][0], "model.pooler": poolers[label][1]} for label in order}
