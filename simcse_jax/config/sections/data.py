"""State the keys of the training data."""

from __future__ import annotations

import dataclasses
import math

from simcse_jax.config.keys import When, key
from simcse_jax.data.own_positive import add_positive
from simcse_jax.data.positives import POSITIVES, WINDOWS
from simcse_jax.objective.losses import graded_losses


def _positives_that_read(name: str) -> tuple[str, ...]:
    """Return the positives that read this key of the section `data`."""
    return tuple(kind for kind, positive in POSITIVES.items() if name.removeprefix("data.") in positive.keys)


def _prompted(_: str) -> tuple[str, ...]:
    """Return the positives that go together with prompts."""
    return tuple(kind for kind, positive in POSITIVES.items() if positive.takes_prompts)


_READ_BY_POSITIVE = When("data.positive", _positives_that_read)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Keys of the training data."""

    files: str = key(
        "",
        """Comma-separated files or globs (.txt, .csv, .tsv, .jsonl, .parquet; text also .gz, .xz),
        hf://datasets/OWNER/NAME/FILE, or a Hub data set OWNER/NAME[:config][:split]. Where a run resumes, their content
        must be the same, not their place.""",
        resumable=True,
        local=True,
        example="sentences.txt",
    )
    columns: str = key(
        "",
        """Comma-separated column names: sentence[,positive[,hard negative ...]]. "": sent0, sent1, hard_neg* where the
        header has them, else the columns of text without ids, labels and scores (docs/data.md).""",
    )
    score_range: str = key(
        "",
        """"LOWEST,HIGHEST": scores beyond are refused; "": every finite number is allowed.""",
        effective=When("objective.loss", lambda _: graded_losses()),
        example="0,5",
    )
    scores: str = key(
        "",
        """The column of scores of graded pairs, numbers of any scale, of which the order counts: what a graded loss
        ("cosent", "angle") learns.""",
        effective=When("objective.loss", lambda _: graded_losses()),
        example="score",
    )
    prompts: str = key(
        "",
        """Comma-separated words that are put before the texts of each column, in the order of data.columns; the last
        are those of all further columns. Spaces count; a prompt with a comma stands in double quotes. The model keeps
        them, as "query" (the first column's, its default) and "document" (the second's).""",
        effective=When("data.positive", _prompted),
        example="query: ,passage: ",
    )
    include_prompt: bool = key(
        True,
        "Pool the tokens of a prompt with those of its text; False: leave them out, and the first special token too.",
        effective=When("data.prompts"),
    )
    positive: str = key(
        "dropout",
        """How positives are made, or MODULE:NAME, a function of your own (CONTRIBUTING.md, A positive). "dropout": the
        same sentence encoded twice; "columns": pairs or triplets from the file; "next_sentence": a following sentence,
        of .txt with a blank line between documents; or a changed copy: "crop" (words cut off at the ends),
        "word_deletion", "synonym", "mask" (tokens predicted by the pretrained masked language model), "repetition"
        (repeated tokens, as in ESimCSE).""",
        one_of=lambda: tuple(POSITIVES),
        add_own=add_positive,
    )
    rate: float = key(
        0.1,
        """The share of the words (or tokens) that a changed copy changes. 0 with word_deletion and synonym: exactly one
        word.""",
        at_least=0,
        below=1,
        effective=_READ_BY_POSITIVE,
    )
    window: int = key(
        1,
        "The positive is drawn from this many following sentences of the document.",
        one_of=WINDOWS,
        effective=_READ_BY_POSITIVE,
    )
    synonyms: str = key(
        "",
        'A file of lines such as "big, large, huge" (docs/objectives.md); "": the English one of the package.',
        effective=_READ_BY_POSITIVE,
        resumable=True,
        local=True,
    )
    mask_model: str = key(
        "",
        'The masked language model that predicts tokens, itself not trained: a folder or Hub name; "": model.name.',
        effective=_READ_BY_POSITIVE,
    )
    mixing: str = key(
        "batch",
        """What a batch of a mixture (data.sources) holds. "batch": examples of one source, so that negatives of a batch
        are of its kind; "example": examples of all sources.""",
        one_of=("batch", "example"),
    )
    mixing_temperature: float = key(
        0.0,
        """The share of a source in a mixture is proportional to weight x rows^(1/T). 1: to the rows; above: more even;
        0: to the weights alone.""",
        at_least=0,
        example=1.0,
    )
    max_length: int = key(32, "Tokens of a text, special tokens included; longer texts are cut.", at_least=3)
    packed: bool = key(
        True, "Let sentences share rows of row_length tokens; False: a row for each sentence.", layout=True
    )
    row_length: int = key(
        0,
        "Tokens of a row; 0: max_length, or twice that and at most 512 where sentences share rows.",
        at_least=0,
        layout=True,
    )
    cache_dir: str = key(
        "", 'Where tokenised data is kept; "": $SIMCSE_CACHE or ~/.cache/simcse_jax.', layout=True, local=True
    )

    @property
    def limits(self) -> tuple[float, float]:
        """Return the lowest and highest score that are allowed; ValueError where score_range is wrong."""
        if not self.score_range:
            return -math.inf, math.inf
        lowest, highest = map(float, self.score_range.split(","))
        if not lowest < highest:
            raise ValueError(self.score_range)
        return lowest, highest
