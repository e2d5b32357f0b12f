"""Requests for the controller as bytes."""

from __future__ import annotations

PING = b'{"opt":9}'


def post(body: bytes, *headers: str, host: str = "localhost", target: str = "/") -> bytes:
    lines = [f"POST {target} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def closing(body: bytes, *headers: str, **parts: str) -> bytes:
    return post(body, "Connection: close", *headers, **parts)


def status(answer: bytes) -> int:
    return int(answer.split()[1])
