"""Ways to cut a stream of bytes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise


def bytewise(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 1] for at in range(len(data)))


def split(data: bytes, rng: random.Random) -> Iterator[bytes]:
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(1, 12)))
    return (data[start:end] for start, end in pairwise([0, *cuts, len(data)]))
