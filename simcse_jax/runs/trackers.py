"""Report a run to trackers, Weights & Biases, MLflow or Trackio: its recipe, metrics, dev scores and report.

Where they keep it is theirs to know, by their own variables (WANDB_MODE, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID). None
may stop a run, nor slow it down: one thread talks to them, and what fails is a warning.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from simcse_jax.config.keys import split_list
from simcse_jax.config.schema import Config
from simcse_jax.system.errors import UserError, short
from simcse_jax.system.whole_file import write_whole_text

PROJECT = "simcse_jax"  # where runs are listed, unless the tracker's own variable names another place
IDS = "trackers.json"  # in the run folder: the trackers' ids of the run, by which a resumed one goes on
MOST_WAITING = 10_000  # calls not yet made; more are dropped
LAST_CALLS_S = 60.0  # how long the end of a run waits for them
_PARAMETERS_AT_ONCE, _LONGEST_PARAMETER = 100, 500  # MLflow's limits


class TrackedRun(NamedTuple):
    """Hold what a tracker is told of a run when it begins or resumes."""

    name: str
    workdir: Path
    recipe: Mapping[str, Any]
    known: str  # the tracker's id of the run, "" when it begins


class Tracker(Protocol):
    """Describe one tracker's run: `write` takes the metrics of a step, `keep` a file."""

    id: str

    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def keep(self, file: Path) -> None: ...

    def close(self, end: str) -> None:
        """end: "finished", "stopped" (by a signal, to be resumed) or "failed"."""
        ...


class _WeightsAndBiases:
    def __init__(self, run: TrackedRun):
        import wandb  # pyright: ignore[reportMissingImports]

        offline = os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun")
        if not offline and not wandb.login(prompt=False):  # `init` would ask for a key, and wait
            raise PermissionError("not logged in. Run `wandb login`, or set WANDB_MODE=offline")
        self.id = run.known or secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", run.name),
            id=self.id,
            resume="allow",
            config=dict(run.recipe),
            dir=run.workdir,
            settings=wandb.Settings(console="off", silent=True),
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def keep(self, file: Path) -> None:
        self._run.save(str(file), base_path=str(file.parent), policy="now")

    def close(self, end: str) -> None:
        self._run.finish(exit_code=int(end != "finished"))


class _MLflow:
    def __init__(self, run: TrackedRun):
        import mlflow  # pyright: ignore[reportMissingImports]

        self._entities, self._client = mlflow.entities, mlflow.MlflowClient()
        self.id = run.known or self._begin(run)
        if run.known:
            self._client.update_run(self.id, "RUNNING")

    def _begin(self, run: TrackedRun) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        where = experiment.experiment_id if experiment else self._client.create_experiment(name)
        number = self._client.create_run(where, run_name=run.name).info.run_id
        recipe = [self._entities.Param(key, f"{value}"[:_LONGEST_PARAMETER]) for key, value in run.recipe.items()]
        for first in range(0, len(recipe), _PARAMETERS_AT_ONCE):
            self._client.log_batch(number, params=recipe[first : first + _PARAMETERS_AT_ONCE])
        return number

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        named = {name.replace("@", "_at_"): value for name, value in metrics.items()}  # it takes no ndcg@10
        found = [self._entities.Metric(name, value, now, step) for name, value in named.items()]
        self._client.log_batch(self.id, metrics=found)

    def keep(self, file: Path) -> None:
        self._client.log_artifact(self.id, str(file))

    def close(self, end: str) -> None:
        status = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[end]
        self._client.set_terminated(self.id, status)


class _Trackio:
    def __init__(self, run: TrackedRun):
        import trackio  # pyright: ignore[reportMissingImports]

        self.id = run.known or f"{run.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        quiet: dict[str, Any] = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        self._run = trackio.init(PROJECT, self.id, config=dict(run.recipe), resume="allow", **quiet)
        self._save = trackio.save

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def keep(self, file: Path) -> None:
        self._save(str(file), PROJECT)

    def close(self, end: str) -> None:  # it knows of no ends
        self._run.finish()


# By the name of their package.
TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "wandb": _WeightsAndBiases,
    "mlflow": _MLflow,
    "trackio": _Trackio,
}


def require_trackers(config: Config) -> None:
    """Raise UserError for a tracker of the recipe that is unknown or not installed."""
    names = split_list(config.train.trackers)
    for name in names:
        if name not in TRACKERS:
            raise UserError(
                f"train.trackers names {name!r}. Known: {', '.join(TRACKERS)}.\n"
                f"For example --config.train.trackers={next(iter(TRACKERS))}"
            )
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # the latter a folder of that name, which a tracker may have left here
            rest = ",".join(other for other in names if other != name)
            raise UserError(
                f"train.trackers names {name!r}, which is not installed.\nRun `pip install {name}`, or leave it out: "
                f"--config.train.trackers={rest}"
            )


def open_trackers(config: Config, workdir: Path) -> AbstractContextManager[Trackers | None]:
    """Return the trackers of the recipe, which begin or go on with the run in this folder; None where it names none."""
    names = split_list(config.train.trackers)
    return Trackers(names, workdir, config.flat(), _print_line) if names else nullcontext()


def _print_line(line: str) -> None:
    print(line, flush=True)


class Trackers:
    """Report to several trackers at once, in a thread. A context manager."""

    def __init__(self, names: Sequence[str], workdir: Path, recipe: Mapping[str, Any], say: Callable[[str], None]):
        """say: called with warnings, in the caller's thread. Set `end` before leaving: see `Tracker.close`."""
        self.end = "failed"
        self._workdir, self._recipe, self._say = workdir, recipe, say
        self._calls: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(MOST_WAITING)
        self._warnings: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._dropped = 0
        self._thread = threading.Thread(target=self._work, args=(tuple(names),), name="trackers", daemon=True)
        self._thread.start()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report the metrics of a step, soon."""
        self._put(lambda tracker: tracker.write(step, metrics))

    def keep(self, file: Path) -> None:
        """Report a file, soon."""
        self._put(lambda tracker: tracker.keep(file))

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the last calls, but not for ever."""
        end = time.monotonic() + LAST_CALLS_S
        try:
            self._calls.put(None, timeout=LAST_CALLS_S)
            self._thread.join(max(end - time.monotonic(), 0))
        except queue.Full:
            pass
        if self._thread.is_alive():
            self._warnings.put(
                f"the trackers did not take all metrics within {LAST_CALLS_S:g} s; metrics.jsonl has all"
            )
        self._say_warnings()

    def _put(self, call: Callable[[Tracker], None]) -> None:
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._dropped += 1
            if self._dropped == 1:
                self._warnings.put(
                    f"trackers are {MOST_WAITING:,} lines behind, and will miss some; metrics.jsonl has all"
                )
        self._say_warnings()

    def _say_warnings(self) -> None:
        while not self._warnings.empty():
            self._say(f"warning: {self._warnings.get()}")

    def _work(self, names: Sequence[str]) -> None:
        """Open the trackers, and make the calls, until there is a None."""
        known = self._known_ids()
        trackers: dict[str, Tracker] = {}
        for name in names:
            run = TrackedRun(self._workdir.resolve().name, self._workdir, self._recipe, known.get(name, ""))
            if self._works(name, lambda run=run, name=name: trackers.update({name: TRACKERS[name](run)})):
                known[name] = trackers[name].id
        self._works("", lambda: write_whole_text(self._workdir / IDS, json.dumps(known) + "\n"))
        while call := self._calls.get():
            for name, tracker in list(trackers.items()):
                if not self._works(name, lambda tracker=tracker, call=call: call(tracker)):
                    del trackers[name]
        for name, tracker in trackers.items():
            self._works(name, functools.partial(tracker.close, self.end))

    def _known_ids(self) -> dict[str, str]:
        try:
            found = json.loads((self._workdir / IDS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {name: value for name, value in found.items() if isinstance(value, str)} if type(found) is dict else {}

    def _works(self, name: str, call: Callable[[], object]) -> bool:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 (a library may even call sys.exit)
            self._warnings.put(f"nothing more goes to {name or IDS}; metrics.jsonl has all: {short(error)}")
            return False
        return True
