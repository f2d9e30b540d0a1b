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
from simcse_jax.evaluate import model_names
from simcse_jax.evaluation import judge as judging_room
from simcse_jax.evaluation.judge import Exam, choose_tasks
from simcse_jax.evaluation.results import Results
from simcse_jax.evaluation.sts import TASKS, YEARS, evaluate_sts, load_sts
from simcse_jax.judging import judge_models, report_run, write_results
from simcse_jax.system.errors import UserError
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
    train_small(place / "run-seed1", place / "cache", train__seed=1)
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
    each = [written["models"][n]["scores"]["STS12"]["all"] for n in (2, 3)]
    assert spread["mean"] == pytest.approx(np.mean(each), abs=1e-5)
    assert spread["sd"] == pytest.approx(np.std(each, ddof=1), abs=1e-5)
    assert (spread["min"], spread["max"]) == (min(each), max(each))
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
    scores = json.loads((place / "run-seed1" / "evaluation" / "scores.json").read_text())
    assert list(scores["scores"]) == ["demo:test"]
    assert scores["geometry"]["protocol"]
    assert (place / "run-seed1" / "evaluation" / "report.html").is_file()
    assert scores["geometry_before_training"]["protocol"]["weights"] == "random, seed 1"
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


def test_transfer_beside_pairs_of_ones_own(place: Path, tmp_path: Path) -> None:
    """Separable classes, through the command: the names that others rely on, and a task of the user's own beside."""
    folder = tmp_path / "senteval" / "MR"
    folder.mkdir(parents=True)
    for name, word in (("pos", "dog"), ("neg", "music")):
        lines = [f"{word} " * (n % 5 + 1) for n in range(40)]
        (folder / f"rt-polarity.{name}").write_text("\n".join(lines) + "\n")
    flags = [f"--data={tmp_path / 'senteval'}", "--tasks=MR", "--fast", "--pairs=demo:dev", f"--out={tmp_path / 'out'}"]
    done = evaluate(f"--model={place / 'a'}", *flags)
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert list(scores["scores"]) == ["demo:dev", "MR"]
    assert scores["scores"]["MR"]["accuracy"] == 100
    assert scores["protocol"]["tasks"]["MR"]["split"] == "5-fold nested cross-validation"


def test_one_run_with_two_poolers_is_two_entries(place: Path, tmp_path: Path) -> None:
    flags = ["--model=run-seed0", "--model=run-seed0:cls_before_pooler", "--pairs=demo:dev", f"--out={tmp_path}"]
    done = evaluate(*flags, cwd=place)
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["runs"] == []
    assert [d["other"] for d in scores["differences"]] == ["run-seed0:cls_before_pooler"]
    assert "Judged with another pooler than its own" in (tmp_path / "report.html").read_text()


def test_a_finished_run_gets_a_report(place: Path) -> None:
    report_run(place / "run-seed0", "demo:dev")
    page = (place / "run-seed0" / "report.html").read_text()
    assert "before training" in page
    report_run(place / "run-seed0", "")
    assert "Training" in (place / "run-seed0" / "report.html").read_text()


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
        (["--model=nowhere/at/all"], ["There is no folder nowhere/at/all in"]),
        (["--model={place}/a:mean"], ["there is no pooler 'mean'", "avg_top2"]),
        (["--model={place}/a", "--pairs=/nowhere.tsv"], ["/nowhere.tsv", "do not exist"]),
        (["--model={place}/zz*"], ["zz*: nothing matches"]),
        (["--model={place}/a", "--tasks=sts,STS11"], ["'STS11' is unknown", "transfer", "STSBenchmark"]),
        (["--model={place}/a", "--tasks=STS12", "--split=dev"], ["a test split only: STS12", "SICKRelatedness"]),
        (["--model={place}/a", "--data=/nowhere"], ["--data=/nowhere", "no such folder"]),
        (["--model={place}/a", "--data={place}/a"], ["holds none of STS"]),
        (["--model={place}/a", "--data={place}/senteval", "--pooler=mean"], ["pooler=mean is unknown", "avg_top2"]),
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
    assert Exam(choose_tasks("transfer", "test"), Path()).averages.keys() == {"transfer"}
    assert not Exam(choose_tasks("STS12,MR", "test"), Path()).averages
    for wanted, message in ((",", "names no task"), ("geometry,nothing", "'nothing' is unknown")):
        with pytest.raises(UserError, match=message):
            choose_tasks(wanted, "test")
    with pytest.raises(UserError, match="a test split only: MR"):
        choose_tasks("MR", "dev")
    with pytest.raises(UserError, match="geometry need the folder"):
        Exam(("geometry",))
    assert judging_room.GROUPS == ("sts", "transfer", "geometry")


def test_globs_name_folders_in_order(tmp_path: Path) -> None:
    for name in ("s2", "s10", "s1"):
        (tmp_path / name).mkdir()
    assert model_names([f"{tmp_path}/s*", f"{tmp_path}/s1/", "x"]) == [
        f"{tmp_path}/{n}" for n in ("s1", "s10", "s2")
    ] + ["x"]
    assert model_names([f"{tmp_path}/s?:avg"]) == [f"{tmp_path}/s1:avg", f"{tmp_path}/s2:avg"]
    (tmp_path / "[x]").mkdir()
    assert model_names([f"{tmp_path}/[x]"]) == [f"{tmp_path}/[x]"]
    with pytest.raises(UserError, match="nothing matches"):
        model_names([f"{tmp_path}/t*"])
