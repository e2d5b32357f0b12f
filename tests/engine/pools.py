"""A client with connections that wait for applications, and a server for it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mtt.client import Client
from tests.support.certs import Certs
from tests.support.goserver import go_server
from tests.support.metrics import numbers
from tests.support.tunnels import (
    client_of,
    eventually,
    port_of,
    server_at,
)

SIZE = 3

in_both_modes = pytest.mark.parametrize("mode", ["tls", "wss"])
to_both_servers = pytest.mark.parametrize("far", ["ours", "go"])


@contextlib.asynccontextmanager
async def server_of(far: str, mode: str, destination: int, certs: Certs) -> AsyncIterator[int]:
    """The port of our server or of a Go server."""
    if far == "go":
        async with go_server(mode, destination, certs) as go:
            yield go.port
    else:
        async with server_at(mode, destination, certs) as server:
            yield port_of(server)


@contextlib.asynccontextmanager
async def prepared(mode: str, server: int, certs: Certs, **options: Any) -> AsyncIterator[Client]:
    """A client with a full pool."""
    options = {"preconnect": SIZE} | options
    async with client_of(mode, server, certs, **options) as client:
        await eventually(lambda: full(client, options["preconnect"]))
        yield client


def full(client: Client, size: int = SIZE) -> bool:
    found = numbers(client)
    return found["waiting_connections"] == size and not found["handshakes"]


