"""Locks name their holder and go with it; a file is whole also where two write it."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from simcse_jax.system.errors import UserError
from simcse_jax.system.whole_file import locked, write_whole_text

HOLD = """
import sys
import threading
from pathlib import Path
from simcse_jax.system.whole_file import locked, write_whole_text
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


def test_two_that_write_one_file_at_a_time_leave_a_whole_one(tmp_path: Path) -> None:
    path, both = tmp_path / "a.txt", threading.Barrier(2)
    sides = [threading.Thread(target=write_whole_text, args=(path, letter * 10**6)) for letter in "ab"]

    def write_text(partial: Path, text: str, encoding: str) -> None:
        with partial.open("w", encoding=encoding) as file:
            for start in range(0, len(text), 10**5):
                both.wait(10)
                file.write(text[start : start + 10**5])
                file.flush()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_text", write_text)
        for side in sides:
            side.start()
        for side in sides:
            side.join()
    assert path.read_text() in ("a" * 10**6, "b" * 10**6)
    assert [*tmp_path.iterdir()] == [path]
