"""Read, check and export a run folder, in one process alone: its config.json and its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from simcse_jax.config.keys import parse_numbers
from simcse_jax.config.schema import defaults
from simcse_jax.config.sources import source_values
from simcse_jax.encoder.adapted_params import join_params, merge_params, split_params
from simcse_jax.encoder.families.table import architecture_from_dict
from simcse_jax.encoder.init import parameter_shapes
from simcse_jax.encoder.lora import Lora, make_lora
from simcse_jax.encoder.model import Encoder
from simcse_jax.model_folder.export import Adapters, export_model
from simcse_jax.model_folder.frozen_base import read_base
from simcse_jax.model_folder.origin import run_and_step
from simcse_jax.model_folder.peft_folder import base_of
from simcse_jax.model_folder.pretrained import require_finite
from simcse_jax.model_folder.text_settings import TextSettings, trained_texts
from simcse_jax.system.errors import UserError
from simcse_jax.system.json_file import read_json
from simcse_jax.system.mirror import local_path
from simcse_jax.system.whole_file import require_files

# The list of a checkpoint's files with their checksums; it is written last, and with it a checkpoint is complete. Array
# formats have no checksum of every number, and read missing parts as zeros.
FILE_LIST = "files.json"
START = "run:"  # what a model.init begins with that names another run
# Defaults for config.json of older run folders.
OLDER = {
    "has_mlm_head": False,
    "validation": {"files": "", "fingerprint": ""},
    "synonyms": {"file": "", "fingerprint": ""},
    "teacher": {"name": "", "fingerprint": ""},
    "own_parts": {"names": "", "fingerprint": "", "code": {}},
    "base": {},
}


def read_run_info(workdir: Path) -> dict[str, Any] | None:
    """Return the content of config.json, None if the folder holds no run. UserError when it is another file."""
    path = workdir / "config.json"
    if not path.exists():
        return None
    way_out = (
        "Give another folder with --workdir=DIR. To export a model folder, give it as --model=DIR, without --workdir."
    )
    info = OLDER | read_json(path, way_out=way_out)
    sections = ("recipe", "encoder", "data", "eval", "validation", "synonyms", "teacher", "own_parts")
    if "pooler" in info and all(isinstance(info.get(name), dict) for name in sections):
        return info | {"recipe": defaults() | info["recipe"]}
    raise UserError(f"{path} is not the config.json of a run of simcse_jax.\n{way_out}")


def texts_of_run(recipe: Mapping[str, Any]) -> TextSettings:
    """Return what a run's model says of texts; recipe: its keys by full name."""
    of_sources = source_values(recipe, "prompts")
    return trained_texts(recipe["data.prompts"], recipe["data.include_prompt"], of_sources)


def complete_steps(folder: Path) -> list[int]:
    """Return the complete steps of `checkpoints/last` or `checkpoints/best`, ascending."""
    return sorted(int(path.parent.name) for path in folder.glob(f"*/{FILE_LIST}") if path.parent.name.isdecimal())


def require_intact(step: Path) -> None:
    """Raise ValueError or UserError when a file of this checkpoint is missing or damaged, OSError when unreadable."""
    files = read_json(step / FILE_LIST, way_out="Restore it from a copy, or train again.")
    if not files or not all(isinstance(written, dict) for written in files.values()):
        raise ValueError(f"{FILE_LIST} is no list of files")
    require_files(step, files)


def read_state(folder: Path, like: Any) -> tuple[Any, dict[str, Any]]:
    """Return (NumPy arrays in the structure of `like`, the saved progress) of one step of `checkpoints/last`.

    Raises when a file is missing or damaged, or an array has another shape or is not finite.
    """
    require_intact(folder)
    values = _arrays(folder / "state", like)
    progress = _json(folder / "progress")
    wanted = jax.tree_util.tree_leaves_with_path(like)
    for (path, shape), found in zip(wanted, jax.tree.leaves(values), strict=True):
        if (found.shape, found.dtype) != (shape.shape, shape.dtype):
            raise ValueError(f"{jax.tree_util.keystr(path)} is {found.dtype}{list(found.shape)}")
    require_finite(values, folder)
    return values, progress


def parse_start(init: str) -> tuple[Path, int | None]:
    """Return the run and the step that a model.init of the form run:DIR[@STEP] names; None for the best.

    DIR may be an address, of which a copy is returned.
    """
    run, step = run_and_step(init.removeprefix(START))
    return local_path(run, states=step is not None), step


def load_run_params(workdir: Path, step: int | None = None) -> tuple[Any, dict[str, Any]]:
    """Return (params, info): NumPy parameters of a run, and its config.json with `scores` and `step`.

    Adapters are merged. step: of a best or a state that is kept; None for the best, which in a run without evaluations
    is the last. A state has no scores. UserError when the folder holds no run or no such checkpoint, or when the
    checkpoint is damaged.
    """
    params, lora, info = load_adapted(workdir, step)
    if lora:
        params = merge_params(params, lora, np)
        require_finite(params, workdir)
    return params, info


def load_adapted(workdir: Path, step: int | None = None) -> tuple[Any, Lora | None, dict[str, Any]]:
    """Return (params, its adapters or None, info) as `load_run_params` does, with adapters beside their kernels."""
    info = read_run_info(workdir)
    checkpoints = workdir.absolute() / "checkpoints"
    if info is None:
        raise UserError(
            f"--workdir={workdir} holds no run (no config.json).\nA run's folder is runs/<recipe> unless --workdir was "
            "given when training."
        )
    best, states = complete_steps(checkpoints / "best"), complete_steps(checkpoints / "last")
    if not best and step is None:
        raise UserError(
            f"{workdir} holds no checkpoint yet.\nContinue it with the command that started it, then try again."
        )
    if step is not None and step not in {*best, *states}:
        kept = {"of the best": best, "of states": states}
        listed = "; ".join(f"{what}: {', '.join(map(str, steps))}" for what, steps in kept.items() if steps)
        raise UserError(
            f"{workdir} has kept nothing of step {step}. Kept are {listed or 'none'}.\nRuns keep the newest "
            "checkpoint.keep states, and each that checkpoint.keep_every_steps divides."
        )
    step = max(best) if step is None else step
    is_best = step in best
    folder = checkpoints / ("best" if is_best else "last") / str(step)
    try:
        require_intact(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is damaged: {error}.\nRestore it from a copy, or train again.") from error
    # A run in float64 is read as float32 where JAX's 64-bit mode is off, as in an export.
    dtype = jax.dtypes.canonicalize_dtype(np.float64) if info["recipe"]["model.dtype"] == "float64" else np.float32
    sizes, recipe = architecture_from_dict(info["encoder"]), info["recipe"]
    given = (recipe[f"model.{key}"] for key in ("lora", "lora_alpha", "lora_targets"))
    lora = make_lora(sizes, *given) if recipe["model.lora"] else None
    encoder = Encoder(sizes, dtype, dtype, lora=lora, has_head=info["has_head"], has_mlm_head=info["has_mlm_head"])
    shapes = parameter_shapes(encoder)
    if lora:
        shapes, _ = split_params(shapes)
    if is_best:
        params, scores = _arrays(folder / "params", shapes), _json(folder / "scores")
    else:
        params, scores = _arrays(folder / "state", {"params": shapes}, some=True)["params"], {}
    require_finite(params, folder)
    if lora:
        params = join_params(params, read_base(workdir, info))
    return params, lora, info | {"scores": scores, "step": step}


def matryoshka_widths(info: dict[str, Any]) -> tuple[int, ...]:
    """Return the widths of a run's Matryoshka loss, as its config.json says; empty without one."""
    return parse_numbers(info["recipe"]["objective.widths"])


def export_run(
    workdir: str | Path, out: str | Path, more: Mapping[str, Any] | None = None, adapter: bool = False, **forms: Any
) -> None:
    """Write the best checkpoint of a run folder as a model folder; UserError if there is no run or no checkpoint.

    out, forms: as in `export_model`. more: entries of the card. adapter: write the adapters alone, as a PEFT folder;
    UserError where that cannot be.
    """
    workdir = local_path(workdir)
    params, lora, info = load_adapted(workdir)
    sizes, adapters = architecture_from_dict(info["encoder"]), None
    if adapter:
        base = base_of(info["recipe"])
        assert lora  # `base_of` refuses a run without
        adapters = Adapters(params, lora, base)
    if lora:
        params = merge_params(params, lora, np)
    export_model(
        Path(out),
        params,
        sizes,
        workdir / info["tokenizer"],
        info["pooler"],
        card={key: info[key] for key in ("recipe", "data", "scores", "step")}
        | {"defaults": defaults()}
        | dict(more or {}),
        train_pooler=info["train_pooler"],
        widths=matryoshka_widths(info),
        texts=texts_of_run(info["recipe"]),
        adapters=adapters,
        **forms,
    )


def _arrays(folder: Path, like: Any, some: bool = False) -> Any:
    """Return NumPy arrays in the structure and dtypes of `like` (arrays or ShapeDtypeStructs); some: there are more."""
    as_arrays = jax.tree.map(lambda x: ocp.RestoreArgs(restore_type=np.ndarray, dtype=x.dtype), like)
    with _own_checkpointer(ocp.PyTreeCheckpointHandler) as reader:
        return reader.restore(folder, args=ocp.args.PyTreeRestore(like, as_arrays, partial_restore=some))


def _json(folder: Path) -> Any:
    with _own_checkpointer(ocp.JsonCheckpointHandler) as reader:
        return reader.restore(folder, args=ocp.args.JsonRestore())


def in_this_process() -> ocp.options.MultiprocessingOptions:
    """Return the options with which Orbax reads or writes in this process alone, and waits for no other."""
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )


def _own_checkpointer(handler: Callable[..., Any]) -> ocp.Checkpointer:
    alone = in_this_process()
    return ocp.Checkpointer(handler(multiprocessing_options=alone), multiprocessing_options=alone)
