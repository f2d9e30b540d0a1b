"""No column of a printed table is lost, however narrow the terminal."""

import io

import pytest
from rich.console import Console

from simcse_jax.system.terminal_table import print_table

NAME, FIGURE = f"models/{'x' * 60}", "66.74 ± 0.12"


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("count", [1, 7])
def test_every_name_and_figure_is_printed_whole(is_terminal: bool, count: int) -> None:
    file = io.StringIO()
    console = Console(width=70, file=file, force_terminal=is_terminal, no_color=True, soft_wrap=True)
    columns = ["Model", *(f"STS{number}\nall" for number in range(count))]
    print_table(console, "Similarity", columns, [[NAME, *[FIGURE] * count], ["b", *["1.00"] * count]], 0)
    lines = file.getvalue().splitlines()
    assert file.getvalue().count(FIGURE) == count
    assert all(f"STS{number}" in file.getvalue() for number in range(count))
    first = [line.replace("\x1b[1m", "").replace("\x1b[0m", "").split("  ")[0].strip() for line in lines]
    assert NAME in "".join(first)
    assert (NAME in first) is not is_terminal, "names are folded on a narrow terminal alone"
