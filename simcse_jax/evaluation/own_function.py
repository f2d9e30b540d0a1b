"""Score by a Python function of the user's own: from `encode` to a number, or to several by name."""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from simcse_jax.evaluation.results import Encode, Score
from simcse_jax.system.errors import UserError, short
from simcse_jax.system.import_path import code_of, import_object, is_import_path, place_of

MEASURES = ("score",)
EXAMPLE = "def my_evaluation(encode) -> float"


class OwnFunction:
    """Hold the function that an import path names."""

    note = ""

    def __init__(self, path: str, function: Callable[[Encode], Any]):
        self.path, self.function = path, function

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of the function's code; of its path where Python has the code in no file."""
        return hashlib.sha256((code_of(self.function) or self.path).encode()).hexdigest()[:16]


def load_function(path: str) -> OwnFunction:
    """Return the evaluation that an import path MODULE:NAME names; UserError where it is none."""
    key = "eval.data = function:MODULE:NAME, or --function"
    if not is_import_path(path):
        raise UserError(f"{path!r} is no import path. Give MODULE:NAME ({key}).")
    found = import_object(path, key)
    try:
        inspect.signature(found).bind(None)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path!r} is no evaluation: {error}.\nAn evaluation is a function of `encode`, which turns a list of N "
            f"texts into float32[N, D], such as\n  {EXAMPLE}"
        ) from error
    return OwnFunction(path, found)


def evaluate_function(encode: Encode, own: OwnFunction, task: str) -> Score:
    """Return "score", the number that the function returns, or the first of several; the others under their names."""
    try:
        found = own.function(encode)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{own.path} fails at {place_of(error, own.function)}: {short(error)}") from error
    given = {MEASURES[0]: found} if isinstance(found, numbers.Real) else found
    if not isinstance(given, Mapping) or not given or not all(map(_is_score, given.values())):
        raise UserError(
            f"{own.path} returns {found!r:.200}. It must return a finite number, more is better, or several by name, "
            'of which the first counts: {"accuracy": 71.5, "mrr": 60.0}.'
        )
    values = {str(name): float(value) for name, value in given.items()}
    headline = next(iter(values))
    if MEASURES[0] in values and headline != MEASURES[0]:
        raise UserError(
            f"{own.path} returns {', '.join(values)}: the first counts, as {MEASURES[0]!r}, so no other may have that "
            "name.\nName it differently, or return it first."
        )
    protocol = {"split": "as given", "aggregation": f"{headline} as returned by {own.path}", "data": own.fingerprint}
    return Score(task, MEASURES[0], {MEASURES[0]: values[headline]} | values, protocol)


def _is_score(value: Any) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)
