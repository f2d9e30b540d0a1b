"""Upload to a Hub on this machine, which speaks the protocol that huggingface_hub uploads by."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from simcse_jax.embedding_model import open_model
from simcse_jax.model_folder.card_scores import read_card_scores
from simcse_jax.model_folder.export import written_files
from simcse_jax.system.errors import UserError
from simcse_jax.system.hub_push import push_folder, require_pushable
from tests.conftest import point_hub_at
from tests.local_server import Handler, serving
from tests.pages import ROOT


class Uploads:
    """A Hub that takes uploads: repositories are made, large files come by LFS, a commit names all."""

    def __init__(self) -> None:
        self.url, self.refuses = "", 0
        self.repositories: dict[str, dict[str, Any]] = {}  # name: the request that made it
        self.objects: dict[str, bytes] = {}  # by sha256
        self.files: dict[str, bytes] = {}  # of the newest commit
        self.tokens: set[str] = set()


def handler(hub: Uploads) -> type[Handler]:
    class UploadHandler(Handler):
        def answer(self, with_body: bool) -> None:
            if self.path.startswith("/api/"):
                return self.reply(404, {"X-Error-Code": "RepoNotFound"}, b"", with_body)
            return self.reply(200, {}, b"a hub", with_body)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def json(self, value: Any, status: int = 200) -> None:
            self.reply(status, {"Content-Type": "application/json"}, json.dumps(value).encode(), True)

        def do_PUT(self) -> None:
            body = self.body()
            hub.objects[hashlib.sha256(body).hexdigest()] = body
            self.json({})

        def do_POST(self) -> None:
            path, body = self.path.split("?")[0], self.body()
            if not path.endswith("/lfs/objects/batch"):
                hub.tokens.add(self.headers.get("Authorization", ""))
            if hub.refuses and path.startswith("/api/"):
                return self.json({"error": "no"}, hub.refuses)
            if path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
                hub.repositories[name] = asked
                return self.json({"url": f"{hub.url}/{name}"})
            if path == "/api/validate-yaml":
                return self.json({"errors": [], "warnings": []})
            if "/preupload/" in path:
                files = json.loads(body)["files"]
                modes = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for file in files
                ]
                return self.json({"files": modes})
            if path.endswith("/info/lfs/objects/batch"):
                asked = json.loads(body)["objects"]
                objects = [one | {"actions": {"upload": {"href": f"{hub.url}/objects/{one['oid']}"}}} for one in asked]
                return self.json({"transfer": "basic", "objects": objects})
            if "/commit/" in path:
                for line in body.decode().splitlines():
                    entry = json.loads(line)
                    value = entry["value"]
                    if entry["key"] == "file":
                        hub.files[value["path"]] = base64.b64decode(value["content"])
                    elif entry["key"] == "lfsFile":
                        hub.files[value["path"]] = hub.objects[value["oid"]]
                return self.json(
                    {"commitUrl": f"{hub.url}/me/mine/commit/{'0' * 40}", "commitOid": "0" * 40, "success": True}
                )
            return self.json({"error": path}, 404)

    return UploadHandler


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Uploads]:
    from huggingface_hub import close_session, constants

    uploads = Uploads()
    with serving(handler(uploads)) as uploads.url:
        point_hub_at(monkeypatch, uploads.url, tmp_path / "hf_home")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of the Hub alone
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_PROGRESS_BARS"):
            monkeypatch.setenv(name, "1")
        monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no_token"))
        yield uploads
    close_session()


def run(*arguments: str) -> str:
    """Run the command, and return what it prints; UserError with its message where it fails."""
    command = [sys.executable, "-m", "simcse_jax.export", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise UserError(done.stderr)
    return done.stdout


def scores_json(path: Path, model: str) -> Path:
    opened = open_model(model)
    protocol = {"fingerprint": opened.fingerprint, "pooler": opened.pooler}
    tasks = {"STS12": {"headline": "all"}, "TREC": {"headline": "accuracy"}, "mine": {"headline": "ndcg@10"}}
    scores = {"STS12": {"all": 72.5, "mean": 70.0}, "TREC": {"accuracy": 81.0}, "mine": {"ndcg@10": 60.0}}
    mine = {"model": model, "scores": scores, "protocol": protocol | {"tasks": tasks}}
    other = mine | {"model": "other", "protocol": mine["protocol"] | {"pooler": "another"}}  # the same weights
    path.write_text(json.dumps(other | {"models": [other, mine]}))
    return path


@pytest.mark.medium
def test_what_was_exported_arrives_and_nothing_else(hub: Uploads, small_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    scores = scores_json(tmp_path / "scores.json", str(small_model))
    shutil.copytree(small_model, out)
    (out / "notes.txt").write_text("private")
    more = ("--push=me/mine", "--private", "--license=apache-2.0", f"--scores={scores}")
    assert f"{hub.url}/me/mine" in run(f"--model={small_model}", f"--out={out}", *more)
    made = hub.repositories["me/mine"]
    assert made.get("private", made.get("visibility") == "private") is True
    assert hub.tokens == {"Bearer hf_secret"}
    written = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert written.pop("notes.txt")
    assert hub.files == written
    assert "model.safetensors" in written
    front = yaml.safe_load(written["README.md"].decode().split("---\n")[1])
    assert front["license"] == "apache-2.0"
    [index] = front["model-index"]
    found = {result["dataset"]["name"]: result["metrics"][0] for result in index["results"]}
    assert found["STS12"] == {"type": "spearman_cosine", "value": 0.725}
    assert found["TREC"] == {"type": "accuracy", "value": 0.81}
    assert found["mine"] == {"type": "ndcg@10", "value": 0.6}
    from huggingface_hub import ModelCardData

    known = ModelCardData(**front, ignore_metadata_errors=False)
    assert known.eval_results is not None
    assert len(known.eval_results) == 3
    np.testing.assert_array_equal(open_model(str(out)).encode(["a"]), open_model(str(small_model)).encode(["a"]))


@pytest.mark.parametrize(("status", "words"), [(403, "HF_TOKEN"), (500, "Try again")])
def test_a_hub_that_refuses(status: int, words: str, hub: Uploads, small_model: Path) -> None:
    hub.refuses = status
    with pytest.raises(UserError, match=f"me/mine(.|\\n)*{words}(.|\\n)*whole"):
        push_folder(small_model, written_files(small_model), "me/mine", private=False, message="a model")


@pytest.mark.parametrize(("repo", "words"), [("mine", "OWNER/NAME"), ("me/mi ne", "no name"), ("a/b/c", "no name")])
def test_a_name_that_is_none(repo: str, words: str, hub: Uploads) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        require_pushable(repo)


@pytest.mark.medium
def test_without_a_token_nothing_is_exported(
    hub: Uploads, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="HF_TOKEN"):
        run(f"--model={small_model}", f"--out={tmp_path / 'out'}", "--push=me/mine")
    assert not (tmp_path / "out").exists()


@pytest.mark.medium
def test_scores_of_another_model_are_refused(small_model: Path, tmp_path: Path) -> None:
    path = scores_json(tmp_path / "scores.json", str(small_model))
    with pytest.raises(UserError, match="other"):
        read_card_scores(path, {"fingerprint": "a third"})
    for broken in ("[]", "{}", '{"models": [5]}'):
        path.write_text(broken)
        with pytest.raises(UserError, match="evaluate"):
            read_card_scores(path, {"fingerprint": "any"})
    with pytest.raises(UserError, match="some of the layers"):
        run(f"--model={small_model}", f"--out={tmp_path / 'out'}", "--keep_layers=0", f"--scores={path}")
