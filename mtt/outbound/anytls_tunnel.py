"""The AnyTLS sessions of a tunnel: all streams lead to the destination of the server."""

from __future__ import annotations

from collections.abc import Collection

from mtt.layers.anytls_client import ClientSession
from mtt.layers.base import StreamTransport
from mtt.outbound.anytls_pool import AnyTlsPool
from mtt.outbound.upstream import Pool

# For a server that does not care: tunnel.invalid, port 1, a name that never exists (RFC 6761), so
# that a proxy, if that is what the server is, says so.
DESTINATION = b"\3\x0etunnel.invalid\0\1"


class AnyTlsTunnel(Pool):
    """The upstream of mtt-client -anytls, on the sessions of `pool`."""

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
        # The application need not wait for the destination: it would not hear how that went.
        return await self._pool.open(DESTINATION, wait=False)

    async def close(self) -> None:
        await self._pool.close()
