"""Our AnyTLS server for tests."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from anytls.options import server_options
from anytls.server import Server
from mtt.errors import NetworkError
from mtt.net.resolve import Address, literal
from mtt.outcome import Outcome
from tests.support.anytlspeer import PASSWORD
from tests.support.certs import Certs
from tests.support.metrics import numbers

# Tests have only this machine to go to, which is denied otherwise.
OWN = ["127.0.0.0/8", "::1/128"]


@contextlib.asynccontextmanager
async def server_for(certs: Certs, **options: Any) -> AsyncIterator[Server]:
    """A server; `options` as on its command line."""
    given: dict[str, Any] = {"b": "127.0.0.1:0", "allow": OWN}
    if not options.get("disable-tls"):
        given |= {"cert": certs.cert, "key": certs.key}
    if not options.get("users"):
        given["p"] = PASSWORD
    server = Server(server_options(given | options))
    await server.start()
    try:
        yield server
    finally:
        await server.close()


def empty(server: Server) -> bool:
    """Whether it holds nothing any more of the connections it had."""
    held = numbers(server)
    return not (server.tunnels or held["handshakes"] or held["sessions"])


def know(server: Server, names: dict[str, list[str]]) -> None:
    """Let these names have these addresses, and others none."""

    async def resolve(host: str, port: int) -> list[Address]:
        found = literal(host, port)
        addresses = [host] if found else names.get(host, [])
        if not addresses:
            reason = f"cannot resolve {host}: the test has no such name"
            raise NetworkError(reason, outcome=Outcome.UNRESOLVABLE)
        return [known for text in addresses if (known := literal(text, port))]

    server._resolver.resolve = resolve  # type: ignore[method-assign]
