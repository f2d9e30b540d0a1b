"""The evaluate command as a user runs it: tables, scores.json, report.html, and what goes wrong in plain words."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from simcse_jax.embedding_model import open_model
from simcse_jax.errors import UserError
from simcse_jax.evaluate import model_names
from simcse_jax.evaluation import judge as judging_room
from simcse_jax.evaluation.judge import Exam, choose_tasks
from simcse_jax.evaluation.results import Results
from simcse_jax.evaluation.sts import TASKS, YEARS, evaluate_sts, load_sts
from simcse_jax.judging import judge_models, write_results
from tests.small_models import export_small, train_small
from tests.small_senteval import write_senteval

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models, `a` and `b`, a run and its copy of another seed, and `senteval`."""
    place = tmp_path_factory.mktemp("evaluate")
    for seed, name in enumerate("ab"):
        export_small(place / "made", seed)
        shutil.move(place / "made" / "model", place / name)
    train_small(place / "run-seed0", place / "cache")
    shutil.copytree(place / "run-seed0", place / "run-seed1")
    info = json.loads((place / "run-seed1" / "config.json").read_text())
    info["recipe"]["train.seed"] = 1
    (place / "run-seed1" / "config.json").write_text(json.dumps(info))
    write_senteval(place / "senteval")
    return place


@pytest.fixture(scope="module")
def results(place: Path) -> Results:
    """Of both models and both runs."""
    models = [open_model(str(place / name)) for name in ("a", "b", "run-seed0", "run-seed1")]
    return judge_models(models, Exam((*TASKS, "geometry"), place / "senteval", pairs=("demo:dev",)))


@pytest.fixture(scope="module")
def written(results: Results, place: Path) -> dict[str, Any]:
    """scores.json of these results."""
    scores, report = write_results(results, place / "out")
    assert (scores.name, report.name) == ("scores.json", "report.html")
    return json.loads(scores.read_text())


def evaluate(*flags: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "simcse_jax.evaluate", *flags]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_scores_json_has_what_others_rely_on(written: dict[str, Any], place: Path) -> None:
    model = open_model(str(place / "a"))
    for task in TASKS:
        expected = evaluate_sts(model.encode, load_sts(place / "senteval", task), task)
        assert written["scores"][task][expected.headline] == pytest.approx(expected.value, abs=1e-2)
        protocol = written["protocol"]["tasks"][task]
        assert protocol["pairs"] == expected.protocol["pairs"]
        assert protocol["data"] == expected.protocol["data"]
        assert protocol["split"] == "test"
    assert "all" in written["scores"]["STS12"]
    assert "spearman" in written["scores"]["STSBenchmark"]
    headline = [written["scores"][task]["all" if task in YEARS else "spearman"] for task in TASKS]
    assert written["average"] == {"sts": pytest.approx(np.mean(headline), abs=1e-5)}
    protocol = written["protocol"]
    assert protocol["fingerprint"] == model.fingerprint
    assert (protocol["pooler"], protocol["precision"]) == ("avg", "float32")
    assert {"truncation", "date", "simcse_jax"} <= protocol.keys()


def test_every_model_has_a_record(written: dict[str, Any], place: Path) -> None:
    names = [str(place / name) for name in ("a", "b", "run-seed0", "run-seed1")]
    assert [model["model"] for model in written["models"]] == names
    assert all(not model["failures"] for model in written["models"])
    assert all("demo:dev" in model["scores"] for model in written["models"])
    assert [bool(model["geometry_before_training"]) for model in written["models"]] == [False, False, True, True]
    space = written["models"][2]["geometry"]
    assert 1 <= space["effective_rank"] <= 16


def test_runs_are_summed_up_and_entries_compared(written: dict[str, Any], place: Path) -> None:
    [runs] = written["runs"]
    assert runs["name"] == str(place / "run-seed*")
    spread = runs["scores"]["STS12"]
    assert spread["runs"] == 2
    assert spread["mean"] == pytest.approx(written["models"][2]["scores"]["STS12"]["all"], abs=1e-5)
    assert spread["sd"] == pytest.approx(0, abs=1e-5)  # one is a copy of the other
    compared = {(d["task"], d["other"]): d for d in written["differences"]}
    assert {other for _, other in compared} == {str(place / "b"), str(place / "run-seed*")}
    b = compared["STS12", str(place / "b")]
    a_score, b_score = (written["models"][n]["scores"]["STS12"]["all"] for n in (0, 1))
    assert b["points"] == pytest.approx(b_score - a_score, abs=1e-4)
    assert b["low"] <= b["points"] <= b["high"]
    assert ("sts", str(place / "b")) in compared


def test_report_and_pictures_are_written(written: dict[str, Any], place: Path) -> None:
    report = (place / "out" / "report.html").read_text()
    assert f"{written['average']['sts']:.2f}" in report
    for picture in ("alignment_uniformity", "spectrum", "cosines_by_band", "predicted_against_gold", "training_curves"):
        assert (place / "out" / f"{picture}.png").stat().st_size > 5000, picture


def test_command_line(place: Path, tmp_path: Path) -> None:
    flags = ["--model=a:cls", "--model=a", "--data=senteval", "--tasks=STS13,sick-r", f"--out={tmp_path / 'out'}"]
    done = evaluate(*flags, "--pooler=cls_before_pooler", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "a:cls is judged with the pooler cls, as asked; it was made for avg" in done.stdout
    assert "a is judged with the pooler cls_before_pooler, as asked; it was made for avg" in done.stdout
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert list(scores["scores"]) == ["STS13", "SICKRelatedness"]
    assert f"{scores['scores']['STS13']['all']:.2f}" in done.stdout
    assert scores["average"] == {}
    assert scores["protocol"]["pooler from"] == "asked for; the model's own: avg"


def test_a_run_is_judged_into_its_own_folder(place: Path) -> None:
    done = evaluate("--model=run-seed1", "--pairs=demo:test", cwd=place)
    assert done.returncode == 0, done.stderr
    scores = json.loads((place / "run-seed1" / "scores.json").read_text())
    assert list(scores["scores"]) == ["demo:test"]
    assert scores["geometry"]["protocol"]
    assert (place / "run-seed1" / "report.html").is_file()
    assert "before training" in done.stdout


def test_one_task_that_fails_stops_no_other(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "senteval", tmp_path / "senteval")
    gold = tmp_path / "senteval" / "STS" / "STS14-en-test" / "STS.gs.images.txt"
    gold.write_text(gold.read_text().replace(gold.read_text().splitlines()[3], "good", 1))
    shutil.rmtree(tmp_path / "senteval" / "SICK")
    flags = [f"--data={tmp_path / 'senteval'}", "--tasks=sts,TREC", f"--out={tmp_path / 'out'}"]
    done = evaluate(f"--model={place / 'a'}", *flags)
    assert done.returncode == 1, done.stderr
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert set(scores["scores"]) == set(TASKS) - {"STS14", "SICKRelatedness"}
    assert set(scores["failures"]) == {"STS14", "SICKRelatedness", "TREC"}
    assert scores["average"] == {}
    assert "STS.gs.images.txt, line 4: the score 'good' is not a number" in done.stdout
    assert "STS14" in (tmp_path / "out" / "report.html").read_text()
    assert "Traceback" not in done.stderr


def test_broken_weights_fail_their_model_alone(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "b", tmp_path / "nan")
    weights = load_file(tmp_path / "nan" / "model.safetensors")
    weights["encoder.layer.0.output.dense.weight"][:] = np.nan
    save_file(weights, tmp_path / "nan" / "model.safetensors", metadata={"format": "pt"})
    shutil.copytree(place / "b", tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"\0" * 100)
    models = [open_model(str(folder)) for folder in (tmp_path / "nan", tmp_path / "cut", place / "a")]
    results = judge_models(models, Exam(("STS13", "geometry"), place / "senteval"))
    nan, cut, good = results.verdicts
    assert set(nan.failures) == set(cut.failures) == {"STS13", "geometry"}
    assert "sentence vectors are not finite, e.g. that of" in nan.failures["STS13"]
    assert "model.safetensors" in cut.failures["STS13"]
    assert set(good.scores) == {"STS13"}
    write_results(results, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["models"][2]["scores"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], ["--model is needed"]),
        (["--model=nowhere/at/all"], ["'nowhere/at/all' does not exist"]),
        (["--model={place}/zz*"], ["zz*: nothing matches"]),
        (["--model={place}/a", "--tasks=sts,STS11"], ["'STS11' is unknown", "transfer", "STSBenchmark"]),
        (["--model={place}/a", "--tasks=STS12", "--split=dev"], ["STS12 have a test split only", "SICKRelatedness"]),
        (["--model={place}/a", "--data=/nowhere"], ["--data=/nowhere", "no such folder"]),
        (["--model={place}/a", "--data={place}/a"], ["holds none of STS"]),
        (["--model={place}/a", "--data={place}/senteval", "--pooler=mean"], ["--pooler=mean is unknown", "avg_top2"]),
        (["--model={place}/a"], ["senteval.tar", "HF_HUB_OFFLINE", "local path"]),
        (["--model={place}/a", "--pairs=demo:test", "--out=/proc/x"], ["--out=/proc/x cannot be written"]),
    ],
)
def test_wrong_commands_are_answered_plainly(flags: list[str], says: list[str], place: Path, tmp_path: Path) -> None:
    out = [] if any(flag.startswith("--out") for flag in flags) else [f"--out={tmp_path}"]
    done = evaluate(*(flag.format(place=place) for flag in flags), *out)
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stderr
    for words in says:
        assert words in done.stderr


def test_tasks_by_group_and_name() -> None:
    assert choose_tasks("geometry,sts", "test") == (*TASKS, "geometry")
    assert choose_tasks("STS-B, mr,sickr", "test") == ("STSBenchmark", "SICKRelatedness", "MR")
    assert choose_tasks("sts", "dev") == ("STSBenchmark", "SICKRelatedness")
    assert Exam(choose_tasks("transfer", "test")).averages.keys() == {"transfer"}
    assert not Exam(choose_tasks("STS12,MR", "test")).averages
    assert judging_room.GROUPS == ("sts", "transfer", "geometry")


def test_globs_name_folders_in_order(tmp_path: Path) -> None:
    for name in ("s2", "s10", "s1"):
        (tmp_path / name).mkdir()
    assert model_names([f"{tmp_path}/s*", f"{tmp_path}/s1/", "x"]) == [
        f"{tmp_path}/{n}" for n in ("s1", "s10", "s2")
    ] + ["x"]
    with pytest.raises(UserError, match="nothing matches"):
        model_names([f"{tmp_path}/t*"])
