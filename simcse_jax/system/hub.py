"""Fetch files of Hugging Face Hub repositories."""

import functools
import hashlib
import os
import re
import time
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from simcse_jax.system.errors import UserError
from simcse_jax.system.json_file import read_json
from simcse_jax.system.mirror import local_path

CONFIG = "config.json"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # tried in this order; each may also be sharded, with an index
_MODULES = "modules.json"
_OF_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spm.model",
    "special_tokens_map.json",
)
_OF_FOLDER = ("1_Pooling/config.json", "config_sentence_transformers.json", "simcse_jax.json")
# What sentence-transformers says of an encoder: by the family's name in old folders, in others by the first.
TRANSFORMER_SETTINGS = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_REPO_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
DATASET_PREFIX = "hf://datasets/"
_DATASET_FILE = re.compile(DATASET_PREFIX + r"(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?/(?P<file>.+)")
_SHA256 = re.compile("[0-9a-f]{64}")
_RETRY_WAIT_S = 1.0
_PROBE_EVERY_S = 30


class _NotCached(UserError):
    """Report that there is no network and the cache lacks the file; for an optional file this is no failure."""


def hub_file(
    repo: str, filename: str, kind: Literal["model", "dataset"] = "model", revision: str = "main"
) -> Path | None:
    """Return the local path of one file of a Hub repository, downloaded once, or None if there is no such file.

    huggingface_hub does the work, so HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE have their usual effect.
    Without a network the cached file is used; if there is none, raises UserError within seconds.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub import errors as hub_errors

    what = f"{'data set' if kind == 'dataset' else 'model'} {repo!r}"
    unreachable = _unreachable(constants.ENDPOINT)
    if unreachable:
        cached = try_to_load_from_cache(repo, filename, revision=revision, repo_type=kind)
        if isinstance(cached, str):
            return _verified(Path(cached))
        if cached is not None:  # the cache records that the repository has no such file
            return None
        raise _NotCached(_no_network(what, filename, unreachable))
    try:
        path = hf_hub_download(repo, filename, repo_type=kind, revision=revision)
    except hub_errors.LocalEntryNotFoundError as error:  # despite its base class it means "could not ask"
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
    except Exception as error:  # huggingface_hub may use any HTTP client, with errors of its own
        raise UserError(
            f"Fetching {filename} of {what} from {constants.ENDPOINT} failed:\n"
            f"  {type(error).__name__}: {_first_line(error)}\n{_WAY_OUT}"
        ) from error
    return _verified(Path(path))


def _verified(path: Path) -> Path:
    """Return the path of a cached file; UserError where its content has changed since it came from the Hub.

    The cache names a large file, such as weights, by the SHA-256 of its content, which nothing else reads.
    """
    stored = path.resolve()
    if _SHA256.fullmatch(stored.name):
        with stored.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != stored.name:
            raise UserError(f"{path} is damaged: it is not what the Hub sent.\nDelete {stored} to fetch it again.")
    return path


def dataset_file(address: str) -> Path:
    """Return the local path of `hf://datasets/OWNER/NAME[@REVISION]/FILE`.

    Raises UserError when the address is malformed or there is no such file.
    """
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
    """Return the local folder of a model: `name` itself if it is a folder, else the files of that Hub repository.

    Of an address in an object store, a copy.

    Asks for single files and never for a listing, so that plain mirrors of the Hub's resolve protocol work too.
    weights: False fetches config and tokenizer only. Raises UserError when there is no such model.
    """
    path = local_path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"The model {name!r} is a file; give the folder that holds config.json and the weights.")
    if name.startswith((".", "~", os.sep)) or not _REPO_NAME.fullmatch(name):
        raise UserError(
            f"The model folder {name!r} does not exist (looked in {Path.cwd()}).\n"
            "Give a folder that holds config.json, or a Hub name such as bert-base-uncased or OWNER/NAME."
        )
    modules = _modules(_optional_file(name, _MODULES))
    inner = next((place for kind, place in modules if kind == "Transformer"), "")  # 0_Transformer/ in old releases
    config, adapter = hub_file(name, inner + CONFIG), _optional_file(name, inner + ADAPTER)
    main = config or adapter
    if main is None:
        raise UserError(f"The Hub repository {name!r} has no {inner}{CONFIG}, so it is no model that can be loaded.")
    for filename in (*_OF_FOLDER, *(inner + filename for filename in _OF_TOKENIZER)):
        _optional_file(name, filename)
    any(_optional_file(name, inner + filename) for filename in TRANSFORMER_SETTINGS)  # the first that is there
    for _, place in modules:
        if place not in ("", inner) and _optional_file(name, place + CONFIG):
            any(_optional_file(name, place + filename) for filename in WEIGHTS)
    wanted = ADAPTER_WEIGHTS if adapter else WEIGHTS
    if weights and not any(_fetch_weights(name, inner + filename) for filename in wanted):
        raise UserError(
            f"The model {name!r} has none of {', '.join(inner + filename for filename in wanted)} (whole or sharded).\n"
            "Without a network, it may be that they are only not cached: fetch the model once where there is a network."
        )
    return main.parents[len(Path(inner).parts)]


def _modules(path: Path | None) -> list[tuple[str, str]]:
    """Return the class and the folder ("" or "NAME/") of each module that modules.json lists.

    What is malformed is for its reader to say.
    """
    entries = read_json(path, list) if path else []
    found = [
        (str(entry.get("type")), Path(str(entry.get("path") or ""))) for entry in entries if isinstance(entry, dict)
    ]
    inside = [(kind, place) for kind, place in found if ".." not in place.parts and not place.is_absolute()]
    return [(kind.split(".")[-1], f"{place.as_posix()}/" if place.parts else "") for kind, place in inside]


def _optional_file(repo: str, filename: str) -> Path | None:
    """Return the path of the file, or None if the repository lacks it or, without a network, the cache does."""
    try:
        return hub_file(repo, filename)
    except _NotCached:
        return None


def _fetch_weights(repo: str, filename: str) -> bool:
    """Fetch the weights, one file or the shards that `filename`.index.json names; return whether there are any."""
    if _optional_file(repo, filename):
        return True
    index = _optional_file(repo, f"{filename}.index.json")
    if index is None:
        return False
    place = filename.rpartition("/")[0]
    missing = [shard for shard in shard_names(index) if hub_file(repo, str(Path(place, shard))) is None]
    if missing:
        raise UserError(f"The model {repo!r} lacks {', '.join(missing)}, which its {index.name} names.")
    return True


def shard_names(index: Path) -> list[str]:
    """Return the files that an index of weight shards names; UserError if it is none."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict):
        raise UserError(f"{index} is no index of weight shards (no weight_map).\nCopy it again from its source.")
    names = sorted({str(name) for name in found.values()})
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise UserError(f"{index} names {outside[0]}, which is not beside it.\nCopy it again from the model's source.")
    return names


def require_hub() -> None:
    """Raise UserError within seconds if the Hub cannot be reached."""
    from huggingface_hub import constants

    unreachable = _unreachable(constants.ENDPOINT)
    if unreachable:
        raise UserError(_no_network("the Hub", "", unreachable))


def _unreachable(endpoint: str) -> str:
    """Return why the Hub cannot be reached; "" if it can."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set; unset it to download"
    return _probe(endpoint, int(time.monotonic() // _PROBE_EVERY_S))


@functools.lru_cache(maxsize=8)
def _probe(endpoint: str, period: int) -> str:
    """Return why the endpoint does not answer, "" if it does; asks once per `period`, since a model has twenty files.

    huggingface_hub alone would retry for 23 s per file. One retry here, because the first name look-up of a starting
    pod often fails.
    """
    from huggingface_hub import constants, get_session

    del period  # a new period makes lru_cache ask again
    problem: Exception | None = None
    for attempt in range(2):
        started = time.monotonic()
        try:
            get_session().head(endpoint, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            return ""
        except Exception as error:  # noqa: BLE001 (connection, name look-up, proxy or TLS, from any HTTP client)
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
