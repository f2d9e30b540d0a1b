"""Evaluate models: `python -m simcse_jax.evaluate --model=RUN_OR_FOLDER_OR_HUB_NAME [--tasks=sts,transfer,geometry]`.

Prints tables, and writes scores.json, report.html and its pictures to --out.
"""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from simcse_jax import cli
from simcse_jax.evaluation.kinds import KINDS, name_task
from simcse_jax.system import precision_flags
from simcse_jax.system.errors import UserError
from simcse_jax.system.mirror import local_path, written
from simcse_jax.system.object_store import Store, is_address, place_of, shown_path
from simcse_jax.system.precision_flags import DTYPE, PRODUCTS

if TYPE_CHECKING:
    from simcse_jax.embedding_model import EmbeddingModel

flags.adopt_module_key_flags(precision_flags)  # --help shows them
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
    "Comma-separated groups (sts, transfer, geometry) and tasks (STS12, MR, ...). Default: sts,geometry; with data of "
    "your own (--pairs, --retrieval, ...) and without --data: geometry of the first pairs, or none.",
)
_OWN = {kind: flags.DEFINE_multi_string(kind, [], described.help) for kind, described in KINDS.items()}
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "dev", "train"], "Split of STS-B and SICK-R.")
_POOLER = flags.DEFINE_string(
    "pooler", "", "Pooler of the models whose --model names none. Default: the one that each model was made for."
)
_MAX_LENGTH = flags.DEFINE_integer(
    "max_length",
    None,
    "Tokens at which texts are truncated, or all that the model takes if that is less. Default: max_seq_length or "
    "model_max_length of the model's folder, else all that the model takes.",
)
_TRUNCATE = flags.DEFINE_list(
    "truncate_dim",
    [],
    "Widths, such as 64,128,256: further rows of every model, with the first so many features of each vector.",
)
_PROMPT_NAME = flags.DEFINE_string(
    "prompt_name",
    None,
    "The prompt of all texts, by its name in each model; of documents NAME_document, where a model has that. Default: "
    "each model's default prompt, if any.",
)
_PROMPT = flags.DEFINE_string("prompt", None, 'The same by its words; "" for none.')
_FAST = flags.DEFINE_bool("fast", False, "Run the transfer tasks with 5 folds instead of 10.")
_SAMPLE_PAIRS = flags.DEFINE_integer(
    "sample_pairs",
    0,
    "Score nothing: write that many pairs of texts of --text, from all ranges of the model's cosines, to "
    "--out=sheet.csv for you to grade; --pairs=sheet.csv takes it once its column of scores is filled.",
    lower_bound=0,
)
_OUT = flags.DEFINE_string(
    "out", "", "Folder of the results. Default: RUN/evaluation if the only model is a run folder, else evaluation."
)


def main() -> int:
    """Evaluate as the flags say; return 1 when a task failed."""
    from rich.console import Console

    from simcse_jax.evaluation.terminal import print_results
    from simcse_jax.judging import judge_models, make_suite, require_writable, write_results
    from simcse_jax.system.compiled import keep_compiled

    if _SAMPLE_PAIRS.value:
        return _write_sample()
    names = model_names(_MODEL.value)
    own = tuple(dict.fromkeys(name_task(kind, source) for kind, given in _OWN.items() for source in given.value))
    widths = read_widths(_TRUNCATE.value)
    keep_compiled()

    out = _OUT.value or default_out(names)
    with written(out) as folder:
        require_writable(folder)
        models = iter([_opened(given) for given in names])  # no reference stays here, so that each can be released
        suite = make_suite(own, _TASKS.value, _DATA.value, _SPLIT.value, _FAST.value)
        results = judge_models(models, suite, say=lambda line: print(line, flush=True), widths=widths)
        print_results(results, Console(highlight=False, soft_wrap=True))
        paths = write_results(results, folder)
    for path in paths:
        print(f"written: {shown_path(out, path.name)}")
    return 1 if any(model.failures for model in results.models) else 0


def _opened(given: str) -> EmbeddingModel:
    """Open a model of --model as the other flags say."""
    from simcse_jax.embedding_model import open_model

    name, pooler = name_and_pooler(given)
    how = (pooler or _POOLER.value or None, DTYPE.value, _MAX_LENGTH.value, PRODUCTS.value)
    model = open_model(name, *how, prompt_name=_PROMPT_NAME.value, prompt=_PROMPT.value)
    model.name = given
    if model.max_length < (_MAX_LENGTH.value or 0):
        print(f"NOTE: --max_length={_MAX_LENGTH.value}, and {given} takes {model.max_length} tokens: cut there.")
    return model


def _write_sample() -> int:
    """Write the sheet of pairs that --sample_pairs asks for."""
    from simcse_jax.evaluation.retrieval.from_text import read_texts
    from simcse_jax.evaluation.sample_pairs import require_new_sheet, sample_pairs, write_sheet
    from simcse_jax.system.compiled import keep_compiled

    names, sources = model_names(_MODEL.value), _OWN["text"].value
    if len(names) != 1 or len(sources) != 1 or not _OUT.value:
        raise UserError("--sample_pairs needs one --model, one --text=FILE and --out=sheet.csv.")
    of_scores = ("truncate_dim", "data", "tasks", "split", "fast", *(kind for kind in _OWN if kind != "text"))
    if idle := next((name for name in of_scores if flags.FLAGS[name].present), None):
        raise UserError(f"--{idle} is of scores, and --sample_pairs scores nothing. Leave one out.")
    keep_compiled()
    out = place_of(_OUT.value)
    with written(out) as sheet:
        require_new_sheet(sheet)
        pairs = sample_pairs(_opened(names[0]).encode, read_texts(sources[0]), _SAMPLE_PAIRS.value)
        write_sheet(sheet, pairs)
    print(
        f"written: {out}, {len(pairs)} pairs. Grade each in the column score, say from 0 (unrelated) to 5 (the same); "
        f"then: python -m simcse_jax.evaluate --model={names[0]} --pairs={out}"
    )
    return 0


def read_widths(given: list[str]) -> list[int]:
    """Return the widths of --truncate_dim, ascending; UserError where one is no number."""
    wrong = [word for word in given if not word.strip().isdecimal() or not int(word)]
    if wrong:
        raise UserError(f"--truncate_dim: {wrong[0]!r} is no width; give whole numbers, for example 64,128,256.")
    return sorted({int(word) for word in given})


def name_and_pooler(given: str) -> tuple[str, str]:
    """Split a value of --model: ("bert-base-uncased", "avg") for bert-base-uncased:avg; the pooler may be ""."""
    from simcse_jax.encoder.pooling import is_pooler, known

    name, _, pooler = given.rpartition(":")
    if name and is_pooler(pooler):
        return name, pooler
    if name and Path(name).expanduser().exists() and not Path(given).expanduser().exists():
        raise UserError(f"--model={given}: there is no pooler {pooler!r}. Known: {known()}.")
    return given, ""


def default_out(names: list[str]) -> Path | str:
    """Return RUN/evaluation if the only model is a run folder, else evaluation."""
    from simcse_jax.model_folder.origin import is_run_folder

    if len(names) > 1 or not is_run_folder(local_path(names[0])):
        return Path("evaluation")
    return place_of(shown_path(place_of(names[0]), "evaluation"))


def model_names(patterns: list[str]) -> list[str]:
    """Return the models that --model names, each once; UserError for none, or for a pattern without a match."""
    if not patterns:
        raise UserError("--model is needed: a run folder, an exported or Hugging Face folder, or a Hub name.")
    names: dict[str, None] = {}
    for given in patterns:
        pattern, pooler = name_and_pooler(given)
        path, found = Path(pattern).expanduser(), [pattern]
        if glob.has_magic(pattern) and not path.exists():
            found = Store(pattern).match(pattern) if is_address(pattern) else sorted(glob.glob(str(path)))
        if not found:
            raise UserError(f"--model={given}: nothing matches (relative to {Path.cwd()}).")
        names |= dict.fromkeys((name.rstrip("/") or "/") + (f":{pooler}" if pooler else "") for name in found)
    return list(names)


if __name__ == "__main__":
    cli.run(main)
