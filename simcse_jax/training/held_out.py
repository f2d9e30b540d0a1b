"""Score a run on a part of its own training data, which it does not train on: `eval.data=heldout:500`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from simcse_jax.config.keys import split_list
from simcse_jax.config.schema import Config
from simcse_jax.data.held_out import read_held_out
from simcse_jax.evaluation.kinds import PAIRS, parse_task
from simcse_jax.evaluation.retrieval.data import Retrieval
from simcse_jax.evaluation.retrieval.from_text import PAIRS as ROWS
from simcse_jax.evaluation.retrieval.from_text import from_rows, halves, neighbours
from simcse_jax.system.errors import UserError
from simcse_jax.system.object_store import shown_path

PREFIX = "heldout:"
FOLDER = "heldout"  # of the run folder: the task, as evaluate --retrieval takes it


class HeldOutPart(NamedTuple):
    """Hold a task made of held-out text, and the texts that are not trained on."""

    task: Retrieval
    texts: Sequence[str]


def is_held_out(data: str) -> bool:
    """Return whether eval.data asks for a part of the training data."""
    return data.startswith(PREFIX)


def load_held_out_part(config: Config) -> HeldOutPart:
    """Return the part of data.files that eval.data asks for; UserError where it is too small or too large.

    What the task is follows from the data: sentences find their neighbours where there are documents, first texts
    their positives where rows have several columns, else first halves of texts their second halves.
    """
    given = config.eval.data.removeprefix(PREFIX)
    if not given.isdecimal() or int(given) < 2:
        raise UserError(
            f"eval.data = {config.eval.data!r}: {PREFIX} takes the number of documents or rows to hold out, "
            f"at least 2, such as {PREFIX}500."
        )
    if config.sources:
        raise UserError(
            f"eval.data = {config.eval.data!r} holds out a part of data.files, and this run has several sources.\nGive "
            "files that are no source, --config.eval.data=pairs.tsv, say, or none: --config.eval.data="
        )
    files, columns = split_list(config.data.files), split_list(config.data.columns)
    units, what = read_held_out(files, columns, int(given))
    name, rows = config.eval.data, [row for unit in units for row in unit]
    if len(rows[0]) > 1:
        task = from_rows(name, rows, ROWS)
    elif what == "documents":
        task = neighbours(name, [[text for (text,) in unit] for unit in units])
    else:
        task = halves(name, [text for (text,) in rows])
    return HeldOutPart(task, [text for row in rows for text in row if text.strip()])


def judged_task(data: str, workdir: Path | str) -> str:
    """Return the task of one's own that a finished run is judged on; data: its eval.data, workdir: its folder."""
    return f"retrieval:{shown_path(workdir, FOLDER)}" if is_held_out(data) else data


def judging_flag(data: str, workdir: Path | str) -> str:
    """Return the flag of `evaluate` that judges a run on a task that is no graded pairs; "" for other dev data."""
    kind, source = parse_task(judged_task(data, workdir))
    return f"--{kind}={source}" if data and kind != PAIRS else ""
