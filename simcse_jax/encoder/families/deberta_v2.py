"""DeBERTa v2 and v3: BERT's layers with disentangled attention in place of positions; also mDeBERTa."""

from __future__ import annotations

import dataclasses
from typing import Any

from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.families import bert
from simcse_jax.encoder.families.family import ConfigFile, Family, Tensors
from simcse_jax.system.errors import UserError

NAMES = dataclasses.replace(
    bert.NAMES,
    prefix="deberta.",
    tables={"word": bert.NAMES.tables["word"]},
    layer_parts=bert.NAMES.layer_parts
    | {"attention/qkv": ("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj")},
    head="",
    task_heads=("cls.", "lm_predictions.", "mask_predictions.", "classifier.", "qa_outputs.", "pooler."),
    relative="encoder.rel_embeddings",
    relative_norm="encoder.LayerNorm",
)
# Keys of which one value is supported, and what transformers takes for a missing one.
_STATED: dict[str, tuple[Any, Any]] = {
    "relative_attention": (True, False),
    "share_att_key": (True, False),
    "norm_rel_ebd": ("layer_norm", "none"),
    "position_biased_input": (False, True),
    "type_vocab_size": (0, 0),
    "conv_kernel_size": (0, 0),
}
_PAIRS = ("p2c", "c2p")  # which pairs of position and content are scored
# What training leaves in published files; transformers passes over these weights too.
_UNUSED = ("embeddings.position_embeddings.weight", "embeddings.word_embeddings._weight")


def read(file: ConfigFile) -> Architecture:
    """Return the architecture that a config.json states."""
    stated = file.with_defaults(**{key: default for key, (_, default) in _STATED.items()})
    stated.require(**{key: supported for key, (supported, _) in _STATED.items()})
    found = bert.read(file, "deberta-v2")
    file.require(embedding_size=found.hidden_size, attention_head_size=found.head_size)
    _require_pairs(file)
    if file.content.get("max_relative_positions") != -1:
        file.require(max_relative_positions=found.max_position_embeddings)
    if file.content.get("position_buckets") is None:
        raise UserError(
            f"{file.path} has no position_buckets: distances without buckets are not supported.\n"
            "Use a model whose config.json has it, as those of DeBERTa-v3 do (256)."
        )
    return dataclasses.replace(
        found,
        type_vocab_size=0,
        dropout=file.fraction("hidden_dropout_prob", default=0.1),
        layer_norm_eps=file.fraction("layer_norm_eps", default=1e-7),
        disentangled_buckets=file.size("position_buckets", default=256, least=2),
    )


def _require_pairs(file: ConfigFile) -> None:
    """Refuse another pos_att_type than the one that is supported, a list or a text."""
    stated = file.content.get("pos_att_type")
    pairs = stated.lower().split("|") if isinstance(stated, str) else stated
    if not isinstance(pairs, list) or sorted(str(pair).strip() for pair in pairs) != sorted(_PAIRS):
        raise UserError(
            f'{file.path}: pos_att_type = {stated!r:.100} is not supported; only "{"|".join(_PAIRS)}" is.\n'
            "Use a model whose config.json has it so."
        )


def write(architecture: Architecture) -> dict[str, Any]:
    """Return the keys of a config.json that `read` and transformers read."""
    keys = bert.write(architecture)
    del keys["position_embedding_type"]
    return (
        keys
        | {key: supported for key, (supported, _) in _STATED.items()}
        | {
            "legacy": True,  # of the head for masked language modelling
            "max_relative_positions": -1,  # max_position_embeddings
            "pos_att_type": list(_PAIRS),
            "position_buckets": architecture.disentangled_buckets,
        }
    )


def _used(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(_UNUSED)}


DEBERTA_V2 = Family(
    "deberta-v2",
    ("deberta-v2",),
    "DebertaV2Model",
    positions_after_padding=False,
    names=NAMES,
    read=read,
    write=write,
    rename=_used,
)
