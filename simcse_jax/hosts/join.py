"""Join the processes of a run, and show them in a table.

JAX's own start ends every process with a stack trace when one of them does not come. So all report to process 0 first,
which listens on the coordinator's port, as JAX does afterwards, and tells all who is there or what is wrong.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from typing import Any

import jax
from rich.table import Table

from simcse_jax import __version__
from simcse_jax.hosts import agreement
from simcse_jax.hosts.cluster import Cluster
from simcse_jax.system.errors import UserError

START_S = 120  # for JAX to start; all processes are there by then
SHUTDOWN_S = 60  # how long a process that has ended waits for the others to end
RETRY_S = 0.2
SPEAK_S = 5.0  # how long a connected process may take to send its line
LONGER_S = 10.0  # how much longer than process 0 the others wait, for its answer

Member = dict[str, Any]  # process, processes, host, pid, version; once JAX has started also devices, kind, jax


def join(cluster: Cluster, timeout_s: int, heartbeat_timeout_s: int) -> list[Member]:
    """Make this process one of the cluster's, and return all of them, in their order.

    Call it before JAX touches a device. timeout_s: how long to wait for all processes. heartbeat_timeout_s: a process
    without a heartbeat for this long counts as dead, and the others end. UserError when a process does not come, or
    the processes do not agree.
    """
    members = wait_for_all(cluster, timeout_s)
    jax.distributed.initialize(
        coordinator_address=cluster.coordinator,
        num_processes=cluster.processes,
        process_id=cluster.process,
        local_device_ids=cluster.gpus,
        cluster_detection_method="deactivate",
        initialization_timeout=START_S,
        heartbeat_timeout_seconds=heartbeat_timeout_s,
        shutdown_timeout_seconds=SHUTDOWN_S,
    )
    devices = jax.local_devices()
    own = {"devices": len(devices), "kind": devices[0].device_kind, "jax": jax.__version__}
    everywhere = agreement.gather(json.dumps(own))
    members = [member | json.loads(more) for member, more in zip(members, everywhere, strict=True)]
    first = members[0]
    for member in members:
        for name, words in (("jax", "JAX"), ("kind", "kind of devices"), ("devices", "number of devices")):
            if member[name] != first[name]:
                raise UserError(
                    f"All processes must have the same {words}: {first[name]} on process 0 ({first['host']}), and "
                    f"{member[name]} on process {member['process']} ({member['host']})."
                )
    return members


def table(members: list[Member]) -> Table:
    """Return a table of processes with their hosts and devices."""
    total = sum(member["devices"] for member in members)
    hosts = len({member["host"] for member in members})
    title = f"{len(members)} processes on {hosts} host{'s' * (hosts > 1)}, {total} devices"
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("process", "host", "pid", "devices"):
        shown.add_column(name, justify="left" if name in ("host", "devices") else "right")
    for member in members:
        devices = f"{member['devices']} x {member['kind']}"
        shown.add_row(str(member["process"]), member["host"], str(member["pid"]), devices)
    return shown


def wait_for_all(cluster: Cluster, timeout_s: float) -> list[Member]:
    """Return all processes, in their order, once they have come.

    UserError, the same on all that came, when some do not come in time or disagree on the number of processes.
    """
    own = {
        "process": cluster.process,
        "processes": cluster.processes,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "version": __version__,
    }
    answer = (_listen if cluster.process == 0 else _report)(cluster, own, timeout_s)
    if answer["error"]:
        raise UserError(answer["error"])
    return answer["members"]


def _listen(cluster: Cluster, own: Member, timeout_s: float) -> dict[str, Any]:
    """Do process 0's part: listen until all have come or time is up, then answer all."""
    deadline = time.monotonic() + timeout_s
    members, error = {0: own}, ""
    waiting: dict[int, socket.socket] = {}
    with _server(cluster) as server:
        while len(members) < cluster.processes and not error:
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                error = _missing(cluster, members, timeout_s)
                break
            if (member := _read(connection)) is None:
                connection.close()
                continue
            for gone in [n for n in waiting if _is_gone(waiting[n])]:  # it died, and may be started again
                waiting.pop(gone).close()
                del members[gone]
            if error := _objection(cluster, member, members):
                _send(connection, {"error": error})
            else:
                waiting[member["process"]], members[member["process"]] = connection, member
        answer = {"error": error, "members": [members[n] for n in sorted(members)]}
        for connection in waiting.values():
            _send(connection, answer)
    return answer


def _report(cluster: Cluster, own: Member, timeout_s: float) -> dict[str, Any]:
    """Do the others' part: connect to process 0, send the own line, and return the answer."""
    deadline = time.monotonic() + timeout_s + LONGER_S
    problem: OSError | ValueError = TimeoutError("no answer")
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(_address(cluster), timeout=min(left, SPEAK_S)) as connection:
                connection.sendall(json.dumps(own).encode() + b"\n")
                connection.settimeout(left)
                return json.loads(connection.makefile().readline())
        except (OSError, ValueError) as error:  # process 0 is not up yet, or another program has that port
            problem = error
            time.sleep(RETRY_S)
    raise UserError(
        f"Process 0 did not answer at {cluster.coordinator} within {timeout_s:g} s: {problem}.\n"
        f"This is process {cluster.process} of {cluster.processes} on {own['host']}. See that the same command runs "
        "on the host of process 0, and that its port can be reached from here; --join_timeout_s waits longer."
    )


def _address(cluster: Cluster) -> tuple[str, int]:
    host, port = cluster.coordinator.rsplit(":", 1)
    return host.strip("[]"), int(port)


def _server(cluster: Cluster) -> socket.socket:
    port = _address(cluster)[1]
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, backlog=cluster.processes, dualstack_ipv6=both)
    except OSError as error:
        raise UserError(
            f"--coordinator={cluster.coordinator}: process 0 cannot listen on port {port}: {error.strerror or error}.\n"
            "Another run may still have it; give all processes another port."
        ) from error


def _read(connection: socket.socket) -> Member | None:
    """Return what a process sends of itself, None if it is not a process of this run."""
    connection.settimeout(SPEAK_S)
    try:
        member = json.loads(connection.makefile().readline(1000))
        return member if {"process", "processes", "host", "pid", "version"} <= member.keys() else None
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


def _send(connection: socket.socket, answer: dict[str, Any]) -> None:
    """Send the answer, and let the other side close first: then the port is free again at once."""
    with connection, suppress(OSError):  # if it is gone, JAX's own start will notice
        connection.sendall(json.dumps(answer).encode() + b"\n")
        connection.settimeout(SPEAK_S)
        connection.recv(1)


def _objection(cluster: Cluster, member: Member, members: dict[int, Member]) -> str:
    """Return why this process cannot take part, "" if it can."""
    who, number = f"{member['host']} (pid {member['pid']})", member["process"]
    if member["processes"] != cluster.processes:
        return (
            f"Process 0 was started as one of {cluster.processes} processes, {who} as one of {member['processes']}.\n"
            "Give all the same --num_processes."
        )
    if number in members:
        other = members[number]
        return (
            f"Two processes call themselves process {number}: {other['host']} (pid {other['pid']}) and {who}.\n"
            f"Give each its own --process_id, from 0 to {cluster.processes - 1}."
        )
    if member["version"] != __version__:
        return f"Process 0 runs simcse_jax {__version__}, {who} {member['version']}.\nInstall the same on all."
    return ""


def _missing(cluster: Cluster, members: dict[int, Member], timeout_s: float) -> str:
    absent = [str(n) for n in range(cluster.processes) if n not in members]
    present = ", ".join(f"{n} ({members[n]['host']})" for n in sorted(members))
    return (
        f"{len(members)} of {cluster.processes} processes came to {cluster.coordinator} within {timeout_s:g} s: "
        f"{present}.\nProcess {', '.join(absent)} did not come. See whether the same command runs there and reaches "
        "that address; --join_timeout_s waits longer."
    )
