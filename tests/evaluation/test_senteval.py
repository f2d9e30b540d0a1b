"""Test that SentEval's folder is found at any level, in an archive and on the Hub."""

import tarfile
from pathlib import Path

import pytest

from simcse_jax.evaluation.senteval import HUB_ARCHIVE, read_lines, senteval_folder
from simcse_jax.system.errors import UserError
from tests.conftest import HubServer


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """senteval.tar with the layout of the published one, and a cache of its own."""
    monkeypatch.setenv("SIMCSE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "made" / "SentEval" / "data" / "downstream"
    (folder / "TREC").mkdir(parents=True)
    (folder / "TREC" / "TREC_10.label").write_text("NUM:dist How far ?\n")
    path = tmp_path / "senteval.tar"
    with tarfile.open(path, "w") as content:
        content.add(tmp_path / "made" / "SentEval", "SentEval")
    return path


@pytest.mark.parametrize("level", ["", "SentEval", "SentEval/data", "SentEval/data/downstream"])
def test_folder_at_any_level(archive: Path, level: str) -> None:
    made = archive.parent / "made"
    assert senteval_folder(str(made / level)) == made / "SentEval" / "data" / "downstream"


def test_archive_is_unpacked_once(archive: Path) -> None:
    folder = senteval_folder(str(archive))
    assert (folder / "TREC" / "TREC_10.label").read_text() == "NUM:dist How far ?\n"
    mark = folder / "mark"
    mark.touch()
    assert senteval_folder(str(archive)) == folder
    assert mark.exists()
    assert not list((archive.parent / "cache" / "senteval").glob(".*"))


def test_default_is_the_hub_archive(archive: Path, hub_server: HubServer) -> None:
    hub_server.add("princeton-nlp/datasets-for-simcse", "senteval.tar", archive.read_bytes(), kind="dataset")
    assert senteval_folder() == senteval_folder(HUB_ARCHIVE) == senteval_folder(str(archive))


def test_offline_says_what_to_do(archive: Path, dead_hub: str) -> None:
    with pytest.raises(UserError, match=r"senteval\.tar"):
        senteval_folder()


def test_what_is_no_folder_of_data_is_named(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none"):
        senteval_folder(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="STS, SICK"):
        senteval_folder(str(tmp_path / "empty"))
    archive.write_bytes(archive.read_bytes()[:700])
    with pytest.raises(UserError, match=r"senteval\.tar"):
        senteval_folder(str(archive))


def test_lines(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes("\ufeffa\u2028b\r\n\r\nc\x85\n".encode())
    assert read_lines(path) == ["a\u2028b", "", "c\x85"]
    path.write_bytes(b"caf\xe9\n")
    assert read_lines(path, "latin-1") == ["café"]
    path.write_bytes(b"fine\ncaf\xe9 x\n")
    with pytest.raises(UserError, match=r"line 2: .*UTF-8"):
        read_lines(path)
    with pytest.raises(UserError, match="none"):
        read_lines(tmp_path / "none")
