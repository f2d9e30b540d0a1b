"""What a run writes of itself: each step once in metrics.jsonl, and a profile."""

import gzip
import json
import threading
from pathlib import Path

import jax
import jax.numpy as jnp

from simcse_jax.runs.metrics import FIRST_TRACED, LAST_TRACED, MetricsWriter, Profile, read_metrics
from tests.small_models import train_small


def test_later_and_cut_lines_are_dropped_on_resuming(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, None, print) as metrics:
        for step in range(1, 6):
            metrics.write(step, {"loss": step / 3})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # a kill in the middle of a line
    with MetricsWriter(tmp_path, 3, print) as metrics:
        metrics.write(4, {"loss": 1.0, "dev/spearman": float("nan")})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines == read_metrics(tmp_path)
    assert lines[-1] == {"step": 4, "loss": 1.0, "dev/spearman": None}


def test_a_new_run_starts_an_empty_file(tmp_path: Path) -> None:
    for _ in range(2):
        with MetricsWriter(tmp_path, None, print) as metrics:
            metrics.write(1, {"loss": 1.0})
    assert len(read_metrics(tmp_path)) == 1


def test_what_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    threads = threading.active_count()
    said: list[str] = []
    with MetricsWriter(tmp_path, None, said.append) as metrics:
        assert threading.active_count() == threads  # whose death, or whose full queue, would stop the run
        metrics._file.close()
        metrics._file = open("/dev/full", "a")  # noqa: SIM115
        for step in range(1, 30):
            metrics.write(step, {"loss": 1.0})
    assert len(said) == 1
    assert "No space left" in said[0]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tensorboard").write_text("a file")
    with MetricsWriter(tmp_path / "other", 3, said.append) as metrics:
        metrics.write(4, {"loss": 1.0})
    assert "TensorBoard" in said[1]
    assert len(read_metrics(tmp_path / "other")) == 1


def test_tensorboard_gets_each_step_once(tmp_path: Path) -> None:
    for resumed, steps in ((None, (1, 2, 3)), (2, (3, 4))):
        with MetricsWriter(tmp_path, resumed, print) as metrics:
            for step in steps:
                metrics.write(step, {"loss": step / 2, "dev/spearman": 50.0})
    events = b"".join(path.read_bytes() for path in sorted((tmp_path / "tensorboard").iterdir()))
    assert (events.count(b"train/loss"), events.count(b"dev/spearman")) == (5, 5)


def test_lines_of_others_do_not_stop_a_run(tmp_path: Path) -> None:
    others = ["[]", "5", "null", '{"loss": 1.0}', '{"step": "2"}', '"step"', "step 3: 0.5", "[" * 100_000, ""]
    (tmp_path / "metrics.jsonl").write_text("\n".join(['{"step": 1, "loss": 0.5}', *others, '{"step": 9, "lo']))
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]
    said: list[str] = []
    with MetricsWriter(tmp_path, 3, said.append):
        pass
    assert f"{len(others)} lines" in said[0]
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]


def trace(folder: Path, last: int) -> list[str]:
    """Return what a loop of so many steps says."""
    said: list[str] = []
    step = jax.jit(lambda x: x * 2)
    with Profile(folder, said.append, lambda: None) as profile:
        for number in range(1, last + 1):
            with profile.step(number):
                step(jnp.ones(8)).block_until_ready()
    return said


def test_a_run_traces_some_of_its_steps_with_the_names_of_their_parts(tmp_path: Path) -> None:
    one_shape = {"data__packed": False, "train__steps": LAST_TRACED + 2, "eval__data": ""}
    workdir = train_small(tmp_path / "run", tmp_path / "cache", profile=True, **one_shape)
    [perfetto] = workdir.glob("profile/plugins/profile/*/perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(perfetto.read_bytes()))["traceEvents"]
    steps = {event["args"]["step_num"] for event in events if event.get("name") == "train"}
    assert steps == {str(number) for number in range(FIRST_TRACED, LAST_TRACED + 1)}
    [tensorboard] = workdir.glob("profile/plugins/profile/*/*.xplane.pb")
    for scope in (b"/jvp(encoder)/", b"/transpose(jvp(encoder))/", b"/jvp(loss)/", b"/optimizer/"):
        assert scope in tensorboard.read_bytes()


def test_it_says_where_the_trace_is_or_why_there_is_none(tmp_path: Path) -> None:
    [said] = trace(tmp_path / "long", LAST_TRACED + 3)
    assert str(tmp_path / "long") in said
    assert list((tmp_path / "long").rglob("*.xplane.pb"))
    [said] = trace(tmp_path / "cut", FIRST_TRACED + 1)
    assert list((tmp_path / "cut").rglob("*.xplane.pb"))
    [said] = trace(tmp_path / "short", FIRST_TRACED - 1)
    assert "no profile was written" in said
    assert not (tmp_path / "short").exists()
