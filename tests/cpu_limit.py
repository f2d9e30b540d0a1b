"""Hold tests to their CPU time: a test that is not marked slow fails if it takes more than --cpu-limit seconds.

Counted are this process and the child processes that the test waited for; what other workers or programs do meanwhile
does not matter. The seconds are those of a reference core: the same test takes twice as many on a slow core, or on one
that shares its caches with other work, so a test that is over the limit is judged by how long a fixed piece of work
takes right after it. Set-up of a fixture that several tests share counts on its own, and may take SHARED times as long
as a test. A test that compiled programs may take COLD times as long.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, ClassVar

import pytest

COLD = 6  # compilation takes most of a cold test
SHARED = 2
REFERENCE_S = 0.22  # CPU seconds of `fixed_work` on a quiet core of an AMD EPYC of 2024
KEY = "cpu_s"
WORTH_A_TABLE_S = 10


def add_option(parser: pytest.Parser) -> None:
    """Add --cpu-limit."""
    parser.addoption(
        "--cpu-limit",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="fail a test that is not marked slow and takes more CPU time than this; 0: no limit",
    )


def cpu_s() -> float:
    """Return the CPU seconds of this process and of the children that it waited for."""
    return sum(os.times()[:4])


def fixed_work() -> int:
    """Do what always takes the same on one core: Python's own work, over more memory than a core's cache holds."""
    table = {f"{n}": n for n in range(300_000)}
    return sum(table[f"{n * 7919 % 300_000}"] for n in range(300_000))


def slowness() -> float:
    """Return how many times as long this core takes now as the reference core, at least 1."""
    before = cpu_s()
    fixed_work()
    return max((cpu_s() - before) / REFERENCE_S, 1.0)


class CpuLimit:
    """Measure each test, and fail those that are over the limit. programs: the folder of compiled programs, if any."""

    recompiled: ClassVar[float] = 0.0  # when a program was last compiled that is in the folder, and not to be used

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
        report = yield
        if report.passed and self.limit_s and item.get_closest_marker("slow") is None:
            allowed = {"it": self.limit_s} | dict.fromkeys(self.shared, SHARED * self.limit_s)
            costs = {"it": own} | self.shared
            worst = max(costs, key=lambda name: costs[name] / allowed[name])
            limit_s = allowed[worst] * (COLD if costs[worst] > allowed[worst] and self.has_compiled() else 1)
            if costs[worst] > limit_s and costs[worst] > limit_s * slowness():
                what = worst if worst == "it" else f"set-up of its fixture {worst!r}"
                report.outcome = "failed"
                report.longrepr = (
                    f"{item.nodeid}: {what} took {costs[worst]:.1f} s of CPU time; {limit_s:g} s is the limit. "
                    "Make it cheaper, or mark it: medium (3 to 10 s; `make test-fast` leaves it out) or "
                    "slow (`make test` leaves it out too)."
                )
        return report

    def has_compiled(self) -> bool:
        """Tell whether programs were compiled since the test began."""
        if self.programs is None or self.recompiled >= self.started:  # without a folder every run is cold
            return True
        return any(path.stat().st_mtime >= self.started for path in self.programs.glob("*-cache"))

    @pytest.hookimpl
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print the CPU seconds of the ten dearest tests, set-up of shared fixtures included."""
        reports = [report for reports in terminalreporter.stats.values() for report in reports]
        tests = [report for report in reports if isinstance(report, pytest.TestReport)]
        costs = {r.nodeid: sum(float(str(s)) for name, s in r.user_properties if name == KEY) for r in tests}
        if sum(costs.values()) >= WORTH_A_TABLE_S:
            terminalreporter.section("CPU seconds")
            for name in sorted(costs, key=lambda name: -costs[name])[:10]:
                terminalreporter.line(f"{costs[name]:8.2f}  {name}")
