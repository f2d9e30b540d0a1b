"""Embed sentences: `python -m simcse_jax.embed --model=RUN_OR_FOLDER_OR_HUB_NAME --input=FILE --out=vectors.parquet`.

Writes any number of sentences and their vectors to a Parquet file. If stopped, the same command continues.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from simcse_jax import cli
from simcse_jax.serving import model_flags
from simcse_jax.serving.model_flags import MODEL
from simcse_jax.system.errors import UserError
from simcse_jax.system.mirror import written
from simcse_jax.system.object_store import place_of

if TYPE_CHECKING:
    import numpy as np

    from simcse_jax.system.progress import Bar

flags.adopt_module_key_flags(model_flags)  # --help shows them
_INPUT = flags.DEFINE_list("input", [], "Files of sentences: .txt (one per line), .csv, .tsv, .jsonl, .parquet.")
_COLUMN = flags.DEFINE_string("column", "", "The column of text, if a file has several.")
_OUT = flags.DEFINE_string("out", "", "The .parquet file to write.")
_STORAGE = flags.DEFINE_string("storage", "float32", "The type of stored vectors: float32 or float16.")
_NORMALIZE = flags.DEFINE_bool("normalize", True, "Scale vectors to length 1; --nonormalize leaves them as pooled.")
_PROMPT_NAME = flags.DEFINE_string("prompt_name", None, "The model's prompt that is put before each text, by its name.")
_PROMPT = flags.DEFINE_string("prompt", None, "What is put before each text, in place of the model's default prompt.")


def main() -> None:
    """Write the vectors, as the flags say."""
    for name, given in (("model", MODEL.value), ("input", _INPUT.value), ("out", _OUT.value)):
        if not given:
            raise UserError(
                f"--{name} is needed.\nFor example: --model=runs/unsup --input=sentences.txt --out=vectors.parquet"
            )
    if Path(_OUT.value).suffix != ".parquet" or Path(_OUT.value).expanduser().is_dir():
        raise UserError(f"--out={_OUT.value} must be the name of a .parquet file.")

    from simcse_jax.data.texts import open_column
    from simcse_jax.serving.vector_file import write_vectors
    from simcse_jax.system.progress import progress_bar

    texts = open_column(_INPUT.value, _COLUMN.value)
    model = model_flags.open_simcse()
    prompt = model.encoder.prompt(_PROMPT_NAME.value, _PROMPT.value)
    about = {
        "model": model.encoder.name,
        "fingerprint": model.fingerprint,
        "normalized": _NORMALIZE.value,
        "precision": model.encoder.precision,
        "texts": texts.key(),
    } | ({} if prompt is None else {"prompt": prompt})
    bar: Bar | None = None
    with ExitStack() as stack:
        out = stack.enter_context(written(_OUT.value))

        def started(done: int) -> None:
            nonlocal bar
            if done:
                print(f"continuing after {done:,} finished texts", file=sys.stderr, flush=True)
            bar = stack.enter_context(progress_bar(None, what="embedding", unit="texts", done=done))

        def encode(part: list[str]) -> np.ndarray:
            return model.encoder.encode(part, None if bar is None else bar.update, _NORMALIZE.value, prompt)

        count = write_vectors(out, texts, encode, model.width, about, _STORAGE.value, started)
    what = f"{place_of(_OUT.value)} ({count:,} texts and vectors of width {model.width}, {_STORAGE.value})"
    print(f"already complete: {what}" if bar is None else f"written: {what}")
    if texts.left_out:
        print(
            f"left out: {texts.left_out:,} rows or lines without text, so row n of the file is not line n of the input"
        )


if __name__ == "__main__":
    cli.run(main, interrupted="finished parts are kept, and the same command continues after them")
