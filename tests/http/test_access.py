"""The access rules of sockets for operators."""

from __future__ import annotations

from typing import Any

import pytest

from mtt.http.access import AccessRules
from mtt.wire.http1 import parse_request

TOKEN = "0123456789abcdef-._~+/="


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:99", "127.0.0.1", "127.0.0.1:8080", "127.1.2.3", "[::1]", "[::1]:80",
     ""],
)  # fmt: skip
def test_our_names(host: str) -> None:
    assert AccessRules().refusal(request_to(host)) is None


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "evil.example:8080", "192.0.2.1", "0.0.0.0", "[::]",
     "127.0.0.1.evil.example", "localhost:80:80", "[::1", "::1:80x"],
)  # fmt: skip
def test_foreign_names(host: str) -> None:
    refusal = AccessRules().refusal(request_to(host))
    assert refusal is not None
    assert refusal[0] == 403


def test_names_of_a_server_that_others_can_reach() -> None:
    access = AccessRules(hosts=["192.0.2.1", "Panel.example", "*.wild.example"])
    for good in ("192.0.2.1:443", "panel.example", "a.wild.example", "localhost"):
        assert access.refusal(request_to(good)) is None
    for bad in ("192.0.2.2", "x.panel.example", "wild.example", "a.b.wild.example"):
        assert access.refusal(request_to(bad)) is not None
    everywhere = AccessRules(any_address=True)
    assert everywhere.refusal(request_to("192.0.2.7:80")) is None
    assert everywhere.refusal(request_to("evil.example")) is not None
    public = AccessRules(any_name=True)
    assert public.refusal(request_to("evil.example")) is None
    assert public.refusal(request_to("evil.example", "Origin: null")) is not None


def request_to(host: str, *headers: str) -> Any:
    lines = "".join(f"{header}\r\n" for header in headers)
    return parse_request(f"POST / HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode())


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER "])
def test_the_token(scheme: str) -> None:
    header = f"Authorization: {scheme} {TOKEN}"
    assert AccessRules(TOKEN).refusal(request_to("localhost", header)) is None


@pytest.mark.parametrize(
    "header",
    ["X: y", "Authorization: Bearer", f"Authorization: {TOKEN}", f"Authorization: Basic {TOKEN}",
     f"Authorization: Bearer {TOKEN}x", f"Authorization: Bearer {TOKEN[:-1]}",
     f"Authorization: Bearer {TOKEN} {TOKEN}", "Authorization: Bearer \xff"],
)  # fmt: skip
def test_a_wrong_token(header: str) -> None:
    refusal = AccessRules(TOKEN).refusal(request_to("localhost", header))
    assert refusal is not None
    assert refusal[0] == 401
