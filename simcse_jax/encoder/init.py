"""Initialise the parameters of an encoder and its heads."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from simcse_jax.encoder.attention import plain_attention
from simcse_jax.encoder.mlm import make_mlm_head
from simcse_jax.encoder.model import Encoder
from simcse_jax.group import Group


def init_params(encoder: Encoder, seed: int) -> Any:
    """Return random parameters as BERT's are drawn: normal(0, initializer_range) kernels and tables, zero biases.

    Stacked over layers, also where the encoder has `unroll`. A pure function of the seed: under jit, out_shardings
    shard the result, and if only a part of it is used, only that part is computed.
    """
    one = jnp.zeros((1, 1), jnp.int32)
    group = Group(one, one, one, one, one[0], one[0])
    pooler = "cls" if encoder.has_head else "cls_before_pooler"
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), 0)
    params = encoder.clone(unroll=False, attend=plain_attention).init(key, group, pooler)["params"]
    if encoder.architecture.shared_layers:  # stacked too: a stack of one
        params = {**params, "layers": jax.tree.map(lambda x: x[None], params["layers"])}
    if encoder.has_mlm_head:
        hidden = jnp.zeros((1, encoder.architecture.hidden_size), encoder.dtype)
        head = make_mlm_head(encoder).init(jax.random.fold_in(key, 1), hidden, params["embeddings"]["word"])["params"]
        params = {**params, "mlm": head}
    return params


def parameter_shapes(encoder: Encoder) -> Any:
    """Return the tree of `init_params` as ShapeDtypeStructs, without computing anything."""
    return jax.eval_shape(lambda: init_params(encoder, 0))
