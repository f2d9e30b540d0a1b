"""What the schema says of each key holds: defaults, types, limits, and what the help prints."""

import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from simcse_jax.config import keys
from simcse_jax.config.help import help_text
from simcse_jax.config.keys import Key, When
from simcse_jax.config.recipe import read_recipe
from simcse_jax.config.resolve import require_in_range
from simcse_jax.config.schema import KEYS, LAYOUT_KEYS, defaults, find_key
from simcse_jax.system.errors import UserError
from tests.config.recipes import COMPANIONS, in_effect, other_value, recipe, resolved

ROOT = Path(__file__).parents[2]


def step(key: Key, bound: float) -> float:
    """Return the smallest distance between two values."""
    return 1 if key.type is int else max(abs(bound), 1.0) * 1e-9


def limits() -> list[tuple[str, Any, bool]]:
    """Return (key, value, whether it is allowed) for every bound and the values just inside and outside it."""
    found: list[tuple[str, Any, bool]] = []
    for key in KEYS.values():
        bounds = ((key.at_least, 1, True), (key.above, 1, False), (key.below, -1, False))
        for bound, inwards, allowed in bounds:
            if bound is not None:
                near = step(key, bound) * inwards
                values = ((bound, allowed), (bound + near, True), (bound - near, bound - near in key.also))
                found += [(key.name, key.type(value), ok) for value, ok in values]
        found += [(key.name, value, True) for value in (*key.also, *key.choices)]
        if key.choices:
            found.append((key.name, "no such" if key.type is str else max(key.choices) + 1, False))
    return found


@pytest.mark.parametrize(("name", "value", "allowed"), limits())
def test_a_value_at_its_limit_is_allowed_and_one_beyond_is_refused(name: str, value: Any, allowed: bool) -> None:
    if allowed:
        require_in_range(name, value)
        return
    with pytest.raises(UserError, match=rf"^{name} = {value!r}: must be .*\n.*--config.{name}=(.*)$") as refused:
        require_in_range(name, value)
    works = str(refused.value).rpartition("=")[2]
    require_in_range(name, KEYS[name].type(works))  # the way out works


@pytest.mark.parametrize("key", [key for key in KEYS.values() if key.type is float], ids=lambda key: key.name)
def test_a_number_is_finite(key: Key) -> None:
    for value in (math.inf, -math.inf, math.nan):
        with pytest.raises(UserError, match=key.name):
            require_in_range(key.name, value)


@pytest.mark.parametrize("key", KEYS.values(), ids=lambda key: key.name)
def test_every_key_takes_its_default_and_another_value_and_is_explained(key: Key) -> None:
    assert type(key.default) is key.type
    assert key.meaning[-1:] == "."
    require_in_range(key.name, key.default)
    if key.name.startswith("train.") and key.name.endswith(("steps", "epochs", "examples")):
        return  # durations exclude each other
    values = in_effect(key) | COMPANIONS.get((key.name, other_value(key)), {}) | {key.name: other_value(key)}
    needs = {"model.pooler": "cls", "data.positive": "columns", "objective.loss": "triplet"}
    values[key.name] = needs.get(key.name, values[key.name])
    of_mixtures = ("data.mixing", "data.mixing_temperature")
    if key.name not in (*of_mixtures, "model.dtype", "mesh.data", "mesh.fsdp", "data.row_length", "model.tokenizer"):
        assert resolved(values).flat()[key.name] == values[key.name]


def test_the_base_recipe_is_the_schema() -> None:
    made = recipe().to_dict()
    flat = {f"{section}.{name}": value for section, keys in made.items() for name, value in keys.items()}
    assert flat == defaults() | {"data.files": "sentences.txt"}


def test_layout_is_a_part_of_what_may_change_in_a_run() -> None:
    resumable = {name for name, key in KEYS.items() if key.layout or key.resumable}
    assert {"mesh.data", "train.groups_at_once", "objective.tile", "model.remat"} <= LAYOUT_KEYS < resumable
    assert {"eval.data", "eval.every_steps", "data.files"} <= resumable - LAYOUT_KEYS
    assert not resumable & {"train.seed", "train.batch_size", "model.dtype", "optimizer.learning_rate"}
    assert {
        name for name, key in KEYS.items() if key.local
    } <= resumable  # a path may differ between hosts where its content alone counts


def test_the_help_prints_every_key_with_default_range_and_meaning() -> None:
    text = help_text()
    words = " ".join(text.split())
    for key in KEYS.values():
        default = f'"{key.default}"' if key.type is str else f"{key.default}"
        assert f"{key.name} = {default} [{key.type.__name__}" in words
        assert key.limit in words
        assert key.meaning in words
    assert "Has an effect only with objective.learned_temperature set." in words
    assert max(map(len, text.splitlines())) <= 140


def test_a_declaration_of_several_limits_reads_as_one() -> None:
    declared: Any = keys.key(3, "Meaning.", at_least=2, below=9, also=(-1,), effective=When("a.b"))
    made = dataclasses.replace(declared.metadata["key"], name="c.d", type=int)
    assert made.limit == "at least 2 and below 9, or -1"
    assert [value for value in range(-2, 11) if made.allows(value)] == [-1, *range(2, 9)]
    assert made.effects() == [("a.b", None)]


def test_docs_name_no_key_that_is_none() -> None:
    """Flags in README and docs are keys of the schema."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for name in re.findall(r"--config\.([a-z_0-9]+(?:\.[a-z_0-9]+)+)", page.read_text(encoding="utf-8")):
            assert find_key(name), f"{page.name}: --config.{name}"


def test_the_help_is_a_flag_and_a_wrong_key_without_a_recipe_points_to_it() -> None:
    """The default recipe is read before the flags are."""
    train = f"{sys.executable} -m simcse_jax.train"
    script = f"{train} --help-config | head -n 1; {train} --config.objectiv.margin=3"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("Keys of a recipe")
    assert done.returncode == 2
    assert "--config.objectiv.margin: " in done.stderr
    assert "Did you mean --config.objective.margin?" in done.stderr
    assert "--help-config" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["faq", "pears"])  # the second is like one that there is
def test_a_flag_of_a_source_that_the_recipe_lacks_is_named_whole(name: str) -> None:
    with pytest.raises(
        UserError, match=rf"no such key: --config\.data\.sources\.{name}\.files\n(.|\n)*recipe adds a source"
    ):
        read_recipe("configs/mixture.py", {"data.sources.pairs.weight": "2", f"data.sources.{name}.files": "x.csv"})
