"""Read prompts: what is put before the texts of each column, and how many of a text's first tokens that is."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence

from simcse_jax.data.tables import listed
from simcse_jax.system.errors import UserError

KEY = "data.prompts"


def parse_prompts(value: str) -> tuple[str, ...]:
    """Return the prompts of a comma-separated list, () for "". Spaces count.

    A prompt with a comma or a line break in it stands in double quotes. Raises UserError for an unclosed quote, and
    for a list of prompts that are all empty.
    """
    if not value:
        return ()
    try:
        [prompts] = csv.reader([value], strict=True)
    except (csv.Error, ValueError) as error:
        raise UserError(
            f"{KEY} = {value!r} is no comma-separated list ({error}).\nPut a prompt with a comma or a line break in "
            f"double quotes: --config.{KEY}='\"Given a question, find its answer: \",passage: '"
        ) from None
    if not any(prompts):
        raise UserError(f"{KEY} = {value!r} puts nothing before any text.\nLeave it out: --config.{KEY}=")
    return tuple(prompts)


def of_columns(prompts: Sequence[str], columns: Sequence[str]) -> tuple[str, ...]:
    """Return the prompt of each column; the last is that of all further columns. UserError where there are too many."""
    if len(prompts) > len(columns):
        raise UserError(
            f"{KEY} has {len(prompts)} prompts ({listed(map(repr, prompts))}), and the data has {len(columns)} columns "
            f"of text: {listed(columns)}.\nGive at most one for each column, in their order, or name more columns: "
            "--config.data.columns=A,B,C"
        )
    return tuple(prompts[min(place, len(prompts) - 1)] for place in range(len(columns))) if prompts else ()


def prompt_length(tokens: Sequence[int], special: Collection[int]) -> int:
    """Return how many first tokens of a text are its prompt's, counted as sentence-transformers does.

    tokens: those of the prompt alone, with special tokens; the last does not count if it is one of `special`.
    """
    return len(tokens) - (len(tokens) > 0 and int(tokens[-1]) in special)
