"""List the ways to make positives that a recipe can name (data.positive).

To add one that changes text: write a function (tokens, *, OPTIONS) -> Change in a file of its own, with the recipe's
keys that it reads as keyword-only parameters; add keys that are new to config/sections/data.py; add a line to the
table.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from simcse_jax.data.changes import Change, Tokens, crop, repetition, word_deletion
from simcse_jax.data.corpus import Corpus
from simcse_jax.data.examples import ChangedCopies, ColumnExamples, Examples, NextSentences
from simcse_jax.data.synonyms import synonym
from simcse_jax.data.tables import UNNAMED, is_no_text, listed
from simcse_jax.data.vocabulary import vocabulary_of
from simcse_jax.system.errors import UserError

WINDOWS = (1, 3)
# Documents of more sentences on average are taken for text without documents: Wikipedia's have a hundred.
LONGEST_DOCUMENT = 1000


class Source(NamedTuple):
    """Hold what examples are made of."""

    corpus: Corpus
    tokenizer: Any
    seed: int


@dataclass(frozen=True)
class Positive:
    """Describe a way to make positives.

    make: (source, *, OPTIONS) -> Examples; its keyword-only parameters are the keys of the recipe's section `data` that
    have an effect. views: how often each text is encoded; 2 where a text, or the copy that a model makes of it on the
    device, is its own positive. several_columns: whether it takes pairs or triplets, and not single sentences.
    predicted: whether a masked language model makes the copies, on the device. takes_prompts: False where a copy's
    prompt would be changed as its words are.
    """

    make: Callable[..., Examples]
    views: int = 1
    several_columns: bool = False
    predicted: bool = False
    takes_prompts: bool = True

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the section `data` that have an effect only with some positives, this one among them."""
        parameters = inspect.signature(self.make).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)

    @property
    def is_copy(self) -> bool:
        """Whether the positive is the text itself, or a changed copy: a teacher has one vector for both."""
        return self.views == 2 or not self.takes_prompts

    def make_examples(self, source: Source, options: Mapping[str, Any]) -> Examples:
        """Return the examples of a corpus. Raises UserError when it does not suit.

        options: the keys of the section `data`, by name.
        """
        return self.make(source, **{key: options[key] for key in self.keys})


def as_columns(source: Source) -> Examples:
    """Return the rows of the files as examples, with their scores where they are read."""
    return ColumnExamples(source.corpus, source.corpus.scores)


def predicted_copy(source: Source, *, rate: float, mask_model: str) -> Examples:
    """Return the rows of the files; `training` masks a share `rate` of their tokens for the mask model to predict."""
    del rate, mask_model
    return ColumnExamples(source.corpus)


def next_sentence(source: Source, *, window: int) -> Examples:
    """Return sentences, each with one of the `window` that follow it in its document."""
    return NextSentences(source.corpus, _documents(source.corpus), window, source.seed)


def changed_copy(make_change: Callable[..., Change]) -> Positive:
    """Return the positive whose examples are sentences with changed copies.

    make_change: (tokens, *, OPTIONS) -> Change.
    """

    @functools.wraps(make_change)
    def make(source: Source, **options: Any) -> Examples:
        corpus, tokenizer, seed = source
        tokens = Tokens(tokenizer, vocabulary_of(tokenizer), corpus.report.max_length)
        return ChangedCopies(corpus, make_change(tokens, **options), seed)

    return Positive(make, takes_prompts=False)


POSITIVES: dict[str, Positive] = {
    # The same text, encoded twice: the dropout masks are the only difference (SimCSE, section 3).
    "dropout": Positive(as_columns, views=2),
    # The second column is the positive, further ones are hard negatives (section 4).
    "columns": Positive(as_columns, several_columns=True),
    # One of the sentences that follow in the document (table 2; quick-thoughts).
    "next_sentence": Positive(next_sentence),
    # The text with words cut away, deleted or replaced (table 1), or with tokens repeated (ESimCSE).
    "crop": changed_copy(crop),
    "word_deletion": changed_copy(word_deletion),
    "synonym": changed_copy(synonym),
    "repetition": changed_copy(repetition),
    # The text with tokens replaced by what a masked language model predicts, on the device (table 1).
    "mask": Positive(predicted_copy, views=2, predicted=True, takes_prompts=False),
}


def views_of(positive: str, columns: tuple[str, ...], ignored: tuple[str, ...] = ()) -> int:
    """Return how often each text of an example is encoded: 2 where it is its own positive, 1 otherwise.

    ignored: columns of the data that are not read. Raises UserError when the columns do not suit: "columns" takes two
    or more, the others one.
    """
    kind, named = POSITIVES[positive], ", ".join(columns)
    if not kind.several_columns and len(columns) != 1:
        raise UserError(
            f"data.positive = {positive!r} takes one text column, and the data has {len(columns)}: {named}.\n"
            f"Choose one with --config.data.columns={columns[0]}, or train on the pairs with "
            "--config.data.positive=columns (as configs/sup.py and configs/small.py:sup do)."
        )
    if kind.several_columns and len(columns) < 2:
        not_read = f" (not read, as they hold numbers, labels or ids: {listed(ignored)})" if ignored else ""
        likely = next((name for name in ignored if name != UNNAMED and not is_no_text(name)), "")
        name_it = f"If {likely} is the positive, name it: --config.data.columns={named},{likely}\n" if likely else ""
        raise UserError(
            f"data.positive = {positive!r} takes two or more text columns (sentence, positive, hard negatives ...), "
            f"and the data has one: {named}{not_read}.\n{name_it}Train on plain sentences with "
            "--config.data.positive=dropout (as configs/unsup.py and configs/small.py do)."
        )
    return kind.views


def _documents(corpus: Corpus) -> Any:
    """Return the document of each row; UserError when the data does not say where documents end."""
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
