"""The rooms of the house, and which of them may know which."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "simcse_jax"

# room: the other rooms that it may import. Each may also import `group`, `hashing` and `system`; commands, everything.
MAY_IMPORT = {
    "config": {"data", "encoder", "objective"},
    "data": set(),
    "encoder": set(),
    "objective": set(),
    "evaluation": {"data", "objective"},
    "hosts": set(),
    "runs": {"config", "hosts", "model_folder"},
    "training": {"config", "data", "encoder", "encoding", "embedding_model", "evaluation", "hosts", "model_folder"}
    | {"objective", "runs"},
    "planning": {"config", "data", "encoder", "training"},
    "encoding": {"data", "encoder"},
    "sweeping": {"config", "evaluation", "runs"},
    "serving": {"data", "embedding_model"},
    "model_folder": {"config", "data", "encoder", "encoding"},
    "embedding_model": {"config", "data", "encoder", "encoding", "model_folder"},
    "judging": {"embedding_model", "evaluation", "runs", "training"},
    "fitting": {"config", "embedding_model", "evaluation", "hosts", "judging", "model_folder", "runs", "serving"}
    | {"training"},
    "mteb_encoder": {"embedding_model"},
    "cli": set(),
    "system": set(),
    "group": set(),
    "hashing": set(),
}
# Libraries that belong to some rooms alone.
ONLY_IN = {
    "jax": {
        "encoder",
        "hosts",
        "objective",
        "training",
        "planning",
        "runs",
        "encoding",
        "embedding_model",
        "model_folder",
        "serving",
        "system",
        "fitting",
    },
    "flax": {"encoder"},
    "torch": {"model_folder"},
    "onnx": {"model_folder"},
    "onnxruntime": {"model_folder"},
    "faiss": {"serving"},
    "fastapi": {"serving"},
    "uvicorn": {"serving"},
}


def imports(path: Path) -> set[str]:
    """Every module that a file imports when it runs, dotted; imports for type checkers do not count."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    room = room_of(path)
    for name in imports(path):
        top, *rest = name.split(".")
        for library, rooms in ONLY_IN.items():
            assert top != library or room in rooms, f"{path.name} imports {name}"
        if top == "simcse_jax" and rest and room in MAY_IMPORT:
            allowed = MAY_IMPORT[room] | {room, "group", "hashing", "system", "__version__"}
            assert rest[0] in allowed, f"the room {room} imports {name}"


def test_rooms_import_each_other_in_one_direction() -> None:
    list(graphlib.TopologicalSorter(MAY_IMPORT).static_order())  # CycleError, with the cycle
