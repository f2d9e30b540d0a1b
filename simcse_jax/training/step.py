"""Define one training step as a pure function: batch to embeddings to loss to gradient to new state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from simcse_jax.data.batches import Batch, EncoderInputs
from simcse_jax.encoder.init import parameter_shapes
from simcse_jax.encoder.mlm import Predictor, mlm_scores, replace_tokens
from simcse_jax.encoder.model import Encoder, embed
from simcse_jax.group import Group
from simcse_jax.objective.contrastive import Metrics, Objective
from simcse_jax.objective.distillation import Distillation
from simcse_jax.objective.mlm import Predicted, mlm_loss, predictions
from simcse_jax.training import mesh as meshes
from simcse_jax.training.feeding import batch_shardings
from simcse_jax.training.mesh import gather_over_data, gather_over_fsdp, part_specs
from simcse_jax.training.state import (
    LEARNED,
    PREDICTOR,
    PROJECTION,
    QUEUE,
    SECOND,
    TrainState,
    encoding_trees,
    enqueue,
    is_frozen_tree,
    step_key,
    update_ema,
)

# (params, extra, batch, keys, frozen or nothing) -> (loss, (metrics, the next extra))
Loss = Callable[..., tuple[jax.Array, tuple[Metrics, Any]]]
# (state, batch, frozen or nothing) -> (state, metrics)
TrainStep = Callable[..., tuple[TrainState, Metrics]]


class Encoded(NamedTuple):
    """Hold what the encoder makes of G groups."""

    z: jax.Array | None  # [K + 1, G, n, D]: embeddings of anchors, positives, hard negatives; None without views
    predicted: Predicted | None  # [G] each: of the groups' masked copies; None without masked language modelling


# (trees of parameters, groups, keys uint32[views (+ 1), 2]) -> Encoded; trees: those of `state.encoding_trees`
EncodeGroups = Callable[[Any, EncoderInputs, jax.Array], Encoded]
EncodeBatch = Callable[[Any, Batch, jax.Array], Encoded]


def make_encode_groups(
    encoder: Encoder, pooler: str, group_size: int, mesh: Mesh, predictor: Predictor | None = None
) -> EncodeGroups:
    """Return a function that encodes G groups, and predicts the masked tokens of their masked copies.

    With one view, the V texts of an example are its anchor, positive and hard negatives. With two views, the same
    sentences are encoded twice with independent dropout keys. Masked copies have a view of their own, that of the last
    key. A second encoder encodes all texts but the anchors; with one view, these then come as a group of their own. A
    predictor replaces the masked tokens of the second view's sentences.

    The function is called inside a shard_map over the mesh, with this device's parts of the parameters: a layer is
    gathered when it runs, and dropped after it (ZeRO-3).
    """
    encoder, gather_outer = _gathering(encoder, mesh)
    if predictor is not None:
        guessing, gather_predictor = _gathering(predictor.encoder, mesh)
        predictor = predictor._replace(encoder=guessing)

    def embed_texts(params: Any, groups: Group, keys: jax.Array) -> jax.Array:
        """Return embeddings [views * V, G, n, D]."""
        z = embed(encoder, params, groups, pooler, keys)  # [views, G, N, D], N = texts an example * n
        z = jnp.moveaxis(z.reshape(*z.shape[:2], -1, group_size, z.shape[-1]), 2, 1)
        return z.reshape(-1, *z.shape[2:])

    def embed_views(trees: Any, first: Any, inputs: EncoderInputs, keys: jax.Array) -> jax.Array:
        """Return embeddings [K + 1, G, n, D]; first: the first encoder's parameters."""
        second = gather_outer(trees[SECOND]) if SECOND in trees else first
        if inputs.replacement is not None:
            assert predictor is not None
            held = gather_predictor(trees[PREDICTOR])
            positives = inputs.groups._replace(ids=replace_tokens(predictor, held, inputs.groups, inputs.replacement))
        elif SECOND in trees:
            assert len(keys) == 2 or inputs.non_anchors is not None, "with one view, anchors must be separate"
            positives = inputs.groups if inputs.non_anchors is None else inputs.non_anchors
        else:
            assert inputs.non_anchors is None, "one encoder reads all texts together"
            return embed_texts(first, inputs.groups, keys)
        # With one view, both encoders use its key.
        return jnp.concatenate([embed_texts(first, inputs.groups, keys[:1]), embed_texts(second, positives, keys[-1:])])

    def encode(trees: Any, inputs: EncoderInputs, keys: jax.Array) -> Encoded:
        first = gather_outer({name: tree for name, tree in trees.items() if name not in (SECOND, PREDICTOR)})
        views = len(keys) - (inputs.masked is not None)
        z = embed_views(trees, first, inputs, keys[:views]) if views else None
        predicted = None
        if inputs.masked is not None:
            groups = inputs.groups if inputs.non_anchors is None else _stack_rows(inputs.groups, inputs.non_anchors)
            scores = mlm_scores(encoder, first, groups, inputs.masked, keys[-1])
            predicted = predictions(scores, inputs.masked.labels)
        return Encoded(z, predicted)

    return encode


def _stack_rows(first: Group, rest: Group) -> Group:
    """Return G groups with the rows of both, as their masked copies have them."""
    below = rest._replace(first_tokens=rest.first_tokens + first.ids.shape[1] * first.ids.shape[2])
    return jax.tree.map(lambda one, other: jnp.concatenate([one, other], axis=1), first, below)


def _gathering(encoder: Encoder, mesh: Mesh) -> tuple[Encoder, Callable[[Any], Any]]:
    """Return an encoder that gathers its layers when they run, and a function that gathers its other parameters."""
    specs = part_specs(mesh, parameter_shapes(encoder), is_frozen_tree if encoder.lora else None)
    if mesh.shape["fsdp"] > 1:
        encoder = encoder.clone(gather=lambda layer: gather_over_fsdp(layer, specs["layers"], stacked=True))

    def gather_outer(params: Any) -> Any:
        return {
            name: tree if name == "layers" else gather_over_fsdp(tree, specs[name]) for name, tree in params.items()
        }

    return encoder, gather_outer


def make_encode_batch(
    encode: EncodeGroups, mesh: Mesh, groups_at_once: int = 0, kernels_as: Any = None, adapts: bool = False
) -> EncodeBatch:
    """Return a function (params, batch, keys) -> Encoded of global arrays, spread over all devices.

    groups_at_once: the number of groups that each device encodes at a time, 0 for all of its groups. With fewer,
    activations are recomputed in the backward pass (GradCache), so memory holds the activations of that many groups and
    all embeddings. Each device sums the gradient of its own groups, and gradients are exchanged once. kernels_as: the
    dtype that the encoder computes in; kernels are gathered in it, unless in chunks or with fsdp. adapts: whether the
    encoder has adapters, and all else of it is frozen.
    """
    # Over an axis of one device, XLA would still "reduce" gradients, by copying them.
    axes = meshes.used_axes(mesh)
    # Over chunks, and by the scatters of fsdp, gradients are summed in the dtype that the kernel came in.
    sent_as = None if groups_at_once or mesh.shape["fsdp"] > 1 else kernels_as

    def in_chunks(trees: Any, inputs: EncoderInputs, keys: jax.Array) -> Encoded:
        if not groups_at_once:
            return encode(trees, inputs, keys)
        chunks = jax.tree.map(lambda x: x.reshape(-1, groups_at_once, *x.shape[1:]), inputs)
        found = jax.lax.map(jax.checkpoint(lambda chunk: encode(trees, chunk, keys)), chunks)
        z = found.z
        if z is not None:
            z = jnp.moveaxis(z, 1, 0)  # [K + 1, chunks, groups_at_once, n, D]
            z = z.reshape(z.shape[0], -1, *z.shape[3:])
        return Encoded(z, jax.tree.map(lambda x: x.reshape(-1), found.predicted))

    def encode_batch(trees: Any, batch: Batch, keys: jax.Array) -> Encoded:
        specs = part_specs(mesh, trees, is_frozen_tree if adapts else None)

        def local(trees: Any, inputs: EncoderInputs, keys: jax.Array) -> Encoded:
            with jax.named_scope("encoder"):
                own = trees if not axes else gather_over_data(trees, specs, axes, sent_as)
                return in_chunks(own, inputs, keys)

        own, every = P(axes), P()
        out: Any = Encoded(P(None, axes), own)  # pyright: ignore[reportArgumentType]
        everywhere = jax.shard_map(local, mesh=mesh, in_specs=(specs, own, every), out_specs=out)
        return (everywhere if axes else local)(trees, batch.inputs, keys)

    return encode_batch


def make_loss(
    encode: EncodeBatch,
    objective: Objective | None,
    mlm_weight: float = 0.0,
    distillation: Distillation | None = None,
) -> Loss:
    """Return a function (params, extra, batch, keys, frozen) -> (loss, (metrics, extra)).

    The loss is the objective's plus mlm_weight times that of masked language modelling plus the distillation's.
    objective: None for the others alone. The embeddings of a queue in `extra` are candidates too, and this batch's
    positives join the queue. frozen: the encoder's other parameters, None where `params` has all of them.
    """

    def loss(
        params: Any, extra: Any, batch: Batch, keys: jax.Array, frozen: Any = None
    ) -> tuple[jax.Array, tuple[Metrics, Any]]:
        encoded = encode(encoding_trees(params, extra, frozen), batch, keys)
        losses, metrics = [], {}
        with jax.named_scope("loss"):
            if objective is not None:
                assert encoded.z is not None
                anchors, candidates = encoded.z[0], encoded.z[1:]
                queue = extra.get(QUEUE)
                given = (anchors, candidates, batch.text_ids, params.get(LEARNED), queue, batch.teacher, batch.grades)
                contrastive, metrics = objective(*given)
                losses.append(contrastive)
                if queue is not None:
                    extra = extra | {QUEUE: enqueue(queue, candidates[0], batch.text_ids[1])}
            if encoded.predicted is not None:
                of_mlm, mlm_metrics = mlm_loss(encoded.predicted)
                losses.append(mlm_weight * of_mlm)
                metrics = metrics | mlm_metrics
            if distillation is not None:
                kernel = params[PROJECTION]["kernel"] if PROJECTION in params else None
                of_teacher, teacher_metrics = distillation(encoded.z, batch.teacher, batch.text_ids, kernel)
                losses.append(of_teacher)
                metrics = metrics | teacher_metrics
        return sum(losses[1:], losses[0]), (metrics, extra)

    return loss


def make_train_step(
    loss: Loss, optimizer: optax.GradientTransformation, keys: Sequence[int], momentum: float = 0.0
) -> TrainStep:
    """Return a pure function (state, batch, frozen) -> (state, metrics); metrics are scalars.

    frozen: as in `make_loss`. keys: the number of the dropout key of each view, and of the masked copies; views with
    the same number drop the same. momentum: that of the momentum encoder, where `extra` holds one.
    """

    def train_step(state: TrainState, batch: Batch, frozen: Any = None) -> tuple[TrainState, Metrics]:
        step_keys = jnp.stack([step_key(state, number) for number in keys])
        of_params = jax.value_and_grad(loss, has_aux=True)
        (value, (metrics, extra)), gradients = of_params(state.params, state.extra, batch, step_keys, frozen)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            extra = update_ema(extra, params, momentum)
        metrics = {
            "loss": value,
            **metrics,
            "gradient_norm": optax.tree.norm(gradients),
            "parameter_norm": optax.tree.norm(params),
        }
        return state._replace(step=state.step + 1, params=params, opt_state=opt_state, extra=extra), metrics

    return train_step


def compile_train_step(
    train_step: TrainStep,
    mesh: Mesh,
    state_shardings: Any,
    *frozen: Any,
    compiler_options: dict[str, Any] | None = None,
) -> TrainStep:
    """Return the jitted step. The state is donated; metrics are on every device.

    frozen: the shardings of what the step takes beside state and batch, if it takes anything.
    """
    return jax.jit(
        train_step,
        in_shardings=(state_shardings, batch_shardings(mesh), *frozen),
        out_shardings=(state_shardings, meshes.replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options,
    )
