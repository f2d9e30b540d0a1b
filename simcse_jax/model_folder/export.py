"""Write a model as a Hugging Face folder that transformers and sentence-transformers load unchanged.

No PyTorch is needed to write it.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simcse_jax import __version__
from simcse_jax.data.tokenizer import ALL_TOKENIZER_FILES, load_tokenizer, lower_cases
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.families.table import config_json, read_architecture
from simcse_jax.encoder.lora import Lora
from simcse_jax.encoder.pooling import is_pooler, known, parts_of
from simcse_jax.model_folder.after_pooling import Step
from simcse_jax.model_folder.card import model_card
from simcse_jax.model_folder.kept_layers import require_layers
from simcse_jax.model_folder.module_list import encoder_folder
from simcse_jax.model_folder.onnx_export import write_onnx
from simcse_jax.model_folder.peft_folder import write_adapter
from simcse_jax.model_folder.pretrained import load_params
from simcse_jax.model_folder.same_vectors import HALF_TOLERANCE, TOLERANCE, require_same_vectors
from simcse_jax.model_folder.st_modules import (
    OURS,
    WIDTHS,
    Pipeline,
    read_pipeline_unless_given,
    read_scaling,
    read_widths,
    write_modules,
)
from simcse_jax.model_folder.text_settings import PLAIN, TextSettings, read_text_settings
from simcse_jax.model_folder.weight_files import SAFETENSORS, write_weights
from simcse_jax.model_folder.weight_mapping import to_hugging_face, zero_head
from simcse_jax.system.errors import UserError
from simcse_jax.system.hub import model_folder
from simcse_jax.system.json_file import read_json, write_json
from simcse_jax.system.mirror import local_path
from simcse_jax.system.whole_file import writing


class Adapters(NamedTuple):
    """Hold what `export_model` writes in place of a model's weights."""

    params: Mapping[str, Any]  # with adapters beside the kernels; NumPy
    lora: Lora
    base: str  # the model that they adapt


_TOKENIZER = "tokenizer.json"
_TOKENIZER_SETTINGS = "tokenizer_config.json"


def convert(
    name: str,
    out: str | Path,
    pooler: str | None = None,
    layers: Sequence[int] = (),
    more: Mapping[str, Any] | None = None,
    **forms: Any,
) -> None:
    """Write any model as an exported folder.

    name: a Hugging Face folder (SimCSE's published ones too), an exported folder or a Hub name. out, forms: as in
    `export_model`. pooler: None = the model's own. layers: those to keep, numbered from 0, the first ones of a 2-D
    Matryoshka model; empty = all. more: entries of the card. The head is written only if the pooler uses it. Raises
    UserError if there is no such model, if it does not say how it pools and `pooler` is not given, and for a run
    folder.
    """
    if pooler and not is_pooler(pooler):
        raise UserError(f"--pooler={pooler} is unknown. Known: {known()}.")
    if (local_path(name) / "checkpoints").is_dir():
        raise UserError(f"--model={name} is a run folder. Export it with --workdir={name}.")
    folder = model_folder(name)
    inner = encoder_folder(folder)
    architecture = read_architecture(inner)
    texts = read_text_settings(folder, architecture.max_length)
    does = read_pipeline_unless_given(folder, bool(pooler), "--pooler=NAME")
    if pooler and pooler != does.pooler:
        does = Pipeline(pooler, read_scaling(folder))
    if layers:
        require_layers("--keep_layers", "--keep_layers", layers, architecture)
        _require_no_weights(does.pooler)
    head = "load" if does.pooler == "cls" else "none"
    params = load_params(inner, architecture, head, layers=layers, modules=folder)
    if layers:
        architecture = architecture.with_layers(layers)
    export_model(
        Path(out),
        params,
        architecture,
        inner,
        does.pooler,
        card={"source": name, "layers": layers, **(more or {})},
        texts=texts,
        steps=does.steps,
        widths=read_widths(inner, does.width(architecture.hidden_size)),
        **forms,
    )


def _require_no_weights(pooler: str) -> None:
    """Raise UserError for a pooler that weighs all layers, which an export of some of them does not have."""
    if any(part.weights for part in parts_of(pooler)):
        raise UserError(f"--keep_layers, and the model's pooler {pooler!r} weighs all its layers. Give --pooler=avg.")


def export_model(
    out: Path,
    params: Mapping[str, Any],
    architecture: Architecture,
    tokenizer_folder: Path,
    pooler: str,
    card: Mapping[str, Any],
    train_pooler: str = "",
    *,
    texts: TextSettings = PLAIN,
    steps: Sequence[Step] = (),
    widths: Sequence[int] = (),
    adapters: Adapters | None = None,
    half: bool = False,
    onnx: bool = False,
    int8: bool = False,
) -> None:
    """Write a model folder, whole or not at all; UserError where it does not give the vectors of these parameters.

    out: a new or empty folder, or an earlier export, which is replaced (files that others put there stay).
    params: the encoder's, on host or device; a head is written even if `pooler` does not use it. tokenizer_folder:
    do_lower_case beside it is kept, see `lower_cases`. texts: the model's other settings, which are kept too.
    steps: what it does to pooled vectors. widths: what its embeddings may be shortened to, after a Matryoshka loss.
    adapters: write these as a PEFT folder in place of the weights, of which `params` has them merged. half and onnx are
    not for it. card: see `model_card`. train_pooler: the pooler in training (default: "cls" if there is a head, else
    `pooler`).
    half: store the weights as float16; config.json still says to compute in float32. UserError if one is too large.
    onnx, int8: add onnx/model.onnx, and its quantised form; see `write_onnx`.
    """
    if pooler == "cls" and "head" not in params:
        raise ValueError("export_model: pooler 'cls' needs a head, and these parameters have none.")
    out = Path(out).expanduser().resolve()
    partial, old = (out.parent / f".{out.name}.{kind}" for kind in ("partial", "old"))
    _recover(out, partial, old)
    previous = _replaceable(out)
    longest = texts.max_seq_length or architecture.max_length
    texts = texts._replace(max_seq_length=longest)
    train_pooler = train_pooler or ("cls" if "head" in params else pooler)

    with writing(out):
        partial.mkdir(parents=True)
        _copy_tokenizer(tokenizer_folder, partial, longest)
        if adapters:
            write_adapter(partial, adapters.params, architecture, adapters.lora, adapters.base)
            card = {**card, "adapters": {"rank": adapters.lora.rank, "base": adapters.base}}
        else:
            _write_whole(partial, params, architecture, widths, half)
        write_modules(partial, pooler, architecture, params.get("head"), texts, lower_cases(tokenizer_folder), steps)
        text = model_card(out.name, architecture, pooler, train_pooler, "head" in params, card, texts, steps)
        (partial / "README.md").write_text(text, encoding="utf-8")
        if onnx:
            write_onnx(partial, pooler, out.name, texts, int8, steps)
        written = sorted([*(path.name for path in partial.iterdir()), OURS])
        ours = {"pooler": pooler, "train_pooler": train_pooler, "version": __version__, "files": written}
        write_json(partial / OURS, ours)
        tolerance = HALF_TOLERANCE if half else TOLERANCE
        require_same_vectors(partial, params, architecture, tokenizer_folder, pooler, texts, steps, tolerance)
        _keep_foreign(out, partial, previous)
        if out.exists():
            os.replace(out, old)
        os.replace(partial, out)
    shutil.rmtree(old, ignore_errors=True)


def _write_whole(
    folder: Path, params: Mapping[str, Any], architecture: Architecture, widths: Sequence[int], half: bool
) -> None:
    """Write config.json and all weights."""
    tensors = to_hugging_face(params, architecture) | zero_head(params, architecture)
    shortened = {WIDTHS: list(widths)} if widths else {}
    write_json(folder / "config.json", config_json(architecture, "mlm" in params) | shortened)
    write_weights(folder / SAFETENSORS, _halved(tensors) if half else tensors)


def written_files(out: Path) -> list[str]:
    """Return the names of the files and folders that an export wrote into its folder."""
    return list(read_json(out / OURS)["files"])


def _recover(out: Path, partial: Path, old: Path) -> None:
    """Remove what a killed export left beside `out`; if it was killed between the two renames, undo the first."""
    shutil.rmtree(partial, ignore_errors=True)
    if old.exists() and not out.exists():
        os.replace(old, out)
    shutil.rmtree(old, ignore_errors=True)


def _replaceable(out: Path) -> set[str]:
    """Return the names that an earlier export wrote into `out`; UserError if the folder holds something else."""
    if not out.exists():
        return set()
    if not out.is_dir():
        raise UserError(f"--out={out} is a file. Give a folder that does not exist yet.")
    names = sorted(path.name for path in out.iterdir())
    if not names:
        return set()
    try:
        return set(written_files(out))
    except (UserError, KeyError, TypeError):
        raise UserError(
            f"--out={out} is not empty and not an earlier export (no {OURS}): {', '.join(names[:8])}\n"
            "Give a folder that does not exist yet."
        ) from None


def _keep_foreign(out: Path, partial: Path, previous: set[str]) -> None:
    """Copy what others put into an earlier export (.git, scores) to the new one, unless it has that file itself."""
    for path in out.iterdir() if out.exists() else ():
        target = partial / path.name
        if path.name in previous or target.exists():
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, target, symlinks=True)
        else:
            shutil.copy2(path, target, follow_symlinks=False)


def _copy_tokenizer(source: Path, target: Path, max_length: int) -> None:
    """Copy the tokenizer's files, add a missing tokenizer.json, and set its length limit to the model's."""
    tokenizer = load_tokenizer(source)
    for name in ALL_TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    path = source / _TOKENIZER_SETTINGS
    settings = read_json(path) if path.is_file() else {}
    if lower_cases(source):  # in tokenizer.json, which other classes do not read whole
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if lower_cases(source) or not (target / _TOKENIZER).exists():
        tokenizer.backend_tokenizer.save(str(target / _TOKENIZER))
    write_json(target / _TOKENIZER_SETTINGS, _readable_by_all(settings) | {"model_max_length": max_length})


def _readable_by_all(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return tokenizer settings with keys that transformers 4 and 5 share, without how it was loaded and whose code."""
    dropped = ("is_local", "local_files_only", "name_or_path", "auto_map")
    shared = {key: settings[key] for key in settings if key not in dropped}
    if shared.get("tokenizer_class") == "TokenizersBackend":  # transformers 5's name
        shared["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(shared.get("extra_special_tokens"), list):  # transformers 4 takes a mapping under this name
        shared["additional_special_tokens"] = shared.pop("extra_special_tokens")
    return shared


def _halved(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors as float16; UserError if one is too large."""
    for name, tensor in tensors.items():
        largest = float(np.abs(tensor).max(initial=0))
        if largest > float(np.finfo(np.float16).max):
            raise UserError(f"--half: {name} has an entry of {largest:g}, too large for float16.\nLeave --half out.")
    return {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
