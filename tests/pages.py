"""Read the code blocks of the documentation's pages, for tests that run them word for word."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def blocks(page: str, language: str = "") -> list[str]:
    """Return the code blocks of a page ("docs/use.md") in that language; "" are shell commands."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        block
        for kind, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
        if kind == language
    ]


def shell_lines(page: str) -> list[str]:
    """Return the lines of a page's shell blocks, those that end in a backslash joined with the next."""
    return [line for block in blocks(page) for line in re.sub(r" *\\\n +", " ", block).splitlines()]


def commands(page: str, module: str = r"\w+") -> list[str]:
    """Return the commands `python -m simcse_jax.MODULE` of a page, without comments."""
    pattern = re.compile(rf"python -m simcse_jax\.{module} ")
    return [line.partition(" #")[0].strip() for line in shell_lines(page) if pattern.match(line)]
