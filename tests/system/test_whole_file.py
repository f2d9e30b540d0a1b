"""Locks: they name their holder, and go with it."""

import subprocess
import sys
from pathlib import Path

import pytest

from simcse_jax.system.errors import UserError
from simcse_jax.system.whole_file import locked

HOLD = """
import sys
from pathlib import Path
from simcse_jax.system.whole_file import locked
with locked(Path(sys.argv[1]), "busy", "", "name"):
    print("held", flush=True)
    input()
"""


def test_a_lock_names_its_holder_and_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / ".lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"busy\n.*{holder.pid} on "), locked(path, "busy", "", "name"):
        pass
    holder.kill()
    holder.communicate()
    with locked(path, "busy", "", "name"):
        path.unlink()
        with locked(path, "busy", "", "name"):  # whoever deletes the file gives the lock up
            pass
    with pytest.raises(UserError, match="name cannot be written"), locked(path / "under" / "a file", "", "", "name"):
        pass
