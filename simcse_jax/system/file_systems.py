"""Open the file systems of object stores, which are fsspec's, and say what their errors mean."""

from __future__ import annotations

import errno
import importlib
import logging
import os
from contextlib import suppress
from typing import Any

from simcse_jax.system.errors import UserError, short

# Packages of fsspec's file systems, by scheme.
PACKAGES = {
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "s3": "s3fs",
    "s3a": "s3fs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
}
_MAY_PASS = (408, 429, 500, 502, 503, 504)  # HTTP statuses of what may work later
_UNREACHED = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ETIMEDOUT, errno.EPIPE, errno.ENETDOWN, errno.EHOSTDOWN}
_OF_NETWORK = ("aiohttp", "requests", "urllib3", "botocore", "azure", "http", "google", "socket", "ssl", "fsspec")
_CREDENTIALS = {
    "gcsfs": "On a Cloud machine, give its service account the role roles/storage.objectUser on the bucket; elsewhere "
    "run\n`gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a key file.",
    "s3fs": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, of a user who may read and write there.",
}


def open_file_system(scheme: str, address: str) -> Any:
    """Return fsspec's file system of that scheme, without caches of its own; UserError where there is none."""
    import fsspec

    package = PACKAGES.get(scheme, "")
    plain: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    try:
        if package == "gcsfs":
            return _google(plain)
        return fsspec.filesystem(scheme, **plain)
    except ImportError as error:
        raise UserError(
            f"{address}: addresses that begin with {scheme}:// need a package: pip install {package or error.name}"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{address}: {scheme}:// is no object store that is known ({short(error)}).\nGive gs://BUCKET/NAME, "
            "s3://BUCKET/NAME or another one of fsspec's, or the path of a folder."
        ) from error


def credentials(scheme: str) -> str:
    """Return how to give credentials for addresses of that scheme."""
    return _CREDENTIALS.get(PACKAGES.get(scheme, ""), "Give credentials that may read and write there.")


def _google(plain: dict[str, Any]) -> Any:
    """Return gcsfs's file system, with its own retries left out: they say nothing, and have no limit to choose."""
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # renames of folders, which are not made here
    core = importlib.import_module("gcsfs.core")
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs a traceback of each failed attempt
    once = {name: getattr(core.GCSFileSystem, name) for name in ("_request", "_get_file_request")}
    once = {name: getattr(method, "__wrapped__", method) for name, method in once.items()}
    emulated = os.environ.get("STORAGE_EMULATOR_HOST", "") not in ("", "default")
    return type("GoogleStorage", (core.GCSFileSystem,), once)(token="anon" if emulated else None, **plain)


def _status(error: BaseException) -> int | None:
    """Return the HTTP status in an error, None where there is none."""
    for name in ("code", "status", "status_code"):
        with suppress(AttributeError, ValueError):
            return int(str(getattr(error, name)))
    return None


def is_passing(error: Exception) -> bool:
    """Return whether a call that failed so may work later."""
    status = _status(error)
    if status is not None:
        return status in _MAY_PASS
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno in _UNREACHED:
        return True
    # Errors of a library's own, but for those that say who one is.
    own = type(error).__module__.partition(".")[0] in _OF_NETWORK
    return own and not isinstance(error, ValueError | TypeError) and "Credential" not in type(error).__name__


def is_denied(error: Exception) -> bool:
    """Return whether a call failed for want of credentials, or of what these permit."""
    text = str(error)
    is_told = _status(error) in (401, 403) or isinstance(error, PermissionError) or text.startswith("Forbidden")
    return is_told or "credentials" in text.lower() or "credentials" in type(error).__name__.lower()
