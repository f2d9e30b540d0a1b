"""Let a Ctrl-C count that comes where Python ignores exceptions, as in JAX's callback of the garbage collector.

Long calls of native code that make many objects, such as those of tokenizers, meet nearly every Ctrl-C there.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import CodeType

_CHECK_S = 0.002


def repeat_interrupt(failure: sys.UnraisableHookArgs) -> bool:
    """Return whether an exception that was ignored is a Ctrl-C; it then comes again once the calling hook has ended.

    Within sys.unraisablehook it would be ignored too.
    """
    if not issubclass(failure.exc_type, KeyboardInterrupt):
        return False
    hook, main = sys._getframe(1).f_code, threading.main_thread().ident or 0

    def repeat() -> None:
        while _is_running(hook, main):
            time.sleep(_CHECK_S)
        signal.pthread_kill(main, signal.SIGINT)  # which ends a wait too

    with suppress(RuntimeError):  # no further thread can start
        threading.Thread(target=repeat, name="interrupt", daemon=True).start()
    return True


def _is_running(code: CodeType, thread: int) -> bool:
    """Return whether a thread is in this code, or in what it has called."""
    frame = sys._current_frames().get(thread)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


@contextmanager
def interrupts_counted() -> Iterator[None]:
    """Let every Ctrl-C count during the block; elsewhere Python's hook is as it was."""
    before = sys.unraisablehook

    def hook(failure: sys.UnraisableHookArgs) -> None:
        if not repeat_interrupt(failure):
            before(failure)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
