"""Compare temperatures of supervised SimCSE (the paper's table D.1).

    python -m simcse_jax.sweep --config=configs/ablations/temperature.py --seeds=0..4

The paper's row without a temperature is the plain dot product: similarity "dot", temperature 1.
"""

from ml_collections import ConfigDict

from simcse_jax.recipes.ablations import start


def get_config(variant: str = "full") -> ConfigDict:
    """Return supervised SimCSE."""
    return start.supervised(variant)


def rows(_variant: str = "full") -> dict[str, dict[str, object]]:
    """Return the rows of the paper, its choice first."""
    return {
        "0.05": {},
        "none, products": {"objective.similarity": "dot", "objective.temperature": 1.0},
        **{str(value): {"objective.temperature": value} for value in (0.001, 0.01, 0.1, 1.0)},
    }
