"""Say what users should know and no error is, on a line of its own."""

import functools
import sys


@functools.cache
def note(text: str) -> None:
    """Print the text on standard error, once in a process."""
    print(f"NOTE: {text}", file=sys.stderr, flush=True)
