"""Gateways and agents that are asked to end let transfers finish; requests survive lost agents."""

from __future__ import annotations

import http.client
import signal
import socket
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.real.destinations import (
    MB,
    PAGE,
    SIZE,
    Destination,
    Site,
    digest,
    payload,
    read_to_end,
)
from tests.real.gateways import LOGIN, Gateway, connect, start_agent, start_gateway
from tests.support.certs import Certs
from tests.support.processes import Processes

AUTHORIZATION = f"Basic {b64encode(LOGIN.encode()).decode()}"


@pytest.fixture
def gateway(processes: Processes, certs: Certs, tmp_path: Path) -> Gateway:
    return start_gateway(processes, certs, tmp_path)


class User:
    """A user with one connection to the HTTP proxy."""

    def __init__(self, gateway: Gateway) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", gateway.http, timeout=20)

    def __enter__(self) -> User:
        self._connection.connect()
        self._connection.auto_open = 0  # a second connection would hide that the first has ended
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ask(self, url: str, body: bytes | None = None) -> tuple[int, bytes]:
        method = "GET" if body is None else "POST"
        self._connection.request(method, url, body, {"Proxy-Authorization": AUTHORIZATION})
        answer = self._connection.getresponse()
        return answer.status, answer.read()


@contextmanager
def transfers(gateway: Gateway) -> Iterator[list[Future[str]]]:
    """Four downloads, of which each has begun, and which go on when the context is left."""

    def send(connection: socket.socket) -> None:
        connection.sendall(payload(MB))
        connection.recv(1)  # the user's go
        connection.sendall(payload())

    def download(user: socket.socket) -> str:
        return digest(read_to_end(user))

    with Destination(send) as destination, ThreadPoolExecutor(4) as pool:
        users = [connect(gateway, destination.port) for _ in range(4)]
        for user in users:
            assert user.recv(MB, socket.MSG_PEEK)
        running: list[Future[str]] = []
        yield running
        for user in users:
            user.sendall(b"!")
        running += [pool.submit(download, user) for user in users]
        assert {each.result() for each in running} == {digest(payload(MB) + payload())}
        for user in users:
            user.close()


def test_gateway_that_ends_lets_transfers_finish(
    processes: Processes, certs: Certs, tmp_path: Path, gateway: Gateway, site: Site
) -> None:
    start_agent(processes, certs, tmp_path, gateway)
    with transfers(gateway):
        gateway.process.send(signal.SIGTERM)
        gateway.process.expect("waiting up to 10 s for 4 tunnels")
        listen = {"listen_addr": f"127.0.0.1:{gateway.http}"}
        again = start_gateway(
            processes, certs, tmp_path, http=listen, port=gateway.port, name="again"
        )
        start_agent(processes, certs, tmp_path, again, name="other")
        with User(again) as user:
            assert user.ask(f"http://{site.address}/") == (200, PAGE)
    assert gateway.process.wait() == 0
    again.wait_for("agent")


def test_agent_that_ends_lets_transfers_finish(
    processes: Processes, certs: Certs, tmp_path: Path, gateway: Gateway, site: Site
) -> None:
    one = start_agent(processes, certs, tmp_path, gateway, name="one")
    with transfers(gateway):
        start_agent(processes, certs, tmp_path, gateway, name="two")
        one.send(signal.SIGTERM)
        one.expect("waiting up to 10 s for 4 tunnels")
        for _ in range(4):
            with User(gateway) as user:
                assert user.ask(f"http://{site.address}/") == (200, PAGE)
    assert one.wait() == 0


def test_frozen_gateway_loses_nothing(
    processes: Processes, certs: Certs, tmp_path: Path, gateway: Gateway, site: Site
) -> None:
    start_agent(processes, certs, tmp_path, gateway)
    with transfers(gateway), User(gateway) as user, ThreadPoolExecutor(1) as pool:
        gateway.process.send(signal.SIGSTOP)
        asked = pool.submit(user.ask, f"http://{site.address}/upload", payload())
        with pytest.raises(TimeoutError):
            asked.result(1.0)
        gateway.process.send(signal.SIGCONT)
        assert asked.result() == (200, f"{SIZE} {digest(payload())}".encode())


def test_idle_connection_survives_its_agent(
    processes: Processes, certs: Certs, tmp_path: Path, gateway: Gateway, site: Site
) -> None:
    with User(gateway) as user:
        for number in range(4):
            agent = start_agent(processes, certs, tmp_path, gateway, name=f"agent{number}")
            assert user.ask(f"http://{site.address}/") == (200, PAGE)
            assert user.ask(f"http://{site.address}/upload", b"x")[0] == 200
            agent.stop(signal.SIGKILL)
        assert user.ask(f"http://{site.address}/")[0] == 503


def test_upload_that_loses_its_agent_fails(
    processes: Processes, certs: Certs, tmp_path: Path, gateway: Gateway
) -> None:
    agent = start_agent(processes, certs, tmp_path, gateway)

    def read_some(connection: socket.socket) -> None:
        connection.recv(65536)
        agent.stop(signal.SIGKILL)

    with Destination(read_some) as destination, User(gateway) as user:
        assert user.ask(f"http://{destination.address}/", payload(MB))[0] == 502
