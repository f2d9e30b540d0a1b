"""Keys without effect are refused, and differences are those that change what is trained."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from simcse_jax.config.compare import differences
from simcse_jax.config.keys import Key
from simcse_jax.config.schema import KEYS, defaults
from simcse_jax.system.errors import UserError
from simcse_jax.training.loop import train
from tests.config.recipes import COMPANIONS, in_effect, other_value, resolved
from tests.small_models import prepare_small

RESUMABLE = {name for name, key in KEYS.items() if key.layout or key.resumable}  # may change where a run resumes
IDLE = [
    pytest.param(key, name, effective, id=f"{key.name}-{name}")
    for key in KEYS.values()
    for name, effective in key.effects()
]


@pytest.mark.parametrize(("key", "other", "effective"), IDLE)
def test_a_key_without_effect_is_refused(key: Key, other: str, effective: tuple[Any, ...] | None) -> None:
    value = other_value(key)
    works = in_effect(key) | {key.name: value}
    assert resolved(works).flat()[key.name] == value

    decider = KEYS[other]
    idle = decider.default if effective is None or decider.default not in effective else None
    idle = "" if effective is None and isinstance(idle, str) else idle
    if idle is None:
        idle = next(choice for choice in decider.choices if choice not in (effective or ()))
    values = works | COMPANIONS.get((other, idle), {}) | {other: idle}
    with pytest.raises(
        UserError, match=rf"{key.name} = {value!r} has no effect with {other} = {idle!r}(.|\n)*--config"
    ):
        resolved(values)


def test_a_key_without_effect_is_no_difference() -> None:
    """Earlier versions did not refuse it, and such runs go on."""
    old = resolved().flat() | {"data.rate": 0.2, "objective.margin": 0.3}
    assert differences(old, resolved().flat()) == {}
    crop = resolved({"data.positive": "crop"}).flat()
    assert differences(crop | {"data.rate": 0.2}, crop) == {"data.rate": (0.2, 0.1)}


@pytest.mark.parametrize("key", KEYS.values(), ids=lambda key: key.name)
def test_a_run_resumes_with_other_layout_and_with_nothing_else(key: Key) -> None:
    old, value = defaults(), other_value(key)
    expected = {} if key.name in RESUMABLE else {key.name: (key.default, value)}
    assert differences(old, old | {key.name: value}) == expected


def test_a_recipe_of_an_earlier_version_lacks_keys() -> None:
    old = {name: value for name, value in defaults().items() if not name.startswith(("mlm.", "model.cutoff"))}
    assert differences(defaults() | old, defaults()) == {}
    assert differences(old, defaults() | {"mlm.weight": 0.1})["mlm.weight"] == (None, 0.1)
    # Against nothing, every key that changes what is trained counts: what a model's identity is made of.
    assert differences({}, defaults()).keys() == KEYS.keys() - RESUMABLE


@pytest.mark.medium
def test_a_run_resumes_where_all_of_its_layout_and_the_places_of_its_files_changed(
    small_run: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(small_run, tmp_path / "run")
    old = json.loads((workdir / "config.json").read_text())["recipe"]
    moved = {name: str(shutil.copy(old[name], tmp_path)) for name in ("data.files", "eval.data")}
    changed: dict[str, Any] = moved | {
        "data.cache_dir": str(tmp_path / "cache"),
        "data.packed": False,
        "data.row_length": 48,
        "model.unroll": "off",
        "model.attention": "plain",
        "model.remat": True,
        "train.groups_at_once": 1,
        "train.log_every_steps": 3,
        "train.trackers": "wandb",
        "objective.tile": 0,
        "eval.every_steps": 1,
        "eval.patience": 5,
        "checkpoint.every_steps": 3,
        "checkpoint.keep": 3,
        "checkpoint.keep_every_steps": 1,
        "mesh.data": 2,
        "mesh.fsdp": 2,
    }
    assert changed.keys() == RESUMABLE - {"data.synonyms", "mlm.validation", "teacher.name"}
    assert not [name for name, value in changed.items() if old[name] == value]
    del changed["data.cache_dir"]
    flags = {name.replace(".", "__"): value for name, value in changed.items()}
    outcome = train(prepare_small(workdir, tmp_path / "cache", **flags), workdir)
    assert outcome.step == old["train.steps"]
    with pytest.raises(UserError, match=r"train\.seed: 0 there, 1 now"):
        prepare_small(workdir, tmp_path / "cache", **flags, train__seed=1)
