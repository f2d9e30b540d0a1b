"""Run our side of `benchmarks.train_speed`: the step of a real run, on its real batches."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import process_memory
from benchmarks.train_work import CLIP_NORM, LEARNING_RATE, TEMPERATURE, Work
from configs import base
from simcse_jax.config.keys import split_list
from simcse_jax.config.resolve import resolve
from simcse_jax.data.batches import Batch, Rows
from simcse_jax.data.corpus import read_sentences
from simcse_jax.encoder.families.table import config_json
from simcse_jax.model_folder.export import export_model
from simcse_jax.runs.folder import TOKENIZER
from simcse_jax.system.host_memory import keep_freed_memory
from simcse_jax.system.json_file import write_json
from simcse_jax.training.feeding import batch_shapes, feed
from simcse_jax.training.program import Compilations
from simcse_jax.training.run import prepare
from simcse_jax.training.step import TrainStep


class Side:
    """Hold a run of ours on one device, and its current state."""

    def __init__(self, work: Work):
        keep_freed_memory()  # as `simcse_jax.train` does
        sizes = work.folder / "sizes"
        sizes.mkdir(exist_ok=True)
        write_json(sizes / "config.json", config_json(work.architecture))
        recipe = base.get_config()
        recipe.update_from_flattened_dict(
            {
                "model.name": str(sizes),
                "model.init": "random",
                "model.tokenizer": work.tokenizer,
                "model.dtype": work.dtype,
                "model.unroll": work.unroll,
                "model.products": work.products,
                "model.attention": work.attention,
                "data.files": work.data,
                "data.max_length": work.max_length,
                "data.cache_dir": str(work.folder / "cache"),
                "train.batch_size": work.batch_size,
                "train.epochs": 0.0,
                "train.steps": work.steps,
                "objective.temperature": TEMPERATURE,
                "objective.mask_duplicates": False,  # the other sides do not mask duplicates
                "optimizer.learning_rate": LEARNING_RATE,
                "optimizer.clip_norm": CLIP_NORM,
                "eval.data": "",
                "mesh.data": 1,
            }
        )
        config = resolve(recipe, (), jax.device_count())
        # Comparing losses needs dropout off, which recipes refuse where dropout makes the views.
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=work.dropout))
        self.work, self.workdir = work, Path(tempfile.mkdtemp(prefix="run-", dir=work.folder))
        self.run = prepare(config, self.workdir)
        self.state = self.run.initial_state()
        self.compiled = Compilations(self.run.program, self._shapes)
        # Products in full float32 precision, like PyTorch's; some chips round by default.
        self.exactly = work.dtype == "float32"

    def about(self) -> str:
        return f"jax {jax.__version__}, {self._device().device_kind}"

    def share(self) -> None:
        """Write the first weights and the batches of all steps for the other sides."""
        work, run, count = self.work, self.run, self.work.steps
        export_model(work.model, self.state.params, run.encoder.architecture, self.workdir / TOKENIZER, "cls", card={})
        sentences = list(read_sentences(split_list(work.data)))
        rows = np.stack([run.batches.example_ids(step) for step in range(count)])
        ids = np.zeros((*rows.shape, work.max_length), np.int32)
        for step, at in enumerate(rows):
            for place, (tokens,) in enumerate(run.corpus.token_ids(at)):
                ids[step, place, : len(tokens)] = tokens
        texts = [[sentences[row] for row in at] for at in rows]
        work.write_batches(ids, run.corpus.lengths[rows][:, :, 0], texts)

    def losses(self, steps: int) -> list[tuple[float, float]]:
        """Return (loss, norm of the gradient before clipping) of the first steps."""
        figures = [self._step(batch) for batch in self._batches(0, steps)]
        return [(float(one["loss"]), float(one["gradient_norm"])) for one in figures]

    def first_step(self) -> float:
        """Return the seconds of step 0, tracing and compilation included."""
        (batch,) = self._batches(0, 1)
        start = time.perf_counter()
        self._step(batch)
        jax.block_until_ready(self.state)
        return time.perf_counter() - start

    def steps(self, first: int, last: int) -> float:
        """Return the seconds of steps first <= step < last, with batches on the device and shapes compiled."""
        batches = self._batches(first, last)
        for batch in batches:
            self._compiled(batch)
        start = time.perf_counter()
        for batch in batches:
            self._step(batch)
        jax.block_until_ready(self.state)
        return time.perf_counter() - start

    def peak_memory(self) -> int:
        """Return the peak bytes of the device, or of the process where the device is a CPU."""
        return int((self._device().memory_stats() or {}).get("peak_bytes_in_use", 0)) or process_memory.peak()

    def _device(self) -> Any:
        return self.run.program.mesh.devices.flat[0]

    def _shapes(self, rows: Rows, _loss: str) -> Batch:
        return batch_shapes(self.run.config, self.run.program.mesh, 1, rows, self.run.batches.layout.row_length)

    def _batches(self, first: int, last: int) -> list[Batch]:
        return jax.block_until_ready(list(feed(self.run.batches, self.run.program.mesh, first, last)))

    def _compiled(self, batch: Batch) -> TrainStep:
        with jax.default_matmul_precision("highest") if self.exactly else contextlib.nullcontext():
            return self.compiled.step(batch.rows)

    def _step(self, batch: Batch) -> Any:
        self.state, figures = self._compiled(batch)(self.state, batch)
        return figures
