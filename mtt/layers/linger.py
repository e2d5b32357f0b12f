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
from typing import Protocol

from mtt.layers.base import Data, StreamProtocol

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


def reset_on_close(sock: socket.socket, on: bool = True) -> None:
    """Have close() send RST, or FIN as it usually does."""
    with contextlib.suppress(OSError):  # not a TCP socket, or gone already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET if on else _USUAL)


class Ends(Protocol):
    """What is needed of a socket's transport to end it."""

    def unsent(self) -> int: ...
    def drain(self) -> None: ...
    def drop(self) -> None: ...
    def abort(self) -> None: ...


class Lingering(StreamProtocol):
    """Stands above a socket that is being closed, in place of `protocol`, which hears of its end.

    Reads and discards until the peer closes, or time is up.
    """

    borrows = True
    first_tick = TICK

    __slots__ = ("_left", "_protocol", "_since", "_tick_time", "_timer", "_transport")

    def __init__(self, transport: Ends, protocol: StreamProtocol) -> None:
        self._transport = transport
        self._protocol = protocol
        loop = asyncio.get_running_loop()
        self._since = loop.time()
        self._left: int | None = None  # not asked yet: most are gone before the first tick
        self._tick_time = self.first_tick
        self._timer = loop.call_later(self._tick_time, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        left = self._transport.unsent()
        if self._left is not None and left < self._left:
            self._since = loop.time()
        self._left = left
        if left and loop.time() - self._since >= STALL_TIME:
            self._transport.abort()  # what is missing must not look like an ordinary end
        elif not left and self._is_over(loop.time() - self._since):
            self._end()
        else:
            self._tick_time = min(2 * self._tick_time, TICK)
            self._timer = loop.call_later(self._tick_time, self._tick, loop)

    def _is_over(self, waited: float) -> bool:
        """Whether all is done `waited` seconds after the last byte was acknowledged."""
        return waited >= LINGER_TIME

    def _end(self) -> None:
        self._transport.drop()

    def data_received(self, data: Data) -> None:
        pass

    def eof_received(self) -> bool:
        self._transport.drain()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._protocol.connection_lost(exc)


class Cutting(Lingering):
    """Resets the connection as soon as the peer's kernel has all that was sent."""

    __slots__ = ()

    first_tick = CUT_TICK

    def eof_received(self) -> bool:
        return True  # the peer may go on reading

    def _is_over(self, waited: float) -> bool:
        return True

    def _end(self) -> None:
        self._transport.abort()
