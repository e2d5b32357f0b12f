"""Framing shared by the multiplexing protocols."""

from __future__ import annotations

from collections.abc import Callable

from mtt.wire.errors import WireError

Data = bytes | memoryview


class StreamError(WireError):
    """The peer does not speak the multiplexing protocol.

    Attributes:
        events: decoded from the same data before the error: command, stream id, payload.
    """

    events: list[tuple[int, int, Data]]


def framed(data: Data, most: int, header: Callable[[int], bytes]) -> bytes:
    """`data` as frames of at most `most` bytes, each after its `header(size)`, for one write."""
    size = len(data)
    if size <= most:
        return header(size) + data
    view = memoryview(data)
    full = header(most)
    pieces: list[Data] = []
    at = 0
    while size - at > most:
        pieces += (full, view[at : at + most])
        at += most
    pieces += (header(size - at), view[at:])
    return b"".join(pieces)
