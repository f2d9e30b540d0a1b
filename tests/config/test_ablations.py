"""The ablations: every row is a recipe that resolves, and differs from the others."""

import itertools
from pathlib import Path

import pytest

from configs import small
from simcse_jax.config.recipe import read_recipe, recipe_module
from simcse_jax.config.resolve import resolve
from simcse_jax.system.errors import UserError

FOLDER = Path(__file__).parents[2] / "configs" / "ablations"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "start"))
# What "small" is given by its user, and data that a row asks for.
GIVEN = {"data.files": "text.txt", "eval.data": "dev.csv"}


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        *itertools.product(NAMES, ("full", "small")),
        *itertools.product(("labelled_data", "hard_negative_weight"), ("full-neutral", "small-neutral")),
    ],
)
def test_every_row_is_a_recipe_of_its_own(name: str, variant: str) -> None:
    path = str(FOLDER / f"{name}.py")
    module, arguments = recipe_module(f"{path}:{variant}")
    rows, own = module.rows(*arguments), module.get_config(*arguments)
    assert len(rows) >= 4
    assert own.eval.data, "rows are compared by dev scores"
    seen = []
    for label, overrides in rows.items():
        given = {key: str(value) for key, value in {**GIVEN, **overrides}.items()}
        recipe, overridden = read_recipe(f"{path}:{variant}", given)
        settings = resolve(recipe, overridden, 1).flat()
        assert settings not in seen, label
        seen.append(settings)
        if variant.startswith("small"):
            steps = small.STEPS // 3 if own.data.positive == "columns" else small.STEPS
            assert settings["train.steps"] == steps or settings["train.examples"] == small.STEPS * 64
    reference = resolve(*read_recipe(f"{path}:{variant}", GIVEN), 1)
    assert seen[0] == reference.flat()  # the first row is the recipe itself
    with pytest.raises(UserError, match="no variant 'tiny'"):
        module.get_config("tiny")


@pytest.mark.parametrize(
    ("variant", "first"),
    [
        ("full", ("cls", "cls_before_pooler")),
        ("full-sup", ("cls", "cls")),
        ("small", ("avg", "avg")),
        ("small-sup", ("avg", "avg")),
    ],
)
def test_poolers_start_from_the_recipes_own(variant: str, first: tuple[str, str]) -> None:
    module, arguments = recipe_module(f"{FOLDER / 'pooling.py'}:{variant}")
    assert (module.get_config(*arguments).data.positive == "columns") == variant.endswith("-sup")
    rows = list(module.rows(*arguments).values())
    assert (rows[0]["model.train_pooler"], rows[0]["model.pooler"]) == first
    assert len(rows) == 5
