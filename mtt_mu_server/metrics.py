"""The numbers for GET /metrics, in Prometheus' text format 0.0.4."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from mtt import __version__
from mtt_mu_server.records import fingerprint
from mtt_mu_server.users import Users

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Users between two turns for others: their lines take about 1 ms.
SLICE = 100


@dataclass(slots=True)
class Events:
    """What is counted from the start on, besides what `Users` counts."""

    started: float  # Unix time
    unknown: int = 0  # requests that led to no user
    full: int = 0  # connections of users who had as many as they may
    dial_failures: int = 0
    commands: Mapping[str, int] = field(default_factory=dict)  # by result


def render(users: Users, events: Events, *, each: bool) -> Generator[None, None, list[bytes]]:
    """The page in pieces, returned after any number of yields; with `each`, users have lines."""
    for index, path in enumerate(users.live_paths()):
        users.settle(path)
        if index % SLICE == SLICE - 1:
            yield
    text = [
        _metric("info", "gauge", "The version that runs.", {f'version="{__version__}"': 1}),
        _metric("start_time_seconds", "gauge", "Unix time of the start.", {"": events.started}),
        _metric("users", "gauge", "Users that are known.", {"": len(users)}),
        _metric("tunnels", "gauge", "Connections of users that are open.",
                {"": users.tunnels_open}),
        _metric("sessions", "gauge", "Multiplexed connections that are open.",
                {"": users.sessions_open}),
        _metric("tunnels_opened_total", "counter", "Connections of users so far.",
                {"": users.tunnels_total}),
        _metric("transferred_bytes_total", "counter", "Bytes carried for users, up being from "
                "them.", {'direction="up"': users.bytes_up, 'direction="down"': users.bytes_down}),
        _metric("refused_total", "counter", "Requests and connections that were refused.",
                {'reason="unknown"': events.unknown, 'reason="full"': events.full}),
        _metric("dial_failures_total", "counter", "Destinations that could not be reached.",
                {"": events.dial_failures}),
        _metric("commands_total", "counter", "Commands of the operator.",
                {f'result="{name}"': count for name, count in events.commands.items()}),
    ]  # fmt: skip
    pieces = ["".join(text).encode("ascii")]
    if each:
        pieces += yield from _each_user(users)
    return pieces


def _each_user(users: Users) -> Generator[None, None, list[bytes]]:
    """Lines of those who have been here. Their paths are secret, so `id` stands for them."""
    moved: dict[str, int] = {}
    opened: dict[str, int] = {}
    open_now: dict[str, int] = {}
    seen: dict[str, int] = {}
    for index, path in enumerate(users.seen_paths()):
        used = users.statistics(path)
        if used is not None:
            label = f'id="{fingerprint(path)}"'
            moved[f'{label},direction="up"'] = used.bytes_up
            moved[f'{label},direction="down"'] = used.bytes_down
            opened[label] = used.total_conns
            open_now[label] = used.open_conns
            seen[label] = used.last_seen
        if index % SLICE == 0:
            yield
    metrics = (
        ("user_transferred_bytes_total", "counter", "Bytes carried for one user.", moved),
        ("user_tunnels_opened_total", "counter", "Connections of one user so far.", opened),
        ("user_tunnels", "gauge", "Connections of one user that are open.", open_now),
        ("user_last_seen_seconds", "gauge", "Unix time at which one user was here.", seen),
    )
    pieces = []
    for name, kind, about, values in metrics:
        pieces.append(_header(name, kind, about).encode("ascii"))
        lines = (_line(name, labels, value) for labels, value in values.items())
        while some := list(islice(lines, SLICE)):
            pieces.append("".join(some).encode("ascii"))
            yield
    return pieces


def _metric(name: str, kind: str, about: str, values: Mapping[str, float]) -> str:
    lines = [_line(name, labels, value) for labels, value in values.items()]
    return _header(name, kind, about) + "".join(lines)


def _header(name: str, kind: str, about: str) -> str:
    return f"# HELP mtt_mu_{name} {about}\n# TYPE mtt_mu_{name} {kind}\n"


def _line(name: str, labels: str, value: float) -> str:
    return f"mtt_mu_{name}{f'{{{labels}}}' if labels else ''} {value}\n"
