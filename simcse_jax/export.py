"""Export a run's best model as a Hugging Face folder: `python -m simcse_jax.export --workdir=RUN --out=DIR`.

`--model=NAME` instead of --workdir exports any model folder or Hub name. `--half` stores float16, half the size.
`--keep_layers=0,1` exports these layers alone, numbered from 0, as objective.layers trains a model for.
`--adapter` writes the adapters of a run with model.lora alone, as a folder that PEFT opens.
`--onnx` adds onnx/model.onnx, with pooling and normalisation inside, and `--int8` its quantised form.
`--push=OWNER/NAME` uploads the folder to the Hub, `--scores=scores.json` and `--license=apache-2.0` go into its card.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from simcse_jax import __version__, cli
from simcse_jax.system.errors import UserError
from simcse_jax.system.mirror import local_path, written
from simcse_jax.system.object_store import shown_path

_WORKDIR = flags.DEFINE_string("workdir", "", "Run folder whose best model is exported.")
_MODEL = flags.DEFINE_string("model", "", "Instead of --workdir: a Hugging Face or exported folder, or a Hub name.")
_POOLER = flags.DEFINE_string("pooler", "", "Pooler of --model. Default: the model's own.")
_OUT = flags.DEFINE_string("out", "", "Model folder to write: new, empty, or an earlier export.")
_HALF = flags.DEFINE_bool("half", False, "Store the weights as float16, half the size; computing stays in float32.")
_KEEP_LAYERS = flags.DEFINE_list(
    "keep_layers", [], "With --model: the layers to export, numbered from 0, such as 0,1. Default: all."
)
_ADAPTER = flags.DEFINE_bool(
    "adapter", False, "With --workdir of a run with model.lora: write its adapters alone, as a PEFT folder."
)
_ONNX = flags.DEFINE_bool("onnx", False, "Also write onnx/model.onnx; needs the extra [onnx].")
_INT8 = flags.DEFINE_bool(
    "int8", False, "With --onnx: also write onnx/model_int8.onnx, quantised, slightly less accurate."
)
_SCORES = flags.DEFINE_string(
    "scores", "", "A scores.json of this very model, which evaluate wrote: its scores go into README.md."
)
_LICENSE = flags.DEFINE_string("license", "", "Licence that README.md states, by the Hub's name of it: apache-2.0.")
_PUSH = flags.DEFINE_string("push", "", "OWNER/NAME: also upload the folder to this repository of the Hub.")
_PRIVATE = flags.DEFINE_bool("private", False, "With --push: a repository that is new is private.")


def main() -> None:
    """Export as the flags say."""
    from simcse_jax.model_folder.export import written_files
    from simcse_jax.model_folder.licenses import require_license
    from simcse_jax.model_folder.onnx_export import require_onnx
    from simcse_jax.system.hub_push import push_folder, require_pushable

    if bool(_WORKDIR.value) == bool(_MODEL.value) or not _OUT.value:
        raise UserError(
            "Give --out=DIR (the folder to write), and either --workdir=RUN (a run folder) or --model=NAME (a model "
            "folder or Hub name)."
        )
    if _WORKDIR.value and _POOLER.value:
        raise UserError(
            "--pooler goes with --model; a run has its own, model.pooler of its recipe. Leave --pooler out."
        )
    if _WORKDIR.value and _KEEP_LAYERS.value:
        model = shown_path(_WORKDIR.value, "model")
        raise UserError(f"--keep_layers goes with --model. Give --model={model}, the run's own export, or another one.")
    if _ADAPTER.value:
        _require_adapter_alone()
    if _SCORES.value and _KEEP_LAYERS.value:
        raise UserError(
            "--scores are of the whole model, and --keep_layers exports some of the layers.\nExport these without "
            "--scores, evaluate that folder, and export it again: --model=THAT_FOLDER --scores=scores.json."
        )
    require_license(_LICENSE.value)
    if _INT8.value and not _ONNX.value:
        raise UserError("--int8 needs --onnx. Give --onnx --int8.")
    if _PRIVATE.value and not _PUSH.value:
        raise UserError("--private is for --push=OWNER/NAME. Give both, or leave it out.")
    if _ONNX.value:
        require_onnx()
    if _PUSH.value:
        require_pushable(_PUSH.value)
    with written(_OUT.value) as out:
        _export(out)
    print(f"The model is in {_OUT.value}; its README.md says how to use it.")
    if _PUSH.value:
        message = f"Model of simcse_jax {__version__}"
        print(f"uploaded: {push_folder(out, written_files(out), _PUSH.value, _PRIVATE.value, message)}")


def _export(out: Path) -> None:
    more = _of_card(_WORKDIR.value or _MODEL.value)
    forms = {"half": _HALF.value, "onnx": _ONNX.value, "int8": _INT8.value}
    if _WORKDIR.value:
        from simcse_jax.model_folder.run_folder import export_run

        export_run(_WORKDIR.value, out, more, _ADAPTER.value, **forms)
    else:
        from simcse_jax.model_folder.export import convert
        from simcse_jax.model_folder.kept_layers import read_layers

        convert(_MODEL.value, out, _POOLER.value or None, read_layers(_KEEP_LAYERS.value), more, **forms)


def _require_adapter_alone() -> None:
    """Raise UserError where --adapter comes with flags for whole models."""
    if _MODEL.value:
        raise UserError("--adapter is for runs with model.lora. Give --workdir=RUN in place of --model.")
    for flag in (_HALF, _ONNX):
        if flag.value:
            raise UserError(
                f"--adapter writes no whole model, and --{flag.name} is a form of one.\nExport twice: once with "
                f"--adapter, and once with --{flag.name} into another --out."
            )
    if _PUSH.value:
        from simcse_jax.model_folder.run_folder import read_run_info

        info = read_run_info(local_path(_WORKDIR.value))
        if info and Path(info["recipe"]["model.name"]).expanduser().exists():
            raise UserError(
                f"--push of adapters of {info['recipe']['model.name']}, a folder of this machine: nobody else could "
                "open them.\nPush the merged model (leave --adapter out), or train from a model of the Hub."
            )


def _of_card(model: str) -> dict[str, Any]:
    """Return what --license and --scores add to the card of a model, a run folder or another."""
    more: dict[str, Any] = {"license": _LICENSE.value}
    if _SCORES.value:
        from simcse_jax.embedding_model import open_model
        from simcse_jax.judging import protocol
        from simcse_jax.model_folder.card_scores import read_card_scores

        more["tasks"] = read_card_scores(_SCORES.value, protocol(open_model(model, _POOLER.value or None)))
    return more


if __name__ == "__main__":
    cli.run(main)
