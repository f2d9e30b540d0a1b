"""The limit of CPU time for tests, on a small suite of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONFTEST = """
from pathlib import Path
from tests import cpu_limit
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
def work(seconds=0.7):
    end = time.process_time() + seconds
    while time.process_time() < end: pass
@pytest.fixture(scope="module")
def dear(): work(1.4)
@pytest.fixture(scope="module")
def cheap(): work(0.2)
def test_itself(): work()
def test_child(): subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.7: pass"])
def test_dear_fixture(dear): pass
def test_a_little_over(): work(0.4)
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
def test_dear_tests_are_named_and_fail_unless_marked_or_cold(tmp_path: Path) -> None:
    (tmp_path / "programs").mkdir()
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_small.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--cpu-limit=0.25", "--rootdir=."]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    failed = {line.split()[0].partition("::")[2] for line in done.stdout.splitlines() if " FAILED " in line}
    assert failed == {"test_itself", "test_child", "test_dear_fixture"}, done.stdout + done.stderr
    assert "6 passed" in done.stdout
    named = {line.split(":")[2] for line in done.stdout.partition("over the limit")[2].splitlines() if "::" in line}
    assert named >= {"test_a_little_over"} | failed, done.stdout
    assert not named & {"test_after_it", "test_sleep", "test_slow", "test_compiled"}
