"""SimCSE in JAX: train, judge and use sentence embeddings."""

from typing import TYPE_CHECKING

__all__ = ["SimCSE", "__version__"]
__version__ = "0.1.0"

if TYPE_CHECKING:
    from simcse_jax.serving.model import SimCSE
else:

    def __getattr__(name: str) -> object:
        """`from simcse_jax import SimCSE`, without loading JAX for those who import something else."""
        if name == "SimCSE":
            from simcse_jax.serving.model import SimCSE

            return SimCSE
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
