"""The command `search`: hits, a saved index, hard negatives; and mistakes, which are reported at once."""

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from simcse_jax import SimCSE
from simcse_jax.serving.vector_file import write_vectors

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
    (["--mine-negatives=pairs.csv", PAIRS], None, "--mine-negatives=pairs.csv"),
    (["--corpus=lines.txt", "--save-index=."], None, "index.json"),
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
    (["--corpus=lines.txt", "--query=caf\udce9"], None, "UTF-8"),  # as the byte of latin-1 arrives
    (["--corpus=lines.txt", "--floor=0.5"], None, "--floor"),
    ([MINE, PAIRS, "--seed=1"], None, "--sampled"),
    ([MINE, PAIRS, "--negatives=9", "--ranks=1,5"], None, "negatives is 9"),
    (["--corpus=.", "--corpus_prompt=a "], None, "--corpus_prompt"),
    (["--serve", "--port=0", "--prompt=a "], None, "--prompt"),
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


# A new index and queries; the saved index with a threshold; queries of the input, one of them latin-1; hard negatives.
CALLS = """
import json, sys
from absl import flags
from simcse_jax import cli, search
for words in json.loads(sys.argv[1]):
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    cli._parse(["search", *words])
    search.main()
    print("====")
"""


def test_search_save_and_mine(small_model: Path, tmp_path: Path) -> None:
    texts = ["a red dog sleeps", "a man plays music", "two children play in the park", "a red dog sleeps."]
    (tmp_path / "in.csv").write_text("sent\n" + "\n".join(texts) + "\n")
    (tmp_path / "pairs.csv").write_text(f"sent0,sent1\n{texts[0]},{texts[3]}\n")
    queries = ["--query=a red dog sleeps", "--query=music"]
    rules = ["--negatives=2", "--sampled", "--seed=3", "--relative_margin=0", "--floor=-1", "--ceiling=1", "--margin=0"]
    cut = SimCSE(small_model, truncate_dim=8)
    about = {"model": "m", "fingerprint": cut.fingerprint}
    write_vectors(tmp_path / "v.parquet", texts, cut.encode, 8, about)
    calls = [
        ["--corpus=in.csv", "--column=sent", "--storage=float16", "--save-index=index", "--top_k=2", *queries],
        ["--corpus=index", "--threshold=0.99", *queries[:1]],
        ["--corpus=index", "--top_k=1"],
        ["--corpus=index", "--pairs=pairs.csv", MINE, "--margin=0", "--ceiling=1"],
        ["--corpus=v.parquet", "--truncate_dim=8", "--kind=binary", "--prompt=a ", *queries[:1]],
        ["--pairs=pairs.csv", "--mine-negatives=two.csv", "--corpus=in.csv", "--column=sent", *rules],
    ]
    calls = [[f"--model={small_model}", *words] for words in calls]
    command = [sys.executable, "-c", CALLS, json.dumps(calls)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    asked = b"a man plays music\ncaf\xe9\n\nmusic\n"
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, input=asked)
    assert ran.returncode == 0, ran.stderr.decode()
    model = SimCSE(small_model)
    model.build_index(texts, storage="float16")
    first, second, third, _, fifth, _ = ran.stdout.decode().split("====\n")[:6]
    cut.build_index(texts)
    for hit in cut.search("a red dog sleeps", prompt="a "):
        assert f"{hit.score:.4f}  {hit.text}\n" in fifth
    two = list(csv.reader((tmp_path / "two.csv").read_text().splitlines()))
    assert two[0] == ["sent0", "sent1", "hard_neg_1", "hard_neg_2"]
    assert {*two[1][2:]} == {*texts[1:3]}
    answers = [model.search(query)[0].text for query in ("a man plays music", "music")]
    assert [line.split("  ")[-1] for line in third.splitlines()] == [
        line
        for query, answer in zip(("a man plays music", "music"), answers, strict=True)
        for line in ("", query, answer)
    ]
    assert "line 2 " in ran.stderr.decode()
    for query in ("a red dog sleeps", "music"):
        for hit in model.search(query, 2):
            assert f"{hit.score:.4f}  {hit.text}\n" in first
    assert first.count("\n") == 6 + 2  # two hits and the query, twice, after a blank line each
    expected = model.search("a red dog sleeps", 5, 0.99)
    assert [line.split("  ")[-1] for line in second.splitlines()[2:]] == [hit.text for hit in expected]
    found = list(csv.reader((tmp_path / "out.csv").read_text().splitlines()))
    assert found[0] == ["sent0", "sent1", "hard_neg"]
    assert found[1][:2] == [texts[0], texts[3]]
    assert found[1][2] in texts[1:3]
