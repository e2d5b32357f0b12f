"""Direct UDP to the destinations that rules allow.

Theory of operation
-------------------
A `DirectUdp` is one unconnected socket, dual-stack where possible. A datagram is sent to its
destination if the rules allow that address. Datagrams from any source are delivered with their
source address (full cone, RFC 4787: endpoint-independent mapping and filtering), unless the socket
is restricted to one peer.

A name is resolved once and keeps its address for the life of the socket: QUIC would not survive a
change. A datagram waits for the lookup of its name; other datagrams do not wait for it.

Nothing else is queued here. A datagram that the socket does not accept at once is dropped. The
kernel drops received datagrams when its buffer is full because the owner has paused. UDP allows
both.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

from mtt.address import host_port
from mtt.errors import MttError, NetworkError, describe
from mtt.layers.base import Data
from mtt.log import logger
from mtt.net.resolve import Resolver, literal
from mtt.outbound.direct import Allows

# Datagrams read in one turn of the event loop, in fairness to other connections.
BATCH = 32

# Per socket: resolved names, and concurrent lookups.
MAX_NAMES = 256
MAX_LOOKUPS = 32

# Bytes of datagrams that wait for lookups, per socket. Each datagram counts at least MIN_WAITING.
MAX_WAITING = 64 * 1024
MIN_WAITING = 256

_MAPPED = "::ffff:"

# One buffer for all sockets, as in `mtt.layers.base`: its data is consumed in the same turn.
_received = memoryview(bytearray(65535))


class Owner(Protocol):
    """Callbacks of a `DirectUdp`."""

    def deliver(self, host: str, port: int, payload: memoryview) -> None:
        """Called with a datagram and its source; `payload` is valid only during the call."""

    def denied(self, host: str, port: int) -> None:
        """Called when the rules deny a destination."""

    def dropped(self, direction: str, size: int, why: str) -> None:
        """Called when a datagram is dropped; `direction` is "to ADDRESS" or "from ADDRESS"."""


class DirectUdp:
    """One socket. It receives nothing before `resume()`.

    Args:
        owner: receives the callbacks.
        resolver: resolves names.
        allows: the rules, see `mtt.outbound.direct`.

    Raises NetworkError if no socket can be opened.

    Attributes:
        sent: payload bytes sent.
        active: loop time when a datagram was last sent.
    """

    __slots__ = (
        "_allows", "_is_reading", "_lookups", "_loop", "_names", "_owner", "_peers", "_resolver",
        "_sock", "_tasks", "_waiting", "active", "sent",
    )  # fmt: skip

    def __init__(
        self, owner: Owner, *, resolver: Resolver, allows: Allows
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._owner: Owner | None = owner  # None when closed
        self._resolver = resolver
        self._allows = allows
        self._is_reading = False
        self._peers: set[tuple[str, int]] | None = None  # allowed sources; None: all
        self._names: dict[str, tuple[str, ...]] = {}
        self._lookups: dict[str, list[tuple[int, bytes]]] = {}  # waiting (port, datagram)
        self._waiting = 0  # bytes in `_lookups`
        self._tasks: set[asyncio.Task[None]] = set()
        self.sent = 0
        self.active = self._loop.time()
        try:
            self._sock = _open_socket()
        except OSError as error:
            raise NetworkError(f"no UDP socket: {describe(error)}") from None

    def resume(self) -> None:
        """Start receiving."""
        if not self._is_reading and self._owner is not None:
            self._is_reading = True
            self._loop.add_reader(self._sock, self._readable)

    def pause(self) -> None:
        """Stop receiving until `resume()`."""
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._sock)

    def close(self) -> None:
        """Close the socket and cancel lookups. No callback follows."""
        if self._owner is not None:
            self._owner = None
            for task in self._tasks:
                task.cancel()
            self.pause()
            self._sock.close()

    def restrict(self, host: str, port: int) -> bool:
        """Accept datagrams only from this peer and from addresses sent to.

        Returns False if the rules deny the peer.
        """
        self._peers = set()
        if _is_address(host):
            self._peers.add((host, port))
            if not self._allows(host, host, port):
                self._report_denied(host, port)
                return False
        return True

    # Sending.

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
        """Send to the first address that is allowed and reachable."""
        reason = ""
        for address in addresses:
            if not self._allows(host, address, port):
                continue
            is_mapped = self._sock.family == socket.AF_INET6 and ":" not in address
            try:
                self._sock.sendto(payload, (_MAPPED + address if is_mapped else address, port))
            except BlockingIOError:
                reason = "the socket's send buffer is full"
                break
            except (OSError, OverflowError) as error:  # no route in this IP version; too large
                reason = describe(error)
            else:
                self.sent += len(payload)
                self.active = self._loop.time()
                if self._peers is not None:
                    self._peers.add((_plain_address(address), port))
                return
        if not reason:
            self._report_denied(host, port)
        self._drop(f"to {host_port(host, port)}", len(payload), reason or "not allowed")

    # Names.

    def _look_up(self, host: str, port: int, payload: bytes) -> None:
        """Queue a datagram until its name is resolved."""
        size = max(len(payload), MIN_WAITING)
        waiting = self._lookups.get(host)
        if self._waiting + size > MAX_WAITING or (
            waiting is None and len(self._lookups) >= MAX_LOOKUPS
        ):
            self._drop(f"to {host_port(host, port)}", len(payload), "too many wait for lookups")
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

    # Receiving.

    def _readable(self) -> None:
        owner = self._owner
        for _ in range(BATCH):
            if owner is None or not self._is_reading:
                return
            try:
                size, source = self._sock.recvfrom_into(_received)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:  # on Windows: an ICMP error about a sent datagram
                logger.debug("UDP: %s", describe(error))
                continue
            host, port = _plain_address(source[0]), source[1]
            if self._peers is None or (host, port) in self._peers:
                owner.deliver(host, port, _received[:size])
            else:
                self._drop(f"from {host_port(host, port)}", size, "not from the peer")

    def _report_denied(self, host: str, port: int) -> None:
        if self._owner is not None:
            self._owner.denied(host, port)

    def _drop(self, direction: str, size: int, why: str) -> None:
        if self._owner is not None:
            self._owner.dropped(direction, size, why)


def _open_socket() -> socket.socket:
    """A bound dual-stack UDP socket; IPv4 only where that is impossible. Raises OSError."""
    try:
        return _bound(socket.AF_INET6, "::")
    except OSError:  # no IPv6, or no dual-stack sockets
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
    # A zone is malformed here; the resolver refuses it (see `wire.addresses`).
    return "%" not in host and literal(host, 0) is not None


def _plain_address(address: str) -> str:
    """Strip the kernel's IPv4-mapped prefix or zone from an address."""
    return address.removeprefix(_MAPPED) if "." in address else address.partition("%")[0]
