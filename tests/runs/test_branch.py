"""States that are kept, and runs that go on from one of them in a folder of their own."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from simcse_jax.config.resolve import resolve
from simcse_jax.model_folder.run_folder import complete_steps, load_run_params
from simcse_jax.runs.branch import Branch, parse_branch, start_branch
from simcse_jax.runs.metrics import read_metrics
from simcse_jax.system.errors import UserError
from simcse_jax.training.checkpoint import Checkpoints, RunProgress
from simcse_jax.training.loop import train
from tests.conftest import MakeOnce
from tests.small_models import prepare_small, small_recipe, train_small
from tests.training.test_checkpoint import state

CHANGES: dict[str, Any] = {"data__packed": False, "train__steps": 8, "checkpoint__keep_every_steps": 3}
RECIPE = resolve(small_recipe(**CHANGES), (), 8)


@pytest.fixture(scope="module")
def whole(make_once: MakeOnce) -> Path:
    """Return the folder of a finished run that has kept some states; leave it as it is."""
    return make_once("kept", lambda folder: train_small(folder / "run", folder / "cache", **CHANGES)) / "run"


def without_times(workdir: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if not k.endswith("_s")} for line in read_metrics(workdir)]


@pytest.mark.medium
def test_a_branch_ends_as_the_run_it_began_with_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    assert complete_steps(whole / "checkpoints" / "last") == [3, 6, 8]
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    branch, folder = Branch(whole, 3), tmp_path / "branch"
    folder.mkdir()
    start_branch(branch, folder, RECIPE)
    outcome = train(prepare_small(folder, whole.parent / "cache", **CHANGES), folder)
    assert (outcome.first_step, outcome.step) == (3, 8)
    assert without_times(folder) == without_times(whole)
    jax.tree.map(np.testing.assert_array_equal, load_run_params(folder)[0], load_run_params(whole)[0])
    start_branch(branch, folder, RECIPE)  # the same command once more: nothing is undone
    assert complete_steps(folder / "checkpoints" / "last")[-1] == 8
    with pytest.raises(UserError, match="did not begin with step 8"):
        start_branch(Branch(whole, 8), folder, RECIPE)
    assert before == {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}


@pytest.mark.medium
def test_without_the_best_of_its_time_a_branch_has_the_best_from_there_on(whole: Path, tmp_path: Path) -> None:
    start_branch(Branch(whole, 6), tmp_path, RECIPE)
    shutil.rmtree(tmp_path / "checkpoints" / "best")
    train(prepare_small(tmp_path, whole.parent / "cache", **CHANGES), tmp_path)
    assert load_run_params(tmp_path)[1]["step"] == 8


def test_a_state_that_is_not_kept_is_refused_with_those_that_are(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no state of step 4; it has 3, 6, 8"):
        start_branch(Branch(whole, 4), tmp_path, RECIPE)
    with pytest.raises(UserError, match="nothing holds no run"):
        start_branch(Branch(tmp_path / "nothing", 4), tmp_path, RECIPE)
    with pytest.raises(UserError, match=r"train\.seed: 0 there, 1 now"):
        start_branch(Branch(whole, 6), tmp_path, resolve(small_recipe(**CHANGES, train__seed=1), (), 8))
    assert not list(tmp_path.iterdir())


def test_the_newest_states_are_kept_and_each_that_divides_by_the_period(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=3, keep_every_steps=4) as checkpoints:
        for step in range(1, 10):
            checkpoints.finish(state(step), RunProgress())
    assert complete_steps(tmp_path / "checkpoints" / "last") == [4, 7, 8, 9]


def test_a_start_that_was_killed_before_the_state_was_copied_begins_again(whole: Path, tmp_path: Path) -> None:
    start_branch(Branch(whole, 3), tmp_path, RECIPE)
    (last,) = (tmp_path / "checkpoints" / "last").iterdir()
    last.rename(last.with_name("3.partial"))
    (tmp_path / "checkpoints" / "best" / "7").mkdir()
    start_branch(Branch(whole, 3), tmp_path, RECIPE)
    assert complete_steps(tmp_path / "checkpoints" / "last") == [3]
    assert not (tmp_path / "checkpoints" / "best" / "7").exists()
    assert json.loads((tmp_path / "resumed_from.json").read_text())["step"] == 3


def test_a_state_is_named_by_its_step_or_its_run_and_step(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert parse_branch("500", run) == (Branch(run, 500), tmp_path / "run-from-500")
    assert parse_branch("500", Path())[1] == Path(f"{Path.cwd()}-from-500")
    assert parse_branch(f"{run}@500", tmp_path / "new") == (Branch(run, 500), tmp_path / "new")
    for wrong, says in (("last", "must be a step"), (f"{run}@last", "must be a step"), (f"{run}@5", "another folder")):
        with pytest.raises(UserError, match=says):
            parse_branch(wrong, run)
