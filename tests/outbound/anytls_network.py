"""What a pool of AnyTLS sessions dials: connections to a server in memory."""

from __future__ import annotations

import asyncio
from typing import Any

from mtt.layers.anytls_client import ClientSession
from mtt.layers.anytls_stream import ClientStream
from mtt.outbound.anytls_pool import AnyTlsPool
from mtt.wire.anytls import (
    HEART_REQUEST,
    HEART_RESPONSE,
    MAX_LENGTH,
    SERVER_SETTINGS,
    SYNACK,
    Decoder,
    PreambleReader,
    frame,
)
from tests.support.transports import FakeLayer, turns


class Answering(FakeLayer):
    """A connection to a server that answers liveness checks while `answers` is set."""

    def __init__(self, session: ClientSession) -> None:
        super().__init__(session)
        self.answers = True
        self._commands: list[int] = []
        self._preamble = PreambleReader()
        self._decoder = Decoder(whole=MAX_LENGTH)

    def write(self, data: Any) -> None:
        super().write(data)
        if self._preamble.rest is None:
            self._preamble.feed(data)
            data = self._preamble.rest or b""
        for command, _, _ in self._decoder.feed(data):
            self._commands.append(command)
            if command == HEART_REQUEST and self.answers:
                asyncio.get_running_loop().call_soon(
                    self.protocol.data_received, frame(HEART_RESPONSE, 0)
                )

    def said(self) -> list[int]:
        """The commands of the frames since the last call, without padding.

        Padding is zeros of random length: other frames may seem to be in its bytes.
        """
        self.take()
        commands, self._commands = self._commands, []
        return commands


class Network:
    """What the pool dials: by default, version 2 servers that reach every destination."""

    def __init__(self, **options: object) -> None:
        self.sessions: list[ClientSession] = []
        self.lowers: list[Answering] = []
        self.dials = 0
        self.error: Exception | None = None
        self.allowed = asyncio.Event()
        self.allowed.set()
        self.lost: list[Exception | None] = []
        self.greeting = frame(SERVER_SETTINGS, 0, b"v=2")
        self.pool = AnyTlsPool(self._connect, bytes(32), on_lost=self.lost.append, **options)  # type: ignore[arg-type]

    async def _connect(self, session: ClientSession) -> None:
        self.dials += 1
        await self.allowed.wait()
        if self.error is not None:
            raise self.error
        lower = Answering(session)
        session.connection_made(lower)
        self.sessions.append(session)
        self.lowers.append(lower)

    async def open(self, answer: bytes = b"") -> ClientStream:
        """Open a stream that the server acknowledges."""
        task = asyncio.ensure_future(self.pool.open(b"dest"))
        await turns()
        for session in list(self.sessions):
            for stream_id in list(session._streams):
                session.data_received(self.greeting + frame(SYNACK, stream_id, answer))
        return await task

    async def idle(self, count: int) -> list[ClientSession]:
        """`count` idle sessions, oldest first."""
        streams = [await self.open() for _ in range(count)]
        for stream in streams:
            stream.close()
        return self.sessions[-count:]

    def number(self, stream: ClientStream) -> int:
        return next(at for at, session in enumerate(self.sessions) if session is stream._session)

    def up(self) -> list[int]:
        return [at for at, session in enumerate(self.sessions) if not session.lost]

    async def over(self) -> None:
        await self.pool.close()
        await turns()
        assert not self.up()
        assert not self.pool.sessions
