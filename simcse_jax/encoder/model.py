"""Define the encoder: packed sentences to one embedding for each sentence.

`embed` is the pure function that others call; Linen is used for nothing else.
Parameters are stored stacked over layers, [L, ...]; whether the layers then run as a loop over the stack or one after
the other, each with its own (`unstack_layers`), recomputed or kept, is layout and changes no number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simcse_jax.encoder import disentangled, pooling
from simcse_jax.encoder import dropout as drop
from simcse_jax.encoder.attention import Attend, plain_attention
from simcse_jax.encoder.cutoff import cut
from simcse_jax.encoder.layer import (
    Dropout,
    EncoderModule,
    Layer,
    PackedRows,
    flatten_rows,
    sentence_means,
    take_first_tokens,
)
from simcse_jax.encoder.relative import relative_bias

if TYPE_CHECKING:
    from simcse_jax.group import Group


class Embeddings(EncoderModule):
    """Sum the embeddings of words, positions and (the first) token type, and normalise: int32[B, T] to [B, T, E].

    E is the width of the tables.
    """

    @nn.compact
    def __call__(self, ids: jax.Array, positions: jax.Array) -> jax.Array:
        architecture, tables = self.architecture, self.architecture.tables

        def table(name: str) -> jax.Array:
            init = nn.initializers.normal(architecture.initializer_range)
            return self.param(name, init, (tables[name], architecture.table_size), self.param_dtype)

        # Rows are looked up before they are rounded: a table is many times larger than what a batch reads of it.
        x = table("word")[ids].astype(self.dtype)
        if "position" in tables:
            x = x + table("position")[positions + architecture.position_offset].astype(self.dtype)
        if "token_type" in tables:
            x = x + table("token_type")[0][None, None].astype(self.dtype)
        return self.norm("norm")(x)


class Encoder(EncoderModule):
    """Encode groups of packed sentences, with a pooler on top.

    has_head: a dense + tanh head sits on the first token (Hugging Face's `pooler`, SimCSE's MLP).
    has_mlm_head: the parameters also hold a head for masked language modelling, which `encoder.mlm` runs.
    attend: how attention is computed: `attention.plain_attention`, or `fused_attention` where that runs.
    unroll: run the layers as straight-line code instead of a loop, with parameters from `unstack_layers`.
    remat: recompute each layer in the backward pass.
    gather: turns the part of a layer's parameters that a device holds into the whole layer's.
    """

    has_head: bool = False
    has_mlm_head: bool = False
    attend: Attend = plain_attention
    unroll: bool = False
    remat: bool = False
    gather: Callable[[Any], Any] | None = None

    def __call__(self, group: Group, pooler: str, key: jax.Array | None = None, train: bool = False) -> jax.Array:
        """Return float32[N, D], [G, N, D] or [V, G, N, D] (float64 when computing in it): one embedding per sentence.

        group: arrays int32[R, T] and int32[N], or those of G groups, stacked. key: uint32[2], the dropout key of this
        step and view, or uint32[V, 2] for V views, each of which encodes all sentences; ValueError without one when
        `train` is set and the architecture has dropout or a cutoff. pooler: see `encoder.pooling`; "cls" needs a head,
        and D is the width of what it concatenates.
        """
        z = self._run(group, pooler, None if key is None else key.reshape(-1, 2), train)
        z = z.astype(jnp.promote_types(z.dtype, jnp.float32))  # [W, N, D]
        views = () if key is None else key.shape[:-1]
        return z.reshape(*views, *group.first_tokens.shape, -1)

    @nn.compact
    def _run(self, group: Group, pooler: str, keys: jax.Array | None, train: bool) -> jax.Array:
        if pooler == "cls" and not self.has_head:
            raise ValueError("Encoder: pooler 'cls' needs a head (dense + tanh), and this encoder has none.")
        parts = pooling.parts_of(pooler)
        with_means = any(part.reads_layers for part in parts)

        architecture = self.architecture
        views = 1 if keys is None else len(keys)
        rows = flatten_rows(group, views)
        ids, positions = (jnp.reshape(x, (-1, x.shape[-1])) for x in (group.ids, group.positions))
        x = Embeddings(**self.shared, name="embeddings")(ids, positions)
        x = jnp.tile(x, (views, 1, 1))  # views differ from the first dropout on
        dropout = Dropout(architecture, rows, keys, train)
        if dropout.cutoff:
            x = cut(x, dropout.cutoff, architecture.cutoff_rate, dropout, rows)
        x = dropout.apply(x, 0, drop.EMBEDDINGS)
        if architecture.projection:
            x = self.dense("projection", architecture.projection)(x)
        of_embeddings = sentence_means(x, rows) if with_means else None
        numbers = jnp.arange(1, architecture.num_hidden_layers + 1, dtype=jnp.uint32)
        # An unrolled last layer skips what a pooler of first tokens never reads: about 3/4 of its arithmetic.
        only_first = all(part.reads_first_tokens for part in parts)
        first_only = self.unroll and only_first and not architecture.shared_layers
        relative = self._relative(x.shape[1])
        x, of_layers = self._layers(train, with_means, first_only)(x, numbers, rows, keys, relative)
        if architecture.pre_norm:
            x = self.norm("final_norm")(x)
        means = None
        if of_embeddings is not None:
            if architecture.pre_norm:
                of_layers = of_layers.at[-1].set(sentence_means(x, rows))
            means = jnp.concatenate([of_embeddings[None], of_layers])
        pooled = [_pooled(part, x, means, rows, first_only) for part in parts]
        z = pooled[0] if len(pooled) == 1 else jnp.concatenate(pooled, axis=-1)
        if pooler == "cls":
            z = jnp.tanh(self.dense("head", architecture.head_product)(z))
        return z

    def _relative(self, tokens: int) -> jax.Array | None:
        """Return what all layers know of distances, see `Layer`; None where the architecture has no such thing."""
        of = self.architecture
        init = nn.initializers.normal(of.initializer_range)
        if of.relative_buckets:
            shape = of.relative_buckets, of.num_attention_heads
            return relative_bias(self.param("relative", init, shape, self.param_dtype), tokens)
        if of.disentangled_buckets:
            shape = 2 * of.disentangled_buckets, of.hidden_size
            table = self.param("relative", init, shape, self.param_dtype)
            vectors = disentangled.by_distance(table, tokens, of.max_position_embeddings)
            return self.norm("relative_norm")(vectors).astype(self.dtype)
        return None

    def _layers(self, train: bool, with_means: bool, first_only: bool) -> Callable:
        layers, one, gather = self.architecture.num_hidden_layers, Layer, self.gather
        shared = self.architecture.shared_layers
        if gather is not None:
            one = nn.map_variables(one, "params", trans_in_fn=lambda held: {"params": gather(held["params"])})
        if self.remat or gather is not None:
            # Keep the results of matrix products, but not gathered parameters: those would be the whole model again.
            policy = None if self.remat else jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            # prevent_cse keeps XLA from merging the recomputation with the forward pass; in a loop it cannot do that.
            one = nn.remat(one, prevent_cse=self.unroll, policy=policy)
        make = functools.partial(one, **self.shared, attend=self.attend, train=train, with_means=with_means)
        if self.unroll:
            last = functools.partial(make, first_only=first_only)
            if shared:
                return functools.partial(_one_by_one, [make(name="layer_0")] * layers)
            made = [(last if n == layers - 1 else make)(name=f"layer_{n}") for n in range(layers)]
            return functools.partial(_one_by_one, made)
        stacked = nn.scan(
            one,
            variable_axes={} if shared else {"params": 0},
            variable_broadcast="params" if shared else False,
            split_rngs={"params": not shared},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=layers,
        )
        return stacked(**self.shared, attend=self.attend, train=train, with_means=with_means, name="layers")


def _pooled(part: pooling.Part, x: jax.Array, means: jax.Array | None, rows: PackedRows, first_only: bool) -> jax.Array:
    """Return [W, N, D]: the last hidden state x [B, T, D], pooled, or x itself if it has the first tokens only.

    means: [L + 1, W, N, D], the sentence means of all hidden states, where a part reads them.
    """
    if part.reads_first_tokens:
        return x if first_only else take_first_tokens(x, rows)
    if part.reads_layers:
        assert means is not None
        if not part.weights:
            z = means[jnp.array(pooling.AVERAGED_LAYERS[part.name])].mean(0)
        elif len(part.weights) != len(means):
            raise ValueError(f"Encoder: {len(part.weights)} weights of layers; this encoder has {len(means)} states.")
        else:
            z = jnp.sum(jnp.array(part.weights, means.dtype)[:, None, None, None] * means, axis=0)
        return pooling.mean_sqrt_len(z, rows.lengths) if part.name == "mean_sqrt_len" else z
    if part.name in ("avg", "mean_sqrt_len"):
        z = sentence_means(x, rows)
        return z if part.name == "avg" else pooling.mean_sqrt_len(z, rows.lengths)
    groups, positions = (each.reshape(len(rows.lengths), -1, *each.shape[1:]) for each in (x, rows.positions))
    if part.name == "weighted_mean":
        return jax.vmap(pooling.weighted_mean)(groups, rows.first_tokens, rows.lengths, positions)
    pool = {"max": pooling.largest, "last_token": pooling.last_token}[part.name]
    return jax.vmap(pool)(groups, rows.first_tokens, rows.lengths)


def _one_by_one(
    layers: list[Layer], x: jax.Array, numbers: jax.Array, *shared: Any
) -> tuple[jax.Array, jax.Array | None]:
    """Call layers in turn, and return what the scanned layers would: (x, their sentence means, stacked).

    shared: what all layers take after x and their number.
    """
    found = []
    for layer, number in zip(layers, numbers, strict=True):
        x, of_layer = layer(x, number, *shared)
        found.append(of_layer)
    return x, None if found[0] is None else jnp.stack(found)


def unstack_layers(params: Any) -> Any:
    """Split parameters that are stacked over layers into each layer's own, as an encoder with `unroll` takes them."""
    layers, structure = jax.tree.flatten(params["layers"])
    split = zip(*map(jnp.unstack, layers), strict=True)
    each = {f"layer_{n}": jax.tree.unflatten(structure, layer) for n, layer in enumerate(split)}
    return {name: params[name] for name in params if name != "layers"} | each


def as_applied(encoder: Encoder, params: Any) -> Any:
    """Return stacked parameters as the encoder's `apply` takes them: see `unstack_layers`.

    A loop over shared layers takes the one layer's without the axis over which they are stacked.
    """
    if encoder.unroll:
        return unstack_layers(params)
    if encoder.architecture.shared_layers:
        return params | {"layers": jax.tree.map(lambda x: x[0], params["layers"])}
    return params


def embed(encoder: Encoder, params: Any, group: Group, pooler: str, key: jax.Array | None = None) -> jax.Array:
    """Return the embeddings of a group's sentences, float32[N, D], [G, N, D] or [V, G, N, D]; see `Encoder`.

    params: stacked over layers, also where the encoder has `unroll`. key: uint32[2] or uint32[V, 2] turns dropout on,
    as in training; None leaves it off.
    """
    out = encoder.apply({"params": as_applied(encoder, params)}, group, pooler, key, key is not None)
    assert isinstance(out, jax.Array)  # Linen returns a pair only when collections are mutable
    return out
