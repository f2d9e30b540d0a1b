"""Hold a retrieval task, and make it from records: ids are unique, every judgment counts, and what is odd is noted."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from simcse_jax.data.tables import is_number
from simcse_jax.evaluation.graded_pairs import FEW
from simcse_jax.system.errors import UserError

SELF = ("drop", "keep")  # what becomes of a document that has its query's id


class Judgment(NamedTuple):
    """Hold one line of relevance judgments ("qrels")."""

    where: str  # file and line, for messages
    query: str
    document: str
    grade: str  # as written


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Hold queries, the documents that they search, and which of these are relevant to each."""

    name: str  # their source, for tables and messages
    split: str
    queries: dict[str, str]  # by id, those with a relevant document
    documents: dict[str, str]  # by id, ascending: of equal scores the lower id comes first
    relevant: dict[str, dict[str, int]]  # by query: the grade, above 0, of each relevant document, known or not
    drops_self: bool = False  # a document with the query's own id is left out of its ranking
    remarks: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """Return remarks on what was left out or is odd, and on queries that are too few; "" without any."""
        few = f"only {len(self.queries)} queries, which say little (hundreds are reliable)"
        return "; ".join([*([few] if len(self.queries) < FEW else []), *self.remarks])

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of ids, texts and judgments, independent of the files and of their order."""
        digest = hashlib.blake2b(b"drop" if self.drops_self else b"keep", digest_size=16)
        for texts in (self.queries, self.documents):
            for key in sorted(texts):
                digest.update(f"{key}\0{texts[key]}\0".encode("utf-8", "surrogatepass"))
            digest.update(b"\1")
        for query in sorted(self.relevant):
            digest.update(f"{query}\0{sorted(self.relevant[query].items())}\0".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


class Record(NamedTuple):
    """Hold one document or query."""

    where: str
    id: str
    text: str


def by_id(records: Iterable[Record], what: str) -> tuple[dict[str, str], list[str]]:
    """Return the texts by id, and remarks; UserError for none, or for an id with two texts. what: "query", ..."""
    texts: dict[str, str] = {}
    places: dict[str, str] = {}
    twice = 0
    for record in records:
        if not record.id:
            raise UserError(f"{record.where}: the {what} has no id. Write it, or remove the line.")
        if record.id in texts:
            if texts[record.id] != record.text:
                raise UserError(
                    f"{record.where}: the id {record.id!r} is that of {places[record.id]} too, with another text.\n"
                    "Give each its own id, or remove one of them."
                )
            twice += 1
        texts[record.id] = record.text
        places.setdefault(record.id, record.where)
    if not texts:
        raise UserError(f"There is no {what}: the file holds no rows. Give one that does.")
    blank = sum(not text.strip() for text in texts.values())
    plural = "queries" if what == "query" else f"{what}s"
    return texts, [
        *([f"{plural} repeated with their ids, counted once: {twice:,}"] if twice else []),
        *([f"blank {plural}: {blank:,}"] if blank else []),
    ]


def make_retrieval(
    name: str,
    split: str,
    documents: Iterable[Record],
    queries: Iterable[Record],
    judgments: Iterable[Judgment],
    self_hits: str = "",
) -> Retrieval:
    """Return the task; UserError where it cannot be scored.

    self_hits: one of SELF, or "": a document with the query's own id is left out of its ranking, as BEIR does, unless
    judgments call such documents relevant, which says that queries and documents are numbered apart.
    """
    found, remarks = by_id(documents, "document")
    asked, more = by_id(queries, "query")
    remarks += more
    grades, more = _read_grades(judgments)
    remarks += more
    relevant = {query: {d: g for d, g in own.items() if g > 0} for query, own in grades.items()}
    relevant = {query: own for query, own in relevant.items() if own}
    if not relevant:
        raise UserError(f"{name}: no judgment has a grade above 0, so no document is relevant to any query.")
    remarks += _unknown(name, asked, found, relevant)
    relevant = {query: relevant[query] for query in asked if query in relevant}
    without = len(asked.keys() & grades.keys()) - len(relevant)
    if without:
        remarks.append(f"judged queries without a relevant document, left out: {without:,}")
    drops, said = _self_hits(found, relevant, self_hits)
    remarks += said
    copies = sum(count - 1 for count in Counter(found.values()).values())
    if copies:
        remarks.append(f"documents that repeat the text of another (equal scores, ranked by id): {copies:,}")
    documents_by_id = {key: found[key] for key in sorted(found)}
    return Retrieval(
        name, split, {query: asked[query] for query in relevant}, documents_by_id, relevant, drops, tuple(remarks)
    )


def _read_grades(judgments: Iterable[Judgment]) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Return the grades by query and document, and remarks; UserError for a grade that is no whole number."""
    grades: dict[str, dict[str, int]] = {}
    negative = twice = 0
    for where, query, document, written in judgments:
        grade = parse_grade(where, written)
        own = grades.setdefault(query, {})
        if document in own:
            twice += 1
            if own[document] != grade:
                raise UserError(
                    f"{where}: the document {document!r} has the grade {grade} for the query {query!r}, and "
                    f"{own[document]} in an earlier line. Remove one of them."
                )
        own[document] = grade
        negative += grade < 0
    return grades, [
        *([f"repeated judgments, counted once: {twice:,}"] if twice else []),
        *([f"negative judgments, not relevant as in trec_eval: {negative:,}"] if negative else []),
    ]


def parse_grade(where: str, written: str) -> int:
    """Return the grade; UserError with file and line when it is no whole number."""
    number = float(written) if is_number(written) else np.nan
    if not number.is_integer():  # nor infinite or NaN
        raise UserError(
            f"{where}: the grade {written!r:.60} is no whole number. Grades are 0 (not relevant), 1 (relevant), 2, ..."
        )
    return int(number)


def _unknown(
    name: str, queries: Mapping[str, str], documents: Mapping[str, str], relevant: dict[str, dict[str, int]]
) -> list[str]:
    """Return remarks on ids that judgments name and files lack; UserError where they have none of them."""
    lost_queries = [query for query in relevant if query not in queries]
    wanted = [document for query, own in relevant.items() if query in queries for document in own]
    lost = [document for document in wanted if document not in documents]
    for what, missing, count, known in (
        ("queries", lost_queries, len(relevant), queries),
        ("relevant documents", lost, len(wanted), documents),
    ):
        if len(missing) == count:
            raise UserError(
                f"{name}: none of the {count:,} {what} that the judgments name is known: {missing[0]!r} for example; "
                f"ids of {what.split()[-1]} are like {next(iter(known))!r}.\nGive judgments of these files, with the "
                "columns query, document, grade, in this order."
            )
    remarks = []
    if lost_queries:
        remarks.append(f"unknown queries that are judged, left out: {len(lost_queries):,} ({lost_queries[0]!r})")
    if lost:
        remarks.append(f"unknown documents that are relevant, counted as not found: {len(lost):,} ({lost[0]!r})")
    return remarks


def _self_hits(documents: Mapping[str, str], relevant: dict[str, dict[str, int]], asked: str) -> tuple[bool, list[str]]:
    """Return whether a document with the query's id is left out of its ranking, and a remark where that matters."""
    own = sum(query in documents for query in relevant)
    judged = sum(query in documents and query in found for query, found in relevant.items())
    drops = asked == "drop" or (not asked and own > 0 and not judged)
    if not own:
        return False, []
    if drops:
        also = f", of which {judged:,} are relevant" if judged else ""
        return True, [f"documents with a query's own id, left out of its ranking: {own:,}{also} (self=keep keeps them)"]
    why = "" if asked else ", as some are judged relevant"
    return False, [f"documents with a query's own id, kept in its ranking{why}: {own:,} (self=drop leaves them out)"]
