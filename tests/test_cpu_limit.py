"""The limit of CPU time for tests, on a small suite of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import cpu_limit

ROOT = Path(__file__).resolve().parents[1]
CONFTEST = """
from pathlib import Path
from tests import cpu_limit
cpu_limit.slowness = lambda: SLOWNESS
def pytest_addoption(parser):
    cpu_limit.add_option(parser)
def pytest_configure(config):
    config.addinivalue_line("markers", "slow")
    config.pluginmanager.register(cpu_limit.CpuLimit(config.getoption("cpu_limit"), Path("programs")))
"""
SUITE = """
import subprocess, sys, time
from pathlib import Path
import pytest
def work(seconds=0.6):
    end = time.process_time() + seconds
    while time.process_time() < end: pass
@pytest.fixture(scope="module")
def dear(): work(1.2)
@pytest.fixture(scope="module")
def cheap(): work(0.2)
def test_itself(): work()
def test_child(): subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.6: pass"])
def test_dear_fixture(dear): pass
def test_after_it(dear): pass
def test_sleep(): time.sleep(0.6)
def test_sum_of_both(cheap): work(0.2)
@pytest.mark.slow
def test_slow(): work()
def test_compiled():
    work()
    Path("programs", "a-cache").touch()
"""


@pytest.mark.medium
@pytest.mark.parametrize("slowness", [1, 3])
def test_dear_tests_fail_unless_marked_or_cold(slowness: float, tmp_path: Path) -> None:
    (tmp_path / "programs").mkdir()
    (tmp_path / "conftest.py").write_text(CONFTEST.replace("SLOWNESS", str(slowness)))
    (tmp_path / "test_small.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--cpu-limit=0.35", "--rootdir=."]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    failed = {line.split()[0].partition("::")[2] for line in done.stdout.splitlines() if " FAILED " in line}
    assert failed == ({"test_itself", "test_child", "test_dear_fixture"} if slowness == 1 else set()), done.stdout
    assert f"{8 - len(failed)} passed" in done.stdout


def test_this_core_is_compared_with_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= cpu_limit.slowness() < 20
    monkeypatch.setattr(cpu_limit, "REFERENCE_S", 1e-3)
    assert cpu_limit.slowness() > 20
