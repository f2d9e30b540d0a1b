"""Take the parameters of an encoder with adapters apart, put them together, and merge the adapters into the kernels.

Trained are the adapters and the heads, which are new or of another task; all else is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from simcse_jax.encoder.lora import DOWN, UP, Lora, merged

HEADS = ("head", "mlm")  # trained whole


def split_params(params: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return (trained, frozen): two trees that `join_params` makes one of again."""
    heads = {name: tree for name, tree in params.items() if name in HEADS}
    rest = {name: tree for name, tree in params.items() if name not in HEADS}
    return heads | _where(rest, True), _where(rest, False)


def _where(tree: Mapping[str, Any], is_factor: bool) -> dict[str, Any]:
    """Return the part of a tree that holds factors, or holds none, without branches that are empty."""
    found = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            value = _where(value, is_factor)
        elif (name in (DOWN, UP)) is not is_factor:
            continue
        if not isinstance(value, Mapping) or value:
            found[name] = value
    return found


def join_params(trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Return one tree with the arrays of both."""
    both = {name: join_params(trained[name], frozen[name]) for name in trained.keys() & frozen.keys()}
    joined = {**frozen, **trained, **both}
    return {name: joined[name] for name in sorted(joined)}


def is_frozen(names: tuple[str, ...]) -> bool:
    """Return whether the parameter under these names is frozen."""
    return names[-1] not in (DOWN, UP) and not {*names} & {*HEADS}


def merge_params(params: Mapping[str, Any], lora: Lora, xp: Any = jnp) -> dict[str, Any]:
    """Return the parameters of an encoder without adapters that computes the same; xp: as in `lora.merged`."""
    layers = {block: dict(parts) for block, parts in params["layers"].items()}
    for place, _ in lora.parts:
        block, name = place.split("/")
        dense = dict(layers[block][name])
        kernel = merged(dense["kernel"], dense.pop(DOWN), dense.pop(UP), lora.scale, xp)
        layers[block][name] = dense | {"kernel": kernel}
    return {**params, "layers": layers}
