"""model.onnx in an exported folder: our vectors, whoever runs it; whole or not at all; never beside other weights."""

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tokenizers import Tokenizer

from simcse_jax.embedding_model import open_model
from simcse_jax.model_folder import onnx_export as onnx_export
from simcse_jax.model_folder.export import convert
from simcse_jax.model_folder.onnx_export import FOLDER, MODEL, MODEL_INT8
from simcse_jax.model_folder.st_modules import read_pipeline
from simcse_jax.model_folder.text_settings import PLAIN
from simcse_jax.system.errors import UserError
from tests.small_models import export_small

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
    """Return an exported folder with both ONNX files, which tests only copy."""
    folder = export_small(tmp_path_factory.mktemp("small"), pooler="cls")
    convert(str(folder), folder, onnx=True, int8=True)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "model")
    return tmp_path / "model"


def test_the_file_gives_our_vectors(made: Path) -> None:
    ours = open_model(str(made)).encode(TEXTS, normalize=True)
    np.testing.assert_allclose(onnx_vectors(made, TEXTS, 64), ours, rtol=0, atol=TOLERANCE)


def test_int8_is_near_and_smaller(made: Path) -> None:
    assert (made / MODEL_INT8).stat().st_size < (made / MODEL).stat().st_size
    exact, coarse = (onnx_vectors(made, TEXTS, 64, name) for name in (MODEL, MODEL_INT8))
    assert np.abs(exact - coarse).max() > 1e-4
    assert np.sum(exact * coarse, axis=1).min() > 0.95


def test_the_code_on_the_card_runs_without_us(folder: Path, tmp_path: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
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
    convert(str(folder), folder, "avg")
    assert not {MODEL, MODEL_INT8} & {path.name for path in folder.iterdir()}
    assert "ONNX" not in (folder / "README.md").read_text(encoding="utf-8")


def test_a_file_system_without_links(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(folder / FOLDER)
    (folder / MODEL).unlink()

    def refuse(*_: object) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    onnx_export.write_onnx(folder, "cls", "model", PLAIN)
    assert (folder / FOLDER / MODEL).is_file()
    assert not (folder / MODEL).exists()


@pytest.mark.parametrize("module", ["onnx", "onnxruntime", "a small file"])
def test_without_the_extra_and_too_large(folder: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """What cannot be written leaves the earlier export as it was."""
    if module == "a small file":
        monkeypatch.setattr(onnx_export, "_FILE_LIMIT", 1000)
    else:
        monkeypatch.setitem(sys.modules, module, None)
    before = (folder / MODEL).read_bytes()
    said = "one file holds at most" if module == "a small file" else rf"needs {module}[\s\S]*pip install onnx"
    with pytest.raises(UserError, match=said):
        convert(str(folder), folder, "avg", onnx=True)
    assert (folder / MODEL).read_bytes() == before
    assert read_pipeline(folder).pooler == "cls"


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
    assert read_pipeline(tmp_path / "out").pooler == "cls"
    there, here = open_model(str(source)), open_model(str(tmp_path / "out"))
    assert there.fingerprint == here.fingerprint
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "Sentence embeddings of a model trained elsewhere, written by simcse_jax" in card
    convert(str(tmp_path / "out"), tmp_path / "out", "avg")  # an export, onto itself
    assert read_pipeline(tmp_path / "out").pooler == "avg"


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


def test_the_command(folder: Path, tmp_path: Path) -> None:
    source, out = published(folder, "unsup-simcse-small"), tmp_path / "out"
    code = "import sys, runpy; sys.argv[0] = 'export'; sys.modules['torch'] = None; "
    code += "runpy.run_module('simcse_jax.export', run_name='__main__')"
    flags = f"--model={source}", f"--out={out}", "--onnx", "--int8"
    done = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True)
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
