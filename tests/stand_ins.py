"""Programs that stand in for srun, gcloud and the like: they record how they are called."""

import json
import os
import subprocess
import sys
from pathlib import Path

# A flag whose value a careless shell would break in several ways.
AWKWARD = '--config.data.files=a b.txt,it\'s $HOME `id` "q" *.csv'

# Every call of a stand-in is a line of calls.jsonl: its name and its arguments. It then does as its own part says.
RECORDER = """
import json, os, subprocess, sys
here = os.path.dirname(os.path.abspath(__file__))
name, arguments = os.path.basename(__file__), sys.argv[1:]
with open(f"{here}/calls.jsonl", "a") as calls:
    print(json.dumps([name, *arguments]), file=calls)
"""


def put_stand_in(folder: Path, name: str, part: str = "") -> None:
    """Write a stand-in of that name into the folder."""
    program = folder / name
    program.write_text(f"#!{sys.executable} -S\n{RECORDER}{part}")
    program.chmod(0o755)


def calls(folder: Path) -> list[list[str]]:
    path = folder / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run_beside(words: list[str], stand_ins: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    path = f"{stand_ins}:{os.environ['PATH']}"
    return subprocess.run(
        words, env={"PATH": path, **environment}, cwd=stand_ins, capture_output=True, text=True, timeout=30
    )
