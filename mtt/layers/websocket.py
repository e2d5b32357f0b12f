"""WebSocket as a layer: a byte stream in binary messages (RFC 6455), after the upgrade.

A close frame ends both directions; the end of the connection below without one is a failure (code
1006).

WebSocket has no half-close, so our own ends add it. Data travels in binary messages, so an empty
text message is free to serve as a marker, which other peers ignore. The server sends one at the
start if the client's key is marked (see `own_key`), and the client answers with one. So each side
knows that the peer is ours and that proxies in between pass the marker. From then on, an empty text
message ends its direction.

The marker may be late on a slow line. A side that wants to end its direction before it has arrived
sends a ping, whose answer follows everything that the peer has sent before.
"""

from __future__ import annotations

import asyncio
import errno
import os
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
# (RFC 6455, 5.5.3, permits answering only the latest ping).
CONTROL_BACKLOG = 64 * 1024

# The ping that asks about half-close, and the seconds for which its answer is expected: longer than
# some retransmissions take. (A peer that answers no pings violates RFC 6455.)
_HALF_CLOSE_PING = b"half-close"
ANSWER_TIME = 10.0
# The ping that asks for a sign of life; the number makes each one unique.
_LIVENESS_PING = b"alive-%d"

# Bytes of a message that is copied behind its header: a fraction of a TLS record.
SMALL_MESSAGE = 4096

# Close codes that mean a complete end; Go peers send 1000, web servers that shut down 1001.
_ORDERLY = (NORMAL_CLOSURE, GOING_AWAY, NO_STATUS)


class WebSocketLayer(SignalingLayer):
    """The open phase of one WebSocket connection.

    Args:
        upper: the protocol above.
        client: whether this is the client, whose frames carry a masking key.
        random_mask: choose a key per frame (5.3). Masking protects plain-text proxies from scripts
            in browsers. A tunnel inside TLS has neither, and the all-zero key, which receivers
            accept like any other, costs nothing on both ends.
        half_close: the peer may be ours. A server that knows it is announces it.
        ping: keep an idle connection alive; a mux session above does that itself.
    """

    borrows = True
    name = "WebSocket"

    __slots__ = (
        "_client", "_close_code", "_close_received", "_close_sent", "_closed", "_decoder",
        "_fixed_mask", "_half_close", "_half_close_asked_at", "_has_data", "_heard_at",
        "_keepalive", "_marker_received", "_now", "_pings_answered", "_pings_sent", "_random_mask",
        "_read_eof", "_sends_pings", "_stash", "_write_eof",
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
        self._sends_pings = ping
        self._keepalive: Keepalive | None = None
        self._client = client
        self._half_close = half_close
        self._half_close_asked_at: float | None = None
        self._marker_received = False
        self._has_data = False  # the peer has sent data
        self._pings_sent = self._pings_answered = 0  # by `ping`
        self._read_eof = False
        self._write_eof = False
        self._decoder = Decoder(masked=not client)
        self._fixed_mask = NO_MASK if client else None
        self._random_mask = client and random_mask
        self._now = asyncio.get_running_loop().time
        self._heard_at = self._now()  # when data arrived, or reading was resumed
        self._stash = b""
        self._close_code = NORMAL_CLOSURE
        self._close_sent = False
        self._close_received = False
        self._closed = False

    # The protocol of the layer below.

    def connection_made(self, transport: Any) -> None:
        self.lower = transport
        if self._half_close and not self._client:
            self.set_peer_is_ours()
            self._send_control(TEXT)
        if self._sends_pings:
            self._keepalive = Keepalive(self, self)
        self.upper.connection_made(self)

    def data_received(self, data: Data) -> None:
        self._heard_at = self._now()
        if self._paused or self._stash:
            self._stash += data  # at most what the layer below held when it was paused
            return
        if not (self._closed or self._close_received):
            payload = self._decoder.whole_message(data)
            if payload is not None:
                self._hand_up([payload])
            else:
                self._decode(data)

    def _decode(self, data: Data) -> None:
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
                if self._half_close and not self._marker_received:
                    self._marker_received = True
                    self.set_peer_is_ours()
                    if self._client:
                        self._send_control(TEXT)
                elif self._half_close:
                    self._hand_up(pieces)
                    pieces = []
                    self._eof_marker_received()
                    if self._closed:
                        return
            elif opcode == PING:
                if self.lower.get_write_buffer_size() < CONTROL_BACKLOG:
                    self._send_control(PONG, payload)
            elif opcode == PONG:
                if payload == _HALF_CLOSE_PING:
                    self._half_close_asked_at = float("-inf")
                elif payload == _LIVENESS_PING % self._pings_sent:
                    self._pings_answered = self._pings_sent
            elif opcode == CLOSE:
                self._hand_up(pieces)
                self._close_frame_received(bytes(payload))
                return
        self._hand_up(pieces)
        if violation and not self._closed:
            self._reject(violation)

    def receive_early(self, data: bytes) -> None:
        """Hand up data that came with the request; called right after the start."""
        self._hand_up([data])

    def _hand_up(self, pieces: list[Data]) -> None:
        """Pass on the payload of one read, in pieces. Subclasses may do that in another way."""
        if not pieces:
            return
        self._has_data = True
        if self._read_eof:
            self._reject("data after the end of data")
            return
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        upper = self.upper
        upper.data_received(data if upper.borrows else bytes(data))

    def _eof_marker_received(self) -> None:
        if not (self._read_eof or self._closed):
            self._read_eof = True
            if not self.upper.eof_received():
                self.close()

    def _close_frame_received(self, payload: bytes) -> None:
        if self._closed:  # by the protocol above, on the data before this frame
            return
        self._close_received = True
        try:
            code, reason = parse_close(payload)
        except WebSocketError as error:
            self._reject(str(error))
            return
        self._close_code = code  # which our own close frame repeats
        if code not in _ORDERLY:
            self._send_close()
            text = f"WebSocket closed by the peer with code {code}"
            self._fail(PeerError(f"{text}: {reason!r}" if reason else text))
        elif self._read_eof and not self._write_eof:
            # The peer's direction had ended before: now it takes no more data, either.
            gone = ConnectionResetError(errno.ECONNRESET, "the peer takes no more data")
            self._fail(gone, reset=True)
        elif self._read_eof or not self.upper.eof_received():
            self.close()
        if not self._closed:
            # Not earlier: the protocol above may ask whether all that it wrote has arrived.
            self._send_close()

    def eof_received(self) -> bool:
        if self._closed or self._close_received:
            return True
        # The Go programs race with themselves for the close frame, and end one in 500 complete
        # answers without it. Our own ends always send it. A server knows them by the key, before
        # their marker comes. Without any data it is what a Go server does that cannot connect.
        is_ours = self._marker_received or (self._half_close and not self._client)
        is_go_end = self._has_data and not is_ours and self._decoder.at_boundary
        if not (self._close_sent or is_go_end):
            self._fail(NetworkError("cut off: the connection ended without a WebSocket close"))
        elif self._read_eof or not self.upper.eof_received():
            self.close()  # some peers answer our close frame in this way
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        was_closed = self._closed
        self._set_closed()
        self.report_lost(None if was_closed else exc or NetworkError("connection lost"))

    # The transport of the protocol above.

    def is_closing(self) -> bool:
        return self._closed

    @property
    def _has_more(self) -> bool:
        return bool(self._stash)

    def _deliver(self) -> None:
        data, self._stash = self._stash, b""
        self._decode(data)

    def _pause_below(self) -> None:
        if not self._closed:  # the connection below lingers, and must see the peer's end
            self.lower.pause_reading()

    def _resume_below(self) -> None:
        self._heard_at = self._now()
        self.lower.resume_reading()

    def write_framed(self, head: bytes, data: Data | bytearray) -> None:
        if self._close_sent or self._closed or self._write_eof or not data:
            return
        self._tail = 0
        if self._random_mask:
            self.lower.write(frame(BINARY, b"".join((head, data)), os.urandom(4)))
            return
        size = len(head) + len(data)
        header = frame_header(BINARY, size, self._fixed_mask)
        if size <= SMALL_MESSAGE:
            self.lower.write(b"".join((header, head, data)))
        else:
            self.lower.write_framed(header + head, data)

    def _mask(self) -> bytes | None:
        return os.urandom(4) if self._random_mask else self._fixed_mask

    def half_closes(self) -> bool | None:
        if not self._half_close or self._close_received or self._close_sent or self._closed:
            return False
        if self._marker_received:
            return True
        asked_at = self._half_close_asked_at
        return None if asked_at is None or self._now() - asked_at < ANSWER_TIME else False

    def ask_half_close(self) -> None:
        if self._half_close_asked_at is None and self.half_closes() is None:
            self._half_close_asked_at = self._now()
            self._send_control(PING, _HALF_CLOSE_PING)

    def write_eof(self) -> None:
        """End our direction; without half-close, the peer closes after what it has sent so far."""
        if not (self._write_eof or self._closed):
            if self.half_closes():
                self._send_control(TEXT)
            else:
                self._send_close()
            self._write_eof = True

    def close(self) -> None:
        if not self._closed:
            self._send_close()
            self._set_closed()
            self.lower.close()

    def cut(self) -> None:
        if self._closed:
            self.abort()
            return
        if self._write_eof:
            self._send_close()  # tells our own ends that we take no more data
        self._set_closed()
        self.lower.cut()

    def abort(self) -> None:
        self._closed = True
        self.lower.abort()

    def _set_closed(self) -> None:
        self._closed = True
        if self._keepalive is not None:
            self._keepalive.stop()
            self._keepalive = None

    def _send_control(self, opcode: int, payload: Data = b"") -> None:
        """Send a frame that is not data, unless a close frame was sent."""
        if not self._close_sent:
            self._send_signal(frame(opcode, payload, self._mask()))

    def _send_close(self, reason: str = "") -> None:
        if not self._close_sent:
            self._close_sent = True
            self._send_signal(frame(CLOSE, close_payload(self._close_code, reason), self._mask()))

    def _reject(self, reason: str) -> None:
        """End the connection because the peer violated the protocol."""
        self._close_code = PROTOCOL_ERROR
        self._send_close(reason)
        self._fail(PeerError(f"WebSocket: {reason}"))

    def _fail(self, error: Exception, *, reset: bool = False) -> None:
        """End the connection because of `error`; a close frame already written is delivered."""
        self._set_closed()
        self.lower.set_protocol(NO_PROTOCOL)  # `error` is reported instead of its end
        if reset:
            self.lower.abort()
        else:
            self.lower.close()
        asyncio.get_running_loop().call_soon(self.report_lost, error)

    def ping(self) -> bool:
        self._pings_sent += 1
        self._send_control(PING, _LIVENESS_PING % self._pings_sent)
        return True

    def ping_answered(self) -> bool:
        return self._pings_answered == self._pings_sent

    # For the keepalive.

    def keep_alive(self) -> None:
        if not self.lower.get_write_buffer_size():
            self._send_signal(frame(PING, b"", self._mask()))

    def silent_since(self) -> float | None:
        # Of other peers, it is unknown whether they send signs of life.
        reads = not (self._paused or self._stash)
        return self._heard_at if self._marker_received and reads else None

    def peer_is_dead(self) -> None:
        self._fail(NetworkError("no sign of life from the peer"), reset=True)
