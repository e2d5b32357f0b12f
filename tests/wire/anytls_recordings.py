"""Recorded exchanges of AnyTLS: their connections, frames and packets."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from mtt.wire.anytls import (
    ALERT,
    FIN,
    HEADER_SIZE,
    PSH,
    SERVER_SETTINGS,
    SETTINGS,
    SYN,
    SYNACK,
    UPDATE_PADDING,
    WASTE,
    Decoder,
    PreambleReader,
    frame,
)
from mtt.wire.padding import CHECK, Scheme
from tests.support.vectors import Events, names, stream_of, vector

NAMES = names("*anytls*")
# Recordings of the real client; the others were made by hand, one record with everything.
PADDED = [name for name in NAMES if name[0] in "efgh"]

COMMANDS = {
    "Waste": WASTE, "SYN": SYN, "PSH": PSH, "FIN": FIN, "Settings": SETTINGS, "Alert": ALERT,
    "UpdatePaddingScheme": UPDATE_PADDING, "SYNACK": SYNACK, "ServerSettings": SERVER_SETTINGS,
}  # fmt: skip

# The scheme of the recording "h", as its description has it.
EDGE_CASES = Scheme.parse(
    b"stop=10\n0=7-7\n1=300-300\n2=20-20\n3=13-13\n4=c,30-30,c,99-99\n5=0-10,x-y,25-25\n"
    b"6=22-22\n8=5-5,5-5,5-5,c,50-50\n9=10-10,40-40,12-12"
)

Event = tuple[int, int, bytes]


def connections(name: str) -> list[Events]:
    """The events of each TLS connection of a recording."""
    events = vector(name)
    numbers = sorted({event.get("conn", 0) for event in events})
    return [[event for event in events if event.get("conn", 0) == n] for n in numbers]


CONNECTIONS = [
    pytest.param(events, id=f"{name}-{number}")
    for name in NAMES
    for number, events in enumerate(connections(name))
]
PADDED_CONNECTIONS = [
    pytest.param(events, id=f"{name}-{number}")
    for name in PADDED
    for number, events in enumerate(connections(name))
]


def frames_of(events: Events, direction: str) -> bytes:
    """What was sent in one direction, without the preamble."""
    stream = stream_of(events, direction)
    if direction == "c2s":
        reader = PreambleReader()
        reader.feed(stream)
        assert reader.rest is not None
        return reader.rest
    return stream


def decode(data: bytes, *, size: int = 0) -> list[Event]:
    """The events of `data`, fed in pieces of `size`, with the pieces of a frame put together."""
    decoder = Decoder()
    if not size:
        events = decoder.feed(data)
    else:
        events = []
        for at in range(0, len(data), size):
            events += decoder.feed(data[at : at + size])
    assert decoder.at_boundary
    return [(command, stream_id, bytes(payload)) for command, stream_id, payload in events]


def noted(events: Events, direction: str) -> list[tuple[int, int, int]]:
    """Command, stream and length of each frame, by the notes of the recording."""
    found = []
    for event in events:
        if event["dir"] == direction:
            for word, number, size in re.findall(
                r"\b([A-Za-z]+) sid=(\d+)(?: len=(\d+))?", event["note"]
            ):
                found.append((COMMANDS[word], int(number), int(size or 0)))
    return found


# Records: one write to TLS each.


def update() -> Scheme:
    """The scheme that the server sent in the recording "g"."""
    (raw,) = (
        payload
        for command, _, payload in decode(
            frames_of(connections("g-anytls-padding-update")[0], "s2c")
        )
        if command == UPDATE_PADDING
    )
    return Scheme.parse(raw, strict=True)


def packets_of(data: bytes) -> Iterator[bytes]:
    """What the client wrote to its session: settings, SYN and address at once, then each frame."""
    frames = [frame(*event) for event in decode(data)]
    yield b"".join(frames[:3])
    yield from frames[3:]


class Observed:
    """Draws the sizes that were drawn when the recording was made."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def expect(self, segments: tuple[tuple[int, int], ...], records: list[bytes]) -> None:
        """A packet of these `segments` comes; `records` are all that were still to be sent."""
        shaped = [segment for segment in segments if segment[0] != CHECK]
        self.sizes = []
        for number, (low, high) in enumerate(shaped):
            record = records[number] if number < len(records) else b""
            waste = record[:5] == bytes(5) and record == frame(WASTE, 0, record[7:])
            size = len(record) - HEADER_SIZE if waste else len(record)
            if low != high:
                # The reference drew sizes behind the last record as well; they are not recorded.
                self.sizes.append(size if low <= size <= high else low)

    def randrange(self, low: int, high: int) -> int:
        size = self.sizes.pop(0)
        assert low <= size < high
        return size
