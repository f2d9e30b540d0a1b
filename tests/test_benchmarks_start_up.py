"""The benchmark of start-up finds its stages in what a run prints, and memory in the process."""

from pathlib import Path

import pytest

from benchmarks import start_up
from benchmarks.sizes import Sizes
from tests.small_models import demo_files


@pytest.mark.slow
def test_a_cold_and_a_warm_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(start_up.SIZES, "tiny", Sizes(1, 16, 2, 32))
    files, folder = str(demo_files() / "sentences.txt"), str(start_up.ROOT / "models" / "wiki-small")
    found = [start_up.start("tiny", files, folder, tmp_path) for _ in range(2)]
    for result in found:
        assert result["total"][0] == pytest.approx(sum(result[stage][0] for stage in start_up.STAGES))
        assert all(wall > 0 for wall, _ in (result[stage] for stage in start_up.STAGES))
        peak, own = result["memory"]
        assert peak > own > 2**26
    lines = start_up.table([{"model": "tiny", "start": "cold", **result} for result in found])
    assert {line.count("|") for line in lines} == {len(start_up.STAGES) + 5}
