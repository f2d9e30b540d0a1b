"""The benchmark of embed's memory, on a small file, and its table."""

from pathlib import Path

import pytest

from benchmarks.embed_memory import WARM, measure, table
from simcse_jax.serving.vector_file import PART
from simcse_jax.system.errors import UserError


@pytest.mark.medium
def test_it_runs_the_command_to_its_end(small_model: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"a man is playing number {n}\n" for n in range(300)), encoding="utf-8")
    *_, (sentences, seconds, peak) = measure(str(small_model), [str(texts)])
    assert sentences == 300
    assert seconds > 0
    assert 100 < peak / 2**20 < 4000
    with pytest.raises(UserError, match="embed ended with status"):
        measure(str(small_model), [str(tmp_path / "nothing.txt")])


def test_what_grows_once_everything_is_kept_is_told() -> None:
    curve = [((n + 1) * PART, 2.0 * n, (500 + min(n, WARM - 1) * 10 + max(0, n - 20)) * 2**20) for n in range(30)]
    lines = table([*curve, (30 * PART + 5, 60.0, 600 * 2**20)])
    assert lines[-1] == f"From {WARM * PART:,} sentences on, +9 MiB."
    assert lines[-3] == f"| {30 * PART + 5:,}, written | 60 | 600 at its peak |"
