"""Read texts and their vectors from the Parquet files that `embed` writes, a block at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from simcse_jax.data.readers import open_parquet
from simcse_jax.data.text_vectors import Missing
from simcse_jax.system.errors import UserError
from simcse_jax.system.mirror import local_path
from simcse_jax.system.whole_file import checksum

SUFFIX = ".parquet"
_BLOCK = 16384


class VectorFiles:
    """Give texts the vectors that files hold in their columns `text` and `vector`; a `VectorSource`."""

    def __init__(self, names: Sequence[str]):
        """Read the files' schemas; UserError where there is no such column, or where widths differ."""
        self.name = ", ".join(names)
        self._paths = [local_path(name) for name in names]
        widths = [_width(path) for path in self._paths]
        self.width = widths[0]
        if len(set(widths)) > 1:
            raise UserError(
                f"{self.name}: their vectors are of widths {', '.join(map(str, widths))}.\nGive files of one model."
            )

    @property
    def fingerprint(self) -> str:
        """Return a hex digest of the files' content."""
        sums = [str(checksum(path)["blake2b"]) for path in self._paths]
        return sums[0] if len(sums) == 1 else hashlib.blake2b(" ".join(sums).encode(), digest_size=16).hexdigest()

    def blocks(self, missing: Missing) -> Iterator[tuple[list[str], np.ndarray]]:
        """Yield texts that are missing, and their vectors float[n, width]."""
        for path in self._paths:
            with open_parquet(path, str(path)) as file:
                for batch in file.iter_batches(columns=["text", "vector"], batch_size=_BLOCK):
                    if batch.column("text").null_count or batch.column("vector").null_count:
                        raise UserError(f"{path} has rows without a text or a vector.\nRemove them, or embed again.")
                    texts = batch.column("text").to_pylist()
                    chosen = np.flatnonzero(missing(texts))
                    if not len(chosen):
                        continue
                    flat = batch.column("vector").flatten().to_numpy(zero_copy_only=False)
                    yield [texts[n] for n in chosen], flat.reshape(len(texts), self.width)[chosen]


def _width(path: Path) -> int:
    """Return the width of a file's vectors; UserError where it holds none."""
    import pyarrow.types as types

    if not path.is_file():
        raise UserError(f"There is no file {path}.\n`embed --input=FILE --out=vectors.parquet` writes one.")
    with open_parquet(path, str(path)) as file:
        schema = file.schema_arrow
    kinds = {field.name: field.type for field in schema}
    if not {"text", "vector"} <= kinds.keys() or not types.is_fixed_size_list(kinds["vector"]):
        raise UserError(
            f"{path} has no columns `text` and `vector` as `embed` writes them; it has {', '.join(schema.names)}.\n"
            "`embed --input=FILE --out=vectors.parquet` writes such a file."
        )
    return kinds["vector"].list_size
