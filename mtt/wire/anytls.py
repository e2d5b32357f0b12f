"""Frames, settings and the preamble of AnyTLS, versions 1 and 2 (github.com/anytls/anytls-go).

    preamble   SHA-256 of the password | u16 length | padding, zeros
    frame      u8 command | u32 stream id | u16 length | data

Big-endian. The client sends the preamble, then frames; the server sends frames only. The protocol
has no window: the receiver applies flow control by not reading the connection.

The reference implementation loses frame sync on unknown commands, and on data in commands that
carry none. This decoder skips such data by its length, so any bytes are valid frames and decoding
cannot fail.
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

# Data in one sent PSH frame. The length field allows 65535, but the reference never sends more than
# the 32 KiB that it copies at once, so larger frames are untested with peers.
MAX_PAYLOAD = 32768
MAX_LENGTH = 0xFFFF  # of the data of any frame

_HEADER = Struct(">BIH")
HEADER_SIZE = _HEADER.size

_WHOLE = frozenset((SETTINGS, ALERT, UPDATE_PADDING, SYNACK, SERVER_SETTINGS))
_BARE = frozenset((SYN, FIN, HEART_REQUEST, HEART_RESPONSE))

# The reference's Alert to a client that opens a stream before it sends settings.
NO_SETTINGS = b"client did not send its settings"

# Settings kept of a peer: three keys are known, and a frame of 64 KiB could hold 20 thousand.
MAX_SETTINGS = 32

HASH_SIZE = 32
_PREAMBLE_SIZE = HASH_SIZE + 2

# SYNACK texts about a destination. They are fixed: error texts of the system or the resolver would
# leak internals to clients.
_SYNACKS = {each: each.text.encode() for each in Outcome} | {Outcome.SUCCEEDED: b""}
# Phrases in other servers' SYNACK texts: those of Go's syscall, net and context, strerror() texts,
# and the ones above.
_PHRASES = (
    (Outcome.CONNECTION_REFUSED, "connection refused"),
    (Outcome.NETWORK_UNREACHABLE, "network is unreachable|network unreachable"),
    (Outcome.HOST_UNREACHABLE, "no route to host|host (is )?unreachable|host is down"),
    (Outcome.UNRESOLVABLE, "no such host"),
    (Outcome.NOT_ALLOWED, "not allowed|not permitted|permission denied"),
    (Outcome.TIMED_OUT, "timed out|timeout|deadline exceeded"),
    (Outcome.NO_AGENT, "no agent is connected"),
    (Outcome.OVERLOADED, "too many connections"),
)

_INTEGER = re.compile(r"[+-]?[0-9]+", re.ASCII)
_SHOWN = 200  # characters of a peer's text in a log line


def header(command: int, stream_id: int, size: int = 0) -> bytes:
    """The header of a frame with `size` bytes of data, at most MAX_LENGTH."""
    return _HEADER.pack(command, stream_id, size)


def frame(command: int, stream_id: int, payload: Data = b"") -> bytes:
    """One frame. Raises ValueError for a payload of more than MAX_LENGTH bytes."""
    size = len(payload)
    if size > MAX_LENGTH:
        raise ValueError(f"a frame holds {MAX_LENGTH} bytes, not {size}")
    return header(command, stream_id, size) + payload


def data_frames(stream_id: int, data: Data, most: int = MAX_PAYLOAD) -> bytes:
    """`data` as PSH frames of at most `most` bytes (up to MAX_LENGTH), for one write."""
    return framed(data, most, lambda size: header(PSH, stream_id, size))


class Decoder:
    """Turns received bytes into events `(command, stream id, payload)`.

    PSH events carry the stream's data as it arrives, as views of the bytes fed; an empty PSH frame
    carries b"". PSH frames of up to `whole` bytes come in one piece, unless `release` asks for the
    part that has arrived. SETTINGS, ALERT, UPDATE_PADDING, SYNACK and SERVER_SETTINGS carry all
    their data as bytes. SYN, FIN and the heartbeats carry b""; data in them is skipped. Waste and
    unknown commands produce no event.

    Holds at most one incomplete frame, that is, MAX_LENGTH bytes. `whole` is at most that, too.
    """

    __slots__ = ("_command", "_head", "_id", "_left", "_passed", "_whole", "_whole_limit")

    def __init__(self, *, whole: int = 0) -> None:
        self._whole_limit = whole
        self._passed = False  # part of the current PSH frame has been returned
        self._head = b""  # an incomplete header
        self._command = WASTE  # of the current frame
        self._id = 0
        self._left = 0  # data bytes of that frame still to come
        self._whole = bytearray()  # its data so far, if it is returned in one piece

    @property
    def at_boundary(self) -> bool:
        """Whether the bytes received so far end at a frame boundary."""
        return not (self._head or self._left)

    @property
    def held(self) -> int:
        """Bytes held back of an incomplete PSH frame."""
        return len(self._whole) if self._command == PSH else 0

    def release(self) -> tuple[int, Data]:
        """The held bytes: stream and data. The rest of the frame then comes in pieces."""
        held, self._whole = bytes(self._whole), bytearray()
        self._passed = True
        return self._id, held

    def feed(self, data: Data) -> list[tuple[int, int, Data]]:
        """Decode received bytes and return their events."""
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
        while at < end:
            if self._left:
                piece = view[at : at + self._left]
                command, is_last = self._command, len(piece) == self._left
                if command == PSH and not self._whole and (
                    is_last or self._passed or self._left > self._whole_limit
                ):
                    events.append((PSH, self._id, piece))
                    self._passed = not is_last
                elif command == PSH or command in _WHOLE:
                    self._whole += piece
                    if is_last:
                        events.append((command, self._id, bytes(self._whole)))
                        self._whole = bytearray()
                at += len(piece)
                self._left -= len(piece)
                continue
            if end - at < HEADER_SIZE:
                self._head = bytes(view[at:])
                break
            self._command, self._id, self._left = _HEADER.unpack_from(view, at)
            at += HEADER_SIZE
            if not (self._left and self._command == PSH):
                self._begin(events)
        return events

    def _begin(self, events: list[tuple[int, int, Data]]) -> None:
        """Add the event of a frame that needs no data; frames with data follow later."""
        command = self._command
        if command in _BARE or (not self._left and (command == PSH or command in _WHOLE)):
            events.append((command, self._id, b""))


# Settings: lines `key=value`.


def encode_settings(settings: Mapping[str, str]) -> bytes:
    """The data of a Settings or ServerSettings frame, in the order given.

    Raises ValueError for a key or value that would not survive parsing.
    """
    for key, value in settings.items():
        if "=" in key or "\n" in key or "\n" in value:
            raise ValueError(f"settings cannot hold {key!r}")
    return "\n".join(f"{key}={value}" for key, value in settings.items()).encode()


def client_settings(client: str, padding_md5: str) -> bytes:
    """The data of the Settings frame that a client must send first.

    `client`: program and version, such as `anytls/0.0.13`. `padding_md5`: of the scheme in use.
    """
    return encode_settings({"v": str(VERSION), "client": client, "padding-md5": padding_md5})


def server_settings() -> bytes:
    """The data of the ServerSettings frame, for clients of version 2 and newer."""
    return encode_settings({"v": str(VERSION)})


def parse_settings(data: bytes) -> dict[str, str]:
    """The settings in a frame's data: the first MAX_SETTINGS keys; the last duplicate wins.

    Lines without `=` are ignored; invalid UTF-8 is replaced.
    """
    settings: dict[str, str] = {}
    for line in data.decode(errors="replace").split("\n"):
        key, equals, value = line.partition("=")
        if equals and (key in settings or len(settings) < MAX_SETTINGS):
            settings[key] = value
    return settings


def version_of(settings: Mapping[str, str]) -> int:
    """The version `v` that a peer announces; 0, meaning version 1, if it is missing or invalid."""
    return max(0, integer(settings.get("v", "")) or 0)


def integer(text: str) -> int | None:
    """`text` as a 64-bit decimal integer by the rules of Go's strconv; None if it is not one."""
    if len(text) > 64 or not _INTEGER.fullmatch(text):
        return None
    number = int(text)
    return number if -(1 << 63) <= number < 1 << 63 else None


def synack(outcome: Outcome) -> bytes:
    """The data of a SYNACK frame."""
    return _SYNACKS[outcome]


def outcome_from_text(text: str) -> Outcome:
    """The outcome that best matches a SYNACK text about a failed destination."""
    found = (outcome for outcome, phrases in _PHRASES if re.search(phrases, text, re.IGNORECASE))
    return next(found, Outcome.GENERAL_FAILURE)


def shown(text: bytes) -> str:
    """The text of an Alert or SYNACK, printable and short enough for a log line."""
    words = text[: 4 * _SHOWN].decode(errors="replace")
    words = "".join(c if c.isprintable() else " " for c in words)
    return words if len(words) <= _SHOWN else words[: _SHOWN - 3] + "..."


# The preamble.


def password_hash(password: str) -> bytes:
    """The hash that a client sends instead of its password, and just as secret."""
    return hashlib.sha256(password.encode()).digest()


def preamble(hashed: bytes, padding: int) -> bytes:
    """The client's first bytes. Send them in one TLS record: the reference reads only once.

    `hashed`: the `password_hash`. `padding`: bytes of padding, see `Scheme.padding0`; more than
    MAX_LENGTH raise ValueError.
    """
    if not 0 <= padding <= MAX_LENGTH:
        raise ValueError(f"a preamble holds 0 to {MAX_LENGTH} bytes of padding, not {padding}")
    return hashed + padding.to_bytes(2, "big") + bytes(padding)


class PreambleReader:
    """Reads a preamble in pieces of any size and keeps them for the fallback site.

    After each `feed`, check `hash` first: once it is set, it decides whether the client has a
    password, whatever follows. Use `rest` only after that.

    The hash is never compared before it is complete. Comparing a prefix with the users' hashes
    would reveal them byte by byte through the time of the server's answer, and a hash is as good
    as a password.

    Without a hash this holds less than HASH_SIZE bytes; with one, the preamble (at most 34 + 65535
    bytes) and the bytes received along with its end.
    """

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: Data) -> None:
        """Add received bytes."""
        self._data += data

    @property
    def received(self) -> bytes:
        """All bytes so far, for the fallback site."""
        return bytes(self._data)

    @property
    def hash(self) -> bytes | None:
        """The received `password_hash`, unverified; None while it is incomplete."""
        return bytes(self._data[:HASH_SIZE]) if len(self._data) >= HASH_SIZE else None

    @property
    def rest(self) -> bytes | None:
        """The frames after the preamble; None while the preamble is incomplete."""
        if len(self._data) < _PREAMBLE_SIZE:
            return None
        size = _PREAMBLE_SIZE + int.from_bytes(self._data[HASH_SIZE:_PREAMBLE_SIZE], "big")
        return bytes(self._data[size:]) if len(self._data) >= size else None
