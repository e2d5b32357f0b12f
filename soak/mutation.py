"""Input for parsers and ports: what they understand, and that with some things wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple


class Parser(NamedTuple):
    """`feed` takes bytes and raises nothing but `errors`."""

    feed: Callable[[bytes], Any]
    samples: tuple[bytes, ...]
    errors: tuple[type[Exception], ...]


def text(data: bytes) -> str:
    """As a command line is decoded."""
    return data.decode("utf-8", "surrogateescape")


def mutated(rng: random.Random, sample: bytes) -> bytes:
    """`sample` with some things wrong; now and then something quite different."""
    if rng.random() < 0.1:
        return rng.randbytes(rng.randrange(400))
    data = bytearray(sample)
    for _ in range(rng.choice((0, 1, 1, 2, 5, 20))):
        at = rng.randrange(len(data) + 1)
        size = rng.choice((0, 1, 1, 2, 4, 50))
        match rng.randrange(5):
            case 0:
                data[at : at + size] = rng.randbytes(size)
            case 1:
                del data[at : at + size]
            case 2:
                data[at:at] = bytes(data[at : at + size]) * rng.choice((1, 2, 100))
            case 3:
                data[at : at + 1] = bytes([rng.choice(b'\0\r\n\t ;,:=%\\"[]{}\x7f\x80\xff')])
            case _:
                if at < len(data):
                    data[at] ^= 1 << rng.randrange(8)
    if rng.random() < 0.2:
        del data[rng.randrange(len(data) + 1) :]
    return bytes(data)
