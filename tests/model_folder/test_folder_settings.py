"""Settings of a folder that change vectors: applied as sentence-transformers does, kept by an export, or refused."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import transformers
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from torch.utils.data import DataLoader

from simcse_jax import SimCSE
from simcse_jax.data.tokenizer import load_tokenizer
from simcse_jax.embedding_model import open_model
from simcse_jax.model_folder.export import convert
from simcse_jax.model_folder.text_settings import read_text_settings
from simcse_jax.mteb_encoder import MtebEncoder
from simcse_jax.system.errors import UserError
from simcse_jax.system.vectors import normalize
from tests.conftest import HubServer
from tests.model_folder.test_onnx_export import onnx_vectors
from tests.small_models import FROM_FOLDER, prepare_small

TEXTS = ["A RED Dog sleeps", "two Children play in the park", "", "the [SEP] Music", "MUSIC " * 9]
PROMPT = "A Man: "


def edit(folder: Path, name: str, **keys: Any) -> None:
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | keys))


def cased(folder: Path) -> None:
    backend = json.loads((folder / "tokenizer.json").read_text())
    backend["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(backend))
    edit(folder, "tokenizer_config.json", do_lower_case=False)


def lower_case(folder: Path) -> None:
    cased(folder)
    edit(folder, "sentence_bert_config.json", do_lower_case=True)


def prompt(folder: Path) -> None:
    prompts = {"query": PROMPT, "document": "text: "}
    edit(folder, "config_sentence_transformers.json", prompts=prompts, default_prompt_name="query")


def short(folder: Path) -> None:
    edit(folder, "sentence_bert_config.json", max_seq_length=5)


def old_layout(folder: Path) -> None:
    inner = folder / "0_Transformer"
    inner.mkdir()
    for path in [*folder.iterdir()]:
        if path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json", "README.md"):
            path.rename(inner / path.name)
    (inner / "simcse_jax.json").unlink()
    (inner / "sentence_bert_config.json").rename(inner / "sentence_roberta_config.json")
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = inner.name
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)


def short_by_tokenizer(folder: Path) -> None:
    """As sentence-transformers 6 saves it."""
    edit(folder, "sentence_bert_config.json", max_seq_length=None)
    edit(folder, "tokenizer_config.json", model_max_length=5)


def all_of_them(folder: Path) -> None:
    lower_case(folder)
    prompt(folder)
    short_by_tokenizer(folder)
    old_layout(folder)


@pytest.fixture
def folder(small_model: Path, tmp_path: Path) -> Path:
    shutil.copytree(small_model, tmp_path / "model")
    return tmp_path / "model"


def by_sentence_transformers(folder: Path) -> np.ndarray:
    return SentenceTransformer(str(folder), device="cpu").encode(TEXTS, normalize_embeddings=True)


@pytest.mark.parametrize("change", [lower_case, prompt, short, old_layout, all_of_them])
def test_vectors_are_those_of_sentence_transformers(folder: Path, tmp_path: Path, change: Callable) -> None:
    before = SimCSE(folder).encode(TEXTS)
    cased(folder)
    without = SimCSE(folder).encode(TEXTS)
    assert np.abs(without - before).max() > 0.01
    change(folder)
    theirs, model = by_sentence_transformers(folder), SimCSE(folder)
    assert (np.sum(model.encode(TEXTS) * theirs, axis=1) > 0.99999).all()
    if change is not old_layout:
        assert np.abs(theirs - without).max() > 0.01

    # All of an export's readers: ours, sentence-transformers, and tokenizer.json with ONNX alone.
    out = tmp_path / "out"
    convert(str(folder), out, onnx=True)
    longest = 5 if change in (short, all_of_them) else 64
    given = [PROMPT + text if change in (prompt, all_of_them) else text for text in TEXTS]
    for vectors in (SimCSE(out).encode(TEXTS), by_sentence_transformers(out), onnx_vectors(out, given, longest)):
        np.testing.assert_allclose(vectors, theirs, rtol=0, atol=2e-5)
    ids = transformers.AutoTokenizer.from_pretrained(out)(given, truncation=True)["input_ids"]
    assert [len(row) for row in ids] == list(open_model(str(out)).count_tokens(TEXTS))
    assert max(map(len, ids)) <= longest
    card = (out / "README.md").read_text(encoding="utf-8")
    assert (f'"{PROMPT}A man plays' in card) == (given != TEXTS)
    assert f"max_length={longest}, return" in card


def test_an_old_layout_on_the_hub(folder: Path, hub_server: HubServer) -> None:
    all_of_them(folder)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        hub_server.add("owner/net", str(path.relative_to(folder)), path.read_bytes())
    np.testing.assert_array_equal(SimCSE("owner/net").encode(TEXTS), SimCSE(folder).encode(TEXTS))


def test_a_run_keeps_the_lower_case_of_its_model(folder: Path, tmp_path: Path) -> None:
    lower_case(folder)
    prepare_small(tmp_path / "run", tmp_path / "cache", **FROM_FOLDER | {"model__name": str(folder)})
    kept = load_tokenizer(tmp_path / "run" / "tokenizer")
    assert kept(TEXTS)["input_ids"] == load_tokenizer(folder)(TEXTS)["input_ids"]


def test_mteb_chooses_a_prompt_for_each_task(folder: Path) -> None:
    """As its own loader does, which leaves the choice to sentence-transformers where no prompt is for the task."""
    prompts = {"query": PROMPT, "STS": "dog ", "SciFact-document": "music ", "SciFact": "red ", "other": "two "}
    edit(folder, "config_sentence_transformers.json", prompts=prompts, default_prompt_name="other")
    wrapper = pytest.importorskip("mteb.models.sentence_transformer_wrapper")
    from mteb.types import PromptType

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of mteb, at its own settings
        theirs = wrapper.SentenceTransformerEncoderWrapper(SentenceTransformer(str(folder), device="cpu"))
    ours = MtebEncoder(str(folder))
    texts: Any = Dataset.from_dict({"text": TEXTS})
    batches: Any = DataLoader(texts, batch_size=2)
    seen = []
    for name, kind in (("Any", "STS"), ("SciFact", "Retrieval"), ("Any", "Retrieval")):
        for prompt_type in (None, PromptType.query, PromptType.document):
            task: Any = SimpleNamespace(name=name, type=kind)
            given: Any = {"task_metadata": task, "prompt_type": prompt_type, "hf_split": "", "hf_subset": ""}
            expected = normalize(np.asarray(theirs.encode(batches, **given)))
            found = ours.encode(batches, **given)
            np.testing.assert_allclose(normalize(found), expected, rtol=0, atol=2e-5, err_msg=f"{name} {prompt_type}")
            seen.append(found)
    assert len(np.unique(np.round(np.stack(seen)[:, 0, 0], 4))) >= 6


LENGTHS: dict[str, tuple[dict[str, Any], dict[str, Any], int | None]] = {
    "the module before the tokenizer": ({"max_seq_length": 9}, {"model_max_length": 7}, 9),
    "the tokenizer": ({}, {"model_max_length": 7}, 7),
    "an old tokenizer": ({"max_seq_length": None}, {"max_len": 7}, 7),
    "a tokenizer without a limit": ({}, {"model_max_length": int(1e30)}, 64),
    "more than the model takes": ({"max_seq_length": 512}, {}, 64),
    "an option of the tokenizer": ({"max_seq_length": 9, "tokenizer_args": {"model_max_length": 8}}, {}, 8),
    "nothing": ({"model_args": {}}, {}, None),
}


@pytest.mark.parametrize(("module", "tokenizer", "length"), LENGTHS.values(), ids=LENGTHS)
def test_where_texts_are_cut(tmp_path: Path, module: dict[str, Any], tokenizer: dict[str, Any], length: int) -> None:
    edit(tmp_path, "sentence_distilbert_config.json", **module)
    edit(tmp_path, "tokenizer_config.json", **tokenizer)
    assert read_text_settings(tmp_path, 64).max_seq_length == length


REFUSED: dict[str, tuple[str, Any, str]] = {
    "no such prompt": ("config_sentence_transformers.json", {"default_prompt_name": "passage"}, "default_prompt_name"),
    "a prompt whose name is a number": (
        "config_sentence_transformers.json",
        {"prompts": {"1": "a "}, "default_prompt_name": 1},
        "default_prompt_name = 1",
    ),
    "a number for whether a prompt is pooled": ("1_Pooling/config.json", {"include_prompt": 0}, "include_prompt = 0"),
    "a prompt that is a list": ("config_sentence_transformers.json", {"prompts": {"query": ["a"]}}, "prompts"),
    "prompts that are a list": ("config_sentence_transformers.json", {"prompts": ["a"]}, "prompts"),
    "a length that is a text": ("sentence_bert_config.json", {"max_seq_length": "5"}, "max_seq_length"),
    "a change of the config": ("sentence_bert_config.json", {"config_args": {"hidden_act": "relu"}}, "config_args"),
    "another tokenizer": ("sentence_bert_config.json", {"tokenizer_args": {"do_lower_case": True}}, "tokenizer_args"),
    "a tokenizer elsewhere": (
        "sentence_bert_config.json",
        {"tokenizer_name_or_path": "bert-base-uncased"},
        "name_or_path",
    ),
    "lengths of queries": ("sentence_bert_config.json", {"query_length": 32}, "query_length"),
    "lengths of documents": ("config_sentence_transformers.json", {"document_length": 180}, "document_length"),
    "a text for true": ("sentence_bert_config.json", {"do_lower_case": "yes"}, "do_lower_case"),
    "an unknown key": ("config_sentence_transformers.json", {"scale": 2}, r"scale = 2 is unknown"),
    "an unknown key of the encoder": ("sentence_bert_config.json", {"first_layer": 0}, r"first_layer = 0 is unknown"),
    "another kind of model": ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "model_type"),
    "the scores of tokens": ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task"),
    "an output of its own": (
        "sentence_bert_config.json",
        {"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}},
        "modality_config",
    ),
    "an adapter": ("adapter_config.json", {"peft_type": "LORA"}, "adapter_config.json"),
}


def test_what_changes_no_vector_is_noted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = open_model(str(folder)).encode(TEXTS)
    edit(folder, "config_sentence_transformers.json", similarity_fn_name="dot", scale=None)
    edit(folder, "1_Pooling/config.json", top=False)
    np.testing.assert_array_equal(open_model(str(folder)).encode(TEXTS), before)
    lines = capsys.readouterr().err.splitlines()
    for said in ("similarity_fn_name = 'dot'", "scale = None", "1_Pooling/config.json: top = False"):
        assert sum(said in line for line in lines) == 1, (said, lines)


@pytest.mark.parametrize(("name", "keys", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(folder: Path, tmp_path: Path, name: str, keys: dict[str, Any], said: str) -> None:
    prompt(folder)
    edit(folder, name, **keys)
    for way_in in (lambda: open_model(str(folder)), lambda: convert(str(folder), tmp_path / "out")):
        with pytest.raises(UserError, match=said):
            way_in()
