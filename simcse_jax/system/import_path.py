"""Find a Python object of the user's own by its import path, MODULE:NAME, and the text of its code."""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import inspect
import textwrap
import traceback
from pathlib import Path
from typing import Any

from simcse_jax.system.errors import UserError, short

PLAIN = (bool, int, float, str, tuple)  # kinds of values whose `repr` says all
# Functions that were passed as such, by their path: one that is defined within another can be found nowhere else.
_given: dict[str, Any] = {}


def is_import_path(value: str) -> bool:
    """Return whether a value that may also be a plain word is an import path."""
    return ":" in value


def path_of(function: Any) -> str:
    """Return the import path of a function, under which `import_object` finds this very function from now on."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not callable(function) or not module or not name or name.endswith("<lambda>"):
        raise UserError(
            f"{function!r} has no name to record in the run folder.\nPass a function (def), or the import path of "
            "what you have, MODULE:NAME."
        )
    path = f"{module}:{name}"
    _given[path] = function
    return path


def import_object(path: str, key: str) -> Any:
    """Return what an import path names; UserError where there is no such module or name. key: what names the path."""
    if path in _given:
        return _given[path]
    module, _, name = path.partition(":")
    given = f"{key} = {path!r}"
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not error.name or not f"{module}.".startswith(f"{error.name}."):
            raise _broken(given, module, error) from error
        file = Path(module)
        way_out = f"Write {key} = {file.stem}:{name}, in the" if file.suffix == ".py" else "Run in the"
        raise UserError(
            f"{given}: there is no module {error.name!r} (in {Path.cwd()} or among the installed packages).\n"
            f"{way_out} folder that holds it, or install its package."
        ) from error
    except (Exception, SystemExit) as error:  # a script without a guard may end the process
        raise _broken(given, module, error) from error
    for part in name.split("."):
        if not hasattr(found, part):
            public = [known for known in vars(found) if not known.startswith("_")] if hasattr(found, "__dict__") else []
            close = difflib.get_close_matches(part, public, n=1)
            meant = f"\nDid you mean {module}:{close[0]}?" if close else f"\nIt has {', '.join(public[-8:]) or 'none'}."
            raise UserError(f"{given}: {module} has nothing named {part!r}.{meant}")
        found = getattr(found, part)
    return found


def code_of(function: Any) -> str:
    """Return the code of a function without comments and layout; "" where Python has it in no file.

    Numbers, texts and their like that it takes from the function which made it follow, a line each.
    """
    inner = inspect.unwrap(function)
    try:
        source = textwrap.dedent(inspect.getsource(inner))
    except (OSError, TypeError):
        return ""
    with contextlib.suppress(SyntaxError):  # a lambda within a call
        source = ast.unparse(ast.parse(source))
    names = getattr(getattr(inner, "__code__", None), "co_freevars", ())
    cells = zip(names, getattr(inner, "__closure__", None) or (), strict=False)
    held = {name: _content(cell) for name, cell in cells}
    return source + "".join(f"\n# {name} = {value!r}" for name, value in held.items() if isinstance(value, PLAIN))


def _content(cell: Any) -> Any:
    """Return what a cell of a closure holds, None for one that is not filled yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def place_of(error: BaseException, function: Any) -> str:
    """Return "FILE:LINE" where an error left the file of this function."""
    frames = traceback.extract_tb(error.__traceback__)
    file = getattr(getattr(inspect.unwrap(function), "__code__", None), "co_filename", "")
    own = [frame for frame in frames if frame.filename == file] or frames
    return f"{own[-1].filename}:{own[-1].lineno}"


def _broken(given: str, module: str, error: BaseException) -> UserError:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return UserError(f"{given}: importing {module} fails at {frame.filename}:{frame.lineno}: {short(error)}")
