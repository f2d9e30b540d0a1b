"""Compare the accelerator with the CPU: embeddings, gradients, repeats; plain attention and fused.

    python -m benchmarks.device_parity --model=minilm --json=FILE

One batch of random packed sentences goes through an encoder with random weights, dropout on: the unsupervised loss and
the gradient of every parameter, in float64 on the CPU, and in float32 and bfloat16 on the first device, with plain
attention and, on a GPU, with the fused one. Reported, relative to the largest entry: embeddings without dropout,
gradients, and whether the same program run twice gives the same bits. Dropout drops the same elements everywhere.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.sizes import ENCODERS
from simcse_jax import cli
from simcse_jax.data.packing import fill, fit_groups
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.attention import GPUS, choose_attention
from simcse_jax.encoder.init import init_params
from simcse_jax.encoder.model import Encoder, embed
from simcse_jax.group import Group

FLAGS = flags.FLAGS

SENTENCES, LONGEST, ROW = 32, 48, 64
TEMPERATURE = 0.05


class Found(NamedTuple):
    """Hold what one way of computing gives, as float64 on the host."""

    embeddings: np.ndarray
    loss: float
    gradients: Any
    repeats: bool  # a second run gives the same bits


def batch(of: Architecture) -> Group:
    """Return one group of random sentences, stacked."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, LONGEST + 1, SENTENCES)
    tokens = [rng.integers(5, of.vocab_size, n).astype(np.int32) for n in lengths]
    slots = fit_groups(lengths[None], ROW)[0]
    group = fill(tokens, slots, np.arange(SENTENCES), (slots.used, ROW))
    return jax.tree.map(lambda x: jnp.asarray(x)[None], group)


def compute(of: Architecture, params: Any, dtype: str, attention: str, device: Any) -> Found:
    """Return embeddings, loss and gradients; params: as NumPy arrays of any float dtype."""
    stored = jnp.float64 if dtype == "float64" else jnp.float32
    attend = choose_attention(attention, of, dtype, device.platform)
    encoder = Encoder(of, jnp.dtype(dtype), stored, has_head=True, attend=attend, unroll=True)
    keys = jnp.arange(4, dtype=jnp.uint32).reshape(2, 2)

    def loss(params: Any, group: Group) -> jax.Array:
        anchors, positives = embed(encoder, params, group, "cls", keys)[:, 0]
        anchors, positives = (z / jnp.linalg.norm(z, axis=-1, keepdims=True) for z in (anchors, positives))
        return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(anchors @ positives.T / TEMPERATURE, axis=-1)))

    with jax.default_device(device), jax.default_matmul_precision("highest" if dtype != "bfloat16" else None):
        given = jax.tree.map(lambda x: jnp.asarray(x, stored), params), batch(of)
        encode = jax.jit(lambda params, group: embed(encoder, params, group, "avg")[0])
        step = jax.jit(jax.value_and_grad(loss))
        first, second = (jax.device_get((encode(*given), *step(*given))) for _ in range(2))
    same = jax.tree.leaves(jax.tree.map(np.array_equal, first, second))
    embeddings, value, gradients = jax.tree.map(lambda x: np.asarray(x, np.float64), first)
    return Found(embeddings, float(value), gradients, all(same))


def compare(of: Architecture, device: Any) -> list[dict[str, Any]]:
    """Return one line for each dtype and attention on this device, compared with float64 on the CPU."""
    cpu = jax.local_devices(backend="cpu")[0]
    params = jax.device_get(jax.jit(functools.partial(init_params, Encoder(of, has_head=True), 0))())
    with jax.enable_x64(True):
        exact = compute(of, params, "float64", "plain", cpu)
    ways = ("plain", "fused") if device.platform in GPUS else ("plain",)
    lines = []
    for dtype in ("float32", "bfloat16"):
        for attention in ways:
            found = compute(of, params, dtype, attention, device)
            largest = max(np.abs(g).max() for g in jax.tree.leaves(exact.gradients))
            gaps = jax.tree.map(lambda a, b: np.abs(a - b).max(), found.gradients, exact.gradients)
            gap = np.abs(found.embeddings - exact.embeddings).max() / np.abs(exact.embeddings).max()
            line = {"dtype": dtype, "attention": attention, "embeddings": float(gap)}
            line |= {"loss": abs(found.loss / exact.loss - 1), "gradients": float(max(jax.tree.leaves(gaps)) / largest)}
            lines.append(line | {"repeats bit for bit": found.repeats})
    return lines


def table(device: str, lines: list[dict[str, Any]]) -> list[str]:
    """Return the comparison as Markdown."""
    head = list(lines[0])
    cells = [[f"{x:.1e}" if isinstance(x, float) else str(x) for x in line.values()] for line in lines]
    rows = [head, ["---"] * len(head), *cells]
    return [f"{device} against float64 on the CPU", "", *(f"| {' | '.join(row)} |" for row in rows)]


def main() -> None:
    """Compare as the flags say."""
    device = jax.local_devices()[0]
    lines = compare(ENCODERS[FLAGS.model], device)
    print("\n".join(table(device.device_kind, lines)))
    if FLAGS.json:
        found = {"device": device.device_kind, "model": FLAGS.model, "jax": jax.__version__, "lines": lines}
        Path(FLAGS.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def define_flags() -> None:
    """Define the command's flags; only the command calls this, so that tests of other commands may import this file."""
    flags.DEFINE_enum("model", "minilm", list(ENCODERS), "Whose sizes; weights are random.")
    flags.DEFINE_string("json", "", "Write the figures there as well.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
