"""Measure the device's best rate of multiplication: one large square product, by each framework asked for."""

from __future__ import annotations

import time
from collections.abc import Callable

ON_CPU, ON_CHIPS = 2048, 8192  # rows: much arithmetic a byte, and quick
REPEATS = 3

Product = tuple[Callable[[], object], int]  # a function that multiplies and waits for the result; rows


class Products:
    """Multiply square matrices in `dtype`, "float32" (full precision) or "bfloat16"."""

    def __init__(self, dtype: str, frameworks: list[str]):
        """Compile and warm up; frameworks: "jax", "torch" or both."""
        makers = {"jax": _jax_product, "torch": _torch_product}
        self.products: dict[str, Product] = {name: makers[name](dtype) for name in frameworks}
        self.rates()  # compiles and warms up

    def rates(self) -> dict[str, float]:
        """Return FLOP/s by framework, of the fastest of a few products."""
        return {
            name: max(_rate(multiply, rows) for _ in range(REPEATS)) for name, (multiply, rows) in self.products.items()
        }


def _rate(multiply: Callable[[], object], rows: int) -> float:
    start = time.perf_counter()
    multiply()
    return 2 * rows**3 / (time.perf_counter() - start)


def _jax_product(dtype: str) -> Product:
    import jax

    rows = ON_CPU if jax.default_backend() == "cpu" else ON_CHIPS
    x = jax.random.normal(jax.random.key(0), (rows, rows), dtype)
    multiply = jax.jit(lambda x: jax.numpy.matmul(x, x, precision="highest" if dtype == "float32" else None))
    return lambda: jax.block_until_ready(multiply(x)), rows


def _torch_product(dtype: str) -> Product:
    import torch

    on_gpu = torch.cuda.is_available()
    rows = ON_CHIPS if on_gpu else ON_CPU
    x = torch.randn(rows, rows, dtype=getattr(torch, dtype), device="cuda" if on_gpu else "cpu")

    def multiply() -> None:
        torch.matmul(x, x)
        if on_gpu:
            torch.cuda.synchronize()

    return multiply, rows
