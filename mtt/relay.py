"""The relay: two transports joined, bytes copied both ways.

Theory of operation
-------------------
Each transport has a `_Leg` as its protocol. What a leg receives is written to the other one; a
leg that cannot take more pauses the reading of the other one. The relay knows transports only, so
any stack of layers relays to any other.

How a tunnel ends:

* A direction ends with the end of its source. If the other transport can say so without closing
  (`can_write_eof`), it does, and the opposite direction goes on: half-close.
* The end of a transport that has no half-close is the end of both directions. What it sent is
  delivered, then both are closed.
* A transport that has no half-close is not told of an end at once: the Go peers close everything
  when they see one, with what is still on its way. Everything is sent, then the other direction
  must have been quiet for QUIET_TIME; that is how replies after a half-close get through. Then the
  peer is told, and its own end is waited for as long as a closing takes.
* A leg that fails resets the other one: an application must not take a cut stream for a whole
  one. But when the failed leg had ended its sending properly, what it sent is still delivered.
* One timer watches both directions: no byte in either for `timeout` seconds closes the tunnel, or
  cuts it, if one end has said that it is done and still waits for the other's last word.

The relay is over when both transports are gone; `linger` bounds how long that takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from mtt.errors import StuckError, describe
from mtt.layers import linger
from mtt.layers.base import Data, StreamProtocol, silent_seconds, unsent
from mtt.layers.holding import Holding
from mtt.layers.tcp import SocketTransport

# How long the other direction must be silent before a peer without half-close is told of the end.
# Measured with the Go server: 1 s was enough for every upload and reply to be complete.
QUIET_TIME = 1.0
# The same when nobody is left to read that direction, which then need not fall silent at all.
ORPHAN_TIME = 5.0
# A peer that was told of the end closes within a round trip.
END_TIME = 2.0
# Looks at the counters per idle timeout; a tunnel is closed at most 1/8 of the timeout late.
IDLE_LOOKS = 8
# A peer whose kernel has not acknowledged what it was sent for so long is gone, and is noticed one
# LOOK_TIME later at the latest.
DEAD_TIME = 60.0
LOOK_TIME = 10.0
# Seconds between two looks at a direction that should fall silent.
QUIET_TICK = 0.25


class Relay:
    """One tunnel.

    Args:
        near: the transport towards the application (client) or the peer (server). What a
            `Holding` has of it goes to `far` first.
        far: the other one, likewise.
        timeout: seconds without a byte in either direction after which the tunnel is closed.
        done: called once when both transports are gone.
    """

    __slots__ = (
        "_closing", "_counted", "_done", "_far", "_idle_since", "_idle_timer", "_look_time",
        "_loop", "_near", "_quiet_count", "_quiet_since", "_quiet_timer", "_sent_at", "_timeout",
        "_told", "error", "reason", "started",
    )  # fmt: skip

    def __init__(
        self,
        near: asyncio.Transport,
        far: asyncio.Transport,
        *,
        timeout: float,
        done: Callable[[Relay], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._done = done
        self._closing = False
        self.reason = ""
        self.error: Exception | None = None  # what cut the tunnel, if that was one of its ends
        self.started = self._idle_since = self._loop.time()
        self._counted = 0  # bytes that both legs together had passed on when last looked at
        self._idle_timer: asyncio.TimerHandle | None
        self._quiet_timer: asyncio.TimerHandle | None = None
        self._quiet_count = 0
        self._told = False  # a peer without half-close has been told of the end
        self._quiet_since = self._sent_at = 0.0
        self._near, self._far = _Leg(self, near), _Leg(self, far)
        self._near.join(self._far)
        self._far.join(self._near)
        self._look_time = min(timeout / IDLE_LOOKS, LOOK_TIME)
        self._idle_timer = self._loop.call_later(self._look_time, self._look_idle)
        held = near.get_protocol(), far.get_protocol()
        for leg, holding in zip((self._near, self._far), held, strict=True):
            if leg.transport.is_closing():  # it died before we took it over; nobody will say so
                error = holding.error if isinstance(holding, Holding) else None
                self._loop.call_soon(leg.connection_lost, error)
            else:
                leg.transport.resume_reading()
        # Only now: each may say at once that it can take no more, which pauses the other.
        near.set_protocol(self._near)
        far.set_protocol(self._far)
        for leg, holding in zip((self._near, self._far), held, strict=True):
            if isinstance(holding, Holding):
                if holding.early:
                    leg.data_received(holding.early)
                if holding.eof:
                    leg.eof_received()

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
                linger.reset(leg.transport)

    # Called by the legs.

    def leg_ended(self, leg: _Leg) -> None:
        """`leg` will not send any more."""
        other = leg.peer
        if self._closing:
            return
        if other.eof or not leg.transport.can_write_eof():
            self._finish("done")
        elif other.transport.can_write_eof():
            other.transport.write_eof()
        else:
            self._quiet_since = self._sent_at = self._loop.time()
            self._quiet_count = other.received
            self._look_quiet(leg)

    def leg_lost(self, leg: _Leg, exc: Exception | None) -> None:
        """`leg` is gone."""
        other = leg.peer
        if not self._closing:
            if leg.eof:
                # It had said all it had to say. That much is owed to the other side; what the
                # other side still sends has no reader any more.
                other.forward = _discard
                if not other.lost:
                    other.transport.resume_reading()
                if other.transport.can_write_eof():
                    self._finish("done")
            elif self._told:
                # It was quiet before, and closes now that it knows: proxies do so without a word.
                self._finish("done")
            else:
                self.error = exc
                self.abort(f"{self._name(leg)} end: {describe(exc)}")
        if leg.lost and other.lost:
            self._cancel_timers()
            done, self._done = self._done, _nobody
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
                linger.close(leg.transport, leg.connection_lost, eof_seen=leg.eof)

    def _cut(self, reason: str) -> None:
        self.error = StuckError(reason)
        self.abort(reason)

    def _cancel_timers(self) -> None:
        for timer in (self._idle_timer, self._quiet_timer):
            if timer is not None:
                timer.cancel()

    def _look_idle(self) -> None:
        now = self._loop.time()
        waiting = sum(unsent(leg.transport) for leg in (self._near, self._far) if not leg.lost)
        # What leaves counts as well: a slow reader may live on our buffers for a long time.
        count = self._near.received + self._far.received - waiting
        if count != self._counted:
            self._counted = count
            self._idle_since = now
        elif now - self._idle_since >= self._timeout:
            reason = f"idle for {self._timeout:g} s"
            if waiting:
                self._cut(reason + " with undelivered data")
            elif self._near.eof or self._far.eof:
                # With FIN a reply that never came, or stopped half-way, would look complete.
                self._cut(reason)
            else:
                self._finish(reason)
            return
        for leg in (self._near, self._far) if waiting else ():
            if not leg.lost and silent_seconds(leg.transport) >= DEAD_TIME:
                self._cut(f"{self._name(leg)} end: no sign of life for {DEAD_TIME:g} s")
                return
        self._idle_timer = self._loop.call_later(self._look_time, self._look_idle)

    def _look_quiet(self, ended: _Leg) -> None:
        """Pass on the end of `ended` to a peer without half-close when nothing moves any more."""
        now = self._loop.time()
        other = ended.peer
        if other.transport.can_write_eof():  # it has only just made itself known as one of ours
            if ended.lost:
                self._finish("done")
            else:
                other.transport.write_eof()
            return
        waiting = unsent(other.transport)
        if not ended.lost:
            waiting += unsent(ended.transport)
        if waiting:
            self._sent_at = now
        if waiting or other.received != self._quiet_count:
            self._quiet_count = other.received
            self._quiet_since = now
        if now - self._quiet_since >= QUIET_TIME or (
            ended.lost and now - self._sent_at >= ORPHAN_TIME
        ):
            if ended.lost:
                self._finish("done")
            else:
                self._told = True
                other.transport.write_eof()
                self._quiet_timer = self._loop.call_later(END_TIME, self._give_up, ended)
            return
        self._quiet_timer = self._loop.call_later(QUIET_TICK, self._look_quiet, ended)

    def _give_up(self, ended: _Leg) -> None:
        """The peer was told of the end and says nothing: `ended` waits for it in vain."""
        self._finish("the peer did not end its side")
        if not ended.lost:
            linger.reset(ended.transport)


class _Leg(StreamProtocol):
    """The protocol of one of the two transports."""

    __slots__ = (
        "borrows", "eof", "forward", "lost", "peer", "received", "relay", "transport",
    )  # fmt: skip

    peer: _Leg
    forward: Callable[[Data], Any]

    def __init__(self, relay: Relay, transport: asyncio.Transport) -> None:
        self.relay = relay
        self.transport = transport
        self.received = 0
        self.eof = False
        self.lost = False

    def join(self, peer: _Leg) -> None:
        self.peer = peer
        transport: Any = peer.transport
        self.forward = transport.write
        self.borrows = getattr(transport, "borrows", False)
        if isinstance(self.transport, SocketTransport) and getattr(transport, "shares", False):
            self.transport.limit_reads()

    @property
    def sends_no_more(self) -> bool:
        return self.peer.eof

    def data_received(self, data: Data) -> None:
        self.received += len(data)
        self.forward(data)

    def eof_received(self) -> bool:
        if not self.eof:  # a visit to the web site repeats it when it is resumed
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
            if not self.eof:
                self._rescue(exc)
            self.relay.leg_lost(self, exc)

    def let_go(self) -> None:
        """The relay is over: leave no circle of references behind."""
        self.forward = _discard
        del self.relay, self.peer, self.transport

    def _rescue(self, exc: Exception | None) -> None:
        """Take what was sent to us before our writing to an end that is gone failed."""
        pieces = linger.rescue(self.transport, exc)
        if pieces is not None:
            for data in pieces:
                self.data_received(data)
            self.eof_received()


def _discard(data: Data) -> None:
    """Nobody is left to read it."""


def _nobody(relay: Relay) -> None:
    """`done` has been called."""
