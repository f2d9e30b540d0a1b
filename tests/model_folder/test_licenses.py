"""The licence that a card states: one of the Hub's names, or a refusal with those that are near."""

import subprocess
import sys

import pytest

from simcse_jax.model_folder.licenses import require_license
from simcse_jax.system.errors import UserError


@pytest.mark.parametrize("given", ["", "apache-2.0", "mit", "cc-by-sa-4.0", "openrail++", "other"])
def test_names_of_the_hub(given: str) -> None:
    require_license(given)


@pytest.mark.parametrize(
    ("given", "near"), [("apache2", "apache-2.0"), ("MIT", "mit"), ("cc-by-sa", "cc-by-sa-4.0"), ("xyz", "")]
)
def test_other_names_are_refused_with_near_ones(given: str, near: str) -> None:
    with pytest.raises(UserError, match=f"--license={given}(.|\n)*--license=other") as refused:
        require_license(given)
    assert (f"Did you mean {near}" in str(refused.value) or f" or {near}" in str(refused.value)) if near else True


@pytest.mark.slow
def test_the_command_refuses_before_it_reads_anything() -> None:
    command = [sys.executable, "-m", "simcse_jax.export", "--model=nowhere", "--out=out", "--license=xyz"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode != 0
    assert "--license=xyz" in done.stderr
