from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtt.errors import NetworkError
from plugin import vpn
from plugin.vpn import VpnProtection


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def propagated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("mtt"), "propagate", True)


@contextlib.contextmanager
def listener(backlog: int = 5) -> Iterator[socket.socket]:
    """The app's side: a socket listening at protect_path in the working directory."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        sock.bind("protect_path")
        sock.listen(backlog)
        yield sock


async def answer(app: socket.socket, reply: bytes) -> tuple[bytes, list[str]]:
    """Serve one request; returns what was sent and the sockets behind the descriptors."""
    loop = asyncio.get_running_loop()
    connection, _ = await loop.sock_accept(app)
    with connection:
        readable = loop.create_future()
        loop.add_reader(connection, readable.set_result, None)
        await readable
        loop.remove_reader(connection)
        data, descriptors, _, _ = socket.recv_fds(connection, 10, 10)
        names = [os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in descriptors]
        for descriptor in descriptors:
            os.close(descriptor)
        await loop.sock_sendall(connection, reply)
    return data, names


async def test_the_descriptor_is_passed() -> None:
    with listener() as app, socket.socket() as sock:
        served = asyncio.create_task(answer(app, b"\0"))
        await VpnProtection().protect(sock)
        data, names = await served
        assert len(data) == 1
        assert names == [os.readlink(f"/proc/self/fd/{sock.fileno()}")]


@pytest.mark.parametrize("reply", [b"\1", b"\xff", b""])
async def test_refusal(reply: bytes) -> None:
    with listener() as app, socket.socket() as sock:
        served = asyncio.create_task(answer(app, reply))
        with pytest.raises(NetworkError, match="protect_path refused"):
            await VpnProtection().protect(sock)
        await served


async def test_an_app_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vpn, "PROTECT_LIMIT", 0.05)
    late = pytest.raises(NetworkError, match=r"did not answer within 0\.05 s")
    with listener(), socket.socket() as sock, late:
        await VpnProtection().protect(sock)


async def test_an_app_that_does_not_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vpn, "PROTECT_LIMIT", 0.05)
    with listener(backlog=0), contextlib.ExitStack() as stack, socket.socket() as sock:
        fill_backlog(stack)
        with pytest.raises(NetworkError, match="did not answer"):
            await VpnProtection().protect(sock)


async def test_a_full_backlog_is_waited_for() -> None:
    with listener(backlog=0) as app, contextlib.ExitStack() as stack, socket.socket() as sock:
        waiting = fill_backlog(stack)
        request = asyncio.create_task(VpnProtection().protect(sock))
        await asyncio.sleep(0)  # the first attempt
        for _ in range(waiting):
            app.accept()[0].close()
        await answer(app, b"\0")
        await request


def fill_backlog(stack: contextlib.ExitStack) -> int:
    count = 0
    while True:
        other = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        other.setblocking(False)
        try:
            other.connect("protect_path")
        except BlockingIOError:
            return count
        count += 1


async def test_no_app_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    protection = VpnProtection()
    with socket.socket() as sock:
        await protection.protect(sock)
        await protection.protect(sock)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "there is no protect_path" in caplog.text


async def test_a_platform_without_descriptor_passing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(socket, "send_fds")
    with socket.socket() as sock:
        await VpnProtection().protect(sock)
    assert "platform" in caplog.text


async def test_an_app_that_is_gone_is_an_error() -> None:
    # Unprotected, the connection would run in a circle.
    with listener():
        pass
    with socket.socket() as sock, pytest.raises(NetworkError, match="connection refused"):
        await VpnProtection().protect(sock)
