"""How long commands of full size hold up the event loop of mtt-mu-server, and what users cost.

    python -m bench.controller [-json]

Starts the server in this process, with a database, fills it with 100,000 users, and drives the
controller from a second process with commands just below the limit of 2 MiB, and with requests of
the API. Meanwhile, a probe in the loop asks for a turn every millisecond. What it waits longer is
how long a tunnel would have stood still. That depends on what else the machine does, so there is
also the longest time on the CPU between two turns, which does not; and the probe runs while nothing
happens, for comparison.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

from bench.processes import BenchError
from mtt.users.store import Row
from mtt_mu_server.api import BODY_LIMIT
from mtt_mu_server.options import options
from mtt_mu_server.server import MultiUserServer
from mtt_mu_server.users import Users

USERS = 100_000
LOOKUPS = 200_000
PROBE_INTERVAL = 0.001
LIMIT = 0.020  # seconds a tunnel may stand still
JSON = "-json"
# Requests of the API: each is for another order, but for the last one.
TARGETS = (
    "/api/users",
    "/api/users?sort=dst",
    "/api/users?sort=-bytes",
    "/api/users?search=1:77&sort=dst",
    "/api/users?sort=dst&offset=50000",
)

_CLIENT = """
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=60)
connection.request(sys.argv[2], sys.argv[3], sys.stdin.buffer.read())
answer = connection.getresponse()
print(answer.status, answer.read().decode()[:80])
"""


class Probe:
    """How long it waited for its turns in the loop, in seconds, and what the loop did meanwhile."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self._work: list[float] = []  # on the CPU between two turns
        self._worked = 0.0
        self._loop = asyncio.get_running_loop()
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self.waits, self._work = [], []
        self._worked = time.thread_time()
        self._again()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _again(self) -> None:
        self._due = self._loop.time() + PROBE_INTERVAL
        self._timer = self._loop.call_at(self._due, self._turn)

    def _turn(self) -> None:
        self.waits.append(self._loop.time() - self._due)
        worked = time.thread_time()
        self._work.append(worked - self._worked)
        self._worked = worked
        self._again()

    def line(self) -> str:
        self.waits.sort()
        return (
            f"longest {self.waits[-1] * 1e3:5.1f} ms, "
            f"99 % below {self.waits[int(len(self.waits) * 0.99)] * 1e3:5.1f} ms, "
            f"work {max(self._work) * 1e3:4.1f} ms"
        )


def entries(count: int, first: int = 0) -> list[dict[str, str]]:
    """Users as a panel names them."""
    return [
        {
            "path": f"/user-{number:06}-{number * 7919 % 10**8:08}",
            "dst": f"10.0.0.1:{number % 60000 + 1}",
        }
        for number in range(first, first + count)
    ]


def full_body(opt: int, first: int = 0) -> tuple[bytes, int]:
    """A command as large as may be, and how many users it has."""
    one = len(json.dumps(entries(1, 59_998)[0])) + 2  # the longest
    count = (BODY_LIMIT - 100) // one
    body = json.dumps({"opt": opt, "args_bunch": entries(count, first)}).encode()
    assert len(body) < BODY_LIMIT
    return body, count


def memory() -> dict[str, float]:
    """The bytes of a user in memory, before and after the first connection."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    users = Users()
    rows: dict[str, Row] = {}
    for entry in entries(USERS):
        rows[entry["path"]] = (entry["dst"], 0, 0, 0)
    users.put(rows)
    rows = {}
    gc.collect()
    size = (tracemalloc.get_traced_memory()[0] - before) / USERS
    counters = {path: (10**9 + i, 10**9 + i, i, 10**9 + i)
                for i, path in enumerate(users.paths(0, USERS))}  # fmt: skip
    users.load(users.rows, counters, {})
    gc.collect()
    used = (tracemalloc.get_traced_memory()[0] - before) / USERS
    tracemalloc.stop()
    say(f"memory per user, {USERS:,} users: {size:.0f} bytes, once used {used:.0f} bytes")
    return {"user_bytes": size, "used_bytes": used}


def lookups() -> dict[str, float]:
    """The time of a lookup among few and among many users."""
    found = {}
    for count, name in ((10, "few_ns"), (USERS, "many_ns")):
        users = Users()
        names = [entry["path"] for entry in entries(count)]
        users.put(dict.fromkeys(names, ("10.0.0.1:1", 0, 0, 0)))
        step = names[:: max(1, count // 10)]
        start = time.perf_counter()
        for number in range(LOOKUPS):
            users.find(step[number % len(step)])
        spent = (time.perf_counter() - start) / LOOKUPS
        say(f"lookup among {count:7,} users: {spent * 1e9:.0f} ns")
        found[name] = spent * 1e9
    return found


async def ask(port: int, body: bytes, target: str = "") -> str:
    """Send a command, or a GET request for `target`, from a process whose work does not count."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _CLIENT, str(port), "GET" if target else "POST", target or "/",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate(body)
    return output.decode().strip()


@contextlib.asynccontextmanager
async def running(directory: Path) -> AsyncIterator[int]:
    """A server with a database; the port of its controller."""
    given = {"b": "127.0.0.1:0", "c": "127.0.0.1:0", "db": str(directory / "users.sqlite")}
    server = MultiUserServer(options(given))
    await server.start()
    try:
        yield int(server.controller_addresses[0].rpartition(":")[2])
    finally:
        await server.close()


async def stalls(directory: Path) -> dict[str, float]:
    """The longest wait during commands, and the longest of those."""
    probe = Probe()
    longest = slowest = 0.0
    async with running(directory) as port:
        size = full_body(1)[1]
        steps: list[tuple[str, bytes]] = [("ping", b'{"opt":9}')]
        steps += [
            (f"add {size:,} to {first:,}", full_body(1, first)[0])
            for first in range(0, USERS, size)
        ]
        steps += [
            (f"overwrite {size:,}", full_body(1)[0]),
            ("list 1,000", b'{"opt":4}'),
            ("statistics of 1,000", b'{"opt":5}'),
            *((f"GET {target}", b"") for target in TARGETS),
            (f"delete {size:,}", full_body(2)[0]),
            (f"delete and cut {size:,}", full_body(2, size)[0][:-1] + b',"disconnect":true}'),
            ("delete all", b'{"opt":3}'),
        ]
        probe.start()
        await asyncio.sleep(1)
        probe.stop()
        say(f"{'nothing':42} {probe.line()}")
        for name, body in steps:
            probe.start()
            began = time.perf_counter()
            answer = await ask(port, body, name.removeprefix("GET ") if not body else "")
            spent = time.perf_counter() - began
            await asyncio.sleep(0.05)  # what follows the answer counts, too
            probe.stop()
            say(f"{name:42} {probe.line()}, answered after {spent * 1e3:4.0f} ms: {answer[:40]}")
            longest = max(longest, probe.waits[-1])
            slowest = max(slowest, spent)
    return {"stall_ms": longest * 1e3, "answer_ms": slowest * 1e3}


def say(line: str) -> None:
    """Print progress; to stderr with -json, whose output is on stdout."""
    print(line, file=sys.stderr if JSON in sys.argv else sys.stdout)


def measure_controller() -> dict[str, float]:
    """All of it, in a process of its own: for the table of the whole bench."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.controller", JSON],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    if not done.stdout:
        raise BenchError(f"bench.controller failed: {done.stderr.strip()[-200:]}")
    return {name: float(value) for name, value in json.loads(done.stdout).items()}


def main() -> int:
    found = memory() | lookups()
    gc.collect()
    with tempfile.TemporaryDirectory(prefix="mtt-bench-") as directory:
        found |= asyncio.run(stalls(Path(directory)))
    good = found["stall_ms"] <= LIMIT * 1e3
    say(f"limit {LIMIT * 1e3:.0f} ms: {'kept' if good else 'EXCEEDED'}")
    if JSON in sys.argv:
        print(json.dumps(found))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
