"""Define one transformer layer, on rows of packed sentences.

A hidden state is [B, T, D]: B rows of T tokens. The rows are those of all groups, once for each view, so that every
matrix product is one of two plain matrices. W is the number of groups times the number of views.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from simcse_jax.encoder import disentangled, int8, pooling, rotary
from simcse_jax.encoder import dropout as drop
from simcse_jax.encoder.activations import ACTIVATIONS
from simcse_jax.encoder.architecture import Architecture, DenseShape
from simcse_jax.encoder.attention import Attend, plain_attention
from simcse_jax.encoder.attention_block import AttentionMask
from simcse_jax.encoder.lora import DOWN, UP, Adapter, Lora, adapted, draw_down
from simcse_jax.encoder.norm import LayerNorm
from simcse_jax.encoder.products import HALF, product

if TYPE_CHECKING:
    from simcse_jax.group import Group


class PackedRows(NamedTuple):
    """Say where the tokens and sentences of a hidden state are; see `group.Group`."""

    segments: jax.Array  # int32[B, T]
    positions: jax.Array  # int32[B, T]
    sentences: jax.Array  # int32[B, T]
    first_tokens: jax.Array  # int32[W, N], places among the tokens of the group
    lengths: jax.Array  # int32[W, N]


def flatten_rows(group: Group, views: int) -> PackedRows:
    """Return the rows of one group, or of several stacked on a leading axis, repeated for each view."""

    def for_each_view(x: Any) -> jax.Array:
        return jnp.tile(jnp.reshape(x, (-1, x.shape[-1])), (views, 1))

    return PackedRows(*(for_each_view(getattr(group, name)) for name in PackedRows._fields))


def take_first_tokens(x: jax.Array, rows: PackedRows) -> jax.Array:
    """Return [W, N, ...]: the entries of x [B, T, ...] at each sentence's first token."""
    tokens = x.reshape(len(rows.first_tokens), -1, *x.shape[2:])
    return jax.vmap(lambda x, at: x.at[at].get(mode="promise_in_bounds"))(tokens, rows.first_tokens)


def sentence_means(x: jax.Array, rows: PackedRows) -> jax.Array:
    """Return [W, N, D]: the mean of x [B, T, D] over the tokens of each sentence."""
    groups = x.reshape(len(rows.first_tokens), -1, *x.shape[1:])
    return jax.vmap(pooling.mean)(groups, rows.first_tokens, rows.lengths)


class Dropout:
    """Apply the dropout of one forward pass: holds the keys of the views and the coordinates of the rows."""

    def __init__(self, architecture: Architecture, rows: PackedRows, keys: jax.Array | None, train: bool):
        self.rate = architecture.dropout if train else 0.0
        self.cutoff = architecture.cutoff if train else ""
        if (self.rate or self.cutoff) and keys is None:
            raise ValueError("Encoder: train=True with dropout or cutoff needs a dropout key (uint32[2]); got None.")
        self.keys, self.rows, self.max_positions = keys, rows, architecture.max_position_embeddings

    def of_first_tokens(self) -> Dropout:
        """Return the dropout for arrays [W, N, D] that hold only each sentence's first token."""
        first = copy.copy(self)
        first.rows = self.rows._replace(
            sentences=take_first_tokens(self.rows.sentences, self.rows),
            positions=take_first_tokens(self.rows.positions, self.rows),
        )
        return first

    def token_keys(self, layer: int | jax.Array, site: int) -> jax.Array:
        """Return uint32[B, T]: a key for each token at a site."""
        return self._keys_at(layer, site, self.rows.positions)

    def sentence_keys(self, layer: int | jax.Array, site: int) -> jax.Array:
        """Return uint32[B, T]: a key for each sentence at a site, the same for all its tokens."""
        return self._keys_at(layer, site, jnp.zeros_like(self.rows.positions))

    def _keys_at(self, layer: int | jax.Array, site: int, positions: jax.Array) -> jax.Array:
        assert self.keys is not None  # guarded in __init__
        of_views = jax.vmap(drop.site_key, (0, None, None))(self.keys, layer, site)
        of_rows = jnp.repeat(of_views, len(self.rows.sentences) // len(self.keys), axis=0)
        return jax.vmap(drop.token_keys)(of_rows, self.rows.sentences, positions)

    def apply(self, x: jax.Array, layer: int | jax.Array, site: int) -> jax.Array:
        """Return x [B, T, D] with dropout; the index within a token is the feature."""
        if not self.rate:
            return x
        feature = jnp.arange(x.shape[-1], dtype=jnp.uint32)[None, None]
        return drop.dropout(x, self.token_keys(layer, site)[:, :, None], feature, self.rate)

    def attention_keys(self, layer: int | jax.Array, heads: int) -> tuple[jax.Array | None, jax.Array | None]:
        """Return `keys` and `pairs` of an AttentionMask; the index within a query token is (head, key position)."""
        if not self.rate:
            return None, None
        head = jnp.arange(heads, dtype=jnp.uint32)[None, :, None, None]
        pairs = head * jnp.uint32(self.max_positions) + self.rows.positions[:, None, None, :].astype(jnp.uint32)
        return self.token_keys(layer, drop.ATTENTION_WEIGHTS)[:, None, :, None], pairs


class EncoderModule(nn.Module):
    """Hold the fields that every module of the encoder has, and make its layers.

    products: "bfloat16" rounds the factors of all matrix products to bfloat16, with results of float32; with "float32"
    they are of `dtype`; "int8" takes parameters from `int8.prepared`, has no gradients, and rounds those of attention
    to bfloat16. lora: the adapters of layers, beside kernels that then get no gradient.
    """

    architecture: Architecture
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    products: str = "float32"
    lora: Lora | None = None

    @property
    def shared(self) -> dict[str, Any]:
        """Return the fields that the modules within this one have too."""
        names = ("architecture", "dtype", "param_dtype", "products", "lora")
        return {name: getattr(self, name) for name in names}

    def norm(self, name: str) -> LayerNorm:
        of = self.architecture
        return LayerNorm(of.layer_norm_eps, self.param_dtype, of.has_bias("norm"), name=name)

    def dense(self, name: str, shape: DenseShape, has_bias: bool = True, adapter: Adapter | None = None) -> Dense:
        deviation = self.architecture.initializer_range
        shared = self.dtype, self.param_dtype, self.products
        return Dense(shape.inputs, shape.outputs, deviation, *shared, has_bias, adapter, name=name)

    def layer_dense(self, place: str) -> Dense:
        """Return the dense layer at this place in a layer's parameters, "attention/qkv" for example."""
        of = self.architecture
        adapter = self.lora and self.lora.of(place)
        return self.dense(place.split("/")[1], of.layer_products[place], of.has_bias(place), adapter)


class Dense(nn.Module):
    """Map x [..., I] to [..., O] by one product of two flat matrices, for any axes of x and the parameters.

    With several leading axes, XLA would transpose x to compute the kernel's gradient. Parameters: kernel [*inputs,
    *outputs] and, if `has_bias`, bias [*outputs]; I and O are the products of `inputs` and of `outputs`. With an
    adapter also its factors, see `lora`.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    deviation: float
    dtype: Any
    param_dtype: Any
    products: str = "float32"
    has_bias: bool = True
    adapter: Adapter | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.normal(self.deviation)
        kernel = jnp.asarray(self.param("kernel", init, (*self.inputs, *self.outputs), self.param_dtype))
        if self.adapter:
            kernel = self._adapted(kernel, self.adapter)
        if self.products == "float32" or kernel.dtype not in (HALF, jnp.int8):  # what `int8.prepared` returns
            kernel = kernel.astype(self.dtype)
        flat = kernel.reshape(math.prod(self.inputs), math.prod(self.outputs))
        bias = None
        if self.has_bias:
            bias = self.param("bias", nn.initializers.zeros, self.outputs, self.param_dtype).astype(self.dtype)
            bias = bias.reshape(-1)
        rows = x.reshape(-1, x.shape[-1])
        multiply: Any = product  # whose decorator hides its type
        if self.products == "bfloat16":
            out: jax.Array = multiply(rows, flat, bias)
        else:
            out = self._quantised(rows, flat) if self.products == "int8" else jnp.matmul(rows, flat)
            if bias is not None:
                out = out + jnp.broadcast_to(bias, out.shape)
        return out.astype(self.dtype).reshape(*x.shape[:-1], -1)

    def _adapted(self, kernel: jax.Array, adapter: Adapter) -> jax.Array:
        inputs, outputs, parts = math.prod(self.inputs), math.prod(self.outputs), adapter.parts
        down = self.param(DOWN, draw_down, (inputs, parts, adapter.rank), self.param_dtype)
        up = self.param(UP, nn.initializers.zeros, (parts, adapter.rank, outputs // parts), self.param_dtype)
        return adapted(kernel, down, up, adapter.scale)

    def _quantised(self, rows: jax.Array, codes: jax.Array) -> jax.Array:
        scales = jnp.asarray(self.param("scale", nn.initializers.ones, codes.shape[1:], jnp.float32))
        return int8.product(rows, codes, scales)


class Layer(EncoderModule):
    """Map a hidden state [B, T, D] to (the next one, its sentence means [W, N, D] if `with_means`)."""

    attend: Attend = plain_attention
    train: bool = False
    with_means: bool = False
    first_only: bool = False  # return the hidden state of the sentences' first tokens only, [W, N, D]

    @nn.compact
    def __call__(
        self, x: jax.Array, layer: jax.Array, rows: PackedRows, keys: jax.Array | None, relative: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Apply the layer with this number, from 1.

        relative: what attention knows of distances. [H, T, T] is added to its scores, and [2 T + 1, D] are the vectors
        of `disentangled`.
        """
        dropout = Dropout(self.architecture, rows, keys, self.train)
        after = dropout.of_first_tokens() if self.first_only else dropout
        attention = Attention(**self.shared, attend=self.attend, first_only=self.first_only, name="attention")
        x = attention(x, layer, rows, dropout, after, relative)
        x = FeedForward(**self.shared, name="ffn")(x, layer, after)
        return x, sentence_means(x, rows) if self.with_means else None


class Attention(EncoderModule):
    """Apply self-attention within each packed sentence to x [B, T, D], with residual and norm."""

    attend: Attend = plain_attention
    first_only: bool = False  # return only the sentences' first tokens, [W, N, D]; `after` is their dropout

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        layer: jax.Array,
        rows: PackedRows,
        dropout: Dropout,
        after: Dropout,
        relative: jax.Array | None,
    ) -> jax.Array:
        of, norm = self.architecture, self.norm("norm")
        heads = of.num_attention_heads
        # The embeddings before the first layer are normalised already.
        normal = jnp.where(layer == 1, x, norm(x)) if of.pre_norm else x
        dense = self.layer_dense("attention/qkv")
        qkv, bias = dense(normal), relative
        is_local = jnp.isin(layer, np.array(of.local_layers, np.uint32)) if of.local_layers else None
        if of.rope_theta:
            qkv = rotary.rotate(qkv, heads, rotary.angles(of, rows.positions, is_local, qkv.dtype))
        if of.disentangled_buckets:
            assert relative is not None  # `Encoder` makes it
            qkv, bias = disentangled.with_distances(qkv, dense(relative), heads)
        near = None if is_local is None else jnp.where(is_local, of.local_window, x.shape[1])
        mask = AttentionMask(rows.segments, *dropout.attention_keys(layer, heads), bias, near)
        # Its factors are all activations, too few to gain from 8 bits.
        products = "bfloat16" if self.products == "int8" else self.products
        context = self.attend(qkv, heads, mask, dropout.rate, products)
        if self.first_only:
            x, context = take_first_tokens(x, rows), take_first_tokens(context, rows)
        out = self.layer_dense("attention/out")(context)
        x = x + after.apply(out, layer, drop.ATTENTION_OUTPUT)
        return x if of.pre_norm else norm(x)


class FeedForward(EncoderModule):
    """Apply two dense layers to x [B, T, D], the first of two parts if gated, with residual and norm."""

    @nn.compact
    def __call__(self, x: jax.Array, layer: jax.Array, dropout: Dropout) -> jax.Array:
        of, norm = self.architecture, self.norm("norm")
        activation = ACTIVATIONS[of.hidden_act]
        up = self.layer_dense("ffn/up")(norm(x) if of.pre_norm else x)
        if of.gated:
            activated, factor = jnp.split(up, 2, axis=-1)
            up = activation(activated) * factor
        else:
            up = activation(up)
        out = self.layer_dense("ffn/down")(up)
        x = x + dropout.apply(out, layer, drop.FFN_OUTPUT)
        return x if of.pre_norm else norm(x)
