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
from simcse_jax.system.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from simcse_jax.system.progress import Bar

_MODEL = flags.DEFINE_string("model", "", "A run folder, an exported or Hugging Face folder, or a Hub name.")
_INPUT = flags.DEFINE_list("input", [], "Files of sentences: .txt (one per line), .csv, .tsv, .jsonl, .parquet.")
_COLUMN = flags.DEFINE_string("column", "", "The column of text, if a file has several.")
_OUT = flags.DEFINE_string("out", "", "The .parquet file to write.")
_STORAGE = flags.DEFINE_string("storage", "float32", "The type of stored vectors: float32 or float16.")
_NORMALIZE = flags.DEFINE_bool("normalize", True, "Scale vectors to length 1; --nonormalize leaves them as pooled.")
_POOLER = flags.DEFINE_string("pooler", "", "The pooler, if not the one that the model was trained for.")
_DTYPE = flags.DEFINE_string("dtype", "float32", "The precision of the computation: float32 or bfloat16.")
_PRODUCTS = flags.DEFINE_string(
    "products",
    "float32",
    "Factors of matrix products: float32; bfloat16 (rounded; fast on CPUs with matrix units); auto.",
)
_MAX_LENGTH = flags.DEFINE_integer(
    "max_length", None, "Tokens at which texts are cut. Default: 128, or the model's own limit if lower.", lower_bound=3
)
_TRUNCATE = flags.DEFINE_integer(
    "truncate_dim",
    None,
    "First features of a vector to keep, before it is scaled. Default: the folder's setting, or all.",
    lower_bound=1,
)
_PROMPT_NAME = flags.DEFINE_string("prompt_name", None, "The model's prompt that is put before each text, by its name.")
_PROMPT = flags.DEFINE_string("prompt", None, "What is put before each text, in place of the model's default prompt.")


def main() -> None:
    """Write the vectors, as the flags say."""
    for name, given in (("model", _MODEL.value), ("input", _INPUT.value), ("out", _OUT.value)):
        if not given:
            raise UserError(
                f"--{name} is needed.\nFor example: --model=runs/unsup --input=sentences.txt --out=vectors.parquet"
            )
    out = Path(_OUT.value).expanduser()
    if out.suffix != ".parquet" or out.is_dir():
        raise UserError(f"--out={_OUT.value} must be the name of a .parquet file.")

    from simcse_jax.data.texts import open_column
    from simcse_jax.serving.model import SimCSE
    from simcse_jax.serving.vector_file import write_vectors
    from simcse_jax.system.compiled import keep_compiled
    from simcse_jax.system.devices import start_devices
    from simcse_jax.system.progress import progress_bar

    start_devices()
    keep_compiled()
    texts = open_column(_INPUT.value, _COLUMN.value)
    how = (_POOLER.value or None, _DTYPE.value, _MAX_LENGTH.value, _PRODUCTS.value, _TRUNCATE.value)
    model = SimCSE(_MODEL.value, *how)
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

        def started(done: int) -> None:
            nonlocal bar
            if done:
                print(f"continuing after {done:,} finished texts", file=sys.stderr, flush=True)
            bar = stack.enter_context(progress_bar(None, what="embedding", unit="texts", done=done))

        def encode(part: list[str]) -> np.ndarray:
            return model.encoder.encode(part, None if bar is None else bar.update, _NORMALIZE.value, prompt)

        count = write_vectors(out, texts, encode, model.width, about, _STORAGE.value, started)
    what = f"{out} ({count:,} texts and vectors of width {model.width}, {_STORAGE.value})"
    print(f"already complete: {what}" if bar is None else f"written: {what}")
    if texts.left_out:
        print(
            f"left out: {texts.left_out:,} rows or lines without text, so row n of the file is not line n of the input"
        )


if __name__ == "__main__":
    cli.run(main, interrupted="finished parts are kept, and the same command continues after them")
