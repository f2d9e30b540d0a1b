"""Read and write the module files that make a folder a sentence-transformers model.

Module names and keys are those of sentence-transformers 2 and 3; later releases read them too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simcse_jax import __version__
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.families.table import read_architecture
from simcse_jax.encoder.pooling import is_pooler, known, width_of
from simcse_jax.model_folder.after_pooling import KINDS, Cut, Dense, Normalize, Step, width_after
from simcse_jax.model_folder.module_list import MODULES, Module, encoder_folder, list_modules
from simcse_jax.model_folder.pooling_module import (
    layer_weights,
    read_pooling,
    same_pooling,
    written_layers,
    written_pooling,
)
from simcse_jax.model_folder.text_settings import SETTINGS, TextSettings
from simcse_jax.model_folder.weight_files import SAFETENSORS, write_weights
from simcse_jax.system.errors import UserError
from simcse_jax.system.hub import TRANSFORMER_SETTINGS
from simcse_jax.system.json_file import read_json, write_json

OURS = "simcse_jax.json"
WIDTHS = "matryoshka_dimensions"  # in config.json, as vLLM reads it: what embeddings may be shortened to
_TYPES = "sentence_transformers.models."
# SimCSE's published folders say how they pool by their name alone.
_PUBLISHED = re.compile(r"(?<![a-z])(?P<un>un)?sup[-_]simcse", re.IGNORECASE)


class Pipeline(NamedTuple):
    """Hold what a folder does with the hidden states of a sentence."""

    pooler: str
    steps: tuple[Step, ...] = ()  # from pooled vectors to embeddings

    def width(self, hidden_size: int) -> int:
        """Return the number of features of an embedding."""
        return width_after(self.steps, width_of(self.pooler, hidden_size) if self.pooler else hidden_size)


def write_modules(
    folder: Path,
    pooler: str,
    architecture: Architecture,
    head: Mapping[str, Any] | None,
    texts: TextSettings,
    do_lower_case: bool,
    steps: Sequence[Step] = (),
) -> None:
    """Write modules.json, the modules after the Transformer, and the settings beside them.

    head: the parameters of the head, which "cls" needs. steps: what follows the pooler and the head.
    """
    width = architecture.hidden_size
    listed = [{"idx": 0, "name": "0", "path": "", "type": f"{_TYPES}Transformer"}]

    def module(kind: str, settings: dict[str, Any], weights: Mapping[str, np.ndarray] | None = None) -> None:
        place = len(listed)
        path = folder / f"{place}_{kind}"
        path.mkdir()
        write_json(path / "config.json", settings)
        if weights:
            write_weights(path / SAFETENSORS, weights)
        listed.append({"idx": place, "name": str(place), "path": path.name, "type": _TYPES + kind})

    transformer: dict[str, Any] = {"max_seq_length": texts.max_seq_length, "do_lower_case": do_lower_case}
    if weights := layer_weights(pooler, architecture.num_hidden_layers):
        transformer["config_args"] = {"output_hidden_states": True}
        module("WeightedLayerPooling", *written_layers(weights, width))
    module("Pooling", written_pooling(pooler, width, texts.include_prompt))
    if pooler == "cls":
        assert head is not None
        kernel, bias = (np.asarray(head[part], np.float32) for part in ("kernel", "bias"))
        steps = (Dense(kernel, bias, "Tanh"), *steps)
    for step in steps:
        if not isinstance(step, Cut):
            module(type(step).__name__, *step.written())
    write_json(folder / MODULES, listed)
    write_json(folder / TRANSFORMER_SETTINGS[0], transformer)
    settings = {
        "__version__": {"simcse_jax": __version__},
        "prompts": texts.prompts,
        "default_prompt_name": texts.default_prompt_name,
        "similarity_fn_name": "cosine",
    }
    for step in steps:
        if isinstance(step, Cut):
            settings["truncate_dim"] = step.features
    write_json(folder / SETTINGS, settings)


def read_pipeline_unless_given(folder: str | Path, pooler_given: bool, way_out: str) -> Pipeline:
    """Return what `read_pipeline` does; where it finds no pooler and one is given, an empty pipeline.

    way_out: how the caller gives one, "--pooler=NAME", for the error.
    """
    try:
        return read_pipeline(folder)
    except UserError as error:
        if not pooler_given:
            raise UserError(f"{error}\nGive it as {way_out}.") from error
        return Pipeline("")


def read_pipeline(folder: str | Path) -> Pipeline:
    """Return what a model folder does after its encoder, from our own file and sentence-transformers' modules.

    Without either, the name of the folder or of its Hub repository decides: unsup-simcse is cls_before_pooler and
    sup-simcse is cls, as the authors use the models that they published. Raises UserError if the name says nothing, or
    for a module or a setting that is not supported.
    """
    folder = Path(folder)
    modules = list_modules(folder)
    cuts = _cuts(folder)
    own = _own_pooler(folder)
    if not modules:
        return Pipeline(own or _published_pooler(folder), cuts)
    at = [module.kind for module in modules].index("Pooling") if _is_supported(modules) else None
    if at is None:
        raise UserError(
            f"{folder / MODULES} asks for {', '.join(module.kind for module in modules)}, which is not supported.\n"
            f"A Transformer, perhaps WeightedLayerPooling, then Pooling, then any of {', '.join(KINDS)} are."
            f"\n{_ways_out()}"
        )
    inner = encoder_folder(folder)
    architecture = read_architecture(inner)
    pooler = read_pooling(modules[1 : at + 1], inner)
    steps: list[Step] = []
    width = width_of(pooler, architecture.hidden_size)
    for module in modules[at + 1 :]:
        if module.kind in KINDS:
            steps.append(KINDS[module.kind].read(module, width))
            width = steps[-1].width(width)
    if own:
        is_head = own == "cls" and bool(steps) and isinstance(steps[0], Dense)
        if not same_pooling(own, pooler, architecture.num_hidden_layers) or (own == "cls" and not is_head):
            raise UserError(
                f"{folder / OURS}: pooler = {own!r}, but {modules[at].file} pools by {pooler}.\nIf the modules are "
                f"right, remove {OURS} in a copy of the folder."
            )
        pooler, steps = own, steps[is_head:]
    return Pipeline(pooler, (*steps, *cuts))


def _is_supported(modules: Sequence[Module]) -> bool:
    kinds = [module.kind for module in modules]
    if kinds[0] != "Transformer" or kinds.count("Pooling") != 1:
        return False
    at = kinds.index("Pooling")
    after = {*KINDS, "Dropout"}  # Dropout acts in training only
    return kinds[1:at] in ([], ["WeightedLayerPooling"]) and set(kinds[at + 1 :]) <= after


def _own_pooler(folder: Path) -> str:
    """Return the pooler of our own file; "" without that file."""
    if not (folder / OURS).is_file():
        return ""
    pooler = read_json(folder / OURS).get("pooler")
    if isinstance(pooler, str) and is_pooler(pooler):
        return pooler
    raise UserError(f"{folder / OURS}: pooler = {pooler!r} is unknown.\n{_ways_out()}")


def _published_pooler(folder: Path) -> str:
    name = _PUBLISHED.search(_model_name(folder))
    if name:
        return "cls_before_pooler" if name["un"] else "cls"
    raise UserError(f"{folder} does not say how it makes a sentence's vector (no {MODULES}).\n{_ways_out()}")


def _cuts(folder: Path) -> tuple[Cut, ...]:
    """Return the width that embeddings are cut to, as a step; none without that setting."""
    path = folder / SETTINGS
    features = read_json(path).get("truncate_dim") if path.is_file() else None
    if features is None:
        return ()
    if type(features) is not int or features < 1:
        raise UserError(f"{path}: truncate_dim = {features!r} must be a whole number of at least 1, or null.")
    return (Cut(features),)


def _ways_out() -> str:
    return (
        f"Name the pooler: {known()}.\nSupervised SimCSE models want cls (the first token through the "
        "trained head), unsupervised ones cls_before_pooler (the first token itself), most others avg."
    )


def read_scaling(folder: Path) -> tuple[Step, ...]:
    """Return what a model folder does to vectors of any pooler, also of one that is not its own."""
    normalizes = any(module.kind == "Normalize" for module in list_modules(folder))
    return (*[Normalize()] * normalizes, *_cuts(folder))


def left_out_of_training(folder: Path) -> list[str]:
    """Return what a model folder adds to its encoder that a model trained from it does not have, in words."""
    found = [module.folder.name for module in list_modules(folder) if module.kind in ("Dense", "LayerNorm")]
    has_head = (folder / OURS).is_file() and read_json(folder / OURS).get("pooler") == "cls"
    found = found[has_head:]
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    return [*found, *(key for key in ("default_prompt_name", "truncate_dim") if settings.get(key) is not None)]


def _model_name(folder: Path) -> str:
    """Return the folder's name; for a snapshot in the Hub's cache, the repository's."""
    folder = folder.absolute()  # not resolved: a link may be what carries the name
    return folder.parent.parent.name if folder.parent.name == "snapshots" else folder.name


def read_widths(folder: Path, width: int) -> list[int]:
    """Return the widths that embeddings may be shortened to, as config.json says; UserError for a wrong one."""
    path = folder / "config.json"
    found = read_json(path).get(WIDTHS) or []
    if not isinstance(found, list) or not all(isinstance(each, int) and 0 < each <= width for each in found):
        raise UserError(f"{path}: {WIDTHS} is {found!r:.100}; it must be a list of integers from 1 to {width}.")
    return found
