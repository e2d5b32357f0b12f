"""The server side of UDP over TCP: the datagrams of one stream through one UDP socket.

A `UotRelay` is the protocol of a stream and owns a `DirectUdp`. It sends the stream's datagrams to
their destinations, as far as the rules allow, and writes received datagrams to the stream with
their source. The stream's back-pressure pauses the socket; the kernel then drops datagrams.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from logging import DEBUG

from mtt.address import host_port, peer_name
from mtt.errors import PeerError, describe
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.parked import hand_over
from mtt.log import FAILURE_BURST, Throttle
from mtt.net.resolve import Resolver
from mtt.outbound.direct import Allows
from mtt.outbound.udp import DirectUdp
from mtt.outcome import Outcome
from mtt.wire.uot import MAX_FOREIGN, Decoder, UotError, encode_connected, encode_datagram


class UotRelay(StreamProtocol):
    """One association; call `start()`.

    Args:
        stream: the stream with UDP over TCP, parked; the relay owns it from now on.
        version: version of UDP over TCP, 1 or 2.
        acknowledge: sends the client the outcome.
        resolver: resolves names.
        allows: the rules, see `mtt.outbound.direct`.
        denied: called with a denied host and port.
        idle_time: idle timeout, seconds.
        answer_time: seconds until success is acknowledged, at the latest: the request of version 2
            may arrive with the first datagram, possibly much later.
        done: called once at the end.

    Raises NetworkError if no socket can be opened.
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
        allows: Allows,
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
        self._lost = False  # the stream is lost
        self._is_connected = False  # restricted to one peer
        self._idle_timer: asyncio.TimerHandle | None = None
        self.received = 0  # payload bytes written to the client
        self.started = self._active = self._loop.time()
        self.reason = ""
        self.error: Exception | None = None
        self._answer_timer = self._loop.call_later(answer_time, acknowledge, Outcome.SUCCEEDED)

    @property
    def sent(self) -> int:
        """Payload bytes sent for the client."""
        return self._udp.sent

    def start(self) -> None:
        """Take over the stream."""
        self._check_idle()
        if self._version == 1:
            self._answer()
        self._udp.resume()
        hand_over(self._stream, self)

    def abort(self, reason: str) -> None:
        """Abort the stream, so that the client sees a failure."""
        self._release(reason)
        if not self._lost:
            self._stream.abort()

    # The protocol of the stream.

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
        self._release(f"near end: {describe(exc)}")
        done = self._done
        del self._done  # break a reference cycle
        done(self)

    def pause_writing(self) -> None:
        self._udp.pause()

    def resume_writing(self) -> None:
        self._udp.resume()

    def _requested(self, connect: bool, host: str, port: int) -> None:
        """Handle the request of version 2."""
        if connect:
            self._is_connected = True
            if not self._udp.restrict(host, port):
                self._acknowledge(Outcome.NOT_ALLOWED)
                self._close(f"{host_port(host, port)} is not allowed")
                return
        self._answer()

    def _answer(self) -> None:
        self._answer_timer.cancel()
        self._acknowledge(Outcome.SUCCEEDED)

    # Called by the socket.

    def deliver(self, host: str, port: int, payload: memoryview) -> None:
        if len(payload) > MAX_FOREIGN and not self._stream.half_closes():  # a Go client
            source = host_port(host, port)
            self.dropped(f"from {source}", len(payload), "too large for a Go client")
            return
        self.received += len(payload)
        self._active = self._loop.time()
        if self._is_connected:
            self._stream.write(encode_connected(payload))
        else:
            self._stream.write(encode_datagram(payload, host, port))

    def dropped(self, direction: str, size: int, why: str) -> None:
        self._drops.log(
            DEBUG, "%s: a datagram %s of %d bytes was dropped: %s",
            peer_name(self._stream), direction, size, why,
        )  # fmt: skip

    # End.

    def _check_idle(self) -> None:
        active = max(self._active, self._udp.active)
        left = active + self._idle_time - self._loop.time()
        if left <= 0:
            self._close(f"idle for {self._idle_time:g} s")
        else:
            self._idle_timer = self._loop.call_later(left, self._check_idle)

    def _close(self, reason: str) -> None:
        """Deliver written data and close the stream."""
        if not self._over:
            self._release(reason)
            self._stream.close()

    def _release(self, reason: str) -> None:
        """Release everything except the stream."""
        if self._over:
            return
        self._over = True
        self.reason = reason
        self._answer_timer.cancel()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self._udp.close()


class DatagramRelay(UotRelay):
    """The relay of a stream whose reads and writes are datagrams, to and from one address.

    Args:
        address: an IP literal that the rules allow, and a port.
        others: see `UotRelay`.
    """

    __slots__ = ("_address",)

    def __init__(
        self,
        stream: StreamTransport,
        address: tuple[str, int],
        *,
        acknowledge: Callable[[Outcome], object],
        resolver: Resolver,
        allows: Allows,
        denied: Callable[[str, int], object],
        idle_time: float,
        done: Callable[[UotRelay], None],
    ) -> None:
        super().__init__(
            stream, 1, acknowledge=acknowledge, resolver=resolver, allows=allows, denied=denied,
            idle_time=idle_time, answer_time=0.0, done=done,
        )  # fmt: skip
        self._address = address
        self._udp.restrict(*address)

    def data_received(self, data: Data) -> None:
        if not self._over:
            self._udp.send(*self._address, data)

    def deliver(self, host: str, port: int, payload: memoryview) -> None:
        self.received += len(payload)
        self._active = self._loop.time()
        self._stream.write(payload)
