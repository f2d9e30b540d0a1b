"""The README word for word: its blocks through a shell and Python, in a folder as its reader has it."""

import csv
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from simcse_jax.data import demo
from simcse_jax.data.tokenizer import train_wordpiece
from simcse_jax.evaluation.transfer import TASKS as TRANSFER
from tests.conftest import HubServer, reached_from, serve_hub
from tests.serving.web.servers import process
from tests.small_models import train_small
from tests.small_senteval import write_senteval
from tests.small_transfer import made_task, write_task

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if not kind for line in block.splitlines()]
PYTHON = [block for kind, block in BLOCKS if kind == "python"]


def commands(module: str) -> list[str]:
    return [line for line in COMMANDS if line.startswith(f".venv/bin/python -m simcse_jax.{module} ")]


def add_bert(hub: HubServer, folder: Path) -> None:
    """A `bert-base-uncased` on that Hub: as published, with the masked-LM head, but small."""
    train_wordpiece(demo.sentences(count=500), 400, folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=400,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    for path in folder.iterdir():
        hub.add("bert-base-uncased", path.name, path.read_bytes())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone's folder with what the README's commands name: texts, triplets, pairs, SentEval's data, finished runs."""
    place = tmp_path_factory.mktemp("readme")
    for name in ("configs", "launch", "models", "simcse_jax"):
        (place / name).symlink_to(ROOT / name)
    interpreter = place / ".venv" / "bin" / "python"
    interpreter.parent.mkdir(parents=True)
    interpreter.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n', encoding="utf-8")
    interpreter.chmod(0o755)
    (place / "sentences.txt").write_text("\n".join(demo.sentences(count=300)) + "\n", encoding="utf-8")
    with (place / "triplets.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("sent0", "sent1", "hard_neg"), *demo.triplets(count=520)])
    graded = demo.graded_pairs(split="test")[:40]
    (place / "mine.tsv").write_text("".join(f"{gold}\t{a}\t{b}\n" for gold, a, b in graded), encoding="utf-8")
    write_senteval(place / "senteval")
    for task in TRANSFER:
        write_task(place / "senteval", task, made_task(task))
    for seed in (0, 1):
        train_small(place / "runs" / f"unsup-seed{seed}", place / "cache", train__seed=seed)
    return place


@pytest.fixture(scope="module")
def environment(place: Path) -> Iterator[dict[str, str]]:
    """What the commands run with: one device, and a Hub of our own."""
    with serve_hub(place / "hub") as hub:
        add_bert(hub, place / "bert")
        archive = place / "senteval.tar"
        subprocess.run(["tar", "-cf", archive, "-C", place, "senteval"], check=True)
        hub.add("princeton-nlp/datasets-for-simcse", "senteval.tar", archive.read_bytes(), kind="dataset")
        yield reached_from(hub, place)


def run(line: str, place: Path, environment: dict[str, str], said: str = "") -> str:
    """What a line of the README prints, in a shell as its reader's."""
    done = subprocess.run(["bash", "-c", line], cwd=place, env=environment, input=said, capture_output=True, text=True)
    assert done.returncode == 0, (line, done.stdout, done.stderr)
    return done.stdout


def test_every_line_has_its_test() -> None:
    """`make demo` is in test_end_to_end, `make test` what runs this, several processes in test_several_processes."""
    modules = {"train": 3, "embed": 1, "search": 2, "evaluate": 3, "sweep": 3}
    assert {module: len(commands(module)) for module in modules} == modules
    tested = [line for module in modules for line in commands(module)]
    left = [line for line in COMMANDS if line not in tested]
    assert [line.split(" -")[0].split(" #")[0].strip() for line in left] == [
        "make demo",
        "make test",
        "launch/local.sh",
    ]
    assert len(PYTHON) == 2


@pytest.mark.slow
@pytest.mark.timeout(1500)  # twelve commands
def test_from_files_to_vectors(place: Path, environment: dict[str, str]) -> None:
    """Train, use and judge, in the README's order: what one line writes, another reads."""
    unsupervised, supervised, plan = commands("train")
    assert "--plan" in plan
    for line, name in ((unsupervised, "unsup"), (supervised, "sup")):
        run(line, place, environment)
        told = [json.loads(line) for line in (place / "runs" / name / "metrics.jsonl").read_text().splitlines()]
        assert any("loss" in each for each in told)
        assert any("dev/spearman" in each for each in told)
        assert (place / "runs" / name / "model" / "model.safetensors").is_file()
    assert re.search(r"memory per device: \d+\.\d+ GiB", run(plan, place, environment))
    ours, theirs = PYTHON
    lines = run(f".venv/bin/python -c {shlex.quote(ours)}", place, environment).splitlines()
    assert [re.match(r"-?\d\.\d{3}  ", line) is not None for line in lines] == [True] * 3
    run(f".venv/bin/python -c {shlex.quote(theirs)}", place, environment)

    (embed,) = commands("embed")
    run(embed, place, environment)
    assert pq.read_table(place / "vectors.parquet").num_rows == 300
    search, serve = commands("search")
    assert len(re.findall(r"^  -?\d\.\d{4}  ", run(search, place, environment, "a dog\n"), re.MULTILINE)) == 5
    words = shlex.split(serve.removeprefix(".venv/bin/python -m "))
    with process(*words, "--port=0", cwd=place, **environment) as (_, url):
        answer = httpx.post(f"{url}/search", json={"query": "a dog", "top_k": 3}, timeout=60)
        assert (answer.status_code, len(answer.json()["hits"])) == (200, 3)

    one, several, start = commands("evaluate")
    said = run(one, place, environment)
    for task in ("STS12", "SICKRelatedness", "MR", "TREC", "uniformity"):
        assert task in said
    assert (place / "runs" / "unsup" / "evaluation" / "report.html").is_file()
    said = run(several, place, environment)
    assert "bert-base-uncased" in said
    assert "mine.tsv" in said
    said = run(start, place, environment)
    assert "models/wiki-small" in said
    for sweep in commands("sweep"):
        jobs = run(f"{sweep} --list", place, environment).splitlines()
        assert len(jobs) == 5
        assert all("simcse_jax.train" in job and "simcse_jax.evaluate" in job for job in jobs)
