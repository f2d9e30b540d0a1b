"""Poolers and the MLP on [CLS] (the paper's table 6), unsupervised and, with :sup, supervised.

python -m simcse_jax.sweep --config=configs/ablations/pooling.py --seeds=0..4
python -m simcse_jax.sweep --config=configs/ablations/pooling.py:full-sup --seeds=0..4
"""

from ml_collections import ConfigDict

from configs.ablations import start


def get_config(variant: str = "full") -> ConfigDict:
    """Unsupervised SimCSE, or supervised."""
    size, _, kind = variant.partition("-")
    return start.supervised(size) if kind == "sup" else start.unsupervised(size)


def rows(variant: str = "full") -> dict[str, dict[str, object]]:
    """The paper's, its choice for the kind of training first."""
    poolers = {
        "[CLS], MLP in training": ("cls", "cls_before_pooler"),
        "[CLS], MLP": ("cls", "cls"),
        "[CLS], no MLP": ("cls_before_pooler", "cls_before_pooler"),
        "first-last average": ("avg_first_last", "avg_first_last"),
        "average": ("avg", "avg"),
    }
    order = sorted(poolers, key=lambda label: label != "[CLS], MLP") if variant.endswith("-sup") else list(poolers)
    return {label: {"model.train_pooler": poolers[label][0], "model.pooler": poolers[label][1]} for label in order}
