"""Load the retrieval task that a user names: a folder, three files, NanoBEIR by name, or a Hub data set."""

from __future__ import annotations

from pathlib import Path

from simcse_jax.evaluation.options import parse_options, split_options
from simcse_jax.evaluation.retrieval.data import SELF, Retrieval
from simcse_jax.evaluation.retrieval.hub import HUB_NAME, NANO, NANO_PREFIX, read_hub, read_nano
from simcse_jax.evaluation.retrieval.readers import FILES, LAYOUT, read_files, read_folder
from simcse_jax.system.errors import UserError
from simcse_jax.system.mirror import local_path

SPLIT, SELF_HITS = "split", "self"


def load_retrieval(source: str) -> Retrieval:
    """Return the task at `source`; UserError where there is none, or none that can be scored.

    source: a folder in BEIR's layout, `DIR[:split=dev,self=keep]`; `corpus=FILE,queries=FILE,qrels=FILE[,self=keep]`;
    `nanobeir:NFCorpus`; or a Hub data set with the configurations corpus, queries and qrels,
    `OWNER/NAME[:split=dev]`. self: see `make_retrieval`.
    """
    if source.partition("=")[0] in (*FILES, SELF_HITS):
        return _three_files(source)
    place, options = split_options(source, (SPLIT, SELF_HITS))
    self_hits, split = _self_hits(source, options), options.get(SPLIT, "")
    folder = local_path(place)
    if folder.is_dir():
        return read_folder(place, folder, split, self_hits)
    if place.startswith(NANO_PREFIX):
        if split:
            raise UserError(f"{source}: a task of NanoBEIR has one split. Leave out {SPLIT}=.")
        return read_nano(place, self_hits)
    if HUB_NAME.fullmatch(place) and not folder.exists() and not place.startswith("."):
        return read_hub(place, place, split, self_hits)
    what = "is a file" if folder.exists() else f"does not exist (relative to {Path.cwd()})"
    raise UserError(
        f"The retrieval task {source!r} {what}.\nGive a {LAYOUT}; corpus=FILE,queries=FILE,qrels=FILE; "
        f"{NANO_PREFIX}{NANO[6]}; or a Hub data set OWNER/NAME."
    )


def _three_files(source: str) -> Retrieval:
    options = parse_options(source, source, (*FILES, SELF_HITS))
    missing = [key for key in FILES if key not in options]
    if missing:
        raise UserError(f"{source}: {missing[0]}=FILE is missing; all of {', '.join(FILES)} are needed.")
    paths = [local_path(options[key]) for key in FILES]
    return read_files(source, *paths, split="as given", self_hits=_self_hits(source, options))


def _self_hits(source: str, options: dict[str, str]) -> str:
    found = options.get(SELF_HITS, "")
    if found and found not in SELF:
        raise UserError(f"{source}: {SELF_HITS}={found} must be {' or '.join(SELF)}.")
    return found
