"""The load generators iperf3, wrk and ab: how to run them, and what their output says."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from typing import NamedTuple

from bench.processes import LOOPBACK, BenchError, address, find_tool, run_tool

# Beyond its own duration a generator needs a moment; this much later it hangs.
PATIENCE = 20.0

# New connections that are under way at any time: enough to keep all ends busy.
CONCURRENCY = 16

_TIME_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3}


class Transfer(NamedTuple):
    """What an iperf3 run has received."""

    size: int
    seconds: float

    @property
    def gbit(self) -> float:
        return self.size * 8 / self.seconds / 1e9


class Requests(NamedTuple):
    """What wrk has seen: how many answers, how many per second; latencies in ms."""

    answers: int
    rate: float
    p50: float
    p99: float


class Connections(NamedTuple):
    """New connections: how many were made, and how many per second."""

    made: int
    rate: float


def iperf(port: int, *, amount: tuple[str, str], down: bool) -> Transfer:
    """One connection at full speed. `amount`: ("-t", seconds) or ("-n", bytes). BenchError."""
    argv = [find_tool("iperf3"), "-c", LOOPBACK, "-p", str(port), *amount, "-J"]
    return parse_iperf(run_tool([*argv, "-R"] if down else argv, PATIENCE))


def parse_iperf(text: str) -> Transfer:
    """The result in what `iperf3 -J` prints. Raises BenchError if there is none."""
    try:
        report = json.loads(text)
        if "error" in report:
            raise BenchError(f"iperf3: {report['error']}")
        received = report["end"]["sum_received"]
        transfer = Transfer(int(received["bytes"]), float(received["seconds"]))
    except (ValueError, KeyError, TypeError):
        raise BenchError("iperf3 printed no result") from None
    if transfer.size <= 0 or transfer.seconds <= 0:
        raise BenchError("iperf3 received nothing")
    return transfer


def wrk(port: int, *, connections: int, seconds: int, keep_alive: bool = True) -> Requests:
    """Requests, one after the other on each of `connections`. Raises BenchError.

    Without `keep_alive` each has a connection of its own, which wrk closes when it has the answer.
    """
    argv = [find_tool("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    if not keep_alive:
        argv += ["-H", "Connection: close"]
    return parse_wrk(run_tool([*argv, f"http://{address(port)}/"], seconds + PATIENCE))


def parse_wrk(text: str) -> Requests:
    """The result in what `wrk --latency` prints. Raises BenchError if anything went wrong."""
    for trouble in (r"Socket errors:.*", r"Non-2xx or 3xx responses:.*"):
        if match := re.search(trouble, text):
            raise BenchError(f"wrk: {match[0]}")
    answers = re.search(r"(\d+) requests in", text)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    p50, p99 = (re.search(rf"\s{share}%\s+([\d.]+)(us|ms|s|m)\b", text) for share in (50, 99))
    if not (answers and rate and p50 and p99) or not float(rate[1]):
        raise BenchError("wrk printed no result")
    latencies = (float(found[1]) * _TIME_UNITS[found[2]] for found in (p50, p99))
    return Requests(int(answers[1]), float(rate[1]), *latencies)


def new_connections(port: int, *, seconds: int) -> Connections:
    """A connection per request, closed by the client. Raises BenchError."""
    if not find_tool("wrk"):
        return _own_generator(port, seconds=seconds)
    result = wrk(port, connections=CONCURRENCY, seconds=seconds, keep_alive=False)
    return Connections(result.answers, result.rate)


def ab(port: int, *, seconds: int, limit: int) -> Connections:
    """A connection per request, at most `limit`, and the server must close it. BenchError."""
    # -n after -t, which sets it to 50 000.
    argv = [find_tool("ab"), "-q", "-c", str(CONCURRENCY), "-t", str(seconds), "-n", str(limit)]
    return parse_ab(run_tool([*argv, f"http://{address(port)}/"], seconds + PATIENCE))


def parse_ab(text: str) -> Connections:
    """The result in what ab prints. Raises BenchError if anything went wrong."""
    found = {
        key: re.search(rf"^{key}:\s+([\d.]+)", text, re.MULTILINE)
        for key in ("Complete requests", "Failed requests", "Requests per second")
    }
    made, failed, rate = found.values()
    if not (made and failed):
        raise BenchError("ab printed no result")
    if int(failed[1]) or "Non-2xx responses" in text:
        raise BenchError(f"ab: {failed[1]} of {made[1]} requests failed")
    # Not one within the time is a result: some tunnels take seconds to pass an end on.
    return Connections(int(made[1]), float(rate[1]) if rate else 0.0)


def _own_generator(port: int, *, seconds: int) -> Connections:
    """What wrk does, with threads of this process; they limit the rate to a few thousand."""
    counts: list[int] = []
    failures: list[Exception] = []
    start = time.monotonic()

    def work() -> None:
        count = 0
        try:
            while time.monotonic() - start < seconds:
                with socket.create_connection((LOOPBACK, port), PATIENCE) as connection:
                    connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    if not connection.recv(4096):
                        raise BenchError("a connection was closed without an answer")
                count += 1
        except (OSError, BenchError) as error:
            failures.append(error)
        counts.append(count)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(CONCURRENCY)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures or not any(counts):
        raise BenchError(f"new connections: {failures[0] if failures else 'none'}")
    return Connections(sum(counts), sum(counts) / (time.monotonic() - start))
