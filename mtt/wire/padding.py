"""AnyTLS padding: how a client splits and pads its first packets.

A scheme is a text of `key=value` lines that the server sends to its clients:

    stop=8                      packets from number 8 on are left alone
    0=30-30                     padding of the preamble
    2=400-500,c,500-1000        sizes of the TLS records of packet 2

A size `a-b` is a random number from a to b - 1, or a if both are equal. `c` ends the packet if all
its data is sent. The reference silently skips anything else.

A packet is one write to the session, counted from 1; packet 0 is the preamble.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from mtt.wire.anytls import HASH_SIZE, HEADER_SIZE, WASTE, frame, integer
from mtt.wire.errors import WireError
from mtt.wire.frames import Data

# Returns a random integer from the first argument up to, but excluding, the second. Use
# `random.SystemRandom().randrange`: predictable sizes would be a fingerprint.
RandRange = Callable[[int, int], int]

CHECK = -1  # `c` among the sizes of a packet

# A TLS record holds 16384 bytes, and a record of waste alone adds a header of 7 bytes to its size.
# Beyond 65535 the reference would lose frame sync: the length of a frame has 16 bits.
MAX_SIZE = 16384 - HEADER_SIZE
# The Go server reads the preamble (hash, length, padding) in one read of 16384 bytes.
MAX_PADDING0 = 16384 - HASH_SIZE - 2

# Bounds on what a server can make its clients send and store. A packet costs no more than the
# largest frame, and a scheme MAX_LINES times that. Schemes in use have about 10 lines, 10 segments
# and 150 bytes.
MAX_SCHEME = 16384  # bytes
MAX_LINES = 256
MAX_SEGMENTS = 128  # per line
MAX_PACKET = 65535  # bytes, all sizes of a line together

_MAX_STOP = 0xFFFFFFFF  # a uint32 in the reference, which reads -1 as this

_EXAMPLES = "write it like stop=8, 0=30-30 or 2=400-500,c,500-1000"


class SchemeError(WireError):
    """An invalid scheme, or one that would break or flood a connection; `str()` names the line."""


def _quoted(text: str) -> str:
    """The operator's text, shortened to fit a line."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


@dataclass(frozen=True, slots=True)
class Scheme:
    """A padding scheme."""

    raw: bytes  # the text exactly as the server sent it; `md5` covers these bytes
    md5: str  # lower-case hexadecimal; client and server compare their schemes by it
    stop: int  # the number of the first packet that is left alone
    # The segments of each packet: smallest and largest size, or CHECK twice.
    packets: dict[int, tuple[tuple[int, int], ...]]

    @classmethod
    def parse(cls, raw: bytes, *, strict: bool = False) -> Scheme:
        """Parse a scheme. Keys and sizes are ASCII; the rest need not be UTF-8.

        `strict`: reject what the reference skips, except empty lines and lines that begin with `#`:
        in the operator's own file it is a mistake. Schemes from a server are parsed without
        `strict`; if one is rejected, the previous scheme stays in use.

        Raises SchemeError if `stop` is missing, if a size or the scheme exceeds the limits above,
        or if the preamble has no size or one that a Go server does not accept.
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
        """Record sizes of one packet, CHECK where it may end; empty if it is left alone."""
        return [
            low if low == high else randrange(low, high + 1)
            for low, high in self.packets.get(packet, ())
        ]

    def padding0(self, randrange: RandRange) -> int:
        """Padding of a preamble, in bytes."""
        sizes = self.generate(0, randrange)
        return sizes[0] if sizes else 0


def _is_packet(key: str) -> bool:
    # Canonical decimals only: the reference does not find packet 7 under "07".
    return key.isascii() and key.isdigit() and len(key) <= 10 and str(int(key)) == key


def _check_line(number: int, line: str, key: str, values: dict[str, tuple[int, str]]) -> None:
    """Raise SchemeError on a line that a client would ignore."""
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
    # The upper end is exclusive (rand.Int in the reference).
    return (low, low) if low == high else (low, high - 1)


def _check_size(number: int, text: str, size: int, limit: int) -> None:
    if size > limit:
        raise SchemeError(f"line {number}: {_quoted(text)} is too large; {limit} bytes at most")


# The scheme that clients start with; no trailing newline.
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
    """Splits and pads the packets of one client session."""

    __slots__ = ("_packet", "_randrange", "active", "scheme")

    def __init__(self, scheme: Scheme, randrange: RandRange) -> None:
        self.scheme = scheme  # may be replaced at any time; the packet count continues
        self.active = True  # whether `write` still pads; once False, it stays False
        self._packet = 0
        self._randrange = randrange

    def write(self, data: Data) -> list[Data]:
        """Split one packet into records; write each to TLS separately.

        `data`: whole frames, not empty. The first packet is Settings, SYN and the first PSH
        together; after that, each frame is a packet.
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
                # Without room for a waste header, the record stays short.
                if padding > 0:
                    data = b"".join((data, frame(WASTE, 0, bytes(padding))))
                records.append(data)
                data = b""
            else:
                records.append(frame(WASTE, 0, bytes(size)))
        if data:
            records.append(data)
        return records
