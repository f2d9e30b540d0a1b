import ctypes
import os
import signal
import threading
from types import SimpleNamespace

import pytest

from simcse_jax.hosts import signals
from simcse_jax.hosts.signals import stop_signals


def test_a_signal_asks_for_a_stop_and_the_next_one_has_its_usual_effect() -> None:
    handler, said = signal.getsignal(signal.SIGTERM), []
    with stop_signals(said.append) as stopping:
        assert stopping(1) is None
        signal.raise_signal(signal.SIGTERM)
        assert stopping(2) == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert len(said) == 1
    assert signal.getsignal(signal.SIGTERM) == handler
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_is_announced_while_the_main_thread_runs_compiled_code(request: pytest.FixtureRequest) -> None:
    """It waits in C for what only the announcement writes, and so runs no handler of Python."""
    reading, writing = os.pipe()
    request.addfinalizer(lambda: [os.close(file) for file in (reading, writing)])
    overdue = threading.Timer(20, os.write, (writing, b"-"))
    with stop_signals(lambda _: os.write(writing, b"+")) as stopping:
        signal.siginterrupt(signal.SIGINT, False)  # the read goes on after the signal
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        overdue.start()
        found = ctypes.create_string_buffer(1)
        ctypes.CDLL(None).read(reading, found, 1)
        overdue.cancel()
        assert (found.raw, stopping(1)) == (b"+", signal.SIGINT)


def test_without_a_signal_nothing_is_said_and_errors_pass() -> None:
    said: list[str] = []
    with pytest.raises(RuntimeError, match="of a step"), stop_signals(said.append):
        raise RuntimeError("of a step")
    assert not said


def test_outside_of_the_main_thread_nothing_is_handled() -> None:
    found: list[int | None] = []

    def run() -> None:
        with stop_signals(print) as stopping:
            found.append(stopping(1))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [None]


@pytest.mark.filterwarnings("ignore:os.fork")  # of JAX, which the child does not use
def test_a_forked_process_is_neither_announced_nor_waited_for() -> None:
    said: list[str] = []
    with stop_signals(said.append) as stopping:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGTERM)
            os.write(writing, b"+")
            signal.pause()
        os.read(reading, 1)
        assert stopping(1) is None
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reading)
    os.close(writing)
    assert not said


def test_several_processes_agree_on_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    said, received = [], []
    monkeypatch.setattr(signals, "processes", lambda: 2)
    service = SimpleNamespace(reached_preemption_sync_point=lambda step: step == 3)
    monkeypatch.setattr(signals, "multihost_utils", service)
    known = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))  # as JAX's service listens
    try:
        with stop_signals(said.append) as stopping:
            signal.raise_signal(signal.SIGINT)
            assert [stopping(step) for step in (2, 3)] == [None, signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, known)
    assert received == [signal.SIGTERM]
    assert len(said) == 1
