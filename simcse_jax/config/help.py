"""Print the keys of a recipe for `--help-config`."""

from __future__ import annotations

import dataclasses
import textwrap

from simcse_jax.config.keys import Key
from simcse_jax.config.schema import KEYS, SECTIONS, SOURCE_KEYS, SOURCES

_WIDTH = 100
_LONGEST = 140


def help_text() -> str:
    """Return every key with default, range and meaning, when it has an effect, and whether it is layout."""
    lines = [
        "Keys of a recipe. Set one with --config.SECTION.KEY=VALUE. Defaults are those of configs/base.py.",
        "(layout): changes speed and memory, and no result. (may change): a run may resume with another value.",
    ]
    for section, kind in SECTIONS.items():
        lines += ["", f"{section}: {kind.__doc__.splitlines()[0]}"]
        for key in KEYS.values():
            if key.name.startswith(f"{section}."):
                lines += _describe(key)
    own, shared = ([key for key in SOURCE_KEYS.values() if ("." in key.name) is given] for given in (False, True))
    lines += ["", f"{SOURCES}NAME: Keys of one source of a mixture, which a recipe adds (configs/mixture.py)."]
    for key in own:
        lines += _describe(dataclasses.replace(key, name=f"{SOURCES}NAME.{key.name}"))
    fields = ", ".join(key.name.partition(".")[2] for key in shared)
    lines.append(f"  {fields}: as objective.loss and the keys of data, which a source has where it leaves its own out.")
    return "\n".join(lines)


def _describe(key: Key) -> list[str]:
    default = f'"{key.default}"' if key.type is str else key.default
    limit = f", {key.limit}" if key.limit else ""
    mark = "  (layout)" if key.layout else "  (may change)" if key.resumable else ""
    effects = [
        f"{other} set" if values is None else f"{other} = {' or '.join(map(str, values))}"
        for other, values in key.effects()
    ]
    meaning = [key.meaning, *([f"Has an effect only with {' and '.join(effects)}."] if effects else [])]
    stated = f"  {key.name} = {default}  [{key.type.__name__}{limit}]{mark}"
    return [
        # Long lists of values go on in the next line; shorter ones keep their two spaces.
        stated if len(stated) <= _LONGEST else textwrap.fill(stated, _WIDTH, subsequent_indent=" " * 6),
        textwrap.fill(" ".join(meaning), _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6),
    ]
