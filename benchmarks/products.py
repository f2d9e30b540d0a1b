"""Measure products of bfloat16 on this CPU: rates of their forms, training and encoding beside PyTorch, in one command.

    python -m benchmarks.products                                     # rates alone: half a minute
    python -m benchmarks.products --data=sentences.txt --tokenizer=DIR --model=DIR --json=FILE

The first table gives GFLOP/s of each way to write a product, at the sizes of a MiniLM's layer; those of
`simcse_jax.encoder.products` are marked. With --data and --tokenizer, `benchmarks.train_speed` runs with float32 and
with bfloat16 products, each beside PyTorch in float32 and with autocast; with --model, `benchmarks.encode_speed` does
so beside sentence-transformers. Whether `products="auto"` takes them on this processor is printed too.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jax import lax

from benchmarks import encode_speed, train_speed
from benchmarks.sizes import ENCODERS, SIZES
from benchmarks.train_work import Work
from simcse_jax import cli
from simcse_jax.data.texts import open_column
from simcse_jax.encoder.products import HALF, product, resolve_products, times, times_rows, transposed

FLAGS = flags.FLAGS
# Tokens of a step, and the two widths of a MiniLM's feed-forward layer; heads of its attention, tokens and width.
TOKENS, WIDTH, INNER = 1472, 384, 1536
ROWS, HEADS, LENGTH, SIZE = 23, 12, 64, 32
CALLS = 15
KINDS = ("float32", "bfloat16")

Form = tuple[Callable[..., Any], Any, tuple[int, ...], tuple[int, ...]]


def _first_axes(x: jax.Array, g: jax.Array) -> jax.Array:
    return lax.dot_general(x, g, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


FORMS: dict[str, Form] = {
    "float32": (jnp.matmul, jnp.float32, (TOKENS, WIDTH), (WIDTH, INNER)),
    "bfloat16 -> bfloat16": (jnp.matmul, HALF, (TOKENS, WIDTH), (WIDTH, INNER)),
    "bfloat16 -> float32, x w (ours)": (times, HALF, (TOKENS, WIDTH), (WIDTH, INNER)),
    "bfloat16 -> float32, g w, last axes (ours)": (times_rows, HALF, (TOKENS, INNER), (WIDTH, INNER)),
    "bfloat16 -> float32, x g, first axes": (_first_axes, HALF, (TOKENS, WIDTH), (TOKENS, INNER)),
    "the same, of a transposed copy (ours)": (
        lambda x, g: times(transposed(x), g),
        HALF,
        (TOKENS, WIDTH),
        (TOKENS, INNER),
    ),
    "float32 factors, rounded within (ours)": (product, jnp.float32, (TOKENS, WIDTH), (WIDTH, INNER)),
    "attention's scores, float32": (
        lambda q, k: jnp.einsum("bhtd,bhsd->bhts", q, k),
        jnp.float32,
        (ROWS, HEADS, LENGTH, SIZE),
        (ROWS, HEADS, LENGTH, SIZE),
    ),
    "attention's scores, bfloat16 -> float32 (ours)": (
        times_rows,
        HALF,
        (ROWS, HEADS, LENGTH, SIZE),
        (ROWS, HEADS, LENGTH, SIZE),
    ),
    "attention's context, bfloat16 -> float32 (ours)": (
        times,
        HALF,
        (ROWS, HEADS, LENGTH, LENGTH),
        (ROWS, HEADS, LENGTH, SIZE),
    ),
}


def flops(form: Form) -> int:
    """Return the multiplications and additions of a form."""
    function, dtype, left, right = form
    out = jax.eval_shape(function, *(jax.ShapeDtypeStruct(shape, dtype) for shape in (left, right)))
    contracted = left[-1] if out.shape[-2] == left[-2] else left[0]
    return 2 * out.size * contracted


def rate(form: Form) -> float:
    """Return FLOP/s of a form, by the median of some calls."""
    function, dtype, left, right = form
    arrays = [jax.random.normal(jax.random.key(n), shape, dtype) for n, shape in enumerate((left, right))]
    run = jax.jit(function)
    run(*arrays).block_until_ready()  # compiles
    seconds = []
    for _ in range(CALLS):
        start = time.perf_counter()
        run(*arrays).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return flops(form) / statistics.median(seconds)


def training(data: str, tokenizer: str, model: str, rounds: int) -> dict[str, Any]:
    """Return `train_speed`'s results for each kind of products, beside PyTorch in float32 and with autocast."""
    found = {}
    for products in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            steps = train_speed.WARM_UP_STEPS + rounds
            work = Work(
                Path(folder),
                data,
                str(Path(tokenizer).absolute()),
                ENCODERS[model],
                64,
                32,
                "float32",
                max(steps, train_speed.CHECKED_STEPS),
                products=products,
            )
            found[products] = train_speed.measure(work, ["torch", "torch-autocast"], 1, rounds)
    return found


def define_flags() -> None:
    """Define the command's flags; only the command calls this, so that tests of other commands may import this file."""
    flags.DEFINE_string("data", "", "Sentences to train on and to encode; without it, only rates are measured.")
    flags.DEFINE_string("tokenizer", "", "A folder with the tokenizer, such as that of bert-base-uncased.")
    flags.DEFINE_enum("size", "minilm", list(SIZES), "Whose sizes to train.")
    flags.DEFINE_string("model", "", "A model folder to encode with, which sentence-transformers reads too.")
    flags.DEFINE_integer("rounds", 10, "Steps of each side.", lower_bound=1)
    flags.DEFINE_integer("sentences", 5000, "Sentences to encode.", lower_bound=10)
    flags.DEFINE_string("json", "", "Write the figures there as well.")


def main() -> None:
    """Measure as the flags say, and print the tables."""
    auto = resolve_products("auto", "float32", jax.devices()[0].platform, "products")
    print(f"products=auto is {auto} on this machine\n")
    found: dict[str, Any] = {"auto": auto, "FLOP/s": {}}
    for name, form in FORMS.items():
        found["FLOP/s"][name] = rate(form)
        print(f"{name:50} {found['FLOP/s'][name] / 1e9:8,.0f} GFLOP/s", flush=True)
    if FLAGS.data and FLAGS.tokenizer:
        found["training"] = training(FLAGS.data, FLAGS.tokenizer, FLAGS.size, FLAGS.rounds)
        for products, figures in found["training"].items():
            print(f"\ntraining, {FLAGS.size}, batch 64, products of {products}\n")
            print("\n".join(train_speed.table(figures)))
    if FLAGS.data and FLAGS.model:
        texts = encode_speed.distinct(list(open_column([FLAGS.data])), FLAGS.sentences)
        parts = [texts[n::5] for n in range(5)]
        found["encoding"] = {products: encode_speed.measure(FLAGS.model, parts, [32], products) for products in KINDS}
        for products, figures in found["encoding"].items():
            print(f"\nencoding, products of {products}")
            print("\n".join(encode_speed.table(figures)))
    if FLAGS.json:
        Path(FLAGS.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
