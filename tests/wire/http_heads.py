"""Heads of HTTP messages, from lines."""

from __future__ import annotations

from mtt.wire.http1 import Request, parse_request


def head(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def get(*lines: str, target: str = "/", version: str = "1.1", method: str = "GET") -> Request:
    """Parse a request with these header lines; a Host comes first."""
    text = "\r\n".join([f"{method} {target} HTTP/{version}", "Host: a", *lines, "", ""])
    return parse_request(text.encode("utf-8", "surrogateescape"))
