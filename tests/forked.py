"""Run many short commands for the price of one start: a process imports the entry point once, and forks for each."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
DRIVER = """
import contextlib, importlib, io, json, os, sys, tempfile

module = importlib.import_module(sys.argv[1])
for name in sys.argv[2].split(","):
    importlib.import_module(name)
for arguments in json.load(sys.stdin):
    files = [tempfile.TemporaryFile("w+") for _ in range(2)]
    if not (child := os.fork()):
        for number, file in enumerate(files, start=1):
            os.dup2(file.fileno(), number)
        sys.argv = [sys.argv[1], *arguments]
        try:
            module.cli.run(module.main)
        except SystemExit as end:  # without taking all modules down, which takes longer than most commands
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code or 0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    texts = []
    for file in files:
        file.seek(0)
        texts.append(file.read())
    print(json.dumps([status, *texts]), flush=True)
"""


def run_commands(
    module: str, commands: Sequence[Sequence[str]], environment: dict[str, str], imports: Sequence[str] = ()
) -> list["subprocess.CompletedProcess[str]"]:
    """Run each command of `python -m MODULE`; imports: modules that it imports late, imported once for all."""
    child = subprocess.run(
        [sys.executable, "-c", DRIVER, module, ",".join([module, *imports])],
        input=json.dumps([[*arguments] for arguments in commands]),
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr
    done = map(json.loads, child.stdout.splitlines())
    return [
        subprocess.CompletedProcess([*arguments], *result) for arguments, result in zip(commands, done, strict=True)
    ]
