"""The benchmark of ONNX on STS-B, with a small model and a few pairs."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.onnx_quality import measure, onnx_encoder, table
from tests.small_senteval import PER_FILE, write_senteval


@pytest.mark.slow
def test_three_encoders_on_the_same_pairs(small_model: Path, tmp_path: Path) -> None:
    rows = measure(str(small_model), str(write_senteval(tmp_path / "senteval")), tmp_path / "converted")
    assert [row["encoder"] for row in rows] == ["ours, float32", "model.onnx", "model_int8.onnx"]
    ours, exact, coarse = rows
    assert ours["sentences"] <= 4 * PER_FILE
    for split in ("dev", "test"):
        assert exact[split] == pytest.approx(ours[split], abs=1e-6)
    assert exact["largest difference"] < 2e-5 < coarse["largest difference"]
    assert coarse["bytes"] < exact["bytes"]
    assert len(table(rows)) == 4
    # Batches are sorted by length; the vectors are in the order of the texts.
    encode = onnx_encoder(tmp_path / "converted", "model.onnx", 64)
    texts = [f"{'a dog ' * (n % 7)}sleeps {n}" for n in range(70)]
    alone = np.concatenate([encode([text]) for text in texts])
    np.testing.assert_allclose(encode(texts), alone, rtol=0, atol=2e-6)
