"""Frames of Mux.Cool, the multiplexing protocol of V2Ray, Xray and their shadowsocks plugins.

    u16 size of the metadata | metadata | with option DATA: u16 size | data

    metadata: u16 stream id | u8 status | u8 options
              status NEW only: u8 network | u16 port | u8 address type | address

Big-endian. As recorded with v2ray-plugin 1.3.1: the client numbers its streams 1, 2, 3. NEW comes
with the first data, or alone after 100 ms; its destination is always 127.0.0.1:0, because the
server decides. END ends both directions, and the other side answers with END. END with option ERROR
means a failure. There is no window: the receiver applies flow control by not reading.

The decoder returns data as it arrives, so a frame may come in pieces, and only incomplete metadata
is buffered.
"""

from __future__ import annotations

from struct import Struct

from mtt.wire.frames import Data, StreamError, framed

NEW, KEEP, END, KEEP_ALIVE = 1, 2, 3, 4
# Only in events of the decoder: END with option ERROR; NEW for another network than TCP.
RESET, NEW_OTHER = 5, 6

OPTION_DATA, OPTION_ERROR = 1, 2
TCP, UDP = 1, 2

# The data of one frame that v2ray-plugin sends. It accepts up to MAX_LENGTH, as measured.
MAX_PAYLOAD = 8192
MAX_LENGTH = 0xFFFF
LAST_ID = 0xFFFF
# V2Ray refuses longer metadata. The longest that it sends has 265 bytes.
MAX_METADATA = 512
MIN_METADATA = 4

# Metadata up to the options, with its size; the same and the size of the data.
_METADATA = Struct(">HHBB")
_WITH_DATA = Struct(">HHBBH")
HEADER_SIZE = _WITH_DATA.size
# TCP to 127.0.0.1:0, as v2ray-plugin names it.
_DESTINATION = b"\1\0\0\1\x7f\0\0\1"
_ADDRESS_SIZES = {1: 4, 3: 16}
_DOMAIN = 2

# Where the metadata's network is in a NEW frame, its address type, and its address.
_NETWORK_AT, _TYPE_AT, _ADDRESS_AT = 6, 9, 10

_ANY = bytes(range(256))
# The beginning of a v2ray-plugin client's first frame, byte by byte: NEW with or without data. If
# several streams begin at the same time, any of them may be the first.
_PLUGIN_HEAD = (
    *(b"\0", b"\x0c", b"\0", _ANY, b"\1", b"\0\1"),
    *(bytes((byte,)) for byte in _DESTINATION),
)
# The same of sing-box as v2ray-plugin: NEW with the destination v1.mux.cool, V2Ray's name for mux.
_NAMED_HEAD = (
    *(b"\0", b"\x14", b"\0", _ANY, b"\1", b"\0\1", b"\1", _ANY, _ANY, b"\2", b"\x0b"),
    *(bytes((byte,)) for byte in b"v1.mux.cool"),
)
# Or END of a stream that was never opened, if the application closed at once. shadowsocks-rust does
# so to check whether its plugin is ready.
_END_HEAD = (b"\0", b"\4", b"\0", _ANY, b"\3", b"\0\2")
# The same of any client, with any TCP destination: the size has up to 9 bits.
_HEAD = (b"\0\1", _ANY, b"\0", _ANY, b"\1", b"\0\1", b"\1", _ANY, _ANY, b"\1\2\3", _ANY)


class MuxCoolError(StreamError):
    """The peer does not speak Mux.Cool."""


def new(stream_id: int) -> bytes:
    """The frame that opens a stream."""
    size = MIN_METADATA + len(_DESTINATION)
    return _METADATA.pack(size, stream_id, NEW, 0) + _DESTINATION


def header(stream_id: int, size: int) -> bytes:
    """The beginning of a KEEP frame with `size` bytes of data, at most MAX_LENGTH."""
    return _WITH_DATA.pack(MIN_METADATA, stream_id, KEEP, OPTION_DATA, size)


def data_frames(stream_id: int, data: Data, most: int = MAX_PAYLOAD) -> bytes:
    """`data` as KEEP frames of at most `most` bytes (up to MAX_LENGTH), for one write."""
    return framed(data, most, lambda size: header(stream_id, size))


def end(stream_id: int, *, error: bool = False) -> bytes:
    """The frame that ends a stream; `error`: by a failure."""
    return _METADATA.pack(MIN_METADATA, stream_id, END, OPTION_ERROR if error else 0)


def keep_alive(stream_id: int = 0) -> bytes:
    """A frame without effect; between two programs of this kind, its id stops a stream."""
    return _METADATA.pack(MIN_METADATA, stream_id, KEEP_ALIVE, 0)


def is_plugin_head(first: Data) -> bool | None:
    """Whether a stream that begins with `first` is Mux.Cool from a v2ray-plugin client.

    None: more bytes are needed. One in 2**103 random streams matches by chance; or in 2**39, with
    END as the first frame.
    """
    named = _either(_matches(first, _NAMED_HEAD), _matches(first, _END_HEAD))
    return _either(_matches(first, _PLUGIN_HEAD), named)


def is_head(first: Data) -> bool | None:
    """Whether a stream that begins with `first` is Mux.Cool from any client.

    None: more bytes are needed. One in 2**39 random streams matches by chance, but other protocols
    with lengths in front may look similar.
    """
    matches = _matches(first, _HEAD)
    if matches:
        kind = first[_TYPE_AT]
        address = 1 + first[_ADDRESS_AT] if kind == _DOMAIN else _ADDRESS_SIZES[kind]
        matches = int.from_bytes(first[:2], "big") == _ADDRESS_AT - 2 + address
    return _either(matches, _matches(first, _END_HEAD))


def _either(one: bool | None, other: bool | None) -> bool | None:
    return one or other if one or other or one is other else None


def _matches(first: Data, head: tuple[bytes, ...]) -> bool | None:
    if not all(byte in allowed for byte, allowed in zip(first, head, strict=False)):
        return False
    return True if len(first) >= len(head) else None


class Decoder:
    """Turns received bytes into events `(command, stream id, data)`.

    KEEP events carry a piece of the stream's data, as a view of the bytes fed; they are never
    empty. The other commands carry b"". Data of ended streams, of signs of life and of NEW_OTHER is
    skipped.
    """

    __slots__ = ("_head", "_id", "_left")

    def __init__(self) -> None:
        self._head = b""  # incomplete metadata
        self._id: int | None = None  # stream of the current data; None: it is skipped
        self._left = 0  # bytes of that data still to come

    @property
    def at_boundary(self) -> bool:
        """Whether the bytes received so far end at a frame boundary."""
        return not (self._head or self._left)

    def feed(self, data: Data) -> list[tuple[int, int, Data]]:
        """Decode received bytes and return their events.

        Raises MuxCoolError where V2Ray does: metadata too short or too long, an unknown status or
        network, an incomplete address. The error carries the preceding events; do not use the
        decoder after it.
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
                    if self._id is not None:
                        events.append((KEEP, self._id, view[at : at + left]))
                    at += left
                    self._left = at - end if at > end else 0
                    if at >= end:
                        break
                if end - at >= HEADER_SIZE:  # the usual frame
                    size, stream_id, status, options, length = _WITH_DATA.unpack_from(view, at)
                    if size == MIN_METADATA and status == KEEP and options & OPTION_DATA:
                        self._id, self._left = stream_id, length
                        at += HEADER_SIZE
                        continue
                size = self._read_metadata(view[at : at + MAX_METADATA + 4], events)
                if not size:
                    self._head = bytes(view[at:])
                    break
                at += size
        except MuxCoolError as error:
            error.events = events
            raise
        return events

    def _read_metadata(self, view: memoryview, events: list[tuple[int, int, Data]]) -> int:
        """Decode a frame up to its data. Returns the number of bytes; 0 if some are missing."""
        end = len(view)
        if end < 2:
            return 0
        size = int.from_bytes(view[:2], "big")
        if not MIN_METADATA <= size <= MAX_METADATA:
            raise MuxCoolError(f"metadata of {size} bytes")
        if end < _METADATA.size:
            return 0
        _, stream_id, status, options = _METADATA.unpack_from(view)
        if not NEW <= status <= KEEP_ALIVE:
            raise MuxCoolError(f"unknown status {status}")
        whole = 2 + size
        command = _new_command(view[:whole], size) if status == NEW else status
        if options & OPTION_DATA:
            whole += 2
        if end < whole:
            return 0
        if options & OPTION_DATA:
            self._left = int.from_bytes(view[whole - 2 : whole], "big")
            self._id = stream_id if command in (NEW, KEEP) else None
        if command == END and options & OPTION_ERROR:
            command = RESET
        if command != KEEP:
            events.append((command, stream_id, b""))
        return whole


def _new_command(view: memoryview, size: int) -> int:
    """Check what is there of the metadata of a NEW frame, which has `size` bytes.

    Returns NEW or NEW_OTHER.
    """
    network = view[_NETWORK_AT] if len(view) > _NETWORK_AT else TCP
    if network not in (TCP, UDP):
        raise MuxCoolError(f"unknown network {network}")
    needed = _TYPE_AT + 1
    if len(view) > _TYPE_AT:
        kind = view[_TYPE_AT]
        if kind == _DOMAIN:
            needed += 1 + (view[_ADDRESS_AT] if len(view) > _ADDRESS_AT else 0)
        elif kind in _ADDRESS_SIZES:
            needed += _ADDRESS_SIZES[kind]
        else:
            raise MuxCoolError(f"unknown address type {kind}")
    if size + 2 < needed:
        raise MuxCoolError("the destination is incomplete")
    return NEW if network == TCP else NEW_OTHER
