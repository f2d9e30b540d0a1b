"""Recipes become checked dataclasses, and wrong ones are refused with a way out."""

import dataclasses
import importlib
from typing import Any

import pytest

from configs import base
from simcse_jax.config.idle_keys import DECIDED
from simcse_jax.config.schema import LAYOUT_KEYS, Config, defaults, differences, resolve
from simcse_jax.system.errors import UserError


def recipe(**values: Any) -> Any:
    config: Any = base.get_config()
    config.data.files = "sentences.txt"
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in values.items()})
    return config


MLM_ALONE = {
    "objective__loss": "none",
    "mlm__weight": 1.0,
    "model__pooler": "avg",
    "model__train_pooler": "avg",
}


def resolved(devices: int = 1, overridden: tuple[str, ...] = (), **values: Any) -> Config:
    return resolve(recipe(**values), overridden, devices)


def test_every_key_of_the_base_recipe_is_a_field_and_the_other_way_round() -> None:
    assert set(resolved().flat()) == {f"{section}.{key}" for section in recipe() for key in recipe()[section]}
    assert set(resolved().flat()) >= LAYOUT_KEYS


@pytest.mark.parametrize("name", ["unsup", "sup", "small", "demo", "pretrain"])
def test_recipes_resolve_in_every_variant(name: str) -> None:
    module = importlib.import_module(f"configs.{name}")
    for variant in module.VARIANTS:
        made = module.get_config(variant)
        made.data.files = made.data.files or "sentences.txt"
        config = resolve(made, (), 8)
        assert config.train.batch_size % 8 == 0
    with pytest.raises(UserError, match="no variant 'bert-tiny'"):
        module.get_config("bert-tiny")


def test_the_paper_recipe() -> None:
    config = resolve(importlib.import_module("configs.unsup").get_config(), (), 1)
    assert (config.train.batch_size, config.optimizer.learning_rate, config.objective.temperature) == (64, 3e-5, 0.05)
    assert (config.model.pooler, config.model.train_pooler) == ("cls_before_pooler", "cls")
    assert config.train.total_steps(15625) == 15625


@pytest.mark.parametrize(
    ("devices", "batch", "group"), [(1, 64, 64), (8, 64, 8), (4, 512, 64), (1, 96, 48), (3, 66, 22)]
)
def test_groups_are_the_largest_that_divide(devices: int, batch: int, group: int) -> None:
    assert resolved(devices, train__batch_size=batch).group_size == group


def test_one_duration_given_on_the_command_line_replaces_the_recipe_s() -> None:
    config = resolved(overridden=("train.steps",), train__steps=7, train__epochs=3.0)
    assert config.train.total_steps(100) == 7
    assert resolved(train__epochs=0.5).train.total_steps(101) == 50
    assert resolved(train__epochs=0.0, train__examples=640).train.total_steps(101) == 10
    with pytest.raises(UserError, match=r"2 are: train.steps = 7, train.epochs = 3.0"):
        resolved(train__steps=7, train__epochs=3.0)
    with pytest.raises(UserError, match="0 are"):
        resolved(train__epochs=0.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"model__pooler": "max"},
            r"model.pooler = 'max': must be one of cls, .*\nFor example --config.model.pooler=cls",
        ),
        ({"model__pooler": "cls", "model__train_pooler": "avg"}, "never trains"),
        ({"model__dropout": 1.0}, r"model.dropout = 1.0: must be in \[0, 1\)"),
        ({"model__dropout": 0.0}, "the same vector"),
        (
            {"objective__loss": "nce"},
            "objective.loss = 'nce': must be one of info_nce, triplet, margin_ranking, sigmoid, none",
        ),
        ({"objective__loss": "none"}, r"leaves nothing to train.\nUse --config.mlm.weight=1"),
        ({"objective__loss": "none", "mlm__weight": 1.0}, "never trains the head of the pooler 'cls'"),
        (
            {"objective__loss": "triplet", "objective__similarity": "dot"},
            r"objective.loss = 'triplet'.\nLeave it out \(--config.objective.similarity=cosine\), or use --config.obj",
        ),
        ({"objective__similarity": "l2"}, "must be one of cosine, dot"),
        ({"objective__mining": "easy"}, "must be one of all, semi_hard, hardest"),
        ({"objective__margin": 0.0}, "objective.margin = 0.0: must be above 0"),
        ({"objective__widths": "64,x"}, r"objective.widths = '64,x': must be comma-separated numbers above 0"),
        ({"objective__widths": "64,64"}, "each once"),
        ({"objective__loss": "triplet", "objective__learned_temperature": True}, "has no effect with"),
        ({"objective__loss": "sigmoid", "objective__hard_negative_weight": 2.0}, "has no effect with"),
        ({"objective__queue": 64}, r"Use --config.model.second_encoder=momentum"),
        ({"objective__queue": -1}, r"0 \(none\) or more"),
        ({"model__second_encoder": "two"}, "must be one of none, copy, momentum"),
        ({"model__momentum": 1.0}, r"model.momentum = 1.0: must be in \[0, 1\)"),
        (
            {
                "model__second_encoder": "copy",
                "objective__loss": "none",
                "mlm__weight": 1.0,
                "model__train_pooler": "avg",
            },
            "has no positives to encode",
        ),
        ({"data__positive": "crop", "data__rate": 0.0}, "above 0 with data.positive = 'crop'"),
        ({"model__same_mask": True, "model__cutoff": "span"}, r"cut the same of both(.|\n)*--config.model.cutoff= or"),
        ({"data__synonyms": "file.txt"}, "data.synonyms = 'file.txt' has no effect with data.positive = 'dropout'"),
        (
            {"data__mask_model": "folder"},
            r"Leave it out \(--config.data.mask_model=\), or use --config.data.positive=mask\.",
        ),
        ({**MLM_ALONE, "model__cutoff": "token"}, "model.cutoff = 'token' has no effect with objective.loss = 'none'"),
        ({**MLM_ALONE, "data__positive": "crop"}, r"nothing is compared.\nUse --config.data.positive=dropout"),
        ({**MLM_ALONE, "model__same_mask": True}, "two views of one sentence"),
        ({"data__positive": "mask", "data__rate": 0.0}, "above 0 with data.positive = 'mask'"),
        (
            {"data__positive": "mask", "model__init": "random", "model__name": "", "model__tokenizer": "folder"},
            r"random weights predict nothing(.|\n)*--config.data.mask_model=DIR",
        ),
        ({"mlm__weight": -0.1}, "mlm.weight = -0.1: must be 0 or more"),
        ({"mlm__rate": 0.0}, "mlm.rate = 0.0: must be above 0 and below 1"),
        ({"mlm__rate": 1.0}, "mlm.rate = 1.0: must be above 0 and below 1"),
        ({"mlm__validation": "held_out.txt"}, "has no effect with mlm.weight = 0"),
        ({"model__dtype": "float16"}, "float32, bfloat16, float64"),
        ({"model__dtype": "float64"}, "JAX_ENABLE_X64=1"),
        ({"model__hidden_size": 128}, "--config.model.init=random"),
        ({"model__tokenizer": "train", "model__vocab_size": 500}, "random"),
        ({"model__name": "", "model__init": "random"}, "no tokenizer"),
        ({"model__name": ""}, "model.name"),
        ({"data__files": ""}, "data.files"),
        ({"data__positive": "magic"}, r"must be one of dropout, columns(.|\n)*--config.data.positive=dropout"),
        ({"data__rate": 1.0}, r"data.rate = 1.0: must be in \[0, 1\)(.|\n)*--config.data.rate=0.1"),
        ({"data__rate": -0.1}, r"data.rate = -0.1: must be in \[0, 1\)"),
        ({"data__window": 2}, "data.window = 2: must be 1 or 3"),
        ({"model__cutoff": "row"}, "model.cutoff = 'row': must be one of token, feature, span"),
        ({"model__cutoff_rate": 1.0}, "model.cutoff_rate = 1.0: must be above 0 and below 1"),
        ({"model__same_mask": True, "data__positive": "crop"}, "two views of one sentence"),
        ({"data__max_length": 2}, "3 or more"),
        ({"data__row_length": 16}, "shorter than data.max_length = 32"),
        ({"objective__temperature": 0.0}, "above 0"),
        ({"objective__temperature": float("inf")}, "finite"),
        ({"objective__hard_negative_weight": -1.0}, "above 0"),
        ({"objective__tile": -1}, r"-1: must be 0 \(no tiles\) or more.\nFor example --config.objective.tile=1024"),
        ({"optimizer__learning_rate": float("nan")}, "above 0"),
        ({"train__batch_size": 1}, "2 or more"),
        ({"train__log_every_steps": 0}, "1 or more"),
        ({"train__groups_at_once": 3, "train__batch_size": 512}, r"the 8 groups .*\nUse one of 1, 2, 4, 8"),
        ({"mesh__data": 4}, "4 x 1 = 4 devices, and 1 are visible"),
        ({"mesh__fsdp": 2}, "does not divide the 1 visible"),
    ],
)
def test_wrong_values_are_refused_with_a_way_out(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolved(**values)


@pytest.mark.parametrize("key", DECIDED)
def test_a_key_without_effect_is_refused(key: str) -> None:
    other: dict[str, Any] = {
        "data.synonyms": "file.txt",
        "data.mask_model": "folder",
        "data.window": 3,
        "objective.learned_temperature": True,
        "objective.symmetric": True,
        "objective.mask_duplicates": False,
        "objective.similarity": "dot",
        "objective.mining": "all",
        "objective.widths": "8,4",
        "mlm.whole_word": True,
        "mlm.validation": "held_out.txt",
        "model.momentum": 0.5,
    }
    value = other.get(key, 0.25)
    decider, serves = DECIDED[key]
    idle: dict[str, Any] = {"objective.loss": "none", "data.positive": "dropout", "mlm.weight": 0.0}
    given: dict[str, Any] = {decider: idle.get(decider, defaults()[decider]), key: value}
    if given.get("objective.loss") == "none":
        given = {"mlm.weight": 1.0, "model.pooler": "avg", "model.train_pooler": "avg"} | given
    with pytest.raises(UserError, match=f"{key} = {value!r} has no effect with {decider} = (.|\n)*Leave it out"):
        resolved(**{name.replace(".", "__"): each for name, each in given.items()})
    works: dict[str, Any] = given | {
        decider: serves[0] if serves else {"mlm.weight": 0.1, "model.cutoff": "token"}.get(decider, True)
    }
    settings = resolved(**{name.replace(".", "__"): each for name, each in works.items()})
    assert settings.flat()[key] == value


def test_a_key_without_effect_is_no_difference() -> None:
    """It was not always refused, and such runs go on."""
    old = resolved().flat() | {"data.rate": 0.2, "objective.margin": 0.3}
    assert differences(old, resolved().flat()) == {}
    crop = resolved(data__positive="crop").flat()
    assert differences(crop | {"data.rate": 0.2}, crop) == {"data.rate": (0.2, 0.1)}


def test_without_dropout_something_else_must_tell_views_apart() -> None:
    noises: list[dict[str, Any]] = [{"model__cutoff": "span"}, {"model__same_mask": True}, {"data__positive": "crop"}]
    for noise in noises:
        resolved(model__dropout=0.0, **noise)


def test_a_batch_that_does_not_divide_names_its_neighbours() -> None:
    with pytest.raises(UserError, match=r"100 does not divide over 8 devices.\nThe nearest that do: 96 and 104"):
        resolved(8, train__batch_size=100)


def test_wrong_types_and_keys_of_a_plain_recipe_are_refused() -> None:
    values = recipe().to_dict()
    values["train"]["seed"] = "one"
    with pytest.raises(UserError, match=r"train.seed = 'one' is a str; it takes a int"):
        resolve(values, (), 1)
    values["train"]["seed"] = 1
    values["train"]["sed"] = 1
    with pytest.raises(UserError, match=r"train.sed is no key"):
        resolve(values, (), 1)


def test_differences_see_mathematics_and_not_layout() -> None:
    old = resolved().flat()
    assert differences(old, resolved(8, train__groups_at_once=1, objective__tile=0, eval__every_steps=7).flat()) == {}
    assert differences(old, resolved(objective__temperature=0.1).flat()) == {"objective.temperature": (0.05, 0.1)}


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolved().train.seed = 3  # type: ignore[misc]


def test_several_processes_all_take_part() -> None:
    with pytest.raises(UserError, match="= 8 devices, and 16 are visible to 2 processes, which all take part"):
        resolve(recipe(**{"mesh.data": 8}), (), 16, processes=2)
    assert resolve(recipe(**{"mesh.data": 16}), (), 16, processes=2).mesh.data == 16
