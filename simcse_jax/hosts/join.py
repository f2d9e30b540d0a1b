"""Join the processes of a run, and show them in a table."""

from __future__ import annotations

import json
from typing import Any

import jax
from rich.table import Table

from simcse_jax.hosts import agreement
from simcse_jax.hosts.cluster import Cluster, as_arguments
from simcse_jax.hosts.roll_call import Card, roll_call
from simcse_jax.system.errors import UserError

START_S = 120  # for JAX to start; the roll call has shown that all processes are there
SHUTDOWN_S = 60  # how long a process that has ended waits for the others to end


def join(cluster: Cluster, timeout_s: int, heartbeat_timeout_s: int) -> list[Card]:
    """Make this process one of the cluster's, and return the cards of all processes, in their order.

    Call it before JAX touches a device. timeout_s: how long to wait for all processes. heartbeat_timeout_s: a process
    without a heartbeat for this long counts as dead, and the others end. UserError when a process does not come, or
    the processes do not agree.
    """
    cards = roll_call(cluster, timeout_s)
    jax.distributed.initialize(
        **as_arguments(cluster),
        initialization_timeout=START_S,
        heartbeat_timeout_seconds=heartbeat_timeout_s,
        shutdown_timeout_seconds=SHUTDOWN_S,
    )
    devices = jax.local_devices()
    own = {"devices": len(devices), "kind": devices[0].device_kind, "jax": jax.__version__}
    cards = [card | json.loads(more) for card, more in zip(cards, agreement.gather(json.dumps(own)), strict=True)]
    _require_alike(cards)
    return cards


def _require_alike(cards: list[Card]) -> None:
    first = cards[0]
    for card in cards:
        for name, words in (
            ("jax", "the same JAX"),
            ("kind", "devices of the same kind"),
            ("devices", "as many devices"),
        ):
            if card[name] != first[name]:
                raise UserError(
                    f"All processes must have {words}: {first[name]} on process 0 ({first['host']}), and "
                    f"{card[name]} on process {card['process']} ({card['host']})."
                )


def table(cards: list[Card]) -> Table:
    """Return a table of processes with their hosts and devices."""
    total = sum(card["devices"] for card in cards)
    hosts = len({card["host"] for card in cards})
    title = f"{len(cards)} processes on {hosts} host{'s' * (hosts > 1)}, {total} devices"
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("process", "host", "pid", "devices"):
        shown.add_column(name, justify="left" if name in ("host", "devices") else "right")
    for card in cards:
        row: list[Any] = [card["process"], card["host"], card["pid"], f"{card['devices']} x {card['kind']}"]
        shown.add_row(*map(str, row))
    return shown
