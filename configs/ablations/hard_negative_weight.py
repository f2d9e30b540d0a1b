"""Compare weights of a triplet's own hard negative (the paper's table 7).

    python -m simcse_jax.sweep --config=configs/ablations/hard_negative_weight.py --seeds=0..4

:full-neutral and :small-neutral, with a file that has a column of neutral sentences (docs/data.md makes one), also have
the paper's row with neutral sentences as hard negatives.
"""

from ml_collections import ConfigDict

from simcse_jax.recipes.ablations import start


def get_config(variant: str = "full") -> ConfigDict:
    """Return supervised SimCSE."""
    return start.with_neutral(variant)


def rows(variant: str = "full") -> dict[str, dict[str, object]]:
    """Return the rows of the paper, its choice first."""
    made: dict[str, dict[str, object]] = {
        "1.0": {},
        "no hard negatives": {"data.columns": "sent0,sent1"},
        "0.5": {"objective.hard_negative_weight": 0.5},
        "2.0": {"objective.hard_negative_weight": 2.0},
    }
    if start.has_neutral(variant):
        made["1.0, and neutral"] = {"data.columns": "sent0,sent1,hard_neg,neutral"}
    return made
