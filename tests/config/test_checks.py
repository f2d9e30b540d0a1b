"""Recipes become checked dataclasses, and keys that do not go together are refused with a way out."""

import importlib
from typing import Any

import pytest

from simcse_jax.config.layout import row_length, with_batch_size
from simcse_jax.config.resolve import resolve
from simcse_jax.system.errors import UserError
from tests.config.recipes import MLM_ALONE, recipe, resolved


@pytest.mark.parametrize("name", ["unsup", "sup", "small", "demo", "pretrain", "distill"])
def test_recipes_resolve_in_every_variant(name: str) -> None:
    module = importlib.import_module(f"configs.{name}")
    for variant in module.VARIANTS:
        made = module.get_config(variant)
        made.data.files = made.data.files or "sentences.txt"
        config = resolve(made, (), 8)
        assert config.train.batch_size % 8 == 0
    with pytest.raises(UserError, match="bert-tiny"):
        module.get_config("bert-tiny")


def test_the_paper_recipe() -> None:
    config = resolve(importlib.import_module("configs.unsup").get_config(), (), 1)
    assert (config.train.batch_size, config.optimizer.learning_rate, config.objective.temperature) == (64, 3e-5, 0.05)
    assert (config.model.pooler, config.model.train_pooler) == ("cls_before_pooler", "cls")
    adam = config.optimizer
    assert (adam.b1, adam.b2, adam.eps, adam.weight_decay, adam.warmup_steps, adam.clip_norm) == (
        *(0.9, 0.999, 1e-8),
        *(0, 0, 1),
    )
    assert (config.data.max_length, config.model.dropout, config.eval.every_steps) == (32, 0.1, 125)
    assert config.train.total_steps(15625) == 15625


@pytest.mark.parametrize(
    ("devices", "batch", "group"), [(1, 64, 64), (8, 64, 8), (4, 512, 64), (1, 96, 48), (3, 66, 22)]
)
def test_groups_are_the_largest_that_divide(devices: int, batch: int, group: int) -> None:
    assert resolved({"train.batch_size": batch}, devices).group_size == group


@pytest.mark.parametrize(("max_length", "group"), [(512, 64), (1024, 32), (8192, 4), (100_000, 1)])
def test_groups_of_long_sentences_are_small(max_length: int, group: int) -> None:
    assert resolved({"train.batch_size": 128, "data.max_length": max_length}).group_size == group


def test_another_batch_size_keeps_groups_at_once_that_divide() -> None:
    config = resolved({"train.batch_size": 512, "train.groups_at_once": 4})
    smaller = with_batch_size(config, 384)
    assert (smaller.train.batch_size, smaller.group_size, smaller.train.groups_at_once) == (384, 64, 2)


def test_rows_are_twice_as_long_as_the_longest_sentence() -> None:
    lengths = {
        64: {},
        32: {"data.packed": False},
        100: {"data.row_length": 100},
        512: {"data.max_length": 300},
        600: {"data.max_length": 600},
    }
    for expected, values in lengths.items():
        assert row_length(resolved(values).data) == expected


def test_one_duration_given_on_the_command_line_replaces_the_recipe_s() -> None:
    config = resolved({"train.steps": 7, "train.epochs": 3.0}, overridden=["train.steps"])
    assert config.train.total_steps(100) == 7
    unset = {"train.steps": 0, "train.epochs": 2.0}
    assert resolved(unset, overridden=["train.steps"]).train.total_steps(100) == 200
    assert resolved({"train.epochs": 0.5}).train.total_steps(101) == 50
    assert resolved({"train.epochs": 0.0, "train.examples": 640}).train.total_steps(101) == 10
    assert resolved({"train.epochs": 0.29}).train.total_steps(100) == 29
    assert resolved({"train.epochs": 0.001}).train.total_steps(100) == 1
    with pytest.raises(UserError, match=r"train.steps = 7, train.epochs = 3.0"):
        resolved({"train.steps": 7, "train.epochs": 3.0})
    with pytest.raises(UserError, match=r"--config.train.epochs=1\."):
        resolved({"train.epochs": 0.0})


@pytest.mark.parametrize(
    ("values", "key", "way_out"),
    [
        ({"model.pooler": "cls", "model.train_pooler": "avg"}, "model.pooler", "model.train_pooler=cls"),
        ({"model.dropout": 0.0}, "model.dropout = 0", "model.dropout=0.1"),
        ({"model.same_mask": True, "model.cutoff": "span"}, "model.same_mask", "model.cutoff="),
        ({"model.dtype": "float64"}, "model.dtype", "JAX_ENABLE_X64=1"),
        ({"model.name": ""}, "model.name", "model.name=bert-base-uncased"),
        ({"model.name": "", "model.init": "random"}, "model.tokenizer", "model.tokenizer=train"),
        ({"model.tokenizer": "train", "model.vocab_size": 500}, "model.init", "model.init=random"),
        (
            {"model.tokenizer": "train", "model.init": "random", "model.vocab_size": 99},
            "model.vocab_size = 99",
            "model.vocab_size=8000",
        ),
        ({"model.keep_layers": "0,x"}, "model.keep_layers = '0,x'", "model.keep_layers=0,2"),
        ({"model.keep_layers": "2,0"}, "model.keep_layers = '2,0'", "model.keep_layers=0,2"),
        ({"model.keep_layers": "-1,0"}, "model.keep_layers = '-1,0'", "model.keep_layers=0,2"),
        ({"data.files": ""}, "data.files", "data.files=sentences.txt"),
        ({"data.positive": "crop", "data.rate": 0.0}, "data.rate = 0.0", "data.rate=0.1"),
        ({"data.positive": "mask", "data.rate": 0.0}, "data.rate = 0.0", "data.rate=0.1"),
        (
            {"data.positive": "mask", "model.init": "random", "model.name": "", "model.tokenizer": "folder"},
            "data.positive = 'mask'",
            "data.mask_model=DIR",
        ),
        ({"data.row_length": 16}, "data.row_length = 16", "data.row_length=32"),
        ({"objective.widths": "64,x"}, "objective.widths = '64,x'", "objective.widths=768,256,64"),
        ({"objective.widths": "64,64"}, "objective.widths = '64,64'", "objective.widths=768,256,64"),
        ({"objective.widths": "0"}, "objective.widths = '0'", "objective.widths=768,256,64"),
        ({"objective.layers": "6,12"}, "objective.layers = '6,12'", "model.pooler=avg"),
        (
            {"model.pooler": "avg", "model.train_pooler": "avg", "objective.layers": "0,12"},
            "objective.layers = '0,12'",
            "objective.layers=2,4",
        ),
        (
            {"model.pooler": "avg", "model.train_pooler": "avg", "objective.layers": "6,12"}
            | {"model.second_encoder": "momentum", "objective.queue": 64},
            "objective.queue = 64",
            "objective.queue=0",
        ),
        *(
            (
                {"objective.false_negatives": kind, "objective.false_negative_margin": margin},
                f"objective.false_negative_margin = {margin}",
                "objective.false_negative_margin=0.1",
            )
            for kind, margin in (("absolute", 2.0), ("absolute", -2.0), ("fixed", -1.0), ("fixed", 1.5))
        ),
        ({**MLM_ALONE, "mlm.weight": 0.0}, "mlm.weight = 0", "mlm.weight=1"),
        ({**MLM_ALONE, "model.train_pooler": "cls"}, "objective.loss = 'none'", "model.train_pooler=avg"),
        ({**MLM_ALONE, "data.positive": "crop"}, "data.positive = 'crop'", "data.positive=dropout"),
        ({"train.groups_at_once": 3, "train.batch_size": 512}, "train.groups_at_once = 3", "1, 2, 4, 8"),
        ({"mesh.data": 4}, "4 x 1 = 4 devices, and 1 are visible", "mesh.data=-1"),
        ({"mesh.fsdp": 2}, "mesh.fsdp = 2", "mesh.fsdp=1"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(values: dict[str, Any], key: str, way_out: str) -> None:
    with pytest.raises(UserError) as refused:
        resolved(values)
    assert key in str(refused.value)
    assert way_out in str(refused.value).split("\n", 1)[1]


def test_without_dropout_something_else_must_tell_views_apart() -> None:
    for noise in ({"model.cutoff": "span"}, {"model.same_mask": True}, {"data.positive": "crop"}, MLM_ALONE):
        resolved({"model.dropout": 0.0} | noise)


def test_a_batch_that_does_not_divide_names_its_neighbours() -> None:
    with pytest.raises(UserError, match=r"100 does not divide over 8 devices.\nThe nearest that do: 96 and 104"):
        resolved({"train.batch_size": 100}, 8)


def test_wrong_types_and_keys_of_a_plain_recipe_are_refused() -> None:
    values = recipe().to_dict()
    values["train"]["epochs"] = 2
    assert type(resolve(values, (), 1).train.epochs) is float
    for value in ("one", 1.0, True):
        values["train"]["seed"] = value
        with pytest.raises(UserError, match=f"train.seed = {value!r}"):
            resolve(values, (), 1)
    values["train"]["seed"] = 1
    values["train"]["sed"] = 1
    with pytest.raises(UserError, match=r"train.sed is no key"):
        resolve(values, (), 1)


def test_several_processes_all_take_part() -> None:
    with pytest.raises(UserError, match="8 devices, and 16 are visible to 2 processes"):
        resolve(recipe({"mesh.data": 8}), (), 16, processes=2)
    assert resolve(recipe({"mesh.data": 16}), (), 16, processes=2).mesh.data == 16
