"""What a run says of itself before its first step."""

from __future__ import annotations

import jax

from simcse_jax.config import LARGEST_GROUP
from simcse_jax.training.run import Run


def describe(run: Run) -> list[str]:
    """Lines that say what is about to be trained."""
    config, encoder, mesh = run.config, run.encoder.config, run.program.mesh
    count = sum(x.size for x in jax.tree.leaves(run.program.shapes.params))
    layout = run.batches.layout
    groups = layout.batch_size // layout.group_size
    rows = ", ".join(str(count) for count in run.batches.row_counts)
    return [
        f"model: {encoder.family}, {encoder.num_hidden_layers} layers, width {encoder.hidden_size}, {count:,} "
        f"parameters, {config.model.init} weights; pooler: {config.model.train_pooler} in training, "
        f"{config.model.pooler} at test time",
        f"devices: {mesh.size} x {mesh.devices.flat[0].device_kind}, mesh data {mesh.shape['data']} x fsdp "
        f"{mesh.shape['fsdp']}; compute in {config.model.dtype}",
        f"batch: {layout.batch_size} examples = {groups} groups of {layout.group_size}, in rows of {layout.row_length} "
        f"tokens; row counts in use: {rows} (each compiled once)",
        f"steps: {run.total_steps:,} of {run.batches.steps_per_epoch:,} an epoch; {run.batches.dropped:,} examples "
        "left out of each epoch's last, short batch",
        *run.corpus.report.lines(),
        *_masking(run),
        *_notes(run),
    ]


def _masking(run: Run) -> list[str]:
    mlm = run.config.mlm
    if not mlm.weight:
        return []
    what = (
        "alone" if run.config.objective.loss == "none" else f"beside the contrastive loss, with weight {mlm.weight:g}"
    )
    words = " in whole words" if mlm.whole_word else ""
    return [f"masked language modelling: {what}; {mlm.rate:.0%} of the tokens of each sentence{words}"]


def _notes(run: Run) -> list[str]:
    """What is allowed and rarely meant."""
    notes, warmup, layout = [], run.config.optimizer.warmup_steps, run.batches.layout
    if warmup >= run.total_steps:
        notes.append(f"note: the {run.total_steps} steps end within optimizer.warmup_steps = {warmup}")
    share = layout.batch_size // run.program.mesh.size
    if layout.group_size < min(share, LARGEST_GROUP) / 4:
        notes.append(
            f"note: {share} examples a device divide into groups of {layout.group_size} only, which is slow; a "
            f"multiple of {LARGEST_GROUP} is best"
        )
    return notes
