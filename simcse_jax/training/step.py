"""One training step: batch to embeddings to loss to gradient to new state, as one pure function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from simcse_jax.data.batches import Batch
from simcse_jax.encoder.bert import Encoder, embeddings
from simcse_jax.encoder.init import parameter_shapes
from simcse_jax.encoder.mlm import mlm_scores
from simcse_jax.group import Group, Masked
from simcse_jax.objective.contrastive import Metrics, Objective
from simcse_jax.objective.mlm import Predicted, mlm_loss, predictions
from simcse_jax.training import mesh as meshes
from simcse_jax.training.parts import part_specs, whole_over_data, whole_over_fsdp
from simcse_jax.training.state import TrainState, step_key

Loss = Callable[[Any, Batch, jax.Array], tuple[jax.Array, Metrics]]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


class Encoded(NamedTuple):
    """What the encoder makes of groups."""

    z: jax.Array | None  # [K + 1, G, n, D]: embeddings of anchors, positives, hard negatives; None without views
    predicted: Predicted | None  # of the groups' masked copies, [G] each; None without them


# (params, groups, their masked copies, keys uint32[views (+ 1), 2]) -> Encoded
EncodeGroups = Callable[[Any, Group, Masked | None, jax.Array], Encoded]
EncodeBatch = Callable[[Any, Batch, jax.Array], Encoded]


def make_encode_groups(encoder: Encoder, pooler: str, group_size: int, mesh: Mesh) -> EncodeGroups:
    """A function that encodes G groups, and predicts what their masked copies hide, where they have some.

    One view: the V texts that an example has in its group are anchor, positive and hard negatives. Two views: the same
    sentences, encoded twice with independent dropout keys. The masked copies have a view of their own, the last key's.
    To be called within a shard_map over the mesh, with this device's parts of the parameters: a layer's are gathered
    when the layer runs, and dropped after it (ZeRO-3).
    """
    specs = part_specs(mesh, parameter_shapes(encoder))
    if mesh.shape["fsdp"] > 1:
        encoder = encoder.clone(gather=lambda layer: whole_over_fsdp(layer, specs["layers"], stacked=True))

    def encode(params: Any, groups: Group, masked: Masked | None, keys: jax.Array) -> Encoded:
        around = {name: whole_over_fsdp(params[name], specs[name]) for name in params if name != "layers"}
        whole = around | {"layers": params["layers"]}
        views = len(keys) - (masked is not None)
        z = predicted = None
        if views:
            z = embeddings(encoder, whole, groups, pooler, keys[:views])  # [views, G, N, D], N = texts an example * n
            z = jnp.moveaxis(z.reshape(*z.shape[:2], -1, group_size, z.shape[-1]), 2, 1)
            z = z.reshape(-1, *z.shape[2:])
        if masked is not None:
            predicted = predictions(mlm_scores(encoder, whole, groups, masked, keys[-1]), masked.labels)
        return Encoded(z, predicted)

    return encode


def make_encode_batch(encode: EncodeGroups, mesh: Mesh, groups_at_once: int = 0, kernels_as: Any = None) -> EncodeBatch:
    """A function (params, batch, keys) -> Encoded, all global, spread over every device.

    groups_at_once: how many groups each device encodes at a time; 0 = all of its groups. With fewer, activations are
    recomputed in the backward pass (GradCache), so memory holds those of `groups_at_once` groups and all embeddings.
    Each device sums the gradient of its own groups, and gradients are exchanged once. kernels_as: the dtype that the
    encoder computes in; kernels are gathered as such, unless in chunks or with fsdp.
    """
    # Over an axis of one device, XLA would "reduce" gradients all the same, by copying them.
    axes = meshes.used_axes(mesh)
    # Over chunks, and by the scatters of fsdp, gradients are summed in the dtype that the kernel came in.
    sent_as = None if groups_at_once or mesh.shape["fsdp"] > 1 else kernels_as

    def in_chunks(params: Any, groups: Group, masked: Masked | None, keys: jax.Array) -> Encoded:
        if not groups_at_once:
            return encode(params, groups, masked, keys)
        chunks = jax.tree.map(lambda x: x.reshape(-1, groups_at_once, *x.shape[1:]), (groups, masked))
        found = jax.lax.map(jax.checkpoint(lambda chunk: encode(params, chunk[0], chunk[1], keys)), chunks)
        z = found.z
        if z is not None:
            z = jnp.moveaxis(z, 1, 0)  # [K + 1, chunks, groups_at_once, n, D]
            z = z.reshape(z.shape[0], -1, *z.shape[3:])
        return Encoded(z, jax.tree.map(lambda x: x.reshape(-1), found.predicted))

    def encode_batch(params: Any, batch: Batch, keys: jax.Array) -> Encoded:
        specs = part_specs(mesh, params)

        def local(params: Any, groups: Group, masked: Masked | None, keys: jax.Array) -> Encoded:
            with jax.named_scope("encoder"):
                own = params if not axes else whole_over_data(params, specs, axes, sent_as)
                return in_chunks(own, groups, masked, keys)

        own, every = P(axes), P()
        out: Any = Encoded(P(None, axes), own)  # pyright: ignore[reportArgumentType]
        everywhere = jax.shard_map(local, mesh=mesh, in_specs=(specs, own, own, every), out_specs=out)
        return (everywhere if axes else local)(params, batch.groups, batch.masked, keys)

    return encode_batch


def make_loss(encode: EncodeBatch, objective: Objective | None, mlm_weight: float = 0.0) -> Loss:
    """A function (params, batch, keys) -> (loss, metrics): the objective's, plus mlm_weight times that of the MLM.

    objective: None for masked language modelling alone.
    """

    def loss(params: Any, batch: Batch, keys: jax.Array) -> tuple[jax.Array, Metrics]:
        encoded = encode(params, batch, keys)
        losses, metrics = [], {}
        with jax.named_scope("loss"):
            if objective is not None:
                assert encoded.z is not None
                contrastive, metrics = objective(encoded.z[0], encoded.z[1:], batch.texts)
                losses.append(contrastive)
            if encoded.predicted is not None:
                of_mlm, figures = mlm_loss(encoded.predicted)
                losses.append(mlm_weight * of_mlm)
                metrics = metrics | figures
        return sum(losses[1:], losses[0]), metrics

    return loss


def make_train_step(loss: Loss, optimizer: optax.GradientTransformation, keys: int) -> TrainStep:
    """A pure function (state, batch) -> (state, metrics); metrics are scalars, of the batch and of this update.

    keys: how many dropout keys a step takes: one for each view, and one for masked copies.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        step_keys = jnp.stack([step_key(state, view) for view in range(keys)])
        (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(state.params, batch, step_keys)
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


def batch_shardings(mesh: Mesh, masked: bool = False) -> Batch:
    """The sharding of each array of a batch: groups, and masked copies, over every device, text numbers on each."""

    def spread(fields: Any) -> Any:
        return fields(*[meshes.over_groups(mesh)] * len(fields._fields))

    return Batch(spread(Group), meshes.replicated(mesh), spread(Masked) if masked else None)


def compile_train_step(train_step: TrainStep, mesh: Mesh, state_shardings: Any, masked: bool = False) -> TrainStep:
    """The jitted step: state donated and sharded as given, groups spread over the mesh, metrics on every device.

    masked: whether its batches have masked copies.
    """
    return jax.jit(
        train_step,
        in_shardings=(state_shardings, batch_shardings(mesh, masked)),
        out_shardings=(state_shardings, meshes.replicated(mesh)),
        donate_argnums=0,
    )
