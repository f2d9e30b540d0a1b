"""A bucket of Google Cloud Storage on this machine: gcp-storage-emulator, which can be stopped and started again."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

PRIVATE = "private"  # a bucket that nobody may use


class _Handler(RequestHandler):
    """Answer as the emulator does, but for a creation's condition, which it ignores, and a last byte that it loses."""

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        path = urlsplit(self.path)
        query = parse_qs(path.query)
        if f"/b/{PRIVATE}/" in path.path:
            self.rfile = io.BytesIO(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            self._refuse(401, "Anonymous caller does not have storage.objects.list access to the bucket.")
            return False
        if query.get("ifGenerationMatch") == ["0"] and self.command == "POST":
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.rfile = io.BytesIO(content)
            found = re.search(rb'"name": *"([^"]*)"', content)
            name = found[1].decode() if found else query["name"][0]
            objects: dict[str, Any] = self.storage.objects.get(path.path.partition("/b/")[2].partition("/")[0], {})
            if name in objects:
                self._refuse(412, "conditionNotMet")
                return False
        if self.command == "POST" and query.get("uploadType") == ["multipart"]:
            self._keep_bytes()
        return True

    def _keep_bytes(self) -> None:
        """Encode the uploaded content, as the emulator reads the parts of a message as lines: a final CR gets lost."""
        message = self.rfile.read(int(self.headers["Content-Length"]))
        mark = b"--" + (self.headers.get_boundary() or "").encode()
        before, about, rest = message.split(b"\n\n", 2)  # about: its metadata, then the content's header
        content, end, after = rest.rpartition(b"\n" + mark)
        parts = (before, about + b"\nContent-Transfer-Encoding: base64", base64.encodebytes(content))
        message = b"\n\n".join(parts) + end + after
        self.headers.replace_header("Content-Length", str(len(message)))
        self.rfile = io.BytesIO(message)

    def _refuse(self, status: int, message: str) -> None:
        self.rfile.read()  # else the client may not read the answer
        body = json.dumps({"error": {"code": status, "message": message}}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(HTTPServer):
    request_queue_size = 64  # connections that wait; more are tried again a second later

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that were killed."""


class Bucket:
    """Hold the emulator, with the buckets `runs` and `private`; what it stores outlives a stop."""

    def __init__(self) -> None:
        self.storage = Storage(use_memory_fs=True)
        create_bucket("runs", self.storage)
        self._port = 0
        self._server: _Server | None = None
        self.start()

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which commands find it."""
        return {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{self._port}", "NO_PROXY": "127.0.0.1,localhost"}

    def start(self) -> None:
        self._server = _Server(("127.0.0.1", self._port), partial(_Handler, self.storage))
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
        self._server = None

    def restart_without_lock(self) -> None:
        """Start again, as if the process that held the lock of `team/run` were dead."""
        self.start()
        if "team/run/.lock" in self.names():
            self.storage.delete_file("runs", "team/run/.lock")

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of all objects that begin so."""
        return sorted(name for name in self.storage.objects.get("runs", {}) if name.startswith(prefix))

    def read(self, name: str) -> bytes:
        return self.storage.get_file("runs", name)

    def write(self, name: str, content: bytes) -> None:
        """Put an object there, as another client would."""
        from gcp_storage_emulator.handlers.objects import _make_object_resource

        made = _make_object_resource("", "runs", name, "application/octet-stream", str(len(content)))
        self.storage.create_file("runs", name, content, made)


@contextmanager
def running_bucket() -> Iterator[Bucket]:
    """Run the emulator during the block."""
    bucket = Bucket()
    try:
        yield bucket
    finally:
        bucket.stop()
