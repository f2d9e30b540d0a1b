"""Exported folders: PyTorch's libraries load them as they are and give our numbers; nothing of a user's is lost."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tokenizers
import torch
import transformers
import yaml
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer

from simcse_jax.data.tokenizer import load_tokenizer, train_wordpiece
from simcse_jax.embedding_model import open_model
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.families.table import read_architecture
from simcse_jax.encoder.pooling import POOLERS
from simcse_jax.model_folder import export as model_folder
from simcse_jax.model_folder.after_pooling import Normalize
from simcse_jax.model_folder.export import export_model
from simcse_jax.model_folder.pretrained import load_params
from simcse_jax.model_folder.run_folder import load_run_params
from simcse_jax.model_folder.st_modules import read_pipeline
from simcse_jax.system.errors import UserError
from simcse_jax.system.vectors import normalize
from tests.model_folder.test_onnx_export import onnx_vectors
from tests.torch_models import FAMILIES, WITHOUT_HEAD, random_model, relative_error, torch_embeddings

LIMIT = 320  # tokens that the models take: room for a text of 300, too little for one of 600
WORDS = "the a man woman dog guitar plays sings runs quickly in park under tree 一个 男人 and music"
CARD = {
    "recipe": {"model.name": "bert-base-uncased", "objective.temperature": 0.07},
    "data": {"files": ["a|b.txt", "c.txt"], "examples": 12},
    "scores": {"dev/spearman": 71.25},
    "step": 125,
}


@dataclasses.dataclass(frozen=True)
class Source:
    """What an export is made of."""

    params: Any
    config: Architecture
    tokenizer: Path

    def export(self, out: Path, pooler: str = "cls_before_pooler", **changes: Any) -> Path:
        params = changes.pop("params", self.params)
        export_model(out, params, self.config, self.tokenizer, pooler, CARD, **changes)
        return out


def some_text(rng: np.random.Generator, words: int) -> str:
    return " ".join(rng.choice(WORDS.split()[:12], words))


def train_tokenizer(family: str, folder: Path) -> None:
    """Write the files of a small tokenizer of that family, as published models have them."""
    corpus = [WORDS, *(some_text(np.random.default_rng(seed), 20) for seed in range(50))]
    if family not in ("roberta", "xlm-roberta", "mpnet"):
        return train_wordpiece(corpus, 200, folder)
    folder.mkdir()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    if family == "roberta":
        bpe = tokenizers.ByteLevelBPETokenizer()
        bpe.train_from_iterator(corpus, vocab_size=400, special_tokens=special, show_progress=False)
        bpe.save_model(str(folder))
        return None
    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram())
    unigram.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=100, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    unigram.train_from_iterator(corpus, trainer)
    unigram.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "XLMRobertaTokenizer"}')
    return None


def make_source(family: str, folder: Path) -> Source:
    train_tokenizer(family, folder / "tokenizer")
    tokenizer = load_tokenizer(folder / "tokenizer")
    tokenizer.save_pretrained(folder / "saved")  # as a training run keeps it
    positions = LIMIT + 2 if family in ("roberta", "xlm-roberta", "mpnet") else LIMIT
    model = random_model(family, vocab_size=len(tokenizer), max_position_embeddings=positions)
    model.save_pretrained(folder / "model")
    config = read_architecture(folder / "model")
    # RoBERTa's published folders have a tokenizer of two files, vocab.json and merges.txt.
    kept = folder / ("tokenizer" if family == "roberta" else "saved")
    if family not in WITHOUT_HEAD:
        return Source(load_params(folder / "model", config, "load"), config, kept)
    rng, width = np.random.default_rng(2), config.hidden_size
    head = {"kernel": 0.2 * rng.normal(size=(width, width)), "bias": rng.normal(size=width)}
    return Source(load_params(folder / "model", config, "none") | {"head": head}, config, kept)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return make_source("bert", tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = np.random.default_rng(1)
    return [
        "A man plays the guitar.",
        "",
        *(some_text(rng, n) for n in (298, 600, 12)),
        "None",
        "Ünïcödé — 한국어 男人",
    ]


@pytest.mark.parametrize(("family", "pooler"), [("bert", "avg_first_last"), *((family, "cls") for family in FAMILIES)])
def test_libraries_agree(tmp_path: Path, texts: list[str], family: str, pooler: str) -> None:
    out = make_source(family, tmp_path).export(tmp_path / "out", pooler, onnx=True)
    opened = open_model(str(out))
    assert opened.count_tokens(texts).max() == LIMIT
    ours = opened.encode(texts)
    model = SentenceTransformer(str(out), device="cpu")
    assert model.max_seq_length == LIMIT
    assert relative_error(model.encode(texts), ours) < 2e-5

    batch = transformers.AutoTokenizer.from_pretrained(out)(texts, padding=True, truncation=True, return_tensors="pt")
    auto = transformers.AutoModel.from_pretrained(out).eval()
    if family not in WITHOUT_HEAD:
        with torch.no_grad():
            theirs = torch_embeddings(auto, batch["input_ids"], batch["attention_mask"], pooler)
        assert relative_error(theirs, ours) < 2e-5
    np.testing.assert_allclose(onnx_vectors(out, texts, LIMIT), normalize(ours), rtol=0, atol=2e-5)


JOINED = ("max+avg", "avg@0.25,0,0.5,0.25+mean_sqrt_len@0.25,0,0.5,0.25")


@pytest.mark.parametrize(
    ("family", "pooler"), [*(("bert", pooler) for pooler in (*POOLERS, *JOINED)), *((f, "cls") for f in FAMILIES[1:])]
)
def test_the_code_on_the_card_runs(
    source: Source, tmp_path: Path, family: str, pooler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [Normalize()] if "+" in pooler else []
    made = source if family == "bert" else make_source(family, tmp_path)
    out = made.export(tmp_path / "my-model", pooler, steps=steps)
    card = (out / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert ("remote code" in card) == (family in ("nomic_bert", "gte"))
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == (1 if family in WITHOUT_HEAD else 2)  # transformers alone runs no Dense module
    place = re.search("trained, as `(.*)`", card)
    assert place if family not in WITHOUT_HEAD else "trained, in the Dense module" in card
    assert not place or f"{place[1]}.weight" in load_file(out / "model.safetensors")
    results: list[Any] = []
    for code in blocks:
        names: dict[str, Any] = {}
        exec(code, names)
        results.append(np.asarray(names["embeddings"]))
    ours = open_model(str(tmp_path / "my-model")).encode(names["sentences"])
    for result in results:
        assert relative_error(result, ours) < 2e-5


def test_card_holds_recipe_data_and_scores(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (source.export(tmp_path / "out") / "README.md").read_text(encoding="utf-8")
    front = card.split("---\n")[1]
    for line in ("library_name: sentence-transformers", "- sentence-similarity", "base_model: bert-base-uncased"):
        assert f"{line}\n" in front
    for line in ("| dev/spearman | 71.25 |", r"| files | a\|b.txt, c.txt |", "| objective.temperature | 0.07 |"):
        assert line in card
    assert "step 125" in card
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for local in ("/nowhere/model", "models/mine", "models/gone", "a--b/c", "runs.git"):  # some look like the Hub's
        card = CARD | {"recipe": {"model.name": local}, "source": local}
        export_model(tmp_path / "out", source.params, source.config, source.tokenizer, "avg", card)
        assert local not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8").split("## Recipe")[0]


def test_card_names_data_sets_of_the_hub_and_no_others(source: Source, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "text").write_text("a text\n")
    files = "hf://datasets/a/b@main/part/x.csv, c/d:config:train, c/d:validation, mine/text, pairs.csv, demo:triplets"
    card = CARD | {"recipe": CARD["recipe"] | {"data.files": files}}
    export_model(tmp_path / "out", source.params, source.config, source.tokenizer, "avg", card)
    front = yaml.safe_load((tmp_path / "out" / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert front["datasets"] == ["a/b", "c/d"]


def test_files_are_readable_as_the_umask_says(source: Source, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        out = source.export(tmp_path / "out", "cls", onnx=True, int8=True)
    finally:
        os.umask(before)
    modes = {path.relative_to(out): path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()}
    assert set(modes.values()) == {0o640}, modes


def test_head_is_always_written_and_read_back(source: Source, tmp_path: Path) -> None:
    out = source.export(tmp_path / "out", "cls_before_pooler")
    assert "pooler.dense.weight" in load_file(out / "model.safetensors")
    config = read_architecture(out)
    assert config == source.config
    again = load_params(out, config, "load")
    jax.tree.map(np.testing.assert_array_equal, again, source.params)
    assert read_pipeline(out).pooler == "cls_before_pooler"
    assert json.loads((out / "simcse_jax.json").read_text())["train_pooler"] == "cls"
    assert json.loads((out / "tokenizer_config.json").read_text())["model_max_length"] == LIMIT


@pytest.mark.parametrize("family", ["bert", "albert", "distilbert"])
def test_transformers_finds_every_weight(tmp_path: Path, family: str) -> None:
    """Without a head too: its place, if it has one, holds zeros, which nothing here takes for a head."""
    source = make_source(family, tmp_path)
    without = {name: source.params[name] for name in source.params if name != "head"}
    exports = [source.export(tmp_path / "b", "avg", params=without, half=True)]
    exports += [source.export(tmp_path / "a")] if family not in WITHOUT_HEAD else []
    for out in exports:
        _, report = transformers.AutoModel.from_pretrained(out, output_loading_info=True)
        assert not any(report.values()), report
    config = read_architecture(tmp_path / "b")
    with pytest.raises(UserError, match="no trained head"):
        load_params(tmp_path / "b", config, "load")
    assert open_model(str(tmp_path / "b")).encode(["a man"]).any()


def test_half_the_file_computes_in_float32(source: Source, tmp_path: Path, texts: list[str]) -> None:
    """PyTorch's libraries and ours agree on it as on the whole one, and it is near that."""
    whole, half = source.export(tmp_path / "whole"), source.export(tmp_path / "half", half=True)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (whole, half)]
    assert sizes[1] < 0.55 * sizes[0]
    model = SentenceTransformer(str(half), device="cpu")
    assert next(model.parameters()).dtype == torch.float32
    theirs, ours = model.encode(texts), open_model(str(half)).encode(texts)
    assert relative_error(ours, theirs) < 1e-5
    assert 0 < relative_error(ours, open_model(str(whole)).encode(texts)) < 1e-2
    params = {**source.params, "embeddings": {**source.params["embeddings"]}}
    params["embeddings"]["word"] = np.asarray(params["embeddings"]["word"]) + 1e5
    with pytest.raises(UserError, match=r"too large for float16.\nLeave --half out"):
        source.export(tmp_path / "large", params=params, half=True)


def test_without_a_head(source: Source, tmp_path: Path) -> None:
    params = {name: source.params[name] for name in ("embeddings", "layers")}
    out = source.export(tmp_path / "out", "avg", params=params)
    assert not load_file(out / "model.safetensors")["pooler.dense.weight"].any()
    with pytest.raises(ValueError, match="needs a head"):
        source.export(tmp_path / "other", "cls", params=params)
    assert not (tmp_path / "other").exists()


def test_settings_that_older_releases_read(source: Source, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.tokenizer)
    tokenizer.add_special_tokens({"extra_special_tokens": ["[extra]"]})
    tokenizer.save_pretrained(tmp_path / "saved")
    settings = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "TokenizersBackend"
    (tmp_path / "saved" / "tokenizer_config.json").write_text(json.dumps(settings))
    out = dataclasses.replace(source, tokenizer=tmp_path / "saved").export(tmp_path / "out", "avg_top2")
    written = json.loads((out / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["additional_special_tokens"] == ["[extra]"]
    assert not {"is_local", "local_files_only", "extra_special_tokens"} & written.keys()
    assert transformers.AutoTokenizer.from_pretrained(out).tokenize("a [extra]")[-1] == "[extra]"
    types = [module["type"] for module in json.loads((out / "modules.json").read_text())]
    kinds = ("Transformer", "WeightedLayerPooling", "Pooling")
    assert types == [f"sentence_transformers.models.{kind}" for kind in kinds]


def test_an_earlier_export_is_replaced_and_foreign_files_stay(source: Source, tmp_path: Path) -> None:
    out = source.export(tmp_path / "out", "cls")
    (out / ".git").mkdir()
    (out / ".git" / "HEAD").write_text("ref")
    (out / "scores.json").write_text("{}")
    for _ in range(2):  # foreign files stay foreign
        source.export(out, "avg")
        assert read_pipeline(out).pooler == "avg"
        assert not (out / "2_Dense").exists()
        assert (out / ".git" / "HEAD").read_text() == "ref"
        assert (out / "scores.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folders_of_others_are_refused(source: Source, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"is not empty and not an earlier export[\s\S]*thesis.tex"):
        source.export(tmp_path / "full")
    with pytest.raises(UserError, match="is a file"):
        source.export(tmp_path / "full" / "thesis.tex")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no tokenizer"):
        dataclasses.replace(source, tokenizer=tmp_path / "empty").export(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert (source.export(tmp_path / "empty") / "config.json").exists()


def test_a_failed_or_killed_export_leaves_the_earlier_one(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = source.export(tmp_path / "out", "avg")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(model_folder, "write_modules", stop)
        with pytest.raises(KeyboardInterrupt):
            source.export(out, "cls")
    assert read_pipeline(out).pooler == "avg"
    # Killed between the two renames, with a half-written sibling: the next export starts from the earlier one.
    (out / "notes.txt").write_text("mine")
    out.rename(tmp_path / ".out.old")
    source.export(out, "cls")
    assert read_pipeline(out).pooler == "cls"
    assert (out / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_command_exports_a_run_without_torch(small_run: Path, tmp_path: Path) -> None:
    code = "import sys, runpy; sys.modules['torch'] = None; sys.argv[0] = 'export'; "
    code += "runpy.run_module('simcse_jax.export', run_name='__main__')"
    flags = f"--workdir={small_run}", f"--out={tmp_path / 'out'}"
    result = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    best, info = load_run_params(small_run)
    again = load_params(tmp_path / "out", read_architecture(tmp_path / "out"), "none")
    jax.tree.map(np.testing.assert_array_equal, again, {name: best[name] for name in again})
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"| spearman | {info['scores']['spearman']:.6g} |" in card
    assert f"step {info['step']}" in card
    assert f"| model.hidden_size | {info['encoder']['hidden_size']} |" in card
    assert "objective.margin" not in card  # at its default


def test_a_folder_that_does_not_say_its_pooler(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not say[\s\S]*cls_before_pooler"):
        read_pipeline(tmp_path)
    (tmp_path / "simcse_jax.json").write_text('{"pooler": "first"}')
    with pytest.raises(UserError, match="'first' is unknown"):
        read_pipeline(tmp_path)
