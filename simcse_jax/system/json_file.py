"""Read and write the JSON files that lie beside a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from simcse_jax.system.errors import UserError

_NAMES = {dict: "JSON object", list: "JSON list"}


def read_json(path: Path, kind: type = dict, way_out: str = "Copy it again from the model's source.") -> Any:
    """Return the content of a JSON file, a dict or another `kind`; UserError if it is missing or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.\n{way_out}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}\n{way_out}") from error
    if not isinstance(content, kind):
        raise UserError(f"{path} holds a {type(content).__name__}, not a {_NAMES[kind]}.\n{way_out}")
    return content


def is_empty(value: Any) -> bool:
    """Return whether a value of a key states nothing: null, false, an empty text, list or object."""
    return value is None or value is False or value in ("", [], {})


def write_json(path: Path, content: Any) -> None:
    """Write content as indented JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
