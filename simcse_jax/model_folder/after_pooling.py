"""Apply, read and write what a folder does to pooled vectors: sentence-transformers' modules after Pooling.

Each is a step that maps float32[N, I] to float32[N, O], on the host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simcse_jax.encoder.families.family import Tensors
from simcse_jax.model_folder.module_list import Module
from simcse_jax.model_folder.torch_activations import ACTIVATIONS
from simcse_jax.model_folder.weight_files import read_weights
from simcse_jax.system.errors import UserError
from simcse_jax.system.vectors import normalize

LAYER_NORM_EPSILON = 1e-5  # PyTorch's default, which the module always has
TOGETHER = 4096  # vectors that pass through the steps at once


@dataclasses.dataclass(frozen=True, eq=False)
class Dense:
    """Multiply by a kernel [I, O], add a bias [O], apply an activation; `residual` [I, O] adds x @ residual to that."""

    kernel: np.ndarray
    bias: np.ndarray | None
    activation: str  # a key of ACTIVATIONS
    residual: np.ndarray | None = None

    def __call__(self, x: np.ndarray) -> np.ndarray:
        out = ACTIVATIONS[self.activation].apply(x @ self.kernel + (0 if self.bias is None else self.bias))
        return out if self.residual is None else out + x @ self.residual

    def width(self, width: int) -> int:
        return self.kernel.shape[1]

    def written(self) -> tuple[dict[str, Any], Tensors]:
        places = {"Identity": "linear"}
        settings: dict[str, Any] = {
            "in_features": self.kernel.shape[0],
            "out_features": self.kernel.shape[1],
            "bias": self.bias is not None,
            "activation_function": f"torch.nn.modules.{places.get(self.activation, 'activation')}.{self.activation}",
        }
        tensors = {"linear.weight": np.ascontiguousarray(self.kernel.T)}
        if self.bias is not None:
            tensors["linear.bias"] = self.bias
        if self.residual is not None:
            settings["use_residual"] = True
            if self.kernel.shape[0] != self.kernel.shape[1]:
                tensors["residual.weight"] = np.ascontiguousarray(self.residual.T)
        return settings, tensors

    @classmethod
    def read(cls, module: Module, width: int) -> Dense:
        keys = ("in_features", "out_features", "bias", "activation_function", "use_residual")
        settings = module.settings((*keys, *_PLACES))
        _require_sentence(module, settings)
        name = str(settings.get("activation_function", "torch.nn.Tanh"))
        activation = name.split(".")[-1]
        if not name.startswith("torch.nn.") or activation not in ACTIVATIONS:
            raise UserError(
                f"{module.file}: activation_function = {name!r} is not supported.\nOf torch.nn these are: "
                f"{', '.join(ACTIVATIONS)}."
            )
        out = settings.get("out_features")
        if settings.get("in_features") != width or type(out) is not int:
            raise UserError(
                f"{module.file}: in_features = {settings.get('in_features')!r} and out_features = {out!r}, but the "
                f"vectors before it have {width} features.\nCopy the folder again from the model's source."
            )
        residual = bool(settings.get("use_residual"))
        wanted = {"linear.weight": (out, width)}
        wanted |= {"linear.bias": (out,)} if settings.get("bias", True) else {}
        wanted |= {"residual.weight": (out, width)} if residual and out != width else {}
        tensors = _tensors(module, wanted)
        same = np.eye(width, dtype=np.float32) if residual else None
        across = tensors["residual.weight"].T if "residual.weight" in tensors else same
        return cls(tensors["linear.weight"].T, tensors.get("linear.bias"), activation, across)


@dataclasses.dataclass(frozen=True, eq=False)
class LayerNorm:
    """Normalise the features of each vector to mean 0 and variance 1, then scale them and add a bias, both [D]."""

    scale: np.ndarray
    bias: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + LAYER_NORM_EPSILON)
        return unit * self.scale + self.bias

    def width(self, width: int) -> int:
        return width

    def written(self) -> tuple[dict[str, Any], Tensors]:
        return {"dimension": len(self.scale)}, {"norm.weight": self.scale, "norm.bias": self.bias}

    @classmethod
    def read(cls, module: Module, width: int) -> LayerNorm:
        settings = module.settings(("dimension",))
        if settings.get("dimension") != width:
            raise UserError(
                f"{module.file}: dimension = {settings.get('dimension')!r}, but the vectors before it have {width} "
                "features.\nCopy the folder again from the model's source."
            )
        tensors = _tensors(module, {"norm.weight": (width,), "norm.bias": (width,)})
        return cls(tensors["norm.weight"], tensors["norm.bias"])


@dataclasses.dataclass(frozen=True)
class Normalize:
    """Divide each vector by its length."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return normalize(x)

    def width(self, width: int) -> int:
        return width

    def written(self) -> tuple[dict[str, Any], Tensors]:
        return {}, {}

    @classmethod
    def read(cls, module: Module, width: int) -> Normalize:
        _require_sentence(module, module.settings(_PLACES))
        return cls()


@dataclasses.dataclass(frozen=True)
class Cut:
    """Keep the first features: truncate_dim of config_sentence_transformers.json, which comes last."""

    features: int

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x[:, : self.features]

    def width(self, width: int) -> int:
        return min(width, self.features)


Step = Dense | LayerNorm | Normalize | Cut
KINDS: dict[str, type[Dense | LayerNorm | Normalize]] = {"Dense": Dense, "LayerNorm": LayerNorm, "Normalize": Normalize}
_PLACES = ("module_input_name", "module_output_name")


def apply_steps(steps: Sequence[Step], vectors: np.ndarray) -> np.ndarray:
    """Return the vectors after these steps, float32[N, O] of float32[N, I]."""
    if not steps:
        return vectors
    out = np.empty((len(vectors), width_after(steps, vectors.shape[1])), np.float32)
    for start in range(0, len(vectors), TOGETHER):
        part = vectors[start : start + TOGETHER]
        for step in steps:
            part = step(part).astype(np.float32, copy=False)
        out[start : start + TOGETHER] = part
    return out


def cut_to(steps: Iterable[Step], features: int) -> tuple[Step, ...]:
    """Return the steps with their vectors cut to these first features, in place of any cut of their own."""
    return (*uncut(steps), Cut(features))


def uncut(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Return the steps without cuts."""
    return tuple(step for step in steps if not isinstance(step, Cut))


def width_after(steps: Iterable[Step], width: int) -> int:
    """Return the number of features after these steps, of vectors with `width` features."""
    for step in steps:
        width = step.width(width)
    return width


def as_pooled(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Return the steps without a Normalize at their end, which changes no cosine."""
    kept = [step for step in steps if not isinstance(step, Cut)]
    while kept and isinstance(kept[-1], Normalize):
        kept.pop()
    return (*kept, *(step for step in steps if isinstance(step, Cut)))


def arrays_of(steps: Iterable[Step]) -> dict[str, np.ndarray]:
    """Return what changes cosines in these steps, by place and name: their weights, and the widths of cuts."""
    found = {}
    for place, step in enumerate(as_pooled(tuple(steps))):
        tensors = {"features": np.array(step.features)} if isinstance(step, Cut) else step.written()[1]
        kind = f"{type(step).__name__}.{step.activation}" if isinstance(step, Dense) else type(step).__name__
        found |= {f"{place}.{kind}": np.zeros(0)} | {f"{place}.{kind}.{name}": tensors[name] for name in tensors}
    return found


def _require_sentence(module: Module, settings: dict[str, Any]) -> None:
    """Raise UserError unless the module maps sentence embeddings to sentence embeddings."""
    for key in _PLACES:
        if settings.get(key) not in (None, "sentence_embedding"):
            raise UserError(
                f"{module.file}: {key} = {settings[key]!r} is not supported; only 'sentence_embedding' is.\n"
                "Use the model with sentence-transformers."
            )


def _tensors(module: Module, wanted: dict[str, tuple[int, ...]]) -> Tensors:
    """Return the module's weights; UserError unless they are the wanted ones, by name and shape."""
    found = read_weights(module.folder)
    shapes = {name: array.shape for name, array in found.items()}
    if shapes != wanted:
        raise UserError(
            f"The weights in {module.folder} are {shapes}; {module.file} wants {wanted}.\n"
            "Copy the folder again from the model's source."
        )
    require_finite(module.folder, found)
    return found


def require_finite(folder: Path, tensors: Tensors) -> None:
    """Raise UserError if a weight is NaN or infinite."""
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise UserError(f"{folder}: the weights {name} hold NaN or infinity.\nTake an earlier checkpoint.")
