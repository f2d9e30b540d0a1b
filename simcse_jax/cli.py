"""Run a command: parse its flags, make one call, and print expected errors without a traceback."""

from __future__ import annotations

import errno
import faulthandler
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from absl import app, flags, logging

from simcse_jax.system.devices import quiet_cuda_plugin, quiet_tpu_library
from simcse_jax.system.errors import UserError, wrong_flags
from simcse_jax.system.interrupts import repeat_interrupt

USER_ERROR_STATUS = 2
INTERRUPTED = "no unfinished file is left; the same command starts again"


def run(main: Callable[[], int | None], argv: Sequence[str] | None = None, interrupted: str = INTERRUPTED) -> None:
    """Parse the flags, call main, and exit with its status (None = 0), or 2 after a UserError or a wrong flag.

    interrupted: the message after Ctrl-C, which says what is left.
    """
    # XLA and the tokenizers' fork warning would otherwise write over the progress bar.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found": it is not needed
    quiet_tpu_library()
    quiet_cuda_plugin()

    _prepare_streams()
    sys.unraisablehook = _unraisable

    def leave() -> NoReturn:
        with suppress(OSError, RuntimeError):  # its reader is gone too; it came within another print
            os.write(2, f"\ninterrupted; {interrupted}\n".encode())
            sys.stdout.flush()
        # A normal exit would end the interpreter while native threads may still compile in it.
        os._exit(130)

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if _is_import(frame):
            leave()  # JAX's native modules crash when an exception interrupts their import
        signal.default_int_handler(number, frame)

    with suppress(ValueError):  # only the main thread may set handlers
        signal.signal(signal.SIGINT, on_interrupt)

    def guarded(_: Sequence[str]) -> int:
        # absl makes crash reports list all threads, and crashes itself on threads that still run.
        faulthandler.enable(all_threads=False)
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # hides messages of libraries; --verbosity=0 shows them
        try:
            with _full_disk_is_a_user_error():
                status = main() or 0
                sys.stdout.flush()  # at the exit nobody would handle its errors
            return _finish(status)
        except UserError as error:
            print(f"\nerror: {error}", file=sys.stderr, flush=True)
            if _one_of_several() and not error.everywhere:
                sys.stdout.flush()
                os._exit(error.status)  # as below
            return _finish(error.status)
        except BrokenPipeError:  # whatever read our output, such as `head`, has ended
            _drop_output()
            return _finish(128 + signal.SIGPIPE)
        except KeyboardInterrupt:
            leave()
        except Exception:
            if not _one_of_several():
                raise
            traceback.print_exc()
            sys.stdout.flush()
            os._exit(1)  # a normal exit would wait for the other processes, and they for this one

    app.run(guarded, argv=list(argv) if argv else None, flags_parser=_parse)


def _prepare_streams() -> None:
    """Open standard streams that are closed, and let output hold any text, escaped where its encoding lacks a letter.

    A file that is opened later would otherwise get the number of a closed stream, and the messages of libraries.
    """
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(handle, True)
    os.close(handle)
    sys.stdin = sys.stdin or open(0, encoding="utf-8")  # noqa: SIM115
    sys.stdout, sys.stderr = (
        stream or open(number, "w", encoding="utf-8")  # noqa: SIM115
        for number, stream in ((1, sys.stdout), (2, sys.stderr))
    )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def _full_disk_is_a_user_error() -> Iterator[None]:
    """Turn the error of a disk that is full, wherever it is met, into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        raise UserError(f"{error}.\nFree some space, then give the same command again.") from error


def _drop_output() -> None:
    """Print to nowhere from now on, also what is not written yet."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_import(frame: FrameType | None) -> bool:
    """Return whether an import is under way in this frame or one that called it."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _unraisable(failure: sys.UnraisableHookArgs) -> None:
    """Repeat a Ctrl-C that Python ignores, and leave out what comes too late to matter.

    When one write of a save fails, Orbax closes the event loop and raises; the others then end, and TensorStore reports
    each to that loop.
    """
    if not (repeat_interrupt(failure) or _is_late_report(failure)):
        sys.__unraisablehook__(failure)


def _finish(status: int) -> int:
    """Return the status, or exit with it at once where a thread still runs.

    Such a thread compiles a program that is no longer needed, and a normal exit would wait minutes for it.
    """
    if all(thread is threading.main_thread() or thread.daemon for thread in threading.enumerate()):
        return status
    if _one_of_several():
        sys.modules["jax"].distributed.shutdown()
    logging.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _one_of_several() -> bool:
    """Return whether this process is one of several of a run."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def fail(message: str) -> NoReturn:
    """Print the message and exit with the status of a user error."""
    print(f"\nerror: {message}", file=sys.stderr, flush=True)
    raise SystemExit(USER_ERROR_STATUS)


@contextmanager
def wrong_flags_fail() -> Iterator[None]:
    """Exit with a message where a flag, a recipe or a key is wrong."""
    try:
        with wrong_flags():
            yield
    except UserError as error:
        fail(str(error))


def _parse(argv: Sequence[str]) -> list[str]:
    """Parse the flags and return the positional arguments. A wrong flag, recipe or key is a user error."""
    with wrong_flags_fail():
        rest = flags.FLAGS([_underscored(argument) for argument in argv])
    if len(rest) > 1:
        fail(f"unexpected argument {rest[1]!r}: flags are written --name=value.\nSee --help for the flags.")
    return rest


def _underscored(argument: str) -> str:
    """Return --save-index=DIR as --save_index=DIR, which is the flag's name."""
    name, sign, value = argument.partition("=")
    other = name.replace("-", "_")[2:]
    return f"--{other}{sign}{value}" if name.startswith("--") and other in flags.FLAGS else argument


def _is_late_report(failure: sys.UnraisableHookArgs) -> bool:
    """Return whether native code reported to an event loop that is closed."""
    trace = failure.exc_traceback
    if trace is None or not issubclass(failure.exc_type, RuntimeError):
        return False
    frame = trace.tb_frame  # the outermost: no Python code made the call
    return (frame.f_globals.get("__name__"), frame.f_code.co_name) == ("asyncio.base_events", "call_soon_threadsafe")


if sys.unraisablehook is sys.__unraisablehook__:  # for a Ctrl-C before `run`, while a command is imported
    sys.unraisablehook = _unraisable
