"""Run the README word for word: its blocks through a shell and Python, in a folder as its reader has it."""

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
from simcse_jax.model_folder.run_folder import export_run
from tests.conftest import HubServer, reached_from, serve_hub
from tests.pages import ROOT, blocks, commands, shell_lines
from tests.serving.web.servers import process
from tests.small_models import export_small, train_small
from tests.small_senteval import write_senteval
from tests.small_transfer import made_task, write_task

README = "README.md"


def add_bert(hub: HubServer, folder: Path) -> None:
    """Put a `bert-base-uncased` on that Hub: as published, with the masked-LM head, but small."""
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
    """Make a clone's folder with what the README's commands name: texts, triplets, pairs, SentEval, finished runs."""
    place = tmp_path_factory.mktemp("readme")
    for name in ("configs", "launch", "simcse_jax"):
        (place / name).symlink_to(ROOT / name)
    (place / "models").mkdir()
    export_small(place).rename(place / "models" / "wiki-small")  # the real one takes minutes
    (place / "models" / "mini").symlink_to(ROOT / "models" / "mini")
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
    run_folder = train_small(place / "runs" / "demo", place / "cache")
    export_run(run_folder, run_folder / "model")
    return place


@pytest.fixture(scope="module")
def environment(place: Path) -> Iterator[dict[str, str]]:
    """Give the variables that the commands run with: an active .venv, one device, and a Hub of our own."""
    with serve_hub(place / "hub") as hub:
        add_bert(hub, place / "bert")
        archive = place / "senteval.tar"
        subprocess.run(["tar", "-cf", archive, "-C", place, "senteval"], check=True)
        hub.add("princeton-nlp/datasets-for-simcse", "senteval.tar", archive.read_bytes(), kind="dataset")
        variables = reached_from(hub, place)
        yield variables | {"PATH": f"{place / '.venv' / 'bin'}:{variables['PATH']}"}


def run(line: str, place: Path, environment: dict[str, str], stdin: str = "") -> str:
    """Return what a line of the README prints, in a shell as its reader's."""
    done = subprocess.run(["bash", "-c", line], cwd=place, env=environment, input=stdin, capture_output=True, text=True)
    assert done.returncode == 0, (line, done.stdout, done.stderr)
    return done.stdout


def test_every_line_has_its_test() -> None:
    """`make demo` is in test_end_to_end, several processes in test_several_processes."""
    left = [line for line in shell_lines(README) if not line.startswith("python -m simcse_jax.")]
    assert {line.split()[0] for line in left} == {"make", "source", "launch/local.sh"}
    assert max(map(len, (ROOT / README).read_text(encoding="utf-8").splitlines())) <= 120


def test_the_python_of_the_first_screen_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process; the first hit is what a reader would call one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(ROOT / "models")
    exec(compile(blocks(README, "python")[0], README, "exec"), {})
    hits = re.findall(r"^-?\d\.\d{3}  (.*)", capsys.readouterr().out, re.MULTILINE)
    assert len(hits) == 2
    assert hits[0] == "A man is playing guitar."


@pytest.mark.slow
@pytest.mark.timeout(1500)  # a dozen commands, each with its programs to compile
def test_from_files_to_vectors(place: Path, environment: dict[str, str]) -> None:
    """Train, judge, use and ship, in the README's order: what one line writes, another reads."""
    first, from_torch = (f"python -c {shlex.quote(block)}" for block in blocks(README, "python"))
    lines = run(first, place, environment).splitlines()
    assert len([line for line in lines if re.match(r"-?\d\.\d{3}  ", line)]) == 2

    *trained, plan = commands(README, "train")
    for line, name in zip(trained, ("small", "small-sup", "unsup", "sup"), strict=True):
        offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:1"} if name.startswith("small") else {}
        run(line, place, environment | offline)
        logged = [json.loads(line) for line in (place / "runs" / name / "metrics.jsonl").read_text().splitlines()]
        assert any("loss" in each for each in logged)
        assert any("dev/spearman" in each for each in logged) == (not offline)
        assert (place / "runs" / name / "model" / "model.safetensors").is_file()
    assert "--plan" in plan
    assert re.search(r"memory per device: \d+\.\d+ GiB", run(plan, place, environment))

    mine, paper = commands(README, "evaluate")
    assert "mine.tsv" in run(mine, place, environment)
    printed = run(paper, place, environment)
    for name in ("STS12", "SICKRelatedness", "MR", "TREC", "uniformity", "models/wiki-small", "small-sup"):
        assert name in printed
    assert (place / "evaluation" / "report.html").is_file()
    (sweep,) = commands(README, "sweep")
    jobs = run(f"{sweep} --list", place, environment).splitlines()
    assert len(jobs) == 15
    assert all("simcse_jax.train" in job and "simcse_jax.evaluate" in job for job in jobs)

    (embed,) = commands(README, "embed")
    run(embed, place, environment)
    assert pq.read_table(place / "vectors.parquet").num_rows == 300
    search, serve = commands(README, "search")
    assert len(re.findall(r"^  -?\d\.\d{4}  ", run(search, place, environment, "a dog\n"), re.MULTILINE)) == 5
    words = shlex.split(serve.removeprefix("python -m "))
    with process(*words, "--port=0", cwd=place, **environment) as (_, url):
        answer = httpx.post(f"{url}/search", json={"query": "a dog", "top_k": 3}, timeout=60)
        assert (answer.status_code, len(answer.json()["hits"])) == (200, 3)

    run(from_torch, place, environment)
    half, onnx = commands(README, "export")
    run(half, place, environment)
    assert (place / "exported" / "model.safetensors").is_file()
    run(onnx, place, environment)
    assert (place / "exported-onnx" / "model.onnx").is_file()


@pytest.mark.slow
def test_the_sweeps_of_the_results_are_planned(place: Path, environment: dict[str, str]) -> None:
    """docs/results.md: five seeds of training and judging each."""
    sweeps = commands("docs/results.md", "sweep")
    assert sweeps
    for n, sweep in enumerate(sweeps):  # each in a folder where the README's own sweep has no runs
        jobs = run(f"{sweep} --workdir=runs/listed-{n} --list", place, environment).splitlines()
        assert len(jobs) == 5
        assert all("simcse_jax.train" in job and "simcse_jax.evaluate" in job for job in jobs)
