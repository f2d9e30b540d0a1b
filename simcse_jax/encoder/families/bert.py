"""BERT: also MiniLM and most national BERTs, whose model_type is "bert"."""

from __future__ import annotations

from typing import Any

from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.families.family import SIZES, ConfigFile, Family, WeightNames

NAMES = WeightNames(
    prefix="bert.",
    tables={
        "word": "embeddings.word_embeddings",
        "position": "embeddings.position_embeddings",
        "token_type": "embeddings.token_type_embeddings",
    },
    embedding_norm="embeddings.LayerNorm",
    layer="encoder.layer.{}.",
    layer_parts={
        "attention/qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention/out": "attention.output.dense",
        "attention/norm": "attention.output.LayerNorm",
        "ffn/up": "intermediate.dense",
        "ffn/down": "output.dense",
        "ffn/norm": "output.LayerNorm",
    },
    head="pooler.dense",
    mlm_dense="cls.predictions.transform.dense",
    mlm_norm="cls.predictions.transform.LayerNorm",
    mlm_output="cls.predictions",
    mlm_decoder="cls.predictions.decoder",
    task_heads=("cls.", "classifier.", "qa_outputs.", "pooler."),
)


def read(file: ConfigFile, family: str = "bert", pad_token_id: int = 0) -> Architecture:
    """Return the architecture that a config.json states; pad_token_id: where the file gives none.

    Dropout is 0.1, whatever the file says: a run has that of its recipe. Other defaults are transformers'.
    """
    file.require(position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    sizes: dict[str, Any] = file.sizes(*SIZES)
    file.require_heads(sizes)
    return Architecture(
        family=family,
        **sizes,
        hidden_act=file.activation("hidden_act", default="gelu"),
        type_vocab_size=file.size("type_vocab_size", default=2),
        layer_norm_eps=file.fraction("layer_norm_eps", default=1e-12),
        pad_token_id=file.size("pad_token_id", default=pad_token_id),
        initializer_range=file.fraction("initializer_range", default=0.02),
    )


def write(architecture: Architecture) -> dict[str, Any]:
    """Return the keys of a config.json that `read` and transformers 4 and 5 read.

    A model without token types gets one type, of zeros: transformers always adds type 0.
    """
    return {
        "attention_probs_dropout_prob": architecture.dropout,
        "hidden_act": architecture.hidden_act,
        "hidden_dropout_prob": architecture.dropout,
        "hidden_size": architecture.hidden_size,
        "initializer_range": architecture.initializer_range,
        "intermediate_size": architecture.intermediate_size,
        "layer_norm_eps": architecture.layer_norm_eps,
        "max_position_embeddings": architecture.max_position_embeddings,
        "num_attention_heads": architecture.num_attention_heads,
        "num_hidden_layers": architecture.num_hidden_layers,
        "pad_token_id": architecture.pad_token_id,
        "position_embedding_type": "absolute",
        "type_vocab_size": max(architecture.type_vocab_size, 1),
        "vocab_size": architecture.vocab_size,
    }


BERT = Family("bert", ("bert",), "BertModel", positions_after_padding=False, names=NAMES, read=read, write=write)
