"""What decoders of multiplexing protocols have in common, in any pieces of their input."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import pytest

from tests.wire.pieces import bytewise, joined, split

Event = tuple[int, int, bytes]


class Decoder(Protocol):
    _head: bytes

    @property
    def at_boundary(self) -> bool: ...
    def feed(self, data: bytes) -> list[tuple[int, int, Any]]: ...


def decode_all(decoder: Decoder, pieces: Iterable[bytes], data: int) -> list[Event]:
    """The events of whole frames, with neighbouring `data` frames of a stream put together."""
    events = [event for piece in pieces for event in decoder.feed(piece)]
    assert decoder.at_boundary
    return joined(events, data)


def check_cut_anywhere(
    decode: Callable[[Iterable[bytes]], list[Event]],
    mixed_stream: Callable[[random.Random], tuple[bytes, list[Event]]],
) -> None:
    rng = random.Random(21)
    for _ in range(60):
        stream, events = mixed_stream(rng)
        assert decode([stream]) == events
        assert decode(split(stream, rng)) == events
        if len(stream) < 2000:
            assert decode(bytewise(stream)) == events


def check_refused(
    make: Callable[[], Decoder], data: bytes, error: type[Exception], words: str
) -> None:
    """The decoder refuses `data`, however it is cut, with an error that matches `words`."""
    for pieces in ([data], list(bytewise(data)), [data + b"trailing"]):
        decoder = make()
        with pytest.raises(error, match=words):
            for piece in pieces:
                decoder.feed(piece)


def check_noise(
    make: Callable[[], Decoder],
    noise_of: Callable[[random.Random], bytes],
    error: type[Exception],
    check: Callable[[int, int, bytes], None],
    *,
    head: int,
) -> None:
    """Noise gives events that `check` accepts, or an error with a text; both must occur.

    `head`: the decoder keeps fewer bytes of an incomplete frame than this.
    """
    rng = random.Random(23)
    refused = accepted = 0
    for _ in range(2500):
        noise = noise_of(rng)
        decoder = make()
        fed = given = 0
        try:
            for piece in split(noise, rng):
                fed += len(piece)
                for command, stream_id, payload in decoder.feed(piece):
                    check(command, stream_id, payload)
                    given += len(payload)
                assert len(decoder._head) < head
                assert given <= fed
            accepted += 1
        except error as failure:
            assert str(failure)
            refused += 1
    assert refused > 300
    assert accepted > 300
