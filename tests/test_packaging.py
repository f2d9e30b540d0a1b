"""The package and its set-up: what a wheel contains, the targets of make, and no names of machines in any file."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import simcse_jax
from tests.conftest import in_shard

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = [p for p in (ROOT / "simcse_jax").rglob("*") if p.is_file() and p.suffix != ".pyc"]
# torch: only to read pytorch_model.bin, and an error says so; the others: extras, and what comes with them.
OPTIONAL = {
    "ipython",  # comes with every notebook
    "mteb",
    "wandb",
    "mlflow",
    "trackio",
    "torch",
    "faiss-cpu",
    "prometheus-client",
    "fastapi",
    "starlette",
    "pydantic",
    "pydantic-core",
    "uvicorn",
    "h11",  # what uvicorn speaks through
    "onnx",
    "onnxruntime",
}


def requirements() -> list[Requirement]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build the wheel of this tree, in a copy, so that no build folder stays here."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("simcse_jax", "configs", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    done = subprocess.run([sys.executable, "-c", build], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next((copy / "dist").glob("simcse_jax-*.whl")))


def test_the_wheel_holds_the_library_and_what_it_needs(wheel: zipfile.ZipFile):
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    recipes = {p.relative_to(ROOT / "configs").as_posix() for p in (ROOT / "configs").rglob("*.py")}
    assert files == {p.relative_to(ROOT).as_posix() for p in LIBRARY} | {f"simcse_jax/recipes/{p}" for p in recipes}
    assert "simcse_jax/py.typed" in files
    metadata = Parser().parsestr(wheel.read(f"simcse_jax-{simcse_jax.__version__}.dist-info/METADATA").decode())
    assert (metadata["License-Expression"], metadata["Requires-Python"]) == ("Apache-2.0", ">=3.11")
    declared = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    assert {str(r) for r in declared if r.marker is None} == {str(r) for r in requirements()}
    extras = "tpu tpu-plan gpu-plan cuda cuda12 gcs mteb faiss onnx trackers web test dev"
    assert set(metadata.get_all("Provides-Extra", [])) == set(extras.split())
    for requirement in requirements():
        assert any(s.operator == ">=" for s in requirement.specifier), f"{requirement} has no lower bound"
        assert requirement.name not in {"torch", "sentence-transformers"}


def test_an_installed_wheel_finds_recipes_by_name(wheel: zipfile.ZipFile, tmp_path: Path):
    wheel.extractall(tmp_path / "installed")
    code = "from simcse_jax.config.recipe import *; print(read_recipe('small:sup', {})[0].model.name); "
    code += "print(len(recipe_module('ablations/pooling:small')[0].rows('small'))); require_recipe('configs/smal.py')"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split()[0] == "./models/wiki-small"
    assert "Did you mean --config=small? Recipes here: ablations/augmentation, " in done.stderr


def test_the_package_names_what_it_offers_and_loads_jax_only_for_it():
    code = "import simcse_jax, sys; assert 'SimCSE' in dir(simcse_jax); assert 'jax' not in sys.modules; "
    code += "from simcse_jax import SimCSE; assert hasattr(SimCSE, 'encode'); import simcse_jax.nothing"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'simcse_jax.nothing'", done.stderr


def test_every_import_of_the_library_is_declared():
    declared = {canonicalize_name(r.name) for r in requirements()} | OPTIONAL | {"jaxlib"}
    owners = packages_distributions()
    for file in LIBRARY:
        if file.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules = [node.module]
            else:
                continue
            for top in {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {"simcse_jax"}:
                owner = {canonicalize_name(name) for name in owners.get(top, [top])}
                assert owner & declared, f"{file.relative_to(ROOT)} imports {top}, which requirements.txt does not name"


# Set-up ---------------------------------------------------------------------------------------------------------------


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    # What an outer `make test` exports would steer the inner one.
    inherited = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ARGS", "VENV"}}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=inherited, capture_output=True, text=True)


def test_make_runs_what_it_says_after_the_set_up_in_order(tmp_path: Path):
    """PyTorch is installed by itself and before the other packages, as pyproject.toml explains."""
    done = make("--dry-run", "demo", "demo-sup", "test", "test-fast", "test-all", "check", f"VENV={tmp_path / 'venv'}")
    assert done.returncode == 0, done.stderr
    steps = [
        *("-m venv", "-r requirements.txt", "--config=configs/demo.py", "--config=configs/demo.py:sup"),
        *("install --quiet 'torch==", "--editable '.[test,dev]'"),
        *('-m "not slow"', '-m "not slow and not medium"', "--dist=worksteal \n", "pyright --warnings"),
    ]
    places = [done.stdout.find(step) for step in steps]
    assert min(places) >= 0
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        (None, "cannot run"),
        (
            'case "$*" in *version_info*) exit 1;; *-V*) echo Python 3.9.1;; esac',
            "Python 3.9.1; 3.11 or newer is needed",
        ),
        ('case "$*" in *ensurepip*) exit 1;; esac', "python3-venv"),
    ],
)
def test_make_says_plainly_which_python_it_needs(script: str | None, complaint: str, tmp_path: Path):
    python = tmp_path / "python"
    if script is not None:
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
    done = make("demo", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0
    assert complaint in done.stderr


def test_workflows_and_hooks_call_make_targets_that_exist():
    workflows = [yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")]
    jobs = [job for workflow in workflows for job in workflow["jobs"].values()]
    commands = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    commands += [hook["entry"] for repo in hooks["repos"] for hook in repo["hooks"]]
    ci = ROOT / ".ci/run"
    commands += re.findall(r"^make .+$", ci.read_text(), re.MULTILINE)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"check", "test", "test-all"} <= {command.split()[1] for command in commands}
    assert all(command.split()[0] == "make" and command.split()[1] in targets for command in commands)
    assert os.access(ci, os.X_OK)


def test_the_shards_of_the_nightly_run_are_all_tests():
    """Each file is in one of them, and about as many in each."""
    (job,) = yaml.safe_load((ROOT / ".github/workflows/nightly.yml").read_text())["jobs"].values()
    shards = job["strategy"]["matrix"]["shard"]
    assert f"--shard=${{{{ matrix.shard }}}}/{len(shards)} " in job["steps"][-1]["run"]
    files = [str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")]
    counts = [sum(in_shard(file, f"{shard}/{len(shards)}") for file in files) for shard in shards]
    assert sum(counts) == len(files)
    assert min(counts) > len(files) / 8
    for wrong in ("0/4", "5/4", "1", "a/b"):
        with pytest.raises(pytest.UsageError):
            in_shard(files[0], wrong)


# Files ----------------------------------------------------------------------------------------------------------------


def project_files() -> list[Path]:
    """Return every file that git tracks or would; without git, all but hidden folders and what runs leave."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        files = [ROOT / name for name in listed.split("\0") if name]
    else:
        skipped = {"runs", "build", "dist", "__pycache__", ".git", ".venv", ".ruff_cache", ".pytest_cache"}
        files = [p for p in ROOT.rglob("*") if not skipped & set(p.relative_to(ROOT).parts)]
    return [p for p in files if p.is_file()]


def test_no_file_names_a_machine_or_a_registry():
    private = re.compile(r"(?<![\w.~$}])/(work|root|home|Users)/|pypi\.org|python[h]osted|download\.pytorch")
    found = []
    for file in project_files():
        if file.suffix in {".png", ".gif", ".ico", ".pyc", ".gz", ".xz"}:
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if hit := private.search(line):
                found.append(f"{file.relative_to(ROOT)}:{number}: {hit.group()}")
    assert not found, "\n".join(found)
