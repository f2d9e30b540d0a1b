"""Open what `data.files` names as tables of text: local files and globs, Hub files, Hub data sets, generated data."""

import difflib
import glob
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from simcse_jax.data.readers import FORMATS, TextTable, format_of, open_table
from simcse_jax.system.errors import UserError
from simcse_jax.system.hub import dataset_file, require_hub

if TYPE_CHECKING:
    from datasets import Dataset

_HUB_DATASET = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?P<parts>(:[^:\[\]]+(\[[^\]]*\])?){0,2})")
_SPLIT = re.compile(r"(train|validation|val|dev|test)([^\w].*)?|.*\[.*")


def open_tables(files: Sequence[str]) -> list[TextTable]:
    """Return the tables that `files` names, in that order, a glob's matches sorted; at least one.

    An entry is a local path or glob, `hf://datasets/OWNER/NAME[@REVISION]/PATH` (one file of a Hub data set),
    `OWNER/NAME[:CONFIG][:SPLIT]` (a Hub data set; split "train" by default), `demo:sentences` or `demo:triplets`.
    """
    if isinstance(files, str):
        raise TypeError("files is a sequence of names, not one string")
    tables = [table for entry in files if entry.strip() for table in _open_entry(entry.strip())]
    if not tables:
        raise UserError("No file is named (training: --config.data.files). Give one: sentences.txt, or demo:sentences.")
    return tables


def _open_entry(entry: str) -> list[TextTable]:
    if entry.startswith("demo:"):
        return [_demo_table(entry)]
    if entry.startswith("hf://"):
        return [open_table(dataset_file(entry), entry)]
    path = Path(entry).expanduser()
    if path.is_dir():
        raise UserError(f"{entry} is a folder. Name its files, for example '{entry.rstrip(os.sep)}/*.txt'.")
    if path.exists():
        return [open_table(path, entry)]
    if glob.has_magic(entry) and not _HUB_DATASET.fullmatch(entry):
        matches = sorted(match for match in glob.glob(str(path), recursive=True) if os.path.isfile(match))
        if not matches:
            raise UserError(f"No file matches {entry!r} (looked in {Path.cwd()}).{_similar(path)}")
        return [open_table(Path(match)) for match in matches]
    dataset = _HUB_DATASET.fullmatch(entry)
    if dataset and format_of(entry) is None and not entry.startswith("."):
        return [_hub_dataset_table(entry, dataset["repo"], dataset["parts"])]
    raise UserError(f"The file {entry} does not exist (looked in {Path.cwd()}).{_similar(path)}")


def _similar(path: Path) -> str:
    """Return a line that names data files with a similar name in the same folder, or what that folder has."""
    folder = path.parent
    if not folder.is_dir():
        return f"\nThe folder {folder} does not exist." if not glob.has_magic(str(folder)) else ""
    names = sorted(child.name for child in folder.iterdir() if format_of(child))
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5) or names[:5]
    return f"\nIn {folder} there is: {', '.join(close)}" if close else f"\n{folder} holds no {', '.join(FORMATS)} file."


def _hub_dataset_table(entry: str, repo: str, parts: str) -> TextTable:
    """Return a table over `datasets.load_dataset`; a single part after the name is the split if it names one."""
    from datasets import load_dataset
    from huggingface_hub import constants

    given = re.findall(r":([^:\[\]]+(?:\[[^\]]*\])?)", parts)
    if len(given) == 1 and _SPLIT.fullmatch(given[0]):
        given = [None, *given]
    config, split = (*given, None, None)[:2]
    if not constants.HF_HUB_OFFLINE:
        try:
            require_hub()
        except UserError as error:
            raise UserError(
                f"{entry!r} is no local file, and as a Hub data set it cannot be fetched. {error}\n"
                "If it was fetched before: HF_HUB_OFFLINE=1 takes it from the cache."
            ) from error
    try:
        dataset = load_dataset(repo, config, split=split or "train")
    except Exception as error:  # load_dataset raises ValueError, OSError and its own classes alike
        reason = "\n  ".join(str(error).strip().splitlines()[:4])[:600]
        raise UserError(
            f"{entry!r} is no local file, and as a Hub data set it does not load:\n  {type(error).__name__}: {reason}\n"
            "Write OWNER/NAME:CONFIG:SPLIT; or name one file: hf://datasets/OWNER/NAME/PATH."
        ) from error
    return dataset_table(dataset, entry)


def dataset_table(dataset: "Dataset", name: str) -> TextTable:
    """Return the table over the string columns of a `datasets.Dataset`."""
    texts = tuple(
        column for column, kind in dataset.features.items() if getattr(kind, "dtype", "") in ("string", "large_string")
    )

    def rows(columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
        for batch in dataset.select_columns(list(columns)).with_format("arrow").iter(batch_size=1000):
            cells = [batch[column].to_pylist() for column in columns]  # type: ignore[index] (the format says: arrow)
            for row in zip(*cells, strict=True):
                yield tuple(cell or "" for cell in row)

    others = tuple(column for column in dataset.column_names if column not in texts)
    return TextTable(name, texts, others, rows, lambda: f"dataset:{dataset._fingerprint}")


def _demo_table(entry: str) -> TextTable:
    from simcse_jax.data import demo

    if entry == "demo:sentences":
        columns, data = ("text",), [(text,) for text in demo.sentences()]
    elif entry == "demo:triplets":
        columns, data = ("sent0", "sent1", "hard_neg"), [tuple(row) for row in demo.triplets()]
    else:
        raise UserError(f"Unknown generated data {entry!r}. There are demo:sentences and demo:triplets.")

    def rows(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
        places = [columns.index(name) for name in names]
        for row in data:
            yield tuple(row[place] for place in places)

    return TextTable(entry, columns, (), rows, lambda: f"demo:{hashlib.sha256(repr(data).encode()).hexdigest()}")


def choose_columns(
    tables: Sequence[TextTable], columns: Sequence[str] = (), flag: str = "--config.data.columns"
) -> list[tuple[str, ...]]:
    """Return the columns to read of each table, the same number everywhere.

    flag: the flag that users name columns with.

    `columns` if given; else the first table's again where a table has them all; else sent0, sent1 and hard_neg* where
    there is a sent0; else every column of text.
    """
    chosen: list[tuple[str, ...]] = []
    for table in tables:
        if columns:
            _require_columns(table, columns)
            names = tuple(columns)
        elif chosen and set(chosen[0]) <= set(table.columns):
            names = chosen[0]
        else:
            names = _default_columns(table.columns)
        if not names:
            has = f" (only {', '.join(table.other_columns)})" if table.other_columns else ""
            raise UserError(f"{table.name} has no column of text{has}.")
        chosen.append(names)
    if len({len(names) for names in chosen}) > 1:
        listing = "".join(
            f"\n  {table.name}: {len(names)} ({', '.join(names)})"
            for table, names in list(zip(tables, chosen, strict=True))[:8]
        )
        raise UserError(
            f"All files of one run need the same number of columns:{listing}\n"
            f"Choose some that every file has: {flag}=sent0,sent1"
        )
    return chosen


def _default_columns(header: tuple[str, ...]) -> tuple[str, ...]:
    if "sent0" not in header:
        return header
    pair = tuple(name for name in ("sent0", "sent1") if name in header)
    return pair + tuple(name for name in header if name.startswith("hard_neg"))


def _require_columns(table: TextTable, columns: Sequence[str]) -> None:
    for name in columns:
        if name in table.other_columns:
            raise UserError(f"{table.name}: the column {name!r} holds no text. Text is in {_listed(table.columns)}.")
        if name not in table.columns:
            raise UserError(f"{table.name} has no column {name!r}. It has {_listed(table.columns)}.")
    if len(set(columns)) < len(columns):
        raise UserError(f"The list of columns names one twice: {', '.join(columns)}.")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


@dataclass
class RowCounts:
    """Count the rows that `read_rows` has dropped and kept so far, and their documents."""

    empties: int = 0
    documents: int = 0
    kept: int = 0


def read_rows(
    tables: Sequence[TextTable], chosen: Sequence[tuple[str, ...]], counts: RowCounts
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield (document, cells) of every row without an empty cell; UserError if a column is blank in all rows.

    A document is a run of lines of a .txt without a blank line between them.
    """
    document = -1
    for table, names in zip(tables, chosen, strict=True):
        total = 0
        filled = [0] * len(names)
        starts_document = True
        for cells in table.rows(names):
            total += 1
            if cells is None:
                starts_document = True
                counts.empties += 1
                continue
            full = [bool(cell.strip()) for cell in cells]
            for place, is_full in enumerate(full):
                filled[place] += is_full
            if not all(full):
                counts.empties += 1
                continue
            if starts_document:
                document += 1
                starts_document = False
                counts.documents = document + 1
            counts.kept += 1
            yield document, cells
        if total == 0:
            raise UserError(f"{table.name} has no rows" + ("." if table.is_text_file else ", only a header."))
        for name, count in zip(names, filled, strict=True):
            if count == 0 and table.is_text_file:
                raise UserError(f"{table.name} holds nothing but blank lines ({total}).")
            if count == 0:
                left = ",".join(other for other in names if other != name)
                advice = f"leave it out (training: --config.data.columns={left}), or " if left else ""
                raise UserError(
                    f"{table.name}: the column {name!r} is blank in all {total} rows.\n"
                    f"Fill it, {advice}give another file."
                )
