"""The sweep folder: the plan it holds, what may be added to it, and that one sweep at a time is at work there."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from simcse_jax.config.compare import idle_keys
from simcse_jax.config.schema import defaults
from simcse_jax.sweeping.plan import FREE_KEYS, PINNED_KEYS, Judging, Plan, Row, folder_name
from simcse_jax.system.errors import UserError
from simcse_jax.system.whole_file import write_whole_text

PLAN = "sweep.json"
LOCK = ".lock"


def read_plan(folder: Path) -> Plan | None:
    """The plan that the folder holds; None for none. UserError when it cannot be read."""
    path = folder / PLAN
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(Row(**row | {"seeds": tuple(row["seeds"])}) for row in stored["rows"])
        judging = Judging(**stored["judging"] | {"pairs": tuple(stored["judging"]["pairs"])})
        return Plan(stored["recipe"], rows, judging)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not the plan of a sweep ({error}).\nGive another folder with --workdir=DIR."
        ) from error


def write_plan(folder: Path, plan: Plan) -> None:
    """Write the plan, whole or not at all; the folder is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole_text(folder / PLAN, json.dumps(dataclasses.asdict(plan), indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"--workdir={folder} cannot be written: {error.strerror or error}.\nGive a folder that you can write."
        ) from error


def joined(folder: Path, plan: Plan, judges_anew: bool = False) -> Plan:
    """The plan together with the one that the folder holds: rows and seeds may be added, and none may mean another.

    The stored rows stay first, unless the new plan names them all: then its order counts. Stored judging goes on
    unless `judges_anew`.
    """
    stored = read_plan(folder)
    if stored is None:
        return plan
    if stored.recipe != plan.recipe:
        raise UserError(
            f"{folder} holds a sweep of {stored.recipe}, and this is one of {plan.recipe}.\n"
            "Use --workdir=ANOTHER to start a new one."
        )
    old = {row.label: row for row in stored.rows}
    new = {row.label: row for row in plan.rows}
    for label in old.keys() & new.keys():
        _refuse_other_settings(folder, old[label], new[label])
    labels = list(new) if old.keys() <= new.keys() else [*old, *(label for label in new if label not in old)]
    taken = [row.folder for row in stored.rows]
    rows = []
    for label in labels:
        row = new.get(label) or old[label]
        if label in old:
            seeds = dict.fromkeys([*old[label].seeds, *row.seeds])
            # The stored settings stay: they are what tells that its runs are finished.
            settings = old[label].settings
            row = dataclasses.replace(row, folder=old[label].folder, seeds=tuple(sorted(seeds)), settings=settings)
        else:
            row = dataclasses.replace(row, folder=folder_name(label, taken))
            taken.append(row.folder)
        rows.append(row)
    judging = plan.judging if judges_anew else stored.judging
    if judging.asked and not judging.data:
        judging = dataclasses.replace(judging, data=stored.judging.data)
    return Plan(plan.recipe, tuple(rows), judging)


def _refuse_other_settings(folder: Path, old: Row, new: Row) -> None:
    """UserError where the two differ.

    A key that a later version has added counts only where it is overridden, and one that had no effect does not count.
    """
    idle = idle_keys(defaults() | old.settings)
    keys = sorted((old.settings.keys() | new.overrides.keys()) - (FREE_KEYS - PINNED_KEYS) - {*idle})
    changed = [key for key in keys if old.settings.get(key) != new.settings.get(key)]
    if changed:
        table = "\n".join(f"  {key}: {old.settings.get(key)!r} there, {new.settings.get(key)!r} now" for key in changed)
        raise UserError(
            f"{folder} holds a row {new.label!r} with other settings:\n{table}\n"
            "Use the same values to go on with it, another label to add a row, or --workdir=ANOTHER for a new sweep."
        )


class Lock:
    """The lock of a sweep folder. Commands that inherit `handle` hold it too, so none is left behind unnoticed."""

    def __init__(self, handle: int):
        self.handle = handle

    def tell(self, processes: Iterable[int]) -> None:
        """Note which commands are running, for whoever finds the folder locked."""
        pids = " ".join(map(str, [os.getpid(), *processes]))
        text = f"{pids} on {socket.gethostname()}".encode()
        os.ftruncate(self.handle, 0)
        os.pwrite(self.handle, text, 0)


@contextmanager
def locked(folder: Path) -> Iterator[Lock]:
    """The folder for this process and what it starts; UserError while another sweep, or a run of it, is at work."""
    path = folder / LOCK
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{folder} is in use by another sweep, or by a run that a killed sweep has left behind: processes "
                f"{path.read_text(encoding='utf-8') or 'unknown'}.\n"
                "Wait for it, or end those that still run with `kill`: they save first. Then try again."
            ) from error
        except OSError:
            pass  # a file system without locks
        lock = Lock(handle)
        lock.tell(())
        yield lock
    finally:
        os.close(handle)
