"""Assemble a run from its configuration: tokenizer, data, encoder, loss, compiled step, dev scores."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from simcse_jax.config.schema import Config, is_local
from simcse_jax.data.batches import Batches
from simcse_jax.data.corpus import Corpus
from simcse_jax.data.positives import POSITIVES
from simcse_jax.data.synonyms import synonyms_fingerprint
from simcse_jax.data.tokenizer import load_tokenizer
from simcse_jax.data.vocabulary import id_count
from simcse_jax.encoder.model import Encoder
from simcse_jax.encoder.products import resolve_products
from simcse_jax.encoding import SentenceEncoder
from simcse_jax.evaluation.columns import digest_of
from simcse_jax.evaluation.retrieval.folder import write_task
from simcse_jax.hosts.agreement import broadcast, fail_together, is_first, require_equal
from simcse_jax.model_folder.frozen_base import write_base
from simcse_jax.model_folder.module_list import encoder_folder
from simcse_jax.model_folder.run_folder import read_run_info
from simcse_jax.model_folder.st_modules import left_out_of_training
from simcse_jax.model_folder.text_settings import trained_texts
from simcse_jax.objective.loss import Loss
from simcse_jax.objective.losses import LOSSES
from simcse_jax.runs.folder import (
    TOKENIZER,
    current_tokenizer,
    has_checkpoint,
    keep_tokenizer,
    require_same_data,
    require_shared,
    tokenizer_draft,
    undone_if_refused,
    write_run_info,
)
from simcse_jax.runs.stored_run import StoredRun
from simcse_jax.system.errors import about
from simcse_jax.system.import_path import code_of, is_import_path
from simcse_jax.training.dev import (
    Dev,
    DevTask,
    load_dev_task,
    load_held_out,
    load_source_devs,
    make_dev,
    make_perplexity,
)
from simcse_jax.training.feeding import Corpora, load_data, make_batches
from simcse_jax.training.frozen import frozen_start, make_merge, placed
from simcse_jax.training.held_out import FOLDER, HeldOutPart, is_held_out, judged_task, load_held_out_part
from simcse_jax.training.mesh import make_mesh, place
from simcse_jax.training.model import first_params, load_predictor, make_encoder, source_folder, write_tokenizer
from simcse_jax.training.optimizer import make_schedule
from simcse_jax.training.program import Program, make_program
from simcse_jax.training.state import PREDICTOR, TrainState, encoder_params
from simcse_jax.training.teacher import load_teacher_vectors
from simcse_jax.training.warm_start import with_step


@dataclasses.dataclass(frozen=True)
class Run:
    """Hold the parts of one run; nothing here changes while it trains."""

    config: Config
    program: Program
    corpora: Corpora
    batches: Batches
    encoder: Encoder
    total_steps: int
    learning_rate: Callable[[int], Any]
    initial_state: Callable[[], TrainState]
    dev: Dev | None  # how parameters are scored; None without eval.data and mlm.validation
    left_out: Sequence[str] = ()  # what the folder of model.name has that training does not use
    frozen: tuple[Any, ...] = ()  # what each step takes beside state and batch: the frozen parameters, or nothing
    merge: Callable[[Any], Any] = lambda params: params  # trained parameters of the encoder -> all of them, for `dev`

    @property
    def corpus(self) -> Corpus:
        """The training data of a run without sources; else the first source's."""
        return next(iter(self.corpora.values()))

    def loss_of(self, step: int) -> str:
        """Return the loss of a step's batch where its source has another than the recipe, else ""."""
        source = self.batches.order.source(step) if self.program.of_sources else ""
        loss = self.config.by_source[source].objective.loss if source else ""
        return loss if loss in self.program.of_sources else ""


def prepare(config: Config, workdir: Path, stored: StoredRun | None = None) -> Run:
    """Return the run that this configuration describes; writes `workdir/config.json` and `workdir/tokenizer`.

    stored: of a run at an address, whose `workdir` is each process's own.

    Whatever is wrong with files, models or the folder is found here, before the first step and before anything is
    written: UserError, on all processes when one of them finds it.
    """
    require_equal({key: value for key, value in config.flat().items() if not is_local(key)})
    config = _with_products(config, workdir)
    model = dataclasses.replace(config.model, init=with_step(config.model.init, workdir))
    config = dataclasses.replace(config, model=model)
    with undone_if_refused(workdir, config):
        if stored is None:
            require_shared(workdir)
        return _assemble(config, workdir, stored)


def _with_products(config: Config, workdir: Path) -> Config:
    """Return the config with its products resolved: as the run in this folder has them, else for these devices.

    Every process gets what process 0 finds, whose processor may be another.
    """
    sections: dict[str, Any] = {}
    for name, dtype in (("model", config.model.dtype), ("teacher", "float32")):
        section, key = getattr(config, name), f"{name}.products"
        with fail_together():
            asked = section.products
            if is_first() and asked == "auto" and has_checkpoint(workdir) and (info := read_run_info(workdir)):
                asked = info["recipe"][key]
            found = resolve_products(asked, dtype, jax.devices()[0].platform, key)
        sections[name] = dataclasses.replace(section, products=broadcast(found))
    return dataclasses.replace(config, **sections)


def _assemble(config: Config, workdir: Path, stored: StoredRun | None) -> Run:
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    resumes = json.loads(broadcast(json.dumps(has_checkpoint(workdir))))
    with fail_together():
        takes = "a file of graded pairs, retrieval:DIR, function:MODULE:NAME, heldout:500, or nothing for no evaluation"
        with about("eval.data", takes):
            part, dev_task = _load_dev(config, workdir)
        source_devs = load_source_devs(config)
        with about("model.name", "a model folder"):
            source = source_folder(config.model)
            folder = encoder_folder(source, weights=config.model.init == "pretrained") if source else None
            left_out = left_out_of_training(source) if source and config.model.init == "pretrained" else ()
        if is_first() and not (resumes and (workdir / TOKENIZER).is_dir()):
            write_tokenizer(config, folder, tokenizer_draft(workdir))
    if stored:
        stored.share_tokenizer()
    with fail_together():
        tokenizer = load_tokenizer(current_tokenizer(workdir))
        encoder = make_encoder(config, folder, id_count(tokenizer), mesh.devices.flat[0].platform)
        initial_params, base = first_params(config, encoder, folder, tokenizer, resumes), None
        if encoder.lora:
            initial_params, base = frozen_start(initial_params, workdir, resumes)
        with about("data.mask_model", "a model folder with a masked-language-model head"):
            predictor, predictor_params = load_predictor(config, encoder, folder, tokenizer, resumes)
        corpora = load_data(config, tokenizer, part.texts if part else ())
        with about("teacher.name", "a model, or files of vectors of the texts"):
            vectors = load_teacher_vectors(config, corpora.values())
        views, batches = make_batches(config, tokenizer, corpora, vectors)
        with about("mlm.validation", "files of text, with the columns of data.columns"):
            held_out = load_held_out(config, tokenizer) if config.mlm.validation else None
    contents = {
        "data.files": joint_fingerprint({name: corpus.fingerprint for name, corpus in corpora.items()}),
        "eval.data": joint_fingerprint(
            {"": dev_task.data.fingerprint if dev_task else ""}
            | {name: dev.task.data.fingerprint for name, dev in source_devs.items()}
        ),
        "mlm.validation": held_out.corpus.fingerprint if held_out else "",
        "data.synonyms": synonyms_fingerprint(config.data.synonyms) if _reads_synonyms(config) else "",
        "teacher.name": vectors.fingerprint if vectors else "",
    }
    require_equal({f"the content of {key}": fingerprint for key, fingerprint in contents.items()})
    total_steps = config.train.total_steps(batches.steps_per_epoch)
    program = make_program(config, encoder, mesh, views, total_steps, predictor, vectors.width if vectors else 0)
    prompts = config.data.prompts
    of_sources = {name: own.data.prompts for name, own in config.by_source.items() if own.data.prompts != prompts}
    texts = trained_texts(prompts, config.data.include_prompt, of_sources)
    frozen, whole = placed(program, base), encoder.clone(lora=None)
    sentences = SentenceEncoder(
        whole, tokenizer, mesh, config.model.pooler, prompt=texts.prompt, include_prompt=texts.include_prompt
    )
    run = Run(
        config=config,
        program=program,
        corpora=corpora,
        batches=batches,
        encoder=encoder,
        total_steps=total_steps,
        learning_rate=make_schedule(config.optimizer, total_steps),
        initial_state=functools.partial(_initial_state, program, initial_params, predictor_params),
        dev=make_dev(
            dev_task,
            sentences,
            make_perplexity(held_out, whole, mesh) if held_out else None,
            texts.role_prompts,
            source_devs,
        ),
        left_out=left_out,
        frozen=frozen,
        merge=make_merge(encoder, mesh, frozen),
    )
    _write(workdir, run_info(run, contents), part, base, resumes)
    return run


def _reads_synonyms(config: Config) -> bool:
    """Return whether the file of synonyms has a part in training."""
    return any(part.data.positive == "synonym" for part in config.by_source.values())


def joint_fingerprint(by_name: Mapping[str, str]) -> str:
    """Return one fingerprint of the content of several sources; of one without a name, its own."""
    if by_name.keys() == {""}:
        return by_name[""]
    return hashlib.blake2b(json.dumps(by_name, sort_keys=True).encode(), digest_size=16).hexdigest()


def _load_dev(config: Config, workdir: Path) -> tuple[HeldOutPart | None, DevTask | None]:
    """Return the part of the training data that is held out, and the task that scores the run, None without one."""
    data, measure = config.eval.data, config.eval.measure
    if is_held_out(data):
        part = load_held_out_part(config)
        return part, load_dev_task(judged_task(data, workdir), measure, part.task)
    return None, load_dev_task(data, measure) if data else None


def _initial_state(
    program: Program, initial_params: Callable[[], Any], predictor_params: Callable[[], Any]
) -> TrainState:
    params = place(initial_params(), encoder_params(program.shardings.params))
    if PREDICTOR not in program.shardings.extra:
        return program.start(params, None)
    return program.start(params, place(predictor_params(), program.shardings.extra[PREDICTOR]))


def _write(workdir: Path, info: dict[str, Any], part: HeldOutPart | None, base: Any, resumes: bool) -> None:
    """Write config.json, the tokenizer and held-out text, unless the folder holds a run on other data: UserError.

    base: the frozen parameters, which a run that resumes has there already; None without any.
    """
    with fail_together():
        require_same_data(workdir, info)
    with fail_together():
        if is_first():
            if base is not None:
                there = read_run_info(workdir) if resumes else None
                info = info | {"base": there["base"] if there else write_base(workdir, base)}
            write_run_info(workdir, info)
            keep_tokenizer(workdir)
            if part:
                write_task(workdir / FOLDER, part.task)


def run_info(run: Run, contents: dict[str, str]) -> dict[str, Any]:
    """Return the content of config.json: enough to tell one run from another, and to export its model.

    contents: the fingerprint of the content of each file that the recipe names, by key.
    """
    model = run.config.model
    return {
        "recipe": run.config.flat(),
        "encoder": run.encoder.architecture.as_dict(),
        "has_head": run.encoder.has_head,
        "has_mlm_head": run.encoder.has_mlm_head,
        "pooler": model.pooler,
        "train_pooler": model.train_pooler,
        "tokenizer": TOKENIZER,
        "data": {
            "files": [file for corpus in run.corpora.values() for file in corpus.report.files],
            "columns": list(dict.fromkeys(column for corpus in run.corpora.values() for column in corpus.columns)),
            "examples": sum(corpus.report.examples for corpus in run.corpora.values()),
            "fingerprint": contents["data.files"],
        },
        "eval": {"data": run.config.eval.data, "fingerprint": contents["eval.data"]},
        "validation": {"files": run.config.mlm.validation, "fingerprint": contents["mlm.validation"]},
        "synonyms": {"file": run.config.data.synonyms, "fingerprint": contents["data.synonyms"]},
        "teacher": {"name": run.config.teacher.name, "fingerprint": contents["teacher.name"]},
        "own_parts": _own_parts(run.config),
        "total_steps": run.total_steps,
    }


def _own_parts(config: Config) -> dict[str, Any]:
    """Return the import paths of the user's own losses and positives, their code, and its fingerprint; "" for none."""
    positives = dict.fromkeys(part.data.positive for part in config.by_source.values())
    named = *((loss, LOSSES) for loss in config.by_loss), *((positive, POSITIVES) for positive in positives)
    found: list[Any] = [(path, table[path]) for path, table in named if is_import_path(path)]
    code = {path: code_of(part.function if isinstance(part, Loss) else part.make) for path, part in found}
    return {"names": ", ".join(code), "fingerprint": digest_of(code.values()) if code else "", "code": code}
