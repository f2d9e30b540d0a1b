"""Shipping a model: trained, exported and embedded by the commands, then read by the libraries of others.

They get our vectors from the exported folder and from the Parquet file, and find what our search finds.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer

from simcse_jax import SimCSE
from simcse_jax.data import demo
from tests.small_models import demo_files
from tests.torch_models import torch_embeddings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
WIDTH = 32
TOP_K = 5
TOLERANCE = 1e-5  # of vectors of length 1, in float32
MAX_LENGTH = 512  # what the model takes; others cut there, `SimCSE` and `embed` at 128 unless told
# Every text once, so that a hit can be known by its text; some that tokenizers trip over, and one of over 128 tokens.
TEXTS = [*dict.fromkeys(demo.sentences(count=300)), "None", "Ünïcödé — 한국어", "?!", "a man plays guitar " * 20]
QUERIES = demo.sentences(seed=1, count=40)


def run(module: str, *flags: str) -> None:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiles in half the time
    }
    done = subprocess.run(
        [sys.executable, "-m", f"simcse_jax.{module}", *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a trained run, its export with ONNX in `model`, and the vectors of TEXTS in `vectors.parquet`."""
    place = tmp_path_factory.mktemp("ship")
    (place / "sentences.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    run(
        "train",
        *(
            "--config=configs/demo.py:scratch",
            f"--workdir={place / 'run'}",
            f"--config.data.cache_dir={place / 'cache'}",
        ),
        *(f"--config.data.files={demo_files() / 'sentences.txt'}", f"--config.eval.data={demo_files() / 'dev.tsv'}"),
        *(f"--config.model.hidden_size={WIDTH}", "--config.model.intermediate_size=64"),
        *("--config.model.vocab_size=300", "--config.train.steps=20", "--config.optimizer.warmup_steps=2"),
        *("--config.eval.every_steps=10", "--config.checkpoint.every_steps=10"),
        "--config.data.packed=False",  # one shape to compile
    )
    run("export", f"--workdir={place / 'run'}", f"--out={place / 'model'}", "--onnx")
    run(
        "embed",
        f"--model={place / 'model'}",
        f"--input={place / 'sentences.txt'}",
        f"--out={place / 'vectors.parquet'}",
        f"--max_length={MAX_LENGTH}",
    )
    return place


@pytest.fixture(scope="module")
def model(place: Path) -> SimCSE:
    """Open the run, with an index of TEXTS."""
    model = SimCSE(place / "run", max_length=MAX_LENGTH)
    assert model.count_tokens(TEXTS).max() > 128
    model.build_index(TEXTS)
    return model


def unit(vectors: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(vectors, dim=1).numpy()


def by_our_export(folder: Path, texts: list[str]) -> np.ndarray:
    return SimCSE(folder, max_length=MAX_LENGTH).encode(texts)


def by_transformers(folder: Path, texts: list[str]) -> np.ndarray:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return unit(torch_embeddings(model, batch["input_ids"], batch["attention_mask"], "avg"))


def by_sentence_transformers(folder: Path, texts: list[str]) -> np.ndarray:
    return SentenceTransformer(str(folder), device="cpu").encode(texts, normalize_embeddings=True)


def by_onnxruntime(folder: Path, texts: list[str]) -> np.ndarray:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="np")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    inputs = {name: batch[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
    return np.asarray(session.run(["sentence_embedding"], inputs)[0])


Encode = Callable[[Path, list[str]], np.ndarray]
READERS: list[Encode] = [by_our_export, by_transformers, by_sentence_transformers, by_onnxruntime]


@pytest.mark.parametrize("encode", READERS, ids=lambda encode: encode.__name__)
def test_whoever_loads_the_folder_has_our_vectors(place: Path, model: SimCSE, encode: Encode) -> None:
    np.testing.assert_allclose(encode(place / "model", TEXTS), model.encode(TEXTS), rtol=0, atol=TOLERANCE)


def test_whoever_reads_the_parquet_file_has_our_vectors(place: Path, model: SimCSE) -> None:
    rows = duckdb.execute("select text, vector from read_parquet(?)", [str(place / "vectors.parquet")]).fetchall()
    assert [text for text, _ in rows] == TEXTS
    vectors = np.array([vector for _, vector in rows], np.float32)
    np.testing.assert_allclose(vectors, model.encode(TEXTS), rtol=0, atol=TOLERANCE)


def test_a_database_finds_what_our_search_finds(place: Path, model: SimCSE) -> None:
    scores = np.sort(model.similarity(QUERIES, TEXTS), axis=1)[:, : -TOP_K - 2 : -1]
    clear = np.diff(-scores, axis=1).min(axis=1) > 10 * TOLERANCE  # equal scores may come in any order
    queries = [query for query, is_clear in zip(QUERIES, clear, strict=True) if is_clear]
    assert len(queries) >= 10
    for query, hits in zip(by_onnxruntime(place / "model", queries), model.search(queries, top_k=TOP_K), strict=True):
        found = duckdb.execute(
            f"select text from read_parquet($file) "
            f"order by array_cosine_similarity(vector::float[{WIDTH}], $query::float[{WIDTH}]) desc limit {TOP_K}",
            {"file": str(place / "vectors.parquet"), "query": query.tolist()},
        ).fetchall()
        assert [text for (text,) in found] == [hit.text for hit in hits]
