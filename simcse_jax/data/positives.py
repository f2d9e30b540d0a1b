"""What makes a positive: which texts of an example are encoded, and how often.

`dropout`: one text, encoded twice; the two dropout masks are the only difference (SimCSE, section 3).
`columns`: the second column is the positive, further ones are hard negatives (section 4).
`next_sentence`: one of the sentences that follow in the document (table 2; quick-thoughts).
`crop`, `word_deletion`, `synonym`: the text with words cut away, deleted or replaced (table 1).
`mask`: the text with tokens replaced by what a masked language model predicts (table 1).
`repetition`: the text with tokens repeated (ESimCSE).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from simcse_jax.data.changes import Change, Crop, Repetition, WordDeletion
from simcse_jax.data.corpus import Corpus
from simcse_jax.data.examples import AsTheyAre, Examples, WithChangedCopy, WithNext
from simcse_jax.data.synonyms import SHIPPED, Synonym, load_replacements
from simcse_jax.data.vocabulary import Vocabulary
from simcse_jax.system.errors import UserError

# Those that change a text; `rate` is the share of it that is changed.
CHANGES = ("crop", "word_deletion", "synonym", "repetition")
POSITIVES = ("dropout", "columns", "next_sentence", *CHANGES, "mask")
WINDOWS = (1, 3)
# Sentences that documents hold on average, at most, to be taken for documents: Wikipedia's hold a hundred.
LONGEST_DOCUMENT = 1000


class Positive(NamedTuple):
    """How a recipe makes positives."""

    kind: str  # one of POSITIVES
    rate: float = 0.1  # of `CHANGES` and "mask": the share of words, or tokens, that are changed
    window: int = 1  # of "next_sentence": how many following sentences to choose from
    synonyms: str = ""  # of "synonym": a file; "" = the one that comes along


def views_of(positive: str, columns: tuple[str, ...]) -> int:
    """How often each text of an example is embedded: 2 where it is its own positive, 1 otherwise.

    Raises UserError when the data's text columns do not suit: `columns` takes two or more, the others one.
    """
    named = ", ".join(columns)
    if positive != "columns" and len(columns) != 1:
        raise UserError(
            f"data.positive = {positive!r} takes one text column, and the data has {len(columns)}: {named}.\n"
            f"Choose one with --config.data.columns={columns[0]}, or train on the pairs with configs/sup.py "
            "(data.positive = 'columns')."
        )
    if positive == "columns" and len(columns) < 2:
        raise UserError(
            f"data.positive = 'columns' takes two or more text columns (sentence, positive, hard negatives ...), and "
            f"the data has one: {named}.\nTrain on plain sentences with configs/unsup.py (data.positive = 'dropout')."
        )
    return 2 if positive in ("dropout", "mask") else 1


def make_examples(
    positive: Positive, corpus: Corpus, tokenizer: Any, vocabulary: Callable[[], Vocabulary], seed: int
) -> Examples:
    """The examples that batches of this corpus are made of; UserError when it does not suit."""
    if positive.kind == "next_sentence":
        return WithNext(corpus, _documents(corpus), positive.window, seed)
    if positive.kind in CHANGES:
        change = _change(positive, corpus.report.max_length, tokenizer, vocabulary())
        return WithChangedCopy(corpus, change, seed)
    return AsTheyAre(corpus)


def synonyms_fingerprint(positive: Positive) -> str:
    """A hex digest of what the file of synonyms says; "" where none is used."""
    if positive.kind != "synonym":
        return ""
    return hashlib.blake2b(Path(positive.synonyms or SHIPPED).expanduser().read_bytes(), digest_size=16).hexdigest()


def _change(positive: Positive, max_length: int, tokenizer: Any, vocabulary: Vocabulary) -> Change:
    if positive.kind == "crop":
        return Crop(vocabulary, positive.rate)
    if positive.kind == "word_deletion":
        return WordDeletion(vocabulary, positive.rate)
    if positive.kind == "repetition":
        return Repetition(vocabulary, positive.rate, max_length)
    replacements = load_replacements(Path(positive.synonyms or SHIPPED), tokenizer)
    return Synonym(vocabulary, positive.rate, max_length, replacements)


def _documents(corpus: Corpus) -> Any:
    """The document of each row; UserError when the data does not say where documents end."""
    report = corpus.report
    if corpus.documents is None:
        raise UserError(
            f"data.positive = 'next_sentence' takes .txt files, a sentence a line and a blank line between documents; "
            f"the data is {', '.join(report.files[:3])}.\nWrite it as .txt, or use --config.data.positive=dropout."
        )
    sentences = len(corpus) / report.documents
    if report.documents == 1 or sentences > LONGEST_DOCUMENT:
        found = f"has {report.documents} documents of {sentences:,.0f} sentences on average, as if blank lines were few"
        if report.documents == 1:
            found = "has no blank line between documents"
        raise UserError(
            f"data.positive = 'next_sentence', and {', '.join(report.files[:3])} {found}: sentences in shuffled order "
            "have no next one.\nPut a blank line between documents (in long ones, between their chapters), or use "
            "--config.data.positive=dropout."
        )
    return corpus.documents
