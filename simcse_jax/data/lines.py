"""Read the lines of text files, which may be compressed: UTF-8, of bounded length, and what else they may be, named."""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from simcse_jax.system.errors import UserError

COMPRESSIONS = (".gz", ".xz")
LONGEST_LINE = 2**24  # bytes; a small compressed file may hold a line of gigabytes
_OPENERS = {".gz": gzip.open, ".xz": lzma.open}
_UNPACK = {".gz": "zcat", ".xz": "xzcat"}
_MAGIC = {".gz": b"\x1f\x8b", ".xz": b"\xfd7zXZ\0"}  # the first bytes of compressed files


def text_lines(path: Path, name: str) -> Iterator[str]:
    """Yield the lines of a text file, which may be compressed; see `decode_lines`."""
    number = 0
    try:
        with _OPENERS.get(path.suffix.lower(), open)(path, "rb") as file:
            for line in decode_lines(_raw_lines(file, name, path), name, path):
                number += 1
                yield line
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        damaged = f"{name}, after line {number}: the compressed file is damaged or cut short ({error}). Fetch it again."
        raise UserError(_not_compressed(path, name) or damaged) from error
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}.") from error


def _not_compressed(path: Path, name: str) -> str:
    """Return what to do about a file that is not compressed as its suffix says; "" if it is."""
    suffix = path.suffix.lower()
    with open(path, "rb") as file:
        head = file.read(24)
    if head.startswith(_MAGIC[suffix]):
        return ""
    is_other = next((other for other, magic in _MAGIC.items() if head.startswith(magic)), "")
    right = path.with_suffix(is_other)
    return (
        f"{name} is not compressed as its suffix {suffix} says: it begins with {head!r}, not with {_MAGIC[suffix]!r}.\n"
        f"If that is {f'a {is_other} file' if is_other else 'its text'}, name it so (mv {path} {right}); else fetch it "
        "again."
    )


def _raw_lines(file: BinaryIO, name: str, path: Path) -> Iterator[bytes]:
    """Yield lines cut at newlines, or at carriage returns in a file without a newline, as old Macs write."""
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            raise UserError(
                f"{name}, line {number} has more than {LONGEST_LINE >> 20} MiB: lines of text are shorter.\nIf its "
                f"lines end in carriage returns: {_unpack(path)} | tr '\\r' '\\n' > {_fixed(path)}"
            )
        if number == 1 and b"\r" in line and not line.endswith(b"\n"):
            yield from line.splitlines(keepends=True)
        else:
            yield line


def decode_lines(file: Iterable[bytes], name: str, path: Path) -> Iterator[str]:
    """Decode lines of UTF-8, with their ends and without a byte order mark; UserError with the line of another byte.

    file: lines cut at newlines only, since U+2028 and U+0085 are text. path: the file that the message's advice names.
    """
    is_utf8 = False  # by a letter beyond ASCII in the lines so far
    for number, line in enumerate(file, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            place = f"byte 0x{error.object[error.start]:02x} at place {error.start + 1} of the line"
            advice = "The lines before it are UTF-8: correct this one." if is_utf8 else _advice(line, path)
            raise UserError(f"{name}, line {number}: not UTF-8 ({place}).\n{advice}") from error
        if number == 1 and "\0" in text:
            raise UserError(f"{name}, line 1: not UTF-8 (it holds zero bytes).\n{_advice(line, path)}")
        is_utf8 = is_utf8 or not text.isascii()
        yield text


def _advice(line: bytes, path: Path) -> str:
    """Return how to convert a file with this line, from the encodings in which it reads as text."""
    compressed = next((suffix for suffix, magic in _MAGIC.items() if line.startswith(magic)), "")
    if compressed:
        return f"It is compressed: mv {path} {path}{compressed}"
    readings = [(encoding, text) for encoding in _likely(line) if (text := _decoded(line, encoding))]
    if not readings:
        return "It reads as text in no encoding that is known here; is it a text file?"
    named = ", or ".join(f"{encoding} ({text.strip()[:40]!r})" for encoding, text in readings[:5])
    convert = f"{_unpack(path)} | iconv -f {readings[0][0]} -t utf-8 > {_fixed(path)}"
    return f"It reads as {named}.\nConvert it, if that is right: {convert}"


def _likely(line: bytes) -> tuple[str, ...]:
    """Return the encodings that a line may have, the likely ones first."""
    if line.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        return ("utf-32", "utf-16")
    if b"\0" in line:  # cut after the first byte of a newline of two or four, or after its last
        return ("utf-32le", "utf-16le") if len(line) % 2 else ("utf-32be", "utf-16be")
    several = ("gb18030", "big5", "shift_jis", "euc-kr")
    # In languages of Latin letters, few bytes are no ASCII; one byte a letter reads as almost anything.
    if sum(byte >= 0x80 for byte in line) < 0.3 * len(line):
        return ("cp1252", *several)
    return (*several, "utf-16le", "cp1251")


def _decoded(line: bytes, encoding: str) -> str:
    """Return the text of a line in an encoding; "" if it is none."""
    unit = {"utf-16": 2, "utf-32": 4}.get(encoding[:6], 1)
    line = line[: len(line) // unit * unit]  # it was cut at the first byte of a newline
    text = line.decode(encoding, "replace").rstrip("\r\n\0")
    return text if "\ufffd" not in text and text.replace("\t", " ").replace("\ufeff", "").isprintable() else ""


def _unpack(path: Path) -> str:
    return f"{_UNPACK.get(path.suffix.lower(), 'cat')} {path}"


def _fixed(path: Path) -> str:
    plain = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    return f"{plain.stem}.utf8{plain.suffix}"
