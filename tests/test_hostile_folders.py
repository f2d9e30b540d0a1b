"""Model folders made to do harm: none of their code runs, nothing is asked on stdin, and a UserError says why."""

import builtins
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from simcse_jax import SimCSE
from simcse_jax.embedding_model import open_model
from simcse_jax.model_folder import run_folder
from simcse_jax.model_folder.export import convert
from simcse_jax.model_folder.run_folder import export_run
from simcse_jax.mteb_encoder import MtebEncoder
from simcse_jax.system.errors import UserError
from tests.small_models import FROM_FOLDER, prepare_small

ROOT = Path(__file__).parent.parent
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
    for way_in in (lambda: SimCSE(run), lambda: export_run(run, tmp_path / "out")):
        with pytest.raises(UserError, match="auto_map"):
            way_in()
    assert not asked
    assert not list(tmp_path.rglob("ran"))


COMMANDS = {
    "evaluate": ("--model=model", "--pairs=dev.tsv", "--out=out"),
    "search": ("--model=model", "--corpus=texts.txt"),
    "search --serve": ("--model=model", "--corpus=texts.txt", "--serve", "--port=0"),
    "embed": ("--model=model", "--input=texts.txt", "--out=vectors.parquet"),
    "export": ("--model=model", "--out=out", "--onnx"),
    "train": (
        "--config=configs/unsup.py",
        "--config.model.name=model",
        "--config.data.files=texts.txt",
        "--config.eval.data=dev.tsv",
        "--workdir=run",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_yes_on_stdin_runs_nothing(folder: Path, command: str) -> None:
    hostile(folder)
    place = folder.parent
    (place / "configs").symlink_to(ROOT / "configs")
    (place / "texts.txt").write_text("a dog sleeps\nrain falls\n" * 40)
    (place / "dev.tsv").write_text("1\ta dog\ta cat\n4\train\train\n3\tsun\tthe sun\n")
    module = f"simcse_jax.{command.split()[0]}"
    done = subprocess.run(
        [sys.executable, "-m", module, *COMMANDS[command]],
        input="yes\n" * 9,
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "auto_map" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(place.rglob("ran"))


def test_an_export_names_no_code(folder: Path, tmp_path: Path) -> None:
    """A folder whose own class is not needed opens without it."""
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]})
    convert(str(folder), tmp_path / "out")
    assert "auto_map" not in (tmp_path / "out" / "tokenizer_config.json").read_text()


def write(name: str, content: str | dict[str, Any]) -> Callable[[Path], object]:
    """Return a change of a folder: a file is written, or keys are merged into its JSON."""
    if isinstance(content, str):
        return lambda folder: (folder / name).write_text(content)
    return lambda folder: edit(folder / name, **content)


def without_post_processor(folder: Path) -> None:
    edit(folder / "tokenizer.json", post_processor=None)
    edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


def with_weight(value: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors["encoder.layer.1.output.dense.weight"][3, 2] = value
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def huge(folder: Path) -> None:
    edit(folder / "config.json", vocab_size=10**7, hidden_size=4 * 10**6)
    edit(folder / "1_Pooling" / "config.json", word_embedding_dimension=4 * 10**6)


DEEP = "[" * 100_000
# What is wrong with a folder: the change that makes it so, and what the message names.
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "200,000 layers": (write("config.json", {"num_hidden_layers": 200_000}), "num_hidden_layers"),
    "1,000 layers": (write("config.json", {"num_hidden_layers": 1000}), r"missing \(15968\)"),
    "10^12 tokens": (write("config.json", {"vocab_size": 10**12}), "vocab_size"),
    "10^7 tokens": (huge, "10000000"),
    "deep config": (write("config.json", DEEP), r"config\.json"),
    "deep modules": (write("modules.json", DEEP), r"modules\.json"),
    "deep settings of ours": (write("simcse_jax.json", DEEP), r"simcse_jax\.json"),
    "deep tokenizer": (write("tokenizer_config.json", DEEP), "tokenizer"),
    "a list for an activation": (write("config.json", {"hidden_act": ["gelu"]}), "hidden_act"),
    "a list for a model type": (write("config.json", {"model_type": ["bert"]}), "model_type"),
    "a number for architectures": (write("config.json", {"model_type": None, "architectures": 3}), "architectures"),
    "a list for a size": (write("config.json", {"hidden_size": [32]}), "hidden_size"),
    "a list of ours": (write("simcse_jax.json", "[]"), r"simcse_jax\.json"),
    "a list for our pooler": (write("simcse_jax.json", {"pooler": ["avg"]}), "pooler"),
    "modules that are texts": (write("modules.json", '["Pooling"]'), r"modules\.json"),
    "a module elsewhere": (write("modules.json", '[{"type": "x.Transformer", "path": "../model"}]'), "outside"),
    "a number for the tokenizer": (write("tokenizer.json", "3"), "tokenizer"),
    "words split by MeCab": (write("tokenizer_config.json", {"tokenizer_class": "BertJapaneseTokenizer"}), "fast"),
    "no post-processor": (without_post_processor, "post_processor"),
    "NaN": (with_weight(float("nan")), "layers/ffn/down/kernel hold NaN"),
    "infinity": (with_weight(float("inf")), "hold NaN or infinity"),
}


@pytest.mark.parametrize(("change", "said"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_said(folder: Path, change: Callable[[Path], object], said: str) -> None:
    change(folder)
    with pytest.raises(UserError, match=said):
        SimCSE(folder).encode("a red dog")


@pytest.mark.parametrize("way_in", [WAYS_IN["export"], WAYS_IN["train"]], ids=["export", "train"])
def test_sizes_are_compared_before_anything_is_made(folder: Path, way_in: Callable[[Path], object]) -> None:
    huge(folder)
    with pytest.raises(UserError, match="10000000"):
        way_in(folder)


@pytest.mark.parametrize("content", ["[]", DEEP, '{"pooling_mode": 3}', '{"pooling_mode": [["mean"]]}', '"mean"'])
def test_pooling_settings_that_are_no_object(folder: Path, content: str) -> None:
    (folder / "simcse_jax.json").unlink()
    (folder / "1_Pooling" / "config.json").write_text(content)
    with pytest.raises(UserError, match="1_Pooling"):
        open_model(str(folder))


def test_a_run_with_nan_is_not_opened(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = run_folder._arrays
    broken = lambda *given: jax.tree.map(lambda x: x * np.nan, read(*given))  # noqa: E731
    monkeypatch.setattr(run_folder, "_arrays", broken)
    with pytest.raises(UserError, match="hold NaN"):
        SimCSE(small_run).encode("a red dog")
    with pytest.raises(UserError, match="hold NaN"):
        export_run(small_run, tmp_path / "out")
