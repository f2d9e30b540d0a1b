"""Keep objects in processes of their own, where they wait while others work.

So each has its own memory and threads, and is measured as if it were alone.
"""

from __future__ import annotations

import importlib
import multiprocessing
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from simcse_jax.system.errors import UserError

LEAVE_S = 20  # seconds that a process gets to exit by itself


class Worker:
    """Hold one object, made in a new process by calling `module`.`name` with `arguments`, which must be picklable."""

    def __init__(self, module: str, name: str, *arguments: Any):
        """Return once the object is made; raise what making it raised, as `call` does."""
        self.name = f"{module}.{name}"
        # A forked process would inherit its parent's native threads.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, module, name, arguments))
        self._process.start()
        theirs.close()
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *arguments: Any) -> Any:
        """Call the object's method and return its result.

        Errors end the process: UserErrors are raised as they are, others as text.
        """
        with suppress(OSError):  # the process is gone; the answer says so
            self._connection.send((method, arguments))
        return self._answer()

    def close(self) -> None:
        """End the process: in order if it waits for a call, else by force."""
        self._connection.close()
        self._process.join(LEAVE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _answer(self) -> Any:
        try:
            answer, error = self._connection.recv()
        except EOFError:
            self._process.join()
            raise UserError(
                f"The process of {self.name} ended with status {self._process.exitcode} and no answer.\n"
                "-9 is mostly the system short of memory: take a smaller model or batch."
            ) from None
        if error is not None:
            raise error
        return answer


def _serve(connection: Connection, module: str, name: str, arguments: tuple[Any, ...]) -> None:
    try:
        one = getattr(importlib.import_module(module), name)(*arguments)
        connection.send((None, None))
        while True:
            method, arguments = connection.recv()
            connection.send((getattr(one, method)(*arguments), None))
    except (EOFError, KeyboardInterrupt):
        pass  # nobody waits for the answer
    except UserError as error:
        connection.send((None, error))
    except Exception:  # noqa: BLE001
        connection.send((None, RuntimeError(traceback.format_exc())))
