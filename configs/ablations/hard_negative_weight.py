"""The weight of a triplet's own hard negative (the paper's table 7).

    python -m simcse_jax.sweep --config=configs/ablations/hard_negative_weight.py --seeds=0..4

The row of the paper that adds neutral sentences wants a file with such a column:
--row='and neutral: data.files=FILE data.columns=sent0,sent1,hard_neg,neutral'.
"""

from ml_collections import ConfigDict

from configs.ablations import start


def get_config(variant: str = "full") -> ConfigDict:
    """Supervised SimCSE."""
    return start.supervised(variant)


def rows(_variant: str = "full") -> dict[str, dict[str, object]]:
    """The paper's, its choice first."""
    return {
        "1.0": {},
        "no hard negatives": {"data.columns": "sent0,sent1"},
        "0.5": {"objective.hard_negative_weight": 0.5},
        "2.0": {"objective.hard_negative_weight": 2.0},
    }
