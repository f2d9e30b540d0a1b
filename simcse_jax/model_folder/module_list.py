"""Read modules.json: which modules of sentence-transformers a folder has, and where."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from simcse_jax.model_folder.lora import merged_folder
from simcse_jax.system.errors import UserError
from simcse_jax.system.hub import ADAPTER, model_folder
from simcse_jax.system.json_file import is_empty, read_json
from simcse_jax.system.notes import note

MODULES = "modules.json"
_LIBRARY = "sentence_transformers."
_KEYS = ("idx", "name", "path", "type", "kwargs")


class Module(NamedTuple):
    """Hold one entry of modules.json."""

    kind: str  # the class's name: "Pooling"
    folder: Path

    @property
    def file(self) -> Path:
        """Return the path of its settings."""
        return self.folder / "config.json"

    def settings(self, known: Collection[str]) -> dict[str, Any]:
        """Return its settings, {} if it has no file; UserError for a key that is not among `known`."""
        found = read_json(self.file) if self.file.is_file() else {}
        require_known(self.file, found, known)
        return found


def require_known(file: Path, settings: dict[str, Any], known: Collection[str]) -> None:
    """Raise UserError for a key that is not known: it may change vectors. null and the like cannot, and are noted."""
    for key in sorted(settings.keys() - set(known)):
        if is_empty(settings[key]):
            note(f"{file}: {key} = {settings[key]!r} is unknown here, and changes no vector.")
        else:
            raise UserError(
                f"{file}: {key} = {settings[key]!r:.80} is unknown here, and may change vectors.\nKnown: "
                f"{', '.join(sorted(known))}. To use the model without it, remove it in a copy of the folder."
            )


def list_modules(folder: Path) -> list[Module]:
    """Return the modules of modules.json, in order; none without that file."""
    path = folder / MODULES
    entries = read_json(path, list) if path.is_file() else []
    if not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path} is no list of objects.\nCopy it again from the model's source.")
    found = []
    for entry in entries:
        require_known(path, entry, _KEYS)
        kind, place = str(entry.get("type", "")), Path(str(entry.get("path", "")))
        if place.is_absolute() or ".." in place.parts:
            raise UserError(
                f"{path} names {place}, which is outside the folder.\nCopy it again from the model's source."
            )
        if "." in kind and not kind.startswith(_LIBRARY):
            raise UserError(
                f"{path}: type = {kind!r} is code of the folder's own, which never runs here.\nUse a model whose "
                "modules are sentence-transformers' own."
            )
        found.append(Module(kind.split(".")[-1], folder / place))
    return found


def encoder_folder(folder: Path, weights: bool = True, adapters: tuple[Path, ...] = ()) -> Path:
    """Return where the encoder itself is: `folder`, or that of the Transformer module, 0_Transformer in old releases.

    For an adapter, it is a folder in the cache with the merged model, or with weights = False, that of the base model.
    adapters: whose base this is. UserError if it is one of them.
    """
    inner = next((module.folder for module in list_modules(folder) if module.kind == "Transformer"), folder)
    if not (inner / ADAPTER).is_file():
        return inner
    base = read_json(inner / ADAPTER).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(f"{inner / ADAPTER}: base_model_name_or_path = {base!r} must name a folder or a Hub model.")
    place = (inner / ADAPTER).resolve()
    if place in adapters:
        raise UserError(
            f"{' and '.join(map(str, adapters))}: base_model_name_or_path leads back to the adapter itself.\nName the "
            "model that was adapted there."
        )
    of_base = encoder_folder(model_folder(base, weights), weights, (*adapters, place))
    return merged_folder(inner, of_base) if weights else of_base
