"""The encoder of the BERT and RoBERTa families: one group of packed sentences to one vector a sentence.

`Encoder.apply({"params": params}, group, pooler, key, train)` is a pure function, and the only use made of Linen.
Parameters are stored stacked over layers, [L, ...]; whether the layers then run as a loop or unrolled, recomputed or
kept, is layout and changes no number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simcse_jax.encoder import dropout as drop
from simcse_jax.encoder import pooling

if TYPE_CHECKING:
    from simcse_jax.group import Group

# Hugging Face's names for `hidden_act`. BERT and RoBERTa use the exact (erf) GELU.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


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

    def dense(self, features: int | tuple[int, ...], name: str, axis: int | tuple[int, ...] = -1) -> nn.DenseGeneral:
        return nn.DenseGeneral(
            features,
            axis=axis,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=nn.initializers.normal(self.config.initializer_range),
            name=name,
        )


class Layer(_Module):
    """One transformer layer on the rows of a group: hidden [R, T, D] in, (hidden, what `collect` asks for) out."""

    train: bool = False
    collect: str | None = None  # None, "mean" (per-sentence means [N, D]) or "hidden" (the hidden state itself)

    @nn.compact
    def __call__(
        self, x: jax.Array, layer: jax.Array, group: Group, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        dropout = _Dropout(self.config, group, key, self.train)
        attended = Attention(self.config, self.dtype, self.param_dtype, name="attention")(x, layer, group, dropout)
        x = FeedForward(self.config, self.dtype, self.param_dtype, name="ffn")(attended, layer, dropout)
        return x, _collected(x, group, self.collect)


class Attention(_Module):
    """x [R, T, D] after self-attention within each packed sentence, residual and norm."""

    @nn.compact
    def __call__(self, x: jax.Array, layer: jax.Array, group: Group, dropout: _Dropout) -> jax.Array:
        heads = self.config.num_attention_heads
        size = self.config.hidden_size // heads
        q, k, v = jnp.moveaxis(self.dense((3, heads, size), "qkv")(x), -3, 0)
        scores = jnp.einsum("rthd,rshd->rhts", q * jnp.asarray(size**-0.5, q.dtype), k)
        # Padding is segment 0 and sees only padding, so no row of the softmax is empty.
        same = group.segments[:, None, :, None] == group.segments[:, None, None, :]
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
        weights = jax.nn.softmax(jnp.where(same, scores, jnp.finfo(scores.dtype).min), axis=-1)
        weights = dropout.attention(weights.astype(x.dtype), layer)
        out = self.dense(self.config.hidden_size, "out", axis=(-2, -1))(jnp.einsum("rhts,rshd->rthd", weights, v))
        return self.norm("norm")(x + dropout.hidden(out, layer, drop.ATTENTION_OUTPUT))


class FeedForward(_Module):
    """x [R, T, D] after the two dense layers, residual and norm."""

    @nn.compact
    def __call__(self, x: jax.Array, layer: jax.Array, dropout: _Dropout) -> jax.Array:
        up = ACTIVATIONS[self.config.hidden_act](self.dense(self.config.intermediate_size, "up")(x))
        out = self.dense(self.config.hidden_size, "down")(up)
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


def _collected(x: jax.Array, group: Group, collect: str | None) -> jax.Array | None:
    if collect == "mean":
        return pooling.mean(x, group.first_tokens, group.lengths)
    return x if collect == "hidden" else None


class Encoder(_Module):
    """BERT or RoBERTa on one group, and a pooler on top.

    Fields: `has_head`: a dense + tanh head sits on the first token (Hugging Face's `pooler`, SimCSE's MLP);
    `unroll`: layers as straight-line code instead of a loop; `remat`: recompute each layer in the backward pass;
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
        x, of_layers = self._layers(train, collect)(x, numbers, group, key)
        if first is not None:
            states = jnp.concatenate([first[None], of_layers])
            return states if collect == "hidden" else states[jnp.array(averaged)].mean(0)
        if averaged:
            return pooling.mean(x, group.first_tokens, group.lengths)
        z = pooling.first_token(x, group.first_tokens)
        if pooler == "cls":
            z = jnp.tanh(self.dense(self.config.hidden_size, "head")(z))
        return z

    def _layers(self, train: bool, collect: str | None) -> Callable:
        layers, one, gather = self.config.num_hidden_layers, Layer, self.gather
        if gather is not None:
            one = nn.map_variables(one, "params", trans_in_fn=lambda held: {"params": gather(held["params"])})
        if self.remat or gather is not None:
            # Products are kept and what was gathered is not: kept, it would be the whole model again.
            policy = None if self.remat else jax.checkpoint_policies.dots_saveable
            # prevent_cse guards against merging the recomputation away, which a loop's body cannot suffer.
            one = nn.remat(one, prevent_cse=self.unroll, policy=policy)
        stacked = nn.scan(
            one,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=layers,
            unroll=layers if self.unroll else 1,
        )
        return stacked(self.config, self.dtype, self.param_dtype, train=train, collect=collect, name="layers")


def embeddings(encoder: Encoder, params: Any, group: Group, pooler: str, key: jax.Array | None = None) -> jax.Array:
    """float32[N, D] of one group: the pure function that the rest of the house calls.

    key: uint32[2] turns dropout on, as in training; None leaves it off.
    """
    out = encoder.apply({"params": params}, group, pooler, key, key is not None)
    assert isinstance(out, jax.Array)  # Linen returns a pair only when collections are mutable
    return out
