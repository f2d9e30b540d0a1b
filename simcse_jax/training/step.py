"""One training step: batch to embeddings to loss to gradient to new state, as one pure function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from simcse_jax.data.batches import Batch
from simcse_jax.encoder.bert import Encoder, embeddings
from simcse_jax.encoder.init import parameter_shapes
from simcse_jax.group import Group
from simcse_jax.objective.contrastive import Metrics, Objective
from simcse_jax.training import mesh as meshes
from simcse_jax.training.parts import part_specs, whole_over_data, whole_over_fsdp
from simcse_jax.training.state import TrainState, step_key

EmbedGroups = Callable[[Any, Group, jax.Array], jax.Array]
Loss = Callable[[Any, Batch, jax.Array], tuple[jax.Array, Metrics]]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_embed_groups(encoder: Encoder, pooler: str, group_size: int, mesh: Mesh) -> EmbedGroups:
    """A function (params, groups, keys uint32[views, 2]) -> [K + 1, G, n, D]: the anchors, positives, hard negatives.

    One view: the V texts that an example has in its group are these K + 1. Two views: the same sentences, encoded twice
    with independent dropout keys. To be called within a shard_map over the mesh, with this device's parts of the
    parameters: a layer's are gathered when the layer runs, and dropped after it (ZeRO-3).
    """
    specs = part_specs(mesh, parameter_shapes(encoder))
    if mesh.shape["fsdp"] > 1:
        encoder = encoder.clone(gather=lambda layer: whole_over_fsdp(layer, specs["layers"], stacked=True))

    def embed(params: Any, groups: Group, keys: jax.Array) -> jax.Array:
        around = {name: whole_over_fsdp(params[name], specs[name]) for name in params if name != "layers"}
        whole = around | {"layers": params["layers"]}
        z = embeddings(encoder, whole, groups, pooler, keys)  # [views, G, N, D], N = texts an example * n
        z = jnp.moveaxis(z.reshape(*z.shape[:2], -1, group_size, z.shape[-1]), 2, 1)
        return z.reshape(-1, *z.shape[2:])

    return embed


def make_loss(
    embed: EmbedGroups, objective: Objective, mesh: Mesh, groups_at_once: int = 0, kernels_as: Any = None
) -> Loss:
    """A function (params, batch, keys) -> (loss, metrics).

    groups_at_once: how many groups each device encodes at a time; 0 = all of its groups. With fewer, activations are
    recomputed in the backward pass (GradCache), so memory holds those of `groups_at_once` groups and all embeddings.
    Each device sums the gradient of its own groups, and what it has is reduced once. kernels_as: the encoder's dtype,
    in which kernels may then be sent.
    """
    # Over an axis of one device, XLA would "reduce" gradients all the same, by copying them.
    axes = meshes.used_axes(mesh)
    # Over chunks, a kernel's gradients are summed in the dtype that the kernel came in.
    sent_as = None if groups_at_once else kernels_as

    def encode(params: Any, groups: Group, keys: jax.Array) -> jax.Array:
        if not groups_at_once:
            return embed(params, groups, keys)
        chunks = jax.tree.map(lambda x: x.reshape(-1, groups_at_once, *x.shape[1:]), groups)
        z = jax.lax.map(jax.checkpoint(lambda chunk: embed(params, chunk, keys)), chunks)
        z = jnp.moveaxis(z, 1, 0)  # [K + 1, chunks, groups_at_once, n, D]
        return z.reshape(z.shape[0], -1, *z.shape[3:])

    def loss(params: Any, batch: Batch, keys: jax.Array) -> tuple[jax.Array, Metrics]:
        specs = part_specs(mesh, params)

        def local(params: Any, groups: Group, keys: jax.Array) -> jax.Array:
            with jax.named_scope("encoder"):
                own = params if not axes else whole_over_data(params, specs, axes, sent_as)
                return encode(own, groups, keys)

        everywhere = jax.shard_map(local, mesh=mesh, in_specs=(specs, P(axes), P()), out_specs=P(None, axes))
        z = (everywhere if axes else local)(params, batch.groups, keys)
        with jax.named_scope("loss"):
            return objective(z[0], z[1:], batch.texts)

    return loss


def make_train_step(loss: Loss, optimizer: optax.GradientTransformation, views: int) -> TrainStep:
    """A pure function (state, batch) -> (state, metrics); metrics are scalars, of the batch and of this update."""

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        keys = jnp.stack([step_key(state, view) for view in range(views)])
        (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(state.params, batch, keys)
        with jax.named_scope("optimizer"):
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
