"""Report expected failures as `UserError`, and any error in one line."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from absl import flags

_NAMES_A_KEY = re.compile(r"^[a-z]+\.[a-z_.]+ = |--config\.")


class UserError(Exception):
    """Report a failure whose cause is outside the code: a file, a key, a model folder, the network.

    The message fits on one screen: what is wrong, its value, the limit, and a value or command that works. Commands
    print it without a traceback and exit with status 2.
    """

    # True when every process of the run raises it at this point, so that all can leave in order.
    everywhere = False
    status = 2  # the exit status of a command that ends with it


class Unreachable(UserError):
    """Report that an object store was out of reach for too long: the same command may work later, or elsewhere."""

    status = 1  # launchers start it again


def short(error: BaseException) -> str:
    """Return the type and the first line of an error; of a long line only both ends."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first if len(first) < 300 else f'{first[:80]} ... {first[-200:]}'}"


@contextmanager
def about(key: str, takes: str) -> Iterator[None]:
    """Add the key, and what it takes, to the text of a UserError raised within that names no key itself."""
    try:
        yield
    except UserError as error:
        if _NAMES_A_KEY.search(str(error)):
            raise
        raise UserError(f"{error}\nThis is about --config.{key}, which takes {takes}.") from error


@contextmanager
def wrong_flags(line: Sequence[str] | None = None) -> Iterator[None]:
    """Turn what absl, ml_collections and a recipe raise for a wrong flag, recipe or key into a UserError.

    line: the flags that were given; None: those of this command.
    """
    try:
        yield
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, SyntaxError) as error:
        text = str(error)
        if text[:1] in ("'", '"'):  # ml_collections' unknown keys: a repr, sometimes of a repr
            while text[:1] in ("'", '"') and text[-1:] == text[:1]:
                text = str(ast.literal_eval(text))
            key, *more = text.splitlines() or [""]  # perhaps with a similar name
            if flag := _of_source(key.strip("'\""), line or sys.argv):
                key = flag
                more.append("A recipe adds a source (configs/mixture.py); flags set keys of the sources that it has.")
            more.append("`python -m simcse_jax.train --help-config` prints every key.")
            text = "\n".join([f"no such key: {key}", *more])
        if isinstance(error, OSError):
            text += "\nThe recipes are in configs/; give one with --config=configs/unsup.py."
        raise UserError(text) from error


def _of_source(name: str, line: Sequence[str]) -> str:
    """Return the flag that sets a key of the source of this name; "" where none does."""
    start = f"--config.data.sources.{name}."
    return next((flag.partition("=")[0] for flag in line if flag.startswith(start)), "")
