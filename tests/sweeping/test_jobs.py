"""Jobs: the commands they are, when they count as done, what they leave, and their line for a shell."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from simcse_jax.sweeping.jobs import Command, Job, make_jobs, require_models
from simcse_jax.sweeping.plan import Judging
from simcse_jax.system.errors import UserError
from tests.sweeping.made_sweep import demo_plan


def finished(job: Job) -> Job:
    """Make the folders of a finished run, mark the job as done, and return it."""
    for name in ("checkpoints", "model", "evaluation"):
        (job.run / name).mkdir(parents=True, exist_ok=True)
    for step in job.commands:
        step.record()
    return job


def test_seeds_come_together_so_that_early_tables_compare_all_rows(tmp_path: Path) -> None:
    plan = demo_plan({"a": {}, "b": {"model.dropout": "0.2"}}, (0, 1))
    later = dataclasses.replace(plan.rows[1], seeds=(1, 4))
    jobs = make_jobs(tmp_path, dataclasses.replace(plan, rows=(plan.rows[0], later)))
    assert [job.name for job in jobs] == ["a, seed 0", "a, seed 1", "b, seed 1", "b, seed 4"]
    assert jobs[2].run == tmp_path / "b" / "seed-1"


@pytest.mark.parametrize("python", [".venv/bin/python", "/usr/bin/python3"])
def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: str) -> None:
    """Lines for a cluster do not say where this folder lies, unless they must."""
    monkeypatch.setattr(sys, "executable", str(Path.cwd() / python))
    plan = demo_plan({"a": {"data.files": "a b.txt", "model.dropout": "0.2"}}, (3,))
    judging = Judging("sts,geometry", "senteval", ("mine.tsv", "retrieval:x:split=dev"), fast=True)
    (job,) = make_jobs(tmp_path, dataclasses.replace(plan, judging=judging))
    train, judge = (step.arguments for step in job.commands)
    run = tmp_path / "a" / "seed-3"
    assert train == [
        *(python, "-m", "simcse_jax.train", "--config=configs/demo.py", f"--workdir={run}"),
        *("--config.data.files=a b.txt", "--config.model.dropout=0.2", "--config.train.seed=3"),
    ]
    assert judge == [
        *(python, "-m", "simcse_jax.evaluate", f"--model={run / 'model'}", f"--out={run / 'evaluation'}"),
        *("--tasks=sts,geometry", "--data=senteval", "--pairs=mine.tsv", "--retrieval=x:split=dev", "--fast"),
    ]


def test_done_is_what_was_done_with_these_settings(tmp_path: Path) -> None:
    plan = demo_plan({"a": {}}, (0,), tasks="sts")
    (job,) = make_jobs(tmp_path, plan)
    assert not any((job.trained, job.judged, job.done))
    job.run.mkdir(parents=True)
    job.commands[0].record()
    assert job.trained
    assert not job.done
    assert finished(job).done
    assert len({job.commands[0].digest for job in make_jobs(tmp_path, demo_plan({"a": {}}, (0, 1, 2)))}) == 3
    (moved,) = make_jobs(tmp_path, dataclasses.replace(plan, judging=Judging("sts", "elsewhere")))
    assert moved.done, "where the data lies is no reason to judge again"
    (other,) = make_jobs(tmp_path, dataclasses.replace(plan, judging=Judging("sts,transfer")))
    assert other.trained
    assert not other.judged
    (warm,) = make_jobs(tmp_path, demo_plan({"a": {"objective.temperature": "0.1"}}, (0,)))
    assert not warm.trained
    (cached,) = make_jobs(tmp_path, demo_plan({"a": {"data.cache_dir": "elsewhere"}}, (0,)))
    assert cached.trained


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        ("all", {"checkpoints", "model", "evaluation"}),
        ("model", {"model", "evaluation"}),
        ("scores", {"evaluation"}),
    ],
)
def test_what_is_kept(keep: str, left: set[str], tmp_path: Path) -> None:
    (job,) = make_jobs(tmp_path, demo_plan({"a": {}}, (0,)), keep)
    finished(job)
    assert job.done == (keep == "all")
    job.delete()
    assert job.done
    assert {path.name for path in job.run.iterdir() if path.is_dir()} == left


def test_a_run_without_its_model_cannot_be_judged_again(tmp_path: Path) -> None:
    plan = demo_plan({"a": {}}, (0,), tasks="sts")
    (job,) = make_jobs(tmp_path, plan, "scores")
    finished(job).delete()
    require_models([job])
    with pytest.raises(UserError, match="--keep=scores"):
        require_models(make_jobs(tmp_path, dataclasses.replace(plan, judging=Judging("transfer"))))


def test_a_line_does_what_is_left_in_a_shell(tmp_path: Path) -> None:
    run = tmp_path / "a folder's name"
    run.mkdir()
    step = Command("train", ["mkdir", str(run / "made")], run / "mark", "0a1b")

    def shell(line: str) -> int:
        return subprocess.run(["bash"], input=line, text=True, capture_output=True).returncode

    assert shell(step.line) == 0
    assert step.done
    (run / "made").rmdir()
    assert shell(step.line) == 0
    assert not (run / "made").exists(), "what is done is not done again"
    assert shell(step._replace(digest="2c3d").line) == 0
    assert (run / "made").exists(), "what was done was another thing"
    failing = step._replace(mark=run / "other")
    assert shell(f"{failing.line} && touch '{tmp_path}/after'") == 1
    assert not failing.done
    assert not (tmp_path / "after").exists()


def test_the_line_of_a_job_ends_with_what_is_deleted(tmp_path: Path) -> None:
    (job,) = make_jobs(tmp_path, demo_plan({"a": {}}, (0,), tasks="sts"), "scores")
    assert job.line.count(" -m simcse_jax.") == 2
    assert job.line.endswith(f" && rm -rf {job.run}/checkpoints {job.run}/model")
    assert "\n" not in job.line
