"""The relay: two transports joined, bytes copied both ways.

Theory of operation
-------------------
Each transport has a `_Leg` as its protocol. What a leg receives is written to the other one; a
leg that cannot take more pauses the reading of the other one. The relay knows transports only, so
any stack of layers relays to any other.

How a tunnel ends:

* A direction ends with the end of its source. If the other transport can say so without closing
  (`half_closes`), it does, and the opposite direction goes on: half-close.
* The end of a transport that has no half-close is the end of both directions. What it sent is
  delivered, then both are closed.
* A transport that has no half-close belongs to a Go peer, which closes both directions when it is
  told of an end, with what is still on its way. So it is told when nothing is on its way any more.
  A Go client is told of a destination's end at once, unless it has sent data since the destination
  has sent its last: then there may be more to come, for a destination that still reads. A Go server
  is told of an application's end after QUIET_TIME without a byte in either direction, because the
  end may be a half-close, and the reply under way. Then the peer's own end is waited for as long
  as a closing takes.
* A leg that fails cuts the other one: an application must not take a cut stream for a whole
  one. What arrived before the failure is delivered first.
* A leg that fails after its end takes nothing any more. The other one is cut as well, or closed if
  it is a Go peer, so that its application does not go on sending in vain.
* One timer watches both directions: no byte in either for `timeout` seconds cuts the tunnel. With
  an ordinary end, a reply that stopped half-way would look complete.

The relay is over when both transports are gone; `linger` bounds how long that takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from mtt.errors import StuckError, describe
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.kernel import silent_seconds
from mtt.layers.parked import Parked, replay

# How long a connection to a Go server must be silent before the server is told of the end. Measured
# with the Go server: 1 s was enough for every upload and reply to be complete.
QUIET_TIME = 1.0
# The same when the application is gone altogether, and the server's data, which need not fall
# silent, are discarded: seconds since the last byte was sent, and bytes. Uploads to a destination
# that acknowledges what it reads are still complete then; a download is not worth waiting for.
ORPHAN_TIME = 5.0
ORPHAN_BYTES = 256 * 1024
# How long a Go client must be silent before it is told of the end of a destination that has not
# answered its last data. Of more than REQUEST_SIZE there may be more to come: QUIET_TIME.
REQUEST_QUIET_TIME = 0.02
REQUEST_SIZE = 64 * 1024
# A peer that was told of the end closes within a round trip.
END_TIME = 2.0
# Looks at the counters per idle timeout; a tunnel is closed at most 1/8 of the timeout late.
IDLE_LOOKS = 8
# A peer whose kernel has not acknowledged what it was sent for so long is gone, and is noticed one
# LOOK_TIME later at the latest.
DEAD_TIME = 60.0
LOOK_TIME = 10.0
# Seconds until the first look at data that wait to be acknowledged, or at an answer that is due.
# Each further look comes after twice the time, up to the second figure.
QUIET_TICK = (0.01, 0.25)


class Relay:
    """One tunnel.

    Args:
        near: the transport towards the application (client) or the peer (server). What a
            `Parked` has of it goes to `far` first.
        far: the other one, likewise.
        timeout: seconds without a byte in either direction after which the tunnel is closed.
        done: called once when both transports are gone.
    """

    __slots__ = (
        "_closing", "_counted", "_done", "_far", "_idle_since", "_idle_timer", "_look_time",
        "_near", "_orphaned", "_quiet_tick", "_quiet_timer", "_sent_at", "_timeout", "_told",
        "error", "loop", "reason", "started",
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
        self.error: Exception | None = None  # what cut the tunnel, if that was one of its ends
        self.started = self._idle_since = self.loop.time()
        self._counted = 0  # bytes that both legs together had passed on when last looked at
        self._idle_timer: asyncio.TimerHandle | None
        self._quiet_timer: asyncio.TimerHandle | None = None
        self._quiet_tick = QUIET_TICK[0]
        self._told = False  # a peer without half-close has been told of the end
        self._sent_at = 0.0  # when something was last seen to be still on its way to it
        self._orphaned = 0  # what a Go server had sent when the application was lost
        self._near, self._far = _Leg(self, near), _Leg(self, far)
        ours = bool(near.half_closes() and far.half_closes())
        self._near.join(self._far, ours)
        self._far.join(self._near, ours)
        self._look_time = min(timeout / IDLE_LOOKS, LOOK_TIME)
        self._idle_timer = self.loop.call_later(self._look_time, self._look_idle)
        held = near.get_protocol(), far.get_protocol()
        for leg, parked in zip((self._near, self._far), held, strict=True):
            if leg.transport.is_closing():  # it died before we took it over; nobody will say so
                error = parked.error if isinstance(parked, Parked) else None
                self.loop.call_soon(leg.connection_lost, error)
            else:
                leg.transport.resume_reading()
        # Only now: each may say at once that it can take no more, which pauses the other.
        near.set_protocol(self._near)
        far.set_protocol(self._far)
        for leg, parked in zip((self._near, self._far), held, strict=True):
            if isinstance(parked, Parked) and (parked.early or parked.eof):
                replay(leg.transport, parked)

    @property
    def sent(self) -> int:
        """Bytes taken from `near` for `far`."""
        return self._near.received

    @property
    def received(self) -> int:
        """Bytes taken from `far` for `near`."""
        return self._far.received

    def abort(self, reason: str) -> None:
        """Cut both sides so that both see a failure."""
        if not self._closing:
            self._close(reason)
        for leg in (self._near, self._far):
            if not leg.lost:
                leg.transport.abort()

    # Called by the legs.

    def leg_ended(self, leg: _Leg) -> None:
        """`leg` will not send any more."""
        other = leg.peer
        if self._closing:
            return
        ends_both = not leg.transport.half_closes()
        if ends_both and leg is self._far and not self._told and leg.transport.unsent():
            # A Go server. Not all that the application had sent has arrived there.
            self._cut("the server closed before it had received everything")
        elif other.eof or ends_both:
            self._finish("done")
        elif other.transport.half_closes():
            other.transport.write_eof()
        else:
            self._sent_at = self.started
            self._look_quiet(leg)

    def leg_lost(self, leg: _Leg, exc: Exception | None) -> None:
        """`leg` is gone."""
        other = leg.peer
        if not self._closing:
            if not leg.eof:
                if self._told:
                    # It was quiet before, and closes now that it knows: proxies do so without a
                    # word.
                    self._finish("done")
                else:
                    self.error = exc
                    self._cut(f"{self._name(leg)} end: {describe(exc)}")
            elif other.transport.half_closes():
                self._cut(f"{self._name(leg)} end: takes no more data")
            elif other is self._near:
                self._finish("done")
            else:
                # The Go server is still waited for, with what it sends discarded; see _look_quiet.
                other.forward = self._discard
                self._orphaned = other.received
                if not other.lost:
                    other.transport.resume_reading()
        if leg.lost and other.lost:
            self._cancel_timers()
            done, self._done = self._done, _ignore
            done(self)
            for ended in (leg, other):
                ended.let_go()

    def _name(self, leg: _Leg) -> str:
        return "near" if leg is self._near else "far"

    # Ends.

    def _close(self, reason: str) -> None:
        self._closing = True
        self.reason = reason
        self._cancel_timers()

    def _finish(self, reason: str) -> None:
        """Close both, after delivering what they have been given."""
        self._close(reason)
        for leg in (self._near, self._far):
            if not leg.lost:
                leg.transport.close()

    def _cut(self, reason: str, stuck: _Leg | None = None) -> None:
        """Have both see a failure, after delivering what they have been given.

        `stuck` takes no data, and does not get any more time for it.
        """
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
        for timer in (self._idle_timer, self._quiet_timer):
            if timer is not None:
                timer.cancel()

    def _look_idle(self) -> None:
        now = self.loop.time()
        legs = [leg for leg in (self._near, self._far) if not leg.lost]
        waiting = {leg: _on_its_way(leg) for leg in legs}
        # What leaves counts as well: a slow reader may live on our buffers for a long time.
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
        self._idle_timer = self.loop.call_later(self._look_time, self._look_idle)

    def _look_quiet(self, ended: _Leg) -> None:
        """Pass on the end of `ended` to a peer without half-close when nothing is on its way."""
        other = ended.peer
        if other.transport.half_closes():  # it has only just made itself known as one of ours
            if ended.lost:
                self._cut(f"{self._name(ended)} end: takes no more data")
            else:
                other.transport.write_eof()
            return
        now = self.loop.time()
        due = self._due(ended, now)
        if due is None:
            wait, self._quiet_tick = self._quiet_tick, min(2 * self._quiet_tick, QUIET_TICK[1])
        else:
            wait = due - now
        if wait > 0:
            self._quiet_timer = self.loop.call_later(wait, self._look_quiet, ended)
        elif ended.lost:
            self._finish("done")
        else:
            self._told = True
            other.transport.write_eof()
            self._quiet_timer = self.loop.call_later(END_TIME, self._give_up, ended)

    def _due(self, ended: _Leg, now: float) -> float | None:
        """When a peer without half-close is to be told of the end of `ended`, as things stand.

        None if that depends on something that is not told when it happens, so that one has to look
        again.
        """
        other = ended.peer
        if other.transport.half_closes() is None:
            other.transport.ask_half_close()
            return None
        if other is self._near:  # a client, and `ended` is the destination
            size = other.received - ended.answered
            if not size:
                return now
            if size <= REQUEST_SIZE:
                return other.heard + REQUEST_QUIET_TIME
            waiting = 0
        else:
            waiting = _on_its_way(other)
        if not ended.lost:
            waiting += _on_its_way(ended)  # while that is slow, the other is not read
        if waiting:
            self._sent_at = now
            if not ended.lost:
                return None
        if not ended.lost:
            return max(ended.heard, other.heard, self._sent_at) + QUIET_TIME
        sent_at = max(ended.heard, self._sent_at)
        if other.received - self._orphaned > ORPHAN_BYTES:
            return sent_at + QUIET_TIME
        return min(max(other.heard, sent_at) + QUIET_TIME, sent_at + ORPHAN_TIME)

    def _discard(self, data: Data) -> None:
        """Data of a Go server for an application that is gone."""
        far = self._far
        far.heard = self.loop.time()
        if far.received - self._orphaned > ORPHAN_BYTES and self._quiet_timer is not None:
            far.forward = _ignore
            self._quiet_timer.cancel()
            self._look_quiet(self._near)

    def _give_up(self, ended: _Leg) -> None:
        """The peer was told of the end and says nothing: `ended` waits for it in vain."""
        other = ended.peer
        self._close("the peer did not end its side")
        if not other.lost:
            other.transport.close()
        if not ended.lost:
            ended.transport.cut()


class _Leg(StreamProtocol):
    """The protocol of one of the two transports."""

    __slots__ = (
        "answered", "borrows", "eof", "forward", "heard", "lost", "peer", "received", "relay",
        "transport",
    )  # fmt: skip

    peer: _Leg
    forward: Callable[[Data], Any]

    def __init__(self, relay: Relay, transport: StreamTransport) -> None:
        self.relay = relay
        self.transport = transport
        self.received = 0
        self.heard = relay.started  # when the last byte came
        self.answered = 0  # what had come from the peer by then
        self.eof = False
        self.lost = False

    def join(self, peer: _Leg, ours: bool) -> None:
        """Have `peer` for the other leg; `ours`: neither end of the tunnel is a Go peer's."""
        self.peer = peer
        transport = peer.transport
        self.forward = transport.write if ours else self._note
        self.borrows = transport.borrows
        if transport.shares:
            self.transport.limit_reads()

    @property
    def sends_no_more(self) -> bool:
        return self.peer.eof

    def data_received(self, data: Data) -> None:
        self.received += len(data)
        self.forward(data)

    def _note(self, data: Data) -> None:
        """Pass on `data`. When a Go peer is told of an end depends on what came when."""
        peer: Any = self.peer
        self.answered = peer.received
        self.heard = self.relay.loop.time()
        if self.transport.half_closes() and peer.transport.half_closes():
            self.forward = peer.transport.write  # the peer has made itself known as ours
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

    def let_go(self) -> None:
        """The relay is over: leave no circle of references behind."""
        self.forward = _ignore
        del self.relay, self.peer, self.transport


def _on_its_way(leg: _Leg) -> int:
    """Bytes that have been written to `leg`, or taken from it, and have not got there yet."""
    return leg.transport.unsent() + leg.transport.held_back()


def _ignore(_: object) -> None:
    """Stands for what is not to be called again."""
