"""Destinations that are connected without waiting, and those that are not."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest

from mtt.address import Endpoint
from mtt.errors import NetworkError
from mtt.layers.base import StreamProtocol
from mtt.net.dial import Dialer
from mtt.net.resolve import Resolver
from tests.net.dialing import Holder, connect
from tests.support.loopback import black_hole, linux_only, listening
from tests.support.transports import Recorder


@linux_only
async def test_loopback_destination_is_connected_at_once():
    with listening() as server:
        endpoint = Endpoint(("127.0.0.1",), server.getsockname()[1])
        recorder = Recorder()
        transport = Dialer(Resolver()).connect_at_once(endpoint, lambda: recorder)
        assert transport is recorder.transport
        with server.accept()[0] as destination:
            sock = transport.get_extra_info("socket")
            assert sock.getpeername() == server.getsockname()
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            transport.write(b"hello")
            assert destination.recv(100) == b"hello"
            transport.close()
            assert destination.recv(100) == b""  # an ordinary end, no reset
        assert await recorder.ended() is None


@linux_only
@pytest.mark.parametrize(
    ("hosts", "options"),
    [
        (("localhost",), {}),
        (("127.1.example",), {}),
        (("::1%nowhere",), {}),
        (("::1:2",), {}),
        (("192.0.2.1",), {}),
        (("127.0.0.1", "::1"), {}),
        (("127.0.0.1",), {"fast_open": True}),
        (("127.0.0.1",), {"protect": Holder(0)}),
    ],
)
async def test_remote_destinations_are_not_connected_at_once(hosts, options):
    with listening() as server:
        endpoint = Endpoint(hosts, server.getsockname()[1])
        assert Dialer(Resolver(), **options).connect_at_once(endpoint, StreamProtocol) is None
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


@linux_only
async def test_silent_destination_is_not_connected_at_once():
    with black_hole() as hole:
        endpoint = Endpoint(("127.0.0.1",), hole[1])
        assert Dialer(Resolver()).connect_at_once(endpoint, StreamProtocol) is None


@linux_only
async def test_immediate_failure_is_reported_by_connect(refused_port, monkeypatch):
    endpoint = Endpoint(("127.0.0.1",), refused_port)
    dialer = Dialer(Resolver())
    assert dialer.connect_at_once(endpoint, StreamProtocol) is None
    with pytest.raises(NetworkError, match="connection refused"):
        await connect(dialer, endpoint)

    def exhausted(*_: Any) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", exhausted)
        assert dialer.connect_at_once(endpoint, StreamProtocol) is None
        with pytest.raises(NetworkError, match="too many open files"):
            await connect(dialer, endpoint)
