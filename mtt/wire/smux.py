"""Frames of smux version 1, the multiplexing protocol of github.com/xtaci/smux.

    u8 version = 1 | u8 command | u16 length | u32 stream id | payload (PSH only)

Little-endian. The protocol has no acknowledgement, no reset and no window: the receiver applies
flow control by not reading the connection. The decoder returns payload as it arrives, so a frame
may come in pieces, and only an incomplete header is buffered.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from mtt.wire.foreign import LONGEST, tunnel_advice
from mtt.wire.frames import Data, StreamError, framed

VERSION = 1
SYN, FIN, PSH, NOP = 0, 1, 2, 3

# The frame size that the Go peers are configured to send. They accept up to MAX_LENGTH.
MAX_PAYLOAD = 16384
MAX_LENGTH = 0xFFFF

_HEADER = Struct("<BBHI")
HEADER_SIZE = _HEADER.size


class SmuxError(StreamError):
    """The peer does not speak smux version 1."""


def header(command: int, stream_id: int, size: int = 0) -> bytes:
    """The header of a frame with `size` bytes of payload, at most MAX_LENGTH."""
    return _HEADER.pack(VERSION, command, size, stream_id)


def data_header(stream_id: int, size: int) -> bytes:
    """The header of a frame with `size` bytes of a stream's data."""
    return _HEADER.pack(VERSION, PSH, size, stream_id)


def opening(stream_id: int) -> bytes:
    """The frame that opens a stream."""
    return _HEADER.pack(VERSION, SYN, 0, stream_id)


def frame(command: int, stream_id: int, payload: Data = b"") -> bytes:
    """One frame; `payload` has at most MAX_LENGTH bytes."""
    return header(command, stream_id, len(payload)) + payload


def data_frames(stream_id: int, data: Data, most: int = MAX_PAYLOAD) -> bytes:
    """`data` as PSH frames of at most `most` bytes (up to MAX_LENGTH), for one write."""
    return framed(data, most, lambda size: header(PSH, stream_id, size))


class Decoder:
    """Turns received bytes into events `(command, stream id, payload)`.

    PSH events carry a piece of the stream's data, as a view of the bytes fed. The other commands
    and empty PSH frames carry b"".

    Args:
        advice: returns the fix for a peer that sends other bytes, for the error.
    """

    __slots__ = ("_advice", "_head", "_id", "_left")

    def __init__(self, advice: Callable[[bytes], str] = tunnel_advice) -> None:
        self._advice = advice
        self._head = b""  # an incomplete header
        self._id = 0  # stream of the current PSH frame
        self._left = 0  # payload bytes of that frame still to come

    @property
    def at_boundary(self) -> bool:
        """Whether the bytes received so far end at a frame boundary."""
        return not (self._head or self._left)

    def feed(self, data: Data) -> list[tuple[int, int, Data]]:
        """Decode received bytes and return their events.

        Raises SmuxError on a wrong version, an unknown command, or a length in a frame that has no
        payload (later smux versions refuse that too; the one in the Go peers loses frame sync).
        The error carries the preceding events; do not use the decoder after it.
        """
        if self._head:
            data = self._head + data
            self._head = b""
        view = memoryview(data)
        events: list[tuple[int, int, Data]] = []
        at, end = 0, len(view)
        try:
            while at < end:
                left = self._left
                if left:
                    events.append((PSH, self._id, view[at : at + left]))
                    at += left
                    self._left = at - end if at > end else 0
                    if at >= end:
                        break
                if end - at < HEADER_SIZE:
                    self._head = bytes(view[at:])
                    break
                version, command, length, stream_id = _HEADER.unpack_from(view, at)
                at += HEADER_SIZE
                if version != VERSION:
                    first = bytes(view[at - HEADER_SIZE : at - HEADER_SIZE + LONGEST])
                    text = f"version {version} instead of {VERSION}: {self._advice(first)}"
                    raise SmuxError(text)
                if command == PSH:
                    self._id = stream_id
                    self._left = length
                    if not length:
                        events.append((PSH, stream_id, b""))
                elif command > NOP:
                    raise SmuxError(f"unknown command {command}")
                elif length:
                    raise SmuxError(f"command {command} with a payload")
                else:
                    events.append((command, stream_id, b""))
        except SmuxError as error:
            error.events = events
            raise
        return events
