from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mtt.address import Endpoint
from mtt.net import sockets
from mtt.net.accept import Acceptor
from mtt.net.dial import Dialer
from mtt.net.resolve import Resolver
from mtt.net.sockets import source_address, stop_local_pacing
from tests.support.loopback import linux_only
from tests.support.transports import Recorder
from tests.support.tunnels import eventually


class Recording(socket.socket):
    """Notes the options of TCP that are set, or refuses them."""

    def __init__(self, *, refuses: bool = False) -> None:
        super().__init__()
        self.set_options: list[tuple[int, Any]] = []
        self._refuses = refuses

    def setsockopt(self, level: int, option: int, value: Any) -> None:  # type: ignore[override]
        assert level == socket.IPPROTO_TCP
        if self._refuses:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        self.set_options.append((option, value))


def test_source_address_towards_a_peer() -> None:
    assert source_address(("127.0.0.1", 443)) == "127.0.0.1"
    if socket.has_ipv6:
        assert source_address(("::1", 443, 0, 0)) in ("::1", None)  # None: IPv6 is switched off


def test_source_address_without_a_route(monkeypatch: pytest.MonkeyPatch) -> None:
    assert source_address("/run/a.sock") is None
    assert source_address(None) is None

    class Unreachable(socket.socket):
        def connect(self, address: Any) -> None:
            raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(socket, "socket", Unreachable)
    assert source_address(("192.0.2.1", 443)) is None


@pytest.fixture
def paced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The system's congestion control is BBR."""
    setting = tmp_path / "tcp_congestion_control"
    setting.write_text("bbr\n")
    monkeypatch.setattr(sockets, "_CONGESTION_CONTROL", str(setting))
    sockets._system_paces.cache_clear()
    yield
    sockets._system_paces.cache_clear()


@linux_only
@pytest.mark.parametrize(
    ("peer", "stops"),
    [
        (("127.0.0.1", 443), True),
        (("127.9.9.9", 443), True),
        (("::1", 443, 0, 0), True),
        (("::ffff:127.0.0.1", 443, 0, 0), True),
        (("192.0.2.127", 443), False),
        (("::ffff:192.0.2.1", 443, 0, 0), False),
        (("1270::1", 443, 0, 0), False),
        ("/run/a.sock", False),
        (None, False),
    ],
)
def test_pacing_stops_towards_peers_on_this_machine(peer: Any, stops: bool, paced: None) -> None:
    with Recording() as sock:
        stop_local_pacing(sock, peer)
        assert sock.set_options == [(socket.TCP_CONGESTION, b"reno")] * stops


@linux_only
@pytest.mark.parametrize("setting", ["cubic\n", "", None])
def test_nothing_is_set_where_the_system_does_not_pace(
    setting: str | None, paced: None, tmp_path: Path
) -> None:
    file = tmp_path / "tcp_congestion_control"
    if setting is None:
        file.unlink()
    else:
        file.write_text(setting)
    with Recording() as sock:
        stop_local_pacing(sock, ("127.0.0.1", 443))
        assert not sock.set_options


@linux_only
def test_pacing_that_a_sandbox_protects_stays(paced: None) -> None:
    with Recording(refuses=True) as sock:
        stop_local_pacing(sock, ("127.0.0.1", 443))


@linux_only
async def test_accepted_and_dialled_connections_are_not_paced(paced: None) -> None:
    accepted, at_once, dialled = Recorder(), Recorder(), Recorder()
    waiting = [accepted, Recorder()]
    acceptor = Acceptor([socket.create_server(("127.0.0.1", 0))], lambda: waiting.pop(0))
    try:
        endpoint = Endpoint(("127.0.0.1",), acceptor.sockets[0].getsockname()[1])
        dialer = Dialer(Resolver())
        assert dialer.connect_at_once(endpoint, lambda: at_once)
        await dialer.connect(endpoint, lambda: dialled)
        await eventually(lambda: not waiting)
        for recorder in (accepted, at_once, dialled):
            sock = recorder.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)[:5] == b"reno\0"
    finally:
        acceptor.close()
        for recorder in (at_once, dialled):
            recorder.transport.abort()
        await accepted.ended()
