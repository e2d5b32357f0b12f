"""Streams of an AnyTLS session with our server."""

from __future__ import annotations

from tests.support.anytlspeer import FIN, HEART_REQUEST, HEART_RESPONSE, SYNACK, AnyTlsPeer, frame

HERE = "127.0.0.1"


async def refused(peer: AnyTlsPeer, stream: int, host: str, port: int) -> str:
    """Try to get somewhere; the reason why not."""
    await peer.open(stream, host, port)
    command, number, text = await peer.frame()
    assert (command, number) == (SYNACK, stream)
    assert text
    assert await peer.frame() == (FIN, stream, b"")
    return text.decode()


async def check_echo(peer: AnyTlsPeer, stream: int, port: int) -> None:
    await peer.open(stream, HERE, port, b"still there")
    assert await peer.frame() == (SYNACK, stream, b"")
    assert await peer.data(stream, 11) == b"still there"


async def check_session(peer: AnyTlsPeer) -> None:
    await peer.send(frame(HEART_REQUEST, 77))
    assert await peer.frame() == (HEART_RESPONSE, 77, b"")
