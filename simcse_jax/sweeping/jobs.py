"""Jobs: one row with one seed, as the commands that train and judge it, and what says that they are done."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

from simcse_jax.config.recipe import override_flags
from simcse_jax.evaluation.record import SCORES
from simcse_jax.sweeping.plan import SEED, Judging, Plan, Row
from simcse_jax.system.errors import UserError

# What is left of a finished run's folder, and what is deleted.
KEEP = {"all": (), "model": ("checkpoints",), "scores": ("checkpoints", "model")}


class Step(NamedTuple):
    """One command of a job. It is done once `mark` holds `digest`, which is written only after it has ended well."""

    name: str
    command: list[str]
    mark: Path
    digest: str

    @property
    def done(self) -> bool:
        try:
            return self.mark.read_text(encoding="utf-8").strip() == self.digest
        except OSError:
            return False

    def record(self) -> None:
        """Mark it as done."""
        self.mark.write_text(f"{self.digest}\n", encoding="utf-8")

    @property
    def line(self) -> str:
        """The same in a shell: nothing where it is done, else the command, and the mark after it."""
        mark = shlex.quote(str(self.mark))
        command = shlex.join(self.command)
        return f"{{ grep -qsx {self.digest} {mark} || {{ {command} && echo {self.digest} > {mark}; }}; }}"


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    recipe: str
    row: Row
    seed: int
    run: Path  # its run folder
    judging: Judging
    drop: tuple[str, ...] = ()  # folders of the run folder that are deleted when all is done

    @property
    def name(self) -> str:
        return f"{self.row.label}, seed {self.seed}"

    @property
    def log(self) -> Path:
        return self.run.with_name(f"{self.run.name}.log")

    @property
    def evaluation(self) -> Path:
        """The folder that `evaluate` writes."""
        return self.run / "evaluation"

    @property
    def scores(self) -> Path:
        """What `evaluate` found, once it is judged."""
        return self.evaluation / SCORES

    @property
    def steps(self) -> list[Step]:
        """What has to be done, in order."""
        digest = _digest([self.row.meaning, self.seed])
        flags = [*override_flags(self.row.overrides), f"--config.{SEED}={self.seed}"]
        train = _module("train", f"--config={self.recipe}", f"--workdir={self.run}", *flags)
        steps = [Step("train", train, self.run / "sweep-trained", digest)]
        if self.judging.asked:
            asked = [self.judging.tasks, self.judging.pairs, self.judging.fast]
            flags = [
                *([f"--tasks={self.judging.tasks}"] if self.judging.tasks else []),
                *([f"--data={self.judging.data}"] if self.judging.data else []),
                *(f"--pairs={source}" for source in self.judging.pairs),
                *(["--fast"] if self.judging.fast else []),
            ]
            judge = _module("evaluate", f"--model={self.run / 'model'}", f"--out={self.evaluation}", *flags)
            steps.append(Step("evaluate", judge, self.run / "sweep-judged", _digest([digest, *asked])))
        return steps

    @property
    def trained(self) -> bool:
        return self.steps[0].done

    @property
    def judged(self) -> bool:
        return self.judging.asked and self.steps[1].done

    @property
    def waiting(self) -> list[Path]:
        """Folders that are there and are to be deleted at the end."""
        return [self.run / name for name in self.drop if (self.run / name).exists()]

    @property
    def done(self) -> bool:
        return all(step.done for step in self.steps) and not self.waiting

    def clear(self) -> None:
        """Delete what is not to be kept."""
        for folder in self.waiting:
            shutil.rmtree(folder)

    @property
    def line(self) -> str:
        """The whole job as one line for a shell. Run again it does what is left, and nothing when all is done."""
        drop = [shlex.join(["rm", "-rf", *(str(self.run / name) for name in self.drop)])] if self.drop else []
        return " && ".join([*(step.line for step in self.steps), *drop])


def make_jobs(folder: Path, plan: Plan, keep: str = "all") -> list[Job]:
    """A job for every row and seed: seeds together, so that early tables compare all rows."""
    seeds = sorted({seed for row in plan.rows for seed in row.seeds})
    return [
        Job(plan.recipe, row, seed, folder / row.folder / f"seed-{seed}", plan.judging, KEEP[keep])
        for seed in seeds
        for row in plan.rows
        if seed in row.seeds
    ]


def require_models(jobs: list[Job]) -> None:
    """UserError when a run is to be judged whose model was deleted."""
    lost = [job for job in jobs if job.judging.asked and job.trained and not job.judged and not _has_model(job)]
    if lost:
        raise UserError(
            f"{lost[0].run}, to be judged, holds no model any more (and so {len(lost)} of {len(jobs)} runs): "
            "--keep=scores deletes it.\nDelete those run folders to train them again, or judge as before."
        )


def _has_model(job: Job) -> bool:
    return (job.run / "model").is_dir()


def _digest(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


def _module(name: str, *flags: str) -> list[str]:
    """The command that runs an entry point, from the folder that this command is run from."""
    here = Path(sys.executable)
    python = str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else sys.executable
    return [python, "-m", f"simcse_jax.{name}", *flags]
