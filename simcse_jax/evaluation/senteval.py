"""SentEval's folder of evaluation data: where it is, and its files as lines."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from contextlib import suppress
from pathlib import Path

from simcse_jax.system.cache import cache_folder
from simcse_jax.system.errors import UserError
from simcse_jax.system.hub import DATASET_PREFIX, dataset_file

HUB_ARCHIVE = "hf://datasets/princeton-nlp/datasets-for-simcse/senteval.tar"
KNOWN_FOLDERS = ("STS", "SICK", "MR", "CR", "SUBJ", "MPQA", "SST", "TREC", "MRPC")
_LEVELS = 3  # senteval.tar holds SentEval/data/downstream
_CHUNK = 1 << 20


def senteval_folder(source: str = "") -> Path:
    """The folder that holds STS/, SICK/, MR/ and their like (some of them); UserError if there is none.

    source: that folder or one at most three levels above it; an archive with that layout (unpacked once, into the
    cache); `hf://datasets/OWNER/NAME/FILE`; or "", the archive that SimCSE's users download from the Hub.
    """
    source = source or HUB_ARCHIVE
    path = dataset_file(source) if source.startswith(DATASET_PREFIX) else Path(source).expanduser()
    if path.is_file():
        path = _unpacked(path)
    if not path.is_dir():
        raise UserError(
            f"--data={source}: there is no such folder (looked from {Path.cwd()}).\n"
            f"Give the folder of SentEval's data (with {', '.join(KNOWN_FOLDERS[:3])}, ... in it), a senteval.tar, or "
            "leave --data out to fetch it from the Hub."
        )
    level = [path]
    for _ in range(_LEVELS + 1):
        for folder in level:
            if any((folder / name).is_dir() for name in KNOWN_FOLDERS):
                return folder
        level = [inner for folder in level for inner in sorted(folder.iterdir()) if inner.is_dir()]
    raise UserError(
        f"--data={source} holds none of {', '.join(KNOWN_FOLDERS)}, nor does a folder in it.\n"
        "Give the folder of SentEval's data, e.g. senteval/downstream."
    )


def read_lines(path: Path, encoding: str = "utf-8") -> list[str]:
    """The file's lines without their ends; a byte order mark and a last, empty line are left out.

    UserError when the file is missing, or holds a byte that is not of this encoding (with its line).
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror or error}.\nThe folder given as --data lacks this file."
        ) from error
    try:
        text = content.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not {encoding.upper()}. Fetch the file again."
        ) from error
    # Not splitlines(), which also splits at characters that sentences contain (U+2028, U+0085).
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def _unpacked(archive: Path) -> Path:
    """The archive's content as a folder of the cache, unpacked there once."""
    digest = hashlib.blake2b(digest_size=16)
    with archive.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    folder = cache_folder("senteval") / digest.hexdigest()
    if folder.is_dir():
        return folder
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        with tarfile.open(archive) as content:
            content.extractall(partial, filter="data")
        with suppress(OSError):  # another process was first
            partial.rename(folder)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{archive} does not read as a tar archive: {error}. Fetch it again.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
