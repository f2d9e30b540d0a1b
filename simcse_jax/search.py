"""Search sentences: `python -m simcse_jax.search --model=RUN_OR_FOLDER_OR_HUB_NAME --corpus=FILE_OR_INDEX`.

Takes --query, or asks for queries until the input ends; --serve answers over HTTP. --save_index keeps the index.
"""

from __future__ import annotations

import glob
import io
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from simcse_jax import cli
from simcse_jax.serving import mining_command, model_flags
from simcse_jax.serving.mining_command import MINE, PAIRS
from simcse_jax.serving.model_flags import MODEL
from simcse_jax.system.errors import UserError
from simcse_jax.system.mirror import local_path, written

if TYPE_CHECKING:
    from simcse_jax.serving.model import SimCSE
    from simcse_jax.serving.web.guard import Settings

for module in (model_flags, mining_command):
    flags.adopt_module_key_flags(module)  # --help shows them
_CORPUS = flags.DEFINE_list(
    "corpus",
    [],
    "Files of sentences: .txt (one sentence per line), .csv, .tsv, .jsonl, .parquet; a .parquet that embed wrote with "
    "this model, whose vectors are taken; or a saved index.",
)
_COLUMN = flags.DEFINE_string("column", "", "The column of text, if a file has several.")
_QUERY = flags.DEFINE_multi_string("query", [], "A query; may be given several times.")
_TOP_K = flags.DEFINE_integer("top_k", 5, "The number of hits for a query.", lower_bound=1)
_THRESHOLD = flags.DEFINE_float("threshold", None, "The lowest score of a hit.", -1, 1)
_KIND = flags.DEFINE_string(
    "kind",
    "exact",
    "The kind of index: exact; binary (finds by the signs of features, then scores the stored vectors); hnsw or ivfpq "
    "(approximate, need faiss).",
)
_STORAGE = flags.DEFINE_string("storage", "float32", "The type of stored vectors: float32, float16 or int8.")
_SAVE = flags.DEFINE_string("save_index", "", "A folder to save the index to; give it as --corpus next time.")
_PROMPT_NAME = flags.DEFINE_string("prompt_name", None, "The prompt of queries, by its name in the model.")
_PROMPT = flags.DEFINE_string("prompt", None, "The same by its words. Default: the model's default prompt, if any.")
_CORPUS_PROMPT_NAME = flags.DEFINE_string(
    "corpus_prompt_name", None, "The prompt of --corpus, by its name in the model."
)
_CORPUS_PROMPT = flags.DEFINE_string("corpus_prompt", None, "The same by its words; of a new index, which keeps it.")
_SERVE = flags.DEFINE_bool(
    "serve", False, "Serve a JSON API and a page (needs fastapi and uvicorn). --corpus is optional."
)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "With --serve: the address to listen on; 0.0.0.0 for everyone.")
_ALLOWED = flags.DEFINE_list(
    "allowed_hosts",
    [],
    "With --serve on 127.0.0.1: further host names that requests may use, as behind a proxy.",
)
_PREFIX = flags.DEFINE_string(
    "path_prefix", "", "With --serve behind a proxy: what all paths begin with, for example /embeddings."
)
_ORIGINS = flags.DEFINE_list(
    "cors_origins", [], "With --serve: web pages that may use the server, as https://app.example; * for all."
)
_PORT = flags.DEFINE_integer("port", 8000, "With --serve: the port; 0 for any free one.", 0, 65535)


def main() -> None:
    """Search, mine hard negatives or serve, as the flags say."""
    if not MODEL.value:
        raise UserError("--model is needed: a run folder, an exported or Hugging Face folder, or a Hub name.")
    _refuse_early()
    if not (_CORPUS.value or _SERVE.value or PAIRS.value):
        raise UserError(
            "--corpus is needed: a file of sentences, or a saved index.\nFor example: --corpus=sentences.txt"
        )

    model = model_flags.open_simcse()
    prompt = model.encoder.prompt(_PROMPT_NAME.value, _PROMPT.value)
    _say_prompts(model)
    if _CORPUS.value:
        _fill(model)
    if MINE.value:
        mining_command.mine(model, prompt, _corpus_prompt())
        return
    if _SERVE.value:
        from simcse_jax.serving.web.launch import serve

        serve(model, _settings())
        return
    queries = _QUERY.value if _QUERY.value or _SAVE.value else _asked()
    is_seen = not _QUERY.value and sys.stdin.isatty()  # typed in the terminal, above its hits
    for query in queries:
        if not is_seen:
            print(f"\n{query}")
        hits = model.search(query, _TOP_K.value, _THRESHOLD.value, prompt=prompt)
        for hit in hits:
            print(f"  {hit.score:.4f}  {hit.text}")
        if not hits:
            print("  no hit")
        sys.stdout.flush()


def _say_prompts(model: SimCSE) -> None:
    """Note that a model has several prompts, and none is asked for: queries and sentences then get the same one."""
    flag_names = ("prompt_name", "prompt", "corpus_prompt_name", "corpus_prompt")
    if (
        len({*model.prompts.values()}) > 1
        and not _is_index()
        and not any(flags.FLAGS[name].present for name in flag_names)
    ):
        default = model.encoder.texts.prompt
        print(
            f"note: this model has the prompts {', '.join(model.prompts)}; queries and sentences both get "
            f"{repr(default) if default else 'none'}. --prompt_name=NAME and --corpus_prompt_name=NAME choose",
            file=sys.stderr,
        )


def _refuse_early() -> None:
    """Raise UserError now for mistakes that would otherwise stop the command after everything is encoded."""
    from simcse_jax.serving.index.folder import require_index_or_empty

    mining_command.require_complete()
    if MINE.value and (_SERVE.value or _QUERY.value):
        other = "--serve" if _SERVE.value else "--query"
        raise UserError(f"--mine-negatives and {other} exclude each other. Leave one out.")
    if MINE.value and Path(MINE.value).resolve() in [Path(name).resolve() for name in (*PAIRS.value, *_CORPUS.value)]:
        raise UserError(f"--mine-negatives={MINE.value} would overwrite an input file. Give another file.")
    if _SAVE.value:
        with written(_SAVE.value) as folder:
            require_index_or_empty(folder)
    if any(not query.strip() for query in _QUERY.value):
        raise UserError("--query is blank. Give it a text, or leave it out to type queries.")
    if broken := next((query for query in _QUERY.value if not _is_text(query)), None):
        raise UserError(f"--query={broken!r:.80} is not UTF-8. Convert it, for example with iconv.")
    if _SERVE.value:
        try:
            from simcse_jax.serving.web.launch import require_port
        except ImportError as error:
            raise UserError(f"--serve needs FastAPI and uvicorn ({error}): pip install fastapi uvicorn") from error
        if _PROMPT_NAME.value or _PROMPT.value:
            raise UserError(
                "--prompt_name and --prompt are of the queries here; with --serve, each request names its own."
            )
        if _QUERY.value:
            raise UserError("--query and --serve exclude each other. Leave one out; the server takes queries itself.")
        require_port(_settings())
    of_new = ("kind", "storage", "column", "corpus_prompt_name", "corpus_prompt")
    given = [name for name in of_new if flags.FLAGS[name].present]
    # Where hard negatives are mined, the positives are a corpus.
    unused = [name for name in given if not (MINE.value and name.startswith("corpus_prompt"))]
    unused += ["save_index"] if _SAVE.value else []
    if unused and not _CORPUS.value:
        raise UserError(f"--{unused[0]} is about the index of --corpus, which is missing. Give one, or leave it out.")
    if given and _is_index():
        raise UserError(
            f"--{given[0]} is for a new index, but --corpus={_CORPUS.value[0]} is a saved one. Leave it out."
        )


def _name(model: str) -> str:
    """Return the name of the model for clients: of the folder or Hub repository; of RUN/model, the run's."""
    path = Path(model)
    return (path.parent.name if path.name == "model" else path.name) or model


def _settings() -> Settings:
    from simcse_jax.serving.web.guard import Settings

    return Settings(
        name=_name(MODEL.value),
        host=_HOST.value,
        port=_PORT.value,
        api_key=os.environ.get("SIMCSE_API_KEY"),  # Settings refuses an empty one
        hosts=tuple(_ALLOWED.value),
        path_prefix=_PREFIX.value,
        origins=tuple(_ORIGINS.value),
    )


def _is_index() -> bool:
    return len(_CORPUS.value) == 1 and _corpus_path(_CORPUS.value[0]).is_dir()


def _corpus_path(name: str) -> Path:
    """Return the local path of an entry of --corpus, if it is no pattern."""
    return Path(name) if glob.has_magic(name) else local_path(name)


def _vector_files() -> list[Path]:
    """Return the files of --corpus if `embed` wrote them all; [] if none, or --column asks for their texts."""
    from simcse_jax.serving.vector_file import is_vector_file

    paths = [_corpus_path(name) for name in _CORPUS.value]
    written = [] if _COLUMN.value else [path for path in paths if is_vector_file(path)]
    if written and len(written) < len(paths):
        other = next(path for path in paths if path not in written)
        raise UserError(
            f"--corpus: {written[0]} holds vectors and {other} only texts. Embed that one too, or give --column=text "
            "to encode the texts of all."
        )
    return written


def _corpus_prompt() -> dict[str, Any]:
    return {"prompt_name": _CORPUS_PROMPT_NAME.value, "prompt": _CORPUS_PROMPT.value}


def _fill(model: SimCSE) -> None:
    """Open or build the index of --corpus, and save it to --save_index."""
    from simcse_jax.data.texts import open_column

    if _is_index():
        index = model.load_index(_CORPUS.value[0])
    elif vectors := _vector_files():
        index = model.build_index(vectors[0], _KIND.value, _STORAGE.value, show_progress=True, **_corpus_prompt())
        for path in vectors[1:]:
            model.add(path, show_progress=True)
    else:
        texts = open_column(_CORPUS.value, _COLUMN.value)
        index = model.build_index(texts, _KIND.value, _STORAGE.value, show_progress=True, **_corpus_prompt())
    print(f"{len(index):,} sentences", file=sys.stderr)
    if _SAVE.value:
        model.save(_SAVE.value)
        print(f"written: {_SAVE.value}", file=sys.stderr)


def _asked() -> Iterator[str]:
    """Yield queries from the terminal or the lines of a pipe; without empty ones, and those that are not UTF-8."""
    shown = "query> " if sys.stdin.isatty() else ""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    for number in itertools.count(1):
        try:
            query = input(shown)
        except EOFError:
            return
        if not _is_text(query):
            print(
                f"line {number} is left out: it is not {sys.stdin.encoding.upper()}, {query!r:.80}",
                file=sys.stderr,
                flush=True,
            )
        elif query.strip():
            yield query


def _is_text(query: str) -> bool:
    """Return whether the query can be encoded; bytes that are not UTF-8 arrive as surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in query)


if __name__ == "__main__":
    cli.run(main)
