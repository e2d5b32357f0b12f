"""`python -m soak [SCENARIO ...]`: see --help."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from soak import churn, dead, faults, fuzz, fuzz_gateway, gateway, line, udp
from soak.programs import MODES, Programs
from soak.report import Broken, say
from tests.support.certs import make_certs

SCENARIOS = {
    "faults": "connections through a proxy that cuts, resets, stalls, drops and corrupts",
    "gateway": "a gateway and its agents: faults, restarts, reloads",
    "line": "delay, loss and a narrow link",
    "udp": "datagrams through a proxy that cuts, resets, stalls, drops and corrupts",
    "churn": "short connections by the ten thousand",
    "fuzz": "random and mutated input for every parser and every port",
    "dead": "a network that goes away and returns",
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    listing = "\n".join(f"  {name:8} {text}" for name, text in SCENARIOS.items())
    parser = argparse.ArgumentParser(
        "python -m soak",
        description="Soak tests of the whole tunnel. Without names, all of them:\n" + listing,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO")
    parser.add_argument(
        "--connections", type=int, default=2000, help="of faults, per mode, and of gateway (2000)"
    )
    parser.add_argument("--churn", type=int, default=50_000, help="connections of churn (50000)")
    parser.add_argument("--seconds", type=float, default=120.0, help="of fuzz (120)")
    parser.add_argument("--seed", type=int, default=1, help="of everything random (1)")
    parser.add_argument("--modes", default=",".join(MODES), help="separated by commas")
    arguments = parser.parse_args(argv)
    arguments.modes = arguments.modes.split(",")
    for kind, names, known in (
        ("scenario", arguments.scenarios, SCENARIOS), ("mode", arguments.modes, MODES),
    ):  # fmt: skip
        for name in names:
            if name not in known:
                parser.error(f"there is no {kind} {name!r}; choose from {', '.join(known)}")
    arguments.scenarios = arguments.scenarios or list(SCENARIOS)
    return arguments


async def run(arguments: argparse.Namespace) -> None:
    """Run the scenarios one after the other. Raises Broken."""
    modes, seed = arguments.modes, arguments.seed
    chosen = set(arguments.scenarios)
    # Most of the time of `dead` is waiting: it runs beside another one.
    if {"fuzz", "dead"} <= chosen:
        chosen -= {"fuzz", "dead"}
        chosen.add("fuzz and dead")

    async def all_fuzz(programs: Programs) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fuzz.soak(programs, modes, arguments.seconds, seed))
            group.create_task(fuzz_gateway.soak(programs, arguments.seconds, seed))

    async def fuzz_and_dead(programs: Programs) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(all_fuzz(programs))
            group.create_task(dead.soak(programs, modes))

    table: dict[str, Callable[[Programs], Awaitable[None]]] = {
        "faults": lambda programs: faults.soak(programs, modes, arguments.connections, seed),
        "gateway": lambda programs: gateway.soak(programs, arguments.connections, seed),
        "line": lambda programs: line.soak(programs, modes, seed),
        "udp": lambda programs: udp.soak(programs, modes, seed),
        "churn": lambda programs: churn.soak(programs, modes, arguments.churn, seed),
        "fuzz": all_fuzz,
        "dead": lambda programs: dead.soak(programs, modes),
        "fuzz and dead": fuzz_and_dead,
    }
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        certs = make_certs(Path(name))
        for scenario, start in table.items():
            if scenario not in chosen:
                continue
            say(f"{scenario} ...")
            began = time.monotonic()
            with Programs(Path(name), certs) as programs:
                await start(programs)
                await programs.stop()
            say(f"{scenario}: held, in {time.monotonic() - began:.0f} s")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 if an invariant is broken."""
    arguments = parse(argv)
    # Strangers write to connections that are closed: no news.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    with contextlib.suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        asyncio.run(run(arguments))
    except KeyboardInterrupt:
        say("stopped")
        return 130
    except (Broken, BaseExceptionGroup) as error:
        first = _first(error)
        if not isinstance(first, Broken):
            raise
        say(f"BROKEN: {first} (--seed {arguments.seed})")
        return 1
    say("everything held")
    return 0


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    # The programs run in their own sessions, so end them on SIGTERM as well. A shell makes
    # background jobs ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    sys.exit(main())
