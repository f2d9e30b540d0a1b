"""MPNet: BERT's layers, positions after the padding id, and a bias by distance that all layers add to their scores."""

from __future__ import annotations

import dataclasses
from typing import Any

from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.families import bert, roberta
from simcse_jax.encoder.families.family import ConfigFile, Family

BUCKETS = 32  # transformers always computes with this number

NAMES = dataclasses.replace(
    roberta.NAMES,
    prefix="mpnet.",
    tables={name: bert.NAMES.tables[name] for name in ("word", "position")},
    layer_parts=bert.NAMES.layer_parts
    | {
        "attention/qkv": ("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        "attention/out": "attention.attn.o",
        "attention/norm": "attention.LayerNorm",
    },
    relative="encoder.relative_attention_bias",
)


def read(file: ConfigFile) -> Architecture:
    """Return the architecture that a config.json states."""
    found = bert.read(file, "mpnet", pad_token_id=1)
    file.require(relative_attention_num_buckets=BUCKETS)
    mlm_act = "" if found.hidden_act == "gelu" else "gelu"
    return dataclasses.replace(found, type_vocab_size=0, relative_buckets=BUCKETS, mlm_act=mlm_act)


def write(architecture: Architecture) -> dict[str, Any]:
    """Return the keys of a config.json that `read` and transformers read."""
    keys = bert.write(architecture)
    del keys["type_vocab_size"], keys["position_embedding_type"]
    return keys | {"relative_attention_num_buckets": architecture.relative_buckets}


MPNET = Family("mpnet", ("mpnet",), "MPNetModel", positions_after_padding=True, names=NAMES, read=read, write=write)
