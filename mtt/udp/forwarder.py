"""The server's end of UDP: a socket to the destination for each flow of a client.

Theory of operation
-------------------
Each stream for datagrams has a `Link`, and each flow a connected socket. So an answer belongs to
the flow of its socket, and only the destination can answer. A flow begins with its first datagram.
During the first lookup of the destination's name, datagrams wait in the flows' queues.

An ICMP error ("connection refused") does not end a flow, because the destination may listen later.
If the destination has several addresses, a flow without any answer continues with the next one:
`localhost` may be ::1 or 127.0.0.1. Addresses without a route are skipped.

Datagrams that do not fit into the socket's buffer are dropped, as UDP permits.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Sequence
from functools import partial
from logging import DEBUG
from typing import TYPE_CHECKING

from mtt.address import Endpoint, host_port, peer_name
from mtt.errors import MttError, NetworkError, StuckError, describe
from mtt.layers.base import Data, StreamTransport
from mtt.layers.kernel import silent_seconds
from mtt.log import FAILURE_BURST, Throttle, logger
from mtt.net.resolve import Address, Resolver, literal
from mtt.tunnels.open_tunnels import OpenTunnels
from mtt.udp.counters import UdpCounters
from mtt.udp.flows import BATCH, FLOWS_A_TURN, MAX_FLOWS, SWEEP_TIME, idle_limit
from mtt.udp.link import Link
from mtt.udp.queues import FairQueues
from mtt.udp.sockets import open_socket
from mtt.wire.datagrams import MAX_DATAGRAM, PING

if TYPE_CHECKING:
    from mtt.tunnels.rate_limit import TokenSource
    from mtt.udp.shaper import Shaper

# Seconds after which a link without flows is closed. The client usually closes it earlier.
EMPTY_TIME = 60.0
# Seconds after which names are looked up again, for the next new flow: a link may stay open for
# days. The resolver caches answers for their TTL.
LOOKUP_INTERVAL = 60.0
# Seconds until the next attempt after a failed lookup; datagrams are dropped until then.
LOOKUP_RETRY = 1.0
# Seconds without a TCP acknowledgement after which a client counts as dead.
DEAD_TIME = 60.0

# One buffer for all sockets: datagrams are copied out of it in the same turn.
_received = memoryview(bytearray(65535))


class UdpForwarder:
    """Serves a server's streams for datagrams.

    Args:
        resolver: resolves the destinations' names.
        tunnels: tracks the links, and limits them.
        idle_time: seconds without a datagram after which a flow ends.
    """

    def __init__(self, resolver: Resolver, tunnels: OpenTunnels, *, idle_time: float) -> None:
        self.resolver = resolver
        self.idle_time = idle_time
        self._tunnels = tunnels
        self._clients: set[_Client] = set()
        self.counters = UdpCounters()
        # One log throttle per kind of line.
        self.failures, self.large = Throttle(), Throttle()
        self.drops = Throttle(FAILURE_BURST)

    @property
    def flows(self) -> int:
        """Number of open flows."""
        return sum(client.flows for client in self._clients)

    def metrics(self) -> str:
        return self.counters.page(self.flows)

    def serve(self, stream: StreamTransport, destination: Endpoint) -> None:
        """Take over a parked stream whose datagrams are for `destination`.

        Aborts it if -max-conns permits no more.
        """
        if self._tunnels.admission.has_room():
            self.carry(stream, destination)
        else:
            stream.abort()

    def carry(
        self,
        stream: StreamTransport,
        destination: Endpoint,
        *,
        down: TokenSource | None = None,
        on_done: Callable[[Link], object] | None = None,
    ) -> Link:
        """As `serve`, for a stream that counts towards -max-conns already.

        `down`: limits the rate of answers. `on_done`: called once at the end of the link.
        """
        client = _Client(self, stream, destination, on_done)
        self._clients.add(client)
        link: Link = self._tunnels.track(stream, client.make_link, partial(self._lost, client))
        client.begin(link, down)
        return link

    def _lost(self, client: _Client, link: Link) -> None:
        self._clients.discard(client)
        client.close()
        if client.on_done is not None:
            client.on_done(link)

    def close(self) -> None:
        """Close all links after they have delivered their data; clients open new ones."""
        for client in list(self._clients):
            client.link.close("the server stops")


class _Flow:
    """One flow, and its socket."""

    __slots__ = ("active", "address", "is_answered", "number", "sock")

    def __init__(self, number: int, sock: socket.socket, address: Address) -> None:
        self.number = number
        self.sock = sock
        self.address = address
        self.active = 0.0  # loop time of its last datagram
        self.is_answered = False


class _Client:
    """The flows of one link."""

    link: Link
    _send_down: Callable[[int, bytes], None]  # to the link, or through the shaper

    def __init__(
        self,
        forwarder: UdpForwarder,
        stream: StreamTransport,
        destination: Endpoint,
        on_done: Callable[[Link], object] | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._forwarder = forwarder
        self._stream = stream
        self._destination = destination
        self._addresses: list[Address] = []  # the one for new flows is the first
        self._lookup: asyncio.Task[None] | None = None
        self._lookup_at = 0.0  # loop time when the next one is due
        self._waiting = FairQueues()  # for the lookup
        self._flows: dict[int, _Flow] = {}
        self._shaper: Shaper | None = None
        self.on_done = on_done
        self._empty_since = self._loop.time()
        self._timer = self._loop.call_later(SWEEP_TIME, self._sweep)

    @property
    def flows(self) -> int:
        return len(self._flows)

    def make_link(self, done: Callable[[Link], None]) -> Link:
        counters = self._forwarder.counters
        return Link(
            self._stream, self, counters, is_client=False, done=done, queues=FairQueues()
        )

    def begin(self, link: Link, down: TokenSource | None) -> None:
        """Start the new link."""
        self.link = link
        if down is None:
            self._send_down = link.send
        else:
            from mtt.udp.shaper import Shaper  # only if needed

            self._shaper = Shaper(link, down)
            self._send_down = self._shaper.send
        link.start()

    def close(self) -> None:
        """End all flows: the link is lost."""
        self._timer.cancel()
        if self._shaper is not None:
            self._shaper.close()
        if self._lookup is not None:
            self._lookup.cancel()
        for flow in list(self._flows.values()):
            self._forget(flow)

    # Towards the destination.

    def deliver(self, datagrams: Sequence[tuple[int, Data]]) -> int:
        """Called by the link. Leaves what follows FLOWS_A_TURN new flows."""
        now = self._loop.time()
        flows, counters = self._flows, self._forwarder.counters
        begun, taken = 0, len(datagrams)
        for at, (number, payload) in enumerate(datagrams):
            flow = flows.get(number)
            if flow is None:
                if number == PING:
                    self.link.send(PING, bytes(payload))
                    continue
                if not self._addresses and not self._look_up():
                    if self._lookup is None:  # it has just failed
                        counters.dropped_link += 1
                    else:
                        counters.dropped_full += self._waiting.add(number, payload)
                    continue
                if begun == FLOWS_A_TURN:
                    taken = at
                    break
                begun += 1
                flow = self._new_flow(number)
                if flow is None:
                    continue
            flow.active = now
            self._send(flow, payload)
        counters.sent += taken
        return taken

    def _send(self, flow: _Flow, payload: Data) -> None:
        try:
            try:
                flow.sock.send(payload)
            except ConnectionRefusedError:
                # About an earlier datagram; this one has not been sent.
                self._refused(flow)
                flow.sock.send(payload)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                self._report_large(len(payload), "too large for the destination's network")
            else:  # the send buffer is full, no route, refused again
                self._drop(len(payload), error)

    def _refused(self, flow: _Flow) -> None:
        """Handle an ICMP error. The flow goes on, if possible at the destination's next address."""
        where = host_port(*flow.address[1][:2])
        self._forwarder.failures.warning(
            "%s: UDP: %s: connection refused", peer_name(self._stream), where
        )
        if flow.is_answered:
            return
        if flow.address == self._addresses[0]:
            self._addresses.append(self._addresses.pop(0))
        if flow.address == self._addresses[0]:
            return
        try:
            sock, address = self._open_socket()
        except OSError as error:
            self._drop(0, error)
            return
        self._close_socket(flow)
        flow.sock, flow.address = sock, address
        self._loop.add_reader(sock, self._readable, flow)

    def _drop(self, size: int, error: Exception) -> None:
        self._forwarder.counters.dropped_send += 1
        self._forwarder.drops.log(
            DEBUG, "%s: UDP: a datagram of %d bytes to %s was dropped: %s",
            peer_name(self._stream), size, self._destination, describe(error),
        )  # fmt: skip

    # Towards the client.

    def _readable(self, flow: _Flow) -> None:
        counters, send, number = self._forwarder.counters, self._send_down, flow.number
        receive = flow.sock.recv_into
        flow.active = self._loop.time()
        for _ in range(BATCH):
            try:
                size = receive(_received)
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionRefusedError:
                self._refused(flow)
                return
            except OSError as error:  # another ICMP error
                logger.debug(
                    "%s: UDP: %s: %s", peer_name(self._stream), self._destination, describe(error)
                )
                return
            flow.is_answered = True
            counters.received += 1
            if size > MAX_DATAGRAM:
                self._report_large(size, f"the limit is {MAX_DATAGRAM}")
            else:
                send(number, bytes(_received[:size]))

    def _report_large(self, size: int, why: str) -> None:
        self._forwarder.counters.dropped_size += 1
        self._forwarder.large.warning(
            "%s: UDP: a datagram of %d bytes was dropped: %s", self._destination, size, why
        )

    # Flows.

    def _new_flow(self, number: int) -> _Flow | None:
        """Begin a flow; None if there is no socket for it."""
        if len(self._flows) >= MAX_FLOWS:
            self._forget(min(self._flows.values(), key=lambda flow: flow.active))
        if self._loop.time() >= self._lookup_at:
            self._look_up()
        try:
            sock, address = self._open_socket()
        except OSError as error:
            self._forwarder.counters.dropped_link += 1
            self._forwarder.failures.warning(
                "%s: UDP: no socket to %s: %s",
                peer_name(self._stream), self._destination, describe(error),
            )  # fmt: skip
            return None
        flow = self._flows[number] = _Flow(number, sock, address)
        self._loop.add_reader(sock, self._readable, flow)
        self._forwarder.counters.flows += 1
        return flow

    def _open_socket(self) -> tuple[socket.socket, Address]:
        """A socket to the first address with a route. Raises OSError if there is none to any."""
        for left in reversed(range(len(self._addresses))):
            try:
                return open_socket(self._addresses[0]), self._addresses[0]
            except OSError:
                self._addresses.append(self._addresses.pop(0))
                if not left:
                    raise
        raise AssertionError("a flow before the addresses are known")

    def _close_socket(self, flow: _Flow) -> None:
        self._loop.remove_reader(flow.sock)
        flow.sock.close()

    def _forget(self, flow: _Flow) -> None:
        self._close_socket(flow)
        del self._flows[flow.number]

    def _sweep(self) -> None:
        """End idle flows, and a link without flows that the client does not close."""
        self._timer = self._loop.call_later(SWEEP_TIME, self._sweep)
        now, idle_time = self._loop.time(), self._forwarder.idle_time
        for flow in list(self._flows.values()):
            if now - flow.active >= idle_limit(idle_time, is_answered=flow.is_answered):
                self._forget(flow)
        if self._flows:
            self._empty_since = now
        elif now - self._empty_since >= EMPTY_TIME:
            self.link.close("no flows left")
        if silent_seconds(self._stream) > DEAD_TIME:
            self.link.fail(StuckError("UDP: the client stopped acknowledging data"))

    # The destination's addresses.

    def _look_up(self) -> bool:
        """Start to look up the addresses. Returns whether some are known now."""
        if self._lookup is None and self._loop.time() >= self._lookup_at:
            endpoint = self._destination
            address = None
            with contextlib.suppress(NetworkError):  # the lookup reports it
                address = literal(endpoint.host, endpoint.port)
            if address is None or len(endpoint.hosts) > 1:
                self._lookup = self._loop.create_task(self._resolve())
            else:
                self._addresses = [address]
                self._lookup_at = float("inf")
        return bool(self._addresses)

    async def _resolve(self) -> None:
        endpoint, forwarder = self._destination, self._forwarder
        found: list[Address] = []
        error: MttError | None = None
        for host in endpoint.hosts:
            try:
                found += await forwarder.resolver.resolve(host, endpoint.port)
            except MttError as failure:
                error = failure
        self._lookup = None
        now = self._loop.time()
        self._lookup_at = now + (LOOKUP_INTERVAL if found or self._addresses else LOOKUP_RETRY)
        if not found:
            forwarder.counters.dropped_link += self._waiting.clear()
            forwarder.failures.warning("%s: UDP: %s", peer_name(self._stream), describe(error))
            return
        # The address in use stays the first one, if it is still among them.
        current = [address for address in self._addresses[:1] if address in found]
        self._addresses = list(dict.fromkeys(current + found))
        while self._waiting:
            number, payload = self._waiting.pop()
            flow = self._flows.get(number) or self._new_flow(number)
            if flow is not None:
                flow.active = self._loop.time()
                self._send(flow, payload)
