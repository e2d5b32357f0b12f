"""UDP over TCP where it ends: the datagrams of one stream, through one socket.

A `UotRelay` is the protocol of a stream and owns a `DirectUdp`. Datagrams of the stream are sent to
wherever they say, as far as the rules allow; whatever comes back goes into the stream with its
source. While the stream does not take any more, the kernel drops what comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from logging import DEBUG
from typing import Any

from mtt.address import host_port, peer_name
from mtt.errors import PeerError, describe
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.parked import hand_over
from mtt.log import FAILURE_BURST, Throttle
from mtt.net.resolve import Resolver
from mtt.outbound.udp import DirectUdp
from mtt.outcome import Outcome
from mtt.wire.uot import MAX_FOREIGN, Decoder, UotError, encode_connected, encode_datagram


class UotRelay(StreamProtocol):
    """One association. Work begins with `start()`.

    Args:
        stream: held; ours from now on. What comes is UDP over TCP.
        version: of that, 1 or 2.
        acknowledge: tells the client how it goes.
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
        "_acknowledge", "_active", "_answer_timer", "_decoder", "_done", "_drops", "_idle_time",
        "_idle_timer", "_is_connected", "_loop", "_lost", "_over", "_stream", "_udp", "_version",
        "denied", "error", "reason", "received", "started",
    )  # fmt: skip

    def __init__(
        self,
        stream: StreamTransport,
        version: int,
        *,
        acknowledge: Callable[[Outcome], object],
        resolver: Resolver,
        allows: Callable[[str, int], bool],
        denied: Callable[[str, int], object],
        idle_time: float,
        answer_time: float,
        done: Callable[[UotRelay], None],
    ) -> None:
        self._udp = DirectUdp(self, resolver=resolver, allows=allows)
        self._loop = asyncio.get_running_loop()
        self._stream = stream
        self._version = version
        self._acknowledge = acknowledge
        self._decoder = Decoder(request=version == 2)
        self.denied = denied
        self._idle_time = idle_time
        self._done = done
        self._drops = Throttle(FAILURE_BURST)
        self._over = False
        self._lost = False  # the stream is gone
        self._is_connected = False  # there is one peer only
        self._idle_timer: asyncio.TimerHandle | None = None
        self._answer_timer: asyncio.TimerHandle | None = None
        self.received = 0  # bytes in datagrams that were passed to the client
        self.started = self._active = self._loop.time()
        self.reason = ""
        self.error: Exception | None = None
        self._answer_timer = self._loop.call_later(answer_time, acknowledge, Outcome.SUCCEEDED)

    @property
    def sent(self) -> int:
        """Bytes in datagrams that were passed on for the client."""
        return self._udp.sent

    def start(self) -> None:
        """Take over the stream."""
        self._look_idle()
        if self._version == 1:
            self._answer()
        self._udp.resume()
        hand_over(self._stream, self)

    def abort(self, reason: str) -> None:
        """Cut it so that the client sees a failure."""
        self._let_go(reason)
        if not self._lost:
            self._stream.abort()

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
            self._udp.send(host, port, payload)

    def eof_received(self) -> bool:
        self._close("done")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._let_go(f"near end: {describe(exc)}")
        done, self._done = self._done, _nobody
        done(self)

    def pause_writing(self) -> None:
        self._udp.pause()

    def resume_writing(self) -> None:
        self._udp.resume()

    def _requested(self, connect: bool, host: str, port: int) -> None:
        """The request of version 2 is there."""
        if connect:
            self._is_connected = True
            if not self._udp.restrict(host, port):
                self._acknowledge(Outcome.NOT_ALLOWED)
                self._close(f"{host_port(host, port)} is not allowed")
                return
        self._answer()

    def _answer(self) -> None:
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None
        self._acknowledge(Outcome.SUCCEEDED)

    # Called by the socket.

    def deliver(self, host: str, port: int, payload: memoryview) -> None:
        if len(payload) > MAX_FOREIGN and not self._stream.half_closes():  # it is not ours
            self.dropped(
                f"from {host_port(host, port)}", len(payload), "Go clients cannot take that"
            )
        else:
            self.received += len(payload)
            self._active = self._loop.time()
            self._stream.write(
                encode_connected(payload)
                if self._is_connected
                else encode_datagram(payload, host, port)
            )

    def dropped(self, which: str, size: int, why: str) -> None:
        self._drops.log(
            DEBUG, "%s: a datagram %s of %d bytes was dropped: %s",
            peer_name(self._stream), which, size, why,
        )  # fmt: skip

    # Ends.

    def _look_idle(self) -> None:
        active = max(self._active, self._udp.active)
        left = active + self._idle_time - self._loop.time()
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
        self._udp.close()


def _nobody(relay: UotRelay) -> None:
    """`done` has been called."""
