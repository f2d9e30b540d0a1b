"""Find SentEval's folder of evaluation data, and read its files as lines."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from contextlib import suppress
from pathlib import Path

from simcse_jax.data.lines import text_lines
from simcse_jax.system.cache import cache_folder
from simcse_jax.system.errors import UserError
from simcse_jax.system.hub import DATASET_PREFIX, dataset_file
from simcse_jax.system.mirror import local_path

HUB_ARCHIVE = "hf://datasets/princeton-nlp/datasets-for-simcse/senteval.tar"
KNOWN_FOLDERS = ("STS", "SICK", "MR", "CR", "SUBJ", "MPQA", "SST", "TREC", "MRPC")
_LEVELS = 3  # senteval.tar holds SentEval/data/downstream


def senteval_folder(source: str = "") -> Path:
    """Return the folder with STS/, SICK/, MR/ and the like, or some of them; UserError if there is none.

    source: that folder or one at most three levels above it; an archive with that layout (unpacked once, into the
    cache); `hf://datasets/OWNER/NAME/FILE`; or "" for the archive of the SimCSE paper, from the Hub.
    """
    source = source or HUB_ARCHIVE
    path = _fetched(source) if source.startswith(DATASET_PREFIX) else local_path(source)
    if path.is_file():
        path = _unpacked(path)
    if not path.is_dir():
        raise UserError(
            f"--data={source}: there is no such folder (relative to {Path.cwd()}).\n"
            f"Give SentEval's folder (with {', '.join(KNOWN_FOLDERS[:3])}, ... in it) or a senteval.tar, or leave out "
            "--data to download it from the Hub."
        )
    level = [path]
    for _ in range(_LEVELS + 1):
        for folder in level:
            if any((folder / name).is_dir() for name in KNOWN_FOLDERS):
                return folder
        level = [inner for folder in level for inner in sorted(folder.iterdir()) if inner.is_dir()]
    raise UserError(
        f"--data={source} has none of the folders {', '.join(KNOWN_FOLDERS)}, nor has a folder in it.\n"
        "Give SentEval's folder, for example senteval/downstream."
    )


def _fetched(source: str) -> Path:
    """Return the local copy of a Hub data set's file; UserError, naming --data, when it cannot be had."""
    try:
        return dataset_file(source)
    except UserError as error:
        raise UserError(f"{error}\nThis is about --data, which takes SentEval's folder or a senteval.tar.") from error


def read_lines(path: Path, encoding: str = "utf-8") -> list[str]:
    """Return the file's lines without their ends, without a byte order mark and an empty last line.

    Raises UserError when the file is missing or is not of this encoding.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist.\nThe folder given as --data lacks this file.")
    text = "".join(text_lines(path, str(path))) if encoding == "utf-8" else path.read_bytes().decode(encoding)
    # Not splitlines(), which also splits at characters that sentences contain (U+2028, U+0085).
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def _unpacked(archive: Path) -> Path:
    """Return the folder of the cache with the archive's content, and unpack it there the first time."""
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    folder = cache_folder("senteval") / digest
    if folder.is_dir():
        return folder
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        with tarfile.open(archive) as content:
            content.extractall(partial, filter="data")
        with suppress(OSError):  # where another process was first
            partial.rename(folder)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{archive} is not a readable tar archive: {error}. Download it again.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
