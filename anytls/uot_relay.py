"""UDP over TCP on the server: the datagrams of one stream, through one socket.

Theory of operation
-------------------
A `UotRelay` is the protocol of a stream, and owns a UDP socket, unconnected and for both versions
of IP where there are two. Datagrams of the stream are sent to wherever they say, if the policy
allows that address; whatever comes back from anywhere goes into the stream with its source (full
cone, RFC 4787: endpoint-independent mapping and filtering), unless the client asked for one peer.

A name is resolved once and keeps its address for as long as the relay lives: QUIC would not survive
a change in the middle. A datagram waits for its name, and the others do not wait for it.

Nothing else is queued here. What the socket does not take at once is dropped, and so is what the
kernel has no room for while the stream does not take any more: that is UDP.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from logging import DEBUG
from typing import Any

from mtt.address import host_port, peer_name
from mtt.errors import MttError, NetworkError, PeerError, describe
from mtt.layers import linger
from mtt.layers.anytls_stream import ServerStream
from mtt.layers.base import Data, StreamProtocol
from mtt.layers.holding import hand_over
from mtt.log import FAILURE_BURST, Throttle, logger
from mtt.net.resolve import Resolver, literal
from mtt.outcome import Outcome
from mtt.wire.uot import MAX_FOREIGN, Decoder, UotError, encode_connected, encode_datagram

# Datagrams taken from the socket in one turn; others want to have theirs.
BATCH = 32

# Names of one association: of how many the address is known, and how many are being looked up.
MAX_NAMES = 256
MAX_LOOKUPS = 32

# Bytes of all datagrams of one association that wait for a name. Each counts MIN_WAITING at least.
MAX_WAITING = 64 * 1024
MIN_WAITING = 256

_MAPPED = "::ffff:"

# One for all sockets, as in `mtt.layers.base`: it is read and passed on in the same turn.
_received = memoryview(bytearray(65535))


class UotRelay(StreamProtocol):
    """One association. Work begins with `start()`.

    Args:
        stream: held; ours from now on. Behind its destination comes UDP over TCP.
        version: of that, 1 or 2.
        resolver: asked for names.
        allows: whether to send to an IP literal and port.
        denied: called with a host and port that may not be sent to.
        idle_time: seconds without a datagram in either direction after which it is closed.
        answer_time: seconds after which the client is told of the success, if not before: the
            request of version 2 may come with the first datagram, which may be a while.
        done: called once when it is over.

    Raises NetworkError: there is no socket for it.
    """

    __slots__ = (
        "_active", "_allows", "_answer_timer", "_clogged", "_decoder", "_denied", "_done",
        "_drops", "_idle_time", "_idle_timer", "_is_connected", "_lookups", "_loop", "_lost",
        "_names", "_over", "_peers", "_resolver", "_sock", "_stream", "_tasks", "_version",
        "_waiting", "error", "reason", "received", "sent", "started",
    )  # fmt: skip

    def __init__(
        self,
        stream: ServerStream,
        version: int,
        *,
        resolver: Resolver,
        allows: Callable[[str, int], bool],
        denied: Callable[[str, int], object],
        idle_time: float,
        answer_time: float,
        done: Callable[[UotRelay], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._stream = stream
        self._version = version
        self._decoder = Decoder(request=version == 2)
        self._resolver = resolver
        self._allows = allows
        self._denied = denied
        self._idle_time = idle_time
        self._done = done
        self._clogged = False  # the stream does not take any more
        self._drops = Throttle(FAILURE_BURST)
        self._over = False
        self._lost = False  # the stream is gone
        self._is_connected = False  # there is one peer only
        self._peers: set[tuple[str, int]] = set()  # its addresses, as far as we know them
        self._names: dict[str, tuple[str, ...]] = {}
        self._lookups: dict[str, list[tuple[int, bytes]]] = {}  # ports and datagrams that wait
        self._waiting = 0  # bytes in these
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle_timer: asyncio.TimerHandle | None = None
        self._answer_timer: asyncio.TimerHandle | None = None
        self.sent = self.received = 0  # bytes in datagrams that were passed on
        self.started = self._active = self._loop.time()
        self.reason = ""
        self.error: Exception | None = None
        try:
            self._sock = _open_socket()
        except OSError as error:
            raise NetworkError(f"no UDP socket: {describe(error)}") from None
        self._answer_timer = self._loop.call_later(answer_time, stream.acknowledge)

    def start(self) -> None:
        """Take over the stream."""
        self._look_idle()
        if self._version == 1:
            self._answer()
        self._loop.add_reader(self._sock, self._readable)
        hand_over(self._stream, self)

    def abort(self, reason: str) -> None:
        """Cut it so that the client sees a failure."""
        self._let_go(reason)
        if not self._lost:
            linger.reset(self._stream)

    # The protocol of the stream.

    def connection_made(self, transport: Any) -> None:
        """We know it already."""

    def data_received(self, data: Data) -> None:
        if self._over:
            return
        was_asked = self._decoder.request is not None
        try:
            datagrams = self._decoder.feed(data)
        except UotError as error:
            self.error = PeerError(f"UDP over TCP: {error}")
            self._close(str(error))
            return
        if self._decoder.request is not None and not was_asked:
            self._requested(*self._decoder.request)
        for host, port, payload in datagrams:
            self._send(host, port, payload)

    def eof_received(self) -> bool:
        self._close("done")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._let_go(f"near end: {describe(exc)}")
        done, self._done = self._done, _nobody
        done(self)

    def pause_writing(self) -> None:
        if not self._clogged and not self._over:
            self._loop.remove_reader(self._sock)
        self._clogged = True

    def resume_writing(self) -> None:
        if self._clogged and not self._over:
            self._loop.add_reader(self._sock, self._readable)
        self._clogged = False

    # From the client.

    def _requested(self, connect: bool, host: str, port: int) -> None:
        """The request of version 2 is there."""
        if connect:
            self._is_connected = True
            if _is_address(host):
                self._peers.add((host, port))
                if not self._allows(host, port):
                    self._denied(host, port)
                    self._stream.acknowledge(Outcome.NOT_ALLOWED)
                    self._close(f"{host_port(host, port)} is not allowed")
                    return
        self._answer()

    def _answer(self) -> None:
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None
        self._stream.acknowledge()

    def _send(self, host: str, port: int, payload: Data) -> None:
        if self._over:
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
                self._active = self._loop.time()
                if self._is_connected:
                    self._peers.add((_plain(address), port))
                return
        if not reason:
            self._denied(host, port)
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

    # To the client.

    def _readable(self) -> None:
        for _ in range(BATCH):
            if self._clogged or self._over:
                return
            try:
                size, source = self._sock.recvfrom_into(_received)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:  # an ICMP message about something that we sent, on Windows
                logger.debug("%s: UDP: %s", peer_name(self._stream), describe(error))
                continue
            self._deliver(_plain(source[0]), source[1], _received[:size])

    def _deliver(self, host: str, port: int, payload: memoryview) -> None:
        if self._is_connected and (host, port) not in self._peers:
            self._drop(f"from {host_port(host, port)}", len(payload), "it is not the peer")
        elif len(payload) > MAX_FOREIGN and not self._stream.can_write_eof():  # it is not ours
            self._drop(f"from {host_port(host, port)}", len(payload), "Go clients cannot take that")
        else:
            self.received += len(payload)
            self._active = self._loop.time()
            self._stream.write(
                encode_connected(payload)
                if self._is_connected
                else encode_datagram(payload, host, port)
            )

    def _drop(self, which: str, size: int, why: str) -> None:
        self._drops.log(
            DEBUG, "%s: a datagram %s of %d bytes was dropped: %s",
            peer_name(self._stream), which, size, why,
        )  # fmt: skip

    # Ends.

    def _look_idle(self) -> None:
        left = self._active + self._idle_time - self._loop.time()
        if left <= 0:
            self._close(f"idle for {self._idle_time:g} s")
        else:
            self._idle_timer = self._loop.call_later(left, self._look_idle)

    def _close(self, reason: str) -> None:
        """End the stream; what was written to it is delivered."""
        if not self._over:
            self._let_go(reason)
            self._stream.close()

    def _let_go(self, reason: str) -> None:
        """Give back everything but the stream."""
        if self._over:
            return
        self._over = True
        self.reason = reason
        for timer in (self._idle_timer, self._answer_timer):
            if timer is not None:
                timer.cancel()
        for task in self._tasks:
            task.cancel()
        if not self._clogged:
            self._loop.remove_reader(self._sock)
        self._sock.close()


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


def _nobody(relay: UotRelay) -> None:
    """`done` has been called."""
