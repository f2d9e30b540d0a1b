"""Claim and write the run folder: its config.json, its tokenizer, the file lists of its checkpoints.

Before anything is written, a run checks that it may use the folder, so a refused command leaves another run as it was.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from simcse_jax.config.compare import differences
from simcse_jax.config.schema import Config
from simcse_jax.hosts.agreement import broadcast, fail_together, is_first, processes
from simcse_jax.model_folder.run_folder import FILE_LIST, complete_steps, read_run_info
from simcse_jax.system.errors import UserError
from simcse_jax.system.whole_file import checksum, write_whole_text, writing

TOKENIZER = "tokenizer"
APPEARS_S = 30.0  # how long a network file system may take to show one host what another has written
# Content that must not change within a run: keys of config.json, and their words in messages.
FINGERPRINTS = {
    "data": "the training data's content",
    "eval": "the evaluation data's content",
    "validation": "the held-out text's content",
    "synonyms": "the synonyms' content",
}


def holds_checkpoint(workdir: Path) -> bool:
    """Return whether a run in this folder would resume; without a checkpoint it starts again."""
    return bool(complete_steps(workdir / "checkpoints" / "last"))


@contextmanager
def claimed(workdir: Path, config: Config) -> Iterator[None]:
    """Make the folder if need be; if the block fails, a folder that was made for it is removed again.

    UserError, on all processes, when the folder cannot be written, or holds a run of another recipe.
    """
    new = not workdir.exists()
    with fail_together():
        if is_first():
            _require_folder(workdir, config)
    try:
        yield
    except BaseException:
        if is_first():
            shutil.rmtree(_draft(workdir), ignore_errors=True)
            if new:
                with suppress(OSError):  # not empty: keep what is there
                    workdir.rmdir()
        raise


def _require_folder(workdir: Path, config: Config) -> None:
    if "://" in str(workdir) or str(workdir).startswith("gs:"):
        raise UserError(
            f"--workdir={workdir} is an address, and must be a folder that every host sees.\nMount the bucket "
            "(Cloud Storage FUSE; launch/tpu_pod.sh and launch/gke.yaml do) and give its path."
        )
    with writing(workdir, "Give a folder that you can write, --workdir=DIR.", f"--workdir={workdir}"):
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    shutil.rmtree(_draft(workdir), ignore_errors=True)  # left by a start that was killed
    info = read_run_info(workdir)
    if info is not None and holds_checkpoint(workdir):
        _refuse(workdir, differences(info["recipe"], config.flat()))


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
    if there is None or not holds_checkpoint(workdir):
        return
    pairs = {words: (there[name]["fingerprint"], info[name]["fingerprint"]) for name, words in FINGERPRINTS.items()}
    _refuse(workdir, {words: both for words, both in pairs.items() if both[0] != both[1]})


def _refuse(workdir: Path, changed: dict[str, tuple[Any, Any]]) -> None:
    if changed:
        table = "\n".join(f"  {key}: {old!r} there, {new!r} now" for key, (old, new) in changed.items())
        raise UserError(
            f"{workdir} holds a run that differs in what changes the result:\n{table}\n"
            "Use the same values to go on with it, or --workdir=ANOTHER to start a new one."
        )


def write_run_info(workdir: Path, info: dict[str, Any]) -> None:
    """Write config.json: recipe, encoder, poolers and data of the run."""
    write_whole_text(workdir / "config.json", json.dumps(info, indent=2, sort_keys=True) + "\n")


def tokenizer_draft(workdir: Path) -> Path:
    """Return an empty folder for the tokenizer of a run that may yet be refused; see `keep_tokenizer`."""
    draft = _draft(workdir)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    return draft


def current_tokenizer(workdir: Path) -> Path:
    """Return the folder of the run's tokenizer: the draft, or the one that an earlier part of the run has kept."""
    return draft if (draft := _draft(workdir)).is_dir() else workdir / TOKENIZER


def keep_tokenizer(workdir: Path) -> None:
    """Move the draft, if there is one, to `workdir/tokenizer`."""
    draft, kept = _draft(workdir), workdir / TOKENIZER
    if draft.is_dir():
        shutil.rmtree(kept, ignore_errors=True)
        os.replace(draft, kept)


def _draft(workdir: Path) -> Path:
    return workdir / f".{TOKENIZER}.partial"


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
