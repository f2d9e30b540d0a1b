"""The benchmark of training: both sides do the same work, sides that differ are refused, the results are complete."""

import dataclasses
import importlib.util
import json
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import train_ours, train_speed
from benchmarks.sizes import ENCODERS
from benchmarks.train_work import Work
from benchmarks.workers import Worker
from simcse_jax.data import demo
from simcse_jax.data.tokenizer import train_wordpiece
from simcse_jax.system.errors import UserError

TINY_SIZES = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "num_hidden_layers": 2}
TINY = {name: dataclasses.replace(of, **TINY_SIZES) for name, of in ENCODERS.items()}

FAST = 1e-3  # a learning rate that shows in the losses of five steps


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("work")
    sentences = list(demo.sentences(count=300))
    (folder / "sentences.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
    train_wordpiece(sentences, 300, folder / "tokenizer")
    (folder / "shared").mkdir()
    files = str(folder / "sentences.txt"), str(folder / "tokenizer")
    return Work(folder / "shared", *files, TINY["minilm"], batch_size=8, max_length=16, dtype="float32", steps=7)


@pytest.fixture(scope="module")
def ours(work: Work) -> train_ours.Side:
    return sharing(work)


def sharing(work: Work) -> train_ours.Side:
    """Return our side without dropout, which has written what the others read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_ours, "LEARNING_RATE", FAST)
        side = train_ours.Side(dataclasses.replace(work, dropout=0.0))
    side.share()
    return side


def test_both_sides_train_alike(work: Work, ours: train_ours.Side, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_side = pytest.importorskip("benchmarks.train_torch")

    def theirs(learning_rate: float, dropout: float) -> np.ndarray:
        monkeypatch.setattr(torch_side, "LEARNING_RATE", learning_rate)
        return np.array(torch_side.Side(dataclasses.replace(work, dropout=dropout)).losses(5))

    a, b = np.array(ours.losses(5)), theirs(FAST, 0.0)
    np.testing.assert_allclose(a[:, 0], b[:, 0], rtol=train_speed.LOSS_TOLERANCE, atol=0)
    np.testing.assert_allclose(a[:, 1], b[:, 1], rtol=train_speed.NORM_TOLERANCE, atol=0)
    # The updates are in the losses, and dropout would be: a side that learns otherwise, or drops, has others.
    for other in (theirs(FAST / 2, 0.0), theirs(FAST, 0.1)):
        assert (np.abs(other / b - 1)[1:, 0] > 10 * train_speed.LOSS_TOLERANCE).any()


@pytest.mark.parametrize("name", ["distilbert", "mpnet-base", "modernbert-base"])
def test_other_families_train_as_pytorchs(
    name: str, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five steps of AdamW from the same weights."""
    torch_side = pytest.importorskip("benchmarks.train_torch")
    monkeypatch.setattr(torch_side, "LEARNING_RATE", FAST)
    own = dataclasses.replace(work, folder=tmp_path, architecture=TINY[name], dropout=0.0)
    a, b = np.array(sharing(own).losses(5)), np.array(torch_side.Side(own).losses(5))
    np.testing.assert_allclose(a[:, 1], b[:, 1], rtol=train_speed.NORM_TOLERANCE, atol=0)
    assert np.abs(a / b - 1)[0, 0] < train_speed.LOSS_TOLERANCE


def test_flops(work: Work) -> None:
    """Of one sentence of 3 tokens and one of 5, by hand; and 6 a parameter and token is nearly all of BERT-base's."""
    matrices = 2 * (4 * 64 * 64 + 2 * 64 * 128)
    forward = 2 * (2 * matrices * 8 + 2 * 4 * 64 * (9 + 25) + 2 * 2 * 64 * 64) + 2 * 64 * 2 * 2
    assert work.flops(np.array([[3, 5]])) == 3 * forward
    base = dataclasses.replace(work, architecture=ENCODERS["bert-base"])
    assert base.flops(np.full((2, 64), 22)) == pytest.approx(6 * 84_934_656 * 2 * 64 * 22, rel=0.015)


class _Losses:
    """A side that has these losses and norms."""

    def __init__(self, values: list[tuple[float, float]]):
        self.values = values

    def __enter__(self) -> "_Losses":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def call(self, method: str, *_: Any) -> Any:
        return self.values if method == "losses" else None


@pytest.mark.parametrize(
    "wrong", [[(4.0, 2.0), (3.001, 1.0)], [(4.0, 2.0), (3.0, 1.01)], [(4.0, 2.0), (float("nan"), 1.0)]]
)
def test_sides_that_disagree_are_not_timed(
    work: Work, wrong: list[tuple[float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = [(4.0, 2.0), (3.0, 1.0)]
    theirs = {"jax": right, "torch": [(4.0001, 2.0), (3.0, 1.0005)]}
    monkeypatch.setattr(train_speed, "started", lambda side, _: _Losses(theirs[side]))
    found = train_speed.share_and_check(work, with_torch=True)
    assert found == pytest.approx({"loss": 2.5e-5, "gradient norm": 5e-4}, rel=1e-3)
    theirs["torch"] = wrong
    with pytest.raises(UserError, match="nothing to time"):
        train_speed.share_and_check(work, with_torch=True)


def test_workers() -> None:
    with Worker("fractions", "Fraction", 22, 7) as one, Worker("fractions", "Fraction", 1, 3) as other:
        assert one.call("limit_denominator", 5) == Fraction(16, 5)
        assert other.call("__add__", 1) * 3 == 4
        with pytest.raises(RuntimeError, match="no attribute 'missing'"):
            one.call("missing")
        assert other.call("as_integer_ratio") == (1, 3)
    with pytest.raises(UserError, match="does not exist"):
        Worker("simcse_jax.data.tokenizer", "load_tokenizer", "nowhere")
    with pytest.raises(UserError, match="ended with status 3"):
        Worker("os", "_exit", 3)


@pytest.mark.slow
def test_figures_of_every_side(work: Work, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    work = dataclasses.replace(work, folder=tmp_path / "shared")
    pytest.importorskip("torch")
    sides = ["torch"]
    sides += ["torch-compile"] if shutil.which("g++") else []
    sides += ["sentence-transformers"] if importlib.util.find_spec("accelerate") else []
    figures = json.loads(json.dumps(train_speed.measure(work, sides, steps=2, rounds=2)))
    assert list(figures["sides"]) == ["jax", *sides]
    assert list(figures["ratio"]) == sides
    assert figures["differences without dropout"]["loss"] <= train_speed.LOSS_TOLERANCE
    for side in figures["sides"].values():
        assert len(side["seconds a step"]["all"]) == 2
        assert all(side[name] > 0 for name in side if name not in ("about", "seconds a step"))
        assert side["sentences/s"] == pytest.approx(8 / side["seconds a step"]["median"])
        assert side["tokens/s"] == pytest.approx(2 * figures["tokens a sentence"] * side["sentences/s"])
    assert len(train_speed.table(figures)) == 2 + len(figures["sides"])
    train_speed.draw(figures, "tiny", str(tmp_path / "speed.png"))
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
