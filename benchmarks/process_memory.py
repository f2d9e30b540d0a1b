"""The memory of a process, as Linux counts it."""

from __future__ import annotations

from pathlib import Path


def resident(pid: int | str = "self") -> int:
    """Bytes that the process holds now."""
    return _bytes(pid, "VmRSS")


def own(pid: int | str = "self") -> int:
    """Those of them that are not pages of files, which the kernel takes from a process as others need the room."""
    return _bytes(pid, "RssAnon")


def peak(pid: int | str = "self") -> int:
    """The most bytes that it held since it began; unlike `getrusage`, this does not count what its parent held."""
    return _bytes(pid, "VmHWM")


def _bytes(pid: int | str, field: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
