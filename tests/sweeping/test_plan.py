"""Plans: every setting checked, folders named, and what a sweep folder takes beside what it holds."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from simcse_jax.config.recipe import read_recipe
from simcse_jax.config.resolve import resolve
from simcse_jax.sweeping.jobs import lock_sweep
from simcse_jax.sweeping.plan import (
    Judging,
    folder_name,
    make_plan,
    merge_plan,
    read_plan,
    require_comparable,
    write_plan,
)
from simcse_jax.system.errors import UserError
from tests.sweeping.made_sweep import demo_plan

ROWS = {"cold": {"objective.temperature": "0.01"}, "warm": {"objective.temperature": "0.1"}}


def test_a_row_is_checked_as_training_would_check_it() -> None:
    plan = demo_plan({"a": {"train.epochs": "0.5", "data.packed": "False"}})
    config, overridden = read_recipe("configs/demo.py", plan.rows[0].overrides)
    settings = resolve(config, overridden, 1).flat()
    assert settings.pop("train.seed") == 0
    assert plan.rows[0].settings == settings
    assert (settings["train.epochs"], settings["train.steps"], settings["data.packed"]) == (0.5, 0, False)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"objective.temprature": "1"}, "temprature"),
        ({"objective.temperature": "warm"}, "objective.temperature=warm"),
        ({"model.dropout": "2"}, "model.dropout = 2.0"),
        ({"model.pooler": "cls", "model.train_pooler": "avg"}, "model.pooler = 'cls'"),
        ({"train.steps": "3", "train.epochs": "1"}, "Exactly one duration"),
    ],
)
def test_a_wrong_setting_names_its_row(overrides: dict[str, str], says: str) -> None:
    with pytest.raises(UserError) as caught:
        demo_plan({"fine": {}, "odd one": overrides})
    assert "row 'odd one' of configs/demo.py" in str(caught.value)
    assert says in str(caught.value)


def test_a_recipe_for_many_devices_is_checked_where_there_is_one() -> None:
    assert demo_plan({"a": {"mesh.data": "16", "mesh.fsdp": "2"}}).rows[0].settings["mesh.data"] == 16


def test_rows_go_before_what_holds_for_all() -> None:
    common = {"train.steps": "5", "model.dropout": "0.3"}
    rows = {"a": {"train.epochs": "2"}, "b": {"model.dropout": "0.2"}}
    plan = make_plan("configs/demo.py", rows, common, (0,), Judging())
    assert plan.rows[0].overrides == {"model.dropout": "0.3", "train.epochs": "2"}
    assert plan.rows[1].overrides == {"train.steps": "5", "model.dropout": "0.2"}


@pytest.mark.parametrize("key", ["model.dropout", "train.steps"])
def test_what_every_row_replaces_is_refused(key: str) -> None:
    rows = {"a": {"train.epochs": "2", "model.dropout": "0.1"}, "b": {"train.examples": "64", "model.dropout": "0.2"}}
    with pytest.raises(UserError, match=f"--config.{key}=3 would change nothing: every row has its own, row 'a'"):
        make_plan("configs/demo.py", rows, {key: "3"}, (0,), Judging())


def test_what_holds_for_all_is_left_out_where_it_has_no_effect() -> None:
    rows = {"dropout": {}, "crop": {"data.positive": "crop"}, "own": {"data.positive": "crop", "data.rate": "0.3"}}
    plan = make_plan("configs/demo.py", rows, {"data.rate": "0.2"}, (0,), Judging())
    assert [row.settings["data.rate"] for row in plan.rows] == [0.1, 0.2, 0.3]
    learned = {"objective.learned_temperature": "True", "objective.learning_rate": "0.01"}
    plan = make_plan("configs/demo.py", {"a": {}, "b": {"objective.loss": "triplet"}}, learned, (0,), Judging())
    assert [row.overrides for row in plan.rows] == [learned, {"objective.loss": "triplet"}]
    with pytest.raises(UserError, match=r"row 'dropout'(.|\n)*data.rate = 0.2 has no effect with data.positive"):
        make_plan("configs/demo.py", {"dropout": {}}, {"data.rate": "0.2"}, (0,), Judging())
    with pytest.raises(UserError, match=r"row 'odd'(.|\n)*data.rate = 0.2 has no effect with data.positive"):
        make_plan("configs/demo.py", rows | {"odd": {"data.rate": "0.2"}}, {}, (0,), Judging())


def test_runs_that_nothing_judges_are_refused() -> None:
    require_comparable(demo_plan({"a": {"eval.data": ""}}, tasks="sts"))
    with pytest.raises(UserError, match="row 'a': nothing judges its runs"):
        require_comparable(demo_plan({"a": {"eval.data": ""}}))


def test_folder_names() -> None:
    assert folder_name("temperature=0.05, batch 64", []) == "temperature=0.05-batch-64"
    assert folder_name("w/o MLP", ["W-O-mlp"]) == "w-o-MLP-2"
    assert folder_name("../..", []) == "row"
    assert folder_name("中文", ["row"]) == "row-2"
    assert len(folder_name("x" * 500, [])) == 80


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = demo_plan(ROWS, tasks="sts")
    assert read_plan(tmp_path) is None
    write_plan(tmp_path / "deep" / "sweep", plan)
    assert read_plan(tmp_path / "deep" / "sweep") == plan


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[" * 100_000,
        lambda text: text.replace('"folder": "cold"', '"folder": "../cold"'),
        lambda text: text.replace('"overrides": {', '"overrides": [], "settings": {', 1),
        lambda text: json.dumps(json.loads(text) | {"rows": []}),
        lambda text: json.dumps(json.loads(text) | {"judging": 1}),
    ],
    ids=range(6),
)
def test_a_torn_or_foreign_plan_is_refused(damage: Callable[[str], str], tmp_path: Path) -> None:
    write_plan(tmp_path, demo_plan(ROWS))
    path = tmp_path / "sweep.json"
    text = path.read_text()
    path.write_text(damage(text))
    assert path.read_text() != text
    with pytest.raises(UserError, match="not the plan of a sweep"):
        read_plan(tmp_path)


def test_seeds_and_rows_are_added(tmp_path: Path) -> None:
    write_plan(tmp_path, demo_plan(ROWS, (0, 1), tasks="sts", data="senteval"))
    plan = merge_plan(tmp_path, demo_plan({"new": {}}, (3,)))
    assert {row.label: row.seeds for row in plan.rows} == {"cold": (0, 1), "warm": (0, 1), "new": (3,)}
    assert plan.judging == Judging("sts", "senteval")
    more = demo_plan({"warm": ROWS["warm"], "new": {}, "cold": ROWS["cold"]}, (4, 0), tasks="transfer")
    assert merge_plan(tmp_path, more).judging == Judging("sts", "senteval")  # not the recipe's own
    plan = merge_plan(tmp_path, more, judges_anew=True)
    assert {row.label: row.seeds for row in plan.rows} == {"warm": (0, 1, 4), "new": (4, 0), "cold": (0, 1, 4)}
    assert plan.judging == Judging("transfer", "senteval")
    assert merge_plan(tmp_path, demo_plan(ROWS), judges_anew=True).judging == Judging()


def test_added_rows_keep_off_the_folders_that_are_there(tmp_path: Path) -> None:
    write_plan(tmp_path, demo_plan({"a b": {}}))
    plan = merge_plan(tmp_path, demo_plan({"a-b": {}, "a b": {}}))
    assert {row.label: row.folder for row in plan.rows} == {"a b": "a-b", "a-b": "a-b-2"}


def test_other_settings_are_refused(tmp_path: Path) -> None:
    write_plan(tmp_path, demo_plan(ROWS))
    with pytest.raises(UserError) as caught:
        merge_plan(tmp_path, demo_plan({"cold": {"objective.temperature": "0.02", "eval.every_steps": "7"}}))
    for words in ("row 'cold'", "objective.temperature: 0.01 there, 0.02 now", "eval.every_steps: 50 there, 7 now"):
        assert words in str(caught.value)
    assert "--workdir=ANOTHER" in str(caught.value)
    write_plan(tmp_path / "synonyms", demo_plan({"a": {"data.positive": "synonym", "data.synonyms": "a.txt"}}))
    (kept,) = demo_plan({"a": {}}).rows
    assert "data.synonyms" not in kept.identity  # or earlier runs would count as unfinished
    with pytest.raises(UserError, match=r"data\.synonyms: 'a\.txt' there, 'b\.txt' now"):
        merge_plan(tmp_path / "synonyms", demo_plan({"a": {"data.positive": "synonym", "data.synonyms": "b.txt"}}))
    other = dataclasses.replace(demo_plan(ROWS), recipe="configs/unsup.py")
    with pytest.raises(UserError, match=r"holds a sweep of configs/demo\.py"):
        merge_plan(tmp_path, other)


def test_a_key_that_had_no_effect_makes_no_other_row(tmp_path: Path) -> None:
    """Such keys were taken once."""
    plan = demo_plan({"dropout": {}})
    old = dataclasses.replace(plan.rows[0], settings=plan.rows[0].settings | {"data.rate": 0.2})
    write_plan(tmp_path, dataclasses.replace(plan, rows=(old,)))
    assert merge_plan(tmp_path, plan).rows[0].settings["data.rate"] == 0.2


def test_layout_may_change_and_finished_runs_stay_finished(tmp_path: Path) -> None:
    write_plan(tmp_path, demo_plan({"a": {}}))
    plan = merge_plan(tmp_path, demo_plan({"a": {"train.groups_at_once": "1"}}))
    assert plan.rows[0].overrides == {"train.groups_at_once": "1"}
    assert plan.rows[0].identity == demo_plan({"a": {}}).rows[0].identity


def test_a_key_that_a_later_version_adds_makes_no_other_sweep(tmp_path: Path) -> None:
    plan = demo_plan({"a": {}})
    older = {key: value for key, value in plan.rows[0].settings.items() if key != "objective.symmetric"}
    write_plan(tmp_path, dataclasses.replace(plan, rows=(dataclasses.replace(plan.rows[0], settings=older),)))
    assert merge_plan(tmp_path, plan).rows[0].settings == older
    with pytest.raises(UserError, match="symmetric"):
        merge_plan(tmp_path, demo_plan({"a": {"objective.symmetric": "True"}}))


def test_one_sweep_at_a_time_and_what_a_killed_one_left_counts(tmp_path: Path) -> None:
    def refused() -> str:
        with pytest.raises(UserError, match="in use by another sweep") as caught, lock_sweep(tmp_path):
            pass
        return str(caught.value)

    with lock_sweep(tmp_path) as lock:
        assert str(os.getpid()) in refused()
        left = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock.handle,))
        lock.note_holders(left.pid)
    assert str(left.pid) in refused()  # this process let go of it, and the command that it had started did not
    left.communicate(b"\n")
    with lock_sweep(tmp_path):
        pass
