"""Test retrieval tasks of the Hub: NanoBEIR and MTEB's layout, fetched by `datasets` from a Hub on this machine."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from simcse_jax.evaluation.retrieval import hub
from simcse_jax.evaluation.retrieval.sources import load_retrieval
from simcse_jax.system.errors import UserError
from tests.local_server import Handler, serving

ROOT = Path(__file__).parents[3]
CORPUS = [{"_id": "d1", "text": "whales"}, {"_id": "d2", "text": "None"}]
QUERIES = [{"_id": "q1", "text": "a fish?"}, {"_id": "q2", "text": "nothing"}]
READ = "import json, sys; from simcse_jax.evaluation.retrieval.sources import load_retrieval\n" + (
    "for name in sys.argv[1:]:\n"
    "    task = load_retrieval(name)\n"
    "    print(json.dumps([task.queries, task.documents, task.relevant, task.split]))\n"
)


def _handler(root: Path) -> type[Handler]:
    """Return what answers as the Hub does for data sets: information, listings, and files."""
    commit = hashlib.sha1(b"commit").hexdigest()
    named = {"X-Repo-Commit": commit}

    class DataSets(Handler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self.answer(with_body=True, asked=self.rfile.read(length))

        def answer(self, with_body: bool, asked: bytes = b"") -> None:
            parts = self.path.split("?")[0].strip("/").split("/")
            if parts == [""]:
                return self.reply(200, named, b"a hub", with_body)
            if parts[0] == "api" and parts[1] == "datasets":
                return self._api("/".join(parts[2:4]), parts[4:], asked, with_body)
            if parts[0] == "datasets" and "resolve" in parts and (root / "/".join(parts[1:3])).is_dir():
                file = root / "/".join(parts[1:3]) / "/".join(parts[5:])
                if file.is_file():
                    body = file.read_bytes()
                    etag = f'"{hashlib.sha256(body).hexdigest()}"'
                    return self.reply(200, named | {"ETag": etag}, body, with_body)
                return self.reply(404, named | {"X-Error-Code": "EntryNotFound"}, b"", with_body)
            return self.reply(404, named | {"X-Error-Code": "RepoNotFound"}, b"", with_body)

        def _api(self, repo: str, rest: list[str], asked: bytes, with_body: bool) -> None:
            folder = root / repo
            if not folder.is_dir():
                return self.reply(404, named | {"X-Error-Code": "RepoNotFound"}, b"", with_body)
            files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
            if not rest or rest[0] == "revision":
                siblings = [{"rfilename": str(path)} for path in files]
                found: Any = {"id": repo, "sha": commit, "siblings": siblings, "private": False, "tags": []}
            elif rest[0] == "tree":
                under = Path("/".join(rest[2:]))
                below = sorted({folder / path for path in files if under in path.parents}, key=str)
                found = [
                    self._entry(folder, path.relative_to(folder)) for path in self._children(folder / under, below)
                ]
                if not found:
                    return self.reply(404, named | {"X-Error-Code": "EntryNotFound"}, b"", with_body)
            else:
                wanted = parse_qs(asked.decode())["paths"]
                found = [self._entry(folder, path) for path in files if str(path) in wanted]
            return self.reply(200, named | {"Content-Type": "application/json"}, json.dumps(found).encode(), with_body)

        def _children(self, folder: Path, below: list[Path]) -> list[Path]:
            return list(dict.fromkeys(folder / path.relative_to(folder).parts[0] for path in below))

        def _entry(self, folder: Path, path: Path) -> dict[str, Any]:
            if (folder / path).is_dir():
                return {"type": "directory", "path": str(path), "size": 0, "oid": "0" * 40}
            body = (folder / path).read_bytes()
            return {"type": "file", "path": str(path), "size": len(body), "oid": hashlib.sha1(body).hexdigest()}

    return DataSets


def _write(root: Path, repo: str, tables: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    """Write a data set with these rows by configuration and split."""
    lines = ["---", "configs:"]
    for config in dict.fromkeys(config for config, _ in tables):
        lines += [f"- config_name: {config}", "  data_files:"]
        for (own, split), rows in tables.items():
            if own == config:
                path = root / repo / config / f"{split}-00000-of-00001.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                parquet.write_table(pa.Table.from_pylist(rows), path)
                lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    (root / repo / "README.md").write_text("\n".join([*lines, "---", ""]))


@pytest.mark.slow
def test_tasks_are_fetched(tmp_path: Path) -> None:
    ungraded = [{"query-id": "q1", "corpus-id": "d2"}, {"query-id": "q2", "corpus-id": "d1"}]
    nano = {
        ("corpus", "NanoNFCorpus"): CORPUS,
        ("queries", "NanoNFCorpus"): QUERIES,
        ("qrels", "NanoNFCorpus"): ungraded,
    }
    _write(tmp_path / "hub", hub.NANO_REPO, nano)
    graded = [{"query-id": "q1", "corpus-id": "d2", "score": 2.0}, {"query-id": "q2", "corpus-id": "d1", "score": 0.0}]
    titled = [{"_id": "d1", "title": "On", "text": "whales"}, {"_id": "d2", "title": "", "text": "None"}]
    own = {("corpus", "corpus"): titled, ("queries", "queries"): QUERIES, ("default", "test"): graded}
    _write(tmp_path / "hub", "owner/own", own)
    with serving(_handler(tmp_path / "hub")) as url:
        environment = os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        environment |= {"PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1,localhost", "HF_DATASETS_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", READ, "nanobeir:nfcorpus", "owner/own"],
            env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = map(json.loads, done.stdout.splitlines())
    documents, queries = {"d1": "whales", "d2": "None"}, {"q1": "a fish?", "q2": "nothing"}
    assert first == [queries, documents, {"q1": {"d2": 1}, "q2": {"d1": 1}}, "NanoNFCorpus"]
    assert second == [{"q1": "a fish?"}, documents | {"d1": "On whales"}, {"q1": {"d2": 2}}, "test"]


def test_what_a_data_set_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    tables: dict[str, dict[str, Any]] = {
        "corpus": {"key": ["d1"], "text": ["x"]},
        "queries": {"_id": ["q"], "text": ["x"]},
    }

    def load(_: str, repo: str, config: str, split: str) -> datasets.Dataset:
        if config not in tables:
            raise UserError(f"no {config}:{split}")
        return datasets.Dataset.from_dict(tables[config])

    monkeypatch.setattr(hub, "load_hub_dataset", load)
    with pytest.raises(UserError, match="owner/own: no qrels:dev"):
        load_retrieval("owner/own:split=dev")
    tables["default"] = {"query-id": ["q"], "corpus-id": [["d1", "d2"]]}
    with pytest.raises(UserError, match=r"owner/own, corpus: there is no column of ids .*key, text"):
        load_retrieval("owner/own")
    tables["corpus"] = {"_id": ["d1", "d2"], "text": ["x", "y"]}
    assert load_retrieval("owner/own").relevant == {"q": {"d1": 1, "d2": 1}}
    tables["default"]["relevant"] = [0]
    with pytest.raises(UserError, match=r"owner/own.*none of the columns relevant is known to hold grades"):
        load_retrieval("owner/own")


def test_without_a_network_the_error_names_the_task(dead_hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simcse_jax.system.hub._RETRY_WAIT_S", 0.05)
    with pytest.raises(UserError, match=r"(?s)nanobeir:nq.*out of reach"):
        load_retrieval("nanobeir:nq")
