"""Ways to cut a stream of bytes, and to put the pieces of decoded data together."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any


def bytewise(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 1] for at in range(len(data)))


def split(data: bytes, rng: random.Random) -> Iterator[bytes]:
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(1, 12)))
    return (data[start:end] for start, end in pairwise([0, *cuts, len(data)]))


def joined(events: Iterable[tuple[int, int, Any]], data: int) -> list[tuple[int, int, bytes]]:
    """`events` of sessions, with neighbouring `data` frames of one stream put together."""
    out: list[tuple[int, int, bytes]] = []
    for command, stream_id, payload in events:
        before = out[-1] if out else None
        if command == data and payload and before and before[:2] == (data, stream_id) and before[2]:
            out[-1] = data, stream_id, before[2] + bytes(payload)
        else:
            out.append((command, stream_id, bytes(payload)))
    return out
