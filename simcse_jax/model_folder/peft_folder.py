"""Write the adapters of a run as PEFT does: a folder that needs the model that they adapt.

`lora.py` reads such folders, ours and others'.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.families.table import FAMILIES
from simcse_jax.encoder.lora import DOWN, UP, Lora
from simcse_jax.model_folder.module_list import encoder_folder
from simcse_jax.model_folder.weight_files import write_weights
from simcse_jax.system.errors import UserError
from simcse_jax.system.hub import ADAPTER, ADAPTER_WEIGHTS, model_folder
from simcse_jax.system.json_file import write_json

_MERGED = "Export the merged model instead: leave --adapter out."


def base_of(recipe: Mapping[str, Any]) -> str:
    """Return the folder or Hub name of the model that a run's adapters adapt, as adapter_config.json names it.

    recipe: the run's, by full names of keys. UserError where the run has no adapters, or where no folder that
    transformers reads holds what they adapt.
    """
    name = str(recipe["model.name"])
    if not recipe["model.lora"]:
        raise UserError(
            "--adapter: the run trained all parameters (model.lora = 0), so it has no adapters.\nLeave --adapter out."
        )
    if recipe["model.init"] != "pretrained":
        raise UserError(
            f"--adapter: the run's adapters adapt the parameters of another run (model.init = "
            f"{recipe['model.init']!r}), and a PEFT folder names a model folder.\n{_MERGED} Or train from that run's "
            "export, --config.model.name=RUN/model."
        )
    if recipe["model.keep_layers"]:
        raise UserError(
            f"--adapter: the run's adapters adapt some layers of {name} (model.keep_layers = "
            f"{recipe['model.keep_layers']!r}), and a PEFT folder names a whole model.\n{_MERGED}"
        )
    folder = model_folder(name, weights=False)
    inner = encoder_folder(folder, weights=False)
    if not inner.is_relative_to(folder):
        raise UserError(
            f"--adapter: {name} is an adapter itself, and PEFT opens no adapter of an adapted model.\n{_MERGED}"
        )
    if Path(name).expanduser().is_dir():
        return str(inner.resolve())
    if inner != folder:
        raise UserError(
            f"--adapter: the encoder of {name} is in {inner.name}/, and a PEFT folder can name no folder within a "
            f"repository.\n{_MERGED}"
        )
    return name


def write_adapter(folder: Path, params: Mapping[str, Any], architecture: Architecture, lora: Lora, base: str) -> None:
    """Write adapter_config.json and the factors; params: with adapters, NumPy. base: as of `base_of`."""
    names, tensors = FAMILIES[architecture.family].names, {}
    targets: list[str] = []
    for place, _ in lora.parts:
        block, part = place.split("/")
        dense, called = params["layers"][block][part], names.layer_parts[place]
        each = (called,) if isinstance(called, str) else called
        targets += each
        for layer in range(architecture.stored_layers):
            for n, name in enumerate(each):
                start = f"base_model.model.{names.layer.format(layer)}{name}"
                tensors[f"{start}.lora_A.weight"] = dense[DOWN][layer][:, n].T
                tensors[f"{start}.lora_B.weight"] = dense[UP][layer][n].T
    write_weights(
        folder / ADAPTER_WEIGHTS[0],
        {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()},
    )
    settings = {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": lora.rank,
        "target_modules": targets,
        "task_type": "FEATURE_EXTRACTION",
        "use_dora": False,
        "use_rslora": False,
    }
    write_json(folder / ADAPTER, settings)
