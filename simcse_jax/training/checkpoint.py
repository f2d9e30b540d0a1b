"""What a run keeps on disk: `last` to go on from, `best` to use.

`checkpoints/last` holds whole states, the newest two; `checkpoints/best` holds parameters and their score. A step
appears there by one rename, so a killed run leaves nothing half-written that counts.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from simcse_jax.encoder.bert import Encoder, EncoderConfig
from simcse_jax.encoder.init import parameter_shapes
from simcse_jax.errors import UserError
from simcse_jax.training.folder import read_run_info
from simcse_jax.training.state import TrainState


@dataclasses.dataclass
class Progress:
    """What a run knows beside its state; saved with `last`, so that a resumed run goes on with it."""

    best_step: int = -1
    best_score: float = float("-inf")
    stale_evaluations: int = 0  # since the best one
    losses: list[float] = dataclasses.field(default_factory=list)  # of the steps since the last evaluation
    history: list[tuple[int, float, float]] = dataclasses.field(default_factory=list)  # step, score, mean loss since

    def to_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        return values | {"best_score": None if self.best_step < 0 else self.best_score}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Progress:
        score = float("-inf") if values["best_score"] is None else values["best_score"]
        history = [tuple(entry) for entry in values["history"]]
        return cls(values["best_step"], score, values["stale_evaluations"], values["losses"], history)


class Checkpoints:
    """The checkpoints of one run folder. Use as a context: leaving it waits for what is being written."""

    def __init__(self, workdir: Path):
        folder = workdir.absolute() / "checkpoints"
        if jax.process_index() == 0:
            for torn in folder.glob("*/*.orbax-checkpoint-tmp*"):  # of a kill in the middle of a save
                shutil.rmtree(torn, ignore_errors=True)
        # Two of each: a save that a kill interrupts never leaves the run with none.
        self._last = ocp.CheckpointManager(folder / "last", options=_options(asynchronous=True))
        self._best = ocp.CheckpointManager(folder / "best", options=_options(asynchronous=False))

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the asynchronous save and release the threads."""
        self._last.close()
        self._best.close()

    def latest_step(self) -> int | None:
        """The step that the run would go on from; None in a new run."""
        return self._last.latest_step()

    def start_anew(self) -> None:
        """Forget the best of a run that never came to a state to go on from."""
        for step in self._best.all_steps():
            self._best.delete(step)

    def save_last(self, state: TrainState, progress: Progress) -> None:
        """Save in the background, once the previous save is done; a failure of that one is raised here."""
        step = int(state.step)
        if self._last.latest_step() == step:
            return
        saved = self._last.save(
            step,
            force=True,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state._asdict()), progress=ocp.args.JsonSave(progress.to_json())
            ),
        )
        assert saved, f"step {step} was not saved to checkpoints/last"

    def save_best(self, step: int, params: Any, scores: dict[str, Any]) -> None:
        """Save the parameters of the best evaluation so far; done when this returns."""
        # The state on disk may rest on an older best, which goes once two newer ones are there.
        self._last.wait_until_finished()
        if step in self._best.all_steps():  # a resumed run comes by its best step again
            self._best.delete(step)
        saved = self._best.save(
            step,
            force=True,
            args=ocp.args.Composite(params=ocp.args.StandardSave(params), scores=ocp.args.JsonSave(scores)),
        )
        assert saved, f"step {step} was not saved to checkpoints/best"

    def restore_last(self, state: TrainState) -> tuple[TrainState, Progress]:
        """The newest state and its progress, laid out like `state` (ShapeDtypeStructs with shardings)."""
        step = self.latest_step()
        assert step is not None  # the caller has looked
        restored = self._last.restore(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(state._asdict()), progress=ocp.args.JsonRestore()),
        )
        # Saved after `last`, so of a part of the run that is about to be repeated.
        for later in [s for s in self._best.all_steps() if s > step]:
            self._best.delete(later)
        return TrainState(**restored["state"]), Progress.from_json(restored["progress"])


def _options(asynchronous: bool) -> ocp.CheckpointManagerOptions:
    return ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=asynchronous)


def load_best(workdir: Path) -> tuple[Any, dict[str, Any]]:
    """(params, info) of a run's best evaluation: NumPy parameters, and config.json with `scores` and `step` added.

    Without evaluations, the best is the last. Raises UserError when the folder holds no run or nothing was saved yet.
    """
    info = read_run_info(workdir)
    folder = workdir.absolute() / "checkpoints" / "best"
    if info is None:
        raise UserError(
            f"--workdir={workdir} holds no run (no config.json).\nA run's folder is runs/<recipe> unless --workdir was "
            "given when training."
        )
    steps = ocp.utils.checkpoint_steps(folder) if folder.exists() else []
    if not steps:
        raise UserError(
            f"{workdir} holds no checkpoint yet.\nTrain on with the command that started it, then try again."
        )
    config = EncoderConfig(**info["encoder"])
    # A run in float64 is read as float32 where JAX's 64-bit mode is off, as in an export.
    dtype = jax.dtypes.canonicalize_dtype(np.float64) if info["recipe"]["model.dtype"] == "float64" else np.float32
    on_host = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_host),
        parameter_shapes(Encoder(config, dtype, dtype, has_head=info["has_head"])),
    )
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(
            folder / str(max(steps)),
            args=ocp.args.Composite(params=ocp.args.StandardRestore(shapes), scores=ocp.args.JsonRestore()),
        )
    return jax.device_get(restored["params"]), info | {"scores": restored["scores"], "step": max(steps)}
