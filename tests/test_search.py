"""Mistakes in the flags of the search: each is reported before the model is read, let alone a corpus encoded."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
MINE = "--mine-negatives=out.csv"
PAIRS = "--pairs=pairs.csv"
TAKEN = "--port={taken}"
# The flags, $SIMCSE_API_KEY and what the message names.
MISTAKES = [
    (["--serve", "--port=0"], "", "API key"),
    (["--serve", "--port=0"], "secret ", "API key"),
    (["--serve", TAKEN], None, "{taken}"),
    ([MINE, "--pairs=nowhere.csv"], None, "nowhere.csv"),
    ([MINE, "--pairs=lines.txt"], None, "one column"),
    (["--mine-negatives=nowhere/out.csv", PAIRS], None, "no folder nowhere"),
    (["--mine-negatives=out.txt", PAIRS], None, ".csv"),
    ([MINE, PAIRS, "--ranks=5,1"], None, "5 to 1"),
    ([MINE, PAIRS, "--ranks=few"], None, "--ranks=few"),
    ([MINE], None, "--pairs"),
    ([MINE, PAIRS, "--kind=hnsw"], None, "--kind"),
    ([MINE, PAIRS, "--storage=int8"], None, "--storage"),
    ([MINE, PAIRS, "--column=sent0"], None, "--column"),
    ([MINE, PAIRS, "--save-index=index"], None, "--save_index"),
    (["--serve", "--port=0", "--save-index=index"], None, "--save_index"),
    ([MINE, PAIRS, "--serve"], None, "--serve"),
    ([MINE, PAIRS, "--query=sun"], None, "--query"),
    (["--corpus=.", "--kind=hnsw"], None, "--kind"),
    (["--corpus=lines.txt", "--query= "], None, "--query"),
    ([], None, "--corpus"),
]
# One process for all: they would spend their time on imports. A model of this name is not there, and that would be
# the mistake that is reported as soon as it is read.
EACH = """
import json, os, sys
from absl import flags
from simcse_jax import cli, search
from simcse_jax.system.errors import UserError
for words, key, _ in json.loads(sys.argv[1]):
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    os.environ.pop("SIMCSE_API_KEY", None)
    os.environ.update({} if key is None else {"SIMCSE_API_KEY": key})
    cli._parse(["search", "--model=no/where/at/all", *words])
    try:
        search.main()
    except UserError as error:
        print(json.dumps(str(error)))
"""


def test_mistakes_are_reported_early(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("sent0,sent1\na,b\n")
    (tmp_path / "lines.txt").write_text("a\nb\n")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        taken = listening.getsockname()[1]
        mistakes = json.loads(json.dumps(MISTAKES).replace("{taken}", str(taken)))
        command = [sys.executable, "-c", EACH, json.dumps(mistakes)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(messages) == len(mistakes), messages
    for (words, _, name), message in zip(mistakes, messages, strict=True):
        assert name in message, words
        assert "no/where/at/all" not in message, words
