"""The benchmark of a server under load: what it counts, and that it leaves no server behind."""

import signal
import sys

import pytest

from benchmarks.serve_load import measure, table
from simcse_jax.system.errors import UserError
from tests.serving.web.made_model import CAPTIONS


@pytest.mark.slow
def test_a_short_load() -> None:
    command = [sys.executable, "-m", "tests.serving.web.serve_made", "0"]
    seen = measure(command, list(CAPTIONS), clients=8, seconds=2, hang_up=4)
    assert seen["failures"] == {}
    assert seen["hung_up"] > 5
    assert seen["exit_status"] == -signal.SIGTERM
    assert seen["all"]["count"] == sum(route["count"] for route in seen["routes"].values()) > 5
    assert 0 < seen["all"]["p50"] <= seen["all"]["p95"] <= seen["all"]["p99"] <= seen["all"]["most"]
    assert len(seen["resident_bytes"]) > 5
    lines = table(seen)
    assert lines[0].startswith("8 clients, 2 s: ")
    assert "failures: none" in "\n".join(lines)


def test_a_server_that_does_not_start_is_an_error() -> None:
    with pytest.raises(UserError, match="ended before it said where it listens"):
        measure([sys.executable, "-c", "print('no')"], ["a"], clients=1, seconds=1)
