"""Settle the layout of a run: mesh, group size, row length. It changes speed and memory, and no number."""

from __future__ import annotations

import dataclasses
import math

from simcse_jax.config.schema import Config, DataConfig, MeshConfig
from simcse_jax.system.errors import UserError

LARGEST_GROUP = 64
LONGEST_ROW = 512  # that packing chooses by itself
LARGEST_GROUP_TOKENS = LARGEST_GROUP * LONGEST_ROW  # of a group's longest sentences


def with_layout(config: Config, devices: int, processes: int) -> Config:
    """Return the config with its mesh and group size for `devices` visible devices of all `processes` together."""
    mesh = _resolve_mesh(config.mesh, devices, processes)
    examples = group_size(config.train.batch_size, mesh.devices, config.data.max_length)
    config = dataclasses.replace(config, mesh=mesh, group_size=examples)
    _check_groups_at_once(config)
    _check_row_length(config.data)
    return config


def with_batch_size(config: Config, size: int) -> Config:
    """Return the config with batches of this size, which its devices divide, and no more groups at a time."""
    examples = group_size(size, config.mesh.devices, config.data.max_length)
    at_once = config.train.groups_at_once and math.gcd(
        config.train.groups_at_once, size // config.mesh.devices // examples
    )
    train = dataclasses.replace(config.train, batch_size=size, groups_at_once=at_once)
    return dataclasses.replace(config, train=train, group_size=examples)


def row_length(data: DataConfig) -> int:
    """Return the tokens of a row: as configured; else max_length unpacked, and twice that (at most 512) when packed.

    Longer rows waste less padding, and their attention costs more; twice the longest sentence keeps both small.
    """
    if data.row_length or not data.packed:
        return data.row_length or data.max_length
    return max(min(2 * data.max_length, LONGEST_ROW), data.max_length)


def largest_group(max_length: int) -> int:
    """Return the most examples that a group may have: 64, or fewer where sentences of max_length tokens are long."""
    return max(min(LARGEST_GROUP, LARGEST_GROUP_TOKENS // max_length), 1)


def group_size(batch_size: int, devices: int, max_length: int) -> int:
    """Return the number of examples of a group: the largest that divides each device's share of the batch."""
    if batch_size % devices:
        below, above = batch_size // devices * devices, -(-batch_size // devices) * devices
        nearest = [str(n) for n in (below, above) if n >= 2]
        raise UserError(
            f"train.batch_size = {batch_size} does not divide over {devices} devices.\n"
            f"The nearest that do: {' and '.join(nearest)} (--config.train.batch_size={above}), or use fewer devices "
            "with --config.mesh.data."
        )
    share = batch_size // devices
    return max(size for size in range(1, min(share, largest_group(max_length)) + 1) if share % size == 0)


def _resolve_mesh(mesh: MeshConfig, visible: int, processes: int) -> MeshConfig:
    """Return the mesh with data = -1 replaced by the devices there are."""
    together = f" to {processes} processes, which all take part" if processes > 1 else ""
    if mesh.data == -1:
        if visible % mesh.fsdp:
            fits = max(n for n in range(1, mesh.fsdp + 1) if visible % n == 0)
            raise UserError(
                f"mesh.fsdp = {mesh.fsdp} does not divide the {visible} visible devices.\n"
                f"Use --config.mesh.fsdp={fits}."
            )
        return dataclasses.replace(mesh, data=visible // mesh.fsdp)
    if mesh.devices > visible or (processes > 1 and mesh.devices < visible):
        raise UserError(
            f"mesh.data x mesh.fsdp = {mesh.data} x {mesh.fsdp} = {mesh.devices} devices, and {visible} are visible"
            f"{together}.\n"
            "Use --config.mesh.data=-1 for all of them."
        )
    return mesh


def _check_groups_at_once(config: Config) -> None:
    at_once = config.train.groups_at_once
    groups = config.train.batch_size // config.mesh.devices // config.group_size
    if at_once and groups % at_once:
        fits = [str(n) for n in range(1, groups + 1) if groups % n == 0]
        raise UserError(
            f"train.groups_at_once = {at_once} does not divide the {groups} groups of {config.group_size} examples "
            f"that each device has.\nUse one of {', '.join(fits)}, or 0 for all at once."
        )


def _check_row_length(data: DataConfig) -> None:
    if data.row_length and data.row_length < data.max_length:
        raise UserError(
            f"data.row_length = {data.row_length} is shorter than data.max_length = {data.max_length}.\n"
            f"Use --config.data.row_length={data.max_length} or more, or 0 to have it chosen."
        )
