"""Test the evaluate command as a user runs it: tables, scores.json, report.html, and what goes wrong."""

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
from scipy import stats

from simcse_jax.embedding_model import open_model
from simcse_jax.evaluate import model_names
from simcse_jax.evaluation.graded_pairs import load_graded_pairs
from simcse_jax.evaluation.results import Encode, Score
from simcse_jax.evaluation.senteval import senteval_folder
from simcse_jax.evaluation.sts import TASKS, YEARS, evaluate_sts, load_sts
from simcse_jax.evaluation.suite import TaskSuite, choose_tasks
from simcse_jax.judging import judge_models, report_run, require_writable, write_results
from simcse_jax.runs.metrics import read_metrics
from simcse_jax.system.errors import UserError
from tests.conftest import MakeOnce
from tests.small_models import export_small, train_small
from tests.small_senteval import write_senteval

ROOT = Path(__file__).parent.parent
MODELS = ("a", "b", "run-seed0", "run-seed1")


@pytest.fixture(scope="session")
def place(make_once: MakeOnce, small_model: Path, small_run: Path) -> Path:
    """Make a folder with two models, `a` and `b`, a run, the same with another seed, and `senteval`. Shared."""

    def make(folder: Path) -> None:
        shutil.copytree(small_model, folder / "a")
        shutil.move(export_small(folder / "made", seed=1), folder / "b")
        shutil.copytree(small_run, folder / "run-seed0")
        train_small(folder / "run-seed1", folder / "cache", train__seed=1)
        write_senteval(folder / "senteval")

    return make_once("evaluate", make)


@pytest.fixture(scope="session")
def out(make_once: MakeOnce, place: Path) -> Path:
    """Evaluate both models and both runs into a folder. Shared."""

    def make(folder: Path) -> None:
        models = [open_model(str(place / name)) for name in MODELS]
        suite = TaskSuite((*TASKS, "geometry"), place / "senteval", pairs=("demo:dev",))
        scores, report = write_results(judge_models(models, suite), folder)
        assert (scores.name, report.name) == ("scores.json", "report.html")

    return make_once("evaluate-out", make)


@pytest.fixture
def written(out: Path) -> dict[str, Any]:
    """Read scores.json of these models."""
    return json.loads((out / "scores.json").read_text())


def evaluate(*flags: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "simcse_jax.evaluate", *flags]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.medium
def test_scores_json_has_what_others_rely_on(written: dict[str, Any], out: Path, place: Path) -> None:
    model = open_model(str(place / "a"))
    for task in TASKS:
        expected = evaluate_sts(model.encode, load_sts(place / "senteval", task), task)
        assert written["scores"][task][expected.headline] == pytest.approx(expected.value, abs=1e-2)
        assert written["protocol"]["tasks"][task].items() >= expected.protocol.items()
    headline = [written["scores"][task]["all" if task in YEARS else "spearman"] for task in TASKS]
    assert written["average"] == {"sts": pytest.approx(np.mean(headline), abs=1e-5)}
    assert f"{written['average']['sts']:.2f}" in (out / "report.html").read_text()
    protocol = written["protocol"]
    assert protocol["fingerprint"] == model.fingerprint
    assert (protocol["pooler"], protocol["precision"]) == ("avg", "float32")
    assert {"truncation", "date", "simcse_jax"} <= protocol.keys()
    assert [model["model"] for model in written["models"]] == [str(place / name) for name in MODELS]
    assert all("demo:dev" in model["scores"] and not model["failures"] for model in written["models"])
    assert [bool(model["geometry_before_training"]) for model in written["models"]] == [False, False, True, True]
    space = written["models"][2]["geometry"]
    assert 1 <= space["effective_rank"] <= 16
    assert space["protocol"]["close above"] == 4  # of STS-B's scale, 0 to 5


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


@pytest.mark.parametrize("pooler", ["cls", "cls_before_pooler", "avg"])
def test_scores_are_of_the_pooler_that_is_named(place: Path, pooler: str) -> None:
    """Against transformers' vectors of the same folder, pooled by definition."""
    from transformers import AutoModel, AutoTokenizer

    from tests.torch_models import torch_embeddings

    pairs = load_graded_pairs("demo:dev")
    tokenizer, peer = AutoTokenizer.from_pretrained(place / "a"), AutoModel.from_pretrained(place / "a").eval()
    inputs = tokenizer(pairs.first + pairs.second, padding=True, truncation=True, max_length=64, return_tensors="pt")
    vectors = torch_embeddings(peer, inputs["input_ids"], inputs["attention_mask"], pooler).detach().numpy()
    u, v = np.split(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), 2)
    results = judge_models([open_model(str(place / "a"), pooler)], TaskSuite((), pairs=("demo:dev",)))
    score = results.models[0].scores["demo:dev"]
    assert score.cosines == pytest.approx((u * v).sum(1), abs=1e-5)
    expected: Any = stats.spearmanr((u * v).sum(1), pairs.gold)
    assert score.value == pytest.approx(100 * expected.statistic, abs=0.05)


def test_classifiers_get_vectors_as_they_are_pooled(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SentEval does not scale them to length 1, which would change its scores."""
    seen: list[np.ndarray] = []

    def evaluate_transfer(encode: Encode, folder: Path, task: str, fast: bool, progress: bool) -> Score:
        assert (folder, fast, progress) == (place, True, False)
        seen.append(encode(["a dog", "music"]))
        return Score(task, "accuracy", {"accuracy": 50.0}, {})

    monkeypatch.setattr("simcse_jax.evaluation.transfer.evaluate_transfer", evaluate_transfer)
    model = open_model(str(place / "a"))
    expected = model.encode(["a dog", "music"], normalize=False)
    judge_models([model], TaskSuite(("MR",), place, fast=True))
    np.testing.assert_array_equal(seen[0], expected)
    assert not np.allclose(np.linalg.norm(expected, axis=1), 1, atol=0.05)


@pytest.mark.slow
def test_command(place: Path, tmp_path: Path) -> None:
    """Two poolers of a model, a task that fails and others that do not, and pairs of the user's own."""
    shutil.copytree(place / "senteval", tmp_path / "senteval")
    gold = tmp_path / "senteval" / "STS" / "STS14-en-test" / "STS.gs.images.txt"
    gold.write_text(gold.read_text().replace(gold.read_text().splitlines()[3], "good", 1))
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text(
        "5\tA man sings.\tA man is singing.\n1\tA dog runs.\tMusic is loud.\n3\tA cat sits.\tA dog sits.\n"
    )
    flags = ["--model=a:cls", "--model=a", "--pooler=cls_before_pooler", "--tasks=sts-13,STS14,TREC"]
    done = evaluate(*flags, f"--data={tmp_path / 'senteval'}", f"--pairs={pairs}", f"--out={tmp_path}", cwd=place)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "a:cls is judged with the pooler cls, as asked" in done.stdout
    assert "a is judged with the pooler cls_before_pooler, as asked" in done.stdout
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert set(scores["scores"]) == {str(pairs), "STS13"}
    assert f"{scores['scores']['STS13']['all']:.2f}" in done.stdout
    assert set(scores["failures"]) == {"STS14", "TREC"}
    assert "STS.gs.images.txt, line 4" in done.stdout
    assert scores["average"] == {}
    assert scores["protocol"]["pooler from"].endswith("avg")
    assert "STS14" in (tmp_path / "report.html").read_text()


@pytest.mark.medium
def test_command_judges_a_run_into_its_own_folder(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "run-seed1", tmp_path / "run")
    done = evaluate("--model=run", "--pairs=demo:test", "--max_length=9999", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--max_length=9999, and run takes" in done.stdout
    scores = json.loads((tmp_path / "run" / "evaluation" / "scores.json").read_text())
    assert list(scores["scores"]) == ["demo:test"]
    assert scores["geometry"]["protocol"]
    assert (tmp_path / "run" / "evaluation" / "report.html").is_file()
    assert scores["geometry_before_training"]["protocol"]["weights"] == "random, seed 1"
    assert "before training" in done.stdout


@pytest.mark.medium
def test_command_writes_a_sheet_to_grade(place: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("".join(f"Sentence {n} of many.\n" for n in range(40)))
    flags = (f"--model={place / 'a'}", "--text=text.txt", "--sample_pairs=12", "--out=sheet.csv")
    refused = evaluate(*flags, "--tasks=sts", cwd=tmp_path)
    assert refused.returncode == 2
    assert "--tasks" in refused.stderr
    done = evaluate(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    header, *rows = (tmp_path / "sheet.csv").read_text().splitlines()
    assert header == "score,sentence1,sentence2"
    assert len(rows) == 12


def test_wrong_values_are_named(place: Path) -> None:
    a = str(place / "a")
    for wrong, names in (
        (lambda: model_names([]), "--model"),
        (lambda: open_model("nowhere/at/all"), "nowhere/at/all"),
        (lambda: model_names([f"{a}:mean"]), "(?s)'mean'.*avg_top2"),
        (lambda: model_names([f"{place}/zz*"]), r"zz\*"),
        (lambda: senteval_folder("/nowhere"), "--data=/nowhere"),
        (lambda: senteval_folder(a), "--data="),
        (lambda: open_model(a, "mean"), "(?s)mean.*avg_top2"),
        (lambda: require_writable(Path("/proc/x")), "--out=/proc/x"),
    ):
        with pytest.raises(UserError, match=names):
            wrong()


def test_one_run_with_two_poolers_is_two_entries(place: Path, tmp_path: Path) -> None:
    name = str(place / "run-seed0")
    models = [open_model(name), open_model(name, "cls_before_pooler")]
    models[1].name = f"{name}:cls_before_pooler"
    write_results(judge_models(models, TaskSuite((), pairs=("demo:dev",))), tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["runs"] == []
    assert [d["other"] for d in scores["differences"]] == [f"{name}:cls_before_pooler"]
    assert "asked for" in (tmp_path / "report.html").read_text()


@pytest.mark.medium
def test_a_finished_run_gets_a_report(place: Path, tmp_path: Path) -> None:
    """Its best step may be 0, and then training changed nothing."""
    run = Path(shutil.copytree(place / "run-seed0", tmp_path / "run"))
    assert "demo:dev" in report_run(run, "demo:dev")
    page = (run / "report.html").read_text()
    scores = {line["step"]: line["dev/spearman"] for line in read_metrics(run) if "dev/spearman" in line}
    assert 'id="geometry"' in page
    assert ("changed nothing" in page) is (max(scores, key=lambda step: scores[step]) == 0)
    assert "demo:dev" not in report_run(run, "")
    page = (run / "report.html").read_text()
    assert (run / "training_curves.png").is_file()
    assert "scores.json" not in page
    assert 'id="geometry"' not in page


def test_broken_weights_fail_their_model_alone(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "b", tmp_path / "nan")
    weights = load_file(tmp_path / "nan" / "model.safetensors")
    weights["encoder.layer.0.output.dense.weight"][:] = np.nan
    save_file(weights, tmp_path / "nan" / "model.safetensors", metadata={"format": "pt"})
    shutil.copytree(place / "b", tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"\0" * 100)
    models = [open_model(str(folder)) for folder in (tmp_path / "nan", tmp_path / "cut", place / "a")]
    results = judge_models(models, TaskSuite(("STS13", "geometry"), place / "senteval"))
    nan, cut, good = results.models
    assert set(nan.failures) == set(cut.failures) == {"STS13", "geometry"}
    assert "NaN" in nan.failures["STS13"]
    assert "model.safetensors" in cut.failures["STS13"]
    assert set(good.scores) == {"STS13"}
    write_results(results, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["models"][2]["scores"]


def test_tasks_by_group_and_name() -> None:
    assert choose_tasks("geometry,sts", "test") == (*TASKS, "geometry")
    assert choose_tasks("STS-B, mr,sickr", "test") == ("STSBenchmark", "SICKRelatedness", "MR")
    assert choose_tasks("sts", "dev") == ("STSBenchmark", "SICKRelatedness")
    assert TaskSuite(choose_tasks("transfer", "test"), Path()).averages.keys() == {"transfer"}
    assert not TaskSuite(choose_tasks("STS12,MR", "test"), Path()).averages
    for wanted, split, message in ((",", "test", "--tasks=,"), ("sts,STS11", "test", "STS11"), ("MR", "dev", "MR")):
        with pytest.raises(UserError, match=message):
            choose_tasks(wanted, split)
    with pytest.raises(UserError, match="geometry"):
        TaskSuite(("geometry",))


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
