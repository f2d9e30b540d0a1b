"""What config.json says in each family: published files, both of transformers' formats, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.families.table import config_json, read_architecture
from simcse_jax.system.errors import UserError

SIZES: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
NOMIC: dict[str, Any] = {
    "model_type": "nomic_bert",
    "activation_function": "swiglu",
    "vocab_size": 120,
    "n_embd": 32,
    "n_layer": 4,
    "n_head": 4,
    "n_inner": 48,
    "n_positions": 40,
}
DISTIL: dict[str, Any] = {
    "model_type": "distilbert",
    "vocab_size": 120,
    "max_position_embeddings": 40,
    "dim": 32,
    "n_layers": 4,
    "n_heads": 4,
    "hidden_dim": 48,
}
# As transformers writes deberta-v3-base's.
DEBERTA: dict[str, Any] = SIZES | {
    "model_type": "deberta-v2",
    "relative_attention": True,
    "position_buckets": 12,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "max_relative_positions": -1,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
}


def read(folder: Path, content: dict[str, Any]) -> Architecture:
    (folder / "config.json").write_text(json.dumps(content))
    return read_architecture(folder)


def test_modernbert_of_transformers_4_and_5(tmp_path: Path) -> None:
    """As ModernBERT-base's config.json has it, and as transformers 5 writes it."""
    first = {"global_attn_every_n_layers": 3, "local_attention": 128, "local_rope_theta": 10000.0}
    first |= {"global_rope_theta": 160000.0, "norm_eps": 1e-05, "norm_bias": False, "decoder_bias": True}
    found = read(tmp_path, SIZES | first | {"model_type": "modernbert"})
    assert (found.local_layers, found.local_window) == ((2, 3), 64)
    assert (found.rope_theta, found.local_rope_theta) == (160000.0, 10000.0)
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    ropes = {"full_attention": 160000.0, "sliding_attention": 10000.0}
    later = {
        "layer_types": kinds,
        "local_attention": 128,
        "rope_parameters": {kind: {"rope_theta": theta, "rope_type": "default"} for kind, theta in ropes.items()},
    }
    assert read(tmp_path, SIZES | later | {"model_type": "modernbert"}) == found
    written = config_json(found)
    assert (written["layer_types"], written["global_attn_every_n_layers"]) == (kinds, 3)
    assert written["rope_parameters"] == later["rope_parameters"]


def test_ntk_scaling_of_gte(tmp_path: Path) -> None:
    """The base is multiplied by the factor, the highest rate stays near 1, and the lowest is divided by it."""
    plain = SIZES | {"model_type": "new", "rope_theta": 20_000, "position_embedding_type": "rope"}
    found = read(tmp_path, plain | {"rope_scaling": {"type": "ntk", "factor": 8.0}})
    assert found.rope_theta == 160_000
    assert found.rope_scale == pytest.approx(8 ** (-2 / 8))
    lowest = found.rope_scale * found.rope_theta ** (-6 / 8)
    assert lowest == pytest.approx(20_000 ** (-6 / 8) / 8)
    assert read(tmp_path, plain).rope_theta == 20_000


@pytest.mark.parametrize("model_type", ["gte", "new", "nomic_bert"])
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ["rope_type", "type"])
def test_linear_scaling_is_read_under_every_key(tmp_path: Path, model_type: str, key: str, kind: str) -> None:
    found = read(
        tmp_path, SIZES | {"model_type": model_type, "rope_theta": 500.0, key: {kind: "linear", "factor": 2.0}}
    )
    assert (found.rope_theta, found.rope_scale) == (500.0, 0.5)
    written = config_json(found)["rope_parameters"]
    assert written == {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}


def test_dropout_of_the_folder_is_kept(tmp_path: Path) -> None:
    """A run has that of its recipe; a folder that is only converted keeps its own."""
    for of in (SIZES | {"model_type": "albert"}, DEBERTA):
        assert config_json(read(tmp_path, of | {"hidden_dropout_prob": 0.0}))["hidden_dropout_prob"] == 0.0
    assert config_json(read(tmp_path, SIZES | {"model_type": "modernbert"}))["attention_dropout"] == 0.0


def test_ways_to_say_the_same_of_a_deberta(tmp_path: Path) -> None:
    found = read(tmp_path, DEBERTA)
    assert (found.disentangled_buckets, found.layer_norm_eps, list(found.tables)) == (12, 1e-7, ["word"])
    for same in ({"pos_att_type": "C2P | p2c"}, {"max_relative_positions": 40}, {"legacy": False}):
        assert read(tmp_path, DEBERTA | same) == found
    for default in ("max_relative_positions", "type_vocab_size", "layer_norm_eps"):
        assert read(tmp_path, {key: value for key, value in DEBERTA.items() if key != default}) == found


# Where a key is missing (None), transformers takes a value that is not supported.
REFUSED_DEBERTAS: dict[str, tuple[dict[str, Any], str]] = {
    "no distances": ({"relative_attention": None}, "relative_attention = False is not supported"),
    "projections of distances": ({"share_att_key": None}, "share_att_key = False"),
    "no norm of distances": ({"norm_rel_ebd": None}, "norm_rel_ebd = 'none'"),
    "positions too": ({"position_biased_input": None}, "position_biased_input = True"),
    "token types": ({"type_vocab_size": 2}, "type_vocab_size = 2"),
    "a convolution": ({"conv_kernel_size": 3}, "conv_kernel_size = 3"),
    "narrow tables": ({"embedding_size": 16}, "embedding_size = 16"),
    "wide heads": ({"attention_head_size": 16}, "attention_head_size = 16"),
    "one pair": ({"pos_att_type": "c2p"}, "pos_att_type = 'c2p'"),
    "no pairs": ({"pos_att_type": None}, "pos_att_type = None"),
    "another range": ({"max_relative_positions": 512}, "max_relative_positions = 512"),
    "no buckets": ({"position_buckets": None}, "has no position_buckets"),
    "distances without buckets": ({"position_buckets": -1}, "position_buckets = -1 must be a whole number from 2"),
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "several groups of layers": (SIZES | {"model_type": "albert", "num_hidden_groups": 2}, "num_hidden_groups = 2"),
    "inner groups": (SIZES | {"model_type": "albert", "inner_group_num": 2}, "inner_group_num = 2"),
    "buckets": (SIZES | {"model_type": "mpnet", "relative_attention_num_buckets": 64}, "num_buckets = 64"),
    "sizes of DistilBERT": (DISTIL | {"dim": None, "n_heads": None}, "lacks dim, n_heads"),
    "heads of DistilBERT": (DISTIL | {"n_heads": 5}, "dim = 32 does not divide over n_heads = 5"),
    "layer types": (SIZES | {"model_type": "modernbert", "layer_types": ["full_attention"]}, "layer_types"),
    "scaled positions": (
        SIZES | {"model_type": "modernbert", "rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
        r"rope_parameters: full_attention: rope_type = 'yarn'",
    ),
    "null base": (SIZES | {"model_type": "modernbert", "local_rope_theta": None}, "local_rope_theta = null"),
    "layer types of lists": (SIZES | {"model_type": "modernbert", "layer_types": [["full_attention"]] * 4}, "layer_t"),
    "odd heads": (SIZES | {"model_type": "modernbert", "hidden_size": 36}, "each head has 9 features"),
    "odd heads of NomicBERT": (NOMIC | {"n_embd": 36}, "each head has 9 features"),
    "gates in a list": (NOMIC | {"activation_function": ["swiglu"]}, "activation_function"),
    "scores that are not scaled": (NOMIC | {"scale_attn_weights": False}, "scale_attn_weights = False"),
    "longer positions of GTE": (SIZES | {"model_type": "gte", "logn_attention_scale": True}, "logn_attention_scale"),
    "scaling without a kind": (SIZES | {"model_type": "new", "rope_scaling": {"factor": 2.0}}, "rope_type = None"),
    "scaling of NomicBERT": (
        SIZES | {"model_type": "nomic_bert", "rope_scaling": {"type": "ntk", "factor": 2.0}},
        "rope_type = 'ntk' is not supported; default and linear are",
    ),
    "two scalings": (
        SIZES | {"model_type": "gte", "rope_scaling": {"rope_type": "linear"}, "rope_parameters": {"rope_theta": 9.0}},
        "both rope_parameters and rope_scaling",
    ),
    "flag": (SIZES | {"model_type": "modernbert", "norm_bias": "no"}, "norm_bias = 'no' must be true or false"),
    "list for an object": (SIZES | {"model_type": "gte", "rope_parameters": [1]}, "rope_parameters = .* an object"),
    "base": (SIZES | {"model_type": "gte", "rope_parameters": {"rope_theta": -1}}, "rope_theta = -1"),
    "long positions of NomicBERT": (NOMIC | {"rotary_scaling_factor": 2}, "rotary_scaling_factor = 2"),
    "experts": (NOMIC | {"num_experts": 8}, "num_experts = 8"),
    "pre-norm of NomicBERT": (NOMIC | {"prenorm": True}, "prenorm = True"),
    "gate": (NOMIC | {"activation_function": "gelu"}, "activation_function = 'gelu' is unknown. Known: swiglu, geglu"),
    "linear scaling of GTE": (
        SIZES | {"model_type": "new", "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "rope_scaling: rope_type = 'dynamic'",
    ),
    "remote code": (
        SIZES | {"model_type": "jina", "auto_map": {"AutoModel": "jina-ai/code--modeling.JinaModel"}},
        "model_type = 'jina' is another architecture",
    ),
    **{f"DeBERTa: {name}": (DEBERTA | change, message) for name, (change, message) in REFUSED_DEBERTAS.items()},
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_give_other_vectors_is_refused_by_its_key(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, content)
