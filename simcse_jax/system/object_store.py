"""Talk to an object store, such as gs://bucket/run: list, read, write and delete whole objects, with retries.

An object is written whole or not at all, and nothing here renames or appends, which object stores cannot do.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from simcse_jax.system.errors import Unreachable, UserError, short
from simcse_jax.system.file_systems import PACKAGES, credentials, is_denied, is_passing, open_file_system

Item = TypeVar("Item")

RETRY_S = 300.0  # for how long a call is tried again while the store is out of reach; $SIMCSE_STORE_RETRY_S
LONGEST_WAIT_S = 30.0  # between two attempts
AT_ONCE = 8  # objects that are sent or fetched at a time
_ADDRESS = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_MISSPELT = re.compile(f"({'|'.join(PACKAGES)}):.*", re.IGNORECASE | re.DOTALL)
_OTHERS = ("hf", "http", "https", "file")  # addresses of other things


class Entry(NamedTuple):
    """Describe an object: its size in bytes, and a tag that is another after each write."""

    size: int
    tag: str


def is_address(name: str | os.PathLike[str]) -> bool:
    """Return whether a name is an address in an object store, such as gs://bucket/run."""
    found = _ADDRESS.fullmatch(str(name))
    return found is not None and found["scheme"] not in _OTHERS


def require_spelling(name: str | os.PathLike[str], what: str) -> None:
    """Raise UserError where a name, which is no address, was meant as one: GS://bucket/run, gs:/bucket/run, gs://."""
    if not is_address(name) and _MISSPELT.fullmatch(str(name)):
        raise UserError(
            f"{what}: {str(name)!r} is neither a path nor an address in a bucket.\nWrite gs://BUCKET/NAME, in small "
            "letters and with two slashes; for a folder of that name, put ./ before it."
        )


def place_of(name: str | os.PathLike[str]) -> Path | str:
    """Return an address as it is, and the path of any other name."""
    return str(name).rstrip("/") if is_address(name) else Path(name).expanduser()


def shown_path(name: str | os.PathLike[str], *parts: str) -> str:
    """Return what lies in a folder or under an address, as it is named."""
    return "/".join((str(name).rstrip("/"), *parts)) if is_address(name) else str(Path(name, *parts))


class Store:
    """Hold what lies under one address. Objects are named by what follows it and a slash; "" is the address itself."""

    def __init__(self, address: str, say: Callable[[str], None] = print):
        """say: called with lines on waiting. UserError for an address that cannot be one, or without its package."""
        found = _ADDRESS.fullmatch(address.rstrip("/"))
        if found is None or not found["rest"].strip("/"):
            raise UserError(f"{address!r} is no address in an object store. Give BUCKET/NAME after gs://.")
        self.address, self._say = address.rstrip("/"), say
        self._scheme = found["scheme"]
        self._files: Any = open_file_system(self._scheme, self.address)
        self._root = self._files._strip_protocol(self.address)
        self.bucket = self._root.lstrip("/").partition("/")[0]
        self.retry_s = _retry_s()

    def find(self, within: str = "") -> dict[str, Entry]:
        """Return all objects under a name, by their names; UserError where there is no such bucket.

        Left out are the empty objects FOLDER/ that stand for folders, which consoles and mounted buckets make.
        """
        found = self._tried("listing", lambda: self._files.find(self._path(within), detail=True))
        entries = {self._name(path): _entry(info) for path, info in sorted(found.items()) if not path.endswith("/")}
        if outside := next((name for name in entries if {"..", "."} & {*name.split("/")}), None):
            raise UserError(
                f"{self.address}: the object {outside!r} would be a file outside of the folder that it is copied to.\n"
                "Rename or delete it."
            )
        return entries

    def top(self) -> set[str]:
        """Return the first parts of the names of all objects, without listing what lies deeper."""
        with suppress(FileNotFoundError):
            found = self._tried("listing", lambda: self._files.ls(self._root, detail=False), missing_bucket=False)
            return {self._name(path.rstrip("/")).partition("/")[0] for path in found} - {""}
        self.find(".")  # a bucket that is not there is an error
        return set()

    def match(self, pattern: str) -> list[str]:
        """Return the addresses of the objects that a pattern such as gs://bucket/*.txt matches, sorted."""
        scheme = self.address.partition("://")[0]
        found = self._tried("listing", lambda: self._files.glob(pattern))
        return [f"{scheme}://{path.lstrip('/')}" for path in sorted(found) if not path.endswith("/")]

    def get(self, name: str, to: Path) -> None:
        """Fetch an object into a file, which appears whole; FileNotFoundError where it is gone."""
        to.parent.mkdir(parents=True, exist_ok=True)
        partial = to.with_name(f".{to.name}.{os.getpid()}.partial")
        try:
            self._tried(
                f"fetching {name}".rstrip(), lambda: self._files.get_file(self._path(name), str(partial)), False
            )
            os.replace(partial, to)
        finally:
            partial.unlink(missing_ok=True)

    def get_all(self, names: Mapping[str, Path]) -> None:
        """Fetch these objects into files, several at a time."""
        _each(lambda pair: self.get(*pair), names.items())

    def put(self, path: Path, name: str) -> None:
        """Write a file as an object."""
        self._tried(f"writing {name}".rstrip(), lambda: self._files.put_file(str(path), self._path(name)))

    def put_all(self, paths: Mapping[str, Path]) -> None:
        """Write these files as objects of these names, several at a time."""
        _each(lambda pair: self.put(pair[1], pair[0]), paths.items())

    def read(self, name: str) -> bytes | None:
        """Return the content of an object, None where there is none."""
        try:
            return self._tried(f"reading {name}", lambda: self._files.cat_file(self._path(name)), missing_bucket=False)
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write an object with this content."""
        self._tried(f"writing {name}".rstrip(), lambda: self._files.pipe_file(self._path(name), content))

    def create(self, name: str, content: bytes) -> bool:
        """Write an object unless there is one of that name; return whether it was written.

        The store decides which of several that create at a time succeeds, where it knows such a condition.
        """
        try:
            self._tried(
                f"writing {name}".rstrip(), lambda: self._files.pipe_file(self._path(name), content, mode="create")
            )
        except FileExistsError:
            return self.read(name) == content  # written by an attempt whose answer was lost
        return True

    def delete(self, names: Iterable[str]) -> None:
        """Delete these objects; one that is not there is no error."""

        def delete(name: str) -> None:
            with suppress(FileNotFoundError):
                self._tried(f"deleting {name}", lambda: self._files.rm_file(self._path(name)), missing_bucket=False)

        _each(delete, names)

    def require_writable(self) -> None:
        """Raise UserError where nothing can be written here."""
        # Beside what lies here, with the same prefix: this may be one object, and some stores make folders of names.
        inside = "/" if self._root.strip("/") == self.bucket else ""
        probe = f"{self._root}{inside}.writable-{os.getpid()}"
        self._tried("writing", lambda: self._files.pipe_file(probe, b""))
        self._tried("deleting", lambda: self._files.rm_file(probe))

    @contextmanager
    def briefly(self, retry_s: float) -> Iterator[None]:
        """Within the block, give up after so many seconds at most, and be silent."""
        before = self.retry_s, self._say
        self.retry_s, self._say = min(retry_s, self.retry_s), lambda _: None
        try:
            yield
        finally:
            self.retry_s, self._say = before

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _name(self, path: str) -> str:
        return path.lstrip("/").removeprefix(self._root.lstrip("/")).lstrip("/")

    def _tried(self, what: str, call: Callable[[], Any], missing_bucket: bool = True) -> Any:
        """Return what the call returns; try again while the store is out of reach, up to a limit.

        missing_bucket: raise UserError, and not FileNotFoundError, where the call finds nothing: it would otherwise
        only fail where there is no such bucket.
        """
        until, wait = time.monotonic() + self.retry_s, 1.0
        while True:
            try:
                return call()
            except FileNotFoundError as error:
                if not missing_bucket:
                    raise
                raise UserError(
                    f"{self.address}: there is no bucket {self.bucket!r} ({what}).\nCheck the spelling, or make it: "
                    f"gcloud storage buckets create gs://{self.bucket} --location=REGION"
                ) from error
            except FileExistsError:
                raise
            except Exception as error:
                if not is_passing(error):
                    raise self._refused(what, error) from error
                left = until - time.monotonic()
                if left <= 0:
                    raise Unreachable(
                        f"{self.address} is out of reach, and was for {self.retry_s:.0f} s ({what}): {short(error)}.\n"
                        "Give the same command again when it can be reached."
                    ) from error
                self._say(
                    f"note: {self.address} is out of reach ({what}: {short(error)}); trying again for {left:.0f} s"
                )
                time.sleep(min(wait, left))
                wait = min(2 * wait, LONGEST_WAIT_S)

    def _refused(self, what: str, error: Exception) -> Exception:
        """Return the UserError of a call that will not work later either; other errors as they are."""
        if is_denied(error):
            return UserError(
                f"{self.address} may not be used with your credentials ({what}): {short(error)}.\n"
                f"{credentials(self._scheme)}"
            )
        return (
            error
            if isinstance(error, OSError) and error.errno
            else UserError(f"{self.address}: {what} failed: {short(error)}.\nCheck the address.")
        )


def _each(call: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Make these calls, several at a time; raises the error of the first that fails, once all have ended."""
    with ThreadPoolExecutor(AT_ONCE, "object-store") as pool:
        for _ in pool.map(call, list(items)):
            pass


def _entry(info: Mapping[str, Any]) -> Entry:
    tags = (info.get(key) for key in ("generation", "etag", "ETag", "content_md5", "LastModified", "mtime", "created"))
    return Entry(int(info["size"] or 0), str(next((tag for tag in tags if tag), "")))


def _retry_s() -> float:
    given = os.environ.get("SIMCSE_STORE_RETRY_S", "")
    try:
        return float(given) if given else RETRY_S
    except ValueError:
        raise UserError(f"SIMCSE_STORE_RETRY_S={given} is no number of seconds. Correct or unset it.") from None
