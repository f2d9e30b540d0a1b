"""Compare discrete augmentations and cutoff with dropout alone (the paper's table 1; ESimCSE; cutoff).

python -m simcse_jax.sweep --config=configs/ablations/augmentation.py --seeds=0..4
"""

from ml_collections import ConfigDict

from simcse_jax.recipes.ablations import start


def get_config(variant: str = "full") -> ConfigDict:
    """Return unsupervised SimCSE."""
    return start.unsupervised(variant)


def rows(_variant: str = "full") -> dict[str, dict[str, object]]:
    """Return the rows of the paper, dropout alone first, then those of later papers."""
    shares = (0.1, 0.2, 0.3)
    return {
        "dropout alone": {},
        **{f"crop {share:.0%}": {"data.positive": "crop", "data.rate": share} for share in shares},
        **{f"word deletion {share:.0%}": {"data.positive": "word_deletion", "data.rate": share} for share in shares},
        "delete one word": {"data.positive": "word_deletion", "data.rate": 0.0},
        "delete one word, without dropout": {
            "data.positive": "word_deletion",
            "data.rate": 0.0,
            "model.dropout": 0.0,
        },
        "synonym": {"data.positive": "synonym", "data.rate": 0.0},
        "predicted tokens 15%": {"data.positive": "mask", "data.rate": 0.15},
        "repetition 32%": {"data.positive": "repetition", "data.rate": 0.32},
        **{f"{kind} cutoff 10%": {"model.cutoff": kind} for kind in ("token", "feature", "span")},
    }
