"""WebSocket as a layer: a byte stream in binary messages (RFC 6455), after the upgrade.

The opening handshake is over when this layer takes the transport. The end is a close frame, which
ends both directions; the end of the connection below without one is a failure (code 1006).

Half-close, which WebSocket does not have, exists between our own ends. Data travels in binary
messages, so an empty text message is free to be a sign; everybody else ignores it. The server
sends one at the start if the client's key is marked (see `own_key`), the client answers with one.
So each side knows that the other is one of ours and that proxies in between let the sign pass,
and from then on an empty text message is the end of its direction.

The sign may be late, on a line that stalls. Whoever wants to end its direction before it has come
asks with a ping: the answer to that comes behind everything that the peer has said before.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from typing import Any

from mtt.errors import NetworkError, PeerError
from mtt.layers.base import NO_PROTOCOL, Data, StreamProtocol
from mtt.layers.keepalive import Keepalive
from mtt.layers.layer import SignalingLayer
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
    TEXT,
    Decoder,
    WebSocketError,
    close_payload,
    frame,
    frame_header,
    parse_close,
)

# A peer that pings but does not read gets no more pongs while this much waits to be sent
# (RFC 6455, 5.5.3, lets us answer the latest ping only).
CONTROL_BACKLOG = 64 * 1024

# What our question about half-close says, which the answer repeats, and for how long we wait for
# that: longer than some retransmissions take. (Who answers no pings does not speak RFC 6455.)
_QUESTION = b"half-close"
ANSWER_TIME = 10.0
# What we say to be told that the peer is alive; a number makes each question another one.
_ALIVE = b"alive-%d"

# Ends that mean "all was said"; Go peers send 1000, web servers that shut down 1001.
_ORDERLY = (NORMAL_CLOSURE, GOING_AWAY, NO_STATUS)


class WebSocketLayer(SignalingLayer):
    """The open phase of one WebSocket connection.

    Args:
        upper: the protocol above.
        client: we are the client: our frames carry a masking key, the server's must not.
        random_mask: choose a key per frame (5.3). Masking exists to protect plain-text proxies
            from scripts in browsers; a tunnel inside TLS has neither, and the all-zero key, which
            receivers take like any other, costs nothing on both ends.
        half_close: the peer may be one of ours. A server that knows it is says so.
        ping: keep an idle connection alive; a mux session above does that by itself.
    """

    borrows = True
    name = "WebSocket"

    __slots__ = (
        "_alive_asked", "_alive_told", "_asked_at", "_client", "_close_code", "_close_received",
        "_close_sent", "_closed", "_decoder", "_ended", "_greeted", "_half_close", "_heard",
        "_keepalive", "_mask", "_now", "_ping", "_read_eof", "_seen_at", "_stash", "_write_eof",
    )  # fmt: skip

    def __init__(
        self,
        upper: StreamProtocol,
        *,
        client: bool,
        random_mask: bool = False,
        half_close: bool = False,
        ping: bool = False,
    ) -> None:
        super().__init__(upper)
        self._ping = ping
        self._keepalive: Keepalive | None = None
        self._client = client
        self._half_close = half_close
        self._greeted = False  # the peer's first sign has come
        self._heard = False  # data have come
        self._asked_at: float | None = None  # when we asked for it
        self._alive_asked = self._alive_told = 0  # the last question, and the last answer
        self._read_eof = False
        self._write_eof = False
        self._decoder = Decoder(masked=not client)
        self._mask: Callable[[], bytes | None]
        self._mask = (_random_key if random_mask else _zero_key) if client else _no_key
        self._now = asyncio.get_running_loop().time
        self._seen_at = self._now()  # when something came, or could again
        self._stash = b""
        self._close_code = NORMAL_CLOSURE
        self._close_sent = False
        self._close_received = False
        self._closed = False
        self._ended = False  # the connection below, by the peer

    # The protocol of the layer below.

    def connection_made(self, transport: Any) -> None:
        """The upgrade is complete."""
        self.lower = transport
        if self._half_close and not self._client:
            self._sign()
        if self._ping:
            self._keepalive = Keepalive(self, self)
        self.upper.connection_made(self)

    def data_received(self, data: Data) -> None:
        self._seen_at = self._now()
        if self._paused or self._stash:
            self._stash += data  # at most what the layer below had in hand when it was paused
            return
        self._take(data)

    def _take(self, data: Data) -> None:
        if self._closed or self._close_received:
            return
        violation = ""
        try:
            events = self._decoder.feed(data)
        except WebSocketError as error:
            violation, events = str(error), error.events
        pieces: list[Data] = []
        for opcode, payload in events:
            if opcode == BINARY:
                pieces.append(payload)
            elif opcode == TEXT:
                if self._half_close and not self._greeted:
                    self._greeted = True
                    self.set_peer_is_ours()
                    if self._client:
                        self._sign()
                elif self._half_close:
                    self._hand_up(pieces)
                    pieces = []
                    self._end_received()
                    if self._closed:
                        return
            elif opcode == PING:
                self._pong(payload)
            elif opcode == PONG:
                if payload == _QUESTION:
                    self._asked_at = float("-inf")
                elif payload == _ALIVE % self._alive_asked:
                    self._alive_told = self._alive_asked
            elif opcode == CLOSE:
                self._hand_up(pieces)
                self._on_close(bytes(payload))
                return
        self._hand_up(pieces)
        if violation and not self._closed:
            self._refuse(violation)

    def _hand_up(self, pieces: list[Data]) -> None:
        if not pieces:
            return
        self._heard = True
        if self._read_eof:
            self._refuse("data after the end of data")
            return
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        upper = self.upper
        upper.data_received(data if upper.borrows else bytes(data))

    def _end_received(self) -> None:
        """An empty text message, not the first, which was the greeting: the end of data."""
        if not (self._read_eof or self._closed):
            self._read_eof = True
            if not self.upper.eof_received():
                self.close()

    def _sign(self) -> None:
        if not self._close_sent:
            self._send_signal(frame(TEXT, b"", self._mask()))

    def _pong(self, payload: Data) -> None:
        if not self._close_sent and self.lower.get_write_buffer_size() < CONTROL_BACKLOG:
            self._send_signal(frame(PONG, payload, self._mask()))

    def _on_close(self, payload: bytes) -> None:
        if self._closed:  # by the protocol above, on the data before this frame
            return
        self._close_received = True
        try:
            code, reason = parse_close(payload)
        except WebSocketError as error:
            self._refuse(str(error))
            return
        self._close_code = code  # which our own close frame repeats
        if code not in _ORDERLY:
            self._send_close()
            text = f"WebSocket closed by the peer with code {code}"
            self._fail(PeerError(f"{text}: {reason!r}" if reason else text))
        elif self._read_eof and not self._write_eof:
            # Its direction had ended before: now it does not take ours any more, either.
            gone = ConnectionResetError(errno.ECONNRESET, "the peer takes no more data")
            self._fail(gone, reset=True)
        elif self._read_eof or not self.upper.eof_received():
            self.close()
        if not self._closed:
            # Not before: the protocol above may ask whether all that it had written has arrived.
            self._send_close()

    def eof_received(self) -> bool:
        self._ended = True
        if self._closed or self._close_received:
            return True
        if not (self._close_sent or self._is_go_end()):
            self._fail(NetworkError("cut off: the connection ended without a WebSocket close"))
        elif self._read_eof or not self.upper.eof_received():
            self.close()  # in answer to our close frame, as some peers have it
        return True

    def _is_go_end(self) -> bool:
        """Whether an end of the connection is to be taken for an ordinary end of data.

        The Go programs race with themselves for the close frame, and end one in 500 complete
        answers without it. Our own ends always send it, and those are known by the sign that comes
        before all else. Without any data it is what a Go server does that cannot connect.
        """
        return self._heard and not self._greeted and self._decoder.at_boundary

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_pings()
        if self._closed:
            self.report_lost(None)
        else:
            self._closed = True
            self.report_lost(exc or NetworkError("connection lost"))

    # The transport of the protocol above.

    def is_closing(self) -> bool:
        return self._closed

    @property
    def _has_more(self) -> bool:
        return bool(self._stash)

    def _deliver(self) -> None:
        data, self._stash = self._stash, b""
        self._take(data)

    def _pause_below(self) -> None:
        if not self._closed:  # the connection below lingers, and must see the peer's end
            self.lower.pause_reading()

    def _resume_below(self) -> None:
        self._seen_at = self._now()
        self.lower.resume_reading()

    def write_framed(self, head: bytes, data: Data | bytearray) -> None:
        """Send it as one binary message."""
        if self._close_sent or self._closed or self._write_eof or not data:
            return
        mask = self._mask()
        self._tail = 0
        if mask is None or mask == NO_MASK:
            self.lower.write_framed(frame_header(BINARY, len(head) + len(data), mask) + head, data)
        else:
            self.lower.write(frame(BINARY, b"".join((head, data)), mask))

    def half_closes(self) -> bool | None:
        """Whether the peer is one of ours; not any more when a close frame has ended it all.

        Not known until its sign has come, or was due.
        """
        if not self._half_close or self._close_received or self._close_sent or self._closed:
            return False
        if self._greeted:
            return True
        asked_at = self._asked_at
        return None if asked_at is None or self._now() - asked_at < ANSWER_TIME else False

    def ask_half_close(self) -> None:
        if self._asked_at is None and self.half_closes() is None:
            self._asked_at = self._now()
            self._send_signal(frame(PING, _QUESTION, self._mask()))

    def write_eof(self) -> None:
        """Tell the peer that no more data comes from us.

        The other direction goes on if the peer is one of ours; others close, after what they
        have sent so far.
        """
        if not (self._write_eof or self._closed):
            if self.half_closes():
                self._sign()
            else:
                self._send_close()
            self._write_eof = True

    def close(self) -> None:
        """Deliver what was written, say close 1000, and close the connection below."""
        if not self._closed:
            self._send_close()
            self._closed = True
            self._stop_pings()
            self.lower.close()

    def cut(self) -> None:
        """Deliver what was written, then end the connection so that the peer sees a failure."""
        if self._closed:
            self.abort()
            return
        if self._write_eof:
            self._send_close()  # by that our own ends know that we take no more
        self._closed = True
        self._stop_pings()
        self.lower.cut()

    def abort(self) -> None:
        """Cut the connection so that the peer sees a failure."""
        self._closed = True
        self.lower.abort()

    def _send_close(self, reason: str = "") -> None:
        if not self._close_sent:
            self._close_sent = True
            self._send_signal(frame(CLOSE, close_payload(self._close_code, reason), self._mask()))

    def _refuse(self, reason: str) -> None:
        """End the connection because the peer broke the protocol."""
        self._close_code = PROTOCOL_ERROR
        self._send_close(reason)
        self._fail(PeerError(f"WebSocket: {reason}"))

    def _fail(self, error: Exception, *, reset: bool = False) -> None:
        """End the connection because of `error`; a close frame already written is delivered."""
        self._closed = True
        self._stop_pings()
        self.lower.set_protocol(NO_PROTOCOL)  # its end tells nothing more
        if reset:
            self.lower.abort()
        else:
            self.lower.close()
        asyncio.get_running_loop().call_soon(self.report_lost, error)

    def ping(self) -> bool:
        self._alive_asked += 1
        if not self._close_sent:
            self._send_signal(frame(PING, _ALIVE % self._alive_asked, self._mask()))
        return True

    def ping_answered(self) -> bool:
        return self._alive_told == self._alive_asked

    # For the keepalive, which a multiplexed session above has for itself.

    def keep_alive(self) -> None:
        if not self.lower.get_write_buffer_size():
            self._send_signal(frame(PING, b"", self._mask()))

    def silent_since(self) -> float | None:
        # Only our own ends are known to send signs of life as we do.
        reads = not (self._paused or self._stash)
        return self._seen_at if self._greeted and reads else None

    def peer_is_dead(self) -> None:
        self._fail(NetworkError("no sign of life from the peer"), reset=True)

    def _stop_pings(self) -> None:
        if self._keepalive is not None:
            self._keepalive.stop()
            self._keepalive = None


def _no_key() -> None:
    return None


def _zero_key() -> bytes:
    return NO_MASK


def _random_key() -> bytes:
    return os.urandom(4)
