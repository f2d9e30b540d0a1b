"""Score a run's parameters while it trains: on a task of the user's own, on held-out text, or on both."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from simcse_jax.config.layout import with_batch_size
from simcse_jax.config.schema import SOURCES, Config
from simcse_jax.data.batches import Batches
from simcse_jax.data.corpus import Corpus
from simcse_jax.data.examples import ColumnExamples
from simcse_jax.encoder.model import Encoder
from simcse_jax.encoding import SentenceEncoder
from simcse_jax.evaluation.kinds import KINDS, OwnData, parse_task, score_task
from simcse_jax.evaluation.results import Encode, RoleEncode
from simcse_jax.hosts.agreement import broadcast
from simcse_jax.model_folder.text_settings import TextSettings, trained_texts
from simcse_jax.system.errors import UserError, about
from simcse_jax.training.feeding import feed, load_texts, make_layout, make_masking
from simcse_jax.training.held_out import is_held_out
from simcse_jax.training.mesh import replicated
from simcse_jax.training.program import make_encode

Scores = dict[str, float]
OF_TEXT = ("perplexity", "mlm_accuracy")  # what is logged of held-out text


class Measure(NamedTuple):
    """Name the score that decides which state is the best."""

    name: str  # of one of the scores
    words: str
    sign: int = 1  # -1 where less is better

    def of(self, scores: Scores) -> float:
        """Return the score with a sign such that more is better."""
        return self.sign * scores[self.name]

    def shown(self, score: float) -> float:
        """Return the score as users see it, from what `of` returned."""
        return self.sign * score


SPEARMAN = Measure("spearman", "dev Spearman")
PERPLEXITY = Measure("perplexity", "dev perplexity", -1)
MEAN = Measure("mean", "dev mean")  # over the dev data of sources


class Dev(NamedTuple):
    """Hold how a run's parameters are scored."""

    measure: Measure
    evaluate: Callable[[Any], Scores]
    notes: Mapping[str, str] = MappingProxyType({})  # by key of the recipe: on what its scores are worth
    logged: tuple[str, ...] = ("spearman", "pearson", *OF_TEXT)  # the scores that are logged, as dev/NAME
    parts: tuple[str, ...] = ()  # the scores whose mean decides


class DevTask(NamedTuple):
    """Hold the task that scores a run, and the value of its score that chooses the best state."""

    name: str  # of a task of one's own
    data: OwnData
    measure: Measure

    @property
    def logged(self) -> tuple[str, ...]:
        """The values that are logged, the one that chooses first."""
        return tuple(dict.fromkeys((self.measure.name, *KINDS[parse_task(self.name)[0]].logged)))


def load_dev_task(name: str, measure: str, data: Any = None) -> DevTask:
    """Return the task that eval.data names; UserError if it cannot be read, or has no such measure ("": its first).

    name: of a task of one's own, see evaluation/kinds.py; data: its OwnData, if they are loaded.
    """
    kind, source = parse_task(name)
    known = KINDS[kind].measures
    if measure and measure not in known:
        raise UserError(
            f"eval.measure = {measure!r}: must be one of {', '.join(known)}, the values of {kind} (eval.data = "
            f"{name!r}).\nFor example --config.eval.measure={known[0]}"
        )
    chosen = measure or known[0]
    own = SPEARMAN if chosen == SPEARMAN.name else Measure(chosen, f"dev {chosen}")
    return DevTask(name, data or KINDS[kind].load(source), own)


class SourceDev(NamedTuple):
    """Hold the dev data of one source of a mixture."""

    task: DevTask
    texts: TextSettings  # with the source's prompts


def load_source_devs(config: Config) -> dict[str, SourceDev]:
    """Return the dev data of the sources that have any, by name; UserError if they cannot be read."""
    found = {}
    for source in config.sources:
        if not source.dev or not source.weight:
            continue
        key = f"data.sources.{source.name}.dev"
        if is_held_out(source.dev):
            raise UserError(
                f"{key} = {source.dev!r}: of a mixture, nothing can be held out.\nGive a file that is no source, or "
                f"none: --config.{key}="
            )
        with about(key, "a file of graded pairs, or a task such as retrieval:DIR"):
            texts = trained_texts(source.data.prompts, source.data.include_prompt, {})
            found[source.name] = SourceDev(load_dev_task(source.dev, ""), texts)
    return found


def make_dev(
    task: DevTask | None,
    sentences: SentenceEncoder,
    perplexity: Callable[[Any], Scores] | None,
    prompts: Mapping[str, str] | None = None,
    of_sources: Mapping[str, SourceDev] | None = None,
) -> Dev | None:
    """Return how parameters are scored: by a task if there is one, else by perplexity; None without either.

    With dev data of sources, their scores are NAME/MEASURE, and the mean over them and the task decides.

    All processes encode together, and each scores the whole result. The scores of process 0 count, so that all keep
    and stop alike even if their processors round differently. prompts: of queries and of documents, where these have
    others than other texts.
    """
    sources = of_sources or {}
    if task is None and perplexity is None and not sources:
        return None

    def evaluate(params: Any) -> Scores:
        def encoder(prompt: str | None, roles: Mapping[str, str]) -> Encode:
            def encode(prompt: str | None) -> Encode:
                return lambda texts: sentences.encode(params, texts, prompt=prompt)

            both = {role: encode(of_role) for role, of_role in roles.items()}
            return RoleEncode(encode(prompt), both) if both else encode(prompt)

        scores = task_scores(task, encoder(None, prompts or {})) if task else {}
        chosen = [scores[task.measure.name]] if task else []
        for name, (own, texts) in sources.items():
            found = task_scores(own, encoder(texts.prompt, texts.role_prompts))
            chosen.append(found[own.measure.name])
            scores |= {f"{name}/{measure}": value for measure, value in found.items()}
        if sources:
            scores[MEAN.name] = sum(chosen) / len(chosen)
        scores |= perplexity(params) if perplexity else {}
        return json.loads(broadcast(json.dumps(scores)))

    notes = {"eval.data": task.data.note} if task else {}
    notes |= {f"{SOURCES}{name}.dev": own.data.note for name, (own, _) in sources.items()}
    if sources:
        logged = [f"{name}/{measure}" for name, (own, _) in sources.items() for measure in own.logged]
        parts = [f"{name}/{own.measure.name}" for name, (own, _) in sources.items()]
        logged, parts = ([*task.logged, *logged], [task.measure.name, *parts]) if task else (logged, parts)
        return Dev(MEAN, evaluate, notes, (MEAN.name, *logged, *OF_TEXT), tuple(parts))
    if task is None:
        return Dev(PERPLEXITY, evaluate, logged=OF_TEXT)
    return Dev(task.measure, evaluate, notes, (*task.logged, *OF_TEXT))


def task_scores(task: DevTask, encode: Callable[[list[str]], np.ndarray]) -> Scores:
    """Return the values that are logged, and the numbers of what they are over, such as "pairs" or "queries"."""
    score = score_task(encode, task.data, task.name)
    counts = {name: value for name, value in score.protocol.items() if type(value) is int}
    return {name: score.values[name] for name in task.logged} | counts


class HeldOut(NamedTuple):
    """Hold the text on which perplexity is computed."""

    config: Config  # the run's, with smaller batches where there is too little text for its own
    corpus: Corpus
    batches: Batches  # the same whatever the run's seed


def load_held_out(config: Config, tokenizer: Any) -> HeldOut:
    """Return the tokenised text of mlm.validation, in batches; UserError where there is too little for the devices.

    Text of less than a batch is taken in batches of a power of two, so that the examples left over do not depend on
    the number of devices.
    """
    corpus = load_texts(config, config.mlm.validation, tokenizer, "dev")
    size, devices = 1 << len(corpus).bit_length() - 1, config.mesh.devices
    if len(corpus) < config.train.batch_size:
        if size % devices:
            raise UserError(
                f"mlm.validation = {config.mlm.validation!r} holds {len(corpus)} examples: less than a batch, and "
                f"{size} of them do not divide over {devices} devices.\nGive more held-out text, or leave it out."
            )
        config = with_batch_size(config, size)
    masking = make_masking(config, tokenizer, seed=0)
    return HeldOut(config, corpus, Batches(ColumnExamples(corpus), make_layout(config), 0, masking))


def make_perplexity(held_out: HeldOut, encoder: Encoder, mesh: Mesh) -> Callable[[Any], Scores]:
    """Return a function from parameters to `perplexity` and `mlm_accuracy` (%) on the whole batches of held-out text.

    Batches are masked the same each time, so the scores of a run can be compared.
    """
    no_dropout = encoder.clone(architecture=dataclasses.replace(encoder.architecture, dropout=0.0))
    encode, batches = make_encode(held_out.config, no_dropout, mesh), held_out.batches
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
