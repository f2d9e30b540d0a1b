"""What a command says of rows and seeds, and what it is told when it says it wrongly."""

from pathlib import Path

import pytest

from simcse_jax.sweeping.rows import as_flags, choose_rows, parse_seeds, recipe_judging
from simcse_jax.system.errors import UserError

DEMO = "configs/demo.py"

RECIPE = """
from configs import base

def get_config(variant="small"):
    return base.get_config()

def rows(variant="small"):
    return {"the paper": {}, "w/o MLP": {"model.train_pooler": "cls_before_pooler", "data.packed": False}} if (
        variant == "small") else {variant: {"objective.temperature": 0.1}}

def judged(variant="small"):
    return "sts" if variant == "small" else "sts,transfer"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "ablation.py"
    path.write_text(RECIPE, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("text", "seeds"), [("0..4", (0, 1, 2, 3, 4)), ("7", (7,)), ("3, 0,7", (3, 0, 7)), ("0..1,5..6", (0, 1, 5, 6))]
)
def test_seeds(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("5..1", "--seeds=1..5"),
        ("0..2,1", "--seeds=0,1,2"),
        ("-1", "'-1'"),
        ("1,,2", "''"),
        ("a", "--seeds=0..4"),
        ("0..999999999999", "more than 10,000"),
        ("9" * 5000, "neither a seed nor a range"),
    ],
)
def test_wrong_seeds(text: str, says: str) -> None:
    with pytest.raises(UserError, match="--seeds=") as caught:
        parse_seeds(text)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("grids", "named", "rows"),
    [
        ([], [], {"the recipe": {}}),
        (
            ["objective.temperature=0.01,0.1", "--config.train.batch_size=16,32"],
            [],
            {
                f"temperature={t}, batch_size={b}": {"objective.temperature": t, "train.batch_size": b}
                for t in ("0.01", "0.1")
                for b in ("16", "32")
            },
        ),
        (  # keys that end alike
            ["eval.every_steps=1", "checkpoint.every_steps=2"],
            [],
            {"eval.every_steps=1, checkpoint.every_steps=2": {"eval.every_steps": "1", "checkpoint.every_steps": "2"}},
        ),
        (
            ["model.dropout=0.2"],
            ["paper:", "two files: data.files='a b.txt,hf://x' train.epochs=2", "none\n at all: eval.data="],
            {
                "paper": {},
                "two files": {"data.files": "a b.txt,hf://x", "train.epochs": "2"},
                "none at all": {"eval.data": ""},
                "dropout=0.2": {"model.dropout": "0.2"},
            },
        ),
    ],
)
def test_rows_in_order(grids: list[str], named: list[str], rows: dict[str, dict[str, str]]) -> None:
    assert [*choose_rows(DEMO, grids, named).items()] == [*rows.items()]


def test_a_recipe_names_its_own_rows_and_judging(recipe: str) -> None:
    assert choose_rows(recipe, [], []) == {
        "the paper": {},
        "w/o MLP": {"model.train_pooler": "cls_before_pooler", "data.packed": "False"},
    }
    assert choose_rows(f"{recipe}:large", [], []) == {"large": {"objective.temperature": "0.1"}}
    assert recipe_judging(recipe) == "sts"
    assert recipe_judging(f"{recipe}:large") == "sts,transfer"
    assert recipe_judging(DEMO) == ""
    assert list(choose_rows(recipe, [], ["mine:"])) == ["mine"]


@pytest.mark.parametrize(
    ("grids", "named", "says"),
    [
        (["objective.temperature"], [], "names no values"),
        (["objective.temperature="], [], "names no values"),
        (["objective.temperature=0.1,,0.2"], [], "an empty one"),
        (["=0.1"], [], "names no values"),
        (["model.dropout=0.1", "model.dropout=0.2"], [], "in another --grid"),
        (["model.dropout=0.1,0.1"], [], "Two rows are called 'dropout=0.1'"),
        ([], ["a:", "a: model.dropout=0.2"], "Two rows are called 'a'"),
        ([f"train.{n}={','.join(map(str, range(50)))}" for n in range(9)], [], "combinations"),
        ([], ["a"], "no label with a colon"),
        ([], ["caf\udce9:"], "cannot be written"),
        ([], [": model.dropout=0.2"], "no label with a colon"),
        ([], ["a: dropout"], "'dropout' is no key=value"),
        ([], ["a: data.files='x"], "No closing quotation"),
        ([], ["a: model.dropout=0 model.dropout=1"], "twice"),
        ([], ["a: train.seed=3"], "--seeds=3"),
        (["train.seed=3,4"], [], "--seeds=3"),
    ],
)
def test_wrong_rows(grids: list[str], named: list[str], says: str) -> None:
    with pytest.raises(UserError) as caught:
        choose_rows(DEMO, grids, named)
    assert says in str(caught.value)


def test_values_are_written_as_flags_read_them() -> None:
    assert as_flags({"a": True, "b": 3e-05, "c": 4, "d": ""}) == {"a": "True", "b": "3e-05", "c": "4", "d": ""}
