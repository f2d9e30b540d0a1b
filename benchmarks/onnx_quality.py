"""Measure the cost of ONNX and its int8 form on STS-B: `python -m benchmarks.onnx_quality --model=DIR --data=senteval`.

Converts the model, and scores three encoders on the same pairs: ours, onnx/model.onnx and onnx/model_int8.onnx
(Spearman x 100, dev and test). Also prints the cosine between each ONNX vector and ours, the size of the file, and the
seconds of one pass over all sentences sorted by length, 32 at a time; our side packs them, and its pass includes
compilation.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from simcse_jax import cli
from simcse_jax.embedding_model import open_model
from simcse_jax.evaluation.results import Encode
from simcse_jax.evaluation.senteval import senteval_folder
from simcse_jax.evaluation.sts import evaluate_pairs, load_sts
from simcse_jax.model_folder.export import convert
from simcse_jax.model_folder.onnx_export import FOLDER, MODEL, MODEL_INT8, TOKENIZER, require_onnx

FLAGS = flags.FLAGS

TASK, SPLITS = "STSBenchmark", ("dev", "test")
BATCH = 32


def onnx_encoder(folder: Path, name: str, max_length: int) -> Encode:
    """Return an `encode` function that runs that file of the folder with ONNX Runtime and `tokenizers` alone."""
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.enable_truncation(max_length)
    tokenizer.no_padding()
    session = onnxruntime.InferenceSession(str(folder / FOLDER / name), providers=["CPUExecutionProvider"])

    def encode(texts: Sequence[str]) -> np.ndarray:
        tokens = [encoded.ids for encoded in tokenizer.encode_batch(list(texts))]
        order = np.argsort([len(ids) for ids in tokens], kind="stable")
        parts = []
        for start in range(0, len(order), BATCH):
            some = [tokens[n] for n in order[start : start + BATCH]]
            ids = np.zeros((len(some), len(some[-1])), np.int64)  # the graph ignores ids of padding
            mask = np.zeros_like(ids)
            for row, sentence in enumerate(some):
                ids[row, : len(sentence)], mask[row, : len(sentence)] = sentence, 1
            (part,) = session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": mask})
            parts.append(part)
        vectors = np.concatenate(parts)
        vectors[order] = vectors.copy()
        return vectors

    return encode


def measure(model: str, data: str, folder: Path) -> list[dict[str, Any]]:
    """Return a row for each encoder. folder: where the converted model goes."""
    convert(model, folder, onnx=True, int8=True)
    ours = open_model(str(folder))
    sets = {split: load_sts(senteval_folder(data), TASK, split)[""] for split in SPLITS}
    texts = list(dict.fromkeys(text for pairs in sets.values() for text in (*pairs.first, *pairs.second)))
    places = {text: place for place, text in enumerate(texts)}
    encoders: dict[str, Encode] = {"ours, float32": lambda some: ours.encode(some, normalize=True)}
    encoders |= {name: onnx_encoder(folder, name, ours.max_length) for name in (MODEL, MODEL_INT8)}
    rows, exact = [], None
    for name, encode in encoders.items():
        start = time.perf_counter()
        vectors = encode(texts)
        seconds = time.perf_counter() - start
        exact = vectors if exact is None else exact
        cosines = np.sum(exact * vectors, axis=1)

        def known(some: Sequence[str], vectors: np.ndarray = vectors) -> np.ndarray:
            return vectors[[places[text] for text in some]]

        rows.append(
            {
                "encoder": name,
                **{split: evaluate_pairs(known, pairs)["spearman"] for split, pairs in sets.items()},
                "sentences": len(texts),
                "largest difference": float(np.abs(exact - vectors).max()),
                "mean cosine": float(cosines.mean()),
                "least cosine": float(cosines.min()),
                "seconds": seconds,
                "bytes": (folder / (name if name in (MODEL, MODEL_INT8) else "model.safetensors")).stat().st_size,
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return a table with a line for each encoder."""
    return [
        f"{'':<16}{'dev':>8}{'test':>8}   mean cosine   least   largest difference   MiB   seconds",
        *(
            f"{row['encoder']:<16}{row['dev']:>8.2f}{row['test']:>8.2f}{row['mean cosine']:>14.4f}"
            f"{row['least cosine']:>8.4f}{row['largest difference']:>21.1e}{row['bytes'] / 2**20:>6.0f}"
            f"{row['seconds']:>10.1f}"
            for row in rows
        ),
    ]


def define_flags() -> None:
    """Define the command's flags; only the command calls this, so that tests of other commands may import this file."""
    flags.DEFINE_string("model", None, "A model folder or Hub name.", required=True)
    flags.DEFINE_string("data", "", "SentEval's data: its folder or a senteval.tar. Default: fetched from the Hub.")
    flags.DEFINE_string("json", "", "Write the rows there as well.")


def main() -> None:
    """Measure as the flags say, and print the table."""
    require_onnx()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(FLAGS.model, FLAGS.data, Path(folder) / "model")
    print("\n".join(table(rows)))
    if FLAGS.json:
        Path(FLAGS.json).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
