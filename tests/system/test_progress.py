"""Progress on a terminal and in a log."""

import sys
import time

import pytest

from simcse_jax.system import progress
from simcse_jax.system.progress import Heartbeat, progress_bar


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.1)
    monkeypatch.setattr(progress.Heartbeat, "_last", 0.0)


def test_a_log_gets_a_line_also_while_one_item_takes_long(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(5000, what="embedding", done=1000) as bar:
        bar.update(1500)
        time.sleep(0.35)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert all(line.startswith("embedding: 2,500 of 5,000 sentences") for line in lines)


def test_silent_work_gets_a_line() -> None:
    said: list[str] = []
    with Heartbeat(lambda: "still here", said.append) as heartbeat:
        for _ in range(8):
            time.sleep(0.025)
            heartbeat.beat()
        assert said == []
        time.sleep(0.25)
    assert said[0] == "still here"
    assert len(said) <= 3


def test_of_two_the_inner_one_speaks() -> None:
    said: list[str] = []
    with Heartbeat(lambda: "outer", said.append):
        with Heartbeat(lambda: "inner", said.append):
            time.sleep(0.35)
        assert "outer" not in said
        time.sleep(0.25)
    assert said.index("inner") < said.index("outer")


def test_many_short_tasks_give_a_line_together(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(8):
        with progress_bar(None, unit="fits"):
            time.sleep(0.04)
    assert 1 <= len(capsys.readouterr().err.splitlines()) < 8


def test_nothing_is_shown_where_nobody_asks(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(10, shown=False) as bar:
        bar.update(10)
        time.sleep(0.15)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bar(10, what="embedding") as bar:
        bar.update(5)
    assert "embedding" in capsys.readouterr().err
