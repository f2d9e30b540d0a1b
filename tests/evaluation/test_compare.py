"""Test comparisons: runs of one recipe together, differences with honest intervals, and what is clearly best."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from simcse_jax.evaluation.compare import compare, group_runs, spread
from simcse_jax.evaluation.results import Entry, ModelResult, Score


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])


def _similarity(task: str, cosines: np.ndarray, gold: np.ndarray) -> Score:
    value = 100 * _spearman(cosines, gold)
    return Score(task, "spearman", {"spearman": value}, {}, gold=gold, cosines=cosines)


def _model(name: str, *scores: Score, recipe: str = "") -> ModelResult:
    return ModelResult(name, {}, {score.task: score for score in scores}, recipe=recipe)


def _noisy(gold: np.ndarray, noise: float, seed: int) -> np.ndarray:
    return gold + noise * np.random.default_rng(seed).normal(size=gold.shape)


GOLD = np.random.default_rng(0).uniform(0, 5, 400).round(1)


def test_runs_of_one_recipe_share_an_entry() -> None:
    models = [
        _model("runs/a-seed0", recipe="a"),
        _model("other"),
        _model("runs/a-seed10", recipe="a"),
        _model("runs/b", recipe="b"),
        _model("another"),
    ]
    entries = group_runs(models)
    assert [entry.name for entry in entries] == ["runs/a-seed*", "other", "runs/b", "another"]
    assert [len(entry.models) for entry in entries] == [2, 1, 1, 1]
    crossed = [_model(f"x{n}", recipe="ab"[n % 2]) for n in range(4)]
    assert [entry.name for entry in group_runs(crossed)] == ["x* (1)", "x* (2)"]
    twice = [ModelResult(name, {"fingerprint": "f"}, recipe="a") for name in ("runs/a", "./runs/a")]
    assert [len(entry.models) for entry in group_runs(twice)] == [1]
    assert group_runs([_model("x/1/end", recipe="r"), _model("x/2/end", recipe="r")])[0].name == "x/*/end"


def test_spread() -> None:
    assert spread([1.0, 2.0, 6.0]) == {"mean": 3.0, "sd": pytest.approx(7**0.5), "min": 1.0, "max": 6.0, "runs": 3}
    assert spread([4.0])["sd"] == 0


def test_average_is_over_all_tasks_or_none() -> None:
    model = _model("m", _similarity("A", GOLD, GOLD), _similarity("B", -GOLD, GOLD))
    assert model.average(("A", "B")) == pytest.approx(0)
    assert model.average(("A", "C")) is None
    assert model.average(()) is None


def _entries(*models: ModelResult) -> tuple[Entry, ...]:
    return tuple(Entry(model.name, (model,)) for model in models)


def test_difference_and_its_interval() -> None:
    """Against a direct bootstrap with scipy, and with signs the right way round."""
    better, worse = _noisy(GOLD, 1, 1), _noisy(GOLD, 2, 2)
    base, other = _similarity("A", worse, GOLD), _similarity("A", better, GOLD)
    [found], _ = compare(_entries(_model("worse", base), _model("better", other)), {})
    assert found.points == pytest.approx(other.value - base.value)
    assert 0 < found.low < found.points < found.high
    [itself], _ = compare(_entries(_model("x", base), _model("y", base)), {})
    assert (itself.base, itself.other, itself.points, itself.low, itself.high) == ("x", "y", 0, 0, 0)

    def statistic(x: np.ndarray, y: np.ndarray, gold: np.ndarray) -> float:
        return 100 * (_spearman(x, gold) - _spearman(y, gold))

    direct = stats.bootstrap(
        (better, worse, GOLD), statistic, paired=True, vectorized=False, method="percentile",
        n_resamples=1000, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    width = direct.high - direct.low
    assert found.low == pytest.approx(direct.low, abs=0.15 * width)
    assert found.high == pytest.approx(direct.high, abs=0.15 * width)


def test_intervals_of_equals_hold_zero_at_their_rate() -> None:
    """Two equally noisy models over many draws of examples: about 95 % of the intervals hold 0."""
    held, trials = 0, 40
    for trial in range(trials):
        gold = np.random.default_rng(trial).normal(size=150)
        scores = [_similarity("A", _noisy(gold, 1, 1000 + 2 * trial + side), gold) for side in (0, 1)]
        [found], _ = compare(_entries(_model("x", scores[0]), _model("y", scores[1])), {}, resamples=300)
        held += found.low <= 0 <= found.high
    assert 0.86 * trials <= held <= trials


def test_accuracies_are_compared_example_by_example() -> None:
    right = np.random.default_rng(0).random(500) < 0.8
    fewer = right & (np.random.default_rng(1).random(500) < 0.95)
    scores = [Score("MR", "accuracy", {"accuracy": 100 * c.mean()}, {}, correct=c) for c in (fewer, right)]
    [found], _ = compare(_entries(_model("fewer", scores[0]), _model("right", scores[1])), {})
    lost = (right & ~fewer).mean()
    assert found.points == pytest.approx(100 * lost)
    error = 100 * np.sqrt(lost * (1 - lost) / 500)  # of a paired difference that is 0 or 1 for each example
    assert found.low == pytest.approx(found.points - 1.96 * error, abs=0.4)
    assert found.high == pytest.approx(found.points + 1.96 * error, abs=0.4)


def test_best_is_above_every_other() -> None:
    """Not only above the first; nothing where two are too near, nor where one was scored on other examples."""
    scores = {name: _similarity("A", _noisy(GOLD, noise, seed), GOLD)
              for seed, (name, noise) in enumerate((("weak", 3), ("good", 1), ("near", 1.02)))}  # fmt: skip
    found = {name: _model(name, score) for name, score in scores.items()}
    assert compare(_entries(found["weak"], found["good"]), {"sts": ("A",)})[1] == {"A": "good", "sts": "good"}
    assert compare(_entries(found["good"], found["weak"]), {})[1] == {"A": "good"}
    assert compare(_entries(found["weak"], found["good"], found["near"]), {})[1] == {}
    other = dataclasses.replace(scores["weak"], protocol={"data": "other"})
    assert compare(_entries(found["good"], _model("weak", other)), {})[1] == {}
    bare = Score("A", "spearman", {"spearman": 1.0}, {})
    assert compare(_entries(found["weak"], found["good"], _model("bare", bare)), {})[1] == {}
    assert compare(_entries(found["weak"], found["good"], _model("none")), {})[1] == {"A": "good"}


def test_averages_and_runs() -> None:
    """Of an average: the mean of its tasks; of several runs: their mean. A task that one lacks is left out."""
    ours = [
        _model(f"r{n}", _similarity("A", _noisy(GOLD, 1, n), GOLD), _similarity("B", _noisy(GOLD, 2, n + 9), GOLD))
        for n in range(2)
    ]
    base = _model("b", _similarity("A", _noisy(GOLD, 2, 5), GOLD), _similarity("B", _noisy(GOLD, 2, 6), GOLD))
    base.scores["C"] = _similarity("C", GOLD, GOLD)
    found, _ = compare((Entry("b", (base,)), Entry("r*", tuple(ours))), {"sts": ("A", "B"), "more": ("A", "C")})
    by_task = {difference.task: difference for difference in found}
    assert set(by_task) == {"A", "B", "sts"}
    for task in "AB":
        mean = np.mean([model.scores[task].value for model in ours])
        assert by_task[task].points == pytest.approx(mean - base.scores[task].value)
    assert by_task["sts"].points == pytest.approx((by_task["A"].points + by_task["B"].points) / 2)
    widths = {task: difference.high - difference.low for task, difference in by_task.items()}
    assert widths["sts"] < widths["B"]
    assert compare((Entry("b", (base,)),), {}) == ((), {})


def test_a_difference_on_few_examples_is_unclear() -> None:
    def entries(count: int) -> list[Entry]:
        gold = GOLD[:count]
        return [
            Entry(name, (_model(name, _similarity("A", cosines, gold), _similarity("B", GOLD, GOLD)),))
            for name, cosines in (("a", gold), ("b", -gold))
        ]

    averages = {"all": ("A", "B")}
    for count, expected in ((19, "unclear"), (20, "lower")):
        rows, best = compare(entries(count), averages)
        assert {row.task: row.direction for row in rows} == {"A": expected, "B": "unclear", "all": expected}
        assert ("A" in best) is (expected == "lower")
