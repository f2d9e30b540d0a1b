"""DistilBERT: BERT's layers without token types, under names of its own."""

from __future__ import annotations

from typing import Any

from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.families.family import ConfigFile, Family, WeightNames

NAMES = WeightNames(
    prefix="distilbert.",
    tables={"word": "embeddings.word_embeddings", "position": "embeddings.position_embeddings"},
    embedding_norm="embeddings.LayerNorm",
    layer="transformer.layer.{}.",
    layer_parts={
        "attention/qkv": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        "attention/out": "attention.out_lin",
        "attention/norm": "sa_layer_norm",
        "ffn/up": "ffn.lin1",
        "ffn/down": "ffn.lin2",
        "ffn/norm": "output_layer_norm",
    },
    head="",
    mlm_dense="vocab_transform",
    mlm_norm="vocab_layer_norm",
    mlm_output="vocab_projector",
    mlm_decoder="vocab_projector",
    task_heads=("vocab_", "pre_classifier.", "classifier.", "qa_outputs."),
)


def read(file: ConfigFile) -> Architecture:
    """Return the architecture that a config.json states."""
    sizes: dict[str, Any] = file.sizes(
        "vocab_size",
        "max_position_embeddings",
        hidden_size="dim",
        num_hidden_layers="n_layers",
        num_attention_heads="n_heads",
        intermediate_size="hidden_dim",
    )
    file.require_heads(sizes, "dim", "n_heads")
    return Architecture(
        family="distilbert",
        **sizes,
        hidden_act=file.activation("activation", default="gelu"),
        type_vocab_size=0,
        dropout=file.fraction("dropout", default=0.1),
        pad_token_id=file.size("pad_token_id", default=0),
        initializer_range=file.fraction("initializer_range", default=0.02),
    )


def write(architecture: Architecture) -> dict[str, Any]:
    """Return the keys of a config.json that `read` and transformers read."""
    return {
        "activation": architecture.hidden_act,
        "attention_dropout": architecture.dropout,
        "dim": architecture.hidden_size,
        "dropout": architecture.dropout,
        "hidden_dim": architecture.intermediate_size,
        "initializer_range": architecture.initializer_range,
        "max_position_embeddings": architecture.max_position_embeddings,
        "n_heads": architecture.num_attention_heads,
        "n_layers": architecture.num_hidden_layers,
        "pad_token_id": architecture.pad_token_id,
        "sinusoidal_pos_embds": False,  # what the table was made with; it is read from the weights
        "vocab_size": architecture.vocab_size,
    }


DISTILBERT = Family(
    "distilbert",
    ("distilbert",),
    "DistilBertModel",
    positions_after_padding=False,
    names=NAMES,
    read=read,
    write=write,
)
