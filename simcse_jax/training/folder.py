"""Read and write the run folder: what it says of its run, and whether a run may go on in it."""

from __future__ import annotations

import hashlib
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
from simcse_jax.config.schema import Config, defaults
from simcse_jax.hosts.agreement import first_says, is_first, processes, together
from simcse_jax.system.errors import UserError
from simcse_jax.system.whole_file import write_whole_text

TOKENIZER = "tokenizer"
# How long a network file system may take to show one host what another has written.
APPEARS_S = 30.0
# What run folders of before masked language modelling do not say.
OLDER = {
    "has_mlm_head": False,
    "validation": {"files": "", "fingerprint": ""},
    "synonyms": {"file": "", "fingerprint": ""},
}
# What the differences between two runs are told by, beside the recipe: names in config.json.
FINGERPRINTS = {
    "data": "the training data's content",
    "eval": "the evaluation data's content",
    "validation": "the held-out text's content",
    "synonyms": "the synonyms' content",
}


def holds_checkpoint(workdir: Path) -> bool:
    """Whether a run in this folder would go on from somewhere; what never came to a checkpoint starts anew."""
    return bool(complete_steps(workdir / "checkpoints" / "last"))


@contextmanager
def claimed(workdir: Path, config: Config) -> Iterator[None]:
    """The folder, made if need be; one that was made for a start that failed within is removed again.

    UserError, on all processes, when it cannot be written, or holds a run of another recipe.
    """
    new = not workdir.exists()
    with together():
        if is_first():
            _require_folder(workdir, config)
    try:
        yield
    except BaseException:
        if is_first():
            shutil.rmtree(_draft(workdir), ignore_errors=True)
            if new:
                with suppress(OSError):  # not empty: what is there was meant
                    workdir.rmdir()
        raise


def _require_folder(workdir: Path, config: Config) -> None:
    if "://" in str(workdir) or str(workdir).startswith("gs:"):
        raise UserError(
            f"--workdir={workdir} is an address, and a run folder is a folder that every host sees.\nMount the bucket "
            "(Cloud Storage FUSE; launch/tpu_pod.sh and launch/gke.yaml do) and give its path."
        )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be written: {error.strerror or error}.\n"
            "Give a folder that you can write, --workdir=DIR."
        ) from error
    shutil.rmtree(_draft(workdir), ignore_errors=True)  # of a start that was killed
    info = read_run_info(workdir)
    if info is not None and holds_checkpoint(workdir):
        _refuse(workdir, differences(info["recipe"], config.flat()))


def require_shared(workdir: Path) -> None:
    """UserError, on all processes, when one does not see in this folder what process 0 writes there."""
    if processes() == 1:
        return
    mark = workdir / first_says(f".seen-by-all-{secrets.token_hex(4)}")
    with together():
        if is_first():
            mark.touch()
    try:
        with together():
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
    """UserError when the folder holds a run on other training or evaluation data; info is from `run_info`."""
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
    """Write config.json, whole or not at all: recipe, encoder, poolers, data of the run."""
    write_whole_text(workdir / "config.json", json.dumps(info, indent=2, sort_keys=True) + "\n")


def read_run_info(workdir: Path) -> dict[str, Any] | None:
    """What `write_run_info` wrote; None if the folder holds no run. UserError when it is something else."""
    path = workdir / "config.json"
    if not path.exists():
        return None
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        if {"recipe", "encoder", "pooler", "data", "eval"} <= info.keys():
            return OLDER | info | {"recipe": defaults() | info["recipe"]}
    except (ValueError, AttributeError):
        pass
    raise UserError(f"{path} is not the config.json of a run of simcse_jax.\nGive another folder with --workdir=DIR.")


def tokenizer_draft(workdir: Path) -> Path:
    """An empty folder for the tokenizer of a run that may yet be refused; `keep_tokenizer` puts it in its place."""
    draft = _draft(workdir)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    return draft


def current_tokenizer(workdir: Path) -> Path:
    """The folder of the run's tokenizer: the draft, or what an earlier part of the run has kept."""
    return draft if (draft := _draft(workdir)).is_dir() else workdir / TOKENIZER


def keep_tokenizer(workdir: Path) -> None:
    """Put the draft, if there is one, in the place of `workdir/tokenizer`."""
    draft, kept = _draft(workdir), workdir / TOKENIZER
    if draft.is_dir():
        shutil.rmtree(kept, ignore_errors=True)
        os.replace(draft, kept)


def _draft(workdir: Path) -> Path:
    return workdir / f".{TOKENIZER}.partial"


FILE_LIST = "files.json"


def complete_steps(folder: Path) -> list[int]:
    """The steps of `checkpoints/last` or `checkpoints/best` that were saved to the end, ascending."""
    return sorted(int(path.parent.name) for path in folder.glob(f"*/{FILE_LIST}") if path.parent.name.isdigit())


def incomplete(folder: Path) -> list[Path]:
    """What a kill in the middle of a save, or a save that failed, has left in `checkpoints/last` or `best`."""
    complete = {str(step) for step in complete_steps(folder)}
    return [path for path in folder.glob("*") if path.is_dir() and path.name not in complete]


def seal(step: Path) -> None:
    """Write the list of the files of this checkpoint, whole or not at all."""
    files = {str(path.relative_to(step)): _checksum(path) for path in sorted(step.rglob("*")) if path.is_file()}
    draft = step.with_name(f".{step.name}.{FILE_LIST}")
    draft.write_text(json.dumps(files, indent=1), encoding="utf-8")
    os.replace(draft, step / FILE_LIST)


def require_intact(step: Path) -> None:
    """ValueError when a file of this checkpoint is missing or not what was written; OSError when one is unreadable."""
    files = json.loads((step / FILE_LIST).read_text(encoding="utf-8"))
    for name, checksum in files.items():
        path = step / name
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if path.stat().st_size != checksum["bytes"]:
            raise ValueError(f"{name} has {path.stat().st_size} bytes of {checksum['bytes']}")
        if _checksum(path) != checksum:
            raise ValueError(f"{name} is not what was written")


def _checksum(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    return {"bytes": path.stat().st_size, "blake2b": digest}
