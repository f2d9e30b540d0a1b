"""Read recipes as commands name them: FILE or FILE:variant, or one of the package by its name, such as small:sup."""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import config_flags

from simcse_jax.config.schema import KEYS, SOURCE_KEYS, SOURCES, find_key
from simcse_jax.system.errors import UserError, wrong_flags

RECIPES = Path(__file__).parents[1] / "recipes"  # those of the package: in a clone, a link to configs/
_NO_RECIPES = ("__init__", "base", "start")


def find_recipe(recipe: str) -> str:
    """Return FILE or FILE:variant of a recipe that may be one of the package by its name; others as they are."""
    name, colon, variant = recipe.partition(":")
    is_named = not Path(name).is_file() and name in _named(RECIPES)
    return f"{RECIPES / name}.py{colon}{variant}" if is_named else recipe


def find_recipes(arguments: list[str]) -> None:
    """Replace the names of the package's recipes in the flag --config of a command line by their files."""
    for n, argument in enumerate(arguments):
        flag, sign, value = argument.partition("=")
        if sign and flag in ("--config", "-config"):
            arguments[n] = f"{flag}={find_recipe(value)}"
        elif n and arguments[n - 1] in ("--config", "-config"):
            arguments[n] = find_recipe(argument)


def _named(folder: Path) -> list[str]:
    """Return the recipes in a folder, and in its folder of ablations, without their suffix."""
    found = (*folder.glob("*.py"), *folder.glob("ablations/*.py"))
    return [str(path.relative_to(folder).with_suffix("")) for path in sorted(found) if path.stem not in _NO_RECIPES]


def require_recipe(recipe: str) -> None:
    """Raise UserError when the recipe's file does not exist."""
    path = Path(recipe.partition(":")[0])
    if not path.is_file():
        clone = Path("configs")
        files = [f"{clone / name}.py" for name in _named(clone)]
        known = files if files and path.suffix else _named(RECIPES)
        close = difflib.get_close_matches(str(path) if known is files else path.stem, known, n=1)
        here = ", ".join(known)
        raise UserError(
            f"--config={recipe}: there is no file {path} (looked for from {Path.cwd()}).\n"
            + (f"Did you mean --config={recipe.replace(str(path), close[0], 1)}? " if close else "")
            + f"Recipes here: {here}."
        )


def require_keys(names: Iterable[str]) -> None:
    """Raise UserError for the full name of a key that there is not."""
    for name in names:
        if find_key(name) is None:
            source = name.removeprefix(SOURCES).partition(".")[0] if name.startswith(SOURCES) else "NAME"
            known = (*KEYS, *(f"{SOURCES}{source}.{field}" for field in SOURCE_KEYS))
            close = difflib.get_close_matches(name, known, n=1)
            raise UserError(
                f"--config.{name}: there is no such key."
                + (f" Did you mean --config.{close[0]}?" if close else "")
                + "\n`python -m simcse_jax.train --help-config` prints every key."
            )


def recipe_name(recipe: str) -> str:
    """Return a name for files: unsup for configs/unsup.py, unsup-bert-large for configs/unsup.py:bert-large."""
    path, _, variant = recipe.partition(":")
    return re.sub(r"[^\w.-]", "_", Path(path).stem + (f"-{variant}" if variant else ""))


def default_workdir(recipe: str) -> Path:
    """Return runs/unsup for configs/unsup.py, runs/unsup-bert-large for configs/unsup.py:bert-large."""
    return Path("runs") / recipe_name(recipe)


def override_flags(overrides: Mapping[str, str]) -> list[str]:
    """Return the flags that set these keys, such as --config.objective.temperature=0.07."""
    return [f"--config.{key}={value}" for key, value in overrides.items()]


def read_recipe(recipe: str, overrides: Mapping[str, str]) -> tuple[Any, set[str]]:
    """Return the ConfigDict of a command line with --config=recipe and these overrides, and the overridden keys.

    Raises UserError where the recipe, a key or a value is wrong.
    """
    require_keys(overrides)
    values = flags.FlagValues()
    line = ["", *override_flags(overrides)]
    with wrong_flags(line):
        module, arguments = recipe_module(recipe)
        holder = config_flags.DEFINE_config_dict(
            "config", module.get_config(*arguments), flag_values=values, lock_config=True, sys_argv=line
        )
        values(line)
    return holder.value, set(config_flags.get_override_values(values["config"]))


def recipe_module(recipe: str) -> tuple[ModuleType, tuple[str, ...]]:
    """Return the recipe's module and the arguments of its functions: (variant,), or () where none is named."""
    recipe = find_recipe(recipe)
    require_recipe(recipe)
    path, _, variant = recipe.partition(":")
    spec = importlib.util.spec_from_file_location(f"recipe_{recipe_name(path)}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config={recipe}: {path} is no Python file.\nRecipes are like configs/unsup.py.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, (variant,) if variant else ()
