"""A recorded v2ray-plugin client meets our server."""

from __future__ import annotations

from typing import NamedTuple

from mtt.wire import websocket
from mtt.wire.mux_cool import END, KEEP, RESET, Decoder
from tests.support.certs import Certs
from tests.support.tunnels import Tcp, connect, port_of, server_at, serving
from tests.support.vectors import handshake, vector

NAME = "v-v2ray-plugin-mux"
OPTIONS = {"disable-tls": True, "wss-path": "/tunnel"}


class Said(NamedTuple):
    """The data of each stream, and the streams that were ended."""

    data: dict[int, bytes]
    ended: set[int]

    def contains(self, other: Said) -> bool:
        return self.ended >= other.ended and all(
            len(self.data.get(number, b"")) >= len(data) for number, data in other.data.items()
        )


def said(stream: bytes) -> Said:
    """What a server's messages mean, the last of which may be incomplete."""
    data: dict[int, bytes] = {}
    ended: set[int] = set()
    messages = websocket.Decoder(masked=False).feed(stream)
    payload = b"".join(piece for opcode, piece in messages if opcode == websocket.BINARY)
    for command, number, piece in Decoder().feed(payload):
        if command == KEEP:
            data[number] = data.get(number, b"") + piece
        elif command in (END, RESET):
            ended.add(number)
    return Said(data, ended)


async def serve(connection: Tcp) -> None:
    """The destination of the recording, which refuses its third stream."""
    while (data := await connection.read()) not in (b"", b"end please", b"refused"):
        await connection.send(data[::-1])
    if data == b"end please":
        await connection.send(b"bye")


async def test_recorded_client_gets_the_same_answers(certs: Certs) -> None:
    """As from v2ray-plugin's server: the same data, and every stream ended."""
    request, _ = handshake(NAME)
    answers = b""
    received = b""
    async with (
        serving(serve) as there,
        server_at("wss", there.port, certs, **OPTIONS) as server,
        await connect(port_of(server)) as client,
    ):
        await client.send(request)
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        for event in vector(NAME)[2:]:
            data = bytes.fromhex(event["hex"])
            if event["dir"] == "c2s":
                await client.send(data)
            else:
                answers += data
                while not said(received).contains(said(answers)):
                    received += await client.read()
    assert said(received) == said(answers)
    assert said(answers).ended == {1, 2, 3}
