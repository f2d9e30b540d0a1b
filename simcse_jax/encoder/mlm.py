"""Predict masked tokens: the head that scores the vocabulary, and the encoder with it."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from simcse_jax.encoder.activations import ACTIVATIONS
from simcse_jax.encoder.layer import EncoderModule
from simcse_jax.encoder.model import Encoder, embed
from simcse_jax.encoder.products import product
from simcse_jax.group import Group, MaskedGroup


class MlmHead(EncoderModule):
    """Score the vocabulary as BERT does: dense, activation, norm, the transposed word embeddings, and a bias.

    Parameters: dense, norm, bias [V].
    """

    @nn.compact
    def __call__(self, hidden: jax.Array, words: jax.Array) -> jax.Array:
        """Return scores [..., V] of at least float32, for hidden [..., D] and word embeddings [V, E]."""
        of = self.architecture
        x = self.dense("dense", of.mlm_product, of.has_bias("mlm/dense"))(hidden.astype(self.dtype))
        x = self.norm("norm")(ACTIVATIONS[of.mlm_act or of.hidden_act](x))
        bias = self.param("bias", nn.initializers.zeros, (of.vocab_size,), self.param_dtype)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        flat = x.reshape(-1, x.shape[-1])
        scores: jax.Array
        if self.products == "bfloat16":
            scores = product(flat, words.astype(self.dtype), by_rows=True)
        else:
            scores = jnp.einsum("nd,vd->nv", flat, words.astype(self.dtype), preferred_element_type=wide)
        scores = scores + jnp.broadcast_to(bias.astype(wide), scores.shape)
        return scores.reshape(*hidden.shape[:-1], -1)


class Predictor(NamedTuple):
    """Hold a model that replaces tokens by others that are likely in that place."""

    encoder: Encoder
    special: np.ndarray  # bool[V]: tokens that it never writes


def make_mlm_head(encoder: Encoder) -> MlmHead:
    """Make the head that goes with an encoder."""
    return MlmHead(**encoder.shared)


def mlm_scores(
    encoder: Encoder, params: Any, group: Group, masked: MaskedGroup, key: jax.Array | None = None
) -> jax.Array:
    """Return float32[G, M, V]: the scores of all tokens at each of the M places to predict.

    group, masked: of G groups, stacked. params: the encoder's, with the head's under "mlm". key: uint32[2], turns
    dropout on. The head, and the last layer's products after attention, run only at these places. Cutoff is off: here
    the masks are what hides tokens.
    """
    encoder = encoder.clone(architecture=dataclasses.replace(encoder.architecture, cutoff=""))
    at_places = group._replace(ids=masked.ids, first_tokens=masked.places, lengths=jnp.ones_like(masked.places))
    hidden = embed(encoder, params, at_places, "cls_before_pooler", key)
    scores = make_mlm_head(encoder).apply({"params": params["mlm"]}, hidden, params["embeddings"]["word"])
    assert isinstance(scores, jax.Array)  # Linen returns a pair only when collections are mutable
    return scores


def replace_tokens(predictor: Predictor, params: Any, group: Group, masked: MaskedGroup) -> jax.Array:
    """Return int32[G, R, T]: the group's tokens, with the masked ones replaced by the likeliest other tokens.

    group, masked: of G groups, stacked. No gradient flows through the result, and dropout is off.
    """
    scores = jax.lax.stop_gradient(mlm_scores(predictor.encoder, params, group, masked))
    never = jnp.asarray(predictor.special)[None, None] | jax.nn.one_hot(masked.labels, scores.shape[-1], dtype=bool)
    likeliest = jnp.where(never, -jnp.inf, scores).argmax(-1).astype(jnp.int32)
    ids = jnp.reshape(group.ids, (len(group.ids), -1))
    at = jnp.where(masked.labels >= 0, masked.places, ids.shape[1])  # unused places lie outside, and are dropped
    ids = jax.vmap(lambda ids, at, new: ids.at[at].set(new, mode="drop"))(ids, at, likeliest)
    return ids.reshape(group.ids.shape)
