"""Frames, settings and the preamble of AnyTLS, versions 1 and 2 (github.com/anytls/anytls-go).

    preamble   SHA-256 of the password | u16 length | so many zeros
    frame      u8 command | u32 stream id | u16 length | data

Big-endian. The client sends the preamble, then frames; the server answers with frames alone.
There is no window: flow control is the receiver that stops reading the connection.

The reference loses its place when a command carries data that should not, or is unknown; the
decoder here skips them, as the length says. So any bytes are frames, and decoding cannot fail.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from struct import Struct

from mtt.outcome import Outcome
from mtt.wire.frames import Data, framed

VERSION = 2

WASTE, SYN, PSH, FIN, SETTINGS, ALERT, UPDATE_PADDING = range(7)
SYNACK, HEART_REQUEST, HEART_RESPONSE, SERVER_SETTINGS = range(7, 11)  # version 2

# Data in one PSH frame that we send. The length field allows 65535, but no peer has ever seen
# more than the 32 KiB that the reference copies at once.
MAX_PAYLOAD = 32768
MAX_LENGTH = 0xFFFF  # of the data of any frame

_HEADER = Struct(">BIH")
HEADER_SIZE = _HEADER.size

_WHOLE = frozenset((SETTINGS, ALERT, UPDATE_PADDING, SYNACK, SERVER_SETTINGS))
_BARE = frozenset((SYN, FIN, HEART_REQUEST, HEART_RESPONSE))

# What the reference says, in an Alert, to a client that opens a stream first.
NO_SETTINGS = b"client did not send its settings"

# Keys kept of a peer's settings: three are known, and 64 KiB could hold 20 thousand.
MAX_SETTINGS = 32

HASH_SIZE = 32
_PREAMBLE_SIZE = HASH_SIZE + 2

# What a SYNACK of ours says of a destination. It is fixed: what the system or the resolver says is
# nobody's business outside.
_SYNACKS = {
    Outcome.SUCCEEDED: b"",
    Outcome.GENERAL_FAILURE: b"the connection failed",
    Outcome.NOT_ALLOWED: b"not allowed",
    Outcome.NETWORK_UNREACHABLE: b"network unreachable",
    Outcome.HOST_UNREACHABLE: b"host unreachable",
    Outcome.CONNECTION_REFUSED: b"connection refused",
    Outcome.TIMED_OUT: b"timed out",
}
# What is in those of others: Go's texts by way of syscall, net and context, strerror() texts, and
# ours.
_WORDS = (
    ("connection refused", Outcome.CONNECTION_REFUSED),
    ("network is unreachable", Outcome.NETWORK_UNREACHABLE),
    ("network unreachable", Outcome.NETWORK_UNREACHABLE),
    ("no route to host", Outcome.HOST_UNREACHABLE),
    ("host is unreachable", Outcome.HOST_UNREACHABLE),
    ("host is down", Outcome.HOST_UNREACHABLE),
    ("host unreachable", Outcome.HOST_UNREACHABLE),
    ("no such host", Outcome.HOST_UNREACHABLE),  # a name that does not resolve
    ("not allowed", Outcome.NOT_ALLOWED),
    ("not permitted", Outcome.NOT_ALLOWED),
    ("permission denied", Outcome.NOT_ALLOWED),
    ("timed out", Outcome.TIMED_OUT),
    ("timeout", Outcome.TIMED_OUT),
    ("deadline exceeded", Outcome.TIMED_OUT),
)

_INTEGER = re.compile(r"[+-]?[0-9]+", re.ASCII)
_SHOWN = 200  # characters of a peer's text in a log line


def header(command: int, stream_id: int, size: int = 0) -> bytes:
    """The header of a frame with `size` bytes, at most MAX_LENGTH, behind it."""
    return _HEADER.pack(command, stream_id, size)


def frame(command: int, stream_id: int, payload: Data = b"") -> bytes:
    """One frame. Raises ValueError for a payload of more than MAX_LENGTH bytes."""
    size = len(payload)
    if size > MAX_LENGTH:
        raise ValueError(f"a frame holds {MAX_LENGTH} bytes, not {size}")
    return header(command, stream_id, size) + payload


def data_frames(stream_id: int, data: Data, most: int = MAX_PAYLOAD) -> bytes:
    """`data` as PSH frames with `most` bytes at most (up to MAX_LENGTH), ready for one write."""
    return framed(data, most, lambda size: header(PSH, stream_id, size))


class Decoder:
    """Turns received bytes into events `(command, stream id, payload)`.

    PSH events carry a piece of the stream's data as it arrives, a view of what was fed; an empty
    PSH frame gives b"". Frames up to `whole` bytes come in one piece, unless `release` asks for
    the part that has arrived. SETTINGS, ALERT, UPDATE_PADDING, SYNACK and SERVER_SETTINGS carry
    their whole data as bytes; SYN, FIN and the heartbeats carry b"", and whatever the peer put
    into them is skipped. Waste and unknown commands give nothing.

    It holds one unfinished frame at most, that is MAX_LENGTH bytes.

    Args:
        whole: size of the data of a PSH frame from 0 to MAX_LENGTH.
    """

    __slots__ = ("_command", "_head", "_id", "_left", "_passed", "_whole", "_whole_limit")

    def __init__(self, *, whole: int = 0) -> None:
        self._whole_limit = whole
        self._passed = False  # a piece of the current PSH frame has been given
        self._head = b""  # an unfinished header
        self._command = WASTE  # of the current frame
        self._id = 0
        self._left = 0  # data bytes of it still to come
        self._whole = bytearray()  # its data so far, if it is handed out whole

    @property
    def at_boundary(self) -> bool:
        """Whether everything received so far made whole frames."""
        return not (self._head or self._left)

    @property
    def held(self) -> int:
        """Bytes of an unfinished PSH frame that are not given yet."""
        return len(self._whole) if self._command == PSH else 0

    def release(self) -> tuple[int, Data]:
        """Give them, if there are any: stream and data. The rest of the frame comes in pieces."""
        held, self._whole = bytes(self._whole), bytearray()
        self._passed = True
        return self._id, held

    def feed(self, data: Data) -> list[tuple[int, int, Data]]:
        """Take what was received and return the events in it."""
        view = memoryview(data)
        events: list[tuple[int, int, Data]] = []
        at, end = 0, len(view)
        if self._head:
            at = HEADER_SIZE - len(self._head)
            self._head += bytes(view[:at])
            if len(self._head) < HEADER_SIZE:
                return events
            self._command, self._id, self._left = _HEADER.unpack(self._head)
            self._head = b""
            self._begin(events)
        while True:
            if self._left:
                take = min(self._left, end - at)
                if not take:
                    return events
                if self._command == PSH:
                    piece = view[at : at + take]
                    if self._whole:
                        self._whole += piece
                        if take == self._left:
                            events.append((PSH, self._id, bytes(self._whole)))
                            self._whole = bytearray()
                    elif take == self._left:
                        events.append((PSH, self._id, piece))
                        self._passed = False
                    elif self._passed or self._left > self._whole_limit:
                        events.append((PSH, self._id, piece))
                        self._passed = True
                    else:
                        self._whole += piece
                elif self._command in _WHOLE:
                    self._whole += view[at : at + take]
                    if take == self._left:
                        events.append((self._command, self._id, bytes(self._whole)))
                        self._whole = bytearray()
                at += take
                self._left -= take
            if end - at < HEADER_SIZE:
                self._head = bytes(view[at:])
                return events
            self._command, self._id, self._left = _HEADER.unpack_from(view, at)
            at += HEADER_SIZE
            if not (self._left and self._command == PSH):
                self._begin(events)

    def _begin(self, events: list[tuple[int, int, Data]]) -> None:
        """Add what there is to say of a frame before its data: all, if it has none."""
        command = self._command
        if command in _BARE or (not self._left and (command == PSH or command in _WHOLE)):
            events.append((command, self._id, b""))


# Settings: lines `key=value`.


def encode_settings(settings: Mapping[str, str]) -> bytes:
    """The data of a Settings or ServerSettings frame, in the order given.

    Raises ValueError for a key or value that would be read as something else.
    """
    for key, value in settings.items():
        if "=" in key or "\n" in key or "\n" in value:
            raise ValueError(f"settings cannot hold {key!r}")
    return "\n".join(f"{key}={value}" for key, value in settings.items()).encode()


def client_settings(client: str, padding_md5: str) -> bytes:
    """The data of the Settings frame that a client must send first.

    Args:
        client: program and version, such as `anytls/0.0.13`.
        padding_md5: `Scheme.md5` of the padding scheme in use.
    """
    return encode_settings({"v": str(VERSION), "client": client, "padding-md5": padding_md5})


def server_settings() -> bytes:
    """The data of the ServerSettings frame, for clients of version 2 and newer."""
    return encode_settings({"v": str(VERSION)})


def parse_settings(data: bytes) -> dict[str, str]:
    """The settings in the data of a frame: the first MAX_SETTINGS of them, last duplicate wins.

    Lines without `=` are ignored, bytes that are not UTF-8 replaced.
    """
    settings: dict[str, str] = {}
    for line in data.decode(errors="replace").split("\n"):
        key, equals, value = line.partition("=")
        if equals and (key in settings or len(settings) < MAX_SETTINGS):
            settings[key] = value
    return settings


def version_of(settings: Mapping[str, str]) -> int:
    """The version `v` that a peer announces; 0, that is version 1, if it is none."""
    return max(0, integer(settings.get("v", "")) or 0)


def integer(text: str) -> int | None:
    """`text` as Go's strconv reads a decimal integer of 64 bits, None if it is none."""
    if len(text) > 64 or not _INTEGER.fullmatch(text):
        return None
    number = int(text)
    return number if -(1 << 63) <= number < 1 << 63 else None


def synack(outcome: Outcome) -> bytes:
    """The data of a SYNACK frame."""
    return _SYNACKS[outcome]


def outcome_from_text(text: str) -> Outcome:
    """What best fits the text of a SYNACK for a destination that the server did not reach."""
    text = text.lower()
    return next((outcome for words, outcome in _WORDS if words in text), Outcome.GENERAL_FAILURE)


def shown(text: bytes) -> str:
    """What a peer says in an Alert or SYNACK, fit for a line of a log."""
    words = text[: 4 * _SHOWN].decode(errors="replace")
    words = "".join(c if c.isprintable() else " " for c in words)
    return words if len(words) <= _SHOWN else words[: _SHOWN - 3] + "..."


# The preamble.


def password_hash(password: str) -> bytes:
    """What a client shows instead of its password. Whoever knows it needs no password."""
    return hashlib.sha256(password.encode()).digest()


def preamble(hashed: bytes, padding: int) -> bytes:
    """What a client sends first. It must go out as one TLS record: the reference reads but once.

    Args:
        hashed: the `password_hash`.
        padding: bytes of padding, `Scheme.padding0`. More than MAX_LENGTH raise ValueError.
    """
    if not 0 <= padding <= MAX_LENGTH:
        raise ValueError(f"a preamble holds 0 to {MAX_LENGTH} bytes of padding, not {padding}")
    return hashed + padding.to_bytes(2, "big") + bytes(padding)


class PreambleReader:
    """Reads a preamble, in however many pieces, and keeps them for a fallback.

    After each `feed`, first look at `hash`: as soon as it is there, the user is known or it is
    none, whatever follows. Only then `rest` counts.

    There is no telling earlier whether it will be a user's: comparing what is there with the
    beginnings of the users' hashes would, by when the server answers, give them away byte by
    byte, and a hash is as good as a password.

    Without a hash it holds less than HASH_SIZE bytes; with one, the preamble (at most 34 + 65535
    bytes) and what came with its last piece.
    """

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: Data) -> None:
        """Take what was received."""
        self._data += data

    @property
    def received(self) -> bytes:
        """Everything so far, as a fallback must get it."""
        return bytes(self._data)

    @property
    def hash(self) -> bytes | None:
        """What should be a `password_hash`, None as long as it is incomplete."""
        return bytes(self._data[:HASH_SIZE]) if len(self._data) >= HASH_SIZE else None

    @property
    def rest(self) -> bytes | None:
        """The frames behind the preamble, None as long as the preamble is incomplete."""
        if len(self._data) < _PREAMBLE_SIZE:
            return None
        size = _PREAMBLE_SIZE + int.from_bytes(self._data[HASH_SIZE:_PREAMBLE_SIZE], "big")
        return bytes(self._data[size:]) if len(self._data) >= size else None
