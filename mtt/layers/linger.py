"""How a TCP connection ends without losing data, or on purpose with a reset.

Closing a socket that has unread input makes the kernel send RST, which destroys data that the peer
has not read yet. So after the last byte the socket sends FIN, reads and discards until the peer has
closed too, and only then closes the descriptor: what web servers call a lingering close. It is
bounded: a peer that neither reads nor closes is cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Protocol

from mtt.layers.base import Discarding, StreamProtocol

# Seconds between checks of a closing connection.
TICK = 0.5
# The first check of a connection that is reset when all data is delivered, usually after one round
# trip. The interval doubles up to TICK.
CUT_TICK = 0.005
# Seconds to wait for the peer's FIN when all data is acknowledged. nginx waits 5 s between reads;
# two ends of a tunnel close at once, so only foreign peers take that long.
LINGER_TIME = 2.0
# Seconds without progress while data is unsent: the peer has stopped reading.
STALL_TIME = 30.0

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST
_USUAL = struct.pack("ii", 0, 0)


def reset_on_close(sock: socket.socket, on: bool = True) -> None:
    """Have close() send RST, or FIN as usual."""
    with contextlib.suppress(OSError):  # not a TCP socket, or closed already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET if on else _USUAL)


class ClosingTransport(Protocol):
    """What `Lingering` needs of the socket's transport."""

    def unsent(self) -> int: ...
    def drain(self) -> None: ...
    def drop(self) -> None: ...
    def abort(self) -> None: ...


class Lingering(Discarding):
    """Replaces `protocol` above a socket that is being closed, and reports the end to it.

    Reads and discards until the peer closes, or time is up. With `resets`, resets the connection as
    soon as the peer's kernel has all data.
    """

    __slots__ = ("_protocol", "_resets", "_since", "_tick_time", "_timer", "_transport", "_unsent")

    def __init__(
        self, transport: ClosingTransport, protocol: StreamProtocol, *, resets: bool = False
    ) -> None:
        self._transport = transport
        self._protocol = protocol
        self._resets = resets
        loop = asyncio.get_running_loop()
        self._since = loop.time()
        self._unsent: int | None = None  # at the last tick; most connections end before the first
        self._tick_time = CUT_TICK if resets else TICK
        self._timer = loop.call_later(self._tick_time, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        unsent = self._transport.unsent()
        if self._unsent is not None and unsent < self._unsent:
            self._since = loop.time()
        self._unsent = unsent
        waited = loop.time() - self._since
        if unsent and waited >= STALL_TIME:
            self._transport.abort()  # missing data must not look like an ordinary end
        elif self._resets and not unsent:
            self._transport.abort()
        elif not unsent and waited >= LINGER_TIME:
            self._transport.drop()
        else:
            self._tick_time = min(2 * self._tick_time, TICK)
            self._timer = loop.call_later(self._tick_time, self._tick, loop)

    def eof_received(self) -> bool:
        if not self._resets:  # else the peer may go on reading
            self._transport.drain()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._protocol.connection_lost(exc)
