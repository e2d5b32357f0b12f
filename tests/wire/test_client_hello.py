"""ALPN names as a client offers them, wherever records and reads are cut."""

from __future__ import annotations

import ssl

import pytest

from mtt.wire.client_hello import ClientHelloError, offered_alpn


def hello(*names: str) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if names:
        context.set_alpn_protocols(names)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="test.local").do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("names", [(), ("h2",), ("http/1.1", "x" * 255, "h2")])
def test_names_are_known_with_the_last_byte(names: tuple[str, ...]) -> None:
    said = hello(*names)
    assert all(offered_alpn(said[:size]) is None for size in range(len(said)))
    expected = [name.encode() for name in names]
    assert offered_alpn(said) == expected
    assert offered_alpn(said + b"more") == expected


def test_records_may_be_of_any_size() -> None:
    said = hello("h2", "http/1.1")
    message = said[5:]
    for size in (1, 3, 100):
        pieces = [message[at : at + size] for at in range(0, len(message), size)]
        records = b"".join(said[:3] + len(piece).to_bytes(2, "big") + piece for piece in pieces)
        assert offered_alpn(records) == [b"h2", b"http/1.1"]
        assert offered_alpn(records[:-1]) is None


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x17\x03\x03\x00\x05hello",
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03",
        b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + bytes(0x4000),
    ],
    ids=["text", "data", "other message", "cut short", "endless"],
)  # fmt: skip
def test_other_bytes_are_refused(said: bytes) -> None:
    with pytest.raises(ClientHelloError, match=r"Hello|handshake"):
        offered_alpn(said)


def test_noise_raises_only_client_hello_error() -> None:
    said = bytearray(hello("h2", "http/1.1"))
    for at in range(len(said)):
        for value in (0, 0xFF, said[at] ^ 1):
            noise = bytes(said[:at]) + bytes([value]) + bytes(said[at + 1 :])
            try:
                offered_alpn(noise)
            except ClientHelloError:
                continue
