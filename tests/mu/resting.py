"""Requests of the controller's API."""

from __future__ import annotations

import json
from typing import Any

from tests.mu.panel import Panel


async def call(panel: Panel, method: str, target: str, body: Any = None) -> tuple[int, Any]:
    """Status and decoded answer of a request; `body` is bytes, or goes as JSON."""
    if not isinstance(body, bytes):
        body = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{method} /api/{target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    answer = await panel.exchange(head.encode() + body)
    return int(answer.split()[1]), json.loads(answer.partition(b"\r\n\r\n")[2])


async def user(panel: Panel, method: str, target: str, body: Any = None) -> dict[str, Any]:
    """The user in the answer to a request that succeeds."""
    status, answer = await call(panel, method, target, body)
    assert (status, answer["res"]) == (200, 1), answer
    found = answer["user"]
    assert isinstance(found, dict)
    return found
