"""UDP from this machine to where clients want to send, under rules.

Theory of operation
-------------------
A `DirectUdp` is a socket, unconnected and for both versions of IP where there are two. A datagram
is sent to wherever it says, if the rules allow that address; whatever comes back from anywhere is
delivered with its source (full cone, RFC 4787: endpoint-independent mapping and filtering), unless
there is one peer only.

A name is resolved once and keeps its address for as long as the socket lives: QUIC would not
survive a change in the middle. A datagram waits for its name, and the others do not wait for it.

Nothing else is queued here. What the socket does not take at once is dropped, and so is what the
kernel has no room for while the owner does not take any more: that is UDP.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Protocol

from mtt.address import host_port
from mtt.errors import MttError, NetworkError, describe
from mtt.layers.base import Data
from mtt.log import logger
from mtt.net.resolve import Resolver, literal

# Datagrams taken from the socket in one turn; others want to have theirs.
BATCH = 32

# Names of one socket: of how many the address is known, and how many are being looked up.
MAX_NAMES = 256
MAX_LOOKUPS = 32

# Bytes of all datagrams of one socket that wait for a name. Each counts MIN_WAITING at least.
MAX_WAITING = 64 * 1024
MIN_WAITING = 256

_MAPPED = "::ffff:"

# One for all sockets, as in `mtt.layers.base`: it is read and passed on in the same turn.
_received = memoryview(bytearray(65535))


class Owner(Protocol):
    """What a `DirectUdp` tells."""

    def deliver(self, host: str, port: int, payload: memoryview) -> None:
        """A datagram came from this IP literal and port; it is gone after the call."""

    def denied(self, host: str, port: int) -> None:
        """The rules do not let datagrams go there."""

    def dropped(self, which: str, size: int, why: str) -> None:
        """A datagram was dropped: "to" or "from" where, how large, and why."""


class DirectUdp:
    """One socket. It receives nothing before `resume()`.

    Args:
        owner: gets what comes.
        resolver: asked for names.
        allows: whether to send to an IP literal and port.

    Raises NetworkError: there is no socket for it.

    Attributes:
        sent: bytes in datagrams that were sent.
        active: when the last one was, in the loop's time.
    """

    __slots__ = (
        "_allows", "_is_reading", "_lookups", "_loop", "_names", "_owner", "_peers", "_resolver",
        "_sock", "_tasks", "_waiting", "active", "sent",
    )  # fmt: skip

    def __init__(
        self, owner: Owner, *, resolver: Resolver, allows: Callable[[str, int], bool]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._owner: Owner | None = owner  # until it is closed
        self._resolver = resolver
        self._allows = allows
        self._is_reading = False
        self._peers: set[tuple[str, int]] | None = None  # who may send, None for everybody
        self._names: dict[str, tuple[str, ...]] = {}
        self._lookups: dict[str, list[tuple[int, bytes]]] = {}  # ports and datagrams that wait
        self._waiting = 0  # bytes in these
        self._tasks: set[asyncio.Task[None]] = set()
        self.sent = 0
        self.active = self._loop.time()
        try:
            self._sock = _open_socket()
        except OSError as error:
            raise NetworkError(f"no UDP socket: {describe(error)}") from None

    def resume(self) -> None:
        """Receive, now and from now on."""
        if not self._is_reading and self._owner is not None:
            self._is_reading = True
            self._loop.add_reader(self._sock, self._readable)

    def pause(self) -> None:
        """Receive nothing until `resume()`."""
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._sock)

    def close(self) -> None:
        """Give everything back. The owner is told nothing any more."""
        if self._owner is not None:
            self._owner = None
            for task in self._tasks:
                task.cancel()
            self.pause()
            self._sock.close()

    def restrict(self, host: str, port: int) -> bool:
        """Let only those send that are sent to, and this peer. False if the rules deny it."""
        self._peers = set()
        if _is_address(host):
            self._peers.add((host, port))
            if not self._allows(host, port):
                self._tell_denied(host, port)
                return False
        return True

    # To the destinations.

    def send(self, host: str, port: int, payload: Data) -> None:
        """Send a datagram to an IP literal or name, or drop it."""
        if self._owner is None:
            return
        if _is_address(host):
            self._send_to(host, (host,), port, payload)
        elif host in self._names:
            self._send_to(host, self._names[host], port, payload)
        else:
            self._look_up(host, port, bytes(payload))

    def _send_to(self, host: str, addresses: tuple[str, ...], port: int, payload: Data) -> None:
        """Send to the first address that takes it."""
        reason = ""
        for address in addresses:
            if not self._allows(address, port):
                continue
            try:
                self._sock.sendto(payload, (self._spelt(address), port))
            except BlockingIOError:
                reason = "the system does not take any more"
                break
            except (OSError, OverflowError) as error:  # no route by this version of IP; too large
                reason = describe(error)
            else:
                self.sent += len(payload)
                self.active = self._loop.time()
                if self._peers is not None:
                    self._peers.add((_plain(address), port))
                return
        if not reason:
            self._tell_denied(host, port)
        self._drop(f"to {host_port(host, port)}", len(payload), reason or "not allowed")

    def _spelt(self, address: str) -> str:
        if self._sock.family == socket.AF_INET6 and ":" not in address:
            return _MAPPED + address
        return address

    # Names.

    def _look_up(self, host: str, port: int, payload: bytes) -> None:
        """Let a datagram wait until it is known where to."""
        size = max(len(payload), MIN_WAITING)
        waiting = self._lookups.get(host)
        if self._waiting + size > MAX_WAITING or (
            waiting is None and len(self._lookups) >= MAX_LOOKUPS
        ):
            self._drop(f"to {host_port(host, port)}", len(payload), "too many wait for names")
            return
        self._waiting += size
        if waiting is not None:
            waiting.append((port, payload))
            return
        self._lookups[host] = [(port, payload)]
        task = self._loop.create_task(self._resolve(host))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _resolve(self, host: str) -> None:
        addresses: tuple[str, ...] = ()
        reason = ""
        try:
            found = await self._resolver.resolve(host, 0)
        except MttError as error:
            reason = describe(error)
        else:
            addresses = tuple(rest[0] for _, rest in found)
            if len(self._names) >= MAX_NAMES:
                del self._names[next(iter(self._names))]  # the oldest
            self._names[host] = addresses
        for port, payload in self._lookups.pop(host):
            self._waiting -= max(len(payload), MIN_WAITING)
            if reason:
                self._drop(f"to {host_port(host, port)}", len(payload), reason)
            else:
                self._send_to(host, addresses, port, payload)

    # From them.

    def _readable(self) -> None:
        owner = self._owner
        for _ in range(BATCH):
            if owner is None or not self._is_reading:
                return
            try:
                size, source = self._sock.recvfrom_into(_received)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:  # an ICMP message about something that we sent, on Windows
                logger.debug("UDP: %s", describe(error))
                continue
            host, port = _plain(source[0]), source[1]
            if self._peers is None or (host, port) in self._peers:
                owner.deliver(host, port, _received[:size])
            else:
                self._drop(f"from {host_port(host, port)}", size, "it is not the peer")

    def _tell_denied(self, host: str, port: int) -> None:
        if self._owner is not None:
            self._owner.denied(host, port)

    def _drop(self, which: str, size: int, why: str) -> None:
        if self._owner is not None:
            self._owner.dropped(which, size, why)


def _open_socket() -> socket.socket:
    """A bound UDP socket for both versions of IP, or for IPv4 if there is no other.

    Raises OSError.
    """
    try:
        return _bound(socket.AF_INET6, "::")
    except OSError:  # also where no socket can be for both
        return _bound(socket.AF_INET, "0.0.0.0")


def _bound(family: socket.AddressFamily, address: str) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((address, 0))
    except BaseException:
        sock.close()
        raise
    return sock


def _is_address(host: str) -> bool:
    # What has a zone here is malformed, and for the resolver to refuse: see `wire.addresses`.
    return "%" not in host and literal(host, 0) is not None


def _plain(address: str) -> str:
    """An address as the kernel gives it, the way we call it: no mapped IPv4, no zone."""
    return address.removeprefix(_MAPPED) if "." in address else address.partition("%")[0]
