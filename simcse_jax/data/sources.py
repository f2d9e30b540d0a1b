"""Open what `data.files` names as tables of text: local files and globs, Hub files, Hub data sets, generated data."""

import difflib
import glob
import hashlib
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simcse_jax.data.readers import FORMATS, format_of, open_table, text_columns
from simcse_jax.data.tables import HEAD, Record, TextTable, listed, record_table
from simcse_jax.system.errors import UserError
from simcse_jax.system.hub import DATASET_PREFIX, dataset_file, require_hub
from simcse_jax.system.mirror import local_path
from simcse_jax.system.object_store import Store, is_address, require_spelling

if TYPE_CHECKING:
    from datasets import Dataset

_HUB_DATASET = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?P<parts>(:[^:\[\]]+(\[[^\]]*\])?){0,2})")
_SPLIT = re.compile(r"(train|validation|val|dev|test)([^\w].*)?|.*\[.*")


def open_tables(files: Sequence[str]) -> list[TextTable]:
    """Return the tables that `files` names, in that order, a glob's matches sorted; at least one.

    An entry is a local path or glob, the same in an object store (`gs://BUCKET/*.txt`),
    `hf://datasets/OWNER/NAME[@REVISION]/PATH` (one file of a Hub data set), `OWNER/NAME[:CONFIG][:SPLIT]` (a Hub data
    set; split "train" by default), `demo:sentences` or `demo:triplets`.
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
    if is_address(entry):
        return [open_table(_fetched(address), address) for address in _addresses(entry)]
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
    require_spelling(entry, "data.files")
    raise UserError(f"The file {entry} does not exist (looked in {Path.cwd()}).{_similar(path)}")


def _addresses(entry: str) -> list[str]:
    """Return the addresses of the files that an address, perhaps a glob, names, sorted."""
    if not glob.has_magic(entry):
        return [entry]
    matches = Store(entry).match(entry)
    if not matches:
        raise UserError(f"No object matches {entry!r}.\nCheck the bucket and the spelling.")
    return matches


def _fetched(address: str) -> Path:
    entries = Store(address).find()
    if entries and "" not in entries:  # nothing of it is fetched
        raise UserError(f"{address} is a folder. Name its files, for example '{address.rstrip('/')}/*.txt'.")
    return local_path(address)


def hub_data_set(entry: str) -> str | None:
    """Return the name of the Hub data set, OWNER/NAME, that an entry of `files` reads from; None for other entries."""
    entry = entry.strip()
    if entry.startswith(DATASET_PREFIX):
        return "/".join(entry.removeprefix(DATASET_PREFIX).partition("@")[0].split("/")[:2])
    found = _HUB_DATASET.fullmatch(entry)
    is_local = (
        is_address(entry) or Path(entry).expanduser().exists() or format_of(entry) is not None or entry.startswith(".")
    )
    return found["repo"] if found and not is_local else None


def _similar(path: Path) -> str:
    """Return a line that names data files with a similar name in the same folder, or what that folder has."""
    folder = path.parent
    if not folder.is_dir():
        return f"\nThe folder {folder} does not exist." if not glob.has_magic(str(folder)) else ""
    names = sorted(child.name for child in folder.iterdir() if format_of(child))
    if close := difflib.get_close_matches(path.name, names, n=1):
        return f"\nDid you mean {folder / close[0]}?"
    return f"\nIn {folder} there is: {listed(names)}" if names else f"\n{folder} holds no {', '.join(FORMATS)} file."


def _hub_dataset_table(entry: str, repo: str, parts: str) -> TextTable:
    """Return a table over `datasets.load_dataset`; a single part after the name is the split if it names one."""
    given = re.findall(r":([^:\[\]]+(?:\[[^\]]*\])?)", parts)
    if len(given) == 1 and _SPLIT.fullmatch(given[0]):
        given = [None, *given]
    config, split = (*given, None, None)[:2]
    return dataset_table(load_hub_dataset(entry, repo, config, split or "train"), entry)


def load_hub_dataset(entry: str, repo: str, config: str | None, split: str) -> "Dataset":
    """Return one split of a Hub data set; UserError where it cannot be had. entry: its name as given, for messages."""
    from datasets import load_dataset
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        try:
            require_hub()
        except UserError as error:
            raise UserError(
                f"{entry!r} is no local file, and as a Hub data set it cannot be fetched. {error}\n"
                "If it was fetched before: HF_HUB_OFFLINE=1 takes it from the cache."
            ) from error
    try:
        return load_dataset(repo, config, split=split)
    except Exception as error:  # load_dataset raises ValueError, OSError and its own classes alike
        reason = "\n  ".join(str(error).strip().splitlines()[:4])[:600]
        raise UserError(
            f"{entry!r} is no local file, and as a Hub data set it does not load:\n  {type(error).__name__}: {reason}\n"
            "Write OWNER/NAME:CONFIG:SPLIT; or name one file: hf://datasets/OWNER/NAME/PATH."
        ) from error


def dataset_table(dataset: "Dataset", name: str) -> TextTable:
    """Return the table of a `datasets.Dataset`."""

    def records(columns: Sequence[str] | None) -> Iterator[Record]:
        chosen = dataset if columns is None else dataset.select_columns(list(columns))
        batches: Any = chosen.with_format("arrow").iter(batch_size=HEAD)
        return enumerate(itertools.chain.from_iterable(batch.to_pylist() for batch in batches), 1)

    schema = text_columns(dataset.features.arrow_schema)
    return record_table(name, records, lambda: f"dataset:{dataset._fingerprint}", "row", schema)


def _demo_table(entry: str) -> TextTable:
    from simcse_jax.data import demo

    if entry == "demo:sentences":
        columns, data = ("text",), [(text,) for text in demo.sentences()]
    elif entry == "demo:triplets":
        columns, data = ("sent0", "sent1", "hard_neg"), [tuple(row) for row in demo.triplets()]
    else:
        raise UserError(f"Unknown generated data {entry!r}. There are demo:sentences and demo:triplets.")

    def rows(names: Sequence[str], named: bool = False, scores: None = None) -> Iterator[tuple[str, ...]]:
        places = [columns.index(name) for name in names]
        for row in data:
            yield tuple(row[place] for place in places)

    return TextTable(entry, columns, (), rows, lambda: f"demo:{hashlib.sha256(repr(data).encode()).hexdigest()}")
