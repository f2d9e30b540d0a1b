"""A run neither compiles again nor grows once it is warm. The 10,000 steps of benchmarks/long_run.py, shortened."""

from pathlib import Path

import pytest

from benchmarks.long_run import samples_of_a_run


@pytest.mark.slow
def test_nothing_compiles_and_nothing_grows_after_the_warm_up(tmp_path: Path) -> None:
    samples = samples_of_a_run(tmp_path, 600)
    warm = [sample for sample in samples if sample["step"] >= 300]
    # The loop waits for none; of the shapes that a batch can have, the last may still be compiled beside the steps.
    assert warm[0]["waited_for"] == warm[-1]["waited_for"] > 0
    assert 1 <= warm[0]["ahead"] <= warm[-1]["ahead"] <= 4
    # Only what waits in flight: the batch of the next step, the figures of the last.
    assert max(sample["arrays"] for sample in warm) <= warm[0]["arrays"] + 20
    assert warm[-1]["resident"] - warm[0]["resident"] < 64 * 2**20
