"""A long run neither compiles again nor uses more memory: the 10,000 steps of benchmarks/long_run.py, shortened."""

from pathlib import Path

import pytest

from benchmarks.long_run import faults, samples_of_a_run, table
from simcse_jax.data.batches import Rows
from simcse_jax.training.program import Compilations


@pytest.mark.slow
def test_nothing_compiles_and_nothing_grows_after_the_warm_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, asked = Compilations.begin, set()

    def begin_and_wait(self: Compilations, *row_counts: Rows, loss: str = "") -> None:
        """Wait for each shape: so short a run would be over before the last is compiled."""
        begin(self, *row_counts, loss=loss)
        for rows in row_counts:
            asked.add(rows)
            self._steps[loss, rows].result()

    monkeypatch.setattr(Compilations, "begin", begin_and_wait)
    samples = samples_of_a_run(tmp_path, 400)
    assert faults(samples) == [], "\n".join(table(samples))
    assert 2 <= len(asked) <= 6
    assert samples[-1]["compilations"] > len(asked)
    for name, more in (("compilations", 1), ("arrays", 21), ("memory", 2**27)):
        grown = [sample | {name: sample[name] + more} for sample in samples[-6:]]
        assert [fault.split()[0] for fault in faults([*samples, *grown])] == [name]  # what it would have said
        assert faults([*samples[:-6], *grown[:2], *samples[-4:]]) == []
