"""WebSocket as a layer: a byte stream in binary messages (RFC 6455), after the upgrade.

The opening handshake is over when this layer takes the transport. Its end is a close frame in
both directions: there is no half-close in WebSocket, so `can_write_eof` is false, and the end of
the connection below without a close frame is a failure (code 1006), as for any WebSocket peer.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from mtt.errors import NetworkError, PeerError
from mtt.layers import linger
from mtt.layers.base import Data, Layer, Upper
from mtt.wire.websocket import (
    BINARY,
    CLOSE,
    GOING_AWAY,
    NO_MASK,
    NO_STATUS,
    NORMAL_CLOSURE,
    PING,
    PONG,
    PROTOCOL_ERROR,
    Decoder,
    WebSocketError,
    close_payload,
    frame,
    parse_close,
)

# A peer that pings but does not read gets no more pongs while this much waits to be sent
# (RFC 6455, 5.5.3, lets us answer the latest ping only).
CONTROL_BACKLOG = 64 * 1024

# Ends that mean "all was said"; Go peers send 1000, web servers that shut down 1001.
_ORDERLY = (NORMAL_CLOSURE, GOING_AWAY, NO_STATUS)


class WebSocketLayer(Layer):
    """The open phase of one WebSocket connection.

    Args:
        upper: the protocol above.
        client: we are the client: our frames carry a masking key, the server's must not.
        random_mask: choose a key per frame (5.3). Masking exists to protect plain-text proxies
            from scripts in browsers; a tunnel inside TLS has neither, and the all-zero key, which
            receivers take like any other, costs nothing on both ends.
    """

    __slots__ = ("_close_sent", "_closed", "_decoder", "_mask", "_paused", "_scheduled", "_stash")

    def __init__(self, upper: Upper, *, client: bool, random_mask: bool = False) -> None:
        super().__init__(upper)
        self._decoder = Decoder(masked=not client)
        self._mask: Callable[[], bytes | None]
        self._mask = (_random_key if random_mask else _zero_key) if client else _no_key
        self._paused = False
        self._scheduled = False
        self._stash = b""
        self._close_sent = False
        self._closed = False

    def start(self, transport: asyncio.Transport, early: bytes = b"") -> None:
        """Take over `transport`, whose upgrade is complete; `early` came right behind it."""
        transport.set_protocol(self)
        self.connection_made(transport)
        self.upper.connection_made(self)
        if early:
            self.data_received(early)
        if not self._paused:
            transport.resume_reading()

    # The protocol of the layer below.

    def data_received(self, data: Data) -> None:
        if self._paused or self._stash:
            self._stash += data  # at most what the layer below had in hand when it was paused
            return
        self._deliver(bytes(data))

    def _deliver(self, data: bytes) -> None:
        if self._closed:
            return
        try:
            events = self._decoder.feed(data)
        except WebSocketError as error:
            self._send_close(PROTOCOL_ERROR, str(error))
            self._fail(PeerError(f"WebSocket: {error}"))
            return
        pieces = []
        for opcode, payload in events:
            if opcode == BINARY:
                pieces.append(payload)
            elif opcode == PING:
                self._pong(payload)
            elif opcode == CLOSE:
                self._hand_up(pieces)
                self._close_received(bytes(payload))
                return
        self._hand_up(pieces)

    def _hand_up(self, pieces: list[Data]) -> None:
        if len(pieces) == 1:
            self.upper.data_received(pieces[0])
        elif pieces:
            self.upper.data_received(b"".join(pieces))

    def _pong(self, payload: Data) -> None:
        if not self._close_sent and self.lower.get_write_buffer_size() < CONTROL_BACKLOG:
            self._send(frame(PONG, payload, self._mask()))

    def _close_received(self, payload: bytes) -> None:
        if self._closed:  # by the protocol above, on the data before this frame
            return
        try:
            code, reason = parse_close(payload)
        except WebSocketError as error:
            self._send_close(PROTOCOL_ERROR, str(error))
            self._fail(PeerError(f"WebSocket: {error}"))
            return
        self._send_close(code)
        if code not in _ORDERLY:
            text = f"WebSocket closed by the peer with code {code}"
            self._fail(PeerError(f"{text}: {reason!r}" if reason else text))
        elif not self.upper.eof_received():
            self.close()

    def eof_received(self) -> bool:
        if not (self._closed or self._close_sent):
            self._fail(NetworkError("cut off: the connection ended without a WebSocket close"))
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self._closed:
            self.upper.connection_lost(None)
        else:
            self._closed = True
            self.upper.connection_lost(exc or NetworkError("connection lost"))

    # The transport of the protocol above.

    def is_closing(self) -> bool:
        return self._closed

    def is_reading(self) -> bool:
        return not self._paused

    def pause_reading(self) -> None:
        self._paused = True
        self.lower.pause_reading()

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            if self._stash:
                if not self._scheduled:
                    self._scheduled = True
                    asyncio.get_running_loop().call_soon(self._unstash)
            else:
                self.lower.resume_reading()

    def _unstash(self) -> None:
        self._scheduled = False
        if not self._paused:
            data, self._stash = self._stash, b""
            if data:
                self._deliver(data)
            if not self._paused:
                self.lower.resume_reading()

    def write(self, data: Data | bytearray) -> None:
        """Send `data` as one binary message."""
        if data and not (self._close_sent or self._closed):
            if isinstance(data, bytearray):
                data = bytes(data)
            self._send(frame(BINARY, data, self._mask()))

    def close(self) -> None:
        """Deliver what was written, say close 1000, and close the connection below."""
        if not self._closed:
            self._send_close(NORMAL_CLOSURE)
            self._closed = True
            linger.close(self.lower, self.connection_lost, eof_seen=False)

    def abort(self) -> None:
        """Cut the connection so that the peer sees a failure."""
        self._closed = True
        linger.reset(self.lower)

    def _send_close(self, code: int, reason: str = "") -> None:
        if not self._close_sent:
            self._close_sent = True
            self._send(frame(CLOSE, close_payload(code, reason), self._mask()))

    def _fail(self, error: Exception) -> None:
        """End the connection because of `error`; a close frame already written is delivered."""
        self._closed = True
        linger.close(self.lower, _ignore, eof_seen=False)
        if isinstance(self.lower, Layer):
            self.lower.set_protocol(_Nobody())
        asyncio.get_running_loop().call_soon(self.upper.connection_lost, error)


class _Nobody(asyncio.Protocol):
    """Stands above a connection whose user has been told already."""


def _ignore(exc: Exception | None) -> None:
    """As _Nobody, for a plain TCP transport."""


def _no_key() -> None:
    return None


def _zero_key() -> bytes:
    return NO_MASK


def _random_key() -> bytes:
    return os.urandom(4)
