"""Exchange short texts between the processes of a run, so that all of them decide alike.

Every process calls these functions in the same order. With one process they cost nothing. They use the key-value store
of JAX's coordinator. `multihost_utils` runs a program on the devices instead, which is compiled for each length; and
when a process fails, the others get an error of the collective library, not the message of that process.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax

from simcse_jax.system.errors import Unreachable, UserError

# How long a living process may take. One that has died is noticed earlier, by its missing heartbeat.
PATIENCE_S = 6 * 3600

_calls = itertools.count()


def processes() -> int:
    """Return the number of processes."""
    return jax.process_count()


def is_first() -> bool:
    """Return whether this is process 0, the one that prints, logs and exports."""
    return jax.process_index() == 0


def gather(value: str) -> list[str]:
    """Return the values of all processes, in their order; returns once all have called it."""
    if processes() == 1:
        return [value]
    from jax._src.distributed import global_state  # JAX's key-value store has no public name

    client, call, own = global_state.client, next(_calls), jax.process_index()
    assert client is not None  # `processes` counts several
    client.key_value_set(_key(call, own), value)
    values = [client.blocking_key_value_get(_key(call, n), PATIENCE_S * 1000) for n in range(processes())]
    if call:  # all processes have reached this call, so none still reads the values of the last one
        client.key_value_delete(_key(call - 1, own))
    return values


def _key(call: int, process: int) -> str:
    return f"simcse_jax/{call}/{process}"


def broadcast(value: str) -> str:
    """Return the value of process 0."""
    return gather(value)[0]


@contextmanager
def fail_together() -> Iterator[None]:
    """Make a failure of the block on one process a failure on all.

    Raises the process's own error, or a UserError with the text of the first other process that failed. Nothing
    in the block may wait for other processes: they may already wait at its end.
    """
    try:
        yield
    except Exception as error:
        own = f"{isinstance(error, Unreachable):d}{str(error) or type(error).__name__}"
        texts = gather(own)
        if isinstance(error, UserError):
            if not is_first() and texts[0] == own:
                # One screen of text is enough.
                raise error_on_all("the same as on process 0", type(error)) from error
            error.everywhere = True
        raise
    for number, text in enumerate(gather("")):
        if text:
            kind = Unreachable if text[0] == "1" else UserError
            raise error_on_all(f"Process {number} has failed, so this one stops too. There: {text[1:]}", kind)


def error_on_all(text: str, kind: type[UserError] = UserError) -> UserError:
    """Return an error that every process of the run raises at this point."""
    error = kind(text)
    error.everywhere = True
    return error


def require_equal(values: Mapping[str, Any]) -> None:
    """Raise UserError on all processes when one of these names has different values on them."""
    everywhere = [json.loads(text) for text in gather(json.dumps(values))]
    for process, there in enumerate(everywhere):
        for name, value in there.items():
            if value != (first := everywhere[0][name]):
                raise error_on_all(
                    f"{name} is {first!r} on process 0 and {value!r} on process {process}.\nStart all processes with "
                    "the same command, and give all the same files."
                )
