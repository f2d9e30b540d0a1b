"""What a run is judged by while it trains: graded pairs, held-out text, or both."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from simcse_jax.data.batches import Batches
from simcse_jax.encoding import SentenceEncoder
from simcse_jax.evaluation.graded_pairs import GradedPairs
from simcse_jax.evaluation.sts import evaluate_pairs
from simcse_jax.hosts.agreement import first_says
from simcse_jax.training.feeding import feed
from simcse_jax.training.mesh import replicated
from simcse_jax.training.step import EncodeBatch

Scores = dict[str, float]
# What is logged of an evaluation, as dev/NAME.
LOGGED = ("spearman", "pearson", "perplexity", "mlm_accuracy")


class Measure(NamedTuple):
    """The score that decides which state is the best."""

    name: str  # one of LOGGED
    words: str
    sign: int = 1  # -1 where less is better

    def of(self, scores: Scores) -> float:
        """The score, such that more is better."""
        return self.sign * scores[self.name]

    def shown(self, score: float) -> float:
        """The figure that a score came from."""
        return self.sign * score


SPEARMAN = Measure("spearman", "dev Spearman")
PERPLEXITY = Measure("perplexity", "dev perplexity", -1)


class Dev(NamedTuple):
    """How a run's parameters are judged."""

    measure: Measure
    evaluate: Callable[[Any], Scores]


def make_dev(
    pairs: GradedPairs | None, sentences: SentenceEncoder, perplexity: Callable[[Any], Scores] | None
) -> Dev | None:
    """How parameters are judged: by graded pairs if there are some, else by perplexity; None without either.

    Work is shared by all processes. Each has the whole result and scores it; process 0's figures count, so that all
    keep and stop alike even if their processors round differently.
    """
    if pairs is None and perplexity is None:
        return None

    def evaluate(params: Any) -> Scores:
        scores = evaluate_pairs(lambda texts: sentences.encode(params, texts), pairs) if pairs else {}
        scores |= perplexity(params) if perplexity else {}
        return json.loads(first_says(json.dumps(scores)))

    return Dev(SPEARMAN if pairs else PERPLEXITY, evaluate)


def make_perplexity(encode: EncodeBatch, batches: Batches, mesh: Mesh) -> Callable[[Any], Scores]:
    """A function from parameters to `perplexity` and `mlm_accuracy` (in %) on the whole batches of held-out text.

    encode: without dropout. Batches are masked the same each time, so figures of one run compare.
    """
    no_keys = np.zeros((1, 2), np.uint32)

    def sums(params: Any, batch: Any, keys: jax.Array) -> jax.Array:
        found = encode(params, batch, keys).predicted
        assert found is not None
        return jnp.stack([found.losses.sum(), found.right.sum(), found.count.sum().astype(found.losses.dtype)])

    step = jax.jit(sums, out_shardings=replicated(mesh))

    def perplexity(params: Any) -> Scores:
        found = [step(params, batch, no_keys) for batch in feed(batches, mesh, 0, batches.steps_per_epoch)]
        loss, right, count = np.asarray(jax.device_get(found), np.float64).sum(axis=0).tolist()
        return {"perplexity": math.exp(min(loss / max(count, 1), 50.0)), "mlm_accuracy": 100 * right / max(count, 1)}

    return perplexity
