"""Export: `python -m simcse_jax.export --workdir=RUN --out=DIR` writes a run's best model as a Hugging Face folder.

`--model=NAME` in place of --workdir takes any model folder or Hub name. `--half` halves the file. `--onnx` adds
model.onnx, with pooling and normalisation inside, and `--int8` its quantised form.
"""

from __future__ import annotations

from absl import flags

from simcse_jax import cli
from simcse_jax.system.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", "", "Run folder whose best model is exported.")
_MODEL = flags.DEFINE_string("model", "", "In place of --workdir: a Hugging Face or exported folder, or a Hub name.")
_POOLER = flags.DEFINE_string("pooler", "", "Pooler of --model. Default: the one that it was made for.")
_OUT = flags.DEFINE_string("out", "", "Model folder to write: new, empty, or an earlier export.")
_HALF = flags.DEFINE_bool("half", False, "Keep the weights as float16: half the file. Computing stays in float32.")
_ONNX = flags.DEFINE_bool("onnx", False, "Write model.onnx as well; needs the extra [onnx].")
_INT8 = flags.DEFINE_bool("int8", False, "With --onnx: also model_int8.onnx, quantised. It costs some accuracy.")


def main() -> None:
    """Export as the flags say."""
    from simcse_jax.model_folder.export import convert, export_run
    from simcse_jax.model_folder.onnx_export import require_onnx, write_onnx

    if bool(_WORKDIR.value) == bool(_MODEL.value) or not _OUT.value:
        raise UserError(
            "--out=DIR (the folder to write) is needed, and one of --workdir=RUN (a run folder) and --model=NAME (a "
            "model folder or Hub name)."
        )
    if _WORKDIR.value and _POOLER.value:
        raise UserError("--pooler belongs to --model: a run's pooler is that of its training. Leave it out.")
    if _INT8.value and not _ONNX.value:
        raise UserError("--int8 is a form of the ONNX model. Give --onnx --int8.")
    if _ONNX.value:
        require_onnx()
    if _WORKDIR.value:
        export_run(_WORKDIR.value, _OUT.value, _HALF.value)
    else:
        convert(_MODEL.value, _OUT.value, _POOLER.value or None, _HALF.value)
    if _ONNX.value:
        write_onnx(_OUT.value, _INT8.value)
    print(f"The model is in {_OUT.value}; its README.md says how to use it.")


if __name__ == "__main__":
    cli.run(main)
