"""A configuration to everything that a run is made of: tokenizer, data, encoder, loss, compiled step, dev score."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from simcse_jax.config import Config, row_length
from simcse_jax.data.batches import Batches, Layout
from simcse_jax.data.corpus import Corpus, load_corpus
from simcse_jax.data.positives import views_of
from simcse_jax.data.tokenizer import load_tokenizer
from simcse_jax.encoder.bert import Encoder
from simcse_jax.encoding import SentenceEncoder
from simcse_jax.errors import UserError
from simcse_jax.evaluation.graded_pairs import GradedPairs, load_graded_pairs
from simcse_jax.evaluation.sts import evaluate_pairs
from simcse_jax.hosts.agreement import first_says, is_first, require_equal, together
from simcse_jax.training.folder import (
    TOKENIZER,
    claimed,
    current_tokenizer,
    holds_checkpoint,
    keep_tokenizer,
    require_same_data,
    require_shared,
    tokenizer_draft,
    write_run_info,
)
from simcse_jax.training.mesh import make_mesh, place
from simcse_jax.training.model import first_params, local_model, make_encoder, write_tokenizer
from simcse_jax.training.optimizer import make_schedule
from simcse_jax.training.program import Program, make_program
from simcse_jax.training.state import TrainState, init_state

# Keys that may differ between the hosts of one run: where the same content lies there.
LOCAL_KEYS = ("data.files", "data.cache_dir", "eval.data")

Evaluate = Callable[[Any], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of one run; nothing here changes while it trains."""

    config: Config
    program: Program
    corpus: Corpus
    batches: Batches
    encoder: Encoder
    total_steps: int
    learning_rate: Callable[[int], Any]
    initial_state: Callable[[], TrainState]
    evaluate: Evaluate | None  # parameters -> dev scores; None without eval.data


def prepare(config: Config, workdir: Path) -> Run:
    """The parts of the run that this configuration describes; writes `workdir/config.json` and `workdir/tokenizer`.

    Everything that can be wrong with files, models and the folder is found here, before the first step, and before
    anything is written: UserError, on all processes when it is found on one.
    """
    require_equal({key: value for key, value in config.flat().items() if key not in LOCAL_KEYS})
    with claimed(workdir, config):
        require_shared(workdir)
        return _assemble(config, workdir)


def _assemble(config: Config, workdir: Path) -> Run:
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    files, columns = listed(config.data.files), listed(config.data.columns)
    resumes = json.loads(first_says(json.dumps(holds_checkpoint(workdir))))
    with together():
        with _about("eval.data", "a file of graded pairs, or nothing for no evaluation"):
            pairs = load_graded_pairs(config.eval.data) if config.eval.data else None
        with _about("model.name", "a model folder"):
            folder = local_model(config.model)
        if is_first() and not (resumes and (workdir / TOKENIZER).is_dir()):
            write_tokenizer(config.model, folder, files, columns, tokenizer_draft(workdir))
    with together():
        tokenizer = load_tokenizer(current_tokenizer(workdir))
        encoder = make_encoder(config, folder, len(tokenizer), mesh.devices.flat[0].platform)
        initial_params = first_params(config, encoder, folder, resumes)
        corpus, views, batches = load_data(config, tokenizer)
    contents = {"data.files": corpus.fingerprint, "eval.data": pairs.fingerprint if pairs else ""}
    require_equal({f"the content of {key}": fingerprint for key, fingerprint in contents.items()})
    total_steps = config.train.total_steps(batches.steps_per_epoch)
    program = make_program(config, encoder, mesh, views, total_steps)

    def initial_state() -> TrainState:
        params = place(initial_params(), program.shardings.params)
        start = jax.jit(lambda p: init_state(p, program.optimizer, config.train.seed), out_shardings=program.shardings)
        return start(params)

    run = Run(
        config=config,
        program=program,
        corpus=corpus,
        batches=batches,
        encoder=encoder,
        total_steps=total_steps,
        learning_rate=make_schedule(config.optimizer, total_steps),
        initial_state=initial_state,
        evaluate=_evaluation(pairs, SentenceEncoder(encoder, tokenizer, mesh, config.model.pooler)),
    )
    info = run_info(run, pairs)
    with together():
        require_same_data(workdir, info)
    with together():
        if is_first():
            write_run_info(workdir, info)
            keep_tokenizer(workdir)
    return run


def load_data(config: Config, tokenizer: Any) -> tuple[Corpus, int, Batches]:
    """The tokenised data, how often each of its texts is encoded, and its batches."""
    files, columns = listed(config.data.files), listed(config.data.columns)
    corpus = load_corpus(files, tokenizer, config.data.max_length, columns, config.data.cache_dir or None)
    views = views_of(config.data.positive, corpus.columns)
    layout = Layout(config.train.batch_size, config.group_size, row_length(config.data), not config.data.packed)
    return corpus, views, Batches(corpus, layout, config.train.seed)


def run_info(run: Run, pairs: GradedPairs | None) -> dict[str, Any]:
    """What config.json of the run folder says: enough to tell one run from another, and to export its model."""
    model = run.config.model
    return {
        "recipe": run.config.flat(),
        "encoder": dataclasses.asdict(run.encoder.config),
        "has_head": run.encoder.has_head,
        "pooler": model.pooler,
        "train_pooler": model.train_pooler,
        "tokenizer": TOKENIZER,
        "data": {
            "files": list(run.corpus.report.files),
            "columns": list(run.corpus.columns),
            "examples": run.corpus.report.examples,
            "fingerprint": run.corpus.fingerprint,
        },
        "eval": {"data": run.config.eval.data, "fingerprint": pairs.fingerprint if pairs else ""},
        "total_steps": run.total_steps,
    }


@contextmanager
def _about(key: str, takes: str) -> Iterator[None]:
    """Errors within say which key they are about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}\nThis is about --config.{key}, which takes {takes}.") from error


def listed(value: str) -> list[str]:
    """The parts of a comma-separated value."""
    return [part.strip() for part in value.split(",") if part.strip()]


def _evaluation(pairs: GradedPairs | None, sentences: SentenceEncoder) -> Evaluate | None:
    """A function from parameters to their scores on the dev pairs; None when there are none.

    Encoding is shared by all processes. Each has the whole result and scores it; process 0's figures count, so that
    all keep and stop alike even if their processors round differently.
    """
    if pairs is None:
        return None

    def evaluate(params: Any) -> dict[str, float]:
        scores = evaluate_pairs(lambda texts: sentences.encode(params, texts), pairs)
        return json.loads(first_says(json.dumps(scores)))

    return evaluate
