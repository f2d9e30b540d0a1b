"""Training from Python: one call from a recipe and rows to a run, which resumes, and leaves nothing on the devices."""

import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict

from simcse_jax import fit
from simcse_jax.data import demo
from simcse_jax.data.prompts import parse_prompts
from simcse_jax.fitting.given import PAIRS, TEXTS, as_override, in_python, save_data
from simcse_jax.fitting.trained_run import TrainedRun
from simcse_jax.runs import trackers
from simcse_jax.system.errors import UserError
from simcse_jax.system.notebook_bar import NotebookBar
from tests.pages import ROOT, blocks
from tests.runs.test_trackers import Told
from tests.small_models import SMALL_ENCODER, VOCABULARY
from tests.system.test_interrupts import ignored_interrupt

SENTENCES = list(demo.sentences(count=200))
TRIPLETS = [tuple(row) for row in demo.triplets(count=20)]
SMALL: dict[str, Any] = {
    **SMALL_ENCODER,
    "model.vocab_size": VOCABULARY,
    "data.packed": False,
    "train.batch_size": 16,
    "train.steps": 4,
    "train.log_every_steps": 2,
    "eval.every_steps": 2,
    "mesh.data": 1,
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep files of this test by themselves, and the memory of this process as it is."""
    monkeypatch.setenv("SIMCSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("simcse_jax.fitting.complete.keep_freed_memory", lambda: None)


@pytest.mark.slow
def test_the_page_runs_word_for_word(tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(ROOT / "models")
    (tmp_path / "mine.tsv").write_text("".join(f"{n % 7}\ta {n}\tb\n" for n in range(30)))
    (code,) = blocks("docs/python.md", "python")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "my-model" / "README.md").is_file()


@pytest.mark.medium
def test_a_run_stops_at_ctrl_c_and_the_same_call_completes_it(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simcse_jax.judging.report_run", lambda *_: "")  # of `train`, which others test
    monkeypatch.setattr(trackers, "TRACKERS", {"json": Told})  # by the name of a package that is installed
    monkeypatch.setattr(Told, "all", [])
    calls = []

    def score(encode: Any) -> float:
        calls.append(len(calls))
        if len(calls) == 2:  # at step 2: the next step is the last
            os.kill(os.getpid(), signal.SIGINT)
        return float(encode(["a man", "a dog"]).std())

    def train() -> Any:
        recipe = SMALL | {"train.trackers": "json"}
        return fit("small", recipe, data=SENTENCES, dev=score, workdir=tmp_path / "run")

    gc.collect()  # what earlier tests left behind would be collected meanwhile
    held = len(jax.live_arrays())
    run = train()
    assert (run.step, run.total_steps, run.stopped_by) == (3, 4, signal.SIGINT)
    assert "the same call resumes from step 3" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run = train()
    assert (run.step, run.stopped_by, run.measure) == (4, None, "dev/score")
    assert len(jax.live_arrays()) == held
    told = [each[0] if isinstance(each, tuple) else each for each in Told.all]
    # The first start ends after step 3, which no line of the log is of.
    assert told == ["open", 0, 2, 2, "stopped", "open", 4, 4, "report.html", "finished"]

    assert list(run.metrics.index) == [0, 2, 4]
    assert run.metrics["loss"].notna().tolist() == [False, True, True]
    assert run.dev_curve.idxmax() == run.best_step
    assert run.best_score == pytest.approx(run.dev_curve.max(), rel=1e-5)
    assert "stopped" not in repr(run)
    assert "data:image/png" in run._repr_html_()
    recipe = json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]
    assert recipe["data.files"] == str(save_data(SENTENCES, TEXTS, "data", ""))
    assert recipe["eval.data"].startswith("function:tests.fitting.test_fit:")

    vectors = run.model.encode(["a man", "a dog"])
    assert vectors.shape == (2, 16)

    def width(encode: Any) -> float:
        return float(encode(["a"]).shape[1])

    results = run.evaluate(function=[width], out=tmp_path / "scores")
    assert next(iter(results.models[0].scores.values())).value == 16
    assert (tmp_path / "scores" / "report.html").is_file()
    assert (run.export(tmp_path / "out") / "model.safetensors").is_file()
    with pytest.raises(UserError, match="no such kind of data"):
        run.evaluate(pears="mine.tsv")
    with pytest.raises(UserError, match="twice"):  # of two functions under one path, one alone could be found
        run.evaluate(function=[width, width])


def test_a_ctrl_c_that_python_ignores_ends_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simcse_jax.fitting.fit.read_recipe", lambda *_: ignored_interrupt())
    with pytest.raises(KeyboardInterrupt):
        fit("small", data=SENTENCES)


def test_the_same_rows_are_the_same_file_in_every_form() -> None:
    names = ("sent0", "sent1", "hard_neg")
    frame = pd.DataFrame(TRIPLETS, columns=list(names)).set_index(np.arange(20)[::-1])
    forms = [
        TRIPLETS,
        [list(row) for row in TRIPLETS],
        [dict(zip(names, row, strict=True)) for row in TRIPLETS],
        {name: [row[n] for row in TRIPLETS] for n, name in enumerate(names)},
        frame,
        Dataset.from_pandas(frame, preserve_index=False),
    ]
    paths = {save_data(form, TEXTS, "data", "") for form in forms}
    assert len(paths) == 1
    read = pd.read_parquet(paths.pop())
    assert [tuple(row) for row in read.itertuples(index=False)] == TRIPLETS
    assert save_data(TRIPLETS[1:], TEXTS, "data", "").name not in {path.name for path in paths}
    assert save_data(iter(SENTENCES), TEXTS, "data", "") == save_data(pd.Series(SENTENCES), TEXTS, "data", "")
    more = pd.read_parquet(save_data([(*row, "further") for row in TRIPLETS], TEXTS, "data", ""))
    assert list(more) == [*names, "hard_neg2"]
    for score in (1.5, None):
        graded = pd.read_parquet(save_data([("a", "b", 4), ("c", "d", score)], TEXTS, "data", ""))
        assert list(graded) == ["sent0", "sent1", "score"]
    marks = pd.read_parquet(save_data([("a", "b", True), ("c", "d", False)], TEXTS, "data", ""))
    assert list(marks) == list(names), "True and False are no scores"
    lacking = pd.read_parquet(save_data([{"sent0": "a"}, {"sent0": "b", "sent1": "c"}], TEXTS, "data", ""))
    assert lacking["sent1"].isna().tolist() == [True, False]
    assert list(pd.read_parquet(save_data([(4.0, "a", "b"), (1.0, "c", "d")], PAIRS, "dev", ""))) == list(PAIRS)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("pairs.csv", "is no data"),
        ([__file__], "names of files"),
        ([], "no rows"),
        (["a", ("b", "c")], "row 2 is a tuple of 2, and row 1 is a text"),
        ([("a", "b"), ("c", "d"), ("e",)], "row 3 is a tuple of 1, and row 1 is a tuple of 2"),
        ([("a", "b"), {"sent0": "a", "sent1": "b"}], "row 2 is a dict"),
        (["a", None], "row 2 is None"),
        ([b"a text"], "row 1 is b'a text'"),
        ([("a", "b"), ("c", None), ("d", 7)], "row 3 has 7.*cell 2"),
        ([("a", "b", 1), ("c", "d", 2.5), ("e", "f", "x")], "row 3 has 'x'"),
        ([{"question": "a"}, {"question": ["b"]}], "row 2 has .'b'.*'question'"),
        (3, "of type int"),
        (DatasetDict({"train": Dataset.from_dict({"text": ["a"]})}), r"data=dataset\['train'\]"),
    ],
    ids=str,
)
def test_what_is_no_data_is_refused(data: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        fit("small", data=data)


def test_a_file_given_as_dev_is_told_its_key() -> None:
    with pytest.raises(UserError, match=r"dev = 'mine.tsv' is no data.*eval\.data"):
        fit("small", data=SENTENCES, dev="mine.tsv")


@pytest.mark.parametrize(
    ("dev", "says"),
    [
        ([(1.0, "a b", "c d"), (2.0, "a b", "")], r"dev=, row 2: a sentence is blank[^\n]*"),
        ([("a b", "c d", 1.0)] * 2, r"dev=, row 1: the score 'a b' is not a number[^\n]*"),
        ([("a b", "c d")] * 5, r"dev=: which columns are sentence2\?[^\n]*"),
    ],
    ids=str,
)
def test_a_wrong_row_is_named_by_its_argument(dev: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{says}\ndev= takes a list of tuples \(score, sentence, sentence\)"):
        fit("small", data=SENTENCES, dev=dev, workdir=tmp_path / "run")


def test_overrides_are_as_on_the_command_line(tmp_path: Path) -> None:
    def loss(scores: Any) -> Any:
        return scores.positive

    assert as_override("data.columns", ["a", "b"]) == "a,b"
    assert as_override("data.files", tmp_path / "a.txt") == str(tmp_path / "a.txt")
    assert as_override("model.remat", True) == "True"
    assert as_override("train.steps", np.int64(3)) == "3"
    prompts = ["ask, please: ", 'say "it": ']
    assert list(parse_prompts(as_override("data.prompts", prompts))) == prompts
    with pytest.raises(UserError, match="comma"):
        as_override("data.files", ["a,b.txt", "c.txt"])
    with pytest.raises(UserError, match="no name"):  # all lambdas would be one path
        as_override("objective.loss", lambda scores: scores.positive)
    assert as_override("objective.loss", loss).endswith("<locals>.loss")
    for overrides, says in (
        ({"train.stepss": 3}, "Did you mean train.steps"),
        ({"train.steps": "many"}, "steps"),
        ({"train.batch_size": 0}, r'For example {"train.batch_size": "\d+"}$'),
        ({"objective.loss": {"a": 1}}, "a key takes"),
        ({"data.files": "a.txt"}, "both given"),
    ):
        with pytest.raises(UserError, match=says):
            fit("small", overrides, data=SENTENCES, workdir=tmp_path / "run")
    command = "Use --config.a.b=c,d --config.e.f_g=0.5. This is about --config.data.files, --config=unsup."
    assert in_python(command, {}) == 'Use {"a.b": "c,d", "e.f_g": "0.5"}. This is about data.files, --config=unsup.'
    with pytest.raises(UserError, match=r"Did you mean --config=(configs/)?small"):
        fit("smal")


def test_a_run_that_stopped_before_any_metric_shows_none(tmp_path: Path) -> None:
    run = TrainedRun(tmp_path, 0, 3, "", -1, float("nan"), signal.SIGINT)
    assert run.metrics.empty
    assert run.dev_curve.empty
    assert run.figure() is None


def test_a_notebook_shows_step_loss_and_time_left() -> None:
    bar = NotebookBar()
    task = bar.add_task("training", total=10, loss="-", dev="-", speed="-", left="-")
    bar.update(task, completed=3)
    bar.update(task, loss="0.5", left="0:07")
    shown = bar._repr_html_()
    assert 'value="3" max="10"' in shown
    assert "loss 0.5  dev -" in shown
    assert "0:07 left" in shown
