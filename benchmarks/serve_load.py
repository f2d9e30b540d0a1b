"""Put load on the server: `python -m benchmarks.serve_load --model=DIR [--corpus=FILE] --json=out.json`.

Starts `python -m simcse_jax.search --serve` as a separate process. For a minute, 64 clients send it requests, each its
next one once the last is answered; `--hang_up=32` of them close the connection before the answer comes, as pages do
whose reader leaves. Prints how long answers took, how many failed, and the server's memory over time, with its slope in
the second half: `--seconds=360` leaves the first half for what grows once.
Clients and server share the machine, so the clients' own work is part of every figure.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from benchmarks import process_memory
from simcse_jax import cli
from simcse_jax.data import demo
from simcse_jax.data.corpus import read_sentences
from simcse_jax.system.errors import UserError

FLAGS = flags.FLAGS

SAMPLES = 40  # readings of the server's memory
SENTENCES = 20_000  # of the demo's text, where no corpus is given
# Percentage of each kind of request: mostly one text at a time, as a page or a service sends.
MIX = {"/search": 60, "/encode": 20, "/similarity": 10, "/v1/embeddings": 10}


class Asked(NamedTuple):
    """Hold one request: its path, its status (0: the connection broke), how long it took and when it ended."""

    path: str
    status: int
    seconds: float
    ended: float


def measure(command: list[str], texts: list[str], clients: int, seconds: float, hang_up: int = 0) -> dict[str, Any]:
    """Return the results for the server that `command` starts, whose first printed address is the one to ask.

    hang_up: how many of the clients do not wait for answers.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            host, port = _address(server)
            asked, hung_up, memory = asyncio.run(_load(server.pid, host, port, texts, clients, seconds, hang_up))
        finally:
            server.terminate()
            stopped = server.wait(120)
    return {
        "clients": clients,
        "seconds": seconds,
        "requests_a_second": len(asked) / seconds,
        "hung_up": hung_up,
        "failures": dict(Counter(f"{one.path} {one.status}" for one in asked if one.status != 200)),
        "routes": {path: _times([one for one in asked if one.path == path]) for path in MIX},
        "all": _times(asked),
        "resident_bytes": memory,
        "late_growth_bytes_a_minute": _late_growth(memory),
        "exit_status": stopped,
    }


def table(seen: dict[str, Any]) -> list[str]:
    """Return the results as a table for people."""
    head = f"{'route':<16} {'requests':>9} {'p50 ms':>9} {'p95 ms':>9} {'p99 ms':>9} {'most ms':>9}"
    rows = [
        f"{path:<16} {times['count']:>9,} " + " ".join(f"{times[key] * 1000:>9.1f}" for key in _TIMES)
        for path, times in [*seen["routes"].items(), ("all", seen["all"])]
        if times["count"]
    ]
    memory = [f"{bytes_ / 2**20:.0f}" for _, bytes_ in seen["resident_bytes"]]
    failed = ", ".join(f"{count} x {what}" for what, count in seen["failures"].items()) or "none"
    return [
        f"{seen['clients']} clients, {seen['seconds']:g} s: {seen['requests_a_second']:,.0f} requests/s",
        head,
        *rows,
        f"failures: {failed}; requests whose client hung up: {seen['hung_up']:,}",
        f"server's memory, MiB, from first to last: {' '.join(memory)}",
        f"its growth in the second half: {seen['late_growth_bytes_a_minute'] / 2**20:+.2f} MiB a minute",
    ]


_TIMES = ("p50", "p95", "p99", "most")


def _times(asked: list[Asked]) -> dict[str, float]:
    if not asked:
        return {"count": 0}
    values = np.percentile([one.seconds for one in asked], [50, 95, 99, 100])
    return {"count": len(asked), **dict(zip(_TIMES, map(float, values), strict=True))}


def _late_growth(memory: list[tuple[float, int]]) -> float:
    """Return the slope of a line through the second half of the readings, bytes a minute."""
    times, sizes = zip(*memory[len(memory) // 2 :], strict=True)
    return 60 * float(np.polyfit(times, sizes, 1)[0])


def _address(server: subprocess.Popen[str]) -> tuple[str, int]:
    assert server.stdout
    for line in server.stdout:
        if found := re.search(r"http://([\d.]+):(\d+)", line):
            return found[1], int(found[2])
    raise UserError("The server ended before it said where it listens; what it said of it stands above.")


async def _load(
    pid: int, host: str, port: int, texts: list[str], clients: int, seconds: float, hang_up: int
) -> tuple[list[Asked], int, list[tuple[float, int]]]:
    """Return the answered requests, the number of others, and (seconds from the start, the server's resident bytes)."""
    asked: list[Asked] = []
    memory = [(0.0, process_memory.resident(pid))]
    start = time.monotonic()
    end = start + seconds
    drawn = [random.Random(n) for n in range(clients)]
    asking = [asyncio.create_task(_client(host, port, texts, rng, end, asked)) for rng in drawn[hang_up:]]
    leaving = [asyncio.create_task(_leaving_client(host, port, texts, rng, end)) for rng in drawn[:hang_up]]
    for sample in range(1, SAMPLES + 1):
        await asyncio.sleep(max(0.0, start + seconds * sample / SAMPLES - time.monotonic()))
        memory.append((time.monotonic() - start, process_memory.resident(pid)))
    await asyncio.gather(*asking)
    return asked, sum(await asyncio.gather(*leaving)), memory


async def _client(host: str, port: int, texts: list[str], rng: random.Random, end: float, asked: list[Asked]) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    while time.monotonic() < end:
        path, request = _request(host, texts, rng)
        start = time.monotonic()
        try:
            writer.write(request)
            status = await _status(reader)
        except (OSError, asyncio.IncompleteReadError):
            status = 0
            reader, writer = await asyncio.open_connection(host, port)
        now = time.monotonic()
        asked.append(Asked(path, status, now - start, now))
    writer.close()
    await writer.wait_closed()


async def _leaving_client(host: str, port: int, texts: list[str], rng: random.Random, end: float) -> int:
    """Send requests, close each connection within 50 ms, and return their number."""
    count = 0
    while time.monotonic() < end:
        _, writer = await asyncio.open_connection(host, port)
        writer.write(_request(host, texts, rng)[1])
        await asyncio.sleep(rng.uniform(0, 0.05))
        writer.transport.abort()
        count += 1
    return count


async def _status(reader: asyncio.StreamReader) -> int:
    """Return the status of the next answer, after checking that its body is complete JSON."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
    assert length, head
    body = await reader.readexactly(int(length[1]))
    assert (body[:1], body[-1:]) == (b"{", b"}")
    return int(head.split()[1])


def _request(host: str, texts: list[str], rng: random.Random) -> tuple[str, bytes]:
    """Return a path and the bytes of a request to it."""
    (path,) = rng.choices(list(MIX), list(MIX.values()))
    several = rng.choices(texts, k=rng.randint(1, 8))
    body = {
        "/search": {"query": several[0], "top_k": 10},
        "/encode": {"texts": several},
        "/similarity": {"queries": several, "keys": rng.choices(texts, k=4)},
        "/v1/embeddings": {"input": several, "model": "any", "encoding_format": "base64"},
    }[path]
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    return path, f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def define_flags() -> None:
    """Define the command's flags; only the command calls this, so that tests of other commands may import this file."""
    flags.DEFINE_string("model", None, "The model to serve: a folder or a Hub name.", required=True)
    flags.DEFINE_string("corpus", "", "The sentences to search and to ask for; by default the demo's.")
    flags.DEFINE_integer("clients", 64, "Clients that ask at once.", lower_bound=1)
    flags.DEFINE_integer("hang_up", 0, "How many of them close the connection before the answer.", lower_bound=0)
    flags.DEFINE_float("seconds", 60.0, "How long they ask.", lower_bound=1.0)
    flags.DEFINE_string("json", "", "Write what was seen there as well.")


def main() -> None:
    """Start the server, send requests as the flags say, and print the results."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(FLAGS.corpus or f"{folder}/corpus.txt")
        if not FLAGS.corpus:
            corpus.write_text("\n".join(demo.sentences(count=SENTENCES)) + "\n", encoding="utf-8")
        search = ["-m", "simcse_jax.search", f"--model={FLAGS.model}", f"--corpus={corpus}", "--serve", "--port=0"]
        texts = list(read_sentences([str(corpus)]))
        seen = measure([sys.executable, *search], texts, FLAGS.clients, FLAGS.seconds, FLAGS.hang_up)
    print("\n".join(table(seen)))
    if FLAGS.json:
        Path(FLAGS.json).write_text(json.dumps(seen, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
