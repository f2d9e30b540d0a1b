"""Compare dropout rates of unsupervised SimCSE, and one mask for both views (the paper's table 3).

python -m simcse_jax.sweep --config=configs/ablations/dropout.py --seeds=0..4
"""

from ml_collections import ConfigDict

from simcse_jax.recipes.ablations import start


def get_config(variant: str = "full") -> ConfigDict:
    """Return unsupervised SimCSE."""
    return start.unsupervised(variant)


def rows(_variant: str = "full") -> dict[str, dict[str, object]]:
    """Return the rows of the paper, its choice first."""
    return {
        "0.1": {},
        "0.0": {"model.dropout": 0.0, "model.same_mask": True},
        **{str(rate): {"model.dropout": rate} for rate in (0.01, 0.05, 0.15, 0.2, 0.5)},
        "fixed 0.1": {"model.same_mask": True},
    }
