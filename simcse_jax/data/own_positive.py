"""Take a positive of the user's own: a function (tokens, *, OPTIONS) -> Change, or a `Positive`, by its import path."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from simcse_jax.data.changes import Change, Tokens
from simcse_jax.data.positives import POSITIVES, Positive, changed_copy
from simcse_jax.system.errors import UserError, short
from simcse_jax.system.import_path import import_object, is_import_path, place_of

KEY = "data.positive"
EXAMPLE = "def my_positive(given: Tokens, *, rate: float) -> Change"


def add_positive(path: str) -> None:
    """Put what an import path names into the table of positives, under that path; UserError where it is none."""
    found = import_object(path, KEY)
    positive = found
    if not isinstance(found, Positive):
        try:
            parameters = list(inspect.signature(found).parameters.values())
        except (TypeError, ValueError):
            parameters = []
        needed = [p for p in parameters if p.kind is not p.KEYWORD_ONLY and p.default is p.empty]
        if inspect.isclass(found) or len(needed) != 1:
            raise UserError(
                f"{KEY} = {path!r} is no positive: a positive is a function that returns a Change, such as\n"
                f"  {EXAMPLE}\nor a Positive of simcse_jax.data.positives (CONTRIBUTING.md, A positive)."
            )
        positive = changed_copy(_checked(path, found))
    known = sorted({key for name, known in POSITIVES.items() if not is_import_path(name) for key in known.keys})
    if unknown := [key for key in positive.keys if key not in known]:
        raise UserError(
            f"{KEY} = {path!r}: its keyword-only parameter {unknown[0]!r} is no key of a positive. Such keys are "
            f"data.{', data.'.join(known)}.\nPut a constant of your own before the *, with its value: {unknown[0]}=1.0"
        )
    POSITIVES[path] = positive


def _checked(path: str, make_change: Callable[..., Change]) -> Callable[..., Change]:
    """Return the user's function, which tries its change on two sentences before a run does."""

    @functools.wraps(make_change)
    def make(given: Tokens, **options: Any) -> Change:
        texts = ["A man is playing a guitar.", "Two dogs run."]
        tokens = [
            np.array(given.tokenizer(text, truncation=True, max_length=given.max_length)["input_ids"], np.int32)
            for text in texts
        ]
        try:
            change = make_change(given, **options)
            if not isinstance(change, Change):
                raise TypeError(f"it returns {type(change).__name__}, and must return a Change (data/changes.py)")
            changed = [np.asarray(each) for each in change.apply(tokens, np.arange(2), np.arange(4, dtype=np.uint32))]
            most = [int(n) for n in change.bound(np.array([len(each) for each in tokens], np.int32))]
        except Exception as error:
            raise UserError(f"{KEY} = {path!r} fails at {place_of(error, make_change)}: {short(error)}") from error
        lengths = [len(each) if each.ndim == 1 and each.dtype.kind in "iu" else -1 for each in changed]
        if len(lengths) != 2 or not all(0 < n <= limit for n, limit in zip(lengths, most, strict=True)):
            raise UserError(
                f"{KEY} = {path!r}: of two sentences of {len(tokens[0])} and {len(tokens[1])} tokens its `apply` made "
                f"{', '.join(f'{each.dtype}{list(each.shape)}' for each in changed) or 'nothing'}; it must make two "
                f"arrays of token ids, of 1 to {most[0]} and 1 to {most[1]} tokens.\nA copy that grows needs "
                "Change(apply, bound) (CONTRIBUTING.md, A positive)."
            )
        return change

    return make
