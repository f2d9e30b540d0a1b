"""A configuration to everything that a run is made of: tokenizer, data, encoder, loss, compiled step, dev score."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from simcse_jax.config.layout import row_length, with_batch_size
from simcse_jax.config.schema import LOCAL_KEYS, Config
from simcse_jax.data.batches import Batches, Layout
from simcse_jax.data.corpus import Corpus, load_corpus
from simcse_jax.data.examples import AsTheyAre
from simcse_jax.data.masking import Masking
from simcse_jax.data.positives import make_examples, synonyms_fingerprint, views_of
from simcse_jax.data.tokenizer import load_tokenizer
from simcse_jax.data.vocabulary import id_count, require_mask_token, vocabulary_of
from simcse_jax.encoder.model import Encoder
from simcse_jax.encoding import SentenceEncoder
from simcse_jax.evaluation.graded_pairs import load_graded_pairs
from simcse_jax.hosts.agreement import first_says, is_first, require_equal, together
from simcse_jax.system.errors import UserError
from simcse_jax.training.dev import Dev, Scores, make_dev, make_perplexity
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
from simcse_jax.training.model import first_params, load_predictor, local_model, make_encoder, write_tokenizer
from simcse_jax.training.program import Program, apart, make_encode, make_program
from simcse_jax.training.state import PREDICTOR, TrainState, encoder_params, make_schedule


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
    dev: Dev | None  # how parameters are judged; None without eval.data and mlm.validation


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
        encoder = make_encoder(config, folder, id_count(tokenizer), mesh.devices.flat[0].platform)
        initial_params = first_params(config, encoder, folder, resumes)
        with _about("data.mask_model", "a model folder with a masked-language-model head"):
            predictor, predictor_params = load_predictor(config, encoder, folder, tokenizer, resumes)
        corpus, views, batches = load_data(config, tokenizer)
        with _about("mlm.validation", "files of text, with the columns of data.columns"):
            held_out = load_held_out(config, tokenizer) if config.mlm.validation else None
    contents = {
        "data.files": corpus.fingerprint,
        "eval.data": pairs.fingerprint if pairs else "",
        "mlm.validation": held_out.corpus.fingerprint if held_out else "",
        "data.synonyms": synonyms_fingerprint(config.data.how),
    }
    require_equal({f"the content of {key}": fingerprint for key, fingerprint in contents.items()})
    total_steps = config.train.total_steps(batches.steps_per_epoch)
    program = make_program(config, encoder, mesh, views, total_steps, predictor)

    def initial_state() -> TrainState:
        params = place(initial_params(), encoder_params(program.shardings.params))
        if predictor is None:
            return program.start(params, None)
        return program.start(params, place(predictor_params(), program.shardings.extra[PREDICTOR]))

    run = Run(
        config=config,
        program=program,
        corpus=corpus,
        batches=batches,
        encoder=encoder,
        total_steps=total_steps,
        learning_rate=make_schedule(config.optimizer, total_steps),
        initial_state=initial_state,
        dev=make_dev(
            pairs,
            SentenceEncoder(encoder, tokenizer, mesh, config.model.pooler),
            _perplexity(held_out, encoder, mesh) if held_out else None,
        ),
    )
    info = run_info(run, contents)
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
    seed, views, examples = config.train.seed, 0, AsTheyAre(corpus)
    if config.objective.loss != "none":
        views = views_of(config.data.positive, corpus.columns)
        examples = make_examples(config.data.how, corpus, tokenizer, lambda: vocabulary_of(tokenizer), seed)
        _require_hard_negatives(config, examples.texts)
    masking, hiding = _masking(config, tokenizer, seed), _hiding(config, tokenizer) if views else None
    lasting = config.objective.queue > 0
    layout = dataclasses.replace(_layout(config), apart=apart(config, views))
    return corpus, views, Batches(examples, layout, seed, masking, hiding, lasting)


def _require_hard_negatives(config: Config, texts: int) -> None:
    weight = config.objective.hard_negative_weight
    if weight != 1 and texts < 3:
        raise UserError(
            f"objective.hard_negative_weight = {weight}, and the data has no hard negatives.\nGive a third column "
            "with --config.data.positive=columns (configs/sup.py), or --config.objective.hard_negative_weight=1."
        )


class HeldOut(NamedTuple):
    """Text on which perplexity is taken, and how."""

    config: Config  # the run's, with smaller batches where there is too little text for its own
    corpus: Corpus
    batches: Batches  # the same whatever the run's seed


def load_held_out(config: Config, tokenizer: Any) -> HeldOut:
    """The tokenised text of mlm.validation, in batches; UserError where there is too little for the devices.

    Less than a batch is taken in batches of a power of two, so that what is left over does not depend on the devices.
    """
    files, columns = listed(config.mlm.validation), listed(config.data.columns)
    corpus = load_corpus(files, tokenizer, config.data.max_length, columns, config.data.cache_dir or None)
    size, devices = 1 << len(corpus).bit_length() - 1, config.mesh.devices
    if len(corpus) < config.train.batch_size:
        if size % devices:
            raise UserError(
                f"mlm.validation = {config.mlm.validation!r} holds {len(corpus)} examples: less than a batch, and "
                f"{size} of them do not divide over {devices} devices.\nGive more held-out text, or leave it out."
            )
        config = with_batch_size(config, size)
    return HeldOut(config, corpus, Batches(AsTheyAre(corpus), _layout(config), 0, _masking(config, tokenizer, seed=0)))


def _layout(config: Config) -> Layout:
    return Layout(config.train.batch_size, config.group_size, row_length(config.data), not config.data.packed)


def _masking(config: Config, tokenizer: Any, seed: int) -> Masking | None:
    if not config.mlm.weight:
        return None
    vocabulary = vocabulary_of(tokenizer)
    require_mask_token(vocabulary, f"mlm.weight = {config.mlm.weight}", "--config.mlm.weight=0")
    return Masking(vocabulary, config.mlm.rate, config.mlm.whole_word, seed)


def _hiding(config: Config, tokenizer: Any) -> Masking | None:
    """What a predictor is to replace in positives."""
    if config.data.positive != "mask":
        return None
    vocabulary = vocabulary_of(tokenizer)
    require_mask_token(vocabulary, "data.positive = 'mask'", "--config.data.positive=dropout")
    return Masking(vocabulary, config.data.rate, whole_word=False, seed=config.train.seed, all_masked=True)


def _perplexity(held_out: HeldOut, encoder: Encoder, mesh: Mesh) -> Callable[[Any], Scores]:
    no_dropout = encoder.clone(architecture=dataclasses.replace(encoder.architecture, dropout=0.0))
    return make_perplexity(make_encode(held_out.config, no_dropout, mesh), held_out.batches, mesh)


def run_info(run: Run, contents: dict[str, str]) -> dict[str, Any]:
    """What config.json of the run folder says: enough to tell one run from another, and to export its model.

    contents: fingerprints of what is evaluated on, by its key.
    """
    model = run.config.model
    return {
        "recipe": run.config.flat(),
        "encoder": run.encoder.architecture.saved(),
        "has_head": run.encoder.has_head,
        "has_mlm_head": run.encoder.has_mlm_head,
        "pooler": model.pooler,
        "train_pooler": model.train_pooler,
        "tokenizer": TOKENIZER,
        "data": {
            "files": list(run.corpus.report.files),
            "columns": list(run.corpus.columns),
            "examples": run.corpus.report.examples,
            "fingerprint": run.corpus.fingerprint,
        },
        "eval": {"data": run.config.eval.data, "fingerprint": contents["eval.data"]},
        "validation": {"files": run.config.mlm.validation, "fingerprint": contents["mlm.validation"]},
        "synonyms": {"file": run.config.data.synonyms, "fingerprint": contents["data.synonyms"]},
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
