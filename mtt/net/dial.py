"""Outgoing TCP connections: every address of every host, staggered (RFC 8305), one deadline."""

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
from mtt.net.sockets import tune
from mtt.outcome import Outcome, from_error, most_telling

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 10.0  # seconds for lookup and connect together; the original's dial timeout
ATTEMPT_DELAY = 0.25  # seconds; RFC 8305, 5: the recommended Connection Attempt Delay

# An address that won against others is tried first the next time (RFC 8305, 5, allows history):
# behind a dead IPv6 route each connection would lose ATTEMPT_DELAY otherwise.
FAVOURITE_TTL = 300.0  # seconds; the proper order gets a new chance after that
MAX_FAVOURITES = 256  # endpoints; as many as the resolver caches

# Linux 4.11 and later, <linux/tcp.h>; Python's socket module does not name it. With it connect()
# sends nothing and the first write travels in the SYN.
TCP_FASTOPEN_CONNECT = 30

_LINUX = sys.platform.startswith("linux")

_Failure = tuple[str, Outcome]  # the reason, in words and as a value

ProtocolFactory = Callable[[], StreamProtocol]


class Dialer:
    """Connects to endpoints; belongs to one event loop and needs no closing.

    `timeout` in seconds bounds one connect with all its lookups and attempts. `fast_open` puts
    the first bytes into the SYN and is for servers only that are spoken to first: towards others
    the SYN would wait for bytes that never come. It also hides dead addresses once the kernel
    holds a cookie for them, a failure then ends the connection instead of the attempt.
    `protect` is awaited with each socket before it connects.
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
        """Connect to the address of the endpoint that answers first; an empty host is this machine.

        The protocol is made after the connection stands. Raises NetworkError naming the endpoint
        and every distinct reason.
        """
        failures: list[_Failure] = []
        outcome: Outcome | None = None
        try:
            async with asyncio.timeout(self._timeout):
                sock = await self._connect_socket(endpoint, failures)
        except TimeoutError as error:
            # asyncio's own has no errno; the kernel's ETIMEDOUT is of the same class.
            if error.errno:
                failures.append(_failure(error))
            else:
                outcome = Outcome.TIMED_OUT  # of all, whatever became of the others
                failures.append((f"no answer within {self._timeout:g} s", outcome))
        except (OSError, MttError) as error:
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
        """Connect to this machine without waiting; None where that fails, or is not to be had.

        It spares the servers, whose destination is next door as a rule, a task and a deadline for
        each stream. `connect()` can wait, and tells why it fails.
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
            if _connected_at_once(sock, address):
                return _make_transport(sock, protocol_factory)
        sock.close()
        return None

    def forget(self, endpoint: Endpoint) -> None:
        """Look its names up again next time: what answered there is not what was looked for."""
        self._favourites.pop(endpoint, None)
        for host in endpoint.hosts:
            self._resolver.forget(host)

    async def _connect_socket(self, endpoint: Endpoint, failures: list[_Failure]) -> socket.socket:
        if len(endpoint.hosts) == 1:
            # No task is made on this way when there is one address only, the usual case.
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
            self._favour(endpoint, winner)
        return sock

    async def _resolve_all(self, endpoint: Endpoint, failures: list[_Failure]) -> list[Address]:
        """The addresses of all hosts in the order of the hosts; some may fail to resolve."""
        results = await asyncio.gather(
            *(self._resolver.resolve(host, endpoint.port) for host in endpoint.hosts),
            return_exceptions=True,
        )
        addresses: dict[Address, None] = {}
        failure: BaseException | None = None
        for result in results:
            if isinstance(result, BaseException):
                if not isinstance(result, MttError):
                    raise result
                failure = result
                failures.append(_failure(result))
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
            if self._fast_open:
                self._set_fast_open(sock)
            if self._protect is not None:
                await self._protect(sock)
            if not _connected_at_once(sock, address):
                # If nobody wants the connection any more when it is there: its end must not look
                # as if somebody had nothing to say.
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

        Raises OSError or MttError of the last failure when all fail, the others are in
        `failures` then.
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
            # Having won there is no time to lose, and no way to get cancelled between having the
            # socket and returning it: the losers end in the next turn of the loop.
            if running and not won:
                await asyncio.wait(running)

    def _favourite_first(self, endpoint: Endpoint, addresses: list[Address]) -> list[Address]:
        expiry, favourite = self._favourites.get(endpoint, (0.0, None))
        if favourite not in addresses or expiry <= monotonic():
            self._favourites.pop(endpoint, None)
            return addresses
        return [favourite, *(address for address in addresses if address != favourite)]

    def _favour(self, endpoint: Endpoint, address: Address) -> None:
        self._favourites.pop(endpoint, None)
        if len(self._favourites) >= MAX_FAVOURITES:
            del self._favourites[next(iter(self._favourites))]  # the oldest
        expiry = monotonic() + FAVOURITE_TTL
        self._favourites[endpoint] = expiry, address

    def _set_fast_open(self, sock: socket.socket) -> None:
        """Turn fast open on, or off for good when the system has none."""
        try:
            if sys.platform not in ("linux", "android"):
                raise OSError(0, "only Linux has it")
            sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        except OSError as error:
            log.warning("going on without TCP fast open: %s", error.strerror)
            self._fast_open = False


def _connected_at_once(sock: socket.socket, address: Address) -> bool:
    """Begin to connect; whether that is all, as it is to this machine. Raises OSError.

    On loopback the kernel finishes the handshake before connect() returns, but answers EINPROGRESS.
    To ask again spares a turn of the event loop for each connection of a server to its destination.
    """
    if not _LINUX:
        return False
    error = sock.connect_ex(address[1])
    if error == errno.EINPROGRESS:
        error = sock.connect_ex(address[1])
    if error in (0, errno.EISCONN):
        return True
    if error in (errno.EALREADY, errno.EAGAIN):
        return False  # the event loop asks once more, and waits
    raise OSError(error, os.strerror(error))


def _make_transport(sock: socket.socket, protocol_factory: ProtocolFactory) -> SocketTransport:
    try:
        protocol = protocol_factory()
    except BaseException:
        sock.close()
        raise
    return SocketTransport(sock, protocol)


def _close_result(task: asyncio.Task[socket.socket]) -> None:
    """Close the socket of an attempt that succeeded when nobody wanted it any more."""
    if not task.cancelled() and task.exception() is None:
        sock = task.result()
        linger.reset_on_close(sock)
        sock.close()


def _failure(error: BaseException) -> _Failure:
    if isinstance(error, OSError):
        # asyncio puts its own text and the address into the errors of connect; the errno is enough.
        return describe(error), from_error(error)
    if isinstance(error, NetworkError):
        return describe(error), error.outcome
    return describe(error), Outcome.GENERAL_FAILURE
