"""Trackers get what a run logs, go on where it resumes, and stop nothing."""

import json
import sqlite3
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from simcse_jax.runs import trackers
from simcse_jax.runs.metrics import MetricsWriter
from simcse_jax.runs.trackers import IDS, TrackedRun, Trackers, open_trackers, require_trackers
from simcse_jax.system.errors import UserError
from tests.config.recipes import resolved


class Told:
    """A tracker that keeps what it is told, and fails or waits when it is asked to."""

    all: ClassVar[list[Any]] = []
    fails_at = -1
    waits: threading.Event | None = None

    def __init__(self, run: TrackedRun):
        if Told.fails_at == 0:
            raise ConnectionError("no server")
        self.id = run.known or f"{run.name}-1"
        Told.all.append(("open", self.id, dict(run.recipe)))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == Told.fails_at:
            raise SystemExit("a library that ends the process")
        if Told.waits is not None:
            Told.waits.wait()
        Told.all.append((step, dict(metrics)))

    def keep(self, file: Path) -> None:
        Told.all.append(file.name)

    def close(self, end: str) -> None:
        Told.all.append(end)


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setattr(trackers, "TRACKERS", {"told": Told})
    monkeypatch.setattr(Told, "all", [])
    monkeypatch.setattr(Told, "fails_at", -1)
    monkeypatch.setattr(Told, "waits", None)
    return Told.all


def run(workdir: Path, steps: range, said: list[str]) -> None:
    workdir.mkdir(exist_ok=True)
    with (
        Trackers(["told"], workdir, {"train.seed": 3}, said.append) as tracked,
        MetricsWriter(workdir, None, said.append, trackers=tracked) as metrics,
    ):
        for step in steps:
            metrics.write(step, {"loss": step / 2, "dev/spearman": 50.0})
        tracked.keep(workdir / "report.html")
        tracked.end = "finished"


def test_all_that_is_logged_arrives_in_order_and_a_resumed_run_has_the_same_id(tmp_path: Path) -> None:
    said: list[str] = []
    for steps in (range(1, 3), range(3, 4)):
        run(tmp_path / "run", steps, said)
    lines = [(step, {"loss": step / 2, "dev/spearman": 50.0}) for step in (1, 2, 3)]
    opened = ("open", "run-1", {"train.seed": 3})
    ends = ["report.html", "finished"]
    assert Told.all == [opened, *lines[:2], *ends, opened, lines[2], *ends]
    assert json.loads((tmp_path / "run" / IDS).read_text()) == {"told": "run-1"}
    assert said == []


@pytest.mark.parametrize("fails_at", [0, 2])
def test_one_that_fails_is_a_warning_once(fails_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Told, "fails_at", fails_at)
    said: list[str] = []
    run(tmp_path, range(1, 9), said)
    assert len(said) == 1
    assert "nothing more goes to told" in said[0]
    assert not [told for told in Told.all if told in ("finished", "report.html") or told[0] in range(2, 9)]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 8


def test_one_that_hangs_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Told, "waits", threading.Event())
    monkeypatch.setattr(trackers, "MOST_WAITING", 4)
    monkeypatch.setattr(trackers, "LAST_CALLS_S", 0.05)
    said: list[str] = []
    started = time.monotonic()
    run(tmp_path, range(1, 40), said)
    assert time.monotonic() - started < 5
    assert ["behind" in said[0], "did not take all" in said[-1], len(said)] == [True, True, 2]
    assert Told.waits is not None
    Told.waits.set()


def test_ids_that_cannot_be_read_begin_anew(tmp_path: Path) -> None:
    for broken in ("[]", "{", '{"told": 5}'):
        (tmp_path / IDS).write_text(broken)
        run(tmp_path, range(0), [])
    assert [told[1] for told in Told.all if told[0] == "open"] == [f"{tmp_path.name}-1"] * 3


@pytest.mark.parametrize(
    ("names", "words"),
    [("tensorbord", "Known: told"), ("told", "pip install told"), ("told,nothing", "pip install told")],
)
def test_an_unknown_or_missing_one_is_refused_at_the_start(
    names: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "told").mkdir()  # as some trackers leave in the folder where they run: no package
    with pytest.raises(UserError, match=words):
        require_trackers(resolved({"train.trackers": names}))


def test_a_recipe_without_trackers_has_none(tmp_path: Path) -> None:
    require_trackers(resolved())
    with open_trackers(resolved(), tmp_path) as tracked:
        assert tracked is None
    with open_trackers(resolved({"train.trackers": "told"}), tmp_path) as tracked:
        assert tracked is not None
    assert Told.all[0][:2] == ("open", f"{tmp_path.name}-1")
    assert Told.all[0][2]["train.trackers"] == "told"
    assert Told.all[-1] == "failed"  # as nobody said otherwise


REAL = dict(trackers.TRACKERS)


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the trackers of other projects keep what they get in this folder."""
    monkeypatch.setattr(trackers, "TRACKERS", REAL)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlflow'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    return tmp_path


def twice(name: str, workdir: Path) -> str:
    """Report steps 1 to 4 in a start and its resumption; return the id of the run."""
    pytest.importorskip(name)
    workdir.mkdir()
    (workdir / "report.html").write_text("a report")
    said: list[str] = []
    for steps in ((1, 2), (3, 4)):
        with Trackers([name], workdir, {"train.seed": 3}, said.append) as tracked:
            for step in steps:
                tracked.write(step, {"loss": step / 2, "dev/spearman": 50.0, "dev/ndcg@10": 40.0})
            tracked.keep(workdir / "report.html")
            tracked.end = "finished"
    assert said == []
    return json.loads((workdir / IDS).read_text())[name]


@pytest.mark.slow
def test_weights_and_biases_offline(real: Path) -> None:
    number = twice("wandb", real / "run")
    kept = sorted((real / "run").glob(f"wandb/offline-run-*/run-{number}.wandb"))
    assert [b"dev/spearman" in path.read_bytes() for path in kept] == [True, True]
    assert len(list((real / "run").glob("wandb/offline-run-*/files/report.html"))) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of MLflow itself
def test_mlflow_in_files(real: Path) -> None:
    number = twice("mlflow", real / "run")
    mlflow: Any = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient()
    found = [(metric.step, metric.value) for metric in client.get_metric_history(number, "loss")]
    assert found == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)]
    kept = client.get_run(number)
    assert kept.data.metrics["dev/ndcg_at_10"] == 40
    assert (kept.data.params, kept.info.status) == ({"train.seed": "3"}, "FINISHED")
    assert [file.path for file in client.list_artifacts(number)] == ["report.html"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Trackio itself
def test_trackio_in_a_folder(real: Path) -> None:
    number = twice("trackio", real / "run")
    with sqlite3.connect(real / "trackio" / f"{trackers.PROJECT}.db") as database:
        rows = database.execute("select step, metrics from metrics where run_name = ? order by step", [number])
        found = [(step, json.loads(metrics)["loss"]) for step, metrics in rows]
    assert found == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)]
    assert list((real / "trackio").rglob("report.html"))
