"""What clients of a proxy port say, and what they get."""

from __future__ import annotations

import socket

import pytest

from mtt.users.user import User

USER = User("user", "pässword")


def reply5(code: int) -> bytes:
    return b"\5%c\0\1\0\0\0\0\0\0" % code


SUCCESS4, FAILURE4 = b"\0\x5a" + bytes(6), b"\0\x5b" + bytes(6)
CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"

IP, NAME = "127.0.0.1", "echo.test"


def socks5(port: int, host: str = IP) -> tuple[bytes, bytes]:
    """All that a client says, and all it gets."""
    if host == IP:
        address = b"\x01" + socket.inet_aton(host)
    else:
        address = b"\x03%c%b" % (len(host), host.encode())
    said = b"\5\1\0" + b"\5\1\0" + address + port.to_bytes(2, "big")
    return said, b"\5\0" + reply5(0)


def socks5_login(port: int, login: User = USER) -> tuple[bytes, bytes]:
    user, password = login.name.encode(), login.password.encode()
    said = b"\5\2\0\2" + b"\1%c%b%c%b" % (len(user), user, len(password), password)
    return said + socks5(port)[0][3:], b"\5\2" + b"\1\0" + reply5(0)


def socks4(port: int) -> tuple[bytes, bytes]:
    return b"\4\1" + port.to_bytes(2, "big") + socket.inet_aton(IP) + b"me\0", SUCCESS4


def socks4a(port: int, host: str = NAME) -> tuple[bytes, bytes]:
    said = b"\4\1" + port.to_bytes(2, "big") + b"\0\0\0\1" + b"me\0" + host.encode() + b"\0"
    return said, SUCCESS4


def http_connect(port: int, host: str = NAME, *lines: str) -> tuple[bytes, bytes]:
    head = [f"CONNECT {host}:{port} HTTP/1.1", f"Host: {host}:{port}", *lines]
    return "\r\n".join([*head, "", ""]).encode(), CONNECTED


TUNNELS = {
    "socks5": socks5,
    "socks5-name": lambda port: socks5(port, NAME),
    "socks5-name-that-is-an-ip": lambda port: (
        b"\5\1\0\5\1\0\3\x09127.0.0.1" + port.to_bytes(2, "big"), b"\5\0" + reply5(0),
    ),
    "socks4": socks4,
    "socks4a": socks4a,
    "http": http_connect,
}  # fmt: skip
in_every_protocol = pytest.mark.parametrize("name", TUNNELS)
