"""Files of Hugging Face Hub repositories as local paths; the only module that talks to the network."""

import functools
import os
import re
import time
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from simcse_jax.system.errors import UserError

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # tried in this order; each may also be sharded, with an index
OPTIONAL_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "simcse_jax.json",
)
_REPO_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
DATASET_PREFIX = "hf://datasets/"
_DATASET_FILE = re.compile(DATASET_PREFIX + r"(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?/(?P<file>.+)")
_RETRY_WAIT_S = 1.0
_PROBE_EVERY_S = 30


class _NotCached(UserError):
    """The network is away and the cache does not hold the file: for an optional file this is no failure."""


def hub_file(
    repo: str, filename: str, kind: Literal["model", "dataset"] = "model", revision: str = "main"
) -> Path | None:
    """Local path of one file of a Hub repository, downloaded once; None if the repository has no such file.

    Goes through huggingface_hub, so HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE work as everywhere. Without a
    network the cached file is used; if there is none, a UserError comes within seconds.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub import errors as hub_errors

    what = f"{'data set' if kind == 'dataset' else 'model'} {repo!r}"
    unreachable = _unreachable(constants.ENDPOINT)
    if unreachable:
        cached = try_to_load_from_cache(repo, filename, revision=revision, repo_type=kind)
        if isinstance(cached, str):
            return Path(cached)
        if cached is not None:  # the cache remembers that the repository has no such file
            return None
        raise _NotCached(_no_network(what, filename, unreachable))
    try:
        return Path(hf_hub_download(repo, filename, repo_type=kind, revision=revision))
    except hub_errors.LocalEntryNotFoundError as error:  # a subclass of EntryNotFoundError that means "could not ask"
        raise _NotCached(_no_network(what, filename, str(error.__cause__ or error))) from error
    except hub_errors.EntryNotFoundError:
        return None
    except hub_errors.GatedRepoError as error:
        raise UserError(
            f"{what} on {constants.ENDPOINT} is gated, and you have no access to it.\n"
            "Accept its terms on its page, then set HF_TOKEN (or run `hf auth login`)."
        ) from error
    except hub_errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{what} does not exist on {constants.ENDPOINT}, or it is private and HF_TOKEN gives no access to it.\n"
            "Check the spelling (OWNER/NAME), or give a local folder."
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise UserError(f"{what} has no revision {revision!r}. 'main' always exists.") from error
    except hub_errors.HFValidationError as error:
        raise UserError(f"{repo!r} is not a Hub name: it must look like OWNER/NAME. Or give a local folder.") from error
    except Exception as error:  # whatever HTTP client huggingface_hub uses: its errors are not ours to list
        raise UserError(
            f"Fetching {filename} of {what} from {constants.ENDPOINT} failed:\n"
            f"  {type(error).__name__}: {_first_line(error)}\n{_WAY_OUT}"
        ) from error


def dataset_file(address: str) -> Path:
    """Local path of `hf://datasets/OWNER/NAME[@REVISION]/FILE`; UserError when it is malformed or does not exist."""
    match = _DATASET_FILE.fullmatch(address)
    if match is None:
        raise UserError(
            f"{address!r} is not a Hub file: hf://datasets/OWNER/NAME/FILE, for example "
            "hf://datasets/princeton-nlp/datasets-for-simcse/wiki1m_for_simcse.txt"
        )
    revision = unquote(match["revision"] or "main")
    path = hub_file(match["repo"], match["file"], kind="dataset", revision=revision)
    if path is None:
        raise UserError(
            f"The Hub data set {match['repo']!r} (revision {revision}) has no file {match['file']!r}. "
            "Its page on the Hub, under 'Files', lists what it has."
        )
    return path


def model_folder(name: str, weights: bool = True) -> Path:
    """Local folder of a model: `name` itself if it is a folder, else the files of that Hub repository, fetched.

    Only single files are asked for, never a listing, so plain mirrors of the Hub's resolve protocol serve as well.
    `weights=False` fetches config and tokenizer only.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"The model {name!r} is a file; give the folder that holds config.json and the weights.")
    if name.startswith((".", "~", os.sep)) or not _REPO_NAME.fullmatch(name):
        raise UserError(
            f"The model folder {name!r} does not exist (looked in {Path.cwd()}).\n"
            "Give a folder that holds config.json, or a Hub name such as bert-base-uncased or OWNER/NAME."
        )
    config = hub_file(name, CONFIG)
    if config is None:
        raise UserError(f"The Hub repository {name!r} has no {CONFIG}, so it is no model that can be loaded.")
    for filename in OPTIONAL_FILES:
        _optional_file(name, filename)
    if weights and not any(_fetch_weights(name, filename) for filename in WEIGHTS):
        raise UserError(
            f"The model {name!r} has none of {', '.join(WEIGHTS)} (whole or sharded).\n"
            "If the network is away, they may merely not be cached: fetch the model once where there is a network."
        )
    return config.parent


def _optional_file(repo: str, filename: str) -> Path | None:
    """Path of the file, or None if the repository lacks it or (without a network) the cache does."""
    try:
        return hub_file(repo, filename)
    except _NotCached:
        return None


def _fetch_weights(repo: str, filename: str) -> bool:
    """True once the weights are local, either one file or the shards that `filename`.index.json names."""
    import json

    if _optional_file(repo, filename):
        return True
    index = _optional_file(repo, f"{filename}.index.json")
    if index is None:
        return False
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{index} is not an index of weight shards: {error}. Delete it and fetch it again.") from error
    missing = [shard for shard in shards if hub_file(repo, shard) is None]
    if missing:
        raise UserError(f"The model {repo!r} lacks {', '.join(missing)}, which its {index.name} names.")
    return True


def require_hub() -> None:
    """Nothing, or a UserError within seconds if the Hub cannot be reached."""
    from huggingface_hub import constants

    unreachable = _unreachable(constants.ENDPOINT)
    if unreachable:
        raise UserError(_no_network("the Hub", "", unreachable))


def _unreachable(endpoint: str) -> str:
    """Why the Hub cannot be asked; "" if it can."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set; unset it to download"
    return _probe(endpoint, int(time.monotonic() // _PROBE_EVERY_S))


@functools.lru_cache(maxsize=8)
def _probe(endpoint: str, period: int) -> str:
    """Why the endpoint does not answer, "" if it does; asked once per `period`, for a model is some twenty files.

    huggingface_hub alone retries for 23 s per file before it gives up; a machine without a network should hear it at
    once. One retry, because the first name look-up of a starting pod often fails.
    """
    from huggingface_hub import constants, get_session

    del period  # only tells the cache when to forget
    problem: Exception | None = None
    for attempt in range(2):
        started = time.monotonic()
        try:
            get_session().head(endpoint, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            return ""
        except Exception as error:  # noqa: BLE001 (connection, name look-up, proxy, TLS: of whatever client is in use)
            problem = error
        if attempt == 1 or time.monotonic() - started > constants.HF_HUB_ETAG_TIMEOUT / 2:
            break
        time.sleep(_RETRY_WAIT_S)
    return f"{type(problem).__name__}: {_first_line(problem)}"


_WAY_OUT = (
    "Ways out: give a local path instead; fetch it once where there is a network (`hf download`) and copy HF_HOME;\n"
    "or set HF_ENDPOINT to a mirror that you can reach (or HTTPS_PROXY to your proxy)."
)


def _no_network(what: str, filename: str, why: str) -> str:
    from huggingface_hub import constants

    of = f"{filename} of {what}" if filename else what
    cached = f" and {constants.HF_HUB_CACHE} does not hold it" if filename else ""
    return f"Cannot fetch {of}: {constants.ENDPOINT} is out of reach ({why}){cached}.\n{_WAY_OUT}"


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]
