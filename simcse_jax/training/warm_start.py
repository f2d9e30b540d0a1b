"""Start a run from another run's parameters: `model.init=run:DIR[@STEP]`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from simcse_jax.data.tokenizer import load_tokenizer
from simcse_jax.encoder.families.table import architecture_from_dict
from simcse_jax.encoder.init import parameter_shapes
from simcse_jax.encoder.model import Encoder
from simcse_jax.hosts.agreement import broadcast, fail_together, is_first
from simcse_jax.model_folder.run_folder import START, load_run_params, parse_start, read_run_info
from simcse_jax.runs.folder import has_checkpoint
from simcse_jax.system.errors import UserError, about

TAKES = "pretrained, random, or run:DIR[@STEP], the parameters of another run"


def with_step(init: str, workdir: Path) -> str:
    """Return a model.init that names a run with its step: as the run in this folder has it, else the best there is.

    Other values are returned as they are. Every process gets what process 0 finds.
    """
    with fail_together(), about("model.init", TAKES):
        source, step = parse_start(init) if init.startswith(START) else (None, 0)
        if is_first() and source and step is None:
            info = read_run_info(workdir) if has_checkpoint(workdir) else None
            recorded = info["recipe"]["model.init"] if info else ""
            init = recorded if recorded.rpartition("@")[0] == init else f"{init}@{load_run_params(source)[1]['step']}"
    return broadcast(init)


def load_start(init: str, encoder: Encoder, tokenizer: Any) -> Any:
    """Return the parameters of the run that model.init names, of those that this encoder has; NumPy arrays.

    A head that the run lacks is left out. UserError where sizes or tokenizer are others.
    """
    with about("model.init", TAKES):
        source, step = parse_start(init)
        params, info = load_run_params(source, step)
    way_out = f"Take both from the run's own model: --config.model.name={source / 'model'}"
    ours, theirs = encoder.architecture, architecture_from_dict(info["encoder"])
    theirs = dataclasses.replace(
        theirs, dropout=ours.dropout, cutoff=ours.cutoff, cutoff_rate=ours.cutoff_rate
    ).as_dict()
    if other := [name for name, value in ours.as_dict().items() if theirs.get(name) != value]:
        shown = ", ".join(f"{name} {theirs.get(name)}, not {ours.as_dict()[name]}" for name in other[:4])
        raise UserError(f"model.init = {init!r}: that run's encoder differs from this one's: {shown}.\n{way_out}")
    if load_tokenizer(source / info["tokenizer"]).get_vocab() != tokenizer.get_vocab():
        raise UserError(f"model.init = {init!r}: that run has another tokenizer than this one.\n{way_out}")
    wanted = parameter_shapes(encoder)
    if "mlm" in wanted and "mlm" not in params:
        raise UserError(
            f"model.init = {init!r}: that run has no head for masked tokens, which mlm.weight needs.\n"
            "Leave it out, --config.mlm.weight=0, or start from a run that was trained with it."
        )
    kept = {name: tree for name, tree in params.items() if name in wanted}
    return jax.tree.map(lambda x: np.asarray(x, encoder.param_dtype), kept)
