"""Take a loss of the user's own: a function of `Scores`, or a `Loss`, by its import path."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from simcse_jax.objective.cosent import GradedLoss
from simcse_jax.objective.loss import Loss, PairwiseLoss, Scores
from simcse_jax.objective.losses import LOSSES
from simcse_jax.system.errors import UserError, short
from simcse_jax.system.import_path import import_object, is_import_path, place_of

KEY = "objective.loss"
EXAMPLE = "def my_loss(scores: Scores, *, margin: float) -> jax.Array"


def add_loss(path: str) -> None:
    """Put the loss that an import path names into the table of losses, under that path; UserError where it is none."""
    found = import_object(path, KEY)
    loss = found if isinstance(found, Loss) else PairwiseLoss(found)
    try:
        parameters = inspect.signature(loss.function).parameters.values()
    except (TypeError, ValueError):
        parameters = ()
    needed = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]
    if loss is not found and (inspect.isclass(found) or len(needed) != 1):
        raise UserError(
            f"{KEY} = {path!r} is no loss: {_shown(found)}. A loss is a function of the `Scores` of some anchors, such "
            f"as\n  {EXAMPLE}\nor an object of simcse_jax.objective.loss (CONTRIBUTING.md, A loss)."
        )
    known = sorted({option for name, known in LOSSES.items() if not is_import_path(name) for option in known.options})
    if unknown := [option for option in loss.options if option not in known]:
        raise UserError(
            f"{KEY} = {path!r}: its keyword-only parameter {unknown[0]!r} is no key of a loss. Such keys are "
            f"objective.{', objective.'.join(known)}.\nPut a constant of your own before the *, with its value: "
            f"{unknown[0]}=1.0"
        )
    LOSSES[path] = loss


def require_losses(path: str, loss: Loss, options: Mapping[str, Any]) -> None:
    """Raise UserError unless the user's function returns a loss for each anchor; it is traced, and computes nothing."""
    a, n, width = 2, 6, 4
    given: tuple[Any, ...]
    if isinstance(loss, GradedLoss):
        given, options = (jax.ShapeDtypeStruct((a, width), jnp.float32),) * 2, {}
    elif isinstance(loss, PairwiseLoss):
        fields: Any = [((a,), jnp.float32), ((a, n), jnp.float32), ((a, n), jnp.bool_)]
        given = (Scores._make(jax.ShapeDtypeStruct(*field) for field in fields),)
    else:
        return  # a loss with tiles of its own
    try:
        found = jax.eval_shape(lambda *arrays: loss.function(*arrays, **options), *given)
    except Exception as error:
        raise UserError(
            f"{KEY} = {path!r} fails at {place_of(error, loss.function)}: {short(error)}\nIt was given float32[{a}] "
            f"positives and float32[{a}, {n}] candidates, to be traced by jax.jit."
        ) from error
    shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", None)
    if shape != (a,) or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        what = f"{dtype}{list(shape)}" if shape is not None else type(found).__name__
        raise UserError(
            f"{KEY} = {path!r} returns {what} for {a} anchors, and must return float32[{a}], a loss for each.\n"
            "For example the mean over candidates: simcse_jax.objective.loss.mean_where(values, scores.is_negative)."
        )


def _shown(found: Any) -> str:
    name = getattr(found, "__qualname__", None)
    try:
        return f"{name}{inspect.signature(found)}" if name else f"an object of type {type(found).__name__}"
    except (TypeError, ValueError):
        return f"an object of type {type(found).__name__}"
