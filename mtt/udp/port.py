"""The client's UDP port: a flow for each address that sends to it, all on one link to the server.

Theory of operation
-------------------
A datagram from a new address begins a flow with a new number. The first datagram also opens the
link. In every mode the link is a separate connection, so that TCP tunnels do not delay datagrams.
Until it is open, datagrams wait in the flows' queues. If it cannot be opened, they are dropped, and
so are all datagrams until the next attempt.

Flows outlive the link. The next datagram opens a new link, on which the server begins new flows,
with other source ports towards the destination.

The client pings the server if the link may be dead (see `mtt.outbound.reuse`), or if datagrams go
only to the server. A link without an answer is replaced, so flows survive a change of the network.
The end of the last flow closes the link.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from logging import DEBUG
from typing import Any

from mtt.address import host_port
from mtt.errors import MttError, StuckError, describe
from mtt.layers.base import Data, StreamTransport
from mtt.log import FAILURE_BURST, Throttle, logger
from mtt.net.sockets import set_receive_buffer
from mtt.net.udp_server import Control, UdpServerSocket
from mtt.outbound.reuse import ReuseGuard
from mtt.tunnels.open_tunnels import OpenTunnels
from mtt.udp.counters import UdpCounters
from mtt.udp.flows import BATCH, MAX_FLOWS, RECEIVE_BUFFER, SWEEP_TIME, idle_limit
from mtt.udp.link import Link
from mtt.udp.queues import FairQueues
from mtt.wire.datagrams import MAX_DATAGRAM, MAX_FLOW, PING

# Seconds until the next attempt to open a link after the second failure in a row, and the longest
# delay. Each failure doubles it. After the first one, as after a server's restart, there is none.
RETRY_TIMES = (0.5, 8.0)
# A link that ends sooner than this, seconds, counts as a failure: the server may close every link
# at once.
MIN_LIFETIME = 5.0
# Seconds without a datagram from the server, while the client sends some, until the client sends a
# ping. The server has two sweeps to answer.
QUIET_TIME = 15.0

# The key of a flow: the socket, the address of the application, and the address it sends to.
_Key = tuple[UdpServerSocket, Any, Control]


class _Flow:
    """The datagrams of one application's address."""

    __slots__ = ("active", "is_answered", "key", "number")

    def __init__(self, number: int, key: _Key) -> None:
        self.number = number
        self.key = key
        self.active = 0.0  # loop time of its last datagram
        self.is_answered = False


class UdpPort:
    """Carries the datagrams that arrive on its sockets, after `start()`.

    Args:
        server: the server's name, for the log.
        open_stream: opens a stream for datagrams to it. Raises MttError.
        is_agreed: whether the server has agreed to carry datagrams when such a stream is open.
        tunnels: tracks the link.
        idle_time: seconds without a datagram after which a flow ends.
    """

    def __init__(
        self,
        server: str,
        open_stream: Callable[[], Awaitable[StreamTransport]],
        tunnels: OpenTunnels,
        *,
        is_agreed: bool = False,
        idle_time: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sockets: list[UdpServerSocket] = []
        self._server = server
        self._open_stream = open_stream
        self._is_agreed = is_agreed
        self._tunnels = tunnels
        self._idle_time = idle_time
        self._flows: dict[_Key, _Flow] = {}
        self._by_number: dict[int, _Flow] = {}
        self._last_number = 0
        self._queues = FairQueues()
        self._link: Link | None = None
        self._opening: asyncio.Task[None] | None = None
        self._guard = ReuseGuard()
        self._is_suspect = False  # the guard has refused the link once
        self._retry_at = 0.0
        self._retry_delay = 0.0
        self._sent = 0  # bytes on the link at the last sweep
        self._is_closed = False
        self.counters = UdpCounters()
        self._failures, self._large = Throttle(), Throttle()
        self._drops = Throttle(FAILURE_BURST)
        self._timer: asyncio.TimerHandle | None = None  # runs while there are flows

    @property
    def flows(self) -> int:
        """Number of open flows."""
        return len(self._flows)

    def metrics(self) -> str:
        return self.counters.page(len(self._flows))

    def start(self, sockets: Iterable[socket.socket]) -> None:
        """Read from these bound UDP sockets, which do not block."""
        for sock in sockets:
            set_receive_buffer(sock, RECEIVE_BUFFER)
            server = UdpServerSocket(sock)
            self._sockets.append(server)
            self._loop.add_reader(sock, self._readable, server)

    def stop(self) -> None:
        """Stop reading, because the sockets will be closed, or read by another port."""
        for server in self._sockets:
            self._loop.remove_reader(server.sock)
        self._sockets.clear()

    async def close(self) -> None:
        """Stop, and close the link after it has delivered its data."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        self.stop()
        if self._link is not None:
            self._link.close("the client stops")
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])

    # From applications.

    def _readable(self, sock: UdpServerSocket) -> None:
        now = self._loop.time()
        link, flows, counters = self._link, self._flows, self.counters
        for _ in range(BATCH):
            try:
                payload, source, control = sock.receive()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:  # on Windows: an ICMP error about a sent datagram
                logger.debug("UDP: %s", describe(error))
                continue
            key = sock, source, control
            flow = flows.get(key)
            if flow is None:
                flow = self._new_flow(key)
            flow.active = now
            counters.sent += 1
            if len(payload) > MAX_DATAGRAM:
                self._report_large(len(payload), source)
            elif link is not None:
                link.send(flow.number, payload)
            else:
                self._wait(flow, payload, now)

    def _wait(self, flow: _Flow, payload: bytes, now: float) -> None:
        """Queue a datagram for the next link; drop it if the last attempt has just failed."""
        if self._opening is None:
            if now < self._retry_at:
                self.counters.dropped_link += 1
                return
            self._opening = self._loop.create_task(self._open())
        self.counters.dropped_full += self._queues.add(flow.number, payload)

    def _new_flow(self, key: _Key) -> _Flow:
        if len(self._flows) >= MAX_FLOWS:
            self._forget(min(self._flows.values(), key=lambda flow: flow.active))
        number = self._last_number % MAX_FLOW + 1
        while number in self._by_number:
            number = number % MAX_FLOW + 1
        self._last_number = number
        flow = self._flows[key] = self._by_number[number] = _Flow(number, key)
        self.counters.flows += 1
        if self._timer is None:
            self._timer = self._loop.call_later(SWEEP_TIME, self._sweep)
        return flow

    def _forget(self, flow: _Flow) -> None:
        del self._flows[flow.key], self._by_number[flow.number]
        self.counters.dropped_link += self._queues.discard(flow.number)

    def _report_large(self, size: int, source: Any) -> None:
        self.counters.dropped_size += 1
        where = host_port(*source[:2])
        self._large.warning(
            "%s: UDP: a datagram of %d bytes was dropped: the limit is %d",
            where, size, MAX_DATAGRAM,
        )  # fmt: skip

    # To applications.

    def deliver(self, datagrams: Sequence[tuple[int, Data]]) -> int:
        """Called by the link. Takes all of them."""
        now = self._loop.time()
        counters, by_number = self.counters, self._by_number
        counters.received += len(datagrams)
        for number, payload in datagrams:
            flow = by_number.get(number)
            if flow is None:
                if number == PING and self._link is not None:
                    self._link.pong()
                else:  # it was idle for too long
                    counters.dropped_link += 1
                continue
            flow.active = now
            flow.is_answered = True
            sock, address, control = flow.key
            try:
                sock.send(payload, address, control)
            except OSError as error:  # the send buffer is full, no route, or the socket is closed
                counters.dropped_send += 1
                where = host_port(*address[:2])
                self._drops.log(
                    DEBUG, "%s: UDP: a datagram was dropped: %s", where, describe(error)
                )
        return len(datagrams)

    # The link.

    async def _open(self) -> None:
        try:
            stream = await self._open_stream()
        except MttError as error:
            self._failed(error)
            return
        except Exception as error:
            logger.debug("where it happened:", exc_info=True)
            self._failed(error)
            return
        finally:
            self._opening = None
        make = partial(
            Link, stream, self, self.counters,
            is_client=True, is_agreed=self._is_agreed, queues=self._queues,
        )  # fmt: skip
        link = self._link = self._tunnels.track(
            stream, lambda done: make(done=done), self._link_lost, name=self._server
        )
        self._guard.add(link)
        self._is_suspect = False
        self._sent = 0
        link.start()

    def _failed(self, error: Exception) -> None:
        self._failures.warning("UDP: %s", describe(error))
        self._retry_later()

    def _retry_later(self) -> None:
        self._retry_at = self._loop.time() + self._retry_delay
        first, longest = RETRY_TIMES
        self._retry_delay = min(max(first, 2 * self._retry_delay), longest)
        self.counters.dropped_link += self._queues.clear()

    def _link_lost(self, link: Link) -> None:
        self._guard.discard(link)
        if link is not self._link:
            return
        self._link = None
        if link.is_open and self._loop.time() - link.started >= MIN_LIFETIME:
            self._retry_delay = 0.0
            self.counters.dropped_link += self._queues.clear()
        else:
            self._retry_later()

    # The clock.

    def _sweep(self) -> None:
        """End idle flows, and a link that is dead or not needed any more."""
        now = self._loop.time()
        for flow in list(self._flows.values()):
            if now - flow.active >= idle_limit(self._idle_time, is_answered=flow.is_answered):
                self._forget(flow)
        self._timer = self._loop.call_later(SWEEP_TIME, self._sweep) if self._flows else None
        link = self._link
        if link is None:
            return
        if not self._flows:
            self._drop_link(link).close("no flows left")
        elif not link.is_open or self._is_alive(link, now):
            self._is_suspect = False
        elif self._is_suspect:
            error = StuckError("UDP: the server stopped answering; reconnecting")
            self._drop_link(link).fail(error)
        else:
            self._is_suspect = True  # it has until the next sweep to answer

    def _is_alive(self, link: Link, now: float) -> bool:
        has_sent, self._sent = link.sent != self._sent, link.sent
        if has_sent and now - link.heard_at >= QUIET_TIME:
            self._guard.verify(link)
        return self._guard.admits(link)

    def _drop_link(self, link: Link) -> Link:
        """Use `link` no more: datagrams go to the next one, although it may not be lost yet."""
        self._link = None
        self.counters.dropped_link += self._queues.clear()
        return link
