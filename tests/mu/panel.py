"""A multi-user server in the test's loop, and a panel that drives it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from mtt_mu_server.options import options
from mtt_mu_server.server import MultiUserServer
from tests.support.certs import Certs


class Panel:
    """Sends commands to a controller, each on a connection of its own."""

    def __init__(self, address: str) -> None:
        self.address = address

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    async def command(self, opt: int, *args: dict[str, Any], **fields: Any) -> Any:
        """The decoded answer to a command."""
        return json.loads(await self.post({"opt": opt, "args_bunch": args} | fields))

    async def add(self, path: str, port: int, **limits: int) -> None:
        """Add one user whose destination is a port of this machine."""
        answer = await self.command(1, {"path": path, "dst": f"127.0.0.1:{port}"} | limits)
        assert answer == {"res": 1}

    async def statistics(self, path: str) -> Any:
        answer = await self.command(5, {"path": path})
        return answer["users"][0]

    async def post(self, command: Any) -> bytes:
        """The body of the answer to a command."""
        body = json.dumps(command).encode()
        head = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        answer = await self.exchange(f"{head}Connection: close\r\n\r\n".encode() + body)
        return answer.partition(b"\r\n\r\n")[2]

    async def exchange(self, request: bytes) -> bytes:
        """All that comes back for `request`, up to the end of the connection."""
        reader, writer = await self.connect()
        try:
            writer.write(request)
            return await reader.read()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.address.startswith("/"):
            return await asyncio.open_unix_connection(self.address)
        host, _, port = self.address.rpartition(":")
        return await asyncio.open_connection(host, int(port))


@contextlib.asynccontextmanager
async def multi_user_server(
    certs: Certs, **given: Any
) -> AsyncIterator[tuple[MultiUserServer, Panel]]:
    """A server with `given` options as on its command line, and a panel for it."""
    defaults = {"b": "127.0.0.1:0", "c": "127.0.0.1:0", "cert": certs.cert, "key": certs.key}
    server = MultiUserServer(options(defaults | given))
    await server.start()
    try:
        yield server, Panel(server.controller_addresses[0])
    finally:
        await server.close()
