"""The tunnels that a configuration file describes, checked one by one and against each other.

Making a plan opens nothing and changes nothing, so a file is checked as a whole before any of it
takes effect.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from mtt.address import Endpoint, overlap
from mtt.errors import UsageError
from mtt.options.common import ServiceOptions, metrics_address
from mtt.options.flags import Values, quoted
from mtt.options.process import WORKERS, ProcessOptions, part_of, process_options
from mtt.options.tunnel_file import TUNNELS, TunnelFile
from mtt.process.command import Prepare, Prepared, Start
from mtt.process.systemd import Inherited


class PlannedTunnel(NamedTuple):
    """One tunnel of a plan."""

    name: str  # as given, else the address; no other tunnel of the plan has it
    place: str  # in the file, for errors
    prepared: Prepared


class Plan(NamedTuple):
    """All tunnels of a process, and what they share."""

    values: Values  # the options and tunnels it was made from
    file: TunnelFile
    tunnels: tuple[PlannedTunnel, ...]
    max_conns: int  # of all tunnels together, 0 for no limit
    metrics: tuple[Endpoint | None, str]  # see common.metrics_address()
    process: ProcessOptions


def plan(values: Values, start: Start, prepare: Prepare) -> Plan:
    """The plan of a file, whose options are `values`, see `with_tunnels()`.

    `prepare` checks the options of one tunnel. Raises UsageError.
    """
    file: TunnelFile = values[TUNNELS]
    if start.plugin and (len(file.tunnels) > 1 or file.tunnels[0].place):
        raise UsageError(f"{file.label}: a plugin has one tunnel; remove [[tunnel]]")
    sockets = dict(_sockets(file, start.sockets))
    names: set[str] = set()
    tunnels = []
    for number, each in enumerate(file.tunnels):
        with file.errors(each.place):
            prepared = prepare(each.values, start._replace(sockets=sockets.get(number, ())))
        name = _free_name(each.name or _address(prepared.options), names)
        names.add(name)
        tunnels.append(PlannedTunnel(name, each.place, prepared))
    max_conns: int = values.get("max-conns", 0)
    process = process_options(values)
    with file.errors():
        if max_conns < 0:
            raise UsageError(f"-max-conns: {max_conns} is less than 0")
        metrics = metrics_address(values) if "metrics" in values else (None, "")
        _refuse_duplicates(tunnels, metrics)
    return Plan(
        values=values,
        file=file,
        tunnels=tuple(tunnels),
        max_conns=part_of(max_conns, {WORKERS.name: process.workers}),
        metrics=metrics,
        process=process,
    )


def _sockets(
    file: TunnelFile, sockets: tuple[Inherited, ...]
) -> Iterator[tuple[int, tuple[Inherited, ...]]]:
    """The inherited sockets of each tunnel, by its number. Raises UsageError."""
    if len(file.tunnels) == 1:
        yield 0, sockets
        return
    numbers = {each.name: number for number, each in enumerate(file.tunnels) if each.name}
    for each in sockets:
        if each.name not in numbers:
            raise UsageError(
                f"inherited socket, descriptor {each.descriptor}: no tunnel has the name "
                f"{quoted(each.name)}; write FileDescriptorName= with that of a tunnel in the "
                "socket unit"
            )
    for name, number in numbers.items():
        yield number, tuple(each for each in sockets if each.name == name)


def _address(options: ServiceOptions) -> str:
    """Where a tunnel listens."""
    if options.bind is not None:
        return str(options.bind)
    return options.bind_unix or f"descriptor {options.sockets[0]}"


def _free_name(wanted: str, names: set[str]) -> str:
    """`wanted`, or this name with a number if it is taken."""
    name, number = wanted, 1
    while name in names:
        number += 1
        name = f"{wanted} ({number})"
    return name


def _refuse_duplicates(
    tunnels: Iterable[PlannedTunnel], metrics: tuple[Endpoint | None, str]
) -> None:
    """Raise UsageError if two tunnels have the same address, file or socket."""
    used: list[tuple[str, Endpoint]] = [("metrics", metrics[0])] if metrics[0] is not None else []
    owners: dict[str, str] = {metrics[1]: "metrics"} if metrics[1] else {}
    for each in tunnels:
        place, options = each.place or "the tunnel", each.prepared.options
        if options.bind is not None:
            for other, address in used:
                if overlap(options.bind, address):
                    also = "" if address == options.bind else f" (there as {address})"
                    raise UsageError(
                        f"{other} and {place} listen on one address, {options.bind}{also}; "
                        "change one"
                    )
            used.append((place, options.bind))
        for thing in (*([options.bind_unix] if options.bind_unix else []), *each.prepared.alone):
            if thing in owners:
                raise UsageError(f"{owners[thing]} and {place} both use {thing}; change one")
            owners[thing] = place
