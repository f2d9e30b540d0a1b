"""Any model that others made, written as a folder like those that we export."""

from __future__ import annotations

from pathlib import Path

from simcse_jax.encoder.families.table import read_architecture
from simcse_jax.encoder.pooling import POOLERS
from simcse_jax.model_folder.export import export_model
from simcse_jax.model_folder.pretrained import load_params
from simcse_jax.model_folder.st_modules import read_pooler
from simcse_jax.system.errors import UserError
from simcse_jax.system.hub import model_folder


def convert(name: str, out: str | Path, pooler: str | None = None, half: bool = False) -> None:
    """Write the model of that name as an exported folder; see `model_folder.export_model` for what `out` may be.

    name: a Hugging Face folder, one of SimCSE's published ones among them, an exported folder or a Hub name. pooler:
    None = the model's own. The head is written only where the pooler uses it. half: as in `export_model`. UserError
    when there is no such model, when it does not say how it pools and `pooler` is not given, or for a run folder.
    """
    if pooler and pooler not in POOLERS:
        raise UserError(f"--pooler={pooler} is unknown. Known: {', '.join(POOLERS)}.")
    if (Path(name).expanduser() / "checkpoints").is_dir():
        raise UserError(f"--model={name} is a run folder. Export it with --workdir={name}.")
    folder = model_folder(name)
    config = read_architecture(folder)
    if not pooler:
        try:
            pooler = read_pooler(folder)
        except UserError as error:
            raise UserError(f"{error}\nGive it as --pooler=NAME.") from error
    params = load_params(folder, config, head="load" if pooler == "cls" else "none")
    export_model(Path(out), params, config, folder, pooler, card={"source": name}, half=half)
