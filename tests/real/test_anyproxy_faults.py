"""Processes die, freeze and come back, and readers stop; the rest goes on."""

from __future__ import annotations

import contextlib
import hashlib
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.real.destinations import (
    MB,
    SOCKET_TIMEOUT,
    Destination,
    digest,
    echo,
    payload,
    read_to_end,
    speak_and_close,
)
from tests.real.gateways import Gateway, connect, start_agent, start_gateway
from tests.support.certs import Certs
from tests.support.processes import Processes, eventually

GIGABYTE = 1000 * MB


# Of a gateway that soon asks a silent agent for a sign of life.
IMPATIENCE = {"mtt.outbound.agent.QUESTION_TIME": 0.5, "mtt.outbound.agent.SIGN_TIME": 1.0}


@pytest.fixture
def gateway(processes: Processes, certs: Certs, tmp_path: Path) -> Gateway:
    return start_gateway(processes, certs, tmp_path)


@pytest.fixture
def echoing() -> Iterator[Destination]:
    with Destination(echo) as destination:
        yield destination


def state(user: socket.socket, message: bytes = b"still here") -> str:
    """Whether a tunnel to `echo` works, or has been cut, or has ended like a complete one."""
    try:
        user.sendall(message)
        answer = b""
        while len(answer) < len(message):
            data = user.recv(65536)
            if not data:
                return "ended"
            answer += data
    except ConnectionError:
        return "cut"
    assert answer == message
    return "works"


def open_tunnels(gateway: Gateway, port: int, count: int) -> list[socket.socket]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: connect(gateway, port), range(count)))


# Bulk.


@pytest.mark.deadline(120)
def test_gigabyte_arrives_intact(
    processes: Processes, certs: Certs, tmp_path: Path, gateway: Gateway
) -> None:
    sums: list[str] = []

    def send(connection: socket.socket) -> None:
        summed = hashlib.sha256()
        for number in range(GIGABYTE // MB):
            block = number.to_bytes(8, "big") + payload(MB)[8:]
            summed.update(block)
            connection.sendall(block)
        sums.append(summed.hexdigest())

    start_agent(processes, certs, tmp_path, gateway)
    with Destination(send) as destination, connect(gateway, destination.port) as user:
        summed, size = hashlib.sha256(), 0
        buffer = memoryview(bytearray(MB))
        while count := user.recv_into(buffer):
            summed.update(buffer[:count])
            size += count
        assert size == GIGABYTE
        assert sums == [summed.hexdigest()]


@pytest.mark.parametrize("direction", ["down", "up"])
def test_stopped_reader_does_not_stop_the_others(
    processes: Processes, certs: Certs, tmp_path: Path, gateway: Gateway, direction: str
) -> None:
    start_agent(processes, certs, tmp_path, gateway)
    reads, all_sent = threading.Event(), threading.Event()
    much = payload() * 3  # more than all sockets on the way take

    def send_much(connection: socket.socket) -> None:
        connection.sendall(much)
        all_sent.set()

    def receive_later(connection: socket.socket) -> None:
        reads.wait(SOCKET_TIMEOUT)
        receive(connection)

    def receive(connection: socket.socket) -> None:
        connection.sendall(digest(read_to_end(connection)).encode())

    def download(user: socket.socket) -> str:
        return digest(read_to_end(user))

    def upload(user: socket.socket) -> str:
        user.sendall(payload())
        user.shutdown(socket.SHUT_WR)
        return read_to_end(user).decode()

    def upload_much(user: socket.socket) -> str:
        send_much(user)
        user.shutdown(socket.SHUT_WR)
        return read_to_end(user).decode()

    def download_later(user: socket.socket) -> str:
        reads.wait(SOCKET_TIMEOUT)
        return download(user)

    down = direction == "down"
    with (
        Destination(send_much if down else receive_later) as slow,
        Destination(speak_and_close if down else receive) as fast,
        ThreadPoolExecutor(9) as pool,
        connect(gateway, slow.port) as stopped,
    ):
        last = pool.submit(download_later if down else upload_much, stopped)
        for _ in range(2):
            users = open_tunnels(gateway, fast.port, 8)
            assert set(pool.map(download if down else upload, users)) == {digest(payload())}
            for user in users:
                user.close()
        assert not all_sent.is_set()
        reads.set()
        assert last.result() == digest(much)


# Processes.


class Talk:
    """A user who sends 100 kB and gets them back, again and again, in a thread of the pool."""

    def __init__(self, pool: ThreadPoolExecutor, user: socket.socket) -> None:
        self.rounds = 0
        self._user = user
        self._stop = threading.Event()
        self._result = pool.submit(self._run)

    def _run(self) -> str:
        found = "works"
        while found == "works" and not self._stop.is_set():
            found = state(self._user, payload(100_000))
            self.rounds += 1
        return found

    def state(self) -> str:
        """End it, and return how it is now."""
        self._stop.set()
        return self._result.result()


@contextlib.contextmanager
def talks(gateway: Gateway, port: int) -> Iterator[list[Talk]]:
    """Eight users in the middle of their traffic."""
    users = open_tunnels(gateway, port, 8)
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(8))
        running = [Talk(pool, stack.enter_context(user)) for user in users]
        eventually(lambda: all(talk.rounds for talk in running), "every user had one answer")
        yield running


def test_killed_agent_takes_only_its_own_streams(
    processes: Processes, certs: Certs, tmp_path: Path, gateway: Gateway, echoing: Destination
) -> None:
    one = start_agent(processes, certs, tmp_path, gateway, name="one")
    start_agent(processes, certs, tmp_path, gateway, name="two")
    with talks(gateway, echoing.port) as running:
        one.stop(signal.SIGKILL)
        for _ in range(8):
            with connect(gateway, echoing.port) as user:
                assert state(user) == "works"
        assert sorted(talk.state() for talk in running) == ["cut"] * 4 + ["works"] * 4
    start_agent(processes, certs, tmp_path, gateway, name="one", times=2)


def test_agents_come_back_to_a_restarted_gateway(
    processes: Processes, certs: Certs, tmp_path: Path, echoing: Destination
) -> None:
    first = start_gateway(processes, certs, tmp_path)
    for name in ("one", "two"):
        start_agent(processes, certs, tmp_path, first, name=name)
    with talks(first, echoing.port) as running:
        first.process.stop(signal.SIGKILL)
        assert "works" not in [talk.state() for talk in running]
    http = {"listen_addr": f"127.0.0.1:{first.http}"}
    again = start_gateway(processes, certs, tmp_path, http=http, port=first.port)
    for name in ("one", "two"):
        again.wait_for(name)
    for user in open_tunnels(again, echoing.port, 8):
        with user:
            assert state(user) == "works"


def test_frozen_agent_is_passed_over_and_comes_back(
    processes: Processes, certs: Certs, tmp_path: Path, echoing: Destination
) -> None:
    gateway = start_gateway(processes, certs, tmp_path, constants=IMPATIENCE)
    one = start_agent(processes, certs, tmp_path, gateway, name="one")
    start_agent(processes, certs, tmp_path, gateway, name="two")
    one.send(signal.SIGSTOP)
    # Half of them wait for the frozen agent at first.
    for user in open_tunnels(gateway, echoing.port, 8):
        with user:
            assert state(user) == "works"
    gateway.process.expect("agent 'one-r0' left group")
    for _ in range(4):
        with connect(gateway, echoing.port) as user:
            assert state(user) == "works"
    one.send(signal.SIGCONT)
    gateway.wait_for("one", times=2)
    for user in open_tunnels(gateway, echoing.port, 8):
        with user:
            assert state(user) == "works"


def test_agent_that_starts_again_replaces_a_frozen_one(
    processes: Processes, certs: Certs, tmp_path: Path, gateway: Gateway, echoing: Destination
) -> None:
    start_agent(processes, certs, tmp_path, gateway).send(signal.SIGSTOP)
    start_agent(processes, certs, tmp_path, gateway, times=2)
    for user in open_tunnels(gateway, echoing.port, 8):
        with user:
            assert state(user) == "works"


def test_frozen_agent_does_not_lose_what_is_on_its_way(
    processes: Processes, certs: Certs, tmp_path: Path, gateway: Gateway
) -> None:
    agent = start_agent(processes, certs, tmp_path, gateway)
    with (
        Destination(speak_and_close) as destination,
        connect(gateway, destination.port) as user,
    ):
        agent.send(signal.SIGSTOP)
        user.settimeout(0.2)
        received = []
        with contextlib.suppress(TimeoutError):
            while data := user.recv(65536):
                received.append(data)
        agent.send(signal.SIGCONT)
        user.settimeout(SOCKET_TIMEOUT)
        received.append(read_to_end(user))
        assert digest(b"".join(received)) == digest(payload())
