"""Outgoing TCP connections: staggered attempts at all addresses (RFC 8305), under one deadline."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Callable
from time import monotonic

from mtt.address import Endpoint
from mtt.errors import MttError, NetworkError, describe
from mtt.layers import linger
from mtt.layers.base import StreamProtocol, StreamTransport
from mtt.layers.tcp import SocketTransport
from mtt.net.resolve import Address, Protect, Resolver, literal
from mtt.net.sockets import stop_local_pacing, tune
from mtt.outcome import Outcome, from_error, most_telling

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 10.0  # seconds, lookup and connect together; the original's dial timeout
ATTEMPT_DELAY = 0.25  # seconds; RFC 8305, 5: the recommended Connection Attempt Delay

# The address that won a race is tried first the next time (RFC 8305, 5, allows history). Otherwise
# each connection would lose ATTEMPT_DELAY on a dead IPv6 route.
FAVOURITE_TTL = 300.0  # seconds; after that, the regular order is tried again
MAX_FAVOURITES = 256  # endpoints; as many as the resolver caches

# Linux 4.11 and later, <linux/tcp.h>; Python's socket module lacks it. With this option connect()
# sends nothing, and the first write goes into the SYN.
TCP_FASTOPEN_CONNECT = 30

_LINUX = sys.platform.startswith("linux")

_Failure = tuple[str, Outcome]  # the reason, as text and as a value

ProtocolFactory = Callable[[], StreamProtocol]


class Dialer:
    """Connects to endpoints; belongs to one event loop and needs no closing.

    `timeout` (seconds) bounds one connect with all its lookups and attempts. `fast_open` puts the
    first bytes into the SYN, so it is only for protocols in which the client sends first. Once the
    kernel has a cookie for an address, it also hides that the address is dead: the failure then
    ends the connection, not the attempt. `protect` is awaited with each socket before it connects.
    """

    def __init__(
        self,
        resolver: Resolver,
        *,
        timeout: float = CONNECT_TIMEOUT,
        fast_open: bool = False,
        protect: Protect | None = None,
    ) -> None:
        self._resolver = resolver
        self._timeout = timeout
        self._fast_open = fast_open
        self._protect = protect
        self._favourites: dict[Endpoint, tuple[float, Address]] = {}  # expiry

    async def connect(
        self, endpoint: Endpoint, protocol_factory: ProtocolFactory
    ) -> StreamTransport:
        """Connect to the first address of the endpoint that answers; an empty host is localhost.

        Creates the protocol then. Raises NetworkError with the endpoint and every distinct reason.
        """
        failures: list[_Failure] = []
        outcome: Outcome | None = None
        try:
            async with asyncio.timeout(self._timeout):
                sock = await self._connect_socket(endpoint, failures)
        except (OSError, MttError) as error:
            # asyncio's TimeoutError has no errno; the kernel's ETIMEDOUT is of the same class.
            if isinstance(error, TimeoutError) and not error.errno:
                outcome = Outcome.TIMED_OUT  # of the whole, whatever the attempts reported
                failures.append((f"no answer within {self._timeout:g} s", outcome))
            else:
                failures.append(_failure(error))
        else:
            return _make_transport(sock, protocol_factory)
        self.forget(endpoint)
        why = "; ".join(dict.fromkeys(reason for reason, _ in failures))
        raise NetworkError(
            f"cannot connect to {endpoint}: {why}",
            outcome=outcome or most_telling(each for _, each in failures),
        )

    def connect_at_once(
        self, endpoint: Endpoint, protocol_factory: ProtocolFactory
    ) -> SocketTransport | None:
        """Connect to this machine without waiting; None if that fails or is not possible.

        Saves a task and a deadline per stream on servers, whose destination is usually local.
        `connect()` can wait, and reports why it fails.
        """
        host = endpoint.host
        if len(endpoint.hosts) > 1 or not (host == "::1" or host.startswith("127.")):
            return None
        if self._fast_open or self._protect is not None or not _LINUX:
            return None
        address = literal(host, endpoint.port)
        if address is None:
            return None
        try:
            sock = socket.socket(address[0], socket.SOCK_STREAM)
        except OSError:
            return None
        with contextlib.suppress(OSError):
            sock.setblocking(False)
            tune(sock)
            stop_local_pacing(sock, address[1])
            if _connected_at_once(sock, address):
                return _make_transport(sock, protocol_factory)
        sock.close()
        return None

    def forget(self, endpoint: Endpoint) -> None:
        """Look its names up again next time, because the wrong peer answered."""
        self._favourites.pop(endpoint, None)
        for host in endpoint.hosts:
            self._resolver.forget(host)

    async def _connect_socket(self, endpoint: Endpoint, failures: list[_Failure]) -> socket.socket:
        if len(endpoint.hosts) == 1:
            # With a single address, the usual case, this creates no task.
            address = literal(endpoint.host, endpoint.port)
            addresses = (
                [address] if address else await self._resolver.resolve(endpoint.host, endpoint.port)
            )
        else:
            addresses = await self._resolve_all(endpoint, failures)
        if len(addresses) == 1:
            return await self._attempt(addresses[0])
        addresses = self._favourite_first(endpoint, addresses)
        sock, winner = await self._race(addresses, failures)
        if winner != addresses[0]:
            self._favourites.pop(endpoint, None)
            if len(self._favourites) >= MAX_FAVOURITES:
                del self._favourites[next(iter(self._favourites))]  # the oldest
            self._favourites[endpoint] = monotonic() + FAVOURITE_TTL, winner
        return sock

    async def _resolve_all(self, endpoint: Endpoint, failures: list[_Failure]) -> list[Address]:
        """The addresses of all hosts, in the order of the hosts; some may fail to resolve."""
        results = await asyncio.gather(
            *(self._resolver.resolve(host, endpoint.port) for host in endpoint.hosts),
            return_exceptions=True,
        )
        addresses: dict[Address, None] = {}
        failure: MttError | None = None
        for result in results:
            if isinstance(result, MttError):
                failure = result
                failures.append(_failure(result))
            elif isinstance(result, BaseException):
                raise result
            else:
                addresses.update(dict.fromkeys(result))
        if failure is not None and not addresses:
            raise failure
        return list(addresses)

    async def _attempt(self, address: Address) -> socket.socket:
        """A socket connected to this one address. Raises OSError, or what `protect` raises."""
        sock = socket.socket(address[0], socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            tune(sock)
            stop_local_pacing(sock, address[1])
            if self._fast_open:
                self._set_fast_open(sock)
            if self._protect is not None:
                await self._protect(sock)
            if not _connected_at_once(sock, address):
                # If the attempt is cancelled after it connected, the peer must see a reset, not a
                # client that closed without sending.
                linger.reset_on_close(sock)
                await asyncio.get_running_loop().sock_connect(sock, address[1])
                linger.reset_on_close(sock, False)
        except BaseException:
            sock.close()
            raise
        return sock

    async def _race(
        self, addresses: list[Address], failures: list[_Failure]
    ) -> tuple[socket.socket, Address]:
        """Start an attempt every ATTEMPT_DELAY, or as soon as one fails; the first one wins.

        If all fail, raises the OSError or MttError of the last one; `failures` has the others.
        """
        waiting = deque(addresses)
        running: dict[asyncio.Task[socket.socket], Address] = {}
        won = False
        try:
            while True:
                if waiting:
                    address = waiting.popleft()
                    running[asyncio.create_task(self._attempt(address))] = address
                done, _ = await asyncio.wait(
                    running,
                    timeout=ATTEMPT_DELAY if waiting else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    address = running.pop(task)
                    try:
                        sock = task.result()
                    except (OSError, MttError) as error:
                        failures.append(_failure(error))
                        if not running and not waiting:
                            raise
                    else:
                        won = True
                        return sock, address
        finally:
            for task in running:
                task.cancel()
                task.add_done_callback(_close_result)
            # Return without awaiting, so that a cancellation cannot strike between the win and the
            # return of the socket. The losers end in the next iteration of the loop.
            if running and not won:
                await asyncio.wait(running)

    def _favourite_first(self, endpoint: Endpoint, addresses: list[Address]) -> list[Address]:
        expiry, favourite = self._favourites.get(endpoint, (0.0, None))
        if favourite not in addresses or expiry <= monotonic():
            self._favourites.pop(endpoint, None)
            return addresses
        return [favourite, *(address for address in addresses if address != favourite)]

    def _set_fast_open(self, sock: socket.socket) -> None:
        """Enable fast open, or disable it permanently if the system lacks it."""
        try:
            if sys.platform not in ("linux", "android"):
                raise OSError(0, "only Linux has it")
            sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        except OSError as error:
            log.warning("connecting without TCP fast open: %s", error.strerror)
            self._fast_open = False


def _connected_at_once(sock: socket.socket, address: Address) -> bool:
    """Start to connect; returns whether that completed, as on loopback. Raises OSError.

    On loopback the kernel finishes the handshake before connect() returns, but reports EINPROGRESS.
    Calling connect() again saves an iteration of the event loop per connection.
    """
    if not _LINUX:
        return False
    error = sock.connect_ex(address[1])
    if error == errno.EINPROGRESS:
        error = sock.connect_ex(address[1])
    if error in (0, errno.EISCONN):
        return True
    if error in (errno.EALREADY, errno.EAGAIN):
        return False  # the event loop calls connect() again, and waits
    raise OSError(error, os.strerror(error))


def _make_transport(sock: socket.socket, protocol_factory: ProtocolFactory) -> SocketTransport:
    try:
        protocol = protocol_factory()
    except BaseException:
        sock.close()
        raise
    return SocketTransport(sock, protocol)


def _close_result(task: asyncio.Task[socket.socket]) -> None:
    """Close the socket of an attempt that succeeded after it was cancelled."""
    if not task.cancelled() and task.exception() is None:
        sock = task.result()
        linger.reset_on_close(sock)
        sock.close()


def _failure(error: BaseException) -> _Failure:
    # asyncio adds its own text and the address to connect errors; the errno is enough.
    if isinstance(error, OSError):
        return describe(error), from_error(error)
    return describe(error), getattr(error, "outcome", Outcome.GENERAL_FAILURE)
