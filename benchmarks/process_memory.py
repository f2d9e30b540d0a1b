"""Read the memory of a process, as Linux counts it."""

from __future__ import annotations

from pathlib import Path


def resident(pid: int | str = "self") -> int:
    """Return the bytes that the process holds now."""
    return _bytes(pid, "VmRSS")


def own(pid: int | str = "self") -> int:
    """Return the resident bytes without pages of files, which the kernel can reclaim."""
    return _bytes(pid, "RssAnon")


def peak(pid: int | str = "self") -> int:
    """Return the most bytes that the process ever held; unlike `getrusage`, without those of its parent."""
    return _bytes(pid, "VmHWM")


def _bytes(pid: int | str, field: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
