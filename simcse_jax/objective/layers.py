"""Train several layers' embeddings at once (2-D Matryoshka), so that a model can later be cut to fewer layers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from simcse_jax.objective.contrastive import Metrics, Objective
from simcse_jax.objective.distillation import Distillation


def mean_over_layers(objective: Objective, layers: Sequence[int]) -> Objective:
    """Return the objective that is the mean of a given one over the embeddings of several layers.

    Its anchors and candidates hold these embeddings one after the other in their last axis, the last layer's last.
    Where Li et al. (2024) draw one layer a step, every layer counts in every step here. metrics: those of the last
    layer, and `loss_layer_L` of each.
    """

    def over_layers(anchors: jax.Array, candidates: jax.Array, *others: Any) -> tuple[jax.Array, Metrics]:
        each = (jnp.split(z, len(layers), axis=-1) for z in (anchors, candidates))
        found = [objective(*of_layer, *others) for of_layer in zip(*each, strict=True)]
        losses = {f"loss_layer_{layer}": value for layer, (value, _) in zip(layers, found, strict=True)}
        return functools.reduce(jnp.add, losses.values()) / len(losses), found[-1][1] | losses

    return over_layers


def of_last_layer(distillation: Distillation, layers: Sequence[int]) -> Distillation:
    """Return the distillation that compares the last layer's embeddings alone; embeddings: as above."""

    def last(z: jax.Array, *others: Any) -> tuple[jax.Array, Metrics]:
        return distillation(z[..., -(z.shape[-1] // len(layers)) :], *others)

    return last
