"""Many changes of a configuration file, with connections open all the time."""

from __future__ import annotations

import gc
import random
import weakref
from pathlib import Path
from typing import Any

from mtt.configured.tunnels import Tunnels
from mtt.server import Server
from tests.support.certs import Certs
from tests.support.configured import File, running, trusting
from tests.support.processes import free_port
from tests.support.tunnels import (
    Tcp,
    check_works,
    connect,
    echo,
    eventually,
    port_of,
    server_at,
    serving,
)

CHANGES = 25
NAMES = ("a", "b", "c", "d")
TIMEOUTS = ("1m", "2m")


async def test_tunnels_match_the_file_after_every_change(
    certs: Certs, tmp_path: Path
) -> None:
    dice = random.Random(7)
    async with serving(echo) as there, server_at("tls", there.port, certs) as server:
        ports = _ports()
        wanted = _draw(dice, ports)
        file = File(tmp_path, _content(certs, server, wanted), "mtt-client")
        async with running(file) as tunnels:
            open_ones: list[Tcp] = []
            for _ in range(CHANGES):
                application = await connect(next(iter(wanted.values()))[0])
                await application.check_echo()
                open_ones.append(application)
                before, wanted = wanted, _draw(dice, ports)
                if wanted == before:
                    continue
                file.write(_content(certs, server, wanted))
                tunnels.reload()
                await eventually(lambda: _found(tunnels) == wanted)  # noqa: B023
                for port in ports:
                    if port in [each for each, _ in wanted.values()]:
                        await check_works(port)
                    else:
                        await _check_refused(port)
                for each in open_ones:
                    await each.check_echo()
            for each in open_ones:
                each.close()
            await eventually(lambda: not tunnels.leaving)
            assert tunnels.tunnels == 0


async def test_nothing_is_left_of_a_removed_tunnel(certs: Certs, tmp_path: Path) -> None:
    async with serving(echo) as there, server_at("tls", there.port, certs) as server:
        one, two = _ports()[:2]
        both = {"a": (one, "1m"), "b": (two, "1m")}
        file = File(tmp_path, _content(certs, server, both), "mtt-client")
        async with running(file) as tunnels:
            await check_works(two)
            removed = weakref.ref(tunnels.running[1].service)
            file.write(_content(certs, server, {"a": (one, "1m")}))
            tunnels.reload()
            await eventually(lambda: len(tunnels.running) == 1 and not tunnels.leaving)
            await eventually(lambda: gc.collect() >= 0 and removed() is None)


def _ports() -> list[int]:
    found: set[int] = set()
    while len(found) < 3:
        found.add(free_port())
    return sorted(found)


def _draw(dice: random.Random, ports: list[int]) -> dict[str, tuple[int, str]]:
    """Some tunnels, each with its port and timeout."""
    count = dice.randint(1, len(ports))
    return {
        name: (port, dice.choice(TIMEOUTS))
        for name, port in zip(
            dice.sample(NAMES, count), dice.sample(ports, count), strict=True
        )
    }


def _content(
    certs: Certs, server: Server, wanted: dict[str, tuple[int, str]]
) -> dict[str, Any]:
    address = f"127.0.0.1:{port_of(server)}"
    return trusting(certs) | {
        "s": address,
        "tunnel": [
            {"name": name, "b": f"127.0.0.1:{port}", "timeout": timeout}
            for name, (port, timeout) in wanted.items()
        ],
    }


def _found(tunnels: Tunnels) -> dict[str, tuple[int, str]]:
    return {
        each.name: (
            port_of(each.service) if each.service.addresses else 0,  # between two services
            f"{each.planned.prepared.options.timeout / 60:.0f}m",
        )
        for each in tunnels.running
    }


async def _check_refused(port: int) -> None:
    try:
        (await connect(port)).close()
    except ConnectionRefusedError:
        return
    raise AssertionError(f"port {port} is open")
