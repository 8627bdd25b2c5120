"""Processes that meet, and those that do not: one line for each, in time. Threads stand for processes."""

import concurrent.futures
import contextlib
import socket

import pytest

from curia2_jax.errors import UserError
from curia2_jax.parallel.rendezvous import meet


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def outcome(calls: list[tuple[int, int]], patience: float = 1.5, address: str = "") -> list[str]:
    """What becomes of (processes, process) each; "" is a meeting."""
    address = address or f"localhost:{free_port()}"

    def one(call: tuple[int, int]) -> str:
        try:
            meet(address, *call, patience)
            return ""
        except UserError as e:
            return str(e)

    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(one, calls))


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_all_come(processes):
    assert outcome([(processes, i) for i in range(processes)], patience=20) == [""] * processes


@pytest.mark.parametrize(
    ("calls", "words"),
    [
        ([(2, 0)], "of 2 processes 1 did not come within 2 s; start all of them"),
        ([(4, 0), (4, 2)], "of 4 processes 1, 3 did not come within 2 s"),
        ([(2, 1)], "process 0 cannot be reached within 2 s (Connection refused)"),
        ([(3, 0), (3, 1), (3, 1)], "are both process 1; number them from 0 to 2"),
        ([(3, 0), (2, 1)], "process 1 was told of 2 processes, process 0 of 3; write the same number"),
    ],
)
def test_a_mistake_is_one_line_for_everybody(calls, words):
    for said in outcome(calls):
        assert words in said and "\n" not in said, said


def test_a_host_without_a_name():
    (said,) = outcome([(2, 1)], 0.3, "nosuchhost.invalid:7000")
    assert "process 0 cannot be reached" in said and "nosuchhost.invalid" in said


def test_a_port_in_use():
    with socket.create_server(("", 0)) as server:
        (said,) = outcome([(2, 0)], address=f"localhost:{server.getsockname()[1]}")
    assert "process 0 cannot listen at port" in said and "Address already in use" in said


@pytest.mark.parametrize("reads", [8, 1000])
def test_one_that_comes_late_or_twice_is_hung_up_on(reads):
    """By the relay of a run (peers.py), which takes eight bytes, or by whoever closes."""
    with socket.create_server(("", 0)) as server, concurrent.futures.ThreadPoolExecutor(1) as pool:
        late = pool.submit(outcome, [(2, 1)], 0.3, f"localhost:{server.getsockname()[1]}")
        server.settimeout(0.1)
        while not late.done():
            with contextlib.suppress(TimeoutError), server.accept()[0] as connection:
                connection.recv(reads)
    assert "(it hangs up: a run has begun there, or another program listens)" in late.result()[0]


def test_strangers_are_not_counted():
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(outcome, [(2, 0), (2, 1)], 10, f"localhost:{port}")
        for _ in range(20):
            try:
                with socket.create_connection(("localhost", port), timeout=1) as stranger:
                    stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            except OSError:
                break
        assert first.result() == ["", ""]
