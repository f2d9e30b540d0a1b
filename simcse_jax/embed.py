"""Embed: `python -m simcse_jax.embed --model=RUN_OR_FOLDER_OR_HUB_NAME --input=FILE --out=vectors.parquet`.

Streams any number of sentences into a Parquet file of texts and vectors. The same command goes on where it was stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from absl import flags

from simcse_jax import cli
from simcse_jax.serving.vector_file import PART
from simcse_jax.system.errors import UserError

_MODEL = flags.DEFINE_string("model", "", "A run folder, an exported or Hugging Face folder, or a Hub name.")
_INPUT = flags.DEFINE_list("input", [], "Files of sentences: .txt (a sentence a line), .csv, .tsv, .jsonl, .parquet.")
_COLUMN = flags.DEFINE_string("column", "", "The column of text, where there are several.")
_OUT = flags.DEFINE_string("out", "", "The .parquet file to write.")
_STORAGE = flags.DEFINE_string("storage", "float32", "What a vector's numbers are stored as: float32 or float16.")
_NORMALIZE = flags.DEFINE_bool("normalize", True, "Vectors of length 1; --nonormalize: as pooled.")
_POOLER = flags.DEFINE_string("pooler", "", "Another pooler than the one that the model was made for.")
_DTYPE = flags.DEFINE_string("dtype", "float32", "Precision of the computation: float32 or bfloat16.")
_MAX_LENGTH = flags.DEFINE_integer("max_length", 128, "Tokens at which texts are cut.", lower_bound=3)


def main() -> None:
    """Embed as the flags say."""
    for name, given in (("model", _MODEL.value), ("input", _INPUT.value), ("out", _OUT.value)):
        if not given:
            raise UserError(
                f"--{name} is needed.\nFor example: --model=runs/unsup --input=sentences.txt --out=vectors.parquet"
            )
    out = Path(_OUT.value).expanduser()
    if out.suffix != ".parquet" or out.is_dir():
        raise UserError(f"--out={_OUT.value}: give the name of a .parquet file.")

    from tqdm import tqdm

    from simcse_jax.serving.corpus_texts import corpus_texts
    from simcse_jax.serving.model import SimCSE
    from simcse_jax.serving.vector_file import write_vectors
    from simcse_jax.system.compiled import keep_compiled

    keep_compiled()
    texts = corpus_texts(_INPUT.value, _COLUMN.value)
    model = SimCSE(_MODEL.value, _POOLER.value or None, _DTYPE.value, _MAX_LENGTH.value)
    about = {
        "model": model.encoder.name,
        "fingerprint": model.fingerprint,
        "normalized": _NORMALIZE.value,
        "precision": _DTYPE.value,
        "texts": texts.key(),
    }
    began = None
    with tqdm(unit=" sentences", desc="embedding", disable=not sys.stderr.isatty()) as bar:

        def progress(done: int) -> None:
            nonlocal began
            if began is None and done:
                bar.write(f"{done:,} texts are there already; going on after them", file=sys.stderr)
            elif began is not None and bar.disable:
                print(f"{done:,} texts", file=sys.stderr, flush=True)  # a sign of life in a log
            began = done if began is None else began
            bar.update(done - bar.n)

        def encode(part: list[str]) -> Any:
            return model.encode(part, normalize=_NORMALIZE.value)

        count = write_vectors(out, texts, encode, model.width, about, _STORAGE.value, progress)
    what = f"{out} ({count:,} texts and vectors of width {model.width}, {_STORAGE.value})"
    print(f"nothing to do, it is whole: {what}" if began is None else f"written: {what}")


if __name__ == "__main__":
    cli.run(main, interrupted=f"finished parts of {PART:,} texts are kept, and the same command goes on after them")
