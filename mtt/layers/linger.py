"""How a TCP connection ends without losing what was sent, and how it ends on purpose with a bang.

Closing a socket that has unread input makes the kernel answer with RST, and an RST destroys data
that the other side has not read yet. So after the last byte we send FIN, go on reading (and
discarding) until the other side has closed too, and only then close the descriptor: what web
servers call a lingering close. All of it is bounded: a peer that neither reads nor closes is cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable

from mtt.layers.base import LayerTransport, StreamProtocol, unsent

# How often a closing connection is looked at.
TICK = 0.5
# The first look at a connection that is to be reset when all is delivered, which takes a round trip
# as a rule; each further look comes after twice the time, up to TICK.
CUT_TICK = 0.005
# Everything is sent and acknowledged: how long we wait for the other side's FIN. nginx waits 5 s
# between reads; two ends of a tunnel close at once, so only strangers ever use it up.
LINGER_TIME = 2.0
# Something is still unsent and none of it moves: the peer does not read any more.
STALL_TIME = 30.0

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST
_USUAL = struct.pack("ii", 0, 0)


def reset(transport: asyncio.Transport) -> None:
    """Abort `transport` so that the peer sees a failure (RST), not an ordinary end (FIN).

    An application whose data was cut must not take what it got for the whole.
    """
    if isinstance(transport, LayerTransport):
        transport.abort()  # resets what is at the bottom of its stack, if there is one yet
        return
    sock = transport.get_extra_info("socket")
    if sock is not None:
        reset_on_close(sock)
    transport.abort()


def reset_on_close(sock: socket.socket, on: bool = True) -> None:
    """Have close() send RST, or FIN as it usually does."""
    with contextlib.suppress(OSError):  # not a TCP socket, or gone already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET if on else _USUAL)


def _ignore(exc: Exception | None) -> None:
    """The default `on_lost`."""


def close(
    transport: asyncio.Transport,
    on_lost: Callable[[Exception | None], None] = _ignore,
    *,
    eof_seen: bool,
    silent: bool = False,
) -> None:
    """Close `transport` after all that was written to it has been delivered.

    Takes over the transport; `on_lost`, the `connection_lost` of its protocol, is called once, when
    the descriptor is closed, at the latest `STALL_TIME` after the peer stopped taking data.
    `eof_seen`: the peer has sent FIN. `silent`: without the last word that a layer owes its peer.
    """
    if isinstance(transport, LayerTransport):
        close = transport.close_silently if silent else transport.close
        close()  # lingers by itself, at the bottom of its stack
        return
    if eof_seen and not transport.get_write_buffer_size():
        # The rest is up to the kernel, and nothing is left to wait for.
        transport.set_protocol(_Closing(on_lost))
        transport.close()
        return
    transport.set_protocol(_Lingering(transport, on_lost))
    if eof_seen:
        transport.close()
        return
    transport.write_eof()
    transport.resume_reading()


def cut(
    transport: asyncio.Transport, on_lost: Callable[[Exception | None], None] = _ignore
) -> None:
    """Have the peer see a failure, after all that was written to `transport` has been delivered.

    The peer can neither take the stream for a whole one, nor send on in vain. Takes over the
    transport as `close()` does, with the same `on_lost` and the same limits. What the peer still
    sends is discarded.
    """
    if isinstance(transport, LayerTransport):
        transport.cut()  # ends here, at the bottom of its stack
        return
    if not unsent(transport):
        transport.set_protocol(_Closing(on_lost))
        reset(transport)
        return
    transport.set_protocol(_Cutting(transport, on_lost))
    transport.resume_reading()


class _Closing(StreamProtocol):
    """Waits for the socket to be closed."""

    borrows = True

    __slots__ = ("_on_lost",)

    def __init__(self, on_lost: Callable[[Exception | None], None]) -> None:
        self._on_lost = on_lost

    def data_received(self, data: bytes | memoryview) -> None:
        pass

    def eof_received(self) -> bool:
        return False  # the transport sends what it still has and closes

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost(exc)


class _Lingering(_Closing):
    """Reads and discards until the peer closes, or time is up."""

    first_tick = TICK

    __slots__ = ("_left", "_since", "_tick_time", "_timer", "_transport")

    def __init__(
        self, transport: asyncio.Transport, on_lost: Callable[[Exception | None], None]
    ) -> None:
        super().__init__(on_lost)
        self._transport = transport
        loop = asyncio.get_running_loop()
        self._since = loop.time()
        self._left: int | None = None  # not asked yet: most are gone before the first tick
        self._tick_time = self.first_tick
        self._timer = loop.call_later(self._tick_time, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        left = unsent(self._transport)
        if self._left is not None and left < self._left:
            self._since = loop.time()
        self._left = left
        if left and loop.time() - self._since >= STALL_TIME:
            reset(self._transport)  # what is missing must not look like an ordinary end
        elif not left and self._is_over(loop.time() - self._since):
            self._end()
        else:
            self._tick_time = min(2 * self._tick_time, TICK)
            self._timer = loop.call_later(self._tick_time, self._tick, loop)

    def _is_over(self, waited: float) -> bool:
        """Whether all is done `waited` seconds after the last byte was acknowledged."""
        return waited >= LINGER_TIME

    def _end(self) -> None:
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)


class _Cutting(_Lingering):
    """Resets the connection as soon as the peer's kernel has all that was sent."""

    __slots__ = ()

    first_tick = CUT_TICK

    def eof_received(self) -> bool:
        return True  # the peer may go on reading

    def _is_over(self, waited: float) -> bool:
        return True

    def _end(self) -> None:
        reset(self._transport)
