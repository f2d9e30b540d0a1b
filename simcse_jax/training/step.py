"""One training step: batch to embeddings to loss to gradient to new state, as one pure function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from simcse_jax.data.batches import Batch
from simcse_jax.encoder.bert import Encoder, embeddings
from simcse_jax.group import Group
from simcse_jax.objective.contrastive import Metrics, Objective
from simcse_jax.training import mesh as meshes
from simcse_jax.training.state import TrainState, step_key

EmbedGroup = Callable[[Any, Group, jax.Array], jax.Array]
Loss = Callable[[Any, Batch, jax.Array], tuple[jax.Array, Metrics]]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_embed_group(encoder: Encoder, pooler: str, group_size: int) -> EmbedGroup:
    """A function (params, group, keys uint32[views, 2]) -> [K + 1, n, D]: the anchors, positives, hard negatives.

    One view: the group's V texts an example are these K + 1. Two views: the same sentences, encoded twice with
    independent dropout keys.
    """

    def embed(params: Any, group: Group, keys: jax.Array) -> jax.Array:
        z = jax.vmap(lambda key: embeddings(encoder, params, group, pooler, key))(keys)
        return z.reshape(-1, group_size, z.shape[-1])

    return embed


def make_loss(embed_group: EmbedGroup, objective: Objective, mesh: Mesh, groups_at_once: int = 0) -> Loss:
    """A function (params, batch, keys) -> (loss, metrics).

    groups_at_once: how many groups each device encodes at a time; 0 = all of its groups. With fewer, activations are
    recomputed in the backward pass (GradCache), so memory holds those of `groups_at_once` groups and all embeddings.
    """
    embed = jax.vmap(embed_group, in_axes=(None, 0, None), out_axes=1)  # [K + 1, G, n, D]

    def loss(params: Any, batch: Batch, keys: jax.Array) -> tuple[jax.Array, Metrics]:
        if groups_at_once:
            z = _in_chunks(lambda groups: embed(params, groups, keys), batch.groups, mesh, groups_at_once)
        else:
            z = embed(params, batch.groups, keys)
        return objective(z[0], z[1:], batch.texts)

    return loss


def _in_chunks(embed: Callable[[Group], jax.Array], groups: Group, mesh: Mesh, at_once: int) -> jax.Array:
    """embed(groups), chunk after chunk; a chunk takes `at_once` groups of every device, so all of them work."""
    spread = NamedSharding(mesh, P(None, meshes.AXES))

    def chunked(x: jax.Array) -> jax.Array:
        by_device = x.reshape(mesh.size, -1, at_once, *x.shape[1:]).swapaxes(0, 1)
        chunks = by_device.reshape(by_device.shape[0], -1, *x.shape[1:])  # [chunks, devices * at_once, ...]
        return jax.lax.with_sharding_constraint(chunks, spread)

    z = jax.lax.map(jax.checkpoint(embed), jax.tree.map(chunked, groups))  # [chunks, K + 1, devices * at_once, n, D]
    z = z.reshape(*z.shape[:2], mesh.size, at_once, *z.shape[3:])
    z = jnp.moveaxis(z, (1, 2), (0, 1))  # [K + 1, devices, chunks, at_once, n, D]
    return z.reshape(z.shape[0], -1, *z.shape[4:])


def make_train_step(loss: Loss, optimizer: optax.GradientTransformation, views: int) -> TrainStep:
    """A pure function (state, batch) -> (state, metrics); metrics are scalars, of the batch and of this update."""

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        keys = jnp.stack([step_key(state, view) for view in range(views)])
        (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(state.params, batch, keys)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": value,
            **metrics,
            "gradient_norm": optax.tree.norm(gradients),
            "parameter_norm": optax.tree.norm(params),
        }
        return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return train_step


def batch_shardings(mesh: Mesh) -> Batch:
    """The sharding of each array of a batch: groups spread over every device, text numbers on each."""
    return Batch(Group(*[meshes.over_groups(mesh)] * len(Group._fields)), meshes.replicated(mesh))


def compile_train_step(train_step: TrainStep, mesh: Mesh, state_shardings: Any) -> TrainStep:
    """The jitted step: state donated and sharded as given, groups spread over the mesh, metrics on every device."""
    return jax.jit(
        train_step,
        in_shardings=(state_shardings, batch_shardings(mesh)),
        out_shardings=(state_shardings, meshes.replicated(mesh)),
        donate_argnums=0,
    )
