"""Run docs/domain.md word for word: from documents to a judged encoder, on a small model from a Hub of our own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from simcse_jax.data import demo
from tests.conftest import reached_from, serve_hub
from tests.pages import ROOT, blocks, shell_lines
from tests.test_readme import add_bert

PAGE = "docs/domain.md"


@pytest.mark.slow
@pytest.mark.timeout(1200)  # three commands, each with its programs to compile
def test_from_documents_to_a_judged_encoder(tmp_path: Path) -> None:
    (split,) = blocks(PAGE, "python")
    pretrain, train, judge = (line.replace("python ", f"{sys.executable} ", 1) for line in shell_lines(PAGE))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    sentences = [f"{text.capitalize()}." for text in demo.sentences(count=480)]
    (tmp_path / "reports").mkdir()
    for number in range(40):
        halves = [" ".join(sentences[n : n + 6]) for n in (12 * number, 12 * number + 6)]
        text = "\n\n".join(half.replace(" ", "\n", 3) for half in halves)  # lines that end within sentences
        (tmp_path / "reports" / f"{number:02}.txt").write_text(text)
    for name, pairs in (("dev", demo.graded_pairs(split="dev")), ("test", demo.graded_pairs(split="test"))):
        lines = "".join(f"{gold}\t{a}\t{b}\n" for gold, a, b in pairs[:40])
        (tmp_path / f"graded-{name}.tsv").write_text(lines)

    with serve_hub(tmp_path / "hub") as hub:
        add_bert(hub, tmp_path / "bert")
        environment = reached_from(hub, tmp_path) | {"PYTHONPATH": str(ROOT)}

        def run(*line: str) -> str:
            done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, (line, done.stdout, done.stderr)
            return done.stdout

        run(sys.executable, "-c", split)
        documents = (tmp_path / "text.txt").read_text().strip().split("\n\n"), (tmp_path / "held_out.txt").read_text()
        assert [len(documents[0]), len(documents[1].strip().split("\n\n"))] == [38, 2]
        assert documents[0][0].splitlines() == sentences[:12]

        said = run("bash", "-c", pretrain)
        assert "train SimCSE from it" in said
        assert "--config.model.name=runs/domain/model" in said
        told = [json.loads(line) for line in (tmp_path / "runs/domain/metrics.jsonl").read_text().splitlines()]
        assert len([line["dev/perplexity"] for line in told if "dev/perplexity" in line]) >= 2
        said = run("bash", "-c", train)
        assert "What to do next" in said
        started = json.loads((tmp_path / "runs/domain-simcse/config.json").read_text())
        assert started["recipe"]["model.name"] == "runs/domain/model"
        said = run("bash", "-c", judge)
        assert "graded-test.tsv" in said
        assert "runs/domain-simcse" in said
