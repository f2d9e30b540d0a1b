"""Search: `python -m simcse_jax.search --model=RUN_OR_FOLDER_OR_HUB_NAME --corpus=FILE_OR_INDEX [--query=...]`.

Without --query, asks for queries until the input ends; --serve answers over HTTP. --save_index keeps the index.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from simcse_jax import cli
from simcse_jax.system.errors import UserError

if TYPE_CHECKING:
    from simcse_jax.serving.model import SimCSE
    from simcse_jax.serving.web.settings import Settings

_MODEL = flags.DEFINE_string("model", "", "A run folder, an exported or Hugging Face folder, or a Hub name.")
_CORPUS = flags.DEFINE_list(
    "corpus", [], "Files of sentences: .txt (a sentence a line), .csv, .tsv, .jsonl, .parquet; or a saved index."
)
_COLUMN = flags.DEFINE_string("column", "", "The column of text, where there are several.")
_QUERY = flags.DEFINE_multi_string("query", [], "What to search for; several times for several.")
_TOP_K = flags.DEFINE_integer("top_k", 5, "How many hits a query gets.", lower_bound=1)
_THRESHOLD = flags.DEFINE_float("threshold", None, "Leave out hits that score less.", -1, 1)
_KIND = flags.DEFINE_string("kind", "exact", "exact; or hnsw or ivfpq, approximate, through faiss.")
_STORAGE = flags.DEFINE_string("storage", "float32", "What a vector's numbers are stored as: float32, float16 or int8.")
_SAVE = flags.DEFINE_string("save_index", "", "Folder to write the index to; give it as --corpus the next time.")
_POOLER = flags.DEFINE_string("pooler", "", "Another pooler than the one that the model was made for.")
_DTYPE = flags.DEFINE_string("dtype", "float32", "Precision of the computation: float32 or bfloat16.")
_MAX_LENGTH = flags.DEFINE_integer("max_length", 128, "Tokens at which texts are cut.", lower_bound=3)
_MINE = flags.DEFINE_string(
    "mine_negatives", "", "Search for no query, but for hard negatives of --pairs: the .csv for training to write."
)
_PAIRS = flags.DEFINE_list(
    "pairs",
    [],
    "With --mine-negatives: training files of sentence and positive. Without --corpus, their positives are.",
)
_RANKS = flags.DEFINE_list("ranks", ["1", "100"], "With --mine-negatives: the window of ranks to take one from.")
_MARGIN = flags.DEFINE_float("margin", 0.05, "With --mine-negatives: how far below the positive's score to stay.", 0, 2)
_CEILING = flags.DEFINE_float("ceiling", 0.9, "With --mine-negatives: the highest score with the sentence.", -1, 1)
_SERVE = flags.DEFINE_bool(
    "serve", False, "Serve a JSON API and a page (needs the extra [web]). --corpus may be absent."
)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "With --serve: the address to listen on; 0.0.0.0 for all.")
_ALLOWED = flags.DEFINE_list(
    "allowed_hosts", [], "With --serve on this machine alone: further names that clients call it by, as behind a proxy."
)
_PORT = flags.DEFINE_integer("port", 8000, "With --serve: the port.", 0, 65535)


def main() -> None:
    """Search, ask or serve, as the flags say."""
    if not _MODEL.value:
        raise UserError("--model is needed: a run folder, an exported or Hugging Face folder, or a Hub name.")
    _refuse_early()
    if not (_CORPUS.value or _SERVE.value or _PAIRS.value):
        raise UserError(
            "--corpus is needed: a file of sentences, or a saved index.\nFor example: --corpus=sentences.txt"
        )

    from simcse_jax.serving.model import SimCSE
    from simcse_jax.system.compiled import keep_compiled

    keep_compiled()
    model = SimCSE(_MODEL.value, _POOLER.value or None, _DTYPE.value, _MAX_LENGTH.value)
    if _CORPUS.value:
        _fill(model)
    if _MINE.value:
        _mine(model)
        return
    if _SERVE.value:
        from simcse_jax.serving.web.launch import serve

        serve(model, _settings())
        return
    queries = _QUERY.value if _QUERY.value or _SAVE.value else _asked()
    for query in queries:
        print(f"\n{query}" if _QUERY.value else "", end="\n" if _QUERY.value else "")
        hits = model.search(query, _TOP_K.value, _THRESHOLD.value)
        for hit in hits:
            print(f"  {hit.score:.4f}  {hit.text}")
        if not hits:
            print("  nothing that similar")
        sys.stdout.flush()


def _refuse_early() -> None:
    """UserError for what could only fail once everything is encoded."""
    from simcse_jax.serving.index.folder import require_ours
    from simcse_jax.serving.mining import require_window
    from simcse_jax.serving.training_file import open_pairs, require_csv

    if bool(_MINE.value) != bool(_PAIRS.value):
        raise UserError("--mine-negatives=OUT.csv and --pairs=TRAINING_FILE belong together; give both or neither.")
    if _MINE.value:
        if _SERVE.value or _QUERY.value:
            other = "--serve" if _SERVE.value else "--query"
            raise UserError(f"--mine-negatives and {other} exclude each other. Leave one of them out.")
        require_csv(Path(_MINE.value).expanduser())
        require_window(_ranks())
        if Path(_MINE.value).resolve() in [Path(name).resolve() for name in (*_PAIRS.value, *_CORPUS.value)]:
            raise UserError(f"--mine-negatives={_MINE.value} would replace what is read. Give another file.")
        open_pairs(_PAIRS.value)
    if _SAVE.value:
        require_ours(Path(_SAVE.value).expanduser())
    if any(not query.strip() for query in _QUERY.value):
        raise UserError("--query is blank. Give it a text, or leave it out to be asked.")
    if _SERVE.value:
        from simcse_jax.serving.web.launch import require_port, require_web

        require_web()
        if _QUERY.value:
            raise UserError("--query and --serve exclude each other: the server's page and /search take queries.")
        require_port(_settings())
    given = [name for name in ("kind", "storage", "column") if flags.FLAGS[name].present]
    unused = [*given, *(["save_index"] if _SAVE.value else [])]
    if unused and not _CORPUS.value:
        raise UserError(f"--{unused[0]} is about the index of --corpus, and there is none. Give one, or leave it out.")
    if given and _is_index():
        raise UserError(
            f"--{given[0]} is for a new index, and --corpus={_CORPUS.value[0]} is a saved one. Leave it out."
        )


def _name(model: str) -> str:
    """What clients are told: the folder's or Hub repository's name, and of RUN/model the run's."""
    path = Path(model)
    return (path.parent.name if path.name == "model" else path.name) or model


def _settings() -> Settings:
    from simcse_jax.serving.web.settings import Settings

    return Settings(
        name=_name(_MODEL.value),
        host=_HOST.value,
        port=_PORT.value,
        api_key=os.environ.get("SIMCSE_API_KEY"),  # an empty one is a mistake, not none
        hosts=tuple(_ALLOWED.value),
    )


def _ranks() -> tuple[int, int]:
    try:
        low, high = map(int, _RANKS.value)
    except ValueError:
        raise UserError(f"--ranks={','.join(_RANKS.value)}: two whole numbers are needed, such as 1,100.") from None
    return low, high


def _is_index() -> bool:
    return len(_CORPUS.value) == 1 and Path(_CORPUS.value[0]).expanduser().is_dir()


def _fill(model: SimCSE) -> None:
    """The index of --corpus, saved where --save_index says."""
    from simcse_jax.serving.corpus_texts import corpus_texts

    if _is_index():
        index = model.load_index(Path(_CORPUS.value[0]).expanduser())
    else:
        texts = corpus_texts(_CORPUS.value, _COLUMN.value)
        index = model.build_index(texts, _KIND.value, _STORAGE.value, show_progress=sys.stderr.isatty())
    print(f"{len(index):,} sentences", file=sys.stderr)
    if _SAVE.value:
        model.save(Path(_SAVE.value).expanduser())
        print(f"written: {_SAVE.value}", file=sys.stderr)


def _mine(model: SimCSE) -> None:
    """Write the training file with hard negatives."""
    from simcse_jax.serving.mining import hard_negatives
    from simcse_jax.serving.training_file import open_pairs, read_pairs, write_negatives

    pairs = read_pairs(_PAIRS.value)
    tables = zip(*open_pairs(_PAIRS.value), strict=True)
    if left := {name for table, read in tables for name in (*table.columns, *table.other_columns) if name not in read}:
        print(f"not read: {', '.join(sorted(left))}", file=sys.stderr)
    shown = sys.stderr.isatty()
    anchors, positives = (model.encode([pair[side] for pair in pairs], show_progress=shown) for side in (0, 1))
    index = model.index
    if index is None:
        index = model.build_index(dict.fromkeys(positive for _, positive in pairs), show_progress=shown)
    if len(index) <= _ranks()[1]:
        print(
            f"note: --ranks={','.join(_RANKS.value)} takes in the whole corpus of {len(index):,} sentences; "
            "more sentences (--corpus) make better negatives",
            file=sys.stderr,
        )
    found = hard_negatives(
        pairs, anchors, positives, index.nearest, index.text, _ranks(), _MARGIN.value, _CEILING.value
    )
    count = write_negatives(_MINE.value, found)
    print(f"written: {_MINE.value} ({count:,} triplets of {len(pairs):,} pairs)")


def _asked() -> Iterator[str]:
    """Queries from the terminal, or lines of a pipe; empty ones are passed over."""
    shown = "query> " if sys.stdin.isatty() else ""
    while True:
        try:
            query = input(shown)
        except EOFError:
            return
        if query.strip():
            yield query


if __name__ == "__main__":
    cli.run(main)
