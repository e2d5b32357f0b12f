"""The deadlines that hold when nothing else is asked for.

Tests of what happens at a deadline make it short, or make time pass by its name; none of them
would notice that a real peer is given ten times as long.
"""

from __future__ import annotations

import importlib
import inspect
import operator

import pytest

from mtt.http import tls_detector
from mtt.http.limits import VISITORS
from mtt.http.server import HttpServer
from mtt.layers.tls import TlsLayer

# Module, constant, seconds from and to. Some are ranges in themselves.
DEADLINES = [
    # Strangers: a peer that says nothing holds a socket for so long, as with nginx or Go.
    ("mtt.layers.tls", "HANDSHAKE_TIME", 10, 10),
    ("mtt.layers.anytls_heads", "PREAMBLE_TIME", 10, 10),
    ("mtt.layers.anytls_heads", "DESTINATION_TIME", 10, 10),
    ("mtt.inbound.proxy_header", "HEADER_TIME", 10, 10),
    ("mtt.http.limits", "VISITORS.head", 10, 60),
    ("mtt.http.limits", "VISITORS.keepalive", 60, 75),
    ("mtt.http.limits", "VISITORS.body", 60, 60),
    ("mtt.proxy.port", "HANDSHAKE_TIME", 10, 10),
    ("mtt.http.limits", "OPERATORS.head", 10, 10),
    ("mtt.http.limits", "OPERATORS.keepalive", 60, 60),
    ("mtt.http.limits", "OPERATORS.body", 30, 30),
    # Destinations and servers: the Go programs wait 10 s for a connection.
    ("mtt.net.dial", "CONNECT_TIMEOUT", 10, 10),
    ("mtt.net.resolve", "LOOKUP_TIMEOUT", 5, 5),
    ("mtt.outbound.connector", "DIAL_TIME", 10, 10),
    ("mtt.outbound.connector", "CONNECT_TIME", 8, 8),
    ("mtt.outbound.proxy_dialer", "ANSWER_TIME", 8, 8),
    ("mtt.tunnels.server", "DESTINATION_TIME", 10, 10),
    ("mtt.layers.anytls_stream", "SYNACK_TIME", 20, 20),
    # Dead peers: docs/differences.md promises to find them within 80 s. Go peers give us 70 s at
    # least, and proxies 60 s, so a sign of life comes every 30 s.
    ("mtt.tunnels.relay", "DEAD_TIME", 60, 60),
    ("mtt.tunnels.relay", "MAX_CHECK_INTERVAL", 10, 10),
    ("mtt.layers.keepalive", "DEAD_TIME", 70, 70),
    ("mtt.layers.keepalive", "CHECK_INTERVAL", 10, 10),
    ("mtt.layers.keepalive", "INTERVAL", 24, 30),
    ("mtt.layers.anytls_client", "HEART_TIME", 5, 5),
    # Ends: two ends of a tunnel close at once, and a slow reader has time.
    ("mtt.layers.linger", "LINGER_TIME", 2, 2),
    ("mtt.layers.linger", "STALL_TIME", 30, 30),
    ("mtt.tunnels.relay", "QUIET_TIME", 1, 1),
    ("mtt.tunnels.relay", "ORPHAN_TIME", 5, 5),
    ("mtt.tunnels.relay", "END_TIME", 2, 2),
    ("mtt.process.runtime", "CLOSE_LIMIT", 5, 5),
    # UDP through the tunnel: flows as Linux's connection tracking keeps them.
    ("mtt.udp.flows", "UNANSWERED_TIME", 30, 30),
    ("mtt.udp.flows", "SWEEP_TIME", 5, 5),
    ("mtt.udp.link", "OPENING_TIME", 10, 10),
    ("mtt.inbound.stream_reader", "OPENING_TIME", 10, 10),
    ("mtt.udp.port", "RETRY_TIMES", 0.5, 8),
    ("mtt.udp.forwarder", "DEAD_TIME", 60, 60),
    ("mtt.udp.forwarder", "EMPTY_TIME", 60, 60),
    ("mtt.udp.forwarder", "LOOKUP_INTERVAL", 30, 60),
    # Forwarded ports: users wait for an agent that reconnects.
    ("anyproxy.forwarded", "HOLD_TIME", 10, 10),
    ("anyproxy.control", "RETRY_TIME", 30, 30),
    ("anyproxy.control", "LEAVE_TIME", 3, 3),
    # Go programs of AnyProxy: they dial for 30 s, and writes of theirs that wait for 10 s break
    # their sessions for good.
    ("mtt.outbound.go_agent", "ANSWER_TIME", 31, 40),
    ("mtt.layers.anyproxy", "PAUSE_TIME", 2, 6),
    ("mtt.layers.mux_tunnel", "SHARED_PAUSE_TIME", 2, 10),
    ("mtt.layers.anyproxy", "STALL_LIMIT", 8, 8),
    ("mtt.outbound.go_datagrams", "IDLE_TIME", 120, 120),
    # Idle sessions.
    ("mtt.outbound.session_pool", "IDLE_TIME", 30, 30),
    ("mtt.proxy.association", "IDLE_TIME", 300, 300),
]


@pytest.mark.parametrize(("module", "name", "least", "most"), DEADLINES)
def test_deadline(module: str, name: str, least: float, most: float) -> None:
    value = operator.attrgetter(name)(importlib.import_module(module))
    low, high = value if isinstance(value, tuple) else (value, value)
    assert least <= low <= high <= most


def test_probers_wait_as_long_as_at_an_nginx() -> None:
    assert tls_detector.HANDSHAKE_TIME == VISITORS.head == 60  # client_header_timeout
    assert VISITORS.keepalive == 75  # keepalive_timeout


@pytest.mark.parametrize(
    ("of", "argument", "name"),
    [
        (TlsLayer, "handshake_time", "HANDSHAKE_TIME"),
        (HttpServer, "limits", "VISITORS"),
    ],
)
def test_deadlines_that_are_arguments_hold_by_default(of: type, argument: str, name: str) -> None:
    default = inspect.signature(of).parameters[argument].default
    assert default == getattr(inspect.getmodule(of), name)
