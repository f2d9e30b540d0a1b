"""Export a run's best model as a Hugging Face folder: `python -m simcse_jax.export --workdir=RUN --out=DIR`.

`--model=NAME` instead of --workdir exports any model folder or Hub name. `--half` stores float16, half the size.
`--keep_layers=0,1` exports these layers alone, numbered from 0, as objective.layers trains a model for.
`--onnx` adds onnx/model.onnx, with pooling and normalisation inside, and `--int8` its quantised form.
"""

from __future__ import annotations

from absl import flags

from simcse_jax import cli
from simcse_jax.system.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", "", "Run folder whose best model is exported.")
_MODEL = flags.DEFINE_string("model", "", "Instead of --workdir: a Hugging Face or exported folder, or a Hub name.")
_POOLER = flags.DEFINE_string("pooler", "", "Pooler of --model. Default: the model's own.")
_OUT = flags.DEFINE_string("out", "", "Model folder to write: new, empty, or an earlier export.")
_HALF = flags.DEFINE_bool("half", False, "Store the weights as float16, half the size; computing stays in float32.")
_KEEP_LAYERS = flags.DEFINE_list(
    "keep_layers", [], "With --model: the layers to export, numbered from 0, such as 0,1. Default: all."
)
_ONNX = flags.DEFINE_bool("onnx", False, "Also write onnx/model.onnx; needs the extra [onnx].")
_INT8 = flags.DEFINE_bool(
    "int8", False, "With --onnx: also write onnx/model_int8.onnx, quantised, slightly less accurate."
)


def main() -> None:
    """Export as the flags say."""
    from simcse_jax.model_folder.onnx_export import require_onnx

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
        raise UserError("--keep_layers goes with --model. Export the run whole, and then that folder with --model.")
    if _INT8.value and not _ONNX.value:
        raise UserError("--int8 needs --onnx. Give --onnx --int8.")
    if _ONNX.value:
        require_onnx()
    forms = {"half": _HALF.value, "onnx": _ONNX.value, "int8": _INT8.value}
    if _WORKDIR.value:
        from simcse_jax.model_folder.run_folder import export_run

        export_run(_WORKDIR.value, _OUT.value, **forms)
    else:
        from simcse_jax.model_folder.export import convert
        from simcse_jax.model_folder.kept_layers import read_layers

        convert(_MODEL.value, _OUT.value, _POOLER.value or None, read_layers(_KEEP_LAYERS.value), **forms)
    print(f"The model is in {_OUT.value}; its README.md says how to use it.")


if __name__ == "__main__":
    cli.run(main)
