"""Settings and shared fixtures of all tests: eight virtual CPU devices, strict rank promotion, a Hub of our own."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Each flag once: a worker inherits them, and with a flag twice programs would have other keys in the cache.
os.environ["XLA_FLAGS"] = " ".join(
    dict.fromkeys(
        [
            *os.environ.get("XLA_FLAGS", "").split(),
            "--xla_force_host_platform_device_count=8",
            "--xla_cpu_collective_call_terminate_timeout_seconds=600",
            "--xla_backend_optimization_level=0",  # compiles in half the time
        ]
    )
)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # else tokenizers warn at a later fork

import functools
import hashlib
import re
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import pytest
from filelock import FileLock
from jax._src import compilation_cache as cache

from simcse_jax.system import compiled
from tests import cpu_limit
from tests.local_server import Handler, serving
from tests.small_models import LORA, export_small, train_small

jax.config.update("jax_numpy_rank_promotion", "raise")
ROOT = Path(__file__).resolve().parents[1]
COLLECTIVE = re.compile(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(-start)?\(")
MakeOnce = Callable[[str, Callable[[Path], object]], Path]


def pytest_addoption(parser: pytest.Parser) -> None:
    cpu_limit.add_option(parser)
    parser.addoption("--shard", metavar="K/N", default="1/1", help="run the K-th of N parts of the suite, cut by file")


def in_shard(path: str, shard: str) -> bool:
    """Return whether a test file belongs to the part "K/N" of the suite; UsageError if there is no such part."""
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise pytest.UsageError(f"--shard={shard} is no K/N with K from 1 to N, such as --shard=1/4")
    return zlib.crc32(path.encode()) % int(found[2]) + 1 == int(found[1])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of other shards."""
    shard = str(config.getoption("shard"))
    mine = [item for item in items if in_shard(item.nodeid.partition("::")[0], shard)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(mine)])
    items[:] = mine


def reload_what_xla_orders() -> None:
    """Within slow tests, load programs for several devices only where all their collectives are in one computation.

    XLA loads the order of those too. In other tests, which were never seen to wait or fail for it, compiling them each
    time would take three minutes. `compiled.keep_for_one_device`, which loads none, leaves this as it is.
    """
    load = cache.get_executable_and_time

    @functools.wraps(load)
    def load_it(key: str, options: Any, backend: Any, devices: Any, *more: Any) -> Any:
        program, seconds = load(key, options, backend, devices, *more)
        if program is None or len(devices) == 1 or not careful.is_set():
            return program, seconds
        if is_ordered(program.hlo_modules()[0].to_string()):
            return program, seconds
        cpu_limit.CpuLimit.recompiled = time.time()
        return None, None

    cache.get_executable_and_time = load_it


careful = threading.Event()  # set within slow tests


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note whether the test is slow."""
    (careful.clear if item.get_closest_marker("slow") is None else careful.set)()


def is_ordered(program: str) -> bool:
    """Return whether at most one computation of a program has collectives."""
    found, computation = set(), ""
    for line in program.splitlines():
        if line[:1] not in (" ", "}", ""):
            computation = line
        elif COLLECTIVE.search(line):
            found.add(computation)
    return len(found) < 2


def pytest_configure(config: pytest.Config) -> None:
    """Share compiled programs between workers, the commands that tests start, and later runs of the suite.

    $SIMCSE_TEST_PROGRAMS names another folder than the default, .pytest_cache/programs.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as for a background job of a script; tests send Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
    code = compiled.cpu_code()
    is_kept = compiled.is_reloadable(code)
    root = Path(os.environ.get("SIMCSE_TEST_PROGRAMS") or ROOT / ".pytest_cache" / "programs")
    folder = root / compiled.instructions_hash(code)
    settings = {
        "jax_enable_compilation_cache": is_kept,
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": compiled.LARGEST_BYTES,  # also makes JAX lock each access
        "jax_persistent_cache_min_compile_time_secs": compiled.SHORTEST_COMPILATION_S,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    reload_what_xla_orders()
    limit = cpu_limit.CpuLimit(float(config.getoption("cpu_limit") or 0), folder if is_kept else None)
    config.pluginmanager.register(limit, "cpu-limit")


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """Return a function that takes a name and a maker of a folder, and calls the maker once a session for all workers.

    Tests read the folder, and leave it as it is.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all workers

    def make_it(name: str, make: Callable[[Path], object]) -> Path:
        folder, made = root / "made" / name, root / "made" / f"{name}.made"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(root / "made" / f"{name}.lock"):
            if not made.exists():
                make(folder)
                made.touch()
        return folder

    return make_it


@pytest.fixture(scope="session")
def small_model(make_once: MakeOnce) -> Path:
    """Return the folder of `export_small`: random weights, mean pooling. Shared by all tests: leave it as it is."""
    return make_once("small-model", export_small) / "model"


@pytest.fixture(scope="session")
def small_run(make_once: MakeOnce) -> Path:
    """Return the folder of a finished run of `train_small`. Shared by all tests: leave it as it is."""
    return make_once("small-run", lambda folder: train_small(folder / "run", folder / "cache")) / "run"


@pytest.fixture(scope="session")
def lora_run(make_once: MakeOnce, small_model: Path) -> Path:
    """Return the folder of a finished run that trained adapters of `small_model`. Shared: leave it as it is."""

    def make(folder: Path) -> None:
        train_small(folder / "run", folder / "cache", **LORA, model__name=str(small_model))

    return make_once("lora-run", make) / "run"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real data files; skip the test if there is none."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SIMCSE_DATA") or default)
    if not (folder / "README.md").is_file():
        pytest.skip(f"real data not found in {folder}; SIMCSE_DATA names its folder")
    return folder


@dataclass
class HubServer:
    """Hub on this machine: serves root/OWNER/NAME/FILE as models and root/datasets/OWNER/NAME/FILE as data sets."""

    root: Path
    url: str = ""
    requests: list[str] = field(default_factory=list)  # "METHOD /path", in order

    def add(self, repo: str, filename: str, content: bytes | str, kind: str = "model") -> None:
        """Put a file into a repository; revision is ignored by the server."""
        path = self.root / ("datasets" if kind == "dataset" else "") / repo / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def _handler(hub: HubServer) -> type[Handler]:
    class HubHandler(Handler):
        def answer(self, with_body: bool) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            path = self.path.split("?")[0].strip("/")
            if not path:
                return self.reply(200, {}, b"a hub", with_body)
            repo, found, rest = path.partition("/resolve/")
            _, _, filename = rest.partition("/")
            if not found or not (hub.root / repo).is_dir():
                return self.reply(404, {"X-Error-Code": "RepoNotFound"}, b"", with_body)
            commit = {"X-Repo-Commit": hashlib.sha1(repo.encode()).hexdigest()}
            file = hub.root / repo / filename
            if not file.is_file():
                return self.reply(404, {"X-Error-Code": "EntryNotFound", **commit}, b"", with_body)
            body = file.read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()}"'
            linked = {"X-Linked-Etag": etag, "X-Linked-Size": str(len(body))}
            return self.reply(200, {"ETag": etag, **linked, **commit}, body, with_body)

    return HubHandler


def point_hub_at(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path, offline: bool = False) -> None:
    """Let huggingface_hub, here and in child processes, use that endpoint and that cache."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setenv("HF_HOME", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1" if offline else "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)


@contextmanager
def serve_hub(root: Path) -> Iterator[HubServer]:
    """Run an empty Hub."""
    hub = HubServer(root)
    hub.root.mkdir()
    with serving(_handler(hub)) as hub.url:
        yield hub


def reached_from(hub: HubServer, folder: Path) -> dict[str, str]:
    """Return the environment of commands that reach only this Hub, on one device, with their caches in the folder."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hf_home"),
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1,localhost",
        "SIMCSE_CACHE": str(folder / "cache"),
        "COLUMNS": "200",
    }


@pytest.fixture
def hub_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Run an empty Hub that huggingface_hub talks to, with an empty cache."""
    with serve_hub(tmp_path / "hub_root") as hub:
        point_hub_at(monkeypatch, hub.url, tmp_path / "hf_home")
        yield hub
    from huggingface_hub import close_session

    close_session()  # its kept-alive connections would otherwise be collected as unclosed sockets


@pytest.fixture
def dead_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Point huggingface_hub at a Hub that refuses connections, with the cache of `hub_server`; return its URL."""
    url = "http://127.0.0.1:9"
    point_hub_at(monkeypatch, url, tmp_path / "hf_home")
    return url


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set HF_HUB_OFFLINE=1, with the cache of `hub_server`."""
    point_hub_at(monkeypatch, "https://huggingface.co", tmp_path / "hf_home", offline=True)
