"""Models' names where there is little room."""

from collections.abc import Sequence

LONGEST = 36  # characters of a name that a table has room for


def shown_names(names: Sequence[str], limit: int = LONGEST) -> list[str]:
    """The names as tables have them: as they are, or all of them shortened if one is long."""
    return list(names) if max(map(len, names), default=0) <= limit else short_names(names, limit)


def shortened(name: str, limit: int) -> str:
    """The name in one line of at most `limit` characters; its middle goes first, as names differ at the ends."""
    line = " ".join(name.split())
    tail = limit // 2
    return line if len(line) <= limit else f"{line[: limit - tail - 1]}…{line[-tail:]}"


def short_names(names: Sequence[str], limit: int) -> list[str]:
    """Every name without the folders that all of them share, and shortened; if two would look the same, numbered."""
    parts = [name.split("/") for name in names]
    fewest = min(map(len, parts), default=0) - 1 if len(names) > 1 else 0  # each keeps a part
    start = next((k for k in range(fewest) if len({own[k] for own in parts}) > 1), fewest)
    start = 0 if start == 1 and not parts[0][0] else start  # the root alone is no folder to leave out
    end = next((k for k in range(fewest - start) if len({own[-1 - k] for own in parts}) > 1), fewest - start)
    whole = ["/".join(own[start : len(own) - end]) for own in parts]
    short = [shortened(name, limit) for name in whole]
    if len(set(short)) < len(short):
        short = [f"{shortened(name, limit - 5)} ({number})" for number, name in enumerate(whole, 1)]
    return short
