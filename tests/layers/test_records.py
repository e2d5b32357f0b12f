"""TLS records on memory."""

from __future__ import annotations

import contextlib
import random
import ssl

import pytest

from mtt.layers.reads import LARGE_READ, READ_SIZE
from mtt.layers.records import BIO_SIZE, Records
from tests.support.certs import Certs
from tests.support.stacks import client_context, server_context

RECORD = 16384
OVERHEAD = 5 + 1 + 16  # RFC 8446, 5.2: header, content type, tag of AES-GCM


def pair(certs: Certs) -> tuple[Records, Records]:
    """A client's and a server's, after the handshake."""
    client = Records(client_context(certs), server_side=False, server_name=certs.name, session=None)
    server = Records(server_context(certs), server_side=True, server_name=None, session=None)
    for _ in range(3):
        for one, other in ((client, server), (server, client)):
            with contextlib.suppress(ssl.SSLWantReadError):
                one.ssl.do_handshake()
            other.incoming.write(one.outgoing.read())
    client.read()  # the session tickets
    return client, server


def read(records: Records, arrived: bytes) -> tuple[bytes, bool]:
    data, more = records.read(memoryview(arrived))
    return bytes(data), more


def read_all(records: Records, stream: bytes) -> bytes:
    """What arrives in reads as large as they can be, each handed over in one piece."""
    received = b""
    for at in range(0, len(stream), LARGE_READ):
        piece, more = read(records, stream[at : at + LARGE_READ])
        assert not more
        received += piece
    return received


@pytest.mark.parametrize(
    "size", [1, RECORD, RECORD + 1, READ_SIZE, 4 * RECORD, 4 * RECORD + 1, LARGE_READ, 1_000_000]
)
def test_data_fill_as_few_records_as_they_can(size: int, certs: Certs) -> None:
    client, server = pair(certs)
    data = random.Random(size).randbytes(size)
    records = client.write(data)
    assert len(records) == size + -(-size // RECORD) * OVERHEAD
    assert not client.outgoing.pending
    assert read_all(server, records) == data


@pytest.mark.parametrize(
    "size", [1, 100, RECORD - 11, RECORD - 10, RECORD - 9, 4 * RECORD - 10, 4 * RECORD, LARGE_READ]
)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_the_header_of_a_frame_shares_a_record_with_its_data(
    size: int, kind: type, certs: Certs
) -> None:
    client, server = pair(certs)
    head, data = b"0123456789", random.Random(size).randbytes(size)
    records = client.write(kind(data), head)
    assert len(records) == 10 + size + -(-(10 + size) // RECORD) * OVERHEAD
    assert read_all(server, records) == head + data


def test_large_read_is_delivered_in_one_piece(certs: Certs) -> None:
    """Whatever records begin and end in it, and in each piece that goes through the BIO."""
    client, server = pair(certs)
    rng = random.Random(5)
    data = rng.randbytes(3 * LARGE_READ)
    at, stream = 0, b""
    while at < len(data):
        size = rng.choice((1, 700, RECORD))
        stream += client.write(data[at : at + size])
        at += size
    assert read_all(server, stream) == data


def test_rest_of_a_large_read_is_left_for_the_next_turn(certs: Certs) -> None:
    client, server = pair(certs)
    data = random.Random(6).randbytes(3 * BIO_SIZE)
    stream = client.write(data)
    server.incoming.write(stream)  # while reading was paused
    later = random.Random(7).randbytes(LARGE_READ)
    received, more = read(server, client.write(later)[:LARGE_READ])
    assert more
    while more:
        piece, more = read(server, b"")
        received += piece
    assert received == (data + later)[: len(received)]
    assert len(data + later) - len(received) < RECORD  # the last one is not there yet


def test_stashed_data_come_first(certs: Certs) -> None:
    client, server = pair(certs)
    server.incoming.write(client.write(b"early"))
    server.stash_rest()
    data, more = read(server, client.write(b"late"))
    assert (data, more) == (b"early", True)
    assert read(server, b"") == (b"late", False)


def test_data_after_the_end_are_not_kept(certs: Certs) -> None:
    client, server = pair(certs)
    last = client.write(b"last")
    client.shut_down()
    assert read(server, last + client.outgoing.read() + b"more of it" * 9000)[0] == b"last"
    assert server.eof
    assert server.error is None


def test_broken_record_is_an_error_after_earlier_data(certs: Certs) -> None:
    client, server = pair(certs)
    whole, broken = client.write(b"whole"), bytearray(client.write(bytes(READ_SIZE)))
    broken[100] ^= 1
    assert read(server, whole + broken)[0] == b"whole"
    assert isinstance(server.error, ssl.SSLError)
    assert server.outgoing.pending  # the alert


def test_the_edges_of_records_are_known(certs: Certs) -> None:
    rng = random.Random(9)
    client, server = pair(certs)
    edges, stream = set(), b""
    for size in (1, 2, 700, RECORD, RECORD + 1, 3):
        at = len(stream)
        stream += client.write(rng.randbytes(size))
        while at < len(stream):
            at += 5 + int.from_bytes(stream[at + 3 : at + 5], "big")
            edges.add(at)
    assert server.at_boundary
    for piece in (1, 2, 3, 4, 5, 6, 21, 1000, len(stream)):
        _, server = pair(certs)
        for at in range(0, len(stream), piece):
            end = min(at + piece, len(stream))
            server.feed(memoryview(stream)[at:end])
            assert server.at_boundary is (end in edges)


def read_in_pieces(records: Records, pieces: list[bytes]) -> bytes:
    """What arrives in `pieces`, as the TLS layer reads it."""
    received = bytes(records.read()[0])
    for piece in pieces:
        view = memoryview(piece)
        received += records.read_records(view) if records.in_step else records.read(view)[0]
    return received


@pytest.mark.parametrize("largest", [1, 4, 7, 100, RECORD, LARGE_READ])
def test_records_may_be_cut_anywhere(largest: int, certs: Certs) -> None:
    rng = random.Random(largest)
    client, server = pair(certs)
    data = rng.randbytes(200 if largest < 10 else 2 * LARGE_READ)
    at, stream = 0, b""
    while at < len(data):
        size = rng.choice((1, 30, 700, RECORD))
        stream += client.write(data[at : at + size])
        at += size
    pieces = []
    while stream:
        size = rng.randint(1, largest)
        pieces.append(stream[:size])
        stream = stream[size:]
    assert read_in_pieces(server, pieces) == data
    assert server.in_step
    assert server.at_boundary


def test_bio_holds_one_record_at_a_time(certs: Certs) -> None:
    client, server = pair(certs)
    server.read()
    stream = client.write(bytes(4 * RECORD))
    assert len(server.read_records(memoryview(stream)[:-1])) == 3 * RECORD
    assert server.incoming.pending == RECORD + OVERHEAD - 1
    assert not server.at_boundary
    assert len(server.read_records(memoryview(stream)[-1:])) == RECORD
    assert server.at_boundary


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n", b"\x17\3\3\xff\xff", b"\x17\3\1\0\x50"])
def test_invalid_header_is_an_error_without_the_rest(start: bytes, certs: Certs) -> None:
    client, server = pair(certs)
    assert read_in_pieces(server, [client.write(b"before") + start]) == b"before"
    assert not server.in_step
    server.read()
    assert isinstance(server.error, ssl.SSLError)


def test_broken_record_among_others_is_an_error_after_earlier_data(certs: Certs) -> None:
    client, server = pair(certs)
    broken = bytearray(client.write(bytes(READ_SIZE)))
    broken[RECORD + OVERHEAD + 100] ^= 1
    assert read_in_pieces(server, [bytes(broken)]) == bytes(RECORD)
    assert isinstance(server.error, ssl.SSLError)
    assert server.damaged is None
    assert not server.in_step


def test_end_among_others_ends_the_data(certs: Certs) -> None:
    client, server = pair(certs)
    last = client.write(b"last")
    client.shut_down()
    assert read_in_pieces(server, [last + client.outgoing.read() + b"more"]) == b"last"
    assert server.eof
    assert not server.in_step
