"""List the losses that a recipe can name (objective.loss).

To add one: write a function of an anchor's `Scores` in a file of its own, with the recipe's keys that it reads as
keyword-only parameters; add keys that are new to config/sections/objective.py; add a line to the table.
"""

from __future__ import annotations

from simcse_jax.objective.angle import angle
from simcse_jax.objective.cosent import GradedLoss
from simcse_jax.objective.info_nce import info_nce
from simcse_jax.objective.loss import BIAS, TEMPERATURE, Loss, PairwiseLoss
from simcse_jax.objective.margin_ranking import margin_ranking
from simcse_jax.objective.sigmoid import sigmoid
from simcse_jax.objective.triplet import triplet
from simcse_jax.objective.unit import cosines

LOSSES: dict[str, Loss] = {
    "info_nce": Loss(info_nce, learned={"temperature": TEMPERATURE}),
    "triplet": PairwiseLoss(triplet, takes_dot=False),
    "margin_ranking": PairwiseLoss(margin_ranking),
    "sigmoid": PairwiseLoss(sigmoid, learned={"temperature": TEMPERATURE, "bias": BIAS}),
    "cosent": GradedLoss(cosines),
    "angle": GradedLoss(angle),
}


def graded_losses() -> tuple[str, ...]:
    """Return the names of the losses that need data.scores."""
    return tuple(name for name, loss in LOSSES.items() if isinstance(loss, GradedLoss))
