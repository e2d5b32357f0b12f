"""The upstream of `mtt-client -anytls`: the server chooses the destination of all streams."""

from __future__ import annotations

from collections.abc import Collection

from mtt.layers.anytls_client import ClientSession
from mtt.layers.base import StreamTransport
from mtt.outbound.anytls_pool import AnyTlsPool
from mtt.outbound.upstream import Pool

# A tunnel server ignores the destination. This is tunnel.invalid, port 1: a name that never exists
# (RFC 6761), so that an AnyTLS proxy server reports an error.
DESTINATION = b"\3\x0etunnel.invalid\0\1"


class AnyTlsTunnel(Pool):
    """Opens a tunnel's streams on the sessions of `pool`."""

    def __init__(self, pool: AnyTlsPool) -> None:
        self._pool = pool

    @property
    def sessions(self) -> Collection[ClientSession]:
        return self._pool.sessions

    def start(self) -> None:
        self._pool.start()

    def open_at_once(self) -> StreamTransport | None:
        return self._pool.open_at_once(DESTINATION)

    async def open(self) -> StreamTransport:
        # Waiting would be pointless: the application has no way to learn the outcome.
        return await self._pool.open(DESTINATION, wait=False)

    async def close(self) -> None:
        await self._pool.close()
