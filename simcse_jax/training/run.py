"""A configuration to everything that a run is made of: tokenizer, data, encoder, loss, compiled step, dev score."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from simcse_jax.config import LARGEST_GROUP, Config, ModelConfig, row_length
from simcse_jax.data.batches import Batches, Layout
from simcse_jax.data.corpus import Corpus, load_corpus, read_sentences
from simcse_jax.data.positives import views_of
from simcse_jax.data.tokenizer import load_tokenizer, train_wordpiece
from simcse_jax.encoder.bert import Encoder, EncoderConfig
from simcse_jax.encoder.init import init_params, parameter_shapes
from simcse_jax.encoder.pretrained import load_params, read_config
from simcse_jax.encoding import SentenceEncoder
from simcse_jax.errors import UserError
from simcse_jax.evaluation.graded_pairs import GradedPairs, load_graded_pairs
from simcse_jax.evaluation.sts import evaluate_pairs
from simcse_jax.hub import model_folder
from simcse_jax.objective.contrastive import make_info_nce
from simcse_jax.training.folder import (
    TOKENIZER,
    claimed,
    holds_checkpoint,
    keep_tokenizer,
    require_same_data,
    tokenizer_draft,
    write_run_info,
)
from simcse_jax.training.mesh import make_mesh, state_shardings
from simcse_jax.training.optimizer import make_optimizer, make_schedule
from simcse_jax.training.state import TrainState, init_state
from simcse_jax.training.step import TrainStep, compile_train_step, make_embed_group, make_loss, make_train_step

# Sentences that a tokenizer trained on the spot looks at.
TOKENIZER_SENTENCES = 1_000_000

# The encoder of model.init = "random" without a model.name: BERT-base, but for the sizes that are given.
BERT_BASE = EncoderConfig("bert", 30522, 768, 12, 12, 3072)

Evaluate = Callable[[Any], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of one run; nothing here changes while it trains."""

    config: Config
    mesh: Mesh
    corpus: Corpus
    batches: Batches
    encoder: Encoder
    total_steps: int
    shapes: TrainState  # ShapeDtypeStructs with shardings: what a restored state is laid out like
    train_step: TrainStep
    learning_rate: Callable[[int], Any]
    initial_state: Callable[[], TrainState]
    evaluate: Evaluate | None  # parameters -> dev scores; None without eval.data


def prepare(config: Config, workdir: Path) -> Run:
    """The parts of the run that this configuration describes; writes `workdir/config.json` and `workdir/tokenizer`.

    Everything that can be wrong with files, models and the folder is found here, before the first step, and before
    anything is written: UserError.
    """
    with claimed(workdir, config):
        return _assemble(config, workdir)


def _assemble(config: Config, workdir: Path) -> Run:
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    files, columns = _listed(config.data.files), tuple(_listed(config.data.columns))
    with _about("eval.data", "a file of graded pairs, or nothing for no evaluation"):
        pairs = load_graded_pairs(config.eval.data) if config.eval.data else None
    with _about("model.name", "a model folder"):
        folder = _model_folder(config.model)
    sizes = read_config(folder, dropout=config.model.dropout) if folder else None
    tokenizer = _tokenizer(config.model, folder, files, columns, workdir)
    encoder = _encoder(config, sizes, len(tokenizer))
    initial_params = _initial_params(config, encoder, folder, holds_checkpoint(workdir))
    corpus = load_corpus(files, tokenizer, config.data.max_length, columns, config.data.cache_dir or None)
    views = views_of(config.data.positive, corpus.columns)
    layout = Layout(config.train.batch_size, config.group_size, row_length(config.data), not config.data.packed)
    batches = Batches(corpus, layout, config.train.seed)
    total_steps = config.train.total_steps(batches.steps_per_epoch)

    objective = make_info_nce(mesh, **dataclasses.asdict(config.objective))
    embed = make_embed_group(encoder, config.model.train_pooler, config.group_size)
    loss = make_loss(embed, objective, mesh, config.train.groups_at_once)
    optimizer = make_optimizer(config.optimizer, total_steps)
    shapes = jax.eval_shape(lambda p: init_state(p, optimizer, config.train.seed), parameter_shapes(encoder))
    shardings = state_shardings(mesh, shapes)

    def initial_state() -> TrainState:
        placed = jax.device_put(initial_params(), shardings.params)
        return jax.jit(lambda p: init_state(p, optimizer, config.train.seed), out_shardings=shardings)(placed)

    run = Run(
        config=config,
        mesh=mesh,
        corpus=corpus,
        batches=batches,
        encoder=encoder,
        total_steps=total_steps,
        shapes=jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings),
        train_step=compile_train_step(make_train_step(loss, optimizer, views), mesh, shardings),
        learning_rate=make_schedule(config.optimizer, total_steps),
        initial_state=initial_state,
        evaluate=_evaluation(pairs, SentenceEncoder(encoder, tokenizer, mesh, config.model.pooler)),
    )
    info = run_info(run, pairs)
    require_same_data(workdir, info)
    write_run_info(workdir, info)
    keep_tokenizer(workdir)
    return run


def describe(run: Run) -> list[str]:
    """Lines that say what is about to be trained."""
    config, encoder = run.config, run.encoder.config
    count = sum(x.size for x in jax.tree.leaves(run.shapes.params))
    layout = run.batches.layout
    groups = layout.batch_size // layout.group_size
    rows = ", ".join(str(count) for count in run.batches.row_counts)
    return [
        f"model: {encoder.family}, {encoder.num_hidden_layers} layers, width {encoder.hidden_size}, {count:,} "
        f"parameters, {config.model.init} weights; pooler: {config.model.train_pooler} in training, "
        f"{config.model.pooler} at test time",
        f"devices: {run.mesh.size} x {jax.devices()[0].device_kind}, mesh data {run.mesh.shape['data']} x fsdp "
        f"{run.mesh.shape['fsdp']}; compute in {config.model.dtype}",
        f"batch: {layout.batch_size} examples = {groups} groups of {layout.group_size}, in rows of {layout.row_length} "
        f"tokens; row counts in use: {rows} (each compiled once)",
        f"steps: {run.total_steps:,} of {run.batches.steps_per_epoch:,} an epoch; {run.batches.dropped:,} examples "
        "left out of each epoch's last, short batch",
        *run.corpus.report.lines(),
        *_notes(run),
    ]


def _notes(run: Run) -> list[str]:
    """What is allowed and rarely meant."""
    notes, warmup, layout = [], run.config.optimizer.warmup_steps, run.batches.layout
    if warmup >= run.total_steps:
        notes.append(f"note: the {run.total_steps} steps end within optimizer.warmup_steps = {warmup}")
    share = layout.batch_size // run.mesh.size
    if layout.group_size < min(share, LARGEST_GROUP) / 4:
        notes.append(
            f"note: {share} examples a device divide into groups of {layout.group_size} only, which is slow; a "
            f"multiple of {LARGEST_GROUP} is best"
        )
    return notes


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


def _model_folder(model: ModelConfig) -> Path | None:
    """The local folder of model.name, fetched from the Hub if need be; None when it is empty."""
    return model_folder(model.name, weights=model.init == "pretrained") if model.name else None


@contextmanager
def _about(key: str, takes: str) -> Iterator[None]:
    """Errors within say which key they are about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}\nThis is about --config.{key}, which takes {takes}.") from error


def _listed(value: str) -> list[str]:
    """The parts of a comma-separated value."""
    return [part.strip() for part in value.split(",") if part.strip()]


def _tokenizer(
    model: ModelConfig, folder: Path | None, files: list[str], columns: tuple[str, ...], workdir: Path
) -> Any:
    """The run's tokenizer, drafted in the run folder; trained on the data if the recipe says so."""
    if holds_checkpoint(workdir) and (workdir / TOKENIZER).is_dir():
        return load_tokenizer(workdir / TOKENIZER)
    if model.tokenizer == "train":
        draft = tokenizer_draft(workdir)
        train_wordpiece(read_sentences(files, TOKENIZER_SENTENCES, columns), model.vocab_size, draft)
        return load_tokenizer(draft)
    source = model_folder(model.tokenizer, weights=False) if model.tokenizer else folder
    assert source is not None  # `resolve` refuses a recipe with neither
    tokenizer = load_tokenizer(source)
    tokenizer.save_pretrained(tokenizer_draft(workdir))
    return tokenizer


def _encoder(config: Config, sizes: EncoderConfig | None, vocab_size: int) -> Encoder:
    """The encoder module: sizes from the model's folder, and from the recipe where weights are random."""
    model = config.model
    sizes = sizes or dataclasses.replace(BERT_BASE, dropout=model.dropout)
    if model.init == "random":
        names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
        given = {name: getattr(model, name) for name in names if getattr(model, name)}
        if model.tokenizer:
            given["vocab_size"] = vocab_size
        sizes = dataclasses.replace(sizes, **given)
    if sizes.hidden_size % sizes.num_attention_heads:
        raise UserError(
            f"model.hidden_size = {sizes.hidden_size} does not divide into {sizes.num_attention_heads} attention "
            f"heads.\nUse --config.model.num_attention_heads={max(sizes.hidden_size // 64, 1)}."
        )
    if vocab_size > sizes.vocab_size:
        raise UserError(
            f"The tokenizer has {vocab_size} tokens, and the model's vocabulary only {sizes.vocab_size}: they do not "
            "belong together.\nUse the tokenizer that came with the model (--config.model.tokenizer=)."
        )
    if config.data.max_length > sizes.max_length:
        raise UserError(
            f"data.max_length = {config.data.max_length}, but the model takes at most {sizes.max_length} tokens.\n"
            f"Use --config.data.max_length={sizes.max_length} or less."
        )
    parameters = jnp.float64 if model.dtype == "float64" else jnp.float32
    return Encoder(
        sizes, jnp.dtype(model.dtype), parameters, has_head=model.has_head, unroll=model.unroll, remat=model.remat
    )


def _evaluation(pairs: GradedPairs | None, sentences: SentenceEncoder) -> Evaluate | None:
    """A function from parameters to their scores on the dev pairs; None when there are none."""
    if pairs is None:
        return None
    return lambda params: evaluate_pairs(lambda texts: sentences.encode(params, texts), pairs)


def _initial_params(config: Config, encoder: Encoder, folder: Path | None, resumes: bool) -> Callable[[], Any]:
    """A function, to be called at most once, that gives random parameters, or pretrained ones with a fresh head.

    Pretrained weights are read at once, so that a folder without good ones is refused early. The paper's MLP head is
    not BERT's own pooler, and starts fresh.
    """
    random = functools.partial(init_params, encoder, config.train.seed)
    if resumes or config.model.init == "random" or folder is None:
        return jax.jit(random)
    held = [load_params(folder, encoder.config, head="none")]  # handed over, so that they do not stay in memory

    def initial() -> Any:
        params = held.pop()
        if encoder.has_head:
            params["head"] = jax.jit(lambda: random()["head"])()
        return jax.tree.map(lambda x: jnp.asarray(x, encoder.param_dtype), params)

    return initial
