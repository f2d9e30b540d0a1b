"""Write and read the frozen parameters of a run that trains adapters: a file of the run folder, written once.

Checkpoints then hold adapters and heads alone, and the run needs no other folder: neither to resume nor to be used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from simcse_jax.system.errors import UserError
from simcse_jax.system.whole_file import checksum, require_files, write_whole

BASE = "base.safetensors"


def write_base(workdir: Path, frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Write frozen parameters, nested dicts of NumPy arrays; return what `read_base` knows the file by."""
    from safetensors.numpy import save_file

    named = {"/".join(names): np.ascontiguousarray(array) for names, array in _leaves(frozen)}
    write_whole(workdir / BASE, lambda path: save_file(named, path))
    return {"file": BASE, **checksum(workdir / BASE)}


def read_base(workdir: Path, info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the frozen parameters of a run; info: its config.json. UserError where the file is another."""
    from safetensors.numpy import load_file

    written = {name: info["base"].get(name) for name in ("bytes", "blake2b")}
    try:
        require_files(workdir, {BASE: written})
    except (OSError, ValueError) as error:
        raise UserError(
            f"{workdir / BASE}, the weights that this run's adapters belong to, is not as the run wrote it: {error}.\n"
            "Restore it from a copy, or train again with --workdir=ANOTHER."
        ) from error
    tree: dict[str, Any] = {}
    for name, array in load_file(workdir / BASE).items():
        *branches, leaf = name.split("/")
        place = tree
        for branch in branches:
            place = place.setdefault(branch, {})
        place[leaf] = array
    return tree


def _leaves(tree: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*above, name))
        else:
            yield (*above, name), np.asarray(value)
