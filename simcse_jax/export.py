"""Export: `python -m simcse_jax.export --workdir=RUN --out=DIR` writes a run's best model as a Hugging Face folder."""

from __future__ import annotations

from absl import flags

from simcse_jax import cli
from simcse_jax.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", "", "Run folder whose best model is exported.")
_OUT = flags.DEFINE_string("out", "", "Model folder to write: new, empty, or an earlier export.")


def main() -> None:
    """Export as the flags say."""
    from simcse_jax.model_folder import export_run

    if not _WORKDIR.value or not _OUT.value:
        raise UserError("Both --workdir=RUN (the run folder) and --out=DIR (the folder to write) are needed.")
    export_run(_WORKDIR.value, _OUT.value)
    print(f"The model is in {_OUT.value}; its README.md says how to use it.")


if __name__ == "__main__":
    cli.run(main)
