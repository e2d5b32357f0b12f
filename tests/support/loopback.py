"""What only some machines have, and addresses of this machine that do not answer."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator

import pytest

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="Linux sockets")
unix_only = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no unix sockets here")


def has_ipv6_loopback() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6_loopback(), reason="no IPv6 on loopback")


@contextlib.contextmanager
def listening(host: str = "127.0.0.1", port: int = 0) -> Iterator[socket.socket]:
    with socket.create_server((host, port)) as sock:
        yield sock


@contextlib.contextmanager
def refusing() -> Iterator[int]:
    """A port that refuses connections on every address, and that no other socket is given.

    A server with SO_REUSEADDR may listen on it.
    """
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", 0))
        yield int(sock.getsockname()[1])


@contextlib.contextmanager
def black_hole() -> Iterator[tuple[str, int]]:
    """An address that lets SYNs go unanswered: Linux drops them while the backlog is full."""
    if sys.platform != "linux":
        pytest.skip("other systems refuse when the backlog is full")
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        yield full.getsockname()
