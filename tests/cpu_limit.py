"""Hold tests to their CPU time: a test that is not marked slow fails if it takes far more than --cpu-limit seconds.

Counted are this process and the child processes that the test waited for. The same test takes twice the CPU seconds on
a slow machine, or beside other work, that it takes on a fast one; so a test over the limit is named at the end, and
fails only above MARGIN times the limit. Set-up of a fixture that several tests share counts on its own, and may take
SHARED times as long as a test. A test that compiled programs which the next run finds in the cache may take COLD times
as long.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

COLD = 6  # compilation takes most of a cold test
SHARED = 2
MARGIN = 2.5
KEY = "cpu_s"
OVER = "over_cpu_limit"
WORTH_A_TABLE_S = 10


def add_option(parser: pytest.Parser) -> None:
    """Add --cpu-limit."""
    parser.addoption(
        "--cpu-limit",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help=f"name a test, not marked slow, that takes more CPU time; fail it above {MARGIN} times this; 0: none",
    )


def cpu_s() -> float:
    """Return the CPU seconds of this process and of the children that it waited for."""
    return sum(os.times()[:4])


class CpuLimit:
    """Measure each test; name those over the limit, and fail those far over it.

    programs: the folder of compiled programs, if any.
    """

    def __init__(self, limit_s: float, programs: Path | None):
        self.limit_s = limit_s
        self.programs = programs
        self.shared: dict[str, float] = {}  # set-up of fixtures that this test was the first to ask for
        self.is_nested = False
        self.start_s = self.started = 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        if fixturedef.scope == "function" or self.is_nested:
            return (yield)
        before, self.is_nested = cpu_s(), True
        try:
            return (yield)
        finally:
            self.is_nested = False
            self.shared[fixturedef.argname] = cpu_s() - before

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, None, None]:
        self.shared, self.start_s, self.started = {}, cpu_s(), time.time()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        if call.when != "call":
            return (yield)
        total = cpu_s() - self.start_s
        own = total - sum(self.shared.values())
        item.user_properties.append((KEY, round(total, 2)))
        costs = {"it": own} | self.shared
        over = self.over(costs) if self.limit_s and item.get_closest_marker("slow") is None else ""
        if over:
            item.user_properties.append((OVER, over))
        report = yield
        if report.passed and over and self.over(costs, MARGIN):
            report.outcome = "failed"
            report.longrepr = (
                f"{item.nodeid}: {over}. Make it cheaper, or mark it: medium (3 to 10 s; `make test-fast` leaves it "
                "out) or slow (`make test` leaves it out too)."
            )
        return report

    def over(self, costs: dict[str, float], margin: float = 1.0) -> str:
        """Say which of the costs ("it", or a fixture's) is over its limit, "" if none is over `margin` times that."""
        limits = {name: self.limit_s * (1 if name == "it" else SHARED) for name in costs}
        worst = max(costs, key=lambda name: costs[name] / limits[name])
        allowed = limits[worst] * margin
        if costs[worst] <= allowed or (costs[worst] <= COLD * allowed and self.has_compiled()):
            return ""
        what = worst if worst == "it" else f"set-up of its fixture {worst!r}"
        return f"{what} took {costs[worst]:.1f} s of CPU time; {limits[worst]:g} s is the limit"

    def has_compiled(self) -> bool:
        """Tell whether programs were compiled since the test began that the next run will find."""
        if self.programs is None:  # nothing is kept on this machine: every run is cold
            return True
        return any(path.stat().st_mtime >= self.started for path in self.programs.glob("*-cache"))

    @pytest.hookimpl
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print the CPU seconds of the ten dearest tests, set-up of shared fixtures included, and what is over."""
        reports = [report for reports in terminalreporter.stats.values() for report in reports]
        tests = [report for report in reports if isinstance(report, pytest.TestReport)]
        costs = {r.nodeid: sum(float(str(s)) for name, s in r.user_properties if name == KEY) for r in tests}
        if sum(costs.values()) >= WORTH_A_TABLE_S:
            terminalreporter.section("CPU seconds")
            for name in sorted(costs, key=lambda name: -costs[name])[:10]:
                terminalreporter.line(f"{costs[name]:8.2f}  {name}")
        if over := {test.nodeid: text for test in tests for name, text in test.user_properties if name == OVER}:
            terminalreporter.section("over the limit of CPU time")
            for name, text in over.items():
                terminalreporter.line(f"{name}: {text}")
