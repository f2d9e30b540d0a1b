"""Read what a model says about itself: a run folder, an exported or Hugging Face folder, or a Hub name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simcse_jax.data.tokenizer import load_tokenizer
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.families.table import architecture_from_dict, read_architecture
from simcse_jax.model_folder.after_pooling import Step
from simcse_jax.model_folder.module_list import encoder_folder
from simcse_jax.model_folder.pretrained import load_params
from simcse_jax.model_folder.st_modules import read_pipeline_unless_given, read_scaling, read_widths
from simcse_jax.model_folder.text_settings import PLAIN, TextSettings, read_text_settings
from simcse_jax.system.errors import UserError
from simcse_jax.system.hub import model_folder
from simcse_jax.system.mirror import local_path
from simcse_jax.system.object_store import Store, is_address

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclasses.dataclass(frozen=True)
class Origin:
    """Hold what a model says about itself, and a function that reads its weights."""

    kind: str  # "run folder", "model folder" or "Hub model"
    sizes: Architecture
    tokenizer: PreTrainedTokenizerFast
    pooler: str  # "" if the model names none that we have
    load: Callable[[str], Any]  # pooler -> parameters
    widths: Sequence[int]  # of its Matryoshka loss
    texts: TextSettings = PLAIN
    steps: tuple[Step, ...] = ()  # from vectors of its pooler to embeddings
    scaling: tuple[Step, ...] = ()  # the same for vectors of any other pooler
    workdir: Path | None = None  # of a run folder
    run: dict[str, Any] | None = None  # its config.json


def read_origin(name: str, pooler: str | None) -> Origin:
    """Return what the model of that name says about itself; UserError if there is none.

    pooler: None takes the model's own, which it must then name.
    """
    run, step = run_and_step(name)
    if step is not None and not is_address(run) and not is_run_folder(Path(run).expanduser()):
        run, step = name, None
    path = local_path(run, states=step is not None)
    if is_run_folder(path):
        return _run_folder(path, step, pooler)
    return _model_folder(str(path) if is_address(name) else name, bool(pooler))


def is_run_folder(path: Path) -> bool:
    """Return whether a training run made this folder."""
    return (path / "checkpoints").is_dir()


def run_and_step(name: str) -> tuple[str, int | None]:
    """Return (RUN, STEP) of a name RUN@STEP, unless a folder or object has the whole name; else (name, None)."""
    run, at, step = name.rpartition("@")
    is_step = bool(at) and step.isdecimal() and not _exists(name)
    return (run, int(step)) if is_step else (name, None)


def _exists(name: str) -> bool:
    return bool(Store(name).find()) if is_address(name) else Path(name).expanduser().exists()


def _run_folder(workdir: Path, step: int | None, pooler: str | None) -> Origin:
    # Orbax takes a second to import.
    from simcse_jax.model_folder.run_folder import load_run_params, matryoshka_widths, read_run_info, texts_of_run

    info = read_run_info(workdir)
    if info is None:
        raise UserError(f"{workdir} has checkpoints but no config.json, so it cannot be read as a run folder.")
    if pooler == "cls" and not info["has_head"]:
        raise UserError(
            f"{workdir} has no trained head, which the pooler 'cls' needs.\n"
            f"Use its own pooler, {info['pooler']}, or cls_before_pooler."
        )
    return Origin(
        kind="run folder, its best checkpoint" if step is None else f"run folder, step {step}",
        sizes=architecture_from_dict(info["encoder"]),
        tokenizer=load_tokenizer(workdir / info["tokenizer"]),
        pooler=info["pooler"],
        load=lambda _: load_run_params(workdir, step)[0],
        widths=matryoshka_widths(info),
        texts=texts_of_run(info["recipe"]),
        workdir=workdir,
        run=info,
    )


def _model_folder(name: str, pooler_given: bool) -> Origin:
    try:
        folder = model_folder(name)
    except UserError as error:
        if Path(name).expanduser().exists():
            raise
        raise UserError(f"There is no folder {name} in {Path.cwd()}, and no Hub model can be read:\n{error}") from None
    inner = encoder_folder(folder)
    sizes = read_architecture(inner)
    own = read_pipeline_unless_given(folder, pooler_given, "--pooler=NAME, in Python as pooler=NAME")
    return Origin(
        kind="model folder" if Path(name).expanduser().is_dir() else "Hub model",
        sizes=sizes,
        tokenizer=load_tokenizer(inner),
        pooler=own.pooler,
        texts=read_text_settings(folder, sizes.max_length),
        steps=own.steps,
        scaling=read_scaling(folder),
        load=lambda pooler: load_params(inner, sizes, head="load" if pooler == "cls" else "none", modules=folder),
        widths=read_widths(inner, own.width(sizes.hidden_size)),
    )
