"""The demonstration's table: word overlap, untrained and trained encoders, mean and spread over finished runs.

for seed in 0 1 2 3 4; do for variant in unsup sup; do
python -m simcse_jax.train --config=configs/demo.py:$variant --config.train.seed=$seed \
        --workdir=runs/demo-$variant-$seed
done; done
python -m benchmarks.demo_scores runs/demo-*
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import spearmanr

from simcse_jax.data.demo import word_overlap
from simcse_jax.data.tokenizer import load_tokenizer
from simcse_jax.encoder.bert import Encoder, EncoderConfig
from simcse_jax.encoding import SentenceEncoder
from simcse_jax.evaluation.graded_pairs import GradedPairs, load_graded_pairs
from simcse_jax.evaluation.sts import evaluate_pairs
from simcse_jax.training.checkpoint import load_best
from simcse_jax.training.mesh import make_mesh
from simcse_jax.training.metrics import read_metrics


def overlap_score(pairs: GradedPairs) -> float:
    """Spearman x 100 of word overlap (Jaccard of lower-cased words) with the grades."""
    overlaps = [word_overlap(a, b) for a, b in zip(pairs.first, pairs.second, strict=True)]
    return 100 * float(np.asarray(spearmanr(overlaps, pairs.gold))[0])


def scores_of(workdir: Path, test: GradedPairs) -> dict[str, float]:
    """Dev at step 0, dev and test of the best checkpoint; Spearman x 100."""
    params, info = load_best(workdir)
    encoder = Encoder(EncoderConfig(**info["encoder"]), has_head=info["has_head"])
    tokenizer = load_tokenizer(workdir / info["tokenizer"])
    sentences = SentenceEncoder(encoder, tokenizer, make_mesh(jax.device_count()), info["pooler"])
    params = jax.tree.map(jnp.asarray, params)
    return {
        "dev, untrained": next(line["dev/spearman"] for line in read_metrics(workdir) if line["step"] == 0),
        "dev": info["scores"]["spearman"],
        "test": evaluate_pairs(lambda texts: sentences.encode(params, texts), test)["spearman"],
    }


def main(workdirs: list[str]) -> None:
    """Print the table of these run folders, grouped by what they trained on."""
    dev, test = load_graded_pairs("demo:dev"), load_graded_pairs("demo:test")
    runs = defaultdict(list)
    for workdir in map(Path, workdirs):
        runs[load_best(workdir)[1]["recipe"]["data.files"]].append(scores_of(workdir, test))
    print("| | dev, untrained | dev | test | runs |\n|---|---|---|---|---|")
    print(f"| word overlap | | {overlap_score(dev):.2f} | {overlap_score(test):.2f} | |")
    for files, scores in sorted(runs.items()):
        columns = [np.array([score[name] for score in scores]) for name in ("dev, untrained", "dev", "test")]
        cells = [f"{values.mean():.2f} ± {values.std(ddof=min(1, len(values) - 1)):.2f}" for values in columns]
        print(f"| trained on {files} | {' | '.join(cells)} | {len(scores)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
