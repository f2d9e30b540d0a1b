"""Read retrieval tasks from files: a folder in BEIR's layout, or corpus, queries and judgments ("qrels") by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from simcse_jax.data.lines import COMPRESSIONS, text_lines
from simcse_jax.data.readers import FORMATS, format_of, read_records
from simcse_jax.data.tables import is_number
from simcse_jax.evaluation.retrieval.data import Judgment, Record, Retrieval, make_retrieval
from simcse_jax.system.errors import UserError

FILES = ("corpus", "queries", "qrels")
LAYOUT = "DIR with corpus.jsonl, queries.jsonl and qrels/test.tsv"
DEFAULT_SPLIT = "test"
# Names of columns, in lower case.
IDS = ("_id", "id", "docid", "doc_id", "pid", "qid", "query_id", "query-id", "corpus-id", "corpus_id")
TEXTS = ("text", "contents", "content", "body", "document", "passage", "query", "question")
TITLE = "title"
JUDGED = {
    "query": ("query-id", "query_id", "qid", "query", "topic"),
    "document": ("corpus-id", "corpus_id", "docid", "doc_id", "pid", "docno", "document"),
    "grade": ("score", "grade", "relevance", "rel", "label"),
}
_OF_TREC = ("iteration", "iter", "q0")  # of its second column, which says nothing
_TABLES = tuple(suffix for suffix in FORMATS if suffix != ".txt")
_SUFFIXES = tuple(f"{suffix}{packed}" for suffix in _TABLES for packed in ("", *COMPRESSIONS))


def read_folder(name: str, folder: Path, split: str = "", self_hits: str = "") -> Retrieval:
    """Return the task in a folder of BEIR's layout. name: as given. split: names the file in qrels/; "": test."""
    corpus, queries = (_beside(name, folder, stem) for stem in FILES[:2])
    judgments = _split_file(name, folder / "qrels", split)
    return read_files(name, corpus, queries, judgments, split or DEFAULT_SPLIT, self_hits)


def read_files(name: str, corpus: Path, queries: Path, qrels: Path, split: str, self_hits: str = "") -> Retrieval:
    """Return the task in three files."""
    for path in (corpus, queries, qrels):
        if not path.is_file():
            raise UserError(f"{name}: there is no file {path} (relative to {Path.cwd()}).")
    return make_retrieval(
        name, split, read_texts(corpus), read_texts(queries, ("query", "question")), read_judgments(qrels), self_hits
    )


def _beside(name: str, folder: Path, stem: str) -> Path:
    found = [path for path in (folder / f"{stem}{suffix}" for suffix in _SUFFIXES) if path.is_file()]
    if len(found) != 1:
        has = f"has {' and '.join(path.name for path in found)}; keep one" if found else f"has no {stem}.jsonl"
        raise UserError(
            f"{name} {has}. A retrieval task is a {LAYOUT} (or dev.tsv, ... with {name}:split=dev); or name three "
            "files: corpus=FILE,queries=FILE,qrels=FILE"
        )
    return found[0]


def _split_file(name: str, folder: Path, split: str) -> Path:
    """Return the judgments of a split."""
    wanted = split or DEFAULT_SPLIT
    found = sorted(path for path in folder.glob("*") if path.is_file()) if folder.is_dir() else []
    by_split = {path.name.split(".")[0]: path for path in found}
    if wanted in by_split:
        return by_split[wanted]
    there = ", ".join(by_split) or "nothing"
    choice = f"Choose one: {name}:split={next(iter(by_split))}" if by_split else f"A retrieval task is a {LAYOUT}."
    raise UserError(f"{name}: there are no judgments of the split {wanted!r}; qrels/ has {there}.\n{choice}")


def read_texts(path: Path, before: Sequence[str] = ()) -> Iterator[Record]:
    """Yield the documents, or queries, of a file whose header or keys name _id, text and perhaps title.

    A title stands before its text, with a space between. Two columns without a header are id and text. before: names
    of the text's column that are looked for first.
    """
    rows = read_records(path, str(path))
    line, head = next(rows, (0, []))
    columns = _text_columns(path, line, [str(cell) for cell in head], before)
    if columns is None:
        columns = {"id": 0, "text": 1}
        yield _record(f"{path}, line {line}", head, columns)
    for number, cells in rows:
        yield _record(f"{path}, line {number}", cells, columns)


def _record(where: str, cells: Sequence[Any], columns: dict[str, int]) -> Record:
    if len(cells) <= max(columns.values()):
        raise UserError(f"{where}: {len(cells)} columns, at least {max(columns.values()) + 1} needed.")
    return as_record(where, *(cells[columns[key]] if key in columns else None for key in ("id", "text", TITLE)))


def as_record(where: str, key: Any, text: Any, title: Any) -> Record:
    """Return a record of values as they are; UserError where one is no text. None is an empty text."""
    for what, value in (("text", text), ("title", title)):
        if not isinstance(value, str | None):
            raise UserError(f"{where}: the {what} is no string: {value!r:.60}")
    # As BEIR, MTEB and sentence-transformers join them.
    joined = f"{title} {text or ''}" if title else text or ""
    return Record(where, "" if key is None else str(key), joined.strip())


def _text_columns(path: Path, line: int, head: list[str], before: Sequence[str]) -> dict[str, int] | None:
    """Return the columns of "id", "text" and "title" by name; None for two columns without a header."""
    names = [cell.strip().lower() for cell in head]
    found = {}
    for role, known in (("id", IDS), ("text", (*before, *TEXTS)), (TITLE, (TITLE,))):
        name = next((name for name in known if name in names), None)
        if name is not None:
            found[role] = names.index(name)
    if {"id", "text"} <= found.keys():
        return found
    if len(head) == 2 and line and not found:
        return None
    raise UserError(
        f"{path}, line {line or 1}: columns or keys _id and text are needed (title may be there, too); there are "
        f"{', '.join(f'{cell!r:.40}' for cell in head) or 'none'}."
    )


def read_judgments(path: Path) -> Iterator[Judgment]:
    """Yield the judgments of a file: query, document, grade (BEIR), or TREC's query, iteration, document, grade.

    A header names the columns; with columns of queries and documents alone, each document is relevant. Cells are cut at
    tabs, or at white space where there is no tab.
    """
    rows = read_records(path, str(path)) if format_of(path) in (".jsonl", ".parquet", ".csv") else _cells(path)
    columns: dict[str, int] | None = None
    for line, cells in rows:
        where = f"{path}, line {line}"
        written = ["" if cell is None else str(cell).strip() for cell in cells]
        if columns is None:
            columns, is_header = _judged_columns(where, written)
            if is_header:
                continue
        if len(written) <= max(columns.values()):
            raise UserError(
                f"{where}: {len(written)} columns, at least {max(columns.values()) + 1} needed: {written!r:.80}"
            )
        grade = written[columns["grade"]] if "grade" in columns else "1"
        yield Judgment(where, written[columns["query"]], written[columns["document"]], grade)
    if columns is None:
        raise UserError(f"{path} is empty. Give judgments: query, document and grade a line.")


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text_lines(path, str(path)), 1):
        if line.strip():
            yield number, line.rstrip("\r\n").split("\t") if "\t" in line else line.split()


def grade_column(where: str, columns: Sequence[str]) -> str | None:
    """Return the column of grades; None where there are but queries and documents, UserError where none is known."""
    by_name = {column.lower(): column for column in columns}
    grade = next((by_name[name] for name in JUDGED["grade"] if name in by_name), None)
    others = [by_name[name] for name in by_name if name not in (*JUDGED["query"], *JUDGED["document"], *_OF_TREC)]
    if grade is None and others:
        raise UserError(
            f"{where}: none of the columns {', '.join(others)} is known to hold grades. Name the one that does score; "
            "or remove them all, if each document is relevant to its query."
        )
    return grade


def _judged_columns(where: str, first: list[str]) -> tuple[dict[str, int], bool]:
    """Return the columns of "query", "document" and "grade", and whether the first row is a header."""
    names = [cell.lower() for cell in first]
    found = {}
    for role, known in JUDGED.items():
        name = next((name for name in known if name in names), None)
        if name is not None:
            found[role] = names.index(name)
    if {"query", "document"} <= found.keys():
        grade_column(where, first)
        return found, True
    if len(first) in (3, 4) and is_number(first[-1]):
        return {"query": 0, "document": len(first) - 2, "grade": len(first) - 1}, False
    raise UserError(
        f"{where}: {', '.join(f'{cell!r:.40}' for cell in first)} are no judgment. A line is query, document, grade "
        "(with the header query-id, corpus-id, score), or TREC's query, 0, document, grade."
    )
