"""The encoder of the BERT and RoBERTa families: one group of packed sentences to one vector a sentence.

`Encoder.apply({"params": params}, group, pooler, key, train)` is a pure function, and the only use made of Linen.
Parameters are stored stacked over layers, [L, ...]; whether the layers then run as a loop over the stack or one after
the other, each with its own (`unstacked`), recomputed or kept, is layout and changes no number.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simcse_jax.encoder import dropout as drop
from simcse_jax.encoder import pooling
from simcse_jax.encoder.activations import ACTIVATIONS

if TYPE_CHECKING:
    from simcse_jax.group import Group


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The sizes of an encoder, named as in Hugging Face's config.json."""

    family: str  # "bert", "roberta" or "xlm-roberta"
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    initializer_range: float = 0.02
    dropout: float = 0.1  # at every site: embeddings, attention weights, both residual branches

    @property
    def position_offset(self) -> int:
        """Row of the position table that a sentence's first token uses: RoBERTa starts after its padding id."""
        return 0 if self.family == "bert" else self.pad_token_id + 1

    @property
    def max_length(self) -> int:
        """The most tokens that a sentence may have, special tokens included."""
        return self.max_position_embeddings - self.position_offset


class _Dropout:
    """The dropout of one forward pass: holds the key and the group's coordinates, knows the sites."""

    def __init__(self, config: EncoderConfig, group: Group, key: jax.Array | None, train: bool):
        self.rate = config.dropout if train else 0.0
        if self.rate and key is None:
            raise ValueError("Encoder: train=True with dropout > 0 needs a dropout key (uint32[2]); got None.")
        self.key, self.group, self.max_positions = key, group, config.max_position_embeddings

    def of_first_tokens(self) -> _Dropout:
        """The dropout of arrays [1, N, D] that hold each sentence's first token alone."""
        first = copy.copy(self)
        first.group = self.group._replace(
            sentences=_first_tokens(self.group.sentences, self.group),
            positions=_first_tokens(self.group.positions, self.group),
        )
        return first

    def _token_keys(self, layer: int | jax.Array, site: int) -> jax.Array:
        assert self.key is not None  # guarded in __init__
        return drop.token_keys(drop.site_key(self.key, layer, site), self.group.sentences, self.group.positions)

    def hidden(self, x: jax.Array, layer: int | jax.Array, site: int) -> jax.Array:
        """x [R, T, D] with dropout; the index within a token is the feature."""
        if not self.rate:
            return x
        feature = jnp.arange(x.shape[-1], dtype=jnp.uint32)[None, None]
        return drop.dropout(x, self._token_keys(layer, site)[:, :, None], feature, self.rate)

    def attention(self, weights: jax.Array, layer: int | jax.Array) -> jax.Array:
        """weights [R, H, T, T] with dropout; the index within a (query) token is (head, position of the key)."""
        if not self.rate:
            return weights
        heads = jnp.arange(weights.shape[1], dtype=jnp.uint32)[None, :, None, None]
        pair = heads * jnp.uint32(self.max_positions) + self.group.positions[:, None, None, :].astype(jnp.uint32)
        keys = self._token_keys(layer, drop.ATTENTION_WEIGHTS)[:, None, :, None]
        return drop.dropout(weights, keys, pair, self.rate)


class _Module(nn.Module):
    """The fields and layer makers that every part of the encoder shares."""

    config: EncoderConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def norm(self, name: str) -> nn.LayerNorm:
        """LayerNorm with statistics in at least float32, and the two-pass variance that PyTorch computes."""
        return nn.LayerNorm(
            epsilon=self.config.layer_norm_eps,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            use_fast_variance=False,
            name=name,
        )

    def dense(self, name: str, outer: tuple[int, ...], inner: tuple[int, ...] | None = None) -> _Dense:
        inner = inner or (self.config.hidden_size,)
        return _Dense(inner, outer, self.config.initializer_range, self.dtype, self.param_dtype, name=name)


class _Dense(nn.Module):
    """x [..., I] to [..., O]: one flat product, whatever axes the parameters have, which is the fastest on all devices.

    Parameters: kernel [*inner, *outer], bias [*outer]; I and O are the products of `inner` and `outer`.
    """

    inner: tuple[int, ...]
    outer: tuple[int, ...]
    deviation: float
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.normal(self.deviation)
        kernel = self.param("kernel", init, (*self.inner, *self.outer), self.param_dtype).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, self.outer, self.param_dtype).astype(self.dtype)
        product = x @ kernel.reshape(math.prod(self.inner), math.prod(self.outer))
        return product + jnp.broadcast_to(bias.reshape(-1), product.shape)


class Layer(_Module):
    """One transformer layer on the rows of a group: hidden [R, T, D] in, (hidden, what `collect` asks for) out."""

    train: bool = False
    collect: str | None = None  # None, "mean" (per-sentence means [N, D]) or "hidden" (the hidden state itself)
    first_only: bool = False  # the hidden state out is that of the sentences' first tokens alone, [1, N, D]

    @nn.compact
    def __call__(
        self, x: jax.Array, layer: jax.Array, group: Group, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        dropout = _Dropout(self.config, group, key, self.train)
        shared = self.config, self.dtype, self.param_dtype
        after = dropout.of_first_tokens() if self.first_only else dropout
        x = Attention(*shared, first_only=self.first_only, name="attention")(x, layer, group, dropout, after)
        x = FeedForward(*shared, name="ffn")(x, layer, after)
        return x, _collected(x, group, self.collect)


class Attention(_Module):
    """x [R, T, D] after self-attention within each packed sentence, residual and norm."""

    first_only: bool = False  # of the sentences' first tokens alone, [1, N, D]; `after` is then the dropout of these

    @nn.compact
    def __call__(self, x: jax.Array, layer: jax.Array, group: Group, dropout: _Dropout, after: _Dropout) -> jax.Array:
        heads = self.config.num_attention_heads
        size = self.config.hidden_size // heads
        qkv = jnp.split(self.dense("qkv", (3, heads, size))(x), 3, axis=-1)
        q, k, v = (part.reshape(*part.shape[:-1], heads, size) for part in qkv)
        scores = jnp.einsum("rthd,rshd->rhts", q, k)
        # Padding is segment 0 and sees only padding, so no row of the softmax is empty.
        same = group.segments[:, None, :, None] == group.segments[:, None, None, :]
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32)) * size**-0.5
        scores = jnp.where(same, scores, jnp.finfo(scores.dtype).min)
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        total = weights.sum(-1, keepdims=True)
        # In full precision the softmax's division comes last, where there is less to divide and where XLA fuses it
        # well; in half, before anything is rounded, since the two terms of its gradient have to cancel.
        last = x.dtype == scores.dtype
        weights = weights if last else (weights / total).astype(x.dtype)
        context = jnp.einsum("rhts,rshd->rthd", dropout.attention(weights, layer), v)
        context = (context / jnp.moveaxis(total, 1, 2) if last else context).reshape(x.shape)
        if self.first_only:
            x, context = _first_tokens(x, group), _first_tokens(context, group)
        out = self.dense("out", (self.config.hidden_size,), (heads, size))(context)
        return self.norm("norm")(x + after.hidden(out, layer, drop.ATTENTION_OUTPUT))


class FeedForward(_Module):
    """x [R, T, D] after the two dense layers, residual and norm."""

    @nn.compact
    def __call__(self, x: jax.Array, layer: jax.Array, dropout: _Dropout) -> jax.Array:
        hidden, between = (self.config.hidden_size,), (self.config.intermediate_size,)
        up = ACTIVATIONS[self.config.hidden_act](self.dense("up", between)(x))
        out = self.dense("down", hidden, between)(up)
        return self.norm("norm")(x + dropout.hidden(out, layer, drop.FFN_OUTPUT))


class Embeddings(_Module):
    """[R, T, D]: word, position and (first) token type of each token, summed and normalised."""

    @nn.compact
    def __call__(self, group: Group) -> jax.Array:
        config = self.config

        def table(name: str, rows: int) -> jax.Array:
            init = nn.initializers.normal(config.initializer_range)
            return self.param(name, init, (rows, config.hidden_size), self.param_dtype).astype(self.dtype)

        x = table("word", config.vocab_size)[group.ids]
        x = x + table("position", config.max_position_embeddings)[group.positions + config.position_offset]
        if config.type_vocab_size:
            x = x + table("token_type", config.type_vocab_size)[0][None, None]
        return self.norm("norm")(x)


def _first_tokens(x: jax.Array, group: Group) -> jax.Array:
    """[1, N, ...]: what x [R, T, ...] holds of each sentence's first token."""
    return x.reshape(-1, *x.shape[2:])[group.first_tokens][None]


def _collected(x: jax.Array, group: Group, collect: str | None) -> jax.Array | None:
    if collect == "mean":
        return pooling.mean(x, group.first_tokens, group.lengths)
    return x if collect == "hidden" else None


class Encoder(_Module):
    """BERT or RoBERTa on one group, and a pooler on top.

    Fields: `has_head`: a dense + tanh head sits on the first token (Hugging Face's `pooler`, SimCSE's MLP);
    `unroll`: layers as straight-line code, their parameters as `unstacked` gives them, instead of a loop over a stack;
    `remat`: recompute each layer in the backward pass;
    `gather`: makes a layer's parameters out of what the device holds of them, when they are split over devices.
    """

    has_head: bool = False
    unroll: bool = False
    remat: bool = False
    gather: Callable[[Any], Any] | None = None

    def __call__(self, group: Group, pooler: str, key: jax.Array | None = None, train: bool = False) -> jax.Array:
        """float32[N, D] (float64 when computing in float64): one vector for each sentence of the group.

        group: one group, arrays int32[R, T] and int32[N]; vmap for more. key: uint32[2], the dropout key of this step
        and view; needed when `train` and the config's dropout is above 0 (ValueError without). pooler: one of
        `pooling.POOLERS`; "cls" needs a head.
        """
        z = self._run(group, pooler, key, train)
        return z.astype(jnp.promote_types(z.dtype, jnp.float32))

    def hidden_states(self, group: Group) -> jax.Array:
        """[L + 1, R, T, D]: the embedding layer's output and each layer's, without dropout."""
        return self._run(group, "hidden", None, False)

    @nn.compact
    def _run(self, group: Group, pooler: str, key: jax.Array | None, train: bool) -> jax.Array:
        if pooler == "cls" and not self.has_head:
            raise ValueError("Encoder: pooler 'cls' needs a head (dense + tanh), and this encoder has none.")
        if pooler != "hidden" and pooler not in pooling.POOLERS:
            raise ValueError(f"Encoder: unknown pooler {pooler!r}; known: {', '.join(pooling.POOLERS)}.")
        averaged = pooling.AVERAGED_LAYERS.get(pooler, ())
        collect = "hidden" if pooler == "hidden" else "mean" if len(averaged) > 1 else None

        x = Embeddings(self.config, self.dtype, self.param_dtype, name="embeddings")(group)
        x = _Dropout(self.config, group, key, train).hidden(x, 0, drop.EMBEDDINGS)
        first = _collected(x, group, collect)
        numbers = jnp.arange(1, self.config.num_hidden_layers + 1, dtype=jnp.uint32)
        # An unrolled last layer leaves out what a pooler of first tokens never looks at: about 3/4 of its arithmetic.
        first_only = self.unroll and collect is None and not averaged
        x, of_layers = self._layers(train, collect, first_only)(x, numbers, group, key)
        if first is not None:
            states = jnp.concatenate([first[None], of_layers])
            return states if collect == "hidden" else states[jnp.array(averaged)].mean(0)
        if averaged:
            return pooling.mean(x, group.first_tokens, group.lengths)
        z = x[0] if first_only else pooling.first_token(x, group.first_tokens)
        if pooler == "cls":
            z = jnp.tanh(self.dense("head", (self.config.hidden_size,))(z))
        return z

    def _layers(self, train: bool, collect: str | None, first_only: bool) -> Callable:
        layers, one, gather = self.config.num_hidden_layers, Layer, self.gather
        if gather is not None:
            one = nn.map_variables(one, "params", trans_in_fn=lambda held: {"params": gather(held["params"])})
        if self.remat or gather is not None:
            # Products are kept and what was gathered is not: kept, it would be the whole model again.
            policy = None if self.remat else jax.checkpoint_policies.dots_saveable
            # prevent_cse guards against merging the recomputation away, which a loop's body cannot suffer.
            one = nn.remat(one, prevent_cse=self.unroll, policy=policy)
        make = functools.partial(one, self.config, self.dtype, self.param_dtype, train=train, collect=collect)
        if self.unroll:
            last = functools.partial(make, first_only=first_only)
            made = [(last if n == layers - 1 else make)(name=f"layer_{n}") for n in range(layers)]
            return functools.partial(_one_by_one, made)
        stacked = nn.scan(
            one,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=layers,
        )
        return stacked(self.config, self.dtype, self.param_dtype, train=train, collect=collect, name="layers")


def _one_by_one(
    layers: list[Layer], x: jax.Array, numbers: jax.Array, group: Group, key: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """What the scanned layers give, (x, what they collected, stacked), from layers that are called in turn."""
    collected = []
    for layer, number in zip(layers, numbers, strict=True):
        x, of_layer = layer(x, number, group, key)
        collected.append(of_layer)
    return x, None if collected[0] is None else jnp.stack(collected)


def unstacked(params: Any) -> Any:
    """The parameters of an encoder with `unroll`: each layer's by themselves, from those stacked over layers."""
    layers, structure = jax.tree.flatten(params["layers"])
    split = zip(*map(jnp.unstack, layers), strict=True)
    each = {f"layer_{n}": jax.tree.unflatten(structure, layer) for n, layer in enumerate(split)}
    return {name: params[name] for name in params if name != "layers"} | each


def embeddings(encoder: Encoder, params: Any, group: Group, pooler: str, key: jax.Array | None = None) -> jax.Array:
    """float32[N, D] of one group: the pure function that the rest of the house calls.

    params: stacked over layers, also where the encoder has `unroll`. key: uint32[2] turns dropout on, as in training;
    None leaves it off.
    """
    params = unstacked(params) if encoder.unroll else params
    out = encoder.apply({"params": params}, group, pooler, key, key is not None)
    assert isinstance(out, jax.Array)  # Linen returns a pair only when collections are mutable
    return out
