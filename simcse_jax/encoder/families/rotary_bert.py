"""BERT's layers with rotary positions and a gated FFN: NomicBERT, and GTE's "new" models.

Folders of their first releases, whose code is remote, are read too; transformers 5 has these families itself, and
exported folders are as it writes them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.families import bert
from simcse_jax.encoder.families.family import (
    ConfigFile,
    Family,
    Tensors,
    WeightNames,
    require_pairs_of_features,
)
from simcse_jax.system.errors import UserError

NOMIC_NAMES = WeightNames(
    prefix="nomic_bert.",
    tables={name: bert.NAMES.tables[name] for name in ("word", "token_type")},
    embedding_norm="embeddings.LayerNorm",
    layer="layers.{}.",
    layer_parts={
        "attention/qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention/out": "self_attn.o_proj",
        "attention/norm": "post_attention_layernorm",
        "ffn/up": ("mlp.gate_proj", "mlp.up_proj"),
        "ffn/down": "mlp.down_proj",
        "ffn/norm": "post_mlp_layernorm",
    },
    head="",
    mlm_dense="cls.predictions.transform.dense",
    mlm_norm="cls.predictions.transform.layer_norm",
    mlm_output="cls.predictions",
    mlm_decoder="cls.predictions.decoder",
    task_heads=("cls.", "classifier.", "pooler."),
)
GTE_NAMES = dataclasses.replace(
    NOMIC_NAMES,
    prefix="gte.",
    mlm_dense="lm_head.dense",
    mlm_norm="lm_head.layer_norm",
    mlm_output="lm_head.decoder",
    mlm_decoder="lm_head.decoder",
    task_heads=("lm_head.", "classifier.", "pooler."),
)
# Parts of names as first released, and as they are now.
_NOMIC_RENAMED = {
    "encoder.layers.": "layers.",
    "emb_ln.": "embeddings.LayerNorm.",
    "attn.out_proj.": "self_attn.o_proj.",
    "mlp.fc11.": "mlp.up_proj.",
    "mlp.fc12.": "mlp.gate_proj.",
    "mlp.fc2.": "mlp.down_proj.",
    "norm1.": "post_attention_layernorm.",
    "norm2.": "post_mlp_layernorm.",
}
_GTE_RENAMED = {
    "new.": "",
    "encoder.layer.": "layers.",
    "attention.o_proj.": "self_attn.o_proj.",
    "attn_ln.": "post_attention_layernorm.",
    "mlp_ln.": "post_mlp_layernorm.",
    "lm_head.norm.": "lm_head.layer_norm.",
}
_QKV = ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj.")
# Joined along the outputs in the first releases.
_NOMIC_JOINED = {"attn.Wqkv.": _QKV}
_GTE_JOINED = {"attention.qkv_proj.": _QKV, "mlp.up_gate_proj.": ("mlp.up_proj.", "mlp.gate_proj.")}


def _renamed(tensors: Tensors, renamed: dict[str, str], joined: Mapping[str, tuple[str, ...]]) -> Tensors:
    """Return weights under today's names, split where the first releases join them."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        parts = next(((old, into) for old, into in joined.items() if old in name), None)
        if parts is None or len(tensor) % len(parts[1]):  # the wrong size is told of the name as it is
            found[name] = tensor
            continue
        for new, part in zip(parts[1], np.split(tensor, len(parts[1])), strict=True):
            found[name.replace(parts[0], new)] = part
    return found


def _renamed_nomic(tensors: Tensors) -> Tensors:
    """Return weights under today's names; the first releases' head for masked tokens has no biases."""
    found = _renamed(tensors, _NOMIC_RENAMED, _NOMIC_JOINED)
    head = "cls.predictions."
    words = [tensor for name, tensor in found.items() if name.endswith(f"{NOMIC_NAMES.tables['word']}.weight")]
    kernel = found.get(f"{head}transform.dense.weight")
    if kernel is not None and words:
        found.setdefault(f"{head}transform.dense.bias", np.zeros(len(kernel), np.float32))
        if f"{head}decoder.bias" not in found:
            found.setdefault(f"{head}bias", np.zeros(len(words[0]), np.float32))
    return found


def _read_nomic(file: ConfigFile) -> Architecture:
    """Return the architecture that a config.json states, of transformers 5 or of the first releases."""
    if file.content.get("n_embd") is None:
        found = _read_current(file, "nomic_bert", theta=1000.0, hidden_act="silu")
        file.require(head_dim=found.head_size)
    else:
        found = _read_first_nomic(file)
    everywhere = ("attention/qkv", "attention/out", "ffn/up", "ffn/down")
    return dataclasses.replace(found, without_bias=everywhere)


def _read_first_nomic(file: ConfigFile) -> Architecture:
    names = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
    }
    sizes: dict[str, Any] = file.sizes("vocab_size", **names)
    file.require_heads(sizes, "n_embd", "n_head")
    require_pairs_of_features(file, sizes["hidden_size"] // sizes["num_attention_heads"])
    file.require(
        prenorm=False,
        parallel_block=False,
        use_rms_norm=False,
        rotary_emb_fraction=1.0,
        rotary_emb_interleaved=False,
        rotary_emb_scale_base=None,
        rotary_scaling_factor=None,
        qkv_proj_bias=False,
        mlp_fc1_bias=False,
        mlp_fc2_bias=False,
        causal=False,
        num_experts=0,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
    )
    gates = {"swiglu": "silu", "geglu": "gelu"}
    gate = file.content.get("activation_function")
    if not isinstance(gate, str) or gate not in gates:
        raise UserError(f"{file.path}: activation_function = {gate!r} is unknown. Known: {', '.join(gates)}.")
    return Architecture(
        family="nomic_bert",
        **sizes,
        hidden_act=gates[gate],
        type_vocab_size=file.size("type_vocab_size", default=2),
        dropout=file.fraction("resid_pdrop", default=0.0),
        layer_norm_eps=file.fraction("layer_norm_epsilon", default=1e-12),
        pad_token_id=file.size("pad_token_id", default=0),
        initializer_range=file.fraction("initializer_range", default=0.02),
        gated=True,
        rope_theta=file.number("rotary_emb_base", 1000.0),
    )


def _read_gte(file: ConfigFile) -> Architecture:
    """Return the architecture that a config.json states, of transformers 5 or of the first releases."""
    file.require(position_embedding_type="rope", layer_norm_type="layer_norm", logn_attention_scale=False)
    found = _read_current(file, "gte", theta=160_000.0, hidden_act="gelu")
    return dataclasses.replace(
        found,
        without_bias=("ffn/up",),
        pad_token_id=file.size("pad_token_id", default=1),
        type_vocab_size=file.size("type_vocab_size", default=1),
        mlm_act="" if found.hidden_act == "gelu" else "gelu",
    )


def _read_current(file: ConfigFile, family: str, theta: float, hidden_act: str) -> Architecture:
    """Return the architecture of a config.json with BERT's keys and rotary positions."""
    found = bert.read(file.without("position_embedding_type"), family)
    require_pairs_of_features(file, found.head_size)
    base, scale = _rope(file, theta, found.head_size, is_gte=family == "gte")
    return dataclasses.replace(
        found,
        hidden_act=file.activation("hidden_act", default=hidden_act),
        dropout=file.fraction("hidden_dropout_prob", default=0.0 if family == "nomic_bert" else 0.1),
        gated=True,
        rope_theta=base,
        rope_scale=scale,
    )


def _rope(file: ConfigFile, theta: float, head_size: int, is_gte: bool) -> tuple[float, float]:
    """Return base and scale of rotary positions; theta: the base where the file gives none."""
    current, older = file.part("rope_parameters"), file.part("rope_scaling")
    if current.content and older.content:
        raise UserError(f"{file.path} has both rope_parameters and rope_scaling.\nLeave one of them in a copy.")
    stated = older if older.content else current
    kind = stated.content.get("rope_type", stated.content.get("type", None if older.content else "default"))
    base = stated.number("rope_theta", file.number("rope_theta", theta))
    if kind == "default":
        return base, 1.0
    if kind == "linear":
        return base, 1 / stated.number("factor", 1.0)
    if kind == "ntk" and is_gte:
        # Base and rates are scaled so that the highest rate stays near and the lowest is divided by the factor.
        stated.require(mixed_b=None)
        factor = stated.number("factor", 1.0)
        return base * factor, factor ** (-2 / head_size)
    known = "default, linear and ntk" if is_gte else "default and linear"
    raise UserError(f"{stated.path}: rope_type = {kind!r} is not supported; {known} are.")


def _write(architecture: Architecture) -> dict[str, Any]:
    """Return the keys of a config.json that transformers 5 and we read."""
    keys = bert.write(architecture)
    del keys["position_embedding_type"]
    rope: dict[str, Any] = {"rope_theta": architecture.rope_theta, "rope_type": "default"}
    if architecture.rope_scale != 1:
        rope |= {"rope_type": "linear", "factor": 1 / architecture.rope_scale}
    return keys | {"rope_parameters": rope}


NOMIC_BERT = Family(
    "nomic_bert",
    ("nomic_bert",),
    "NomicBertModel",
    positions_after_padding=False,
    names=NOMIC_NAMES,
    read=_read_nomic,
    write=_write,
    rename=_renamed_nomic,
)
GTE = Family(
    "gte",
    ("gte", "new"),
    "GteModel",
    positions_after_padding=False,
    names=GTE_NAMES,
    read=_read_gte,
    write=_write,
    rename=lambda tensors: _renamed(tensors, _GTE_RENAMED, _GTE_JOINED),
)
