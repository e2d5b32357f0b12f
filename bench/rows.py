"""What is measured: a row is one kind of load, its cells are the subjects under it.

Every cell is measured once per round, all cells of a row one after the other, so that a machine
that gets slower or faster does so for all of them. Each measurement starts its programs anew.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench import agents, controller, gateway, handshake, layers, loads, peers, startup, udp
from bench.certs import Certs, make_certs
from bench.loads import Effort, Sample, Scene
from bench.processes import Programs, find_tool
from bench.subjects import Subject, empty, our_subjects
from bench.tools import CONCURRENCY

# Differs from wss+mux in the frames of its sessions, which matters where there are many of them.
BULK_ONLY = ("v2ray+mux",)


class Column(NamedTuple):
    key: str  # of the sample
    heading: str
    form: str  # for format()


class Ratio(NamedTuple):
    """One column of a table, divided by that of other cells."""

    column: str
    against: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """`measure` raises BenchError; `missing` says why it is not to be called."""

    name: str
    measure: Callable[[], Sample]
    missing: str = ""


@dataclass(frozen=True)
class Row:
    name: str
    title: str
    columns: tuple[Column, ...]
    cells: tuple[Cell, ...]
    ratios: tuple[Ratio, ...] = ()


class Bench:
    """All rows for `subjects`, with certificates and a directory that lives as long as this."""

    def __init__(self, effort: Effort, subjects: Sequence[Subject]) -> None:
        self._effort = effort
        self._subjects = subjects
        self._temporary = tempfile.TemporaryDirectory(prefix="mtt-bench-")
        self._directory = Path(self._temporary.name)
        self._certs = make_certs(self._directory)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._temporary.cleanup()

    @property
    def certs(self) -> Certs:
        return self._certs

    def rows(self) -> list[Row]:
        effort, certs = self._effort, self._certs
        usual = [subject for subject in self._subjects if subject.name not in BULK_ONLY]
        relays = [subject for subject in usual if subject.client is not None]
        return [
            Row(
                "bulk",
                "Bulk throughput of one connection, iperf3; CPU seconds per GB, client / server",
                (
                    Column("up", "up Gbit/s", ".2f"),
                    Column("down", "down Gbit/s", ".2f"),
                    Column("worst", "worse", ".2f"),
                    Column("up_client", "CPU up client", ".2f"),
                    Column("up_server", "server", ".2f"),
                    Column("down_client", "CPU down client", ".2f"),
                    Column("down_server", "server", ".2f"),
                ),
                self._cells(self._subjects, loads.bulk, "iperf3"),
                (Ratio("worst", ("tls", *peers.NAMES)),),
            ),
            Row(
                "requests",
                "Keep-alive HTTP requests, wrk; latencies in ms; CPU us per request, both ends",
                (
                    Column("rate1", "1 conn, req/s", ".0f"),
                    Column("p50_1", "p50", ".2f"),
                    Column("p99_1", "p99", ".2f"),
                    Column("us_1", "CPU us", ".1f"),
                    Column("rate32", "32 conns, req/s", ".0f"),
                    Column("p50_32", "p50", ".2f"),
                    Column("p99_32", "p99", ".2f"),
                    Column("us_32", "CPU us", ".1f"),
                ),
                self._cells(usual, loads.requests, "wrk"),
                (Ratio("rate32", peers.NAMES), Ratio("us_32", peers.NAMES[1:])),
            ),
            Row(
                "conns",
                f"New connections with one request each, {CONCURRENCY} at a time, closed by the "
                "application (ab: by the destination); CPU us per connection",
                (
                    Column("rate", "conns/s", ".0f"),
                    Column("client_us", "client us", ".0f"),
                    Column("server_us", "server us", ".0f"),
                    Column("ab", "ab conns/s", ".0f"),
                ),
                (
                    *(
                        Cell(
                            name,
                            partial(
                                handshake.measure_handshake,
                                certs,
                                resumed=resumed,
                                count=effort.handshakes,
                            ),
                        )
                        for name, resumed in ((handshake.FULL, False), (handshake.RESUMED, True))
                    ),
                    *self._cells(usual, loads.conns),
                ),
                (
                    Ratio("rate", ("tls", *peers.NAMES)),
                    Ratio("client_us", (handshake.FULL,)),
                    Ratio("server_us", (handshake.FULL,)),
                ),
            ),
            Row(
                "first",
                f"First byte of a new connection, {loads.DELAY * 1000:.0f} ms one way between the "
                "ends; cold: the first after the start, warm: a later one",
                (
                    Column("cold", "cold ms", ".0f"),
                    Column("cold_trips", "round trips", ".1f"),
                    Column("warm", "warm ms", ".0f"),
                    Column("warm_trips", "round trips", ".1f"),
                ),
                self._cells(usual, loads.first_byte),
            ),
            Row(
                "memory",
                f"Memory per idle connection, {effort.idle} of them; mux: per stream, "
                f"{loads.MEMORY_STREAMS} on a connection whose share is included",
                (
                    Column("client_kb", "client KB", ".1f"),
                    Column("server_kb", "server KB", ".1f"),
                    Column("client_mb", "client before, MB", ".1f"),
                    Column("server_mb", "server before, MB", ".1f"),
                ),
                self._cells(relays, loads.memory),
                (Ratio("client_kb", peers.NAMES[1:]), Ratio("server_kb", peers.NAMES[1:])),
            ),
            Row(
                "startup",
                "Start-up, ms from exec until a connection is accepted",
                (Column("client_ms", "client", ".0f"), Column("server_ms", "server", ".0f")),
                (
                    Cell(startup.BASELINE, self._in_scene(startup.measure_baseline)),
                    *self._cells(relays, startup.measure_startup),
                ),
                (
                    Ratio("client_ms", (startup.BASELINE,)),
                    Ratio("server_ms", (startup.BASELINE,)),
                ),
            ),
            Row(
                "udp",
                f"Datagrams of {udp.SIZE} bytes from one application: arrived at full speed; lost "
                f"of {udp.RATE} per second; CPU us for each; an echo",
                (
                    Column("full", "full speed, 1/s", ".0f"),
                    Column("loss", "lost, %", ".2f"),
                    Column("client_us", "client us", ".1f"),
                    Column("server_us", "server us", ".1f"),
                    Column("echo_ms", "echo ms", ".2f"),
                ),
                self._cells(self._with_udp(), udp.measure_udp),
                (Ratio("full", (udp.FRAMES, udp.SOCAT)),),
            ),
            Row(
                "layers",
                "The layers alone, in one process; MB per second of CPU time, both sides apart",
                (
                    Column("send", "send MB/s", ".0f"),
                    Column("receive", "receive MB/s", ".0f"),
                    Column("small", f"{layers.SMALL} bytes, us", ".1f"),
                ),
                tuple(
                    Cell(
                        name,
                        partial(layers.measure_layers, stack, certs, effort.layer_seconds),
                    )
                    for name, stack in layers.STACKS.items()
                ),
            ),
            Row(
                "gateway",
                "anyproxy-gateway and its agent; CPU seconds per GB, us per new connection; an "
                f"echo beside {gateway.NEIGHBOURS} downloads; memory per idle connection",
                (
                    Column("down", "down MB/s", ".0f"),
                    Column("gateway_cpu", "CPU gateway", ".2f"),
                    Column("agent_cpu", "agent", ".2f"),
                    Column("conns", "conns/s", ".0f"),
                    Column("gateway_us", "gateway us", ".0f"),
                    Column("agent_us", "agent us", ".0f"),
                    Column("echo_ms", "echo ms", ".2f"),
                    Column("gateway_kb", "gateway KB", ".1f"),
                    Column("agent_kb", "agent KB", ".1f"),
                ),
                (
                    Cell("wss+mux", self._in_scene(gateway.measure_tunnel)),
                    *(
                        Cell(
                            f"{name}{' peer' if command is gateway.peer_command else ''}",
                            self._in_scene(
                                partial(gateway.measure_gateway, connect=connect, command=command)
                            ),
                            gateway.peer_missing() if command is gateway.peer_command else "",
                        )
                        for command in (gateway.our_command, gateway.peer_command)
                        for name, connect in (
                            ("CONNECT", gateway.by_connect),
                            ("SOCKS5", gateway.by_socks5),
                        )
                    ),
                ),
                (Ratio("down", ("wss+mux", "CONNECT peer")), Ratio("conns", ("CONNECT peer",))),
            ),
            Row(
                "agents",
                f"What {effort.agents} agents at rest cost the gateway, each",
                (
                    Column("agent_kb", "KB", ".1f"),
                    Column("agent_ms", "CPU ms per minute", ".2f"),
                ),
                (Cell("anyproxy-gateway", self._in_scene(agents.measure_agents)),),
            ),
            Row(
                "controller",
                "mtt-mu-server with 100,000 users: commands of 2 MiB, and what users cost",
                (
                    Column("stall_ms", "tunnels stand still, ms", ".1f"),
                    Column("answer_ms", "answered after, ms", ".0f"),
                    Column("few_ns", "lookup among 10, ns", ".0f"),
                    Column("many_ns", "among 100,000, ns", ".0f"),
                    Column("user_bytes", "bytes per user", ".0f"),
                    Column("used_bytes", "once used", ".0f"),
                ),
                (Cell("mtt-mu-server", controller.measure_controller),),
            ),
        ]

    def _with_udp(self) -> list[Subject]:
        chosen = {subject.name for subject in self._subjects}
        others = (udp.FRAMES, udp.SOCAT)
        return [each for each in udp.udp_subjects() if each.name in {*chosen, *others}]

    def _cells(
        self,
        subjects: Sequence[Subject],
        load: Callable[[Scene, Subject], Sample],
        tool: str = "",
    ) -> tuple[Cell, ...]:
        absent = f"not installed: {tool}" if tool and not find_tool(tool) else ""

        def cell(subject: Subject) -> Cell:
            measure = self._in_scene(lambda scene: load(scene, subject))
            return Cell(subject.name, measure, absent or subject.missing)

        return tuple(cell(subject) for subject in subjects)

    def _in_scene(self, measure: Callable[[Scene], Sample]) -> Callable[[], Sample]:
        def run() -> Sample:
            directory = empty(self._directory / "run")
            with Programs(directory) as programs:
                return measure(Scene(programs, self._certs, directory, self._effort))

        return run


def all_subjects() -> list[Subject]:
    """Ours and the peers, a peer between each two of ours, as far as they go."""
    ours, others = our_subjects(), peers.peer_subjects()
    mixed: list[Subject] = []
    while ours or others:
        mixed += ours[:1] + others[:1]
        ours, others = ours[1:], others[1:]
    return mixed
