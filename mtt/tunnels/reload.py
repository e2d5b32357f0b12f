"""A new configuration of tunnels that run.

    unchanged tunnel   goes on: listening sockets, connections, sessions
    changed tunnel     a new service takes over the address; the old one finishes its connections
    removed tunnel     its address is closed; it finishes its connections
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from functools import partial

from mtt.errors import StartError
from mtt.net.relisten import Occupant, listen_again, listen_instead
from mtt.options.common import ServiceOptions
from mtt.options.flags import Values
from mtt.options.process import CONFIG
from mtt.process.command import Prepare, Start
from mtt.process.configuration import Changes, Configuration
from mtt.tunnels.plan import Plan, Planned, plan
from mtt.tunnels.several import Running, Tunnels


def tunnels_of(values: Values, start: Start, prepare: Prepare) -> Tunnels:
    """The tunnels of the file of -config, which they follow. Raises MttError.

    Args:
        values: the options of the process, with the file's tunnels, see `with_tunnels()`.
        start: how the command was started.
        prepare: checks the options of one tunnel.
    """
    check = partial(plan, start=start, prepare=prepare)
    tunnels = Tunnels(check(values))
    assert start.reread is not None
    tunnels.configuration = Configuration(
        values[CONFIG.name], start.reread, values, check, partial(apply, tunnels)
    )
    return tunnels


async def apply(tunnels: Tunnels, wanted: Plan) -> Changes:
    """Put a plan into effect. Raises MttError, and then all is as before."""
    before, changes = tunnels.plan, Changes()
    for name in ("grace", "workers", "loop"):
        changes.refuse(name, getattr(before.process, name), getattr(wanted.process, name))
    changes.refuse("metrics", before.metrics, wanted.metrics)
    same = unchanged(tunnels.running, wanted.tunnels)
    slots: list[Running | Planned] = [same.get(each.name, each) for each in wanted.tunnels]
    _keep_busy(tunnels, slots, changes)
    planned = [each for each in slots if isinstance(each, Planned)]
    former = [each for each in tunnels.running if each not in slots]
    made = await asyncio.to_thread(
        lambda: {each.name: Running(each, wanted.file, tunnels) for each in planned}
    )
    new = list(made.values())
    try:
        await _start(new, former)
    except BaseException:
        await _undo(tunnels, new, former)
        raise
    if tunnels.is_over:
        await _undo(tunnels, new, former)
        return Changes()

    tunnels.plan = wanted._replace(metrics=before.metrics, process=before.process)
    for each in wanted.tunnels:
        if each.name in same:
            same[each.name].planned = each  # perhaps another name, or place in the file
    tunnels.use([made[each.name] if isinstance(each, Planned) else each for each in slots])
    tunnels.admission.limit = wanted.max_conns
    for running in new:
        running.run(running.service.announce)
    changes.add("max-conns", before.max_conns, wanted.max_conns)
    names = {each.name for each in former}
    changed = sum(each.name in names for each in new)
    changes.count(len(new) - changed, "tunnel", "tunnels", "added")
    changes.count(len(former) - changed, "tunnel", "tunnels", "removed")
    changes.count(changed, "tunnel", "tunnels", "changed")
    return changes


def unchanged(running: Iterable[Running], wanted: Iterable[Planned]) -> Mapping[str, Running]:
    """The tunnels that run with the wanted options, by the names that they should have."""
    at: dict[object, list[Running]] = {}
    for each in running:
        at.setdefault(_address(each.planned.prepared.options), []).append(each)
    found: dict[str, Running] = {}
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


def _keep_busy(tunnels: Tunnels, slots: list[Running | Planned], changes: Changes) -> None:
    """Replace in `slots` what needs a file or address that a running tunnel has alone."""
    owners = {
        thing: each
        for each in tunnels.running
        if each not in slots
        for thing in each.planned.prepared.alone
    }
    for number, slot in enumerate(slots):
        for thing in slot.prepared.alone if isinstance(slot, Planned) else ():
            owner = owners.get(thing)
            if owner is not None:
                changes.refused.append(f"{owner.name} ({thing})")
                slots[number] = owner
                owners = {key: each for key, each in owners.items() if each is not owner}
                break


async def _start(new: Iterable[Running], former: Iterable[Running]) -> None:
    """Start new tunnels, at the addresses of former ones where they are the same."""
    free = [each for each in former if each.service.is_listening]
    heirs: dict[Running, Running | None] = {}
    for each in new:
        at = each.service.listens_at
        heirs[each] = next((other for other in free if other.service.listens_at == at), None)
        free = [other for other in free if other is not heirs[each]]

    async def bind() -> None:
        bound: list[Running] = []
        try:
            for each, old in heirs.items():
                if old is None:
                    bound.append(each)
                    await each.wait(_bound(each))
        except BaseException:
            for each in bound:
                each.service.stop_listening()
            raise

    await listen_instead(bind, [_occupant(each) for each in free])
    for each, old in heirs.items():
        if old is not None:
            old.service.hand_over(each.service)
        await each.wait(each.service.start())


async def _bound(each: Running) -> None:
    if each.planned.prepared.options.sockets:
        raise StartError("its inherited socket was closed with its former tunnel; restart")
    await each.service.bind()


async def _undo(tunnels: Tunnels, new: Iterable[Running], former: Iterable[Running]) -> None:
    """End new tunnels, of which some may have started; former ones listen as before."""
    for each in new:
        await each.task(each.service.close())
    if not tunnels.is_over:
        await listen_again(
            [_occupant(each) for each in former if not each.service.is_listening]
        )


def _occupant(each: Running) -> Occupant:
    return Occupant(
        f"the tunnel {each.name}",
        each.service.stop_listening,
        lambda: each.wait(each.service.listen()),
    )
