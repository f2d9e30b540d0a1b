"""Plans without data: the lengths that are assumed, and the rows that follow from them."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from configs import base
from simcse_jax.config.resolve import resolve
from simcse_jax.config.schema import DataConfig
from simcse_jax.data.positives import POSITIVES
from simcse_jax.planning.lengths import Lengths, describe, parse_lengths
from simcse_jax.planning.plan import Planner, shapes
from simcse_jax.planning.topologies import Chips
from simcse_jax.system.errors import UserError
from tests.small_models import SMALL_ENCODER


def planner(lengths: Lengths | None, **changes: Any) -> Planner:
    recipe = base.get_config()
    values = {**SMALL_ENCODER, "model.vocab_size": 30522, "eval.data": ""}
    recipe.update_from_flattened_dict(values | {key.replace("__", "."): value for key, value in changes.items()})
    return Planner(resolve(recipe, (), 1, needs_data=False), Chips(tuple(jax.devices()[:1]), 2**30), lengths)


def test_lengths_have_the_mean_and_the_deviation_that_are_given() -> None:
    drawn = Lengths(21.9, 8.9).draw((20_000, 1), 32, seed=0)
    assert (drawn.dtype, drawn.min() >= 3, drawn.max() <= 32) == (np.int32, True, True)
    assert (drawn.mean(), drawn.std()) == (pytest.approx(21.9, abs=0.2), pytest.approx(8.9, abs=0.2))
    assert set(Lengths(32).draw((5, 2), 32, seed=0).ravel()) == {32}


def test_no_flag_reads_the_data_where_there_are_any() -> None:
    there, none = DataConfig(files="text.txt"), DataConfig()
    assert parse_lengths("", there) is None
    assert parse_lengths("", none) == parse_lengths("max", there) == Lengths(32)
    assert parse_lengths("21.9,8.9", there) == Lengths(21.9, 8.9)
    assert parse_lengths("12", there) == Lengths(12)


@pytest.mark.parametrize("value", ["long", "2", "33", "20,x", "20,15", "20,-1", "nan", "20,nan"])
def test_lengths_that_cannot_be_are_refused(value: str) -> None:
    with pytest.raises(UserError, match=f"--lengths={value}"):
        parse_lengths(value, DataConfig())


def test_a_plan_knows_the_teacher_s_width_without_its_vectors(
    tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMCSE_CACHE", str(tmp_path / "cache"))
    keys: Any = {"objective__loss": "none", "model__train_pooler": "avg", "model__pooler": "avg", "teacher__kl": 1.0}
    made = planner(Lengths(32), **keys, teacher__name=str(small_model))
    assert (made.teacher_width, made.views) == (32, 1)
    assert planner(Lengths(32), **keys, teacher__name=str(small_model), teacher__width=8).teacher_width == 8
    assert not list((tmp_path / "cache").glob("teachers"))


@pytest.mark.medium
def test_a_plan_without_data_has_the_rows_of_its_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCSE_CACHE", str(tmp_path / "cache"))
    longest = planner(Lengths(32))
    assert longest.rows == (32,)  # two sentences of 32 tokens fill a row of 64
    assert longest.encoder.architecture.vocab_size == 30522
    # 64 sentences of wiki1m fill 22 to 24 rows, and memory is planned for more.
    wiki = planner(Lengths(21.9, 8.9))
    assert wiki.batches.row_counts[1][0] in (22, 23, 24)
    assert wiki.rows == wiki.batches.planned_rows
    assert "assumed: texts of 32 tokens each" in shapes(longest)[0]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("positive", [name for name, kind in POSITIVES.items() if not kind.predicted])
def test_every_positive_can_be_planned_without_data(positive: str) -> None:
    changes: dict[str, Any] = {"data__positive": positive}
    made = planner(Lengths(20, 5), **changes)
    texts = {"dropout": 1, "columns": 3}.get(positive, 2)
    assert made.batches.examples.texts == texts
    assert ("3 an example" in describe(Lengths(20, 5), made.config)) == (texts == 3)
    pairs = dataclasses.replace(made.config.data, columns="a,b")
    if positive == "columns":
        assert "2 an example" in describe(Lengths(20), dataclasses.replace(made.config, data=pairs))
