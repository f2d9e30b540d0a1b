"""A loss, a positive and an evaluation of the user's own, by import path: the page's code, and what is refused."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from simcse_jax.config.resolve import require_in_range
from simcse_jax.data.positives import POSITIVES
from simcse_jax.evaluation.kinds import load_task, score_task
from simcse_jax.model_folder.run_folder import export_run
from simcse_jax.objective.losses import LOSSES
from simcse_jax.system.errors import UserError
from simcse_jax.system.import_path import code_of, import_object, path_of
from tests.pages import blocks
from tests.small_models import prepare_small, train_small

OWN: dict[str, Any] = {
    "objective__loss": "mine:softplus",
    "objective__margin": 0.1,
    "data__positive": "mine:swap",
    "eval__data": "function:mine:fruit",
    "data__packed": False,
}


@pytest.fixture(autouse=True)
def _tables() -> Iterator[None]:
    """Take the own parts of a test out of the tables again."""
    with patch.dict(LOSSES), patch.dict(POSITIVES):
        yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the page's module, mine.py, which can be imported."""
    (tmp_path / "mine.py").write_text("\n\n".join(blocks("docs/own.md", "python")))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


@pytest.mark.medium
def test_the_page_trains_and_is_recorded_and_the_run_needs_no_module_afterwards(folder: Path) -> None:
    run = train_small(folder / "run", folder / "cache", **OWN)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "dev/score" in line] == [0, 2, 4]
    info = json.loads((run / "config.json").read_text())
    assert info["recipe"]["objective.loss"] == "mine:softplus"
    assert {*info["own_parts"]["code"]} == {"mine:softplus", "mine:swap"}
    assert "jax.nn.softplus(gaps)" in info["own_parts"]["code"]["mine:softplus"]

    (folder / "mine.py").write_text((folder / "mine.py").read_text().replace("def soft", "# a remark\n\ndef soft"))
    sys.modules.pop("mine")
    prepare_small(run, folder / "cache", **OWN)  # resumes: a comment changes nothing
    (folder / "mine.py").write_text((folder / "mine.py").read_text().replace("sharpness=10.0", "sharpness=20.0"))
    sys.modules.pop("mine")
    with pytest.raises(UserError, match="code of your own: of 'mine:softplus, mine:swap' there"):
        prepare_small(run, folder / "cache", **OWN)

    (folder / "mine.py").unlink()
    sys.modules.pop("mine")
    export_run(run, folder / "out")
    assert "mine:softplus" in (folder / "out" / "README.md").read_text()
    with pytest.raises(UserError, match="there is no module 'mine'"):
        prepare_small(run, folder / "cache", **OWN)


@pytest.mark.parametrize(
    ("key", "path", "says"),
    [
        ("objective.loss", "absent.part:f", "there is no module 'absent'"),
        ("objective.loss", "mine.py:softplus", "Write objective.loss = mine:softplus"),
        ("objective.loss", "mine:sofplus", "Did you mean mine:softplus?"),
        ("objective.loss", "mine:np", "is no loss"),
        ("objective.loss", "mine:Scores", "is no loss"),
        ("objective.loss", "wrong:unknown", "'gamma' is no key of a loss.*objective.margin(.|\n)*gamma=1.0"),
        ("objective.loss", "broken:f", r"importing broken fails at .*broken.py:2: ZeroDivisionError"),
        ("objective.loss", "ending:f", r"importing ending fails at .*ending.py:2: SystemExit"),
        ("data.positive", "mine:swapped", "is no positive"),
        ("data.positive", "wrong:unknown", "'gamma' is no key of a positive"),
    ],
)
def test_a_path_to_something_else_is_refused(key: str, path: str, says: str, folder: Path) -> None:
    (folder / "broken.py").write_text("one = 1\none / 0\n")
    (folder / "ending.py").write_text("import sys\nsys.exit(0)\n")
    (folder / "wrong.py").write_text("def unknown(scores, *, gamma): return scores.positive\n")
    with pytest.raises(UserError, match=rf"{key} = '{path}'(.|\n)*{says}"):
        require_in_range(key, path)


@pytest.mark.parametrize(
    ("key", "code", "says"),
    [
        ("objective__loss", "def f(scores): return scores.positive.sum()", r"returns float32\[\] for 2 anchors"),
        ("objective__loss", "def f(scores): return scores.positive @ scores.absent", r"fails at .*own.py:1: Attrib"),
        ("data__positive", "def f(given): return None", r"fails at .*: TypeError: it returns NoneType"),
        ("data__positive", "def f(given): return C(lambda t, p, k: t[:1])", "must make two arrays"),
        (
            "data__positive",
            "def f(given): return C(lambda t, p, k: [[*x, *x] for x in t])",
            r"must make two arrays of token ids, of 1 to \d+ and 1 to \d+ tokens",
        ),
    ],
)
def test_a_function_that_returns_something_else_is_refused_before_the_folder_is_written(
    key: str, code: str, says: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "own.py").write_text(f"{code}\nfrom simcse_jax.data.changes import Change as C")
    monkeypatch.delitem(sys.modules, "own", raising=False)
    changes: dict[str, Any] = {key: "own:f"}
    with pytest.raises(UserError, match=says):
        prepare_small(folder / "run", folder / "cache", **changes)
    assert not (folder / "run" / "config.json").exists()


def _encode(texts: list[str]) -> np.ndarray:
    return np.eye(len(texts), 8)


def test_an_evaluation_is_checked_and_its_first_value_counts() -> None:
    def several(encode: Any) -> dict[str, float]:
        return {"accuracy": 71.0, "mrr": 60.0}

    def text(encode: Any) -> str:
        return "good"

    def ambiguous(encode: Any) -> dict[str, float]:
        return {"accuracy": 71.0, "score": 60.0}

    def failing(encode: Any) -> float:
        return encode(["a"])[1]

    task = f"function:{path_of(several)}"
    score = score_task(_encode, load_task(task), task)
    assert score.values == {"score": 71.0, "accuracy": 71.0, "mrr": 60.0}
    refused = (
        (text, "must return a finite number"),
        (ambiguous, "first counts"),
        (failing, r"test_own_parts.py:\d+: Ind"),
    )
    for function, says in refused:
        task = f"function:{path_of(function)}"
        with pytest.raises(UserError, match=says):
            score_task(_encode, load_task(task), task)
    with pytest.raises(UserError, match="is no evaluation"):
        load_task("function:json:__name__")


def test_a_function_that_is_passed_is_found_again_and_the_newest_counts() -> None:
    def cell(value: int) -> Callable[[], int]:
        def made() -> int:
            return value

        return made

    older = path_of(cell(1))
    assert path_of(cell(2)) == older  # as in a notebook, where a cell is run again
    assert import_object(older, "eval.data")() == 2
    assert code_of(cell(1)) == code_of(cell(1)) != code_of(cell(2))  # nor does a run resume with another value
