"""Runs that start from the parameters of another run: which they are, and what does not fit."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from simcse_jax.embedding_model import open_model
from simcse_jax.model_folder.run_folder import export_run, load_run_params
from simcse_jax.system.errors import UserError
from simcse_jax.training.loop import train
from simcse_jax.training.state import encoder_params
from tests.small_models import FROM_FOLDER, prepare_small, train_small

HEAD: dict[str, Any] = {"model__train_pooler": "cls"}


@pytest.fixture(scope="module")
def source(make_once: Any) -> Path:
    """Return the folder of a finished run, with its model exported; leave it as it is."""

    def make(folder: Path) -> None:
        train_small(folder / "run", folder / "cache", train__steps=2, checkpoint__keep_every_steps=1, **HEAD)
        export_run(folder / "run", folder / "run" / "model")

    return make_once("warm", make) / "run"


def start_of(source: Path, workdir: Path, init: str, **changes: Any) -> Any:
    changes = FROM_FOLDER | {"model__name": str(source / "model"), "model__init": init, "train__seed": 1} | changes
    return prepare_small(workdir, source.parent / "cache", None, data__packed=False, **changes)


@pytest.mark.medium
def test_a_run_starts_from_the_best_or_a_kept_step_of_another(source: Path, tmp_path: Path) -> None:
    best, found = load_run_params(source)[1]["step"], []
    for step, given in ((best, f"run:{source}"), (1, f"run:{source}@1")):
        run = start_of(source, tmp_path / str(step), given, **HEAD)
        assert run.config.model.init == f"run:{source}@{step}"
        params = jax.device_get(encoder_params(run.initial_state().params))
        jax.tree.map(np.testing.assert_array_equal, params, load_run_params(source, step)[0])
        found.append(params["head"]["kernel"].sum())
    assert found[0] != found[1]


@pytest.mark.medium
def test_a_run_that_began_so_resumes_and_is_judged_against_its_start(source: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    train(start_of(source, workdir, f"run:{source}", train__steps=2), workdir)
    resumed = start_of(source, workdir, f"run:{source}", train__steps=2)
    assert "@" in resumed.config.model.init
    found = open_model(str(workdir)).before_training()
    assert found is not None
    encode, origin = found
    assert origin == resumed.config.model.init
    np.testing.assert_allclose(encode(["a man"]), open_model(str(source)).encode(["a man"], normalize=False), rtol=1e-5)


@pytest.mark.parametrize(
    ("init", "changes", "says"),
    [
        ("run:{source}@9", {}, r"nothing of step 9. Kept are of the best: [\d, ]+; of states: 1, 2"),
        ("run:{source}/model", {}, "is not the config.json of a run|holds no run"),
        ("run:nowhere", {}, "nowhere holds no run"),
        ("run:{source}", {"mlm__weight": 0.1}, "no head for masked tokens"),
        ("run:{source}", {"model__name": "{small}"}, "hidden_size 16, not 32(.|\n)*--config.model.name="),
        ("walk:{source}", {}, r"must be one of pretrained, random, or run:DIR\[@STEP\]"),
    ],
)
def test_what_does_not_fit_is_refused(
    init: str, changes: dict[str, Any], says: str, source: Path, small_model: Path, tmp_path: Path
) -> None:
    named = {"source": source, "small": small_model}
    changes = {key: value.format(**named) if isinstance(value, str) else value for key, value in changes.items()}
    with pytest.raises(UserError, match=says):
        start_of(source, tmp_path / "run", init.format(**named), **changes)
    assert not (tmp_path / "run" / "config.json").exists()
