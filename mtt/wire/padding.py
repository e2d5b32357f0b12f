"""Padding of AnyTLS: how a client's first packets are cut and filled up.

A scheme is a text that the server hands to its clients, lines of `key=value`:

    stop=8                      from the 8th packet on nothing is done
    0=30-30                     padding of the preamble
    2=400-500,c,500-1000        sizes of the TLS records of packet 2

A size `a-b` is drawn from a to b - 1, or is a if both are the same. `c` ends the packet if all of
it is sent. What else stands there the reference skips without a word.

A packet is one write to the session, counted from 1; packet 0 is the preamble.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from mtt.wire.anytls import HASH_SIZE, HEADER_SIZE, WASTE, frame, integer
from mtt.wire.errors import WireError
from mtt.wire.frames import Data

# Draws an integer: at least the first argument, less than the second.
# `random.SystemRandom().randrange` is meant; sizes that can be foretold would be a fingerprint.
RandRange = Callable[[int, int], int]

CHECK = -1  # `c` among the sizes of a packet

# A record of TLS holds 16384 bytes, and one of waste alone has a header of 7 on top of its size.
# Beyond 65535 the reference would lose its place: the length of a frame has 16 bits.
MAX_SIZE = 16384 - HEADER_SIZE
# The Go server reads the preamble, hash and length and padding, with one read of 16384 bytes.
MAX_PADDING0 = 16384 - HASH_SIZE - 2

# What a server can make its clients send and keep. A packet costs no more than a frame of the
# largest size does, and all of them together MAX_LINES times that; schemes in use have about
# 10 lines, 10 segments and 150 bytes.
MAX_SCHEME = 16384  # bytes
MAX_LINES = 256
MAX_SEGMENTS = 128  # of a line
MAX_PACKET = 65535  # bytes, all sizes of a line together

_MAX_STOP = 0xFFFFFFFF  # a uint32 in the reference, where -1 would be that

_EXAMPLES = "write it like stop=8, 0=30-30 or 2=400-500,c,500-1000"


class SchemeError(WireError):
    """A scheme that is none, or that would break or flood a connection; `str()` names the line."""


def _quoted(text: str) -> str:
    """What somebody wrote, as far as it fits into a line."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


@dataclass(frozen=True, slots=True)
class Scheme:
    """A padding scheme."""

    raw: bytes
    """The text, exactly as the server has it: `md5` is over these bytes."""
    md5: str
    """Lower-case hexadecimal MD5, by which client and server see whether they have the same."""
    stop: int
    """The number of the first packet that is left alone."""
    packets: dict[int, tuple[tuple[int, int], ...]]
    """For a packet its segments: smallest and largest size, or CHECK twice."""

    @classmethod
    def parse(cls, raw: bytes, *, strict: bool = False) -> Scheme:
        """Read a scheme.

        Args:
            raw: the text. UTF-8 is not required, only that what counts is ASCII.
            strict: what the reference skips is an error, unless it is an empty line or one that
                begins with `#`: for a file of our own, where it is a mistake. A scheme from a
                server is read without, and if it is refused, the one before stays.

        Raises SchemeError: there is no `stop`; a size or the scheme is beyond the limits above;
        the preamble would have no size, or one that a Go server does not take.
        """
        if len(raw) > MAX_SCHEME:
            raise SchemeError(f"a padding scheme has at most {MAX_SCHEME} bytes, not {len(raw)}")
        lines = raw.decode(errors="replace").split("\n")
        if len(lines) > MAX_LINES:
            raise SchemeError(f"a padding scheme has at most {MAX_LINES} lines, not {len(lines)}")
        values: dict[str, tuple[int, str]] = {}
        for number, line in enumerate(lines, 1):
            key, equals, value = line.partition("=")
            if strict and line and not line.startswith("#"):
                _check_line(number, line, key, values)
            if equals:
                values[key] = number, value
        if "stop" not in values:
            raise SchemeError("a padding scheme needs a line like stop=8")
        packets = {
            int(key): _segments(number, int(key), value, strict)
            for key, (number, value) in values.items()
            if _is_packet(key)
        }
        md5 = hashlib.md5(raw, usedforsecurity=False).hexdigest()
        return cls(raw, md5, _stop(*values["stop"]), packets)

    def generate(self, packet: int, randrange: RandRange) -> list[int]:
        """The sizes of one packet's records, CHECK where it may end; none if it is left alone."""
        return [
            low if low == high else randrange(low, high + 1)
            for low, high in self.packets.get(packet, ())
        ]

    def padding0(self, randrange: RandRange) -> int:
        """Bytes of padding for a preamble."""
        sizes = self.generate(0, randrange)
        return sizes[0] if sizes else 0


def _is_packet(key: str) -> bool:
    # As decimal numbers are written: the reference would not find packet 7 under "07".
    return key.isascii() and key.isdigit() and len(key) <= 10 and str(int(key)) == key


def _check_line(number: int, line: str, key: str, values: dict[str, tuple[int, str]]) -> None:
    """Raise SchemeError on a line that nobody would look at."""
    if line.endswith("\r"):
        raise SchemeError(f"line {number} ends with CR and LF: save the file with LF alone")
    if key == line:
        raise SchemeError(f"line {number} is not key=value: {_quoted(line)}; {_EXAMPLES}")
    if key != "stop" and not _is_packet(key):
        raise SchemeError(
            f"line {number}: {_quoted(key)} is neither stop nor the number of a packet; {_EXAMPLES}"
        )
    if key in values:
        raise SchemeError(f"line {number}: {key} is in line {values[key][0]} already")


def _stop(number: int, value: str) -> int:
    stop = integer(value)
    if stop is None or not 0 <= stop <= _MAX_STOP:
        raise SchemeError(f"line {number}: stop is a number, the first packet to leave alone, "
                          f"not {_quoted(value)}")  # fmt: skip
    return stop


def _segments(number: int, packet: int, value: str, strict: bool) -> tuple[tuple[int, int], ...]:
    segments: list[tuple[int, int]] = []
    for text in value.split(","):
        segment = _segment(text)
        if segment is not None:
            _check_size(number, text, segment[1], MAX_SIZE)
            segments.append(segment)
        elif strict:
            raise SchemeError(f"line {number}: {_quoted(text)} is neither a size from 1 on, like "
                              f"100-400 or 30-30, nor c")  # fmt: skip
    if len(segments) > MAX_SEGMENTS:
        raise SchemeError(f"line {number} has {len(segments)} segments; {MAX_SEGMENTS} at most")
    total = sum(high for _, high in segments if high != CHECK)
    if total > MAX_PACKET:
        raise SchemeError(f"line {number} makes up to {total} bytes; {MAX_PACKET} at most")
    if packet == 0 and segments:
        if segments[0][0] == CHECK:
            raise SchemeError(f"line {number}: packet 0, the preamble, begins with a size, not c")
        _check_size(number, value, segments[0][1], MAX_PADDING0)
    return tuple(segments)


def _segment(text: str) -> tuple[int, int] | None:
    """Smallest and largest size, CHECK twice for `c`, None for what the reference skips."""
    if text == "c":
        return CHECK, CHECK
    parts = text.split("-")
    if len(parts) != 2:
        return None
    first, second = integer(parts[0]), integer(parts[1])
    if first is None or second is None or min(first, second) <= 0:
        return None
    low, high = sorted((first, second))
    # The upper end does not belong to the range (rand.Int in the reference).
    return (low, low) if low == high else (low, high - 1)


def _check_size(number: int, text: str, size: int, limit: int) -> None:
    if size > limit:
        raise SchemeError(f"line {number}: {_quoted(text)} is too large; {limit} bytes at most")


# What clients begin with, without a newline at the end.
DEFAULT = Scheme.parse(
    b"stop=8\n"
    b"0=30-30\n"
    b"1=100-400\n"
    b"2=400-500,c,500-1000,c,500-1000,c,500-1000,c,500-1000\n"
    b"3=9-9,500-1000\n"
    b"4=500-1000\n"
    b"5=500-1000\n"
    b"6=500-1000\n"
    b"7=500-1000",
    strict=True,
)


class Padder:
    """Cuts and fills up the packets of one session of a client.

    Args:
        scheme: the one to begin with.
        randrange: the source of random sizes.
    """

    __slots__ = ("_packet", "_randrange", "active", "scheme")

    def __init__(self, scheme: Scheme, randrange: RandRange) -> None:
        self.scheme = scheme
        """May be replaced at any time; the count goes on."""
        self.active = True
        """Whether `write` has still something to do; once it has not, it never will again."""
        self._packet = 0
        self._randrange = randrange

    def write(self, data: Data) -> list[Data]:
        """One packet as records: each must become one write to TLS.

        Args:
            data: whole frames. The first packet is Settings, SYN and the first PSH together; then
                each frame is a packet. Must not be empty.
        """
        if not self.active:
            return [data]
        self._packet += 1
        if self._packet >= self.scheme.stop:
            self.active = False
            return [data]
        records: list[Data] = []
        for size in self.scheme.generate(self._packet, self._randrange):
            left = len(data)
            if size == CHECK:
                if not left:
                    break
            elif left > size:
                records.append(data[:size])
                data = data[size:]
            elif left:
                padding = size - left - HEADER_SIZE
                # With no room for a header, the record stays shorter than it should be.
                if padding > 0:
                    data = b"".join((data, frame(WASTE, 0, bytes(padding))))
                records.append(data)
                data = b""
            else:
                records.append(frame(WASTE, 0, bytes(size)))
        if data:
            records.append(data)
        return records
