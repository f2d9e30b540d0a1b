"""Read retrieval tasks from the Hub: data sets with the configurations corpus, queries and qrels, NanoBEIR by name."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from simcse_jax.data.sources import load_hub_dataset
from simcse_jax.evaluation.retrieval.data import Judgment, Record, Retrieval, make_retrieval
from simcse_jax.evaluation.retrieval.readers import DEFAULT_SPLIT, IDS, JUDGED, TEXTS, TITLE, as_record, grade_column
from simcse_jax.system.errors import UserError

NANO_PREFIX = "nanobeir:"
NANO_REPO = "sentence-transformers/NanoBEIR-en"
NANO = (
    *("ClimateFEVER", "DBPedia", "FEVER", "FiQA2018", "HotpotQA", "MSMARCO", "NFCorpus", "NQ", "QuoraRetrieval"),
    *("SCIDOCS", "ArguAna", "SciFact", "Touche2020"),
)
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# By the part of the task: the configurations that it may be in.
_CONFIGS = {"corpus": ("corpus",), "queries": ("queries",), "qrels": ("qrels", "default")}


def read_nano(name: str, self_hits: str = "") -> Retrieval:
    """Return one of the thirteen NanoBEIR tasks. name: "nanobeir:NFCorpus", in any case."""
    wanted = name.removeprefix(NANO_PREFIX).lower()
    known = {title.lower(): title for title in NANO}
    if wanted not in known:
        raise UserError(f"{name}: NanoBEIR has no {wanted!r}. It has {', '.join(NANO)}.")
    split = f"Nano{known[wanted]}"
    return _read(name, NANO_REPO, dict.fromkeys(_CONFIGS, (split,)), split, self_hits)


def read_hub(name: str, repo: str, split: str = "", self_hits: str = "") -> Retrieval:
    """Return the task in a Hub data set in MTEB's layout: corpus and queries are splits of that name, or of `split`."""
    wanted = split or DEFAULT_SPLIT
    splits = {"corpus": ("corpus", wanted), "queries": ("queries", wanted), "qrels": (wanted,)}
    return _read(name, repo, splits, wanted, self_hits)


def _read(name: str, repo: str, splits: dict[str, tuple[str, ...]], split: str, self_hits: str) -> Retrieval:
    tables = {part: _load(name, repo, part, splits[part]) for part in _CONFIGS}
    return make_retrieval(
        name,
        split,
        _records(f"{name}, corpus", tables["corpus"]),
        _records(f"{name}, queries", tables["queries"]),
        _judgments(f"{name}, qrels", tables["qrels"]),
        self_hits,
    )


def _load(name: str, repo: str, part: str, splits: Sequence[str]) -> Any:
    """Return one part as a `datasets.Dataset`: the first configuration and split that there is."""
    errors: list[UserError] = []
    for config, split in itertools.product(_CONFIGS[part], splits):
        try:
            return load_hub_dataset(f"{repo}:{config}:{split}", repo, config, split)
        except UserError as error:
            errors.append(error)
    raise UserError(f"{name}: {errors[0]}")


def _named(where: str, columns: Sequence[str], known: Sequence[str], what: str) -> str:
    by_name = {column.lower(): column for column in columns}
    found = next((by_name[name] for name in known if name in by_name), None)
    if found is None:
        raise UserError(f"{where}: there is no column {what} ({known[0]}); there are {', '.join(columns)}.")
    return found


def _records(where: str, table: Any) -> Iterator[Record]:
    columns = table.column_names
    key, text = _named(where, columns, IDS, "of ids"), _named(where, columns, TEXTS, "of texts")
    for number, row in enumerate(table, 1):
        yield as_record(f"{where}, row {number}", row[key], row[text], row.get(TITLE))


def _judgments(where: str, table: Any) -> Iterator[Judgment]:
    """Yield the judgments of a table: a row may hold several documents; without a column of grades each is relevant."""
    columns = table.column_names
    query, document = (_named(where, columns, JUDGED[role], f"of the {role}") for role in ("query", "document"))
    grade = grade_column(where, columns)
    for number, row in enumerate(table, 1):
        found = row[document]
        for one in found if isinstance(found, list) else [found]:
            yield Judgment(f"{where}, row {number}", str(row[query]), str(one), str(row[grade]) if grade else "1")
