"""A server that hides which paths have tunnels does the same work for all requests."""

from __future__ import annotations

from typing import Any

import pytest

from mtt.http import server
from mtt.http.server import HttpServer
from mtt.wire.http1 import Reply, Request
from mtt.wire.servemux import NOT_FOUND
from tests.support.transports import FakeTransport


def route(request: Request) -> Reply | None:
    return None if request.path == "/known" else NOT_FOUND


def never(*_: Any) -> None:
    raise AssertionError("no request was for a tunnel")


async def test_handshake_is_checked_with_and_without_tunnel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checks: list[str] = []
    check = server.check_hidden_request

    def counted(request: Request, *args: Any, **options: Any) -> Any:
        checks.append(request.path)
        return check(request, *args, **options)

    monkeypatch.setattr(server, "check_hidden_request", counted)
    answers = []
    for path in ("/known", "/other"):
        transport = FakeTransport()
        http = HttpServer(route, never, refusal=NOT_FOUND)
        transport.set_protocol(http)
        http.connection_made(transport)
        http.data_received(f"GET {path} HTTP/1.1\r\nHost: test.local\r\n\r\n".encode())
        answers.append(transport.take().partition(b"Date:")[0])
        http.connection_lost(None)
    assert checks == ["/known", "/other"]
    assert answers[0] == answers[1]
    assert answers[0].startswith(b"HTTP/1.1 404 Not Found\r\n")
