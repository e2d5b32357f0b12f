"""The relay: joins two transports and copies bytes both ways.

Theory of operation
-------------------
Each transport has a `_Leg` as its protocol. A leg writes what it receives to the other transport.
Back-pressure from one transport pauses reading from the other. The relay knows only the transport
interface, so it joins any two stacks of layers.

How a tunnel ends:

* A direction ends when its source ends. If the other transport supports half-close
  (`half_closes`), the relay half-closes it, and the opposite direction continues.
* If a transport without half-close ends, both directions end: the relay delivers what it sent, then
  closes both.
* A transport without half-close belongs to a Go peer. When it receives an end, it closes both
  directions and drops the bytes in flight. So the relay sends the end when nothing is in flight.
  It sends a destination's end to a Go client at once, unless the client has sent data since the
  destination's last byte: more may follow, for a destination that still reads. It sends an
  application's end to a Go server after QUIET_TIME without a byte in either direction: the end may
  be a half-close, with the reply on its way. The same goes for an end to a client that
  `drops_data_at_end`. Then it waits END_TIME for the peer's end.
* If a leg fails, the relay delivers what arrived before, then cuts the other leg: an application
  must not take a truncated stream for a complete one.
* If a leg fails after its end, it accepts no more data. The relay cuts the other leg too, or closes
  it towards a Go peer, so that its application stops sending.
* If a leg is lost after its end without a failure, it is a Go peer that has everything, and that
  ended TCP a moment after TLS. The relay closes the other leg.
* If no byte passes in either direction for `timeout` seconds, the relay cuts the tunnel. After an
  orderly end, a truncated reply would look complete.

The relay is over when both transports are lost; `linger` bounds how long that takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from mtt.errors import StuckError, describe
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.kernel import silent_seconds
from mtt.layers.parked import take_over

# Seconds of silence on a connection to a Go server before the relay sends it the end. Measured with
# the Go server: after 1 s every upload and reply was complete.
QUIET_TIME = 1.0
# Limits of that wait when the application's connection is lost: seconds since the last byte sent,
# and bytes of the server's data, which is discarded and may never pause. Uploads to a destination
# that acknowledges what it reads still complete; a download is not worth the wait.
ORPHAN_TIME = 5.0
ORPHAN_BYTES = 256 * 1024
# Seconds of silence of a Go client before the relay sends it the end of a destination that has not
# answered the client's last data. After more than REQUEST_SIZE bytes more may come: QUIET_TIME.
REQUEST_QUIET_TIME = 0.02
REQUEST_SIZE = 64 * 1024
# Seconds to wait for a peer's end after sending it the end; it closes within a round trip.
END_TIME = 2.0
# Idle checks per idle timeout: a tunnel is cut at most 1/8 of the timeout late.
IDLE_CHECKS = 8
# A peer whose kernel owes an acknowledgement for this long, seconds, is dead. The relay notices
# within one more MAX_CHECK_INTERVAL, seconds.
DEAD_TIME = 60.0
MAX_CHECK_INTERVAL = 10.0
# Seconds between checks for data in flight or an answer that is due: the first and the longest
# interval. Each check doubles it.
QUIET_INTERVALS = (0.01, 0.25)


class Relay:
    """One tunnel.

    Args:
        near: the transport towards the application (client) or the peer (server). The early data
            of its `Parked` goes to `far` first.
        far: the other transport, likewise.
        timeout: idle timeout, seconds.
        done: called once when both transports are lost.
    """

    __slots__ = (
        "_check_interval", "_closing", "_counted", "_done", "_end_sent", "_far", "_idle_since",
        "_idle_timer", "_in_flight_at", "_near", "_quiet_interval", "_quiet_timer",
        "_received_at_loss", "_timeout", "error", "loop", "reason", "started",
    )  # fmt: skip

    def __init__(
        self,
        near: StreamTransport,
        far: StreamTransport,
        *,
        timeout: float,
        done: Callable[[Relay], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._done = done
        self._closing = False
        self.reason = ""
        self.error: Exception | None = None  # the failure of a leg, if that cut the tunnel
        self.started = self._idle_since = self.loop.time()
        self._counted = 0  # bytes delivered by both legs at the last check
        self._quiet_timer: asyncio.TimerHandle | None = None
        self._quiet_interval = QUIET_INTERVALS[0]
        self._end_sent = False  # whether a peer without half-close was sent the end
        self._in_flight_at = 0.0  # when data in flight to it was last seen
        self._received_at_loss = 0  # bytes from a Go server when the application was lost
        self._near, self._far = _Leg(self, near), _Leg(self, far)
        both_half_close = bool(near.half_closes() and far.half_closes())
        self._near.join(self._far, both_half_close)
        self._far.join(self._near, both_half_close)
        self._check_interval = min(timeout / IDLE_CHECKS, MAX_CHECK_INTERVAL)
        self._idle_timer = self.loop.call_later(self._check_interval, self._check_idle)
        take_over((near, self._near), (far, self._far))

    @property
    def sent(self) -> int:
        """Bytes copied from `near` to `far`."""
        return self._near.received

    def count_sent(self, size: int) -> None:
        """Count bytes that went from `near` to `far` before."""
        self._near.received += size

    @property
    def received(self) -> int:
        """Bytes copied from `far` to `near`."""
        return self._far.received

    @property
    def far(self) -> StreamTransport:
        """The other side's connection or stream."""
        return self._far.transport

    def abort(self, reason: str) -> None:
        """Abort both transports."""
        if not self._closing:
            self._close(reason)
        for leg in (self._near, self._far):
            if not leg.lost:
                leg.transport.abort()

    # Called by the legs.

    def leg_ended(self, leg: _Leg) -> None:
        other = leg.peer
        if self._closing:
            return
        ends_both = not leg.transport.half_closes()
        if ends_both and leg is self._far and not self._end_sent and leg.transport.unsent():
            # A Go server that has not received everything from the application.
            self._cut("the server closed before it had received everything")
        elif other.eof or ends_both:
            self._finish("done")
        elif other.transport.half_closes():
            other.transport.write_eof()
        else:
            self._in_flight_at = self.started
            self._check_quiet(leg)

    def leg_lost(self, leg: _Leg, exc: Exception | None) -> None:
        other = leg.peer
        if not self._closing:
            if not leg.eof:
                if self._end_sent:
                    self._finish("done")  # proxies answer the end by closing, without an end
                else:
                    self.error = exc
                    self._cut(f"{self._name(leg)} end: {describe(exc)}")
            elif other.transport.half_closes() and exc is not None:
                self._cut(f"{self._name(leg)} end: takes no more data")
            elif other.transport.half_closes() or other is self._near:
                self._finish("done")
            else:
                # Wait for the Go server and discard what it sends; see _check_quiet.
                other.forward = self._discard
                self._received_at_loss = other.received
                if not other.lost:
                    other.transport.resume_reading()
        if leg.lost and other.lost:
            self._cancel_timers()
            done, self._done = self._done, _ignore
            done(self)
            for ended in (leg, other):
                ended.release()

    def _name(self, leg: _Leg) -> str:
        return "near" if leg is self._near else "far"

    # End of the tunnel.

    def _close(self, reason: str) -> None:
        self._closing = True
        self.reason = reason
        self._cancel_timers()

    def _finish(self, reason: str) -> None:
        """Deliver pending data, then close both transports."""
        self._close(reason)
        for leg in (self._near, self._far):
            if not leg.lost:
                leg.transport.close()

    def _cut(self, reason: str, stuck: _Leg | None = None) -> None:
        """Deliver pending data, then cut both transports. Abort `stuck`, which accepts no data."""
        self._close(reason)
        for leg in (self._near, self._far):
            if not leg.lost:
                if leg is stuck:
                    leg.transport.abort()
                else:
                    leg.transport.cut()

    def _cut_stuck(self, reason: str, stuck: _Leg | None = None) -> None:
        self.error = StuckError(reason)
        self._cut(reason, stuck)

    def _cancel_timers(self) -> None:
        self._idle_timer.cancel()
        if self._quiet_timer is not None:
            self._quiet_timer.cancel()

    def _check_idle(self) -> None:
        now = self.loop.time()
        legs = [leg for leg in (self._near, self._far) if not leg.lost]
        waiting = {leg: _in_flight(leg) for leg in legs}
        # Delivered bytes count as well: a slow reader may drain the buffers for a long time.
        count = self._near.received + self._far.received - sum(waiting.values())
        if count != self._counted:
            self._counted = count
            self._idle_since = now
        elif now - self._idle_since >= self._timeout:
            reason = f"idle for {self._timeout:g} s"
            stuck = next((leg for leg in legs if waiting[leg]), None)
            if stuck is not None:
                self._cut_stuck(reason + " with undelivered data", stuck)
            elif self._near.eof or self._far.eof:
                self._cut_stuck(reason)
            else:
                self._cut(reason)
            return
        for leg in legs:
            if waiting[leg] and silent_seconds(leg.transport) >= DEAD_TIME:
                self._cut_stuck(f"{self._name(leg)} end: no sign of life for {DEAD_TIME:g} s", leg)
                return
        self._idle_timer = self.loop.call_later(self._check_interval, self._check_idle)

    def _check_quiet(self, ended: _Leg) -> None:
        """Send the end of `ended` to a peer without half-close once nothing is in flight."""
        other = ended.peer
        if other.transport.half_closes():  # support became known meanwhile
            if ended.lost:
                self._cut(f"{self._name(ended)} end: takes no more data")
            else:
                other.transport.write_eof()
            return
        now = self.loop.time()
        due = self._end_due(ended, now)
        if due is None:
            wait = self._quiet_interval
            self._quiet_interval = min(2 * wait, QUIET_INTERVALS[1])
        else:
            wait = due - now
        if wait > 0:
            self._quiet_timer = self.loop.call_later(wait, self._check_quiet, ended)
        elif ended.lost:
            self._finish("done")
        else:
            self._end_sent = True
            other.transport.write_eof()
            self._quiet_timer = self.loop.call_later(END_TIME, self._end_timed_out, ended)

    def _end_due(self, ended: _Leg, now: float) -> float | None:
        """When to send the end of `ended` to a peer without half-close; None: check again later."""
        other = ended.peer
        if other.transport.half_closes() is None:
            other.transport.ask_half_close()
            return None
        if other is self._near and not other.transport.drops_data_at_end:
            # A client, and `ended` is the destination.
            size = other.received - ended.peer_received
            if not size:
                return now
            if size <= REQUEST_SIZE:
                return other.heard_at + REQUEST_QUIET_TIME
            waiting = 0
        else:
            waiting = _in_flight(other)
        if not ended.lost:
            if waiting or _in_flight(ended):  # a slow leg pauses the other
                self._in_flight_at = now
                return None
            return max(ended.heard_at, other.heard_at, self._in_flight_at) + QUIET_TIME
        if waiting:
            self._in_flight_at = now
        sent_at = max(ended.heard_at, self._in_flight_at)
        if other.received - self._received_at_loss > ORPHAN_BYTES:
            return sent_at + QUIET_TIME
        return min(max(other.heard_at, sent_at) + QUIET_TIME, sent_at + ORPHAN_TIME)

    def _discard(self, data: Data) -> None:
        """Discard data of a Go server for a lost application."""
        far = self._far
        far.heard_at = self.loop.time()
        if far.received - self._received_at_loss > ORPHAN_BYTES and self._quiet_timer is not None:
            far.forward = _ignore
            self._quiet_timer.cancel()
            self._check_quiet(self._near)

    def _end_timed_out(self, ended: _Leg) -> None:
        """End the tunnel: the peer has not answered the end of `ended` in time."""
        other = ended.peer
        self._close("the peer did not end its side")
        if not other.lost:
            other.transport.close()
        if not ended.lost:
            ended.transport.cut()


class _Leg(StreamProtocol):
    """Protocol of one of the two transports."""

    __slots__ = (
        "borrows", "eof", "forward", "heard_at", "lost", "peer", "peer_received", "received",
        "relay", "transport",
    )  # fmt: skip

    peer: _Leg
    forward: Callable[[Data], Any]

    def __init__(self, relay: Relay, transport: StreamTransport) -> None:
        self.relay = relay
        self.transport = transport
        self.received = 0
        self.heard_at = relay.started  # loop time of the last byte received
        self.peer_received = 0  # bytes received from the peer by then
        self.eof = False
        self.lost = False

    def join(self, peer: _Leg, both_half_close: bool) -> None:
        """Set the other leg. With `both_half_close`, neither transport leads to a Go peer."""
        self.peer = peer
        transport = peer.transport
        self.forward = transport.write if both_half_close else self._write_timed
        self.borrows = transport.borrows
        if transport.shares_connection:
            self.transport.limit_reads()

    @property
    def has_finished_writing(self) -> bool:
        return self.peer.eof

    def data_received(self, data: Data) -> None:
        self.received += len(data)
        self.forward(data)

    def _write_timed(self, data: Data) -> None:
        """Write `data` to the peer and note the time, which decides when a Go peer gets an end."""
        peer: Any = self.peer
        self.peer_received = peer.received
        self.heard_at = self.relay.loop.time()
        if self.transport.half_closes() and peer.transport.half_closes():
            self.forward = peer.transport.write  # the peer turned out to support half-close
        peer.transport.write(data)

    def eof_received(self) -> bool:
        self.eof = True
        self.relay.leg_ended(self)
        return True

    def pause_writing(self) -> None:
        if not (self.lost or self.peer.lost):
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if not (self.lost or self.peer.lost):
            self.peer.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost:
            self.lost = True
            self.relay.leg_lost(self, exc)

    def release(self) -> None:
        """Break reference cycles at the end of the relay."""
        self.forward = _ignore
        del self.relay, self.peer, self.transport


def _in_flight(leg: _Leg) -> int:
    """Bytes in flight: written to `leg` and not acknowledged, or held back by a rate limiter."""
    return leg.transport.unsent() + leg.transport.throttled_bytes()


def _ignore(_: object) -> None:
    """Do nothing."""
