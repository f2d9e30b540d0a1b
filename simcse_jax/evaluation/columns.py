"""Read the named columns of a user's file: by the names in its header or keys, or by options after its name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from simcse_jax.data.readers import read_records
from simcse_jax.data.rows import SPLITS
from simcse_jax.evaluation.options import split_options
from simcse_jax.system.errors import UserError
from simcse_jax.system.hub import DATASET_PREFIX, dataset_file
from simcse_jax.system.mirror import local_path

Names = Mapping[str, tuple[str, ...]]  # by role: the names of its column in headers, in lower case
SPLIT = "split"


class Line(NamedTuple):
    """Hold the cells of one row by role."""

    where: str  # file and line, for messages
    cells: dict[str, Any]  # as they are in the file: text, or lists of texts in .jsonl and .parquet

    def text(self, role: str) -> str:
        """Return a cell of text; UserError where it is blank or something else."""
        value = self.cells[role]
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{self.where}: {role} must be text; got {value!r:.60}. Write it, or remove the line.")
        return value

    def texts(self, role: str) -> list[str]:
        """Return a cell of one text or of several; of an empty list, or a blank cell, none."""
        value = self.cells[role]
        found = [] if value is None or value == "" else value if isinstance(value, list) else [value]
        if any(not isinstance(text, str) or not text.strip() for text in found):
            raise UserError(f"{self.where}: {role} must be text, or a list of texts; got {value!r:.60}.")
        return found


def read_columns(source: str, names: Names) -> Iterator[Line]:
    """Yield the rows of `FILE[:role=COLUMN,...,split=VALUE]`; UserError where a column is missing, or no row is there.

    FILE: a path, or hf://datasets/OWNER/NAME/FILE. split: only the rows with that word in the column "split".
    """
    place, options = split_options(source, (*names, SPLIT))
    path = dataset_file(place) if place.startswith(DATASET_PREFIX) else local_path(place)
    if not path.is_file():
        raise UserError(
            f"{source}: there is no file {place} (relative to {Path.cwd()}).\nGive one with the columns "
            f"{', '.join(names)}."
        )
    rows = read_records(path, place)
    line, head = next(rows, (0, []))
    columns = _find(place, [str(cell).strip() for cell in head], names, options)
    wanted = options.get(SPLIT, "").lower()
    spellings = next((own for own in SPLITS.values() if wanted in own), {wanted})
    count, splits = 0, dict[str, None]()
    for line, cells in rows:
        where = f"{place}, line {line}"
        if len(cells) <= max(columns.values()):
            raise UserError(f"{where}: {len(cells)} columns, at least {max(columns.values()) + 1} needed.")
        if SPLIT in columns:
            own = str(cells[columns[SPLIT]])
            splits[own] = None
            if wanted and own.strip().lower() not in spellings:
                continue
        count += 1
        yield Line(where, {role: cells[columns[role]] for role in names})
    if not wanted and len(splits) > 1:
        choice = next((name for name in splits if name not in SPLITS["train"]), next(iter(splits)))
        raise UserError(f"{place} has rows of the splits {', '.join(splits)}. Choose one: {place}:{SPLIT}={choice}")
    if not count:
        there = f" of the split {wanted!r}; its splits: {', '.join(splits) or 'none'}" if wanted else ""
        raise UserError(f"{source} holds no rows{there}. Give a file that does.")


def _find(place: str, head: list[str], names: Names, options: Mapping[str, str]) -> dict[str, int]:
    """Return the columns by role, and that of "split" where there is one."""
    lower = [name.lower() for name in head]
    found = {}
    for role, known in names.items():
        wanted = (options[role].lower(),) if role in options else known
        name = next((name for name in wanted if name in lower), None)
        if name is None:
            given = ",".join(f"{other}=COLUMN" for other in names)
            raise UserError(
                f"{place}: there is no column {options.get(role, role)!r}; the columns: "
                f"{', '.join(f'{cell!r:.40}' for cell in head) or 'none'}.\nName them: {place}:{given}"
            )
        found[role] = lower.index(name)
    if SPLIT in lower:
        found[SPLIT] = lower.index(SPLIT)
    elif SPLIT in options:
        raise UserError(f"{place} has no column {SPLIT}. Leave out {SPLIT}=.")
    return found


def digest_of(texts: Iterable[str]) -> str:
    """Return a hex digest of these texts in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()
