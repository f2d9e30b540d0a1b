"""ALBERT: all layers share one set of parameters, and tables are narrow, with a dense layer to the layers' width."""

from __future__ import annotations

import dataclasses
from typing import Any

from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.families import bert
from simcse_jax.encoder.families.family import ConfigFile, Family

NAMES = dataclasses.replace(
    bert.NAMES,
    prefix="albert.",
    projection="encoder.embedding_hidden_mapping_in",
    layer="encoder.albert_layer_groups.0.albert_layers.0.",
    layer_parts={
        "attention/qkv": ("attention.query", "attention.key", "attention.value"),
        "attention/out": "attention.dense",
        "attention/norm": "attention.LayerNorm",
        "ffn/up": "ffn",
        "ffn/down": "ffn_output",
        "ffn/norm": "full_layer_layer_norm",
    },
    head="pooler",
    mlm_dense="predictions.dense",
    mlm_norm="predictions.LayerNorm",
    mlm_output="predictions",
    mlm_decoder="predictions.decoder",
    task_heads=("predictions.", "sop_classifier.", "classifier.", "qa_outputs.", "pooler."),
)


def read(file: ConfigFile) -> Architecture:
    """Return the architecture that a config.json states."""
    file.require(num_hidden_groups=1, inner_group_num=1)
    found = bert.read(file, "albert")
    return dataclasses.replace(
        found,
        hidden_act=file.activation("hidden_act", default="gelu_new"),
        dropout=file.fraction("hidden_dropout_prob", default=0.0),
        embedding_size=file.size("embedding_size", default=128, least=1),
        shared_layers=True,
    )


def write(architecture: Architecture) -> dict[str, Any]:
    """Return the keys of a config.json that `read` and transformers read."""
    own = {"embedding_size": architecture.embedding_size, "num_hidden_groups": 1, "inner_group_num": 1}
    return bert.write(architecture) | own


ALBERT = Family(
    "albert", ("albert",), "AlbertModel", positions_after_padding=False, names=NAMES, read=read, write=write
)
