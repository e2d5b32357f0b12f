"""Five hundred connections that never finish their request head: slowhttptest, from Debian."""

from __future__ import annotations

import re
import socket
import time

import pytest

from tests.real.destinations import Destination, echo
from tests.real.tunnels import start_client, start_server
from tests.support.certs import Certs
from tests.support.processes import Process, Processes
from tests.support.programs import require_program

CONNECTIONS = 500
RATE = 250  # new ones per second: all TLS handshakes are through in a few seconds
TEST_TIME = 9  # seconds; the server cuts a request head after 10
# What one honest connection may take while all that goes on, however busy the machine is. A client
# that waited until the others leave, of which all have come after two seconds, would need longer.
HONEST_TIME = 5.0
# It says now and then, in colours, how many of its connections are open.
COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
STATUS = re.compile(r"connected:\s+(\d+)")


def honest(port: int) -> float:
    """Send something through a new tunnel and wait for it to come back; the seconds it took."""
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), HONEST_TIME) as connection:
        connection.sendall(b"honest" * 100)
        received = b""
        while len(received) < 600 and (data := connection.recv(4096)):
            received += data
    assert received == b"honest" * 100
    return time.monotonic() - start


def most_connected(attacker: Process) -> int:
    return max(map(int, STATUS.findall(COLOUR.sub("", attacker.output))), default=0)


@pytest.mark.deadline(60)
def test_an_honest_client_works_beside_a_slow_loris(processes: Processes, certs: Certs) -> None:
    attack = (
        require_program("slowhttptest"), "-H", "-c", CONNECTIONS, "-r", RATE, "-l", TEST_TIME,
        "-i", 2, "-p", 5, "-x", 24,
    )  # fmt: skip
    with Destination(echo) as destination:
        server, server_port = start_server(processes, certs, destination.address, "-wss")
        _, port = start_client(processes, certs, server_port, "-wss")
        honest(port)
        attacker = processes.start(*map(str, attack), "-u", f"https://127.0.0.1:{server_port}/")
        slowest = 0.0
        while attacker.running:
            slowest = max(slowest, honest(port))
            time.sleep(0.05)
        attacker.expect_silence()
        assert most_connected(attacker) > CONNECTIONS // 2, attacker.output
        assert slowest < HONEST_TIME
        assert "Traceback" not in server.output
        assert "internal error" not in server.output
        honest(port)
