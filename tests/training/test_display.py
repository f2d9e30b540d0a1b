"""What a run says of itself: honest, about its own files, and never silent for long."""

from pathlib import Path
from typing import Any

from simcse_jax.training.checkpoint import RunProgress
from simcse_jax.training.display import conclude, describe, summarize
from simcse_jax.training.loop import Outcome
from tests.small_models import demo_files, prepare_small


def test_a_run_says_when_its_dev_pairs_are_too_few(tmp_path: Path) -> None:
    (tmp_path / "few.tsv").write_text("1\ta dog\ta cat\n2\ta man\ta boy\n")
    run = prepare_small(tmp_path / "run", tmp_path / "cache", data__packed=False, eval__data=str(tmp_path / "few.tsv"))
    assert "only 2 pairs" in "\n".join(describe(run))


def ended(best_step: int, step: int = 4) -> Outcome:
    return Outcome(0, step, RunProgress(best_step, 50.0), None, 1)


def test_fewer_steps_than_an_epoch_say_which_share_they_see_and_how_to_see_all(tmp_path: Path) -> None:
    def steps_line(**flags: Any) -> str:
        run = prepare_small(tmp_path / "run", tmp_path / "cache", data__packed=False, **flags)
        return next(line for line in describe(run) if line.startswith("steps:"))

    said = steps_line(train__steps=9)
    assert "144 of 600 examples (24%)" in said
    assert "--config.train.epochs=1" in said
    assert steps_line(train__steps=0, train__epochs=1.0).startswith("steps: 37, one epoch")


def test_what_is_said_at_the_end_is_so(tmp_path: Path) -> None:
    run = prepare_small(tmp_path / "run", tmp_path / "cache", data__packed=False)
    model = str(tmp_path / "run" / "model")
    better, same = ("\n".join(conclude(run, ended(best), tmp_path / "run")) for best in (2, 0))
    assert "best model" in better
    assert "best model" not in same
    assert "--config.optimizer.learning_rate" in same
    for said in (better, same):
        assert model in said
        assert f"--corpus={demo_files() / 'sentences.txt'}" in said  # this run's own text
        assert "simcse_jax.train" not in said  # what was just done
    assert "at step 2" in summarize(run, ended(2), 3.0)

    unscored = prepare_small(tmp_path / "unscored", tmp_path / "cache", data__packed=False, eval__data="")
    said = "\n".join(conclude(unscored, ended(-1), tmp_path / "unscored"))
    assert "best model" not in said
    assert any(line.startswith("note") and "eval.data" in line for line in describe(unscored))

    masked: Any = {"objective__loss": "none", "mlm__weight": 1.0, "eval__data": "", "data__packed": False}
    pretrained = prepare_small(tmp_path / "masked", tmp_path / "cache", **masked)
    said = "\n".join(conclude(pretrained, ended(-1), tmp_path / "masked"))
    assert f"--config.model.name={tmp_path / 'masked' / 'model'}" in said
