"""WebSocket frames (RFC 6455, section 5) for a tunnel.

A tunnel is a byte stream, so the decoder returns payload as it arrives, regardless of frame and
message boundaries, and treats text messages like binary ones (as the Go peers do). It buffers only
an incomplete header and control frames, which have at most 125 bytes.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct

from mtt.wire.errors import WireError

Data = bytes | memoryview

CONTINUATION, TEXT, BINARY = 0x0, 0x1, 0x2
CLOSE, PING, PONG = 0x8, 0x9, 0xA

NORMAL_CLOSURE = 1000
GOING_AWAY = 1001
PROTOCOL_ERROR = 1002
NO_STATUS = 1005  # never on the wire: a close frame without a code

MAX_CONTROL = 125  # RFC 6455, 5.5
# No length limit for data frames: their payload is streamed. The top bit must be 0 (5.2).
_MAX_LENGTH = 1 << 63

# The three length forms of a header (5.2): in the second byte, or in 2 or 8 bytes after it. Each
# with or without a masking key at the end.
_TINY, _SHORT, _LONG = Struct(">BB"), Struct(">BBH"), Struct(">BBQ")
_TINY_MASKED, _SHORT_MASKED, _LONG_MASKED = Struct(">BB4s"), Struct(">BBH4s"), Struct(">BBQ4s")
_LENGTH16, _LENGTH64, _KEY = Struct(">H"), Struct(">Q"), Struct("4s")

# The first byte of an unfragmented binary message.
_WHOLE = 0x80 | BINARY

NO_MASK = b"\0\0\0\0"
# Payloads from this size on are XORed with bytes.translate; below, one big integer is faster.
_TRANSLATE_FROM = 256


class WebSocketError(WireError):
    """The peer broke RFC 6455; `str()` goes into the close frame with code 1002."""

    events: list[tuple[int, Data]]  # decoded from the same data before the error


def frame_header(opcode: int, length: int, mask: bytes | None = None) -> bytes:
    """The header of one unfragmented frame, with the shortest length form (5.2).

    `mask`: masking key of a client's frame (4 bytes); None for a server's.
    """
    first = 0x80 | opcode
    if mask is None:
        if length <= 125:
            return _TINY.pack(first, length)
        if length <= 0xFFFF:
            return _SHORT.pack(first, 126, length)
        return _LONG.pack(first, 127, length)
    if length <= 125:
        return _TINY_MASKED.pack(first, 0x80 | length, mask)
    if length <= 0xFFFF:
        return _SHORT_MASKED.pack(first, 0x80 | 126, length, mask)
    return _LONG_MASKED.pack(first, 0x80 | 127, length, mask)


def frame(opcode: int, payload: Data, mask: bytes | None = None) -> bytes:
    """One frame with its payload, masked with `mask`."""
    head = frame_header(opcode, len(payload), mask)
    if mask is None or mask == NO_MASK:
        return head + payload
    return head + xor(payload, mask)


def close_payload(code: int, reason: str = "") -> bytes:
    """The payload of a close frame (5.5.1); NO_STATUS gives an empty one."""
    if code == NO_STATUS:
        return b""
    return code.to_bytes(2, "big") + reason.encode()[: MAX_CONTROL - 2]


@lru_cache(maxsize=256)  # one table per key byte: 64 KiB when all are in use
def _table(byte: int) -> bytes:
    return bytes(value ^ byte for value in range(256))


def xor(data: Data, key: bytes, offset: int = 0) -> bytes:
    """Mask or unmask `data`, which starts `offset` bytes into its frame (5.3)."""
    if offset:
        turn = offset % 4
        key = key[turn:] + key[:turn]
    size = len(data)
    if size < _TRANSLATE_FROM:
        pad = (key * (size // 4 + 1))[:size]
        mixed = int.from_bytes(data, "little") ^ int.from_bytes(pad, "little")
        return mixed.to_bytes(size, "little")
    data = bytes(data)
    out = bytearray(size)
    for lane in range(4):
        out[lane::4] = data[lane::4].translate(_table(key[lane]))
    return bytes(out)


def parse_close(payload: bytes) -> tuple[int, str]:
    """Code and text of a close frame (5.5.1, 7.4). Raises WebSocketError on an invalid one."""
    if not payload:
        return NO_STATUS, ""
    code = int.from_bytes(payload[:2], "big")
    registered = code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014)
    if len(payload) == 1 or not (registered or 3000 <= code <= 4999):
        raise WebSocketError("invalid close code")
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        raise WebSocketError("invalid utf8 payload in close frame") from None


class Decoder:
    """Turns received bytes into events.

    Events are tuples `(opcode, payload)`: BINARY with a piece of the tunnel's byte stream (a view
    of the given data where possible), or CLOSE, PING, PONG with a whole control payload. An empty
    text message carries no data and gives TEXT: this program sends it as its greeting and as a
    half-close. `masked`: whether the peer must mask its frames (True on a server, 5.1).
    """

    __slots__ = ("_control", "_head", "_key", "_left", "_masked", "_offset", "_opcode", "_open")

    def __init__(self, *, masked: bool) -> None:
        self._masked = masked
        self._head = b""  # an incomplete header
        self._opcode = 0
        self._left = 0  # payload bytes of the current frame still to come
        self._key = NO_MASK
        self._offset = 0  # payload bytes of the current frame already seen
        self._control = b""  # an incomplete control payload
        self._open = False  # inside a fragmented message

    @property
    def at_boundary(self) -> bool:
        """Whether the bytes received so far end at a frame boundary."""
        return not (self._head or self._left)

    def whole_message(self, data: Data) -> Data | None:
        """The payload if `data` is one short binary message; otherwise None, and `feed` decodes it.

        Most small messages arrive so, and this takes a quarter of the time of `feed`.
        """
        size = len(data)
        if self._left or self._head or self._open or size < 8 or data[0] != _WHOLE:
            return None
        length = data[1] ^ 0x80 if self._masked else data[1]
        at = 2
        if length == 126:
            length = data[2] << 8 | data[3]
            at = 4
        elif length > MAX_CONTROL:  # the longest form, or a wrong mask flag
            return None
        key = NO_MASK
        if self._masked:
            key = bytes(data[at : at + 4])
            at += 4
        if size - at != length or not length:
            return None
        return data[at:] if key == NO_MASK else xor(data[at:], key)

    def feed(self, data: Data) -> list[tuple[int, Data]]:
        """Decode received bytes and return their events.

        Raises WebSocketError, with the preceding events, if the peer breaks the protocol. Do not
        use the decoder after it.
        """
        events: list[tuple[int, Data]] = []
        if self._head:
            data = self._head + data
            self._head = b""
        view = memoryview(data)
        at, end = 0, len(view)
        try:
            while at < end:
                left = self._left
                if left:
                    piece: Data = view[at : at + left]
                    at += left
                    self._left = at - end if at > end else 0
                    if self._key != NO_MASK:
                        piece = xor(piece, self._key, self._offset)
                        self._offset += len(piece)
                    if self._opcode <= BINARY:
                        events.append((BINARY, piece))
                    else:
                        self._control += piece
                        if not self._left:
                            self._end_control(events)
                    if at >= end:
                        break
                size = self._parse_header(view, at, end)
                if not size:
                    self._head = bytes(view[at:])
                    break
                at += size
                if not self._left:
                    if self._opcode > BINARY:
                        self._end_control(events)
                    elif self._opcode == TEXT and not self._open:
                        events.append((TEXT, b""))
        except WebSocketError as error:
            error.events = events
            raise
        return events

    def _end_control(self, events: list[tuple[int, Data]]) -> None:
        events.append((self._opcode, self._control))
        self._control = b""

    def _parse_header(self, data: memoryview, at: int, end: int) -> int:
        """Begin the frame at `at` and return the size of its header; 0 if it is incomplete."""
        first = data[at]
        if first != _WHOLE or self._open:
            self._check(first)
        if end - at < 2:
            return 0
        length = data[at + 1]
        size = 2
        if length & 0x80:
            length &= 0x7F
            size = 6
        if (size > 2) is not self._masked:
            raise WebSocketError("incorrect mask flag")
        if length > MAX_CONTROL:
            if first & 0x08:
                raise WebSocketError("control frame too long")
            size += 2 if length == 126 else 8
        if end - at < size:
            return 0
        if length == 126:
            (length,) = _LENGTH16.unpack_from(data, at + 2)
        elif length == 127:
            (length,) = _LENGTH64.unpack_from(data, at + 2)
            if length >= _MAX_LENGTH:
                raise WebSocketError("frame length out of range")
        if self._masked:
            (self._key,) = _KEY.unpack_from(data, at + size - 4)
            self._offset = 0
        self._opcode = opcode = first & 0x0F
        self._left = length
        if first != _WHOLE and opcode < CLOSE:
            self._open = not first & 0x80
        return size

    def _check(self, first: int) -> None:
        """Raise WebSocketError if a frame must not start with this byte here."""
        opcode = first & 0x0F
        final = first & 0x80
        if first & 0x70:
            raise WebSocketError("unexpected reserved bits")
        if opcode >= CLOSE:
            if opcode > PONG:
                raise WebSocketError(f"unknown opcode {opcode}")
            if not final:
                raise WebSocketError("control frame not final")
        elif opcode > BINARY:
            raise WebSocketError(f"unknown opcode {opcode}")
        elif (opcode == CONTINUATION) != self._open:
            raise WebSocketError(
                "message start before final frame" if self._open else "continuation without start"
            )


class MessageDecoder(Decoder):
    """A decoder for a peer whose messages matter.

    Attributes:
        frames: frames of messages that have begun since the owner emptied it: payload bytes still
            to come when they begin, and whether the message ends with the frame.

    Args:
        limit: payload bytes of a message; a longer one is an error.
    """

    __slots__ = ("_limit", "_size", "frames")

    def __init__(self, *, masked: bool, limit: int) -> None:
        super().__init__(masked=masked)
        self._limit = limit
        self._size = 0  # of the current message, as far as its frames have begun
        self.frames: list[tuple[int, bool]] = []

    def whole_message(self, data: Data) -> Data | None:
        return None  # `feed` notes the frames

    def _parse_header(self, data: memoryview, at: int, end: int) -> int:
        size = super()._parse_header(data, at, end)
        if size and self._opcode <= BINARY:
            self._size += self._left
            if self._size > self._limit:
                raise WebSocketError(f"message of more than {self._limit} bytes")
            self.frames.append((self._left, not self._open))
            if not self._open:
                self._size = 0
        return size
