"""Performance targets, mostly ratios within one run, and the check of them."""

from __future__ import annotations

from typing import NamedTuple

from bench import handshake, startup, udp
from bench.peers import STUNNEL, V2RAY, V2RAY_MUX
from bench.results import Run


class Target(NamedTuple):
    """`column` of `cell` in `row`, divided by that of `against` unless that is "".

    `limit` is the least it may be, or with `at_most` the most.
    """

    text: str
    row: str
    column: str
    cell: str
    against: str
    limit: float
    at_most: bool = False


def _bulk(cell: str, against: str, factor: float) -> Target:
    return Target(f"bulk, worse direction, {cell}", "bulk", "worst", cell, against, factor)


# The counts of round trips are taken with a clock: a tenth of one is our own time.
_TRIP_SLACK = 0.2

TARGETS = (
    _bulk("tls", STUNNEL, 1.45),
    *(
        Target(f"CPU per GB {way}, {end}, tls", "bulk", f"{way}_{end}", "tls", STUNNEL, 0.80, True)
        for way in ("up", "down")
        for end in ("client", "server")
    ),
    _bulk("wss", V2RAY, 3.0),
    _bulk("wss", "tls", 0.9),
    *(_bulk(mode, V2RAY_MUX, 3.6) for mode in ("mux", "wss+mux")),
    *(_bulk(mode, "tls", 0.8) for mode in ("mux", "wss+mux")),
    _bulk("v2ray+mux", V2RAY_MUX, 2.0),
    _bulk("anytls", "tls", 0.9),
    *(
        Target(f"requests, 32 connections, {cell}", "requests", "rate32", cell, V2RAY, factor)
        for cell, factor in (("tls", 1.15), ("wss", 1.15), ("tls uvloop", 1.3), ("wss uvloop", 1.3))
    ),
    *(
        Target(
            f"CPU per new connection, {end}, tls", "conns", f"{end}_us", "tls", handshake.FULL,
            1.7, True,
        )
        for end in ("client", "server")
    ),
    Target("new streams per second, mux", "conns", "rate", "mux", "tls", 3.0),
    Target("new streams per second, mux", "conns", "rate", "mux", V2RAY_MUX, 1.0),
    *(
        Target(
            f"round trips to the first byte, warm {mode}", "first", "warm_trips", mode, "",
            1 + _TRIP_SLACK, True,
        )
        for mode in ("mux", "wss+mux", "anytls")
    ),
    # TCP, TLS 1.3, and the byte's own way.
    Target(
        "round trips to the first byte, cold tls", "first", "cold_trips", "tls", "",
        3 + _TRIP_SLACK, True,
    ),
    *(
        Target(f"datagrams lost of 20,000 per second, %, {mode}", "udp", "loss", mode, "", 0, True)
        for mode in ("tls", "wss", "mux", "wss+mux", "anytls")
    ),
    Target("datagrams at full speed, tls", "udp", "full", "tls", udp.FRAMES, 0.7),
    Target("datagrams at full speed, tls", "udp", "full", "tls", udp.SOCAT, 1.0),
    Target("KB per idle connection, server, tls", "memory", "server_kb", "tls", "", 24, True),
    Target("KB per idle connection, client, tls", "memory", "client_kb", "tls", "", 42, True),
    Target("KB per idle stream, server, mux", "memory", "server_kb", "mux", "", 6, True),
    Target("KB per idle stream, client, mux", "memory", "client_kb", "mux", "", 6, True),
    *(
        Target(
            f"start-up, {end}, tls", "startup", f"{end}_ms", "tls", startup.BASELINE, 2.5, True
        )
        for end in ("client", "server")
    ),
    *(
        Target(f"bulk through the gateway, {proxy}", "gateway", "down", proxy, "wss+mux", 0.85)
        for proxy in ("CONNECT", "SOCKS5")
    ),
    *(
        Target(
            f"new connections per second, {proxy}", "gateway", "conns", proxy, f"{proxy} peer", 1.5
        )
        for proxy in ("CONNECT", "SOCKS5")
    ),
    Target("echo beside downloads, ms, CONNECT", "gateway", "echo_ms", "CONNECT", "", 8, True),
    Target("KB per idle connection, gateway", "gateway", "gateway_kb", "CONNECT", "", 30, True),
    Target("KB per idle connection, agent", "gateway", "agent_kb", "CONNECT", "", 12, True),
    Target("KB per agent at rest", "agents", "agent_kb", "anyproxy-gateway", "", 45, True),
)  # fmt: skip


def value(target: Target, run: Run) -> float | None:
    """The measured value; None without one."""
    if target.against:
        return run.ratio(target.row, target.cell, target.column, target.against)
    return run.median(target.row, target.cell, target.column)


def met(target: Target, measured: float) -> bool:
    return measured <= target.limit if target.at_most else measured >= target.limit
