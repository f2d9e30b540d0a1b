"""Model folders made to do harm: none of their code runs, nothing is asked on stdin, and a UserError says why."""

import builtins
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simcse_jax import SimCSE
from simcse_jax.data.tokenizer import load_tokenizer
from simcse_jax.embedding_model import open_model
from simcse_jax.model_folder.export import convert
from simcse_jax.model_folder.run_folder import export_run
from simcse_jax.mteb_encoder import MtebEncoder
from simcse_jax.system.errors import UserError
from tests.small_models import FROM_FOLDER, prepare_small

CODE = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nclass Evil: pass\n"


def edit(path: Path, remove: tuple[str, ...] = (), **keys: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (content | keys).items() if key not in remove}))


def hostile(tokenizer: Path) -> None:
    """Let the tokenizer of a folder be of a class in a file of its own, which transformers would ask about."""
    classes = dict.fromkeys(("AutoConfig", "AutoModel"), "evil.Evil") | {"AutoTokenizer": ["evil.Evil"] * 2}
    edit(tokenizer / "tokenizer_config.json", remove=("tokenizer_class",), auto_map=classes)
    if (tokenizer / "config.json").exists():
        edit(tokenizer / "config.json", remove=("model_type",), auto_map=classes)
    (tokenizer / "evil.py").write_text(CODE)


@pytest.fixture
def folder(small_model: Path, tmp_path: Path) -> Path:
    shutil.copytree(small_model, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Answer yes to every question, and return the questions."""
    questions: list[str] = []
    monkeypatch.setattr(builtins, "input", lambda text="": questions.append(text) or "yes")
    return questions


def train_from(folder: Path, **keys: str) -> None:
    prepare_small(folder.parent / "run", folder.parent / "cache", **FROM_FOLDER | {"model__name": str(folder)} | keys)


# Every way in: evaluate, embed, search and the server open a model as SimCSE does.
WAYS_IN: dict[str, Callable[[Path], object]] = {
    "open": lambda folder: open_model(str(folder)),
    "encode": lambda folder: SimCSE(folder).encode("a red dog"),
    "mteb": lambda folder: MtebEncoder(str(folder)),
    "export": lambda folder: convert(str(folder), folder.parent / "out", onnx=True),
    "train": train_from,
    "train with its tokenizer": lambda folder: prepare_small(
        folder.parent / "run", folder.parent / "cache", model__tokenizer=str(folder), model__vocab_size=0
    ),
}


@pytest.mark.parametrize("way_in", WAYS_IN.values(), ids=WAYS_IN)
def test_no_code_of_a_model_folder_runs(folder: Path, asked: list[str], way_in: Callable[[Path], object]) -> None:
    hostile(folder)
    with pytest.raises(UserError, match="auto_map"):
        way_in(folder)
    assert not asked
    assert not (folder / "ran").exists()


def test_no_code_of_a_run_folder_runs(small_run: Path, tmp_path: Path, asked: list[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    hostile(run / "tokenizer")
    for way_in in (lambda: SimCSE(run), lambda: load_tokenizer(run / "tokenizer")):
        with pytest.raises(UserError, match="auto_map"):
            way_in()
    export_run(run, tmp_path / "out")  # copies files, of which none is code
    assert not list(tmp_path.rglob("ran"))
    assert not list((tmp_path / "out").rglob("*.py"))
    assert not asked
