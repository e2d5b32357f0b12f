"""The interface between the proxy port and the protocols of its clients' connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from mtt.layers.base import StreamTransport
from mtt.outcome import Outcome
from mtt.tunnels.open_tunnels import Carrier

# Makes the answer for an unreachable destination.
Failure = Callable[[Outcome], bytes]


class Connection(Carrier, Protocol):
    """The connection of an HTTP client, as the proxy port uses it."""

    over: bool
    task: asyncio.Task[Any] | None
    done: Callable[[Any], None]

    def retire(self) -> None: ...
    def opened(self, transport: StreamTransport) -> None: ...
    def open_failed(self, outcome: Outcome) -> None: ...


class Owner(Protocol):
    """The proxy port, as its clients' connections use it."""

    handshake_time: float
    idle_time: float
    has_login: bool
    has_udp: bool
    draining: bool

    def handshake_begun(self, transport: StreamTransport) -> None: ...
    def handshake_over(self, transport: StreamTransport) -> None: ...
    def idle(self, connection: Connection, transport: StreamTransport) -> None: ...
    def busy(self, connection: Connection, transport: StreamTransport) -> None: ...
    def accepts(self, user: bytes, password: bytes) -> bool: ...
    def track(self, connection: Connection, transport: StreamTransport) -> None: ...
    def open(
        self, connection: Connection, transport: StreamTransport, host: str, port: int
    ) -> None: ...
    def connect(
        self, near: StreamTransport, host: str, port: int, success: bytes, failure: Failure
    ) -> None: ...
    def associate(self, near: StreamTransport, port: int) -> None: ...
    def join(self, near: StreamTransport, far: StreamTransport) -> None: ...
    def report(self, name: str, error: Exception) -> None: ...
