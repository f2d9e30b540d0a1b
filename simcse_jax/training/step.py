"""One training step: batch to embeddings to loss to gradient to new state, as one pure function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from simcse_jax.data.batches import Batch, Fed
from simcse_jax.encoder.init import parameter_shapes
from simcse_jax.encoder.mlm import Predictor, mlm_scores, replace_tokens
from simcse_jax.encoder.model import Encoder, embed
from simcse_jax.group import Group, MaskedGroup
from simcse_jax.objective.contrastive import Metrics, Objective
from simcse_jax.objective.mlm import Predicted, mlm_loss, predictions
from simcse_jax.training import mesh as meshes
from simcse_jax.training.mesh import gather_over_data, gather_over_fsdp, part_specs
from simcse_jax.training.state import (
    LEARNED,
    PREDICTOR,
    QUEUE,
    SECOND,
    TrainState,
    encoding_trees,
    enqueue,
    step_key,
    update_ema,
)

# (params, extra, batch, keys) -> (loss, (metrics, what extra becomes))
Loss = Callable[[Any, Any, Batch, jax.Array], tuple[jax.Array, tuple[Metrics, Any]]]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


class Encoded(NamedTuple):
    """What the encoder makes of groups."""

    z: jax.Array | None  # [K + 1, G, n, D]: embeddings of anchors, positives, hard negatives; None without views
    predicted: Predicted | None  # of the groups' masked copies, [G] each; None without them


# (trees, groups and their copies, keys uint32[views (+ 1), 2]) -> Encoded; trees: see `parameters.encoding_trees`
EncodeGroups = Callable[[Any, Fed, jax.Array], Encoded]
EncodeBatch = Callable[[Any, Batch, jax.Array], Encoded]


def make_encode_groups(
    encoder: Encoder, pooler: str, group_size: int, mesh: Mesh, predictor: Predictor | None = None
) -> EncodeGroups:
    """A function that encodes G groups, and predicts what their masked copies hide, where they have some.

    One view: the V texts that an example has in its group are anchor, positive and hard negatives. Two views: the same
    sentences, encoded twice with independent dropout keys. The masked copies have a view of their own, the last key's.
    Where there is a second encoder, it encodes all but the anchors, and of one view these are apart; with a predictor,
    the second view is of sentences in which it has replaced what is hidden.
    To be called within a shard_map over the mesh, with this device's parts of the parameters: a layer's are gathered
    when the layer runs, and dropped after it (ZeRO-3).
    """
    whole = _gathering(encoder, mesh)
    whole_predictor = predictor and _gathering(predictor.encoder, mesh)

    def texts(params: Any, groups: Group, keys: jax.Array) -> jax.Array:
        """[views * V, G, n, D]."""
        z = embed(whole.encoder, params, groups, pooler, keys)  # [views, G, N, D], N = texts an example * n
        z = jnp.moveaxis(z.reshape(*z.shape[:2], -1, group_size, z.shape[-1]), 2, 1)
        return z.reshape(-1, *z.shape[2:])

    def of_views(trees: Any, first: Any, fed: Fed, keys: jax.Array) -> jax.Array:
        second = whole.around(trees[SECOND]) if SECOND in trees else first
        if fed.hidden is not None:
            assert predictor is not None
            assert whole_predictor is not None
            held = whole_predictor.around(trees[PREDICTOR])
            ids = replace_tokens(predictor._replace(encoder=whole_predictor.encoder), held, fed.groups, fed.hidden)
            positives = fed.groups._replace(ids=ids)
        elif SECOND in trees:
            assert len(keys) == 2 or fed.others is not None, "of one view, texts must be apart"
            positives = fed.groups if fed.others is None else fed.others
        else:
            assert fed.others is None, "one encoder reads all texts together"
            return texts(first, fed.groups, keys)
        # Of one view, both encoders drop by its key.
        return jnp.concatenate([texts(first, fed.groups, keys[:1]), texts(second, positives, keys[-1:])])

    def encode(trees: Any, fed: Fed, keys: jax.Array) -> Encoded:
        first = whole.around({name: tree for name, tree in trees.items() if name not in (SECOND, PREDICTOR)})
        views = len(keys) - (fed.masked is not None)
        z = of_views(trees, first, fed, keys[:views]) if views else None
        predicted = None
        if fed.masked is not None:
            groups = fed.groups if fed.others is None else _joined(fed.groups, fed.others)
            scores = mlm_scores(whole.encoder, first, groups, fed.masked, keys[-1])
            predicted = predictions(scores, fed.masked.labels)
        return Encoded(z, predicted)

    return encode


def _joined(first: Group, rest: Group) -> Group:
    """The groups, stacked, that were parted into these."""
    below = rest._replace(first_tokens=rest.first_tokens + first.ids.shape[1] * first.ids.shape[2])
    return jax.tree.map(lambda one, other: jnp.concatenate([one, other], axis=1), first, below)


class _Gathering(NamedTuple):
    """An encoder whose layers are gathered when they run, and what gathers its other parameters."""

    encoder: Encoder
    around: Callable[[Any], Any]


def _gathering(encoder: Encoder, mesh: Mesh) -> _Gathering:
    specs = part_specs(mesh, parameter_shapes(encoder))
    if mesh.shape["fsdp"] > 1:
        encoder = encoder.clone(gather=lambda layer: gather_over_fsdp(layer, specs["layers"], stacked=True))

    def around(params: Any) -> Any:
        return {
            name: tree if name == "layers" else gather_over_fsdp(tree, specs[name]) for name, tree in params.items()
        }

    return _Gathering(encoder, around)


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

    def in_chunks(trees: Any, fed: Fed, keys: jax.Array) -> Encoded:
        if not groups_at_once:
            return encode(trees, fed, keys)
        chunks = jax.tree.map(lambda x: x.reshape(-1, groups_at_once, *x.shape[1:]), fed)
        found = jax.lax.map(jax.checkpoint(lambda chunk: encode(trees, chunk, keys)), chunks)
        z = found.z
        if z is not None:
            z = jnp.moveaxis(z, 1, 0)  # [K + 1, chunks, groups_at_once, n, D]
            z = z.reshape(z.shape[0], -1, *z.shape[3:])
        return Encoded(z, jax.tree.map(lambda x: x.reshape(-1), found.predicted))

    def encode_batch(trees: Any, batch: Batch, keys: jax.Array) -> Encoded:
        specs = part_specs(mesh, trees)

        def local(trees: Any, fed: Fed, keys: jax.Array) -> Encoded:
            with jax.named_scope("encoder"):
                own = trees if not axes else gather_over_data(trees, specs, axes, sent_as)
                return in_chunks(own, fed, keys)

        own, every = P(axes), P()
        out: Any = Encoded(P(None, axes), own)  # pyright: ignore[reportArgumentType]
        everywhere = jax.shard_map(local, mesh=mesh, in_specs=(specs, own, every), out_specs=out)
        return (everywhere if axes else local)(trees, batch.fed, keys)

    return encode_batch


def make_loss(encode: EncodeBatch, objective: Objective | None, mlm_weight: float = 0.0) -> Loss:
    """A function (params, extra, batch, keys) -> (loss, (metrics, extra)).

    The loss is the objective's, plus mlm_weight times that of masked language modelling. objective: None for masked
    language modelling alone. A queue in `extra` is among the candidates, and takes in this batch's positives.
    """

    def loss(params: Any, extra: Any, batch: Batch, keys: jax.Array) -> tuple[jax.Array, tuple[Metrics, Any]]:
        encoded = encode(encoding_trees(params, extra), batch, keys)
        losses, metrics = [], {}
        with jax.named_scope("loss"):
            if objective is not None:
                assert encoded.z is not None
                anchors, candidates = encoded.z[0], encoded.z[1:]
                queue = extra.get(QUEUE)
                contrastive, metrics = objective(anchors, candidates, batch.texts, params.get(LEARNED), queue)
                losses.append(contrastive)
                if queue is not None:
                    extra = extra | {QUEUE: enqueue(queue, candidates[0], batch.texts[1])}
            if encoded.predicted is not None:
                of_mlm, figures = mlm_loss(encoded.predicted)
                losses.append(mlm_weight * of_mlm)
                metrics = metrics | figures
        return sum(losses[1:], losses[0]), (metrics, extra)

    return loss


def make_train_step(
    loss: Loss, optimizer: optax.GradientTransformation, keys: Sequence[int], momentum: float = 0.0
) -> TrainStep:
    """A pure function (state, batch) -> (state, metrics); metrics are scalars, of the batch and of this update.

    keys: the numbers of the dropout keys that a step takes, one for each view, and one for masked copies; views with
    the same number drop the same. momentum: of the second encoder, where `extra` holds one.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        step_keys = jnp.stack([step_key(state, number) for number in keys])
        of_params = jax.value_and_grad(loss, has_aux=True)
        (value, (metrics, extra)), gradients = of_params(state.params, state.extra, batch, step_keys)
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


def batch_shardings(mesh: Mesh, masked: bool = False, hidden: bool = False, apart: bool = False) -> Batch:
    """The sharding of each array of a batch: groups and their copies over every device, text numbers on each."""

    def spread(fields: Any) -> Any:
        return fields(*[meshes.over_groups(mesh)] * len(fields._fields))

    copies = [spread(MaskedGroup) if there else None for there in (masked, hidden)]
    others = spread(Group) if apart else None
    return Batch(spread(Group), meshes.replicated(mesh), *copies, others=others)


def compile_train_step(
    train_step: TrainStep,
    mesh: Mesh,
    state_shardings: Any,
    masked: bool = False,
    hidden: bool = False,
    apart: bool = False,
) -> TrainStep:
    """The jitted step: state donated and sharded as given, groups spread over the mesh, metrics on every device.

    masked, hidden: whether its batches have such copies; apart: whether their texts are apart.
    """
    return jax.jit(
        train_step,
        in_shardings=(state_shardings, batch_shardings(mesh, masked, hidden, apart)),
        out_shardings=(state_shardings, meshes.replicated(mesh)),
        donate_argnums=0,
    )
