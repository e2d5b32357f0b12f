"""A UDP socket under rules: sending, delivery, lookups and drops."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import pytest

from mtt.errors import NetworkError
from mtt.net.resolve import Address, Resolver
from mtt.outbound.udp import DirectUdp
from tests.support.tunnels import SOON, eventually

HERE, DENIED = "127.0.0.1", "127.0.0.2"


class Names(Resolver):
    """Resolves "here.test" once the test allows it."""

    def __init__(self) -> None:
        super().__init__()
        self.known = asyncio.Event()

    async def resolve(self, host: str, port: int) -> list[Address]:
        await self.known.wait()
        if host != "here.test":
            raise NetworkError(f"cannot resolve {host}: no")
        return [(socket.AF_INET, (HERE, port))]


class Owner:
    """Records the callbacks."""

    def __init__(self) -> None:
        self.got: list[tuple[str, int, bytes]] = []
        self.denials: list[tuple[str, int]] = []
        self.drops: list[tuple[str, int, str]] = []
        self.names = Names()
        self.udp = DirectUdp(self, resolver=self.names, allows=lambda _, host, port: host != DENIED)

    def deliver(self, host: str, port: int, payload: memoryview) -> None:
        self.got.append((host, port, bytes(payload)))

    def denied(self, host: str, port: int) -> None:
        self.denials.append((host, port))

    def dropped(self, which: str, size: int, why: str) -> None:
        self.drops.append((which, size, why))


@pytest.fixture
def there() -> Iterator[socket.socket]:
    with bound() as sock:
        yield sock


@contextlib.contextmanager
def bound() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((HERE, 0))
        sock.settimeout(SOON)
        yield sock


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


async def test_datagrams_go_both_ways(there: socket.socket) -> None:
    owner = Owner()
    owner.udp.resume()
    owner.udp.send(HERE, port_of(there), b"ping")
    data, source = there.recvfrom(100)
    assert (data, owner.udp.sent) == (b"ping", 4)
    there.sendto(b"pong", source)
    await eventually(lambda: owner.got == [(HERE, port_of(there), b"pong")])
    owner.udp.close()
    owner.udp.close()


async def test_paused_socket_delivers_nothing(there: socket.socket) -> None:
    owner = Owner()
    owner.udp.resume()
    owner.udp.pause()
    owner.udp.send(HERE, port_of(there), b"ping")
    _, source = there.recvfrom(100)
    there.sendto(b"early", source)
    with bound() as other:  # a round trip of another socket: the loop has had its turns
        second = Owner()
        second.udp.resume()
        second.udp.send(HERE, port_of(other), b"ping")
        other.sendto(b"pong", other.recvfrom(100)[1])
        await eventually(lambda: second.got)
        second.udp.close()
    assert not owner.got
    owner.udp.resume()
    await eventually(lambda: owner.got == [(HERE, port_of(there), b"early")])
    owner.udp.close()


async def test_rules_apply_to_every_address(there: socket.socket) -> None:
    owner = Owner()
    owner.udp.send(DENIED, port_of(there), b"ping")
    assert owner.denials == [(DENIED, port_of(there))]
    assert owner.drops == [(f"to {DENIED}:{port_of(there)}", 4, "not allowed")]
    assert not owner.udp.restrict(DENIED, 53)
    assert owner.denials[1:] == [(DENIED, 53)]
    assert owner.udp.sent == 0
    owner.udp.close()


async def test_restricted_socket_accepts_only_the_peer(there: socket.socket) -> None:
    owner = Owner()
    assert owner.udp.restrict("here.test", port_of(there))
    owner.names.known.set()
    owner.udp.resume()
    owner.udp.send("here.test", port_of(there), b"ping")
    await eventually(lambda: owner.udp.sent)
    _, source = there.recvfrom(100)
    with bound() as other:
        other.sendto(b"stranger", source)
        there.sendto(b"pong", source)
        await eventually(lambda: owner.got)
        assert owner.got == [(HERE, port_of(there), b"pong")]
        assert owner.drops == [(f"from {HERE}:{port_of(other)}", 8, "not from the peer")]
    owner.udp.close()


async def test_failed_lookups_and_waiting_datagrams(there: socket.socket) -> None:
    owner = Owner()
    owner.udp.send("none.test", 53, b"lost")
    owner.udp.send("here.test", port_of(there), b"late")
    owner.udp.send(HERE, port_of(there), b"first")
    assert there.recv(100) == b"first"
    owner.names.known.set()
    await eventually(lambda: owner.drops and owner.udp.sent == 9)
    assert owner.drops == [("to none.test:53", 4, "cannot resolve none.test: no")]
    assert there.recv(100) == b"late"
    owner.udp.close()


async def test_closed_socket_is_silent(there: socket.socket) -> None:
    owner = Owner()
    owner.udp.resume()
    owner.udp.send("here.test", port_of(there), b"never")
    descriptor = owner.udp._sock.fileno()
    owner.udp.close()
    assert not asyncio.get_running_loop().remove_reader(descriptor)
    owner.udp.send(HERE, port_of(there), b"neither")
    owner.udp.resume()
    await eventually(lambda: len(asyncio.all_tasks()) == 1)
    there.setblocking(False)
    with pytest.raises(BlockingIOError):
        there.recv(100)
    assert (owner.got, owner.denials, owner.drops, owner.udp.sent) == ([], [], [], 0)
