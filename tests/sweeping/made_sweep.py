"""Make plans, and jobs whose commands are lines of shell, for sweeps without training."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from simcse_jax.sweeping.jobs import Command, Job
from simcse_jax.sweeping.plan import Judging, PlanRow, SweepPlan, make_plan


def demo_plan(rows: Mapping[str, dict[str, str]], seeds: tuple[int, ...] = (0, 1), **judging: str) -> SweepPlan:
    """Return a checked plan of configs/demo.py."""
    return make_plan("configs/demo.py", rows, {}, seeds, Judging(**judging))  # pyright: ignore[reportArgumentType]


@dataclasses.dataclass(frozen=True)
class ShellJob(Job):
    """Hold a job whose commands are lines of shell, run in its folder, which the first of them makes."""

    lines: tuple[str, ...] = ()

    @property
    def commands(self) -> list[Command]:
        make = f"mkdir -p {self.run} && cd {self.run} && "
        return [
            Command(f"step{number}", ["bash", "-c", make + line], self.run / f"mark{number}", f"{number}")
            for number, line in enumerate(self.lines)
        ]


def shell_job(folder: Path, seed: int, *lines: str, drop: tuple[str, ...] = ()) -> ShellJob:
    row = PlanRow("row", "row", {}, {}, (seed,))
    return ShellJob("configs/demo.py", row, seed, folder / "row" / f"seed-{seed}", Judging(), drop, lines)
