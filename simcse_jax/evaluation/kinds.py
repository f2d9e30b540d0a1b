"""State what kinds of tasks a user's own data may be: how each is loaded, scored and named.

A task of one's own is "KIND:SOURCE", such as "retrieval:DIR"; of graded pairs, the source alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from simcse_jax.evaluation import clustering, own_function, pair_classification, reranking, triplets
from simcse_jax.evaluation.graded_pairs import GradedPairs, load_graded_pairs
from simcse_jax.evaluation.results import Encode, Score
from simcse_jax.evaluation.retrieval.from_text import load_text
from simcse_jax.evaluation.retrieval.measures import HEADLINE, NAMES
from simcse_jax.evaluation.retrieval.sources import load_retrieval
from simcse_jax.evaluation.retrieval.task import evaluate_retrieval
from simcse_jax.evaluation.sts import evaluate_sts


class OwnData(Protocol):
    """Stand for the loaded data of a task."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of the content."""
        ...

    @property
    def note(self) -> str:
        """A remark on what its scores are worth; "" for none."""
        ...


class Kind(NamedTuple):
    """Describe one kind of task."""

    load: Callable[[str], Any]  # from the source to its OwnData; UserError for bad input
    score: Callable[[Encode, Any, str], Score]  # of the data, under the task's name
    measures: tuple[str, ...]  # the values of its Score that can choose a checkpoint; the headline first
    logged: tuple[str, ...]  # those that training logs beside the one that chooses
    help: str  # of the flag of `evaluate` that takes such a source


def _score_pairs(encode: Encode, pairs: GradedPairs, task: str) -> Score:
    return evaluate_sts(encode, {"": pairs}, task, "as given")


_NAMED = "FILE:role=COLUMN,split=VALUE where these have other names."
_LISTS = "the latter two may be lists in .jsonl. FILE:query=COLUMN,split=VALUE where these have other names."
PAIRS = "pairs"
KINDS: dict[str, Kind] = {
    PAIRS: Kind(
        load_graded_pairs,
        _score_pairs,
        ("spearman", "pearson"),
        ("spearman", "pearson"),
        "Your own graded pairs as another task: a file of score, sentence, sentence; FILE:score=COLUMN,"
        "sentence1=COLUMN,sentence2=COLUMN,split=VALUE where its header does not say which is which; or demo:test.",
    ),
    "retrieval": Kind(
        load_retrieval,
        evaluate_retrieval,
        NAMES,
        (HEADLINE, "mrr@10", "recall@10", "map@100"),
        "Queries, documents and which are relevant, as another task: a folder in BEIR's layout (corpus.jsonl, "
        "queries.jsonl, qrels/test.tsv), DIR:split=dev for another split; corpus=FILE,queries=FILE,qrels=FILE, the "
        "last as BEIR's or TREC's; nanobeir:NFCorpus; or a Hub data set OWNER/NAME of that layout.",
    ),
    "text": Kind(
        load_text,
        evaluate_retrieval,
        NAMES,
        (HEADLINE, "mrr@10", "recall@10", "map@100"),
        "Text without labels, as another task: what stood together should be found together. A .txt with blank lines "
        "between documents: a sentence's neighbours; a table with the columns title and body: the body of a title; "
        "else the second half of a text. FILE:by=halves chooses, FILE:most=10000 says how many texts are searched.",
    ),
    "reranking": Kind(
        reranking.load_reranking,
        reranking.evaluate_reranking,
        reranking.MEASURES,
        reranking.MEASURES,
        f"Short lists to rank, as another task: a file with the columns query, positive, negative; {_LISTS}",
    ),
    "triplets": Kind(
        triplets.load_triplets,
        triplets.evaluate_triplets,
        triplets.MEASURES,
        triplets.MEASURES,
        f"Triplets, as another task: a file with the columns anchor, positive, negative; {_NAMED}",
    ),
    "pair_classification": Kind(
        pair_classification.load_labelled_pairs,
        pair_classification.evaluate_pair_classification,
        pair_classification.MEASURES,
        pair_classification.MEASURES,
        "Pairs labelled 0 or 1, as another task: a file as for --pairs, whose scores are 0 or 1.",
    ),
    "clustering": Kind(
        clustering.load_clustering,
        clustering.evaluate_clustering,
        clustering.MEASURES,
        clustering.MEASURES,
        f"Texts with a class each, as another task: a file with the columns text, label; {_NAMED}",
    ),
    "function": Kind(
        own_function.load_function,
        own_function.evaluate_function,
        own_function.MEASURES,
        own_function.MEASURES,
        "A Python function of your own, as another task: MODULE:NAME. It takes `encode`, from a list of N texts to "
        "float32[N, D], and returns a number, more is better, or several by name, of which the first counts.",
    ),
}


def parse_task(task: str) -> tuple[str, str]:
    """Return the kind and the source of a task of one's own."""
    kind, found, source = task.partition(":")
    return (kind, source) if found and kind in KINDS else (PAIRS, task)


def name_task(kind: str, source: str) -> str:
    """Return the name of the task of this kind and source."""
    return source if kind == PAIRS else f"{kind}:{source}"


def load_task(task: str) -> OwnData:
    """Return the data of a task of one's own; UserError for bad input."""
    kind, source = parse_task(task)
    return KINDS[kind].load(source)


def score_task(encode: Encode, data: OwnData, task: str) -> Score:
    """Return the score at a task of one's own, whose data `load_task` returned."""
    return KINDS[parse_task(task)[0]].score(encode, data, task)
