r"""Print the demo's table: word overlap, encoders before and after training, mean and spread over finished runs.

    for seed in 0 1 2 3 4; do for variant in unsup sup scratch scratch-sup; do
    python -m simcse_jax.train --config=configs/demo.py:$variant --config.train.seed=$seed \
        --workdir=runs/demo-$variant-$seed
    done; done
    python -m benchmarks.demo_scores runs/demo-*

The arguments are finished run folders.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from simcse_jax.embedding_model import open_model
from simcse_jax.evaluation.graded_pairs import GradedPairs, load_graded_pairs
from simcse_jax.evaluation.sts import evaluate_pairs
from simcse_jax.model_folder.run_folder import read_run_info
from simcse_jax.runs.metrics import read_metrics


def word_overlap(first: str, second: str) -> float:
    """Return words in both over words in either, lower-cased (Jaccard): what a model without meaning scores."""
    one, other = (set(re.findall(r"[\w'-]+", text.lower())) for text in (first, second))
    return len(one & other) / len(one | other)


def overlap_score(pairs: GradedPairs) -> float:
    """Return Spearman x 100 between word overlap (Jaccard of lower-cased words) and the gold scores."""
    overlaps = [word_overlap(a, b) for a, b in zip(pairs.first, pairs.second, strict=True)]
    return 100 * float(np.asarray(spearmanr(overlaps, pairs.gold))[0])


def scores_of(workdir: Path, test: GradedPairs) -> dict[str, float]:
    """Return Spearman x 100 of dev at step 0, and of dev and test with the best checkpoint."""
    dev = [line["dev/spearman"] for line in read_metrics(workdir) if "dev/spearman" in line]
    return {
        "dev, before training": dev[0],
        "dev": max(dev),
        "test": evaluate_pairs(open_model(str(workdir)).encode, test)["spearman"],
    }


def main(workdirs: list[str]) -> None:
    """Print the table of these run folders, grouped by training data and initial weights."""
    dev, test = load_graded_pairs("demo:dev"), load_graded_pairs("demo:test")
    runs = defaultdict(list)
    for workdir in map(Path, workdirs):
        info = read_run_info(workdir)
        if info is None:
            sys.exit(f"{workdir} is no run folder")
        recipe = info["recipe"]
        start = recipe["model.name"] if recipe["model.init"] == "pretrained" else "random weights"
        runs[recipe["data.files"], start].append(scores_of(workdir, test))
    print("| | dev, before training | dev | test | runs |\n|---|---|---|---|---|")
    print(f"| word overlap | | {overlap_score(dev):.2f} | {overlap_score(test):.2f} | |")
    for (files, start), scores in sorted(runs.items()):
        columns = [np.array([score[name] for score in scores]) for name in ("dev, before training", "dev", "test")]
        cells = [f"{values.mean():.2f} ± {values.std(ddof=min(1, len(values) - 1)):.2f}" for values in columns]
        print(f"| {files}, from {start} | {' | '.join(cells)} | {len(scores)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
