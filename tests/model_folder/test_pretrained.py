"""Hugging Face folders <-> parameters: every variant of file and name gives the same tree, and misfits are named."""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import load_file, save_file

from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.families import bert as bert_family
from simcse_jax.encoder.families.bert import BERT
from simcse_jax.encoder.families.family import SIZES
from simcse_jax.encoder.families.table import FAMILIES, architecture_from_dict, config_json, read_architecture
from simcse_jax.model_folder.pretrained import load_params
from simcse_jax.model_folder.weight_mapping import to_hugging_face
from simcse_jax.system.errors import UserError
from tests import torch_models
from tests.torch_models import random_model

WEIGHTS = "model.safetensors"
Tensors = dict[str, Any]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain_bert")
    random_model("bert").save_pretrained(folder)
    return folder


def same(ours: Any, theirs: Any) -> bool:
    equal = jax.tree.map(np.array_equal, ours, theirs)
    return jax.tree.structure(ours) == jax.tree.structure(theirs) and all(jax.tree.leaves(equal))


def variant(source: Path, target: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """Write `source` with changed tensors into `target`, and return `target`."""
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    save_file(change(load_file(source / WEIGHTS)), target / WEIGHTS)
    return target


def without(*endings: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.endswith(endings)}


def load(folder: Path, head: Any = "load") -> Any:
    return load_params(folder, read_architecture(folder), head)


@pytest.mark.parametrize("kind", ["Model", "ForMaskedLM"])
@pytest.mark.parametrize("family", torch_models.FAMILIES)
def test_round_trip_is_exact(family: str, kind: str, tmp_path: Path) -> None:
    random_model(family, kind).save_pretrained(tmp_path)
    config = read_architecture(tmp_path)
    # Transformers writes NomicBERT and GTE as their first releases did.
    stored = FAMILIES[family].rename(load_file(tmp_path / WEIGHTS))
    is_plain = kind == "Model"
    has_head = is_plain and family not in torch_models.WITHOUT_HEAD
    params = load_params(tmp_path, config, "load" if has_head else "none", mlm_head=not is_plain)
    tensors = to_hugging_face(params, config)
    assert tensors.keys() == stored.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, stored[name], err_msg=name)
        assert tensor.dtype == np.float32
        assert tensor.flags.c_contiguous
    (tmp_path / "config.json").write_text(json.dumps(config_json(config, not is_plain)))
    assert read_architecture(tmp_path) == config
    assert architecture_from_dict(json.loads(json.dumps(config.as_dict()))) == config
    assert "position_offset" not in config.as_dict()  # what run folders have always stored


RENAMED: dict[str, Callable[[str], str]] = {
    "bert prefix": lambda name: f"bert.{name}",
    "gamma and beta": lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    ),
    "head of the original training code": lambda name: (
        name.replace("pooler.", "mlp.") if name.startswith("pooler.") else f"bert.{name}"
    ),
}


@pytest.mark.parametrize("rename", RENAMED.values(), ids=RENAMED)
def test_other_names(bert: Path, tmp_path: Path, rename: Callable[[str], str]) -> None:
    folder = variant(bert, tmp_path, lambda tensors: {rename(name): tensor for name, tensor in tensors.items()})
    assert same(load(folder), load(bert))


def test_known_heads_and_buffers_are_passed_over(bert: Path, tmp_path: Path) -> None:
    heads = (
        "cls.predictions.bias",
        "cls.seq_relationship.weight",
        "lm_head.bias",
        "classifier.weight",
        "qa_outputs.bias",
    )
    extra: Tensors = {name: np.ones(3, np.float32) for name in heads}
    extra["embeddings.position_ids"] = np.arange(40)[None]
    folder = variant(bert, tmp_path, lambda tensors: tensors | extra)
    assert same(load(folder), load(bert))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_half_types_become_float32(bert: Path, tmp_path: Path, dtype: Any) -> None:
    tensors = {name: torch.tensor(tensor) for name, tensor in load_file(bert / WEIGHTS).items()}
    torch_dtype = torch.float16 if dtype is np.float16 else torch.bfloat16
    safetensors.torch.save_file({name: tensor.to(torch_dtype) for name, tensor in tensors.items()}, tmp_path / WEIGHTS)
    (tmp_path / "config.json").write_bytes((bert / "config.json").read_bytes())
    expected = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), load(bert))
    assert same(load(tmp_path), expected)
    assert {x.dtype for x in jax.tree.leaves(load(tmp_path))} == {np.dtype(np.float32)}


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_sharded(bert: Path, tmp_path: Path, kind: str) -> None:
    tensors = load_file(bert / WEIGHTS)
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"{kind.partition('.')[0]}-{number:05d}-of-00002.{kind.partition('.')[2]}"
        chosen = {name: tensors[name] for name in part}
        if kind == WEIGHTS:
            save_file(chosen, tmp_path / shard)
        else:
            torch.save({name: torch.tensor(tensor) for name, tensor in chosen.items()}, tmp_path / shard)
        weight_map |= dict.fromkeys(part, shard)
    (tmp_path / f"{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (tmp_path / "config.json").write_bytes((bert / "config.json").read_bytes())
    assert same(load(tmp_path), load(bert))
    (tmp_path / shard).unlink()
    with pytest.raises(UserError, match=r"shards that are not there: .*00002-of-00002"):
        load(tmp_path)


def test_pytorch_pickles(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They give the same parameters, run no code, and need PyTorch."""
    tensors = {name: torch.tensor(tensor) for name, tensor in load_file(bert / WEIGHTS).items()}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((bert / "config.json").read_bytes())
    assert same(load(tmp_path), load(bert))
    torch.save({"weights": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="does not read"):
        load(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="pip install torch"):
        load(tmp_path)


class Evil:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("the pickle ran code",))


def test_head_misfits(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no head for masked language modelling"):
        load_params(bert, read_architecture(bert), "none", mlm_head=True)
    random_model("bert", "ForMaskedLM").save_pretrained(tmp_path)
    assert "head" not in load(tmp_path, "fresh")
    with pytest.raises(UserError, match=r"no trained head \(pooler.dense.weight\)"):
        load(tmp_path)
    other = {"cls.predictions.decoder.weight": np.zeros((120, 32), np.float32)}
    variant(tmp_path, tmp_path, lambda tensors: tensors | other)
    with pytest.raises(UserError, match=r"cls.predictions.decoder.weight differs from"):
        load_params(tmp_path, read_architecture(tmp_path), "none", mlm_head=True)


def test_misfits_are_all_named(bert: Path, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> Tensors:
        kept = without("layer.1.output.dense.bias", "layer.2.attention.self.key.weight")(tensors)
        kept["embeddings.word_embeddings.weight"] = np.zeros((121, 32), np.float32)
        return kept | {f"encoder.layer.{layer}.output.dense.bias": np.zeros(32, np.float32) for layer in range(3, 15)}

    with pytest.raises(UserError) as error:
        load(variant(bert, tmp_path, change))
    message = str(error.value)
    assert "missing (2): encoder.layer.1.output.dense.bias, encoder.layer.2.attention.self.key.weight\n" in message
    assert "left over (12): encoder.layer.10.output.dense.bias" in message
    assert "and 4 more" in message
    assert "embeddings.word_embeddings.weight is [121, 32], [120, 32] expected" in message


def test_weights_under_two_names(bert: Path, tmp_path: Path) -> None:
    folder = variant(bert, tmp_path, lambda tensors: tensors | {"bert.pooler.dense.bias": np.zeros(32, np.float32)})
    with pytest.raises(UserError, match=r"pooler.dense.bias twice"):
        load(folder)


def test_unreadable_weights(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((bert / "config.json").read_bytes())
    with pytest.raises(UserError, match="holds no weights"):
        load(tmp_path)
    whole = (bert / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="does not read"):
        load(tmp_path)
    (tmp_path / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(UserError, match="git lfs pull"):
        load(tmp_path)
    variant(bert, tmp_path, lambda tensors: tensors | {"pooler.dense.bias": np.zeros(32, np.int8)})
    with pytest.raises(UserError, match=r"pooler.dense.bias is stored as I8[\s\S]*Quantised"):
        load(tmp_path)


CONFIG_ERRORS = {
    "another architecture": ({"model_type": "xlnet"}, r"model_type = 'xlnet'[\s\S]*bert, roberta, camembert"),
    "no model type": ({"model_type": None, "architectures": None}, r'no model_type[\s\S]*"model_type": "bert"'),
    "another class": ({"model_type": None, "architectures": ["T5Model"]}, r"architectures = \['T5Model'\]"),
    "activation": ({"hidden_act": "mish"}, r"hidden_act = 'mish' is unknown.\nKnown: gelu,"),
    "relative positions": ({"position_embedding_type": "relative_key"}, "'relative_key' is not supported; only 'abs"),
    "decoder": ({"is_decoder": True}, "is_decoder = True"),
    "cross attention": ({"add_cross_attention": True}, "add_cross_attention = True"),
    "missing keys": ({"hidden_size": None, "vocab_size": None}, "lacks vocab_size, hidden_size"),
    "text for a number": ({"hidden_size": "32"}, "hidden_size = '32' must be a whole number from 1"),
    "heads": ({"num_attention_heads": 5}, "hidden_size = 32 does not divide over num_attention_heads = 5"),
    "epsilon": ({"layer_norm_eps": "small"}, r"layer_norm_eps = 'small' must be a number in \[0, 1\)"),
    "no room": ({"model_type": "roberta", "pad_token_id": 39}, "leaves no position after the first 40"),
}


@pytest.mark.parametrize(("change", "message"), CONFIG_ERRORS.values(), ids=CONFIG_ERRORS)
def test_config_errors(bert: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    content = json.loads((bert / "config.json").read_text()) | change
    content = {key: value for key, value in content.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_architecture(tmp_path)


def test_run_folders_of_bert_store_what_they_always_did() -> None:
    sizes: dict[str, Any] = dict.fromkeys(SIZES, 4)
    stored = Architecture(family="bert", **sizes).as_dict()
    assert stored.keys() == {
        *("family", *SIZES, "hidden_act", "type_vocab_size", "layer_norm_eps", "pad_token_id", "initializer_range"),
        *("dropout", "cutoff", "cutoff_rate"),
    }


def test_first_releases_of_nomic_bert(tmp_path: Path) -> None:
    """Their head for masked tokens has no biases; what does not split into query, key and value is named as it is."""
    random_model("nomic_bert", "ForMaskedLM").save_pretrained(tmp_path)
    head = "cls.predictions."
    biases = (head + "bias", head + "decoder.bias", head + "transform.dense.bias")
    variant(tmp_path, tmp_path, without(*biases))
    architecture = read_architecture(tmp_path)
    mlm = load_params(tmp_path, architecture, "none", mlm_head=True)["mlm"]
    assert mlm["dense"]["kernel"].any()
    for bias in (mlm["bias"], mlm["dense"]["bias"]):
        assert not bias.any()

    joined = "encoder.layers.0.attn.Wqkv.weight"
    variant(tmp_path, tmp_path, lambda tensors: tensors | {joined: np.ones((97, 32), np.float32)})
    with pytest.raises(UserError, match=r"attn\.Wqkv\.weight"):
        load(tmp_path, "none")


@pytest.mark.parametrize(
    ("pooling", "activation", "has_head"), [("cls", "Tanh", True), ("mean", "Tanh", False), ("cls", "ReLU", False)]
)
def test_a_dense_module_is_the_head_of_a_family_without_one(
    tmp_path: Path, pooling: str, activation: str, has_head: bool
) -> None:
    """Only as the head is trained: tanh, behind the first token."""
    random_model("distilbert").save_pretrained(tmp_path)
    kernel = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    dense = {"in_features": 32, "out_features": 32, "bias": True}
    dense["activation_function"] = f"torch.nn.modules.activation.{activation}"
    for place, config in {"1_Pooling": {"pooling_mode": pooling, "embedding_dimension": 32}, "2_Dense": dense}.items():
        (tmp_path / place).mkdir()
        (tmp_path / place / "config.json").write_text(json.dumps(config))
    save_file({"linear.weight": kernel, "linear.bias": kernel[0]}, tmp_path / "2_Dense" / WEIGHTS)
    modules = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}
    entries = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(modules.items())
    ]
    (tmp_path / "modules.json").write_text(json.dumps(entries))
    if has_head:
        head = load(tmp_path)["head"]
        np.testing.assert_array_equal(head["kernel"], kernel.T)
        np.testing.assert_array_equal(head["bias"], kernel[0])
    else:
        with pytest.raises(UserError, match="no trained head"):
            load(tmp_path)


def test_what_published_debertas_hold_besides_is_passed_over(tmp_path: Path) -> None:
    random_model("deberta-v2").save_pretrained(tmp_path)
    plain = load(tmp_path, "none")
    names = (
        *("lm_predictions.lm_head.dense.weight", "mask_predictions.classifier.bias", "pooler.dense.weight"),
        *("deberta.embeddings.position_embeddings.weight", "deberta.embeddings.word_embeddings._weight"),
    )
    extra: Tensors = {name: np.ones((40, 32), np.float32) for name in names}
    assert same(load(variant(tmp_path, tmp_path, lambda tensors: tensors | extra), "none"), plain)


@pytest.mark.parametrize(
    "content", ['{"model_type": "bert",', "[1, 2]", "[" * 100_000, "\udcff"], ids=["cut", "list", "deep", "bytes"]
)
def test_config_files_that_do_not_read(tmp_path: Path, content: str) -> None:
    with pytest.raises(UserError, match=r"config.json does not exist"):
        read_architecture(tmp_path)
    (tmp_path / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"config\.json"):
        read_architecture(tmp_path)


@pytest.mark.parametrize(
    ("change", "family"),
    [
        ({"model_type": "camembert"}, "roberta"),
        ({"model_type": None, "architectures": ["BertForMaskedLM"]}, "bert"),
        ({"model_type": None, "architectures": ["XLMRobertaModel"]}, "xlm-roberta"),
    ],
)
def test_families(bert: Path, tmp_path: Path, change: dict[str, Any], family: str) -> None:
    content = json.loads((bert / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_architecture(tmp_path).family == family


def test_a_model_without_token_types(bert: Path, tmp_path: Path) -> None:
    """It exports with one type, of zeros, because transformers always adds type 0."""
    variant(bert, tmp_path, without("token_type_embeddings.weight"))
    content = json.loads((bert / "config.json").read_text()) | {"type_vocab_size": 0}
    (tmp_path / "config.json").write_text(json.dumps(content))
    params, config = load(tmp_path), read_architecture(tmp_path)
    assert "token_type" not in params["embeddings"]
    table = to_hugging_face(params, config)["embeddings.token_type_embeddings.weight"]
    np.testing.assert_array_equal(table, np.zeros((1, 32)))
    assert config_json(config)["type_vocab_size"] == 1


def test_a_family_from_outside(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One `Family` and one entry in the table are all that other names of config.json and weights take."""
    names = dataclasses.replace(
        BERT.names,
        prefix="toy.",
        layer="blocks.{}.",
        layer_parts=BERT.names.layer_parts | {"ffn/up": "mlp_in"},
        embedding_norm="first_norm",
    )
    toy = dataclasses.replace(
        BERT,
        name="toy",
        model_types=("toy-encoder",),
        model_class="ToyModel",
        names=names,
        read=functools.partial(bert_family.read, family="toy"),
    )
    monkeypatch.setitem(FAMILIES, "toy", toy)

    def rename(name: str) -> str:
        name = name.replace("encoder.layer.", "blocks.").replace("intermediate.dense", "mlp_in")
        return "toy." + name.replace("embeddings.LayerNorm", "first_norm")

    variant(bert, tmp_path, lambda tensors: {rename(name): tensor for name, tensor in tensors.items()})
    content = json.loads((bert / "config.json").read_text()) | {"model_type": "toy-encoder"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    params, architecture = load(tmp_path), read_architecture(tmp_path)
    assert same(params, load(bert))
    written = config_json(architecture)
    assert (written["architectures"], written["model_type"]) == (["ToyModel"], "toy-encoder")
    assert to_hugging_face(params, architecture).keys() == {rename(n)[4:] for n in load_file(bert / WEIGHTS)}
    assert architecture_from_dict(json.loads(json.dumps(architecture.as_dict()))) == architecture
