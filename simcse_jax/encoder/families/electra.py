"""ELECTRA: BERT's layers; the tables may be narrower than the layers, with a dense layer between.

The discriminator is the encoder that people use. Only generators have a head for masked language modelling.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.families import bert
from simcse_jax.encoder.families.family import ConfigFile, Family

NAMES = dataclasses.replace(
    bert.NAMES,
    prefix="electra.",
    projection="embeddings_project",
    head="",
    mlm_dense="generator_predictions.dense",
    mlm_norm="generator_predictions.LayerNorm",
    mlm_output="generator_lm_head",
    mlm_decoder="generator_lm_head",
    task_heads=(
        "generator_",
        "discriminator_predictions.",
        "classifier.",
        "qa_outputs.",
        "sequence_summary.",
    ),
)


def read(file: ConfigFile) -> Architecture:
    """Return the architecture that a config.json states."""
    found = bert.read(file, "electra")
    width = file.size("embedding_size", default=128, least=1)
    return dataclasses.replace(
        found,
        embedding_size=0 if width == found.hidden_size else width,
        mlm_act="" if found.hidden_act == "gelu" else "gelu",
    )


def write(architecture: Architecture) -> dict[str, Any]:
    """Return the keys of a config.json that `read` and transformers read."""
    return bert.write(architecture) | {"embedding_size": architecture.table_size}


ELECTRA = Family(
    "electra", ("electra",), "ElectraModel", positions_after_padding=False, names=NAMES, read=read, write=write
)
