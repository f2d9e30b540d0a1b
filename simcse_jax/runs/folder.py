"""Claim and write the run folder: its config.json, its tokenizer, the file lists of its checkpoints.

Before anything is written, a run checks that it may use the folder, so a refused command leaves another run as it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simcse_jax.config.compare import differences
from simcse_jax.config.schema import Config
from simcse_jax.hosts.agreement import broadcast, fail_together, is_first, processes
from simcse_jax.model_folder.run_folder import FILE_LIST, complete_steps, read_run_info
from simcse_jax.system.errors import UserError
from simcse_jax.system.object_store import require_spelling, shown_path
from simcse_jax.system.whole_file import checksum, locked, write_whole_text, writing

TOKENIZER = "tokenizer"
DRAFT = ".tokenizer.partial"  # the tokenizer of a run that may yet be refused
_LOCK = ".lock"
_WAY_OUT = "Give a folder that you can write, --workdir=DIR."
# Files that may lie in the folder of a new run: what launchers and users write beside it, by their suffixes.
_BESIDE = (".log", ".out", ".err", ".txt", ".sh", ".py", ".md", ".json", ".yaml", ".yml", ".toml", ".pid", ".mend")
APPEARS_S = 30.0  # how long a network file system may take to show one host what another has written
# Content that must not change within a run: its section of config.json, the key there that names the files, and words.
CONTENTS = (
    ("data", "files", "training data"),
    ("eval", "data", "evaluation data"),
    ("validation", "files", "held-out text"),
    ("synonyms", "file", "synonyms"),
    ("teacher", "name", "teacher's vectors"),
    ("own_parts", "names", "code of your own"),
)


def has_checkpoint(workdir: Path) -> bool:
    """Return whether a run in this folder has saved its state, be it damaged by now; else a run starts again."""
    checkpoints = workdir / "checkpoints"
    return bool(complete_steps(checkpoints / "last") or set_aside(checkpoints))


@contextmanager
def locked_folder(workdir: Path) -> Iterator[None]:
    """Keep other runs out of the folder during the block; it is made if need be, and removed if it stays empty.

    One process holds the lock for all of its run. UserError, on all of them, when another run has the folder, or when
    it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with fail_together():
            if is_first():
                stack.enter_context(_made(workdir))
                busy = f"Another training is at work in {workdir}. Wait for it, stop it, or use --workdir=ANOTHER."
                stack.enter_context(locked(workdir / _LOCK, busy, _WAY_OUT, f"--workdir={workdir}"))
        yield


@contextmanager
def _made(workdir: Path) -> Iterator[None]:
    """Make the folder if need be; one that was made, and is empty at the end but for the lock, is removed again."""
    require_spelling(workdir, "--workdir")
    new = not workdir.exists()
    if not new:
        _require_free(workdir)
    with writing(workdir, _WAY_OUT, f"--workdir={workdir}"):
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    try:
        yield
    finally:
        if new and not set(workdir.glob("*")) - {workdir / _LOCK}:
            shutil.rmtree(workdir, ignore_errors=True)


def _require_free(workdir: Path) -> None:
    """Raise UserError when the folder holds neither a run nor little else than logs: it is used for something else.

    Hidden files, logs, scripts and notes may be there; not other folders, data or repositories.
    """
    with writing(workdir, _WAY_OUT, f"--workdir={workdir}"):
        if (workdir / "config.json").exists():  # a run, or refused when it is read
            return
        found = sorted(path.name for path in workdir.iterdir() if is_foreign(path.name, path.is_dir()))
    require_no_others(workdir, found)


def require_no_others(workdir: Path | str, foreign: Sequence[str]) -> None:
    """Raise UserError where a folder or an address without a run holds other things, of these names."""
    if foreign:
        more = f" and {len(foreign) - 6} more" if len(foreign) > 6 else ""
        raise UserError(
            f"--workdir={workdir} holds no run (no config.json), and other files: {', '.join(foreign[:6])}{more}.\n"
            f"Give the run a folder of its own, for example --workdir={shown_path(workdir, 'run')}"
        )


def is_foreign(name: str, is_folder: bool = False) -> bool:
    """Return whether what has this name is no part of a run, nor what may lie beside it."""
    if name.startswith(".") or name in ("lost+found", "tensorboard"):  # the latter perhaps a link elsewhere
        return name == ".git"
    return is_folder or Path(name).suffix.lower() not in _BESIDE


@contextmanager
def undone_if_refused(workdir: Path, config: Config) -> Iterator[None]:
    """Make the folder if need be; when the block fails, it is left as it was.

    UserError, on all processes, when the folder cannot be written, or holds a run of another recipe.
    """
    with contextlib.ExitStack() as stack:
        with fail_together():
            if is_first():
                stack.enter_context(_made(workdir))
                stack.callback(shutil.rmtree, workdir / DRAFT, ignore_errors=True)
                shutil.rmtree(workdir / DRAFT, ignore_errors=True)  # left by a start that was killed
                info = read_run_info(workdir)
                if info is not None and has_checkpoint(workdir):
                    require_same_recipe(workdir, info["recipe"], config.flat())
        yield


def require_same_recipe(workdir: Path | str, there: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise UserError where the recipe of the run in a folder and another one differ in what changes the result."""
    changed = differences(there, now).items()
    _refuse(workdir, [f"{key}: {old!r} there, {new!r} now" for key, (old, new) in changed])


def require_shared(workdir: Path) -> None:
    """Raise UserError on all processes when one of them does not see what process 0 writes into this folder."""
    if processes() == 1:
        return
    mark = workdir / broadcast(f".seen-by-all-{secrets.token_hex(4)}")
    with fail_together():
        if is_first():
            mark.touch()
    try:
        with fail_together():
            deadline = time.monotonic() + APPEARS_S
            while not mark.exists():
                if time.monotonic() > deadline:
                    raise UserError(
                        f"--workdir={workdir} on {socket.gethostname()} is not the folder that process 0 has under "
                        "that name.\nGive a folder on a file system that all hosts share, by its full path."
                    )
                time.sleep(0.1)
    finally:
        if is_first():
            mark.unlink(missing_ok=True)


def require_same_data(workdir: Path, info: dict[str, Any]) -> None:
    """Raise UserError when the folder holds a run on other training or evaluation data; info: that of `run_info`."""
    there = read_run_info(workdir)
    if there is not None and has_checkpoint(workdir):
        changed = [
            f"the {words}: of {there[section].get(files)!r} there, of {info[section][files]!r} now, with other "
            "content, or read (its columns, rows, splits) by the rules of another version, which can go on with the run"
            for section, files, words in CONTENTS
            if there[section].get("fingerprint") != info[section]["fingerprint"]
        ]
        _refuse(workdir, changed)


def _refuse(workdir: Path | str, changed: list[str]) -> None:
    if changed:
        table = "\n".join(f"  {line}" for line in changed)
        raise UserError(
            f"{workdir} holds a run that differs in what changes the result:\n{table}\n"
            "Use the same values to go on with it, or --workdir=ANOTHER to start a new one."
        )


def write_run_info(workdir: Path, info: dict[str, Any]) -> None:
    """Write config.json: recipe, encoder, poolers and data of the run."""
    write_whole_text(workdir / "config.json", json.dumps(info, indent=2, sort_keys=True) + "\n")


def tokenizer_draft(workdir: Path) -> Path:
    """Return an empty folder for the tokenizer of a run that may yet be refused; see `keep_tokenizer`."""
    (workdir / DRAFT).mkdir()
    return workdir / DRAFT


def current_tokenizer(workdir: Path) -> Path:
    """Return the folder of the run's tokenizer: the draft, or the one that an earlier part of the run has kept."""
    return draft if (draft := workdir / DRAFT).is_dir() else workdir / TOKENIZER


def keep_tokenizer(workdir: Path) -> None:
    """Move the draft, if there is one, to `workdir/tokenizer`."""
    if (workdir / DRAFT).is_dir():
        shutil.rmtree(workdir / TOKENIZER, ignore_errors=True)
        os.replace(workdir / DRAFT, workdir / TOKENIZER)


def set_aside(checkpoints: Path) -> list[Path]:
    """Return the damaged states that a run has set aside."""
    return sorted(checkpoints.glob("broken-*"))


def incomplete(folder: Path) -> list[Path]:
    """Return the folders that interrupted or failed saves have left in `checkpoints/last` or `best`."""
    complete = {str(step) for step in complete_steps(folder)}
    return [path for path in folder.glob("*") if path.is_dir() and path.name not in complete]


def seal(step: Path) -> None:
    """Write the list of the files of this checkpoint, which makes it complete."""
    files = {str(path.relative_to(step)): checksum(path) for path in sorted(step.rglob("*")) if path.is_file()}
    draft = step.with_name(f".{step.name}.{FILE_LIST}")
    draft.write_text(json.dumps(files, indent=1), encoding="utf-8")
    os.replace(draft, step / FILE_LIST)
