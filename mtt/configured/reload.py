"""Applies a new configuration to running tunnels.

    unchanged tunnel   keeps its listening sockets, connections and sessions
    changed tunnel     a new service takes over the address; the old one finishes its connections
    removed tunnel     stops listening, and finishes its connections
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

from mtt.configured.plan import Plan, PlannedTunnel
from mtt.configured.tunnels import RunningTunnel, Tunnels, describe_certificates
from mtt.errors import StartError
from mtt.net.relisten import Occupant, listen_again, listen_instead
from mtt.options.common import ServiceOptions
from mtt.process.configuration import Changes

# The listening sockets of new tunnels, by name, from the process that has bound them.
Sockets = Mapping[str, Sequence[int]]


class Change:
    """The difference between a plan and the running tunnels.

    Attributes:
        planned: the tunnels to start.
        former: the tunnels to end.
        changes: for the log.
    """

    def __init__(self, tunnels: Tunnels, wanted: Plan) -> None:
        self._tunnels = tunnels
        self._wanted = wanted
        before, self.changes = tunnels.plan, Changes()
        for name in ("grace", "workers", "loop"):
            values = (getattr(each.process, name) for each in (before, wanted))
            self.changes.refuse(name, *values)
        self.changes.refuse("metrics", before.metrics, wanted.metrics)
        self._same = unchanged(tunnels.running, wanted.tunnels)
        self._slots: list[RunningTunnel | PlannedTunnel] = [
            self._same.get(each.name, each) for each in wanted.tunnels
        ]
        self._keep_busy()
        self.planned = [each for each in self._slots if isinstance(each, PlannedTunnel)]
        self.former = [each for each in tunnels.running if each not in self._slots]

    def _keep_busy(self) -> None:
        """Keep a running tunnel whose file or address a new one needs, but cannot share."""
        owners = {
            thing: each
            for each in self._tunnels.running
            if each not in self._slots
            for thing in each.planned.prepared.alone
        }
        for number, slot in enumerate(self._slots):
            for thing in slot.prepared.alone if isinstance(slot, PlannedTunnel) else ():
                owner = owners.get(thing)
                if owner is not None:
                    self.changes.refused.append(f"{owner.name} ({thing})")
                    self._slots[number] = owner
                    owners = {key: each for key, each in owners.items() if each is not owner}
                    break

    def make(self) -> list[RunningTunnel]:
        """Make the new tunnels. May take a while. Raises MttError."""
        new = [RunningTunnel(each, self._wanted.file, self._tunnels) for each in self.planned]
        describe_certificates(new)  # for the log
        return new

    def heirs(self, new: Iterable[RunningTunnel]) -> dict[RunningTunnel, RunningTunnel | None]:
        """Find the former tunnel at the address of each new one, if any."""
        free = [each for each in self.former if each.service.is_listening]
        found: dict[RunningTunnel, RunningTunnel | None] = {}
        for each in new:
            at = each.service.listens_at
            found[each] = next((other for other in free if other.service.listens_at == at), None)
            free = [other for other in free if other is not found[each]]
        return found

    def finish(self, new: Sequence[RunningTunnel]) -> list[RunningTunnel]:
        """All tunnels of the plan, after the new ones listen."""
        tunnels, wanted, before = self._tunnels, self._wanted, self._tunnels.plan
        process = before.process._replace(log_level=wanted.process.log_level)
        tunnels.plan = wanted._replace(metrics=before.metrics, process=process)
        tunnels.admission.limit = wanted.max_conns
        renamed = 0
        for planned in wanted.tunnels:
            if planned.name in self._same:
                renamed += self._same[planned.name].name != planned.name
                self._same[planned.name].rename(planned)  # its place may have changed as well
        names = {each.name for each in self.former}
        changed = sum(each.name in names for each in new)
        self.changes.add("max-conns", before.max_conns, wanted.max_conns)
        self.changes.count(len(new) - changed, "tunnel", "tunnels", "added")
        self.changes.count(len(self.former) - changed, "tunnel", "tunnels", "removed")
        self.changes.count(changed, "tunnel", "tunnels", "changed")
        self.changes.count(renamed, "tunnel", "tunnels", "renamed")
        made = iter(new)
        return [next(made) if isinstance(each, PlannedTunnel) else each for each in self._slots]


async def apply(tunnels: Tunnels, wanted: Plan, sockets: Sockets | None = None) -> Changes:
    """Apply a plan. If it raises MttError, nothing has changed.

    In a worker, `sockets` are those of new tunnels at new addresses.
    """
    change = Change(tunnels, wanted)
    new = await asyncio.to_thread(change.make)
    try:
        await _start(change.heirs(new), change.former, sockets)
    except BaseException:
        await _undo(tunnels, new, change.former)
        raise
    if tunnels.is_over:
        await _undo(tunnels, new, change.former)
        return Changes()
    tunnels.use(change.finish(new))
    if sockets is None:
        for each in new:
            each.run(each.service.announce)
    return change.changes


def unchanged(
    running: Iterable[RunningTunnel], wanted: Iterable[PlannedTunnel]
) -> Mapping[str, RunningTunnel]:
    """The running tunnels with the options of the plan, by their names in the plan."""
    at: dict[object, list[RunningTunnel]] = {}
    for each in running:
        at.setdefault(_address(each.planned.prepared.options), []).append(each)
    found: dict[str, RunningTunnel] = {}
    for planned in wanted:
        options = planned.prepared.options
        rest = at.get(_address(options), [])
        same = [each for each in rest if each.planned.prepared.options == options]
        if same:
            one = next((each for each in same if each.name == planned.name), same[0])
            rest.remove(one)
            found[planned.name] = one
    return found


def _address(options: ServiceOptions) -> object:
    return options.bind, options.bind_unix, options.sockets


async def _start(
    heirs: Mapping[RunningTunnel, RunningTunnel | None],
    former: Iterable[RunningTunnel],
    sockets: Sockets | None,
) -> None:
    """Start new tunnels. One at a former tunnel's address takes over its sockets."""

    async def bind() -> None:
        fresh = [each for each, old in heirs.items() if old is None]
        try:
            for each in fresh:
                await each.wait(bound(each, sockets))
        except BaseException:
            for each in fresh:
                each.service.stop_listening()
            raise

    leaving = [each for each in former if each not in heirs.values() and each.service.is_listening]
    await listen_instead(bind, [_occupant(each) for each in leaving])
    for each, old in heirs.items():
        if old is not None:
            old.service.hand_over(each.service)
        await each.wait(each.service.start())


async def bound(each: RunningTunnel, sockets: Sockets | None) -> None:
    """Listen for a new tunnel at a new address. Raises StartError."""
    if sockets is not None:
        await each.service.adopt(sockets[each.name])
        return
    if each.planned.prepared.options.sockets:
        raise StartError("its inherited socket was closed with its former tunnel; restart")
    await each.service.bind()


async def _undo(
    tunnels: Tunnels, new: Iterable[RunningTunnel], former: Iterable[RunningTunnel]
) -> None:
    """Stop new tunnels, whether started or not, and let the former ones listen again."""
    for each in new:
        await each.task(each.service.close())
    if not tunnels.is_over:
        await listen_again(
            [_occupant(each) for each in former if not each.service.is_listening]
        )


def _occupant(each: RunningTunnel) -> Occupant:
    return Occupant(
        f"the tunnel {each.name}",
        each.service.stop_listening,
        lambda: each.wait(each.service.listen()),
    )
