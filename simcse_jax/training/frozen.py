"""Give a run that trains adapters its frozen parameters, and merge its adapters into them to judge it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from simcse_jax.encoder.adapted_params import join_params, merge_params, split_params
from simcse_jax.encoder.init import parameter_shapes
from simcse_jax.encoder.model import Encoder
from simcse_jax.model_folder.frozen_base import read_base
from simcse_jax.model_folder.run_folder import read_run_info
from simcse_jax.training.mesh import place, state_shardings
from simcse_jax.training.program import Program


def frozen_start(initial: Callable[[], Any], workdir: Path, resumes: bool) -> tuple[Callable[[], Any], Any]:
    """Return (a function that returns the trained parameters at the start, the frozen ones); call it at most once.

    initial: returns all of them, on the host. A run that resumes has the frozen ones in its folder: UserError where
    these are not what it began with.
    """
    if resumes:
        info = read_run_info(workdir)
        assert info is not None
        return lambda: split_params(initial())[0], read_base(workdir, info)
    trained, frozen = split_params(jax.device_get(initial()))
    return lambda: trained, frozen


def placed(program: Program, frozen: Any) -> tuple[Any, ...]:
    """Return what the program's steps take beside state and batch, on the devices; frozen: on the host, or None."""
    return tuple(place(frozen, jax.tree.map(lambda x: x.sharding, shapes)) for shapes in program.frozen)


def make_merge(encoder: Encoder, mesh: Mesh, frozen: tuple[Any, ...]) -> Callable[[Any], Any]:
    """Return a function from a run's trained parameters to those of an encoder without adapters.

    frozen: as of `placed`; without any, parameters are returned as they are.
    """
    lora = encoder.lora
    if lora is None:
        return lambda params: params

    def merge(params: Any, frozen: Any) -> Any:
        return merge_params(join_params(params, frozen), lora)

    shardings = state_shardings(mesh, parameter_shapes(encoder.clone(lora=None)))
    compiled = jax.jit(merge, out_shardings=shardings)
    return lambda params: compiled(params, *frozen)
