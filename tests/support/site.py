"""A web site for `-fallback` that keeps what it gets."""

from __future__ import annotations

from tests.support.tunnels import Tcp


class Site:
    """A web site that keeps what it gets and answers each chunk of it with a fixed text.

    It says nothing to the first word of a request.
    """

    ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsite"

    def __init__(self) -> None:
        self.received = b""
        self.visits = 0
        self.answers = 0

    async def serve(self, connection: Tcp) -> None:
        self.visits += 1
        while data := await connection.read():
            self.received += data
            if self.received != b"GET ":
                self.answers += 1
                await connection.send(self.ANSWER)
