"""Waiting for all processes, with threads for processes and real sockets between them."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from simcse_jax import __version__
from simcse_jax.hosts.cluster import Cluster
from simcse_jax.hosts.join import Member, wait_for_all
from simcse_jax.system.errors import UserError


@pytest.fixture
def address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def call(clusters: list[Cluster], timeout_s: float) -> list[list[Member] | str]:
    """Return what each process gets: the processes, or the text of its error."""

    def one(cluster: Cluster) -> list[Member] | str:
        try:
            return wait_for_all(cluster, timeout_s)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(len(clusters)) as pool:
        return list(pool.map(one, clusters))


def test_all_learn_who_is_there_and_the_port_is_free_again(address: str) -> None:
    for _ in range(2):
        results = call([Cluster(address, 3, process) for process in (2, 0, 1)], 20)
        assert results[0] == results[1] == results[2]
        assert [member["process"] for member in results[0] if isinstance(member, dict)] == [0, 1, 2]


def test_who_does_not_come_is_named_to_all_that_came(address: str) -> None:
    for said in call([Cluster(address, 4, 0), Cluster(address, 4, 2)], 1.5):
        assert isinstance(said, str)
        assert "2 of 4 processes came" in said
        assert "Process 1, 3 did not come" in said


def test_without_process_0_the_others_say_where_they_looked(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simcse_jax.hosts.join.LONGER_S", 0.2)
    (said,) = call([Cluster(address, 2, 1)], 0.5)
    assert f"Process 0 did not answer at {address}" in said


@pytest.mark.parametrize(
    ("other", "says"),
    [(Cluster("", 3, 1), "as one of 3"), (Cluster("", 2, 0), "cannot listen on port")],
    ids=["another count", "a second process 0"],
)
def test_processes_that_do_not_fit_together(address: str, other: Cluster, says: str) -> None:
    clusters = [Cluster(address, 2, 0), Cluster(address, other.processes, other.process)]
    assert any(isinstance(said, str) and says in said for said in call(clusters, 2))


def test_two_of_one_number(address: str) -> None:
    for said in call([Cluster(address, 3, 0), Cluster(address, 3, 1), Cluster(address, 3, 1)], 5):
        assert "Two processes call themselves process 1" in said


def knock(address: str) -> socket.socket:
    """Return a connection to process 0, once it listens."""
    host, port = address.split(":")
    for _ in range(100):
        try:
            return socket.create_connection((host, int(port)), timeout=1)
        except OSError:
            time.sleep(0.05)
    raise AssertionError("nobody opened")


def test_one_that_dies_and_is_started_again_is_no_second_one(address: str) -> None:
    member = {"process": 1, "processes": 3, "host": "a", "pid": 1, "version": __version__}

    def dies() -> None:
        with knock(address) as connection:
            connection.sendall(json.dumps(member).encode() + b"\n")
            time.sleep(0.1)

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(wait_for_all, Cluster(address, 3, 0), 20)
        pool.submit(dies).result()
        others = [pool.submit(wait_for_all, Cluster(address, 3, process), 20) for process in (1, 2)]
        assert first.result() == others[0].result() == others[1].result()
        assert first.result()[1]["pid"] != 1


def test_strangers_at_the_door_do_not_matter(address: str) -> None:
    def stranger() -> None:
        with knock(address) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(wait_for_all, Cluster(address, 2, 0), 20)
        pool.submit(stranger).result()
        assert wait_for_all(Cluster(address, 2, 1), 20) == first.result()
