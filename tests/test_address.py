"""Addresses as they are written and shown."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mtt.address import host_port, is_loopback, peer_name, unmapped, user_name


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("192.0.2.1", "192.0.2.1:80"),
        ("::ffff:192.0.2.1", "192.0.2.1:80"),
        ("::FFFF:c000:201", "192.0.2.1:80"),
        ("::ffff:192.0.2.1%eth0", "192.0.2.1:80"),
        ("::1", "[::1]:80"),
        ("::ffff:0:192.0.2.1", "[::ffff:0:192.0.2.1]:80"),  # not mapped but translated, RFC 2765
        ("64:ff9b::192.0.2.1", "[64:ff9b::192.0.2.1]:80"),
        ("::ffff:", "[::ffff:]:80"),
        ("fe80::1%eth0", "[fe80::1%eth0]:80"),
        ("a.example", "a.example:80"),
        ("", ":80"),
    ],
)
def test_addresses_are_shown_without_mapping(host: str, shown: str) -> None:
    assert host_port(host, 80) == shown


def test_a_mapped_loopback_address_is_loopback() -> None:
    assert is_loopback("::ffff:127.0.0.1")
    assert not is_loopback("::ffff:192.0.2.1")
    assert unmapped("::ffff:127.0.0.1") == "127.0.0.1"


@pytest.mark.parametrize(
    ("peer", "own", "name"),
    [
        (("127.0.0.1", 50000), ("127.0.0.1", 443), "127.0.0.1:50000"),
        (("::ffff:192.0.2.1", 50000, 0, 0), ("::", 443, 0, 0), "192.0.2.1:50000"),
        (("::1", 50000, 0, 0), ("::1", 443, 0, 0), "[::1]:50000"),
        ("", "/run/a.sock", "local socket"),
    ],
)
def test_names_of_peers(peer: Any, own: Any, name: str) -> None:
    transport = asyncio.Transport({"peername": peer, "sockname": own})
    assert peer_name(transport) == name


def test_port_0_is_omitted_only_for_users() -> None:
    assert host_port("127.0.0.1", 0) == "127.0.0.1:0"
    assert user_name("::1", 0) == "::1"
    assert user_name("::1", 50000) == "[::1]:50000"
