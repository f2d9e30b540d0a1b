"""Evaluate models: `python -m simcse_jax.evaluate --model=RUN_OR_FOLDER_OR_HUB_NAME [--tasks=sts,transfer,geometry]`.

Prints tables, and writes scores.json, report.html and its pictures to --out.
"""

from __future__ import annotations

import glob
from pathlib import Path

from absl import flags

from simcse_jax import cli
from simcse_jax.system.errors import UserError

_MODEL = flags.DEFINE_multi_string(
    "model",
    [],
    "A run folder, an exported or Hugging Face folder, or a Hub name, optionally with :POOLER. May be a glob, and may "
    "be repeated to compare models: --model='runs/unsup-seed*' --model=bert-base-uncased:avg.",
)
_DATA = flags.DEFINE_string("data", "", "SentEval's folder or a senteval.tar. Default: downloaded from the Hub.")
_TASKS = flags.DEFINE_string(
    "tasks",
    "",
    "Comma-separated groups (sts, transfer, geometry) and tasks (STS12, MR, ...). Default: sts,geometry; with --pairs "
    "and without --data: geometry, of the first pairs.",
)
_PAIRS = flags.DEFINE_multi_string(
    "pairs",
    [],
    "Your own graded pairs as another task: a file of score, sentence, sentence; FILE:score=COLUMN,sentence1=COLUMN,"
    "sentence2=COLUMN,split=VALUE where its header does not say which is which; or demo:test.",
)
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "dev", "train"], "Split of STS-B and SICK-R.")
_POOLER = flags.DEFINE_string(
    "pooler", "", "Pooler of the models whose --model names none. Default: the one that each model was made for."
)
_DTYPE = flags.DEFINE_string("dtype", "float32", "Dtype of the computation: float32 or bfloat16.")
_PRODUCTS = flags.DEFINE_string(
    "products",
    "float32",
    "Factors of matrix products: float32; bfloat16 (rounded; fast on CPUs with matrix units); auto.",
)
_MAX_LENGTH = flags.DEFINE_integer(
    "max_length",
    None,
    "Tokens at which texts are truncated, or all that the model takes if that is less. Default: max_seq_length or "
    "model_max_length of the model's folder, else all that the model takes.",
)
_FAST = flags.DEFINE_bool("fast", False, "Run the transfer tasks with 5 folds instead of 10.")
_OUT = flags.DEFINE_string(
    "out", "", "Folder of the results. Default: RUN/evaluation if the only model is a run folder, else evaluation."
)


def main() -> int:
    """Evaluate as the flags say; return 1 when a task failed."""
    from rich.console import Console

    from simcse_jax.embedding_model import EmbeddingModel, open_model
    from simcse_jax.evaluation.graded_pairs import load_graded_pairs
    from simcse_jax.evaluation.senteval import senteval_folder
    from simcse_jax.evaluation.suite import GEOMETRY, TaskSuite, choose_tasks
    from simcse_jax.evaluation.terminal import print_results
    from simcse_jax.judging import judge_models, require_writable, write_results
    from simcse_jax.system.compiled import keep_compiled

    names = model_names(_MODEL.value)
    out = Path(_OUT.value).expanduser() if _OUT.value else default_out(names)
    require_writable(out)
    own_only = bool(_PAIRS.value) and not _DATA.value
    tasks = choose_tasks(_TASKS.value or (GEOMETRY if own_only else f"sts,{GEOMETRY}"), _SPLIT.value)
    keep_compiled()

    def opened(given: str) -> EmbeddingModel:
        name, pooler = name_and_pooler(given)
        model = open_model(name, pooler or _POOLER.value or None, _DTYPE.value, _MAX_LENGTH.value, _PRODUCTS.value)
        model.name = given
        if model.max_length < (_MAX_LENGTH.value or 0):
            print(f"NOTE: --max_length={_MAX_LENGTH.value}, and {given} takes {model.max_length} tokens: cut there.")
        return model

    models = iter([opened(given) for given in names])  # no reference stays here, so that each can be released
    for source in _PAIRS.value:
        load_graded_pairs(source)  # so that a wrong file is an error now, not after other tasks
    folder = None if own_only and set(tasks) <= {GEOMETRY} else senteval_folder(_DATA.value)
    suite = TaskSuite(tasks, folder, _SPLIT.value, tuple(_PAIRS.value), _FAST.value, progress=True)
    results = judge_models(models, suite, say=lambda line: print(line, flush=True))
    print_results(results, Console(highlight=False, soft_wrap=True))
    for path in write_results(results, out):
        print(f"written: {path}")
    return 1 if any(model.failures for model in results.models) else 0


def name_and_pooler(given: str) -> tuple[str, str]:
    """Split a value of --model: ("bert-base-uncased", "avg") for bert-base-uncased:avg; the pooler may be ""."""
    from simcse_jax.encoder.pooling import is_pooler, known

    name, _, pooler = given.rpartition(":")
    if name and is_pooler(pooler):
        return name, pooler
    if name and Path(name).expanduser().exists() and not Path(given).expanduser().exists():
        raise UserError(f"--model={given}: there is no pooler {pooler!r}. Known: {known()}.")
    return given, ""


def default_out(names: list[str]) -> Path:
    """Return RUN/evaluation if the only model is a run folder, else evaluation."""
    from simcse_jax.embedding_model import is_run_folder

    only = Path(names[0]).expanduser()
    return (only if len(names) == 1 and is_run_folder(only) else Path()) / "evaluation"


def model_names(patterns: list[str]) -> list[str]:
    """Return the models that --model names, each once; UserError for none, or for a pattern without a match."""
    if not patterns:
        raise UserError("--model is needed: a run folder, an exported or Hugging Face folder, or a Hub name.")
    names: dict[str, None] = {}
    for given in patterns:
        pattern, pooler = name_and_pooler(given)
        path = Path(pattern).expanduser()
        found = sorted(glob.glob(str(path))) if glob.has_magic(pattern) and not path.exists() else [pattern]
        if not found:
            raise UserError(f"--model={given}: nothing matches (relative to {Path.cwd()}).")
        names |= dict.fromkeys((name.rstrip("/") or "/") + (f":{pooler}" if pooler else "") for name in found)
    return list(names)


if __name__ == "__main__":
    cli.run(main)
