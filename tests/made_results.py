"""Make results for tests of tables and reports: several seeds, a failure, spaces before and after, curves."""

import functools
from typing import Any

import numpy as np

from simcse_jax.evaluation.compare import compare
from simcse_jax.evaluation.results import Entry, ModelResult, Results, Score, Space
from simcse_jax.evaluation.sts import correlations

STS = ("STS12", "STSBenchmark")
TRANSFER = ("MR", "CR")


def space(mean: float, decay: float, seed: int = 0) -> Space:
    """Return a space of 48 directions: `mean` moves all sentences to one side, `decay` makes the spectrum steep."""
    values = np.arange(1, 49) ** -decay
    return Space(
        alignment=0.25 / (1 + mean),
        uniformity=-3 / (1 + mean) - 0.01 * seed,
        mean_cosine=mean / (1 + mean),
        effective_rank=48 / (1 + decay),
        isotropy=float(np.exp(-2 * mean / (1 + mean))),
        top_share=float(1 / np.sum(values**2)),
        singular_values=values,
        protocol={
            "source": "STSBenchmark",
            "data": "ab" * 16,
            "scale": [0.0, 5.0],
            "close pairs": 61,
            "close above": 4.0,
            "sentences": 300,
        },
    )


def sts_score(task: str, noise: float, seed: int, count: int = 300) -> Score:
    rng = np.random.default_rng(7)  # the same pairs for every model
    gold = np.round(rng.uniform(0, 5, count) * 4) / 4
    cosines = np.tanh(gold / 4 + noise * np.random.default_rng(seed).normal(size=count))
    spearman = correlations(cosines, gold)["spearman"]
    protocol = {"split": "test", "pairs": count, "aggregation": "Spearman x 100", "data": "cd" * 16}
    if task == "STSBenchmark":
        return Score(task, "spearman", {"spearman": spearman, "pearson": spearman - 1.5}, protocol, {}, gold, cosines)
    subsets = {"MSRpar": {"spearman": 61.25, "pearson": 60.5, "pairs": 750}}
    return Score(task, "all", {"all": spearman, "mean": spearman + 2}, protocol, subsets, gold, cosines)


def accuracy(task: str, share: float, seed: int) -> Score:
    correct = np.random.default_rng(seed).random(500) < share
    return Score(task, "accuracy", {"accuracy": 100 * float(correct.mean())}, {"examples": 500}, correct=correct)


def curves(seed: int, best: float) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    lines: list[dict[str, Any]] = [{"step": 0, "dev/spearman": 31.5, "dev/pearson": 30.0}]
    for step in range(25, 1001, 25):
        lines.append({"step": step, "loss": 2.5 * np.exp(-step / 120) + 0.02 + 0.01 * rng.random(), "accuracy": 0.9})
        lines[-1] |= {
            "alignment": 0.17 + step / 5000,
            "uniformity": -1.5 - 2 * np.tanh(step / 300) - 0.1 * rng.random(),
        }
        if step % 125 == 0:
            score = best - (best - 31.5) * np.exp(-step / 200) + rng.normal() - 3 * (step == 1000)
            lines.append({"step": step, "dev/spearman": score, "dev/pearson": score - 1})
    return lines


def protocol(name: str, seed: int) -> dict[str, Any]:
    return {
        "model": name,
        "fingerprint": f"{seed:012x}{0:020x}",
        "pooler": "cls_before_pooler",
        "pooler from": "the model",
        "precision": "float32",
        "truncation": "512 tokens",
    }


def model(name: str, noise: float, seed: int, trained: bool = False, recipe: str = "", fails: str = "") -> ModelResult:
    scores = {task: sts_score(task, noise, seed) for task in STS}
    scores |= {task: accuracy(task, 0.95 - noise / 3, seed) for task in TRANSFER}
    failures = {}
    if fails:
        del scores[fails]
        failures[fails] = "the file MR/rt-polarity.pos does not exist.\nThe folder given as --data lacks it."
    return ModelResult(
        name,
        protocol(name, seed),
        scores,
        failures,
        space=space(noise, 0.2 + noise / 2, seed),
        space_before=space(3.0, 1.0, seed) if trained else None,
        curves=curves(seed, 80 - 20 * noise) if trained else [],
        recipe=recipe,
    )


def results(*entries: Entry, **averages: tuple[str, ...]) -> Results:
    averages = averages or {"sts": STS, "transfer": TRANSFER}
    differences, best = compare(entries, averages, 20)
    return Results(entries, averages, differences, "2025-03-01T12:00:00+00:00", "0.1.0", best)


@functools.cache
def usual() -> Results:
    """Return a plain model, a run, five seeds of another, and a model that fails a task. Shared: change copies only."""
    seeds = tuple(model(f"runs/unsup-seed{seed}", 0.3, seed, trained=True, recipe="unsup") for seed in range(5))
    return results(
        Entry("bert-base-uncased", (model("bert-base-uncased", 1.2, 11),)),
        Entry("runs/sup", (model("runs/sup", 0.15, 12, trained=True, recipe="sup"),)),
        Entry("runs/unsup-seed*", seeds),
        Entry("glove", (model("glove", 0.9, 13, fails="MR"),)),
    )


@functools.cache
def crowd() -> Results:
    """Return twelve models with long, similar names. Shared: change copies only."""
    entries = []
    for seed in range(12):
        kind = "sup" if seed % 2 else "unsup"
        name = f"/data/somebody/experiments/{kind}-simcse-bert-base-uncased-batch512-temperature0.05/run{seed}/model"
        entries.append(Entry(name, (model(name, 0.3 + seed / 50, seed, trained=seed > 7, recipe=name),)))
    return results(*entries)
