"""The benchmark of encoding, on a small model: both sides encode, and sides that differ are not timed."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import encode_speed
from simcse_jax.data import demo
from simcse_jax.system.errors import UserError

pytest.importorskip("sentence_transformers")
PEER = "sentence-transformers, batch 8"


@pytest.mark.slow
def test_results_of_both_sides(small_model: Path) -> None:
    texts = encode_speed.distinct([*demo.sentences(count=60), *demo.sentences(count=20)], 40)
    assert len(set(texts)) == 40
    figures = encode_speed.measure(str(small_model), [texts[::2], texts[1::2]], [8])
    assert figures["sentences"] == 40
    assert 0 < figures["worst difference"] < encode_speed.CLOSE["float32"]
    ours, theirs = figures["seconds"][encode_speed.OURS], figures["seconds"][PEER]
    assert figures["ratio"][PEER] == pytest.approx(sum(theirs) / sum(ours))
    assert figures["ratio by part"][PEER] == pytest.approx([theirs[0] / ours[0], theirs[1] / ours[1]])
    assert set(figures["peak MiB"]) == {encode_speed.OURS, PEER}
    assert min(figures["peak MiB"].values()) > 100


@pytest.mark.parametrize("difference", [3e-5, np.nan])
def test_sides_that_differ_are_not_timed(small_model: Path, monkeypatch: pytest.MonkeyPatch, difference: float) -> None:
    def off(folder: str, batch_sizes: list[int], products: str) -> dict[str, encode_speed.Encode]:
        return {
            encode_speed.OURS: lambda texts: np.zeros((len(texts), 2), np.float32),
            PEER: lambda texts: np.full((len(texts), 2), difference, np.float32),
        }

    monkeypatch.setattr(encode_speed, "sides", off)
    with pytest.raises(UserError, match="disagree by"):
        encode_speed.measure(str(small_model), [["a man"]], [8])
