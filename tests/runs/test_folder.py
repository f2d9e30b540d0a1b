"""The run folder: one training at a time, and files of another kind in it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from simcse_jax.model_folder.run_folder import FILE_LIST, load_run_params, read_run_info, require_intact
from simcse_jax.runs.folder import locked_folder
from simcse_jax.system.errors import UserError
from simcse_jax.training.checkpoint import Checkpoints

HOLDS_IT = """
import sys, time
from pathlib import Path
from simcse_jax.runs.folder import locked_folder
with locked_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_has_one_training_and_outlives_it(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS_IT, str(workdir)], env=environment, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(UserError, match=rf"{workdir}.*--workdir=ANOTHER(.|\n)* {other.pid} on "),
            locked_folder(workdir),
        ):
            pass
        other.kill()
    with locked_folder(workdir):  # what a dead process has left is no lock
        assert workdir.is_dir()
    (workdir / "config.json").write_text("{}")
    with locked_folder(workdir):
        pass
    assert (workdir / "config.json").exists()
    with locked_folder(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["model/", "src/", ".git/", "data.csv", "model.safetensors", "metrics.jsonl"])
def test_a_folder_of_other_files_is_refused_and_left_as_it_was(name: str, tmp_path: Path) -> None:
    place = tmp_path / name
    if name.endswith("/"):
        place.mkdir()
    else:
        place.touch()
    with pytest.raises(UserError, match=rf"{name.strip('/')}(.|\n)*--workdir={tmp_path}/run"), locked_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == [place]
    with locked_folder(tmp_path / "run"):
        pass


def test_logs_notes_and_hidden_files_may_lie_in_the_folder_of_a_new_run(tmp_path: Path) -> None:
    for name in ("train.log", "nohup.out", "README.md", "run.sh", ".hidden", "simcse-7.mend"):
        (tmp_path / name).touch()
    (tmp_path / ".tokenizer.partial").mkdir()  # left by a start that was killed
    (tmp_path / "tensorboard").symlink_to(tmp_path.parent)
    with locked_folder(tmp_path):
        pass


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "5",
        "{",
        "[" * 100_000,
        "{}",
        '{"recipe": [], "encoder": {}, "pooler": "cls", "data": {}, "eval": {}}',
        "\0",
    ],
)
def test_a_config_of_another_kind_is_refused_by_name(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json (.|\n)*--workdir=DIR"):
        read_run_info(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"a": 5}', '{"a": {}}', "{", "5"])
def test_a_list_of_files_of_another_kind_is_damage(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE_LIST).write_text(content)
    with pytest.raises((ValueError, UserError)):
        require_intact(tmp_path)


def test_nan_in_the_best_checkpoint_is_refused(small_run: Path, tmp_path: Path) -> None:
    workdir = shutil.copytree(small_run, tmp_path / "run")
    params, _ = load_run_params(workdir)
    params["embeddings"]["word"] = np.full_like(params["embeddings"]["word"], np.nan)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save_best(99, params, {})
    with pytest.raises(UserError, match=r"best/99: .*word hold NaN"):
        load_run_params(workdir)
