"""UDP over TCP: the format, every way to cut it, what is refused, and noise."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest

from mtt.wire.uot import (
    LEGACY_MAGIC,
    MAGIC,
    MAX_DATAGRAM,
    MAX_HELD,
    Decoder,
    UotError,
    encode_connected,
    encode_datagram,
    encode_request,
    unfit_for_go,
    version,
)

Datagram = tuple[str, int, bytes]


def plain(datagrams: Any) -> list[Datagram]:
    return [(host, port, bytes(payload)) for host, port, payload in datagrams]


def bytewise(decoder: Decoder, data: bytes) -> list[Datagram]:
    return [
        datagram
        for at in range(len(data))
        for datagram in plain(decoder.feed(data[at : at + 1]))
    ]  # fmt: skip


def test_the_two_names() -> None:
    assert [version(host) for host in (MAGIC, LEGACY_MAGIC, "udp-over-tcp.arpa")] == [2, 1, 0]
    assert version("SP.V2.UDP-over-TCP.arpa") == 2


def test_the_format() -> None:
    assert encode_request("0.0.0.0", 0, connect=False).hex() == "0001000000000000"
    assert encode_request("a.b", 53, connect=True).hex() == "010303612e620035"
    assert encode_datagram(b"hi", "127.0.0.1", 53).hex() == "007f000001003500026869"
    assert encode_datagram(b"", "::1", 53).hex() == "01" + "00" * 15 + "01" + "0035" + "0000"
    assert encode_datagram(memoryview(b"x"), "a.b", 53).hex() == "0203612e620035000178"
    assert encode_connected(b"hi").hex() == "00026869"


DATAGRAMS = [
    ("127.0.0.1", 53, b"first"),
    ("2001:db8::1", 65535, b""),
    ("example.com", 1, bytes(1400)),
    ("a" * 255, 0, b"x"),
]


def test_datagrams_with_addresses() -> None:
    data = b"".join(encode_datagram(payload, *to) for *to, payload in DATAGRAMS)
    for decoder in (Decoder(), Decoder(request=True)):
        request = b"" if decoder.at_boundary else encode_request("0.0.0.0", 0, connect=False)
        assert plain(decoder.feed(request + data)) == DATAGRAMS
        assert decoder.at_boundary
    assert bytewise(Decoder(), data) == DATAGRAMS
    assert decoder.request == (False, "0.0.0.0", 0)


def test_datagrams_without_addresses() -> None:
    payloads = [b"one", b"", bytes(3000), b"two"]
    data = b"".join(map(encode_connected, payloads))
    expected = [("192.0.2.1", 53, payload) for payload in payloads]
    assert plain(Decoder(peer=("192.0.2.1", 53)).feed(data)) == expected
    stream = encode_request("192.0.2.1", 53, connect=True) + data
    assert plain(Decoder(request=True).feed(stream)) == expected
    decoder = Decoder(request=True)
    assert bytewise(decoder, stream) == expected
    assert decoder.request == (True, "192.0.2.1", 53)


def test_the_request_may_come_alone() -> None:
    stream = encode_request("example.com", 53, connect=True)
    for size in range(len(stream)):
        decoder = Decoder(request=True)
        assert decoder.feed(stream[:size]) == []
        assert decoder.request is None
        assert not decoder.at_boundary
        assert decoder.feed(stream[size:]) == []
        assert decoder.request == (True, "example.com", 53)
        assert decoder.at_boundary


def test_any_number_but_0_means_connect() -> None:
    decoder = Decoder(request=True)
    decoder.feed(b"\x07" + encode_request("192.0.2.1", 1, connect=True)[1:])
    assert decoder.request == (True, "192.0.2.1", 1)


def test_the_address_may_be_empty_when_it_does_not_matter() -> None:
    decoder = Decoder(request=True)
    decoder.feed(bytes.fromhex("0003000000"))
    assert decoder.request == (False, "", 0)
    with pytest.raises(UotError, match="empty"):
        Decoder(request=True).feed(bytes.fromhex("0103000000"))


def test_payload_is_a_view_of_what_was_fed() -> None:
    data = encode_datagram(bytes(1000), "192.0.2.1", 1) * 3
    payloads = [payload for *_, payload in Decoder().feed(data)]
    assert [(payload.obj is data) for payload in payloads if isinstance(payload, memoryview)] == [
        True
    ] * 3


def test_the_largest_datagram() -> None:
    payload = random.Random(51).randbytes(MAX_DATAGRAM)
    data = encode_datagram(payload, "a" * 255, 1)
    assert len(data) == MAX_HELD
    assert plain(Decoder().feed(data)) == [("a" * 255, 1, payload)]
    decoder = Decoder()
    found = []
    for at in range(0, len(data), 1000):
        found += plain(decoder.feed(data[at : at + 1000]))
        assert len(decoder._held) <= MAX_HELD
    assert found == [("a" * 255, 1, payload)]


@pytest.mark.parametrize("encode", [encode_connected, lambda data: encode_datagram(data, "a", 1)])
def test_oversized_datagram_is_not_encoded(encode: Any) -> None:
    with pytest.raises(ValueError, match="65528 bytes; UDP carries 65527"):
        encode(bytes(MAX_DATAGRAM + 1))


REFUSED = [
    ("too long", "007f0000010035fff8", None, "65528 bytes"),
    ("too long, connected", "ffff", ("a", 1), "65535 bytes"),
    ("the types of SOCKS", "037f0000010035", None, "unknown address type 3"),
    ("empty name", "0200003500", None, "empty"),
    ("a line break in a name", "0203610a620035000178", None, "control"),
]


@pytest.mark.parametrize(("wire", "peer", "words"), [row[1:] for row in REFUSED],
                         ids=[row[0] for row in REFUSED])  # fmt: skip
def test_violations_are_refused_in_any_pieces(wire: str, peer: Any, words: str) -> None:
    data = bytes.fromhex(wire)
    with pytest.raises(UotError, match=words):
        Decoder(peer=peer).feed(data + b"trailing")
    with pytest.raises(UotError, match=words):
        bytewise(Decoder(peer=peer), data)


def test_a_request_of_another_kind_is_refused() -> None:
    with pytest.raises(UotError, match="unknown address type 2"):
        Decoder(request=True).feed(b"\x00\x02\x03a.b\0\x35")


@pytest.mark.parametrize("port", [-1, 65536])
def test_invalid_datagrams_are_not_encoded(port: int) -> None:
    with pytest.raises(ValueError, match="not a port"):
        encode_datagram(b"", "a", port)
    with pytest.raises(ValueError, match="not a port"):
        encode_request("a", port, connect=True)


@pytest.mark.parametrize(
    "host", ["192.0.2.1", "127.0.0.1", "::1", "2001:db8::1", "::ffff:192.0.2.1", "a", "a.b.test.",
             "_srv.x-y.test", "1.2.3.test"],
)  # fmt: skip
def test_destinations_that_a_go_server_accepts(host: str) -> None:
    assert unfit_for_go(host, 1) == ""
    assert unfit_for_go(host, 0)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "255.255.255.255", "240.0.0.1", "224.0.0.1", "::ffff:224.0.0.1",
             "::ffff:240.0.0.1", "::", "fe80::1", "ff02::fb", "no_name-.test", "two..dots",
             "1.2.3", ""],
)  # fmt: skip
def test_destinations_that_a_go_server_refuses(host: str) -> None:
    assert unfit_for_go(host, 53)


def test_one_byte_at_a_time_is_not_quadratic() -> None:
    # 64 KiB in single bytes: were each one looked at anew with all before it, this would be
    # two billion bytes to copy.
    data = encode_datagram(bytes(MAX_DATAGRAM), "192.0.2.1", 1)
    looks = []

    class Counting(Decoder):
        def _parse(self, data: memoryview, found: Any) -> int:
            looks.append(len(data))
            return super()._parse(data, found)

    assert len(bytewise(Counting(), data)) == 1
    assert 1 < len(looks) < 20


def test_noise_gives_datagrams_or_uot_error() -> None:
    rng = random.Random(52)
    refused = accepted = 0
    for _ in range(2500):
        request = rng.random() < 0.5
        peer = ("192.0.2.1", 1) if not request and rng.random() < 0.3 else None
        noise = bytearray()
        if request:
            noise += encode_request("192.0.2.1", 1, connect=rng.random() < 0.5)
        for _ in range(rng.randrange(8)):
            payload = rng.randbytes(rng.randrange(30))
            host = rng.choice(("192.0.2.1", "::1", "example.com"))
            noise += encode_connected(payload) if peer else encode_datagram(payload, host, 53)
        for _ in range(rng.randrange(8)):
            if noise:
                noise[rng.randrange(len(noise))] = rng.choice((0, 1, 2, 255, rng.randrange(256)))
        data = bytes(noise)
        outcomes = []
        cuts = sorted(rng.randrange(len(data) + 1) for _ in range(4))
        for pieces in ([data], [data[a:b] for a, b in pairwise([0, *cuts, len(data)])]):
            decoder = Decoder(request=request, peer=peer)
            found: list[Datagram] = []
            try:
                for piece in pieces:
                    found += plain(decoder.feed(piece))
                    assert len(decoder._held) <= MAX_HELD
                    assert sum(len(payload) for *_, payload in found) <= len(data)
            except UotError as error:
                assert str(error)
                outcomes.append(str(error))
            else:
                outcomes.append(repr((found, decoder.request, decoder.at_boundary)))
        # However it is cut, it means the same.
        assert outcomes[0] == outcomes[1]
        refused += not outcomes[0].startswith("(")
        accepted += outcomes[0].startswith("(")
    assert min(refused, accepted) > 300
