"""Compare weights of masked language modelling beside supervised SimCSE (the paper's appendix D).

    python -m simcse_jax.sweep --config=configs/ablations/mlm.py --seeds=0..4

Runs are judged on STS-B dev while they train, and on the transfer tasks, the only ones it helps according to the paper.
The table compares rows by the transfer average; --table --measure=dev/spearman compares them by STS-B dev.
"""

from ml_collections import ConfigDict

from simcse_jax.recipes.ablations import start


def get_config(variant: str = "full") -> ConfigDict:
    """Return supervised SimCSE."""
    return start.supervised(variant)


def rows(_variant: str = "full") -> dict[str, dict[str, object]]:
    """Return the rows of the paper, weight 0 first."""
    return {"none": {}, **{str(weight): {"mlm.weight": weight} for weight in (0.01, 0.1, 1.0)}}


def judged(_variant: str = "full") -> str:
    """Return the tasks that finished runs are judged on."""
    return "transfer"
