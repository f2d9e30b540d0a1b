"""Have every process report to process 0 before JAX starts, so that a missing process can be named.

JAX's own start ends every process with a stack trace when one of them does not come. Process 0 listens on the
coordinator's port, which JAX uses afterwards.
"""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any

from simcse_jax import __version__
from simcse_jax.hosts.cluster import Cluster
from simcse_jax.system.errors import UserError

RETRY_S = 0.2
SPEAK_S = 5.0  # how long a connected process may take to send its card
PATIENCE_S = 10.0  # how much longer than process 0 the others wait, for its verdict

Card = dict[str, Any]  # process, processes, host, pid, version


def roll_call(cluster: Cluster, timeout_s: float) -> list[Card]:
    """Return the cards of all processes, in their order, once all have come.

    UserError, the same on all that came, when some do not come in time or disagree on the number of processes.
    """
    card = {
        "process": cluster.process,
        "processes": cluster.processes,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "version": __version__,
    }
    verdict = _call(cluster, card, timeout_s) if cluster.process == 0 else _answer(cluster, card, timeout_s)
    if verdict.get("error"):
        raise UserError(verdict["error"])
    return verdict["cards"]


def _call(cluster: Cluster, own: Card, timeout_s: float) -> dict[str, Any]:
    """Do process 0's part: listen until all have come or time is up, then send the verdict to all."""
    deadline = time.monotonic() + timeout_s
    cards, error = {0: own}, ""
    waiting: dict[int, socket.socket] = {}
    with _listening(cluster) as server:
        while len(cards) < cluster.processes and not error:
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                error = _missing(cluster, cards, timeout_s)
                break
            if (card := _heard(connection)) is None:
                connection.close()
                continue
            number = card["process"]
            for gone in [n for n in waiting if _is_gone(waiting[n])]:  # it died, and may be started again
                waiting.pop(gone).close()
                del cards[gone]
            if error := _objection(cluster, card, cards):
                _tell(connection, {"error": error})
            else:
                waiting[number], cards[number] = connection, card
        verdict = {"error": error, "cards": [cards[n] for n in sorted(cards)]}
        for connection in waiting.values():
            _tell(connection, verdict)
    return verdict


def _answer(cluster: Cluster, card: Card, timeout_s: float) -> dict[str, Any]:
    """Do the others' part: connect to process 0, send the card, and receive the verdict."""
    deadline = time.monotonic() + timeout_s + PATIENCE_S
    problem: OSError | ValueError = TimeoutError("no answer")
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(_place(cluster), timeout=min(left, SPEAK_S)) as connection:
                connection.sendall(json.dumps(card).encode() + b"\n")
                connection.settimeout(left)
                return json.loads(connection.makefile().readline())
        except (OSError, ValueError) as error:  # process 0 is not up yet, or another program has that port
            problem = error
            time.sleep(RETRY_S)
    return {
        "error": f"Process 0 did not answer at {cluster.coordinator} within {timeout_s:g} s: {problem}.\n"
        f"This is process {cluster.process} of {cluster.processes} on {card['host']}. See that the same command runs "
        "on the host of process 0, and that its port can be reached from here; --join_timeout_s waits longer."
    }


def _place(cluster: Cluster) -> tuple[str, int]:
    host, port = cluster.coordinator.rsplit(":", 1)
    return host.strip("[]"), int(port)


def _listening(cluster: Cluster) -> socket.socket:
    port = _place(cluster)[1]
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, backlog=cluster.processes, dualstack_ipv6=both)
    except OSError as error:
        raise UserError(
            f"--coordinator={cluster.coordinator}: process 0 cannot listen on port {port}: {error.strerror or error}.\n"
            "Another run may still have it; give all processes another port."
        ) from error


def _heard(connection: socket.socket) -> Card | None:
    """Return the card that a process sends, None if it is not a process of this run."""
    connection.settimeout(SPEAK_S)
    try:
        card = json.loads(connection.makefile().readline(1000))
        return card if {"process", "processes", "host", "pid", "version"} <= card.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _is_gone(connection: socket.socket) -> bool:
    """Return whether the other side has closed the connection."""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(SPEAK_S)


def _tell(connection: socket.socket, verdict: dict[str, Any]) -> None:
    """Send the verdict, and let the other side close first: then the port is free again at once."""
    with connection:
        try:
            connection.sendall(json.dumps(verdict).encode() + b"\n")
            connection.settimeout(SPEAK_S)
            connection.recv(1)
        except OSError:  # it is gone, which JAX's own start will notice
            pass


def _objection(cluster: Cluster, card: Card, cards: dict[int, Card]) -> str:
    """Return why this process cannot take part, "" if it can."""
    who = f"{card['host']} (pid {card['pid']})"
    if card["processes"] != cluster.processes:
        return (
            f"Process 0 was started as one of {cluster.processes} processes, {who} as one of {card['processes']}.\n"
            "Give all the same --num_processes."
        )
    if card["process"] in cards:
        other = cards[card["process"]]
        return (
            f"Two processes call themselves process {card['process']}: {other['host']} (pid {other['pid']}) and "
            f"{who}.\nGive each its own --process_id, from 0 to {cluster.processes - 1}."
        )
    if card["version"] != __version__:
        return f"Process 0 runs simcse_jax {__version__}, {who} {card['version']}.\nInstall the same on all."
    return ""


def _missing(cluster: Cluster, cards: dict[int, Card], timeout_s: float) -> str:
    absent = [str(n) for n in range(cluster.processes) if n not in cards]
    present = ", ".join(f"{n} ({cards[n]['host']})" for n in sorted(cards))
    return (
        f"{len(cards)} of {cluster.processes} processes came to {cluster.coordinator} within {timeout_s:g} s: "
        f"{present}.\nProcess {', '.join(absent)} did not come. See whether the same command runs there and reaches "
        "that address; --join_timeout_s waits longer."
    )
