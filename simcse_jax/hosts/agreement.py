"""What the processes of a run tell each other beside the training itself: short texts, through JAX's coordinator.

Every process calls these in the same order. With one process they cost nothing.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax

from simcse_jax.system.errors import UserError

# A process that has died is noticed by its missing heartbeat; this only bounds how long a living one may take.
PATIENCE_S = 6 * 3600

_calls = itertools.count()


def processes() -> int:
    """How many processes take part."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this is process 0, the one that writes tables, logs and exports."""
    return jax.process_index() == 0


def gather(value: str) -> list[str]:
    """What every process gave, by process; returns once all have called it."""
    if processes() == 1:
        return [value]
    from jax._src.distributed import global_state  # JAX's key-value store has no public name

    client, call, own = global_state.client, next(_calls), jax.process_index()
    assert client is not None  # there are several processes
    client.key_value_set(_key(call, own), value)
    values = [client.blocking_key_value_get(_key(call, n), PATIENCE_S * 1000) for n in range(processes())]
    if call:  # all have come here, so nobody reads the last call's any more
        client.key_value_delete(_key(call - 1, own))
    return values


def _key(call: int, process: int) -> str:
    return f"simcse_jax/{call}/{process}"


def first_says(value: str) -> str:
    """What process 0 gave."""
    return gather(value)[0]


@contextmanager
def together() -> Iterator[None]:
    """All processes come out of this block, or each raises: its own error, or UserError with the first other's.

    Nothing within may wait for the other processes: they may be waiting at its end already.
    """
    try:
        yield
    except Exception as error:
        texts = gather(str(error) or type(error).__name__)
        if isinstance(error, UserError):
            if not is_first() and texts[0] == str(error):
                raise on_all("the same as on process 0") from error  # one screen of text is enough
            error.everywhere = True
        raise
    for number, text in enumerate(gather("")):
        if text:
            raise on_all(f"Process {number} has failed, so this one stops too. There: {text}")


def on_all(text: str) -> UserError:
    """An error that every process of the run raises at this point."""
    error = UserError(text)
    error.everywhere = True
    return error


def require_equal(values: Mapping[str, Any]) -> None:
    """UserError on all processes when they do not have the same value of one of these names."""
    everywhere = [json.loads(text) for text in gather(json.dumps(values))]
    for process, there in enumerate(everywhere):
        for name, value in there.items():
            if value != (first := everywhere[0][name]):
                raise on_all(
                    f"{name} is {first!r} on process 0 and {value!r} on process {process}.\nStart all processes with "
                    "the same command, and give all the same files."
                )
