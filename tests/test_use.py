"""Run docs/use.md word for word: its Python and its commands, in a folder as a user has it."""

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from simcse_jax.data import demo
from simcse_jax.model_folder.run_folder import export_run
from tests.pages import ROOT, blocks, commands
from tests.serving.web.servers import process
from tests.small_models import train_small

USE = "docs/use.md"
SERVER_NEEDS = ("--save-index=index", "--serve")


def command_words(page: str) -> list[list[str]]:
    """Return the words of a page's commands on sentences and models, without the interpreter."""
    return [shlex.split(line.removeprefix("python -m ")) for line in commands(page, "(?:embed|search|export)")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a finished run, sentences and pairs."""
    place = tmp_path_factory.mktemp("use")
    train_small(place / "runs" / "unsup", place / "cache")
    export_run(place / "runs" / "unsup", place / "runs" / "unsup" / "model")
    (place / "sentences.txt").write_text("\n".join(demo.sentences(count=300)) + "\n", encoding="utf-8")
    with (place / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("sent0", "sent1", "source"))
        rows.writerows((a, b, "demo") for a, b, _ in demo.triplets(count=60))
    return place


def run(words: list[str], place: Path) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, *words], cwd=place, env=environment, input="a dog\n\n", capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_python_of_the_page_runs(place: Path) -> None:
    first, database = (block for block in blocks(USE, "python") if "from simcse_jax import SimCSE" in block)
    embed = ["-m", *command_words(USE)[0]]  # writes the file that the second block reads
    said = []
    for words in (embed, ["-c", first], ["-c", database]):
        done = run(words, place)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.splitlines())
    assert len(said[2]) == 3  # what the database found


@pytest.mark.slow
def test_the_commands_of_the_page_run(place: Path) -> None:
    (place / "vectors.parquet").unlink(missing_ok=True)
    elsewhere = {"--serve", "--push=me/unsup"}  # other tests have a server and a Hub
    all_words = [words for words in command_words(USE) if elsewhere.isdisjoint(words)]
    assert {words[0] for words in all_words} == {"simcse_jax.embed", "simcse_jax.search", "simcse_jax.export"}
    said = []
    for words in all_words:
        done = run(["-m", *words], place)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        said.append(done.stdout)
        if "--mine-negatives=triplets.csv" in words:
            assert "not read: source" in done.stderr
            assert "--ranks=" in done.stderr
    assert "300 texts and vectors of width 16" in said[0]
    table = pq.read_table(place / "vectors.parquet")
    assert table.num_rows == 300
    assert np.linalg.norm(table.column("vector")[0].as_py()) == pytest.approx(1, abs=1e-5)
    # Of the vectors that embed wrote, of the saved index, and of a query that is typed.
    assert [len(re.findall(r"^  -?\d\.\d{4}  ", each, re.MULTILINE)) for each in said[2:5]] == [5, 3, 5]
    with (place / "triplets.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["sent0", "sent1", "hard_neg"]
    assert len(rows) > 1


@pytest.mark.slow
def test_the_server_of_the_page_answers_whom_it_should(place: Path) -> None:
    saves, serves = (next(words for words in command_words(USE) if flag in words) for flag in SERVER_NEEDS)
    if not (place / "index").exists():
        assert run(["-m", *saves], place).returncode == 0
    with process(*serves, "--port=0", cwd=place, SIMCSE_API_KEY="secret") as (_, url), httpx.Client() as client:
        question = {"query": "a dog", "top_k": 3}
        assert client.get(f"{url}/health", timeout=60).status_code == 200
        assert client.post(f"{url}/search", json=question, timeout=60).status_code == 401
        key = {"Authorization": "Bearer secret"}
        answer = client.post(f"{url}/search", json=question, headers=key, timeout=60)
        assert (answer.status_code, len(answer.json()["hits"])) == (200, 3)
