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
from mtt.layers.reads import READ_SIZE

# How often a closing connection is looked at.
TICK = 0.5
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


def rescue(transport: asyncio.Transport, exc: Exception | None) -> list[bytes] | None:
    """The last data of a peer that said all it had to say; None if it did not.

    For a `connection_lost` with `exc`. A peer that has sent FIN and closed answers what we still
    send with RST. Our write fails then, and the transport gives up the connection, while the
    kernel holds data that we have not read: at most its receive buffer. EPIPE tells that a FIN had
    come before the RST; without one it is ECONNRESET, and the stream was cut.
    """
    if not isinstance(exc, BrokenPipeError) or isinstance(transport, LayerTransport):
        return None
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return None
    pieces: list[bytes] = []
    try:  # it is closed after connection_lost
        while data := sock.recv(READ_SIZE):
            pieces.append(data)
    except OSError:
        return None
    return pieces


def _nobody_cares(exc: Exception | None) -> None:
    """Whoever had the connection knows already."""


def close(
    transport: asyncio.Transport,
    on_lost: Callable[[Exception | None], None] = _nobody_cares,
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
    if eof_seen or transport.is_closing():
        transport.close()
        return
    transport.write_eof()
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

    __slots__ = ("_left", "_since", "_timer", "_transport")

    def __init__(
        self, transport: asyncio.Transport, on_lost: Callable[[Exception | None], None]
    ) -> None:
        super().__init__(on_lost)
        self._transport = transport
        loop = asyncio.get_running_loop()
        self._since = loop.time()
        self._left: int | None = None  # not asked yet: most are gone before the first tick
        self._timer = loop.call_later(TICK, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        left = unsent(self._transport)
        if self._left is not None and left < self._left:
            self._since = loop.time()
        self._left = left
        if loop.time() - self._since >= (STALL_TIME if left else LINGER_TIME):
            if left:
                reset(self._transport)  # what is missing must not look like an ordinary end
            else:
                self._transport.abort()
            return
        self._timer = loop.call_later(TICK, self._tick, loop)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)
