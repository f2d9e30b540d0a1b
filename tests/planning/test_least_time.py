"""The least time of a step, by published figures of chips."""

from typing import Any

import pytest

from simcse_jax.planning import least_time
from simcse_jax.planning.chips import CHIPS
from simcse_jax.planning.collectives import Collective


def work(**changes: Any) -> least_time.Work:
    """Return a Work of zeros with these changes."""
    nothing: dict[str, Any] = dict.fromkeys(
        ("flops", "exact_flops", "accessed", "hbm", "unknown_loops", "xla_flops", "xla_accessed", "accessed_once"), 0
    )
    return least_time.Work(**(nothing | {"memory": {}, "sent": [], "parts": []} | changes))


def test_the_longest_side_binds() -> None:
    chip = CHIPS["v5e"]
    found = least_time.bound(work(flops=197e9, hbm=819e6), chip, (2, 4), 8)
    assert (found.arithmetic, found.hbm, found.links) == (pytest.approx(1e-3), pytest.approx(1e-3), 0)
    assert least_time.bound(work(flops=197e9, hbm=900e6), chip, (2, 4), 8).binds == "HBM"
    exact = least_time.bound(work(flops=197e9, exact_flops=197e9, hbm=900e6), chip, (2, 4), 8)
    assert (exact.binds, exact.seconds) == ("arithmetic", pytest.approx(6e-3))


def test_a_reduction_is_a_scatter_and_a_gather() -> None:
    """Over two lines of a v5e, 2 and 4 long: two of a chip's four links, 100 GB/s."""
    chip = CHIPS["v5e"]
    whole = Collective("all-reduce", 1_000_000_000, 1)
    part = Collective("reduce-scatter", 125_000_000, 2)
    gather = Collective("all-gather", 1_000_000_000, None)
    sent = [least_time.sent_by(one, chip, (2, 4), 8) for one in (whole, part, gather)]
    assert [one.inner for one in sent] == [pytest.approx(size) for size in (1.75e9, 1.75e9, 0.875e9)]
    assert sent[0].seconds == pytest.approx(1.75e9 / 100e9, rel=1e-3)
    slice_of_v5p = least_time.sent_by(whole, CHIPS["v5p"], (2, 2, 2), 8)
    assert slice_of_v5p.seconds == pytest.approx(1.75e9 / 300e9, rel=1e-2)  # three of six links
