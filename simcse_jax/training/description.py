"""What a run says of itself before its first step."""

from __future__ import annotations

import math

import jax

from simcse_jax.config.layout import LARGEST_GROUP
from simcse_jax.data.batches import written
from simcse_jax.data.positives import CHANGES
from simcse_jax.training.run import Run

LITTLE = 0.1  # change of a learned temperature's logarithm that a run says will hardly be one


def describe(run: Run) -> list[str]:
    """Lines that say what is about to be trained."""
    config, encoder, mesh = run.config, run.encoder.architecture, run.program.mesh
    count = sum(x.size for x in jax.tree.leaves(run.program.shapes.params))
    layout = run.batches.layout
    groups = layout.batch_size // layout.group_size
    rows = ", ".join(map(written, run.batches.row_counts))
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
        *_studies(run),
        *_masking(run),
        *_notes(run),
    ]


def _studies(run: Run) -> list[str]:
    """What differs from plain SimCSE."""
    config, lines = run.config, []
    data, model, objective = config.data, config.model, config.objective
    if objective.loss == "none":
        return []
    if data.positive in CHANGES or data.positive == "mask":
        share = f"{data.rate:.0%}" if data.rate or data.positive == "repetition" else "one word"
        most = "at most " if data.positive == "repetition" else ""
        lines.append(f"positives: changed copies ({data.positive}), {most}{share} of each")
    if data.positive == "next_sentence":
        count = "the next sentence" if data.window == 1 else f"one of the next {data.window} sentences"
        lines.append(f"positives: {count} of the document; {len(run.batches.examples):,} sentences have one")
    if model.same_mask:
        lines.append("dropout: the same mask for both views")
    if model.cutoff:
        lines.append(f"cutoff: {model.cutoff}, {model.cutoff_rate:.0%} of the input embeddings")
    if model.second_encoder != "none":
        what = (
            "parameters of its own" if model.second_encoder == "copy" else f"follows by {1 - model.momentum:g} a step"
        )
        queue = f"; a queue of {objective.queue:,} negatives" if objective.queue else ""
        lines.append(f"second encoder, of all but the anchors: {what}{queue}")
    details = [
        objective.loss if objective.loss != "info_nce" else "",
        "of products" if objective.similarity == "dot" else "",
        "both ways" if objective.symmetric else "",
        "with a learned temperature" if objective.learned_temperature else "",
        f"mean over widths {objective.widths}" if objective.widths else "",
    ]
    if any(details):
        lines.append(f"loss: {', '.join(detail for detail in details if detail)}")
    return lines


def _masking(run: Run) -> list[str]:
    mlm = run.config.mlm
    if not mlm.weight:
        return []
    what = (
        "alone" if run.config.objective.loss == "none" else f"beside the contrastive loss, with weight {mlm.weight:g}"
    )
    units = "words" if mlm.whole_word else "tokens"
    return [f"masked language modelling: {what}; {mlm.rate:.0%} of the {units} of each sentence"]


def _notes(run: Run) -> list[str]:
    """What is allowed and rarely meant."""
    notes, warmup, layout = [], run.config.optimizer.warmup_steps, run.batches.layout
    if warmup >= run.total_steps:
        notes.append(f"note: the {run.total_steps} steps end within optimizer.warmup_steps = {warmup}")
    objective = run.config.objective
    rate = objective.learning_rate or run.config.optimizer.learning_rate
    if objective.learned_temperature and rate * run.total_steps / 2 < LITTLE:
        notes.append(
            f"note: at a learning rate of {rate:g} the temperature changes by less than {math.expm1(LITTLE):.0%} in "
            f"{run.total_steps} steps; a larger --config.objective.learning_rate is for it alone"
        )
    share = layout.batch_size // run.program.mesh.size
    if layout.group_size < min(share, LARGEST_GROUP) / 4:
        notes.append(
            f"note: {share} examples a device divide into groups of {layout.group_size} only, which is slow; a "
            f"multiple of {LARGEST_GROUP} is best"
        )
    return notes
