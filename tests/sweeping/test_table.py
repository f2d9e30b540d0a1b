"""The table: its statistics worked out in another way, its figures as runs leave them, and its files."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy.special import betainc

from simcse_jax.sweeping.jobs import make_jobs
from simcse_jax.sweeping.output import draw, markdown, print_sweep, write_table
from simcse_jax.sweeping.plan import Judging, PlanRow, SweepPlan
from simcse_jax.sweeping.table import (
    LAST,
    SweepTable,
    choose_measure,
    column_metrics,
    make_table,
    possible_metrics,
    require_measure,
    run_metrics,
)
from simcse_jax.system.errors import UserError
from tests.sweeping.made_sweep import demo_plan

DEV = "dev/spearman"


def table(values: dict[str, dict[int, float]], measure: str = DEV, seeds: int = 5) -> SweepTable:
    """Return the table of rows with these values of one metric, by seed."""
    rows = tuple(PlanRow(label, label, {"model.dropout": "0.1"}, {}, tuple(range(seeds))) for label in values)
    judging = Judging("sts,geometry") if measure != DEV else Judging()
    found = {(label, seed): {measure: value} for label, own in values.items() for seed, value in own.items()}
    return make_table(SweepPlan("configs/demo.py", rows, judging), found)


def test_statistics_are_those_of_the_textbook() -> None:
    rng = np.random.default_rng(1)
    first, other = rng.normal(75, 1, 5), rng.normal(76, 1, 5)
    values = {name: dict(enumerate(row.tolist())) for name, row in (("a", first), ("b", other), ("c", first + 1))}
    a, b, c = table(values).rows
    assert a.difference is None
    assert a.metrics[DEV]["mean"] == pytest.approx(math.fsum(first) / 5)
    assert a.metrics[DEV]["sd"] == pytest.approx(math.sqrt(math.fsum((first - first.mean()) ** 2) / 4))
    assert b.best == (int(other.argmax()), other.max())
    gaps = other - first
    t = gaps.mean() / (math.sqrt(math.fsum((gaps - gaps.mean()) ** 2) / 4) / math.sqrt(5))
    p = betainc(4 / 2, 1 / 2, 4 / (4 + t * t))  # Student's two-sided tail with 4 degrees of freedom
    assert b.difference is not None
    assert b.difference.mean == pytest.approx(gaps.mean())
    assert b.difference.sd == pytest.approx(math.sqrt(math.fsum((gaps - gaps.mean()) ** 2) / 4))
    assert c.difference is not None
    assert c.difference.mean == pytest.approx(1), "all rows are compared with the first"
    assert b.difference.t == pytest.approx(t)
    assert b.difference.p == pytest.approx(p)


def test_only_seeds_that_both_have_are_compared() -> None:
    made = table({"a": {0: 70.0, 1: 80.0, 2: 75.0}, "b": {1: 81.0, 2: 77.0, 4: 10.0}})
    difference = made.rows[1].difference
    assert difference is not None
    assert difference.seeds == (1, 2)
    assert difference.mean == pytest.approx(1.5)
    assert made.rows[1].missing == (0, 3)
    assert "MISSING: a: seeds 3, 4; b: seeds 0, 3." in markdown(made)


@pytest.mark.parametrize("gap", [0.0, 1.0, -0.1])
def test_equal_differences_are_not_tested(gap: float) -> None:
    values = {0: 70.1, 1: 71.3, 2: 69.7}
    made = table({"a": values, "b": {seed: value + gap for seed, value in values.items()}}, seeds=3)
    difference = made.rows[1].difference
    assert difference is not None
    assert difference.mean == pytest.approx(gap)
    assert (difference.p, difference.untested) == (None, "all differences are equal")
    assert "Without a test: b (all differences are equal)." in markdown(made)


def test_one_seed_has_no_spread_and_no_test() -> None:
    made = table({"a": {0: 70.0}, "b": {0: 71.0}, "c": {1: 70.0}, "d": {}}, seeds=1)
    lines = [line for line in markdown(made).splitlines() if line.startswith("| ")]
    assert lines[1:] == [
        "| a | 1 | 70.00 | – | 70.00 | – | – |",  # noqa: RUF001
        "| b | 1 | **71.00** | – | 71.00 | +1.00 | – |",  # noqa: RUF001
        "| c | 0 | – | – | – | – | – |",  # noqa: RUF001
        "| d | 0 | – | – | – | – | – |",  # noqa: RUF001
    ]


def test_where_less_is_better() -> None:
    made = table({"a": {0: -2.0, 1: -2.2}, "b": {0: -1.0, 1: -1.5}}, "uniformity", seeds=2)
    assert made.measure == "uniformity"
    assert made.leader is made.rows[0]
    assert made.rows[1].best == (1, -1.5)
    assert "uniformity, lower is better" in markdown(made)


def test_nothing_finished_is_a_table_too(tmp_path: Path) -> None:
    made = table({"a": {}, "b": {}})
    assert made.leader is None
    assert made.measure == DEV
    assert [path.name for path in write_table(made, tmp_path)] == ["table.md", "table.json", "table.png"]
    print_sweep(made, Console())


def test_files(tmp_path: Path) -> None:
    made = table({"w/o $x | y$": {0: 70.0, 1: 71.0}, "w/o head [red]": {0: 72.0, 1: 72.5}}, seeds=3)
    for path in write_table(made, tmp_path):
        assert path.stat().st_size > 100
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads((tmp_path / "table.json").read_text())
    assert (told["measure"], told["reference"], told["lower_is_better"]) == (DEV, "w/o $x | y$", False)
    assert told["versions"].keys() >= {"simcse_jax", "jax", "python"}
    row = told["rows"][1]
    assert row["seeds"] == {"0": {DEV: 72.0}, "1": {DEV: 72.5}}
    assert (row["missing"], row["overrides"]) == ([2], {"model.dropout": "0.1"})
    assert row["best"] == {"seed": 1, "value": 72.5}
    assert row["difference"]["seeds"] == [0, 1]
    for line in markdown(made).splitlines():
        if line.startswith("|"):
            assert line.count("|") == 8
    console = Console(width=60, record=True, file=io.StringIO())
    print_sweep(made, console)
    assert "head [red]" in console.export_text()


def test_pictures_name_every_row() -> None:
    figure = draw(table({"w/o MLP": {0: 70.0, 1: 71.0}, "w/o head": {0: 70.5}, "none": {}}))
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["w/o MLP", "w/o head", "none"]
    assert "nothing finished" in [text.get_text() for text in axes.texts]
    figure.canvas.draw()
    edges = [label.get_window_extent().x0 for label in axes.get_yticklabels()]
    assert min(edges) > 0


def test_figures_of_a_run(tmp_path: Path) -> None:
    (job,) = make_jobs(tmp_path, demo_plan({"a": {}}, (0,), tasks="sts,MR,geometry"))
    assert run_metrics(job) == {}
    job.run.mkdir(parents=True)
    lines = [
        {"step": 0, DEV: 30.0, "dev/pearson": 1.0},
        {"step": 1, "loss": 1.0},
        {"step": 2, DEV: 40.0, "dev/pearson": 2.0, "dev/perplexity": 9.0},
        {"step": 4, DEV: None, "dev/pearson": None},
        {"step": 6, DEV: 39.0, "dev/pearson": 3.0},
    ]
    (job.run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert run_metrics(job) == {}, "not finished"
    job.commands[0].record()
    dev = {DEV: 40.0, "dev/pearson": 2.0, "dev/perplexity": 9.0, LAST: 39.0}
    assert run_metrics(job) == dev
    job.evaluation.mkdir()
    scores = {
        "scores": {"STS12": {"all": 70.0, "mean": 1.0}, "MR": {"accuracy": 80.0}},
        "average": {"sts": 75.0},
        "geometry": {"alignment": 0.2, "uniformity": -2.0, "isotropy": math.nan, "singular_values": [1.0]},
        "protocol": {"tasks": {"STS12": {"headline": "all"}, "MR": {"headline": "accuracy"}}},
    }
    job.scores.write_text(json.dumps(scores))
    assert run_metrics(job) == dev, "not judged to the end"
    job.commands[1].mark.write_bytes(b"\xff")
    assert run_metrics(job) == dev, "a foreign mark"
    job.commands[1].record()
    job.scores.write_text(json.dumps(scores)[:50])
    with pytest.raises(UserError, match="sweep-judged"):
        run_metrics(job)
    job.scores.write_text(json.dumps(scores))
    figures = run_metrics(job)
    assert figures == dev | {"sts": 75.0, "STS12": 70.0, "MR": 80.0, "alignment": 0.2, "uniformity": -2.0}
    assert choose_measure(figures, job.judging) == "sts"
    with (job.run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 8, DEV: None}) + "\n")
    collapsed = {name: figure for name, figure in figures.items() if name != LAST}
    assert run_metrics(job) == collapsed, "the last evaluation has no figure"
    assert column_metrics(figures, job.judging, "sts") == ["MR", DEV, "dev/perplexity", "alignment", "uniformity"]
    assert column_metrics(figures, job.judging, LAST)[:2] == ["sts", "MR"]
    lines = [{"step": n, "dev/perplexity": value, "dev/mlm_accuracy": n} for n, value in enumerate((9.0, 5.0, 6.0))]
    (job.run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    job.scores.unlink()
    job.commands[1].mark.unlink()
    assert run_metrics(job) == {"dev/perplexity": 5.0, "dev/mlm_accuracy": 1}, "masked language modelling: the least"
    assert choose_measure(run_metrics(job), Judging()) == "dev/perplexity"


def test_a_run_that_another_kind_of_data_scores(tmp_path: Path) -> None:
    """The value that chose the best checkpoint stands first in a line, and the others are of that evaluation."""
    (job,) = make_jobs(tmp_path, demo_plan({"a": {}}, (0,)))
    job.run.mkdir(parents=True)
    values = [(1.0, 9.0), (3.0, 4.0), (2.0, 5.0)]
    lines = [{"step": n, "dev/mrr@10": mrr, "dev/ndcg@10": ndcg} for n, (mrr, ndcg) in enumerate(values)]
    (job.run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    job.commands[0].record()
    assert run_metrics(job) == {"dev/mrr@10": 3.0, "dev/ndcg@10": 4.0}
    assert choose_measure(run_metrics(job), Judging()) == "dev/ndcg@10"
    require_measure("dev/mrr@10", Judging())


def test_measures() -> None:
    assert possible_metrics(Judging())[:2] == ("dev/mean", DEV)  # a mixture's dev data first
    judged = possible_metrics(Judging("sts,transfer,geometry", pairs=("mine.tsv",)))
    assert judged[:2] == ("sts", "transfer")
    assert {"mine.tsv", "MR", "alignment", DEV} <= set(judged)
    assert possible_metrics(Judging(pairs=("mine.tsv",)))[0] == "mine.tsv"
    assert "alignment" not in possible_metrics(Judging("STS12"))
    require_measure("", Judging())
    require_measure("sts", Judging("sts"))
    with pytest.raises(UserError, match="--measure=sts") as caught:
        require_measure("sts", Judging())
    assert DEV in str(caught.value)


def test_settings_that_no_label_says_are_noted() -> None:
    """Rows of one folder may come from commands with other settings for all rows."""
    own = {"dropout=0.2": {"model.dropout": "0.2"}, "cold": {"objective.temperature": "0.01", "train.steps": "9"}}
    rows = tuple(PlanRow(label, label, {"eval.data": "x"} | given, {}, (0,)) for label, given in own.items())
    notes = markdown(make_table(SweepPlan("r", rows, Judging()), {}))
    assert "Settings: cold: objective.temperature=0.01, train.steps=9." in notes


def test_columns_of_other_figures() -> None:
    plan = SweepPlan(
        "r", (PlanRow("a", "a", {}, {}, (0, 1)), PlanRow("b", "b", {}, {}, (0, 1))), Judging("sts,geometry")
    )
    found = {
        ("a", 0): {"sts": 70.0, DEV: 80.0, "alignment": 0.2},
        ("a", 1): {"sts": 71.0, DEV: 81.0, "alignment": 0.3},
        ("b", 0): {"sts": 71.0, DEV: 80.0},
        ("b", 1): {"sts": 72.5, "alignment": -0.0001},
    }
    lines = markdown(make_table(plan, found)).splitlines()
    assert lines[2].endswith("| p | dev Spearman | alignment |")
    assert lines[4].endswith("| 80.50 ± 0.71 | 0.250 ± 0.071 |")
    assert lines[5].endswith("| 80.00 (1 of 2) | 0.000 (1 of 2) |")
