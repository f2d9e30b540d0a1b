"""SimCSE in JAX: train, judge and use sentence embeddings."""

from typing import TYPE_CHECKING

__all__ = ["SimCSE", "__version__", "fit"]
__version__ = "0.1.0"

if TYPE_CHECKING:
    from simcse_jax.fitting.fit import fit
    from simcse_jax.serving.model import SimCSE
else:

    def __getattr__(name: str) -> object:
        """`from simcse_jax import SimCSE, fit`, without loading JAX for those who import something else."""
        if name == "SimCSE":
            from simcse_jax.serving.model import SimCSE

            return SimCSE
        if name == "fit":
            from simcse_jax.fitting.fit import fit

            return fit
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
