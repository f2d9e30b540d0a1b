"""Mistakes in the flags of the search: each is told before the model is read, let alone a corpus encoded."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MINE = "--mine-negatives=out.csv"
PAIRS = "--pairs=demo:triplets"


@pytest.fixture(scope="module")
def taken() -> Iterator[int]:
    """A port that another listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize(
    ("words", "key", "says"),
    [
        (["--serve", "--port=0"], "", "The API key is empty"),
        (["--serve", "--port=0"], "secret ", "begins or ends with a space"),
        (["--serve", "--port={taken}"], None, "Cannot listen on 127.0.0.1, port {taken}"),
        ([MINE, "--pairs=nowhere.csv"], None, "nowhere.csv"),
        ([MINE, "--pairs=demo:sentences"], None, "has one column, text"),
        (["--mine-negatives=nowhere/out.csv", PAIRS], None, "there is no folder nowhere"),
        ([MINE, PAIRS, "--kind=hnsw"], None, "--kind is about the index of --corpus"),
        ([MINE, PAIRS, "--storage=int8"], None, "--storage is about the index of --corpus"),
        ([MINE, PAIRS, "--column=sent0"], None, "--column is about the index of --corpus"),
        ([MINE, PAIRS, "--save-index=index"], None, "--save_index is about the index of --corpus"),
        (["--serve", "--port=0", "--save-index=index"], None, "--save_index is about the index of --corpus"),
        ([MINE, PAIRS, "--serve"], None, "--mine-negatives and --serve exclude each other"),
        ([MINE, PAIRS, "--query=sun"], None, "--mine-negatives and --query exclude each other"),
    ],
)
def test_mistakes_are_told_early(words: list[str], key: str | None, says: str, taken: int, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "SIMCSE_API_KEY"}
    environment |= {"PYTHONPATH": str(ROOT)} | ({} if key is None else {"SIMCSE_API_KEY": key})
    # There is no such model, and this would be the mistake that is told as soon as it is read.
    command = [sys.executable, "-m", "simcse_jax.search", "--model=nowhere", *(w.format(taken=taken) for w in words)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stdout + done.stderr
    assert says.format(taken=taken) in done.stderr
    assert "Traceback" not in done.stderr
