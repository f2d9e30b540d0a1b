"""ModernBERT: pre-norm layers without biases, GeGLU, rotary positions, and local attention in two layers of three.

So are Ettin's encoders, mmBERT and gte-modernbert.
"""

from __future__ import annotations

from typing import Any

from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.families.family import SIZES, ConfigFile, Family, WeightNames, require_pairs_of_features
from simcse_jax.system.errors import UserError

GLOBAL, LOCAL = "full_attention", "sliding_attention"  # values of layer_types

NAMES = WeightNames(
    prefix="model.",
    tables={"word": "embeddings.tok_embeddings"},
    embedding_norm="embeddings.norm",
    layer="layers.{}.",
    layer_parts={
        "attention/qkv": "attn.Wqkv",
        "attention/out": "attn.Wo",
        "attention/norm": "attn_norm",
        "ffn/up": "mlp.Wi",
        "ffn/down": "mlp.Wo",
        "ffn/norm": "mlp_norm",
    },
    head="",
    mlm_dense="head.dense",
    mlm_norm="head.norm",
    mlm_output="decoder",
    mlm_decoder="decoder",
    task_heads=("head.", "decoder.", "classifier."),
    final_norm="final_norm",
)


def read(file: ConfigFile) -> Architecture:
    """Return the architecture that a config.json states, of transformers 4 or 5."""
    sizes: dict[str, Any] = file.sizes(*SIZES)
    file.require_heads(sizes)
    require_pairs_of_features(file, sizes["hidden_size"] // sizes["num_attention_heads"])
    hidden_act = file.activation("hidden_activation", default="gelu")
    mlm_act = file.activation("classifier_activation", default="gelu")
    biases = {
        "norm": "norm_bias",
        "attention/qkv": "attention_bias",
        "attention/out": "attention_bias",
        "ffn/up": "mlp_bias",
        "ffn/down": "mlp_bias",
        "mlm/dense": "classifier_bias",
    }
    return Architecture(
        family="modernbert",
        **sizes,
        hidden_act=hidden_act,
        type_vocab_size=0,
        layer_norm_eps=file.fraction("norm_eps", default=1e-5),
        pad_token_id=file.size("pad_token_id", default=50283),
        initializer_range=file.fraction("initializer_range", default=0.02),
        dropout=file.fraction("attention_dropout", default=0.0),
        gated=True,
        pre_norm=True,
        without_bias=tuple(place for place, key in biases.items() if not file.flag(key, default=False)),
        mlm_act="" if mlm_act == hidden_act else mlm_act,
        rope_theta=_theta(file, GLOBAL, "global_rope_theta", 160_000.0),
        local_layers=_local_layers(file, sizes["num_hidden_layers"]),
        local_window=file.size("local_attention", default=128) // 2,
        local_rope_theta=_theta(file, LOCAL, "local_rope_theta", 10_000.0),
    )


def _local_layers(file: ConfigFile, layers: int) -> tuple[int, ...]:
    """Return the layers with local attention, from 1: as layer_types lists them, or all but every n-th."""
    kinds = file.content.get("layer_types")
    if kinds is None:
        every = file.size("global_attn_every_n_layers", default=3, least=1)
        return tuple(n + 1 for n in range(layers) if n % every)
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in (GLOBAL, LOCAL) for kind in kinds):
        raise UserError(
            f"{file.path}: layer_types = {kinds!r:.200} must list {GLOBAL} or {LOCAL} for each of {layers} layers."
        )
    return tuple(n + 1 for n, kind in enumerate(kinds) if kind == LOCAL)


def _theta(file: ConfigFile, kind: str, key: str, default: float) -> float:
    """Return the base of rotary positions, which transformers 5 states in rope_parameters."""
    file.require(rope_scaling=None)
    if key in file.content and file.content[key] is None:  # releases of transformers differ in what null means
        raise UserError(
            f"{file.path}: {key} = null is not supported. Write the number that the model was trained with."
        )
    of_kind = file.part("rope_parameters").part(kind)
    of_kind.require(rope_type="default")
    return of_kind.number("rope_theta", file.number(key, default))


def write(architecture: Architecture) -> dict[str, Any]:
    """Return the keys of a config.json that `read` and transformers 4 and 5 read."""
    layers, local = architecture.num_hidden_layers, architecture.local_layers
    thetas = {GLOBAL: architecture.rope_theta, LOCAL: architecture.local_rope_theta}
    every = next((n for n in range(1, layers) if n + 1 not in local), layers)
    return {
        "attention_bias": architecture.has_bias("attention/qkv"),
        "attention_dropout": architecture.dropout,
        "classifier_activation": architecture.mlm_act or architecture.hidden_act,
        "classifier_bias": architecture.has_bias("mlm/dense"),
        "decoder_bias": True,
        "embedding_dropout": architecture.dropout,
        "global_attn_every_n_layers": every,  # transformers 4
        "global_rope_theta": architecture.rope_theta,
        "hidden_activation": architecture.hidden_act,
        "hidden_size": architecture.hidden_size,
        "initializer_range": architecture.initializer_range,
        "intermediate_size": architecture.intermediate_size,
        "layer_types": [LOCAL if n + 1 in local else GLOBAL for n in range(layers)],
        "local_attention": 2 * architecture.local_window,
        "local_rope_theta": architecture.local_rope_theta,
        "max_position_embeddings": architecture.max_position_embeddings,
        "mlp_bias": architecture.has_bias("ffn/up"),
        "mlp_dropout": architecture.dropout,
        "norm_bias": architecture.has_bias("norm"),
        "norm_eps": architecture.layer_norm_eps,
        "num_attention_heads": architecture.num_attention_heads,
        "num_hidden_layers": layers,
        "pad_token_id": architecture.pad_token_id,
        "rope_parameters": {kind: {"rope_theta": theta, "rope_type": "default"} for kind, theta in thetas.items()},
        "tie_word_embeddings": True,
        "vocab_size": architecture.vocab_size,
    }


MODERNBERT = Family(
    "modernbert",
    ("modernbert",),
    "ModernBertModel",
    positions_after_padding=False,
    names=NAMES,
    read=read,
    write=write,
)
