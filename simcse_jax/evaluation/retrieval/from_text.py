"""Make a retrieval task from text without labels: what stood together in it should be found together.

A sentence should find its neighbours in its document, the first half of a text its second half, or a title its body.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

from simcse_jax.data.held_out import choose_units
from simcse_jax.data.rows import RowCounts, choose_columns, read_rows
from simcse_jax.data.sources import open_tables
from simcse_jax.data.tables import TextTable
from simcse_jax.evaluation.options import split_options
from simcse_jax.evaluation.retrieval.data import Retrieval
from simcse_jax.system.errors import UserError

NEIGHBOURS, HALVES, TITLES = BY = ("neighbours", "halves", "titles")
PAIRS = "pairs"  # of the rows of training data
MEANING = {
    NEIGHBOURS: "whether a sentence finds those beside it in its document",
    HALVES: "whether the first half of a text finds its second half",
    TITLES: "whether a title finds its body",
    PAIRS: "whether the first text of a row finds its positive",
}
CAVEAT = "this shows topic and wording more than meaning, and compares models on the same text only"
OPTIONS = ("by", "title", "body", "column", "most")
MOST = 10_000  # texts that are searched
FEWEST_WORDS = 6  # of a text that is halved
TITLE, BODY = ("title", "headline", "subject"), ("body", "text", "abstract", "content", "article")
_SENTENCE_END = re.compile(r"[.!?\u3002\uff01\uff1f][\"')\]\u201d]*\s+")


def load_text(source: str) -> Retrieval:
    """Return the task made from the text at `source`; UserError where it holds too little.

    source: a file as for training, `FILE[:by=neighbours|halves|titles,title=COLUMN,body=COLUMN,column=COLUMN,most=N]`.
    Without `by`: neighbours in a .txt with blank lines between documents; titles where there are columns of title and
    body; else halves. most: how many texts are searched, whole documents chosen by a hash of their text.
    """
    place, options = split_options(source, OPTIONS)
    [table, *more] = open_tables([place])
    if more:
        raise UserError(f"{source} names {len(more) + 1} files. Give one.")
    by = options.get("by") or _usual(table, options)
    if by not in BY:
        raise UserError(f"{source}: by={by} must be one of {', '.join(BY)}.")
    idle = {"title", "body"} if by != TITLES else {"column"}
    if wrong := next((key for key in options if key in idle), None):
        raise UserError(f"{source}: {wrong}= has no effect with by={by}. Leave it out.")
    most = options.get("most", str(MOST))
    if not most.isdecimal() or int(most) < 2:
        raise UserError(f"{source}: most={most} must be a whole number of at least 2, such as {MOST}.")
    columns = _columns(source, table, by, options)
    rows = list(read_rows([table], [columns], RowCounts(), "", named=True))
    if by == NEIGHBOURS:
        return neighbours(source, choose_units(_documents(rows), int(most), len))
    if by == TITLES:
        return from_rows(source, choose_units([cells for _, cells in rows], int(most)), TITLES)
    return halves(source, [text for text, *_ in choose_units([cells for _, cells in rows], int(most))])


def read_texts(source: str) -> list[str]:
    """Return the texts at `source`, given as for `load_text`: of a table, its column of text or of bodies."""
    place, options = split_options(source, OPTIONS)
    rows: list[str] = []
    for table in open_tables([place]):
        by = options.get("by") or _usual(table, options)
        columns = _columns(source, table, by, options)[-1:]
        rows += [text for _, (text,) in read_rows([table], [columns], RowCounts(), "", named=True)]
    return rows


def _usual(table: TextTable, options: dict[str, str]) -> str:
    """Return what is made of a table where the user does not say."""
    if table.is_text_file:
        documents = {document for document, _ in read_rows([table], [("text",)], RowCounts())}
        return NEIGHBOURS if len(documents) > 1 else HALVES
    names = {name.lower() for name in table.columns}
    has_titles = names.intersection(TITLE) and names.intersection(BODY)
    return TITLES if {"title", "body"} & options.keys() or (has_titles and "column" not in options) else HALVES


def _columns(source: str, table: TextTable, by: str, options: dict[str, str]) -> tuple[str, ...]:
    """Return the columns to read: of title and body, or of one text."""
    by_name = {name.lower(): name for name in table.columns}
    if by == NEIGHBOURS and not table.is_text_file:
        raise UserError(
            f"{source}: by={NEIGHBOURS} needs a .txt with a sentence a line and blank lines between documents."
        )
    if by != TITLES:
        return choose_columns([table], [options["column"]] if "column" in options else [], ":column=")[0][:1]
    found = []
    for role, known in (("title", TITLE), ("body", BODY)):
        wanted = (options[role].lower(),) if role in options else known
        name = next((by_name[name] for name in wanted if name in by_name), None)
        if name is None:
            raise UserError(
                f"{source}: there is no column {options.get(role, role)!r}; the columns: {', '.join(table.columns)}.\n"
                f"Name them: {table.name}:title=COLUMN,body=COLUMN"
            )
        found.append(name)
    return tuple(found)


def _documents(rows: Iterable[tuple[int, tuple[str, ...]]]) -> list[list[str]]:
    """Return the sentences of each document."""
    documents: dict[int, list[str]] = {}
    for document, cells in rows:
        documents.setdefault(document, []).append(cells[0])
    return list(documents.values())


def neighbours(name: str, documents: Sequence[Sequence[str]]) -> Retrieval:
    """Return the task in which each sentence should find those before and after it in its document.

    A sentence is not among its own results, and one that occurs several times has the neighbours of all its places.
    """
    ids: dict[str, str] = {}
    relevant: dict[str, dict[str, int]] = {}
    for sentences in documents:
        own = [ids.setdefault(sentence, _id(len(ids))) for sentence in sentences]
        for first, second in itertools.pairwise(own):
            if first != second:
                relevant.setdefault(first, {})[second] = 1
                relevant.setdefault(second, {})[first] = 1
    if not relevant:
        raise UserError(
            f"{name}: no document has two different sentences. Put blank lines between documents, and not between "
            f"sentences; or halve each text: by={HALVES}"
        )
    texts = {key: text for text, key in ids.items()}
    return _task(name, NEIGHBOURS, {key: texts[key] for key in sorted(relevant)}, texts, relevant, drops_self=True)


def halves(name: str, texts: Iterable[str]) -> Retrieval:
    """Return the task in which the first half of each text should find its second half."""
    texts = list(dict.fromkeys(texts))
    parts = [part for text in texts if (part := halve(text))]
    if len(parts) < 2:
        raise UserError(f"{name}: {len(parts)} texts have {FEWEST_WORDS} words or more, which are needed to halve one.")
    short = len(texts) - len(parts)
    return from_rows(
        name, parts, HALVES, [f"{short:,} texts of fewer than {FEWEST_WORDS} words are left out"] * (short > 0)
    )


def halve(text: str) -> tuple[str, str] | None:
    """Return a text in two: at the end of the sentence nearest to its middle, or between words; None if too short."""
    words = [match.start() for match in re.finditer(r"\S+", text)]
    if len(words) < FEWEST_WORDS:
        return None
    inner = words[2:-1]  # both halves have two words or more
    ends = {match.end() for match in _SENTENCE_END.finditer(text)}
    places = [place for place in inner if place in ends] or inner
    cut = min(places, key=lambda place: (abs(2 * place - len(text)), place))
    return text[:cut].strip(), text[cut:].strip()


def from_rows(name: str, rows: Iterable[Sequence[str]], by: str, remarks: Sequence[str] = ()) -> Retrieval:
    """Return the task in which the first cell of each row should find the second; further cells are searched, too.

    Equal texts are one query, or one document. A text that is both has one id, and does not find itself.
    """
    queries: dict[str, str] = {}
    documents: dict[str, str] = {}
    relevant: dict[str, dict[str, int]] = {}
    same = 0
    for query, *others in rows:
        found = [documents.setdefault(text, f"d{_id(len(documents))}") for text in others if text.strip()]
        if found[0] == documents.get(query):
            same += 1
            continue
        key = queries.setdefault(query, f"q{_id(len(queries))}")
        relevant.setdefault(key, {})[found[0]] = 1
    if not queries:
        raise UserError(f"{name}: in all rows both texts are equal, so there is nothing to find.")
    shared = {key: queries[text] for text, key in documents.items() if text in queries}
    relevant = {query: {shared.get(key, key): grade for key, grade in own.items()} for query, own in relevant.items()}
    asked = {key: text for text, key in queries.items()}
    searched = dict(sorted((shared.get(key, key), text) for text, key in documents.items()))
    notes = [f"rows of two equal texts, left out: {same:,}"] * (same > 0)
    notes += [f"queries that are documents too, left out of their own ranking: {len(shared):,}"] * bool(shared)
    return _task(name, by, asked, searched, relevant, drops_self=bool(shared), remarks=[*remarks, *notes])


def _task(
    name: str,
    by: str,
    queries: dict[str, str],
    documents: dict[str, str],
    relevant: dict[str, dict[str, int]],
    drops_self: bool = False,
    remarks: Sequence[str] = (),
) -> Retrieval:
    remarks = (f"it measures {MEANING[by]}: {CAVEAT}", *remarks)
    ordered = {query: relevant[query] for query in queries}
    return Retrieval(name, f"made: {by}", queries, documents, ordered, drops_self, tuple(remarks))


def _id(number: int) -> str:
    return f"{number:08d}"
