"""Many connections at once: iperf3 in both directions, and a crowd of curl's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.real.destinations import CROWD, MB, PAGE, Site
from tests.real.tunnels import start_tunnel
from tests.support.certs import Certs
from tests.support.processes import MODES, Processes, free_port, run
from tests.support.programs import require_program

SECONDS = 1
STREAMS = 4

# When time is up the sender stops, and the receiver does not wait for what is still on its way:
# at most the socket buffers of three connections per stream (Linux: 4 and 6 MB each, or twice that
# while it adapts them), and next to nothing of ours.
IN_FLIGHT = 2 * 3 * 10 * MB


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_iperf3(
    options: tuple[str, ...], direction: str, processes: Processes, certs: Certs
) -> None:
    iperf3 = require_program("iperf3")
    destination_port = free_port()
    destination = processes.start(
        iperf3, "--server", "--port", str(destination_port), "--one-off", "--forceflush"
    )
    destination.expect("Server listening")
    port = start_tunnel(processes, certs, f"127.0.0.1:{destination_port}", *options)
    report = json.loads(
        run(
            iperf3, "--client", "127.0.0.1", "--port", str(port), "--json",
            "--time", str(SECONDS), "--parallel", str(STREAMS),
            *(["--reverse"] if direction == "down" else []),
        )
    )  # fmt: skip
    assert "error" not in report
    streams = report["end"]["streams"]
    assert len(streams) == STREAMS
    # In order of size: a tunnel does not keep the order in which connections were made, so the
    # two ends do not number them alike.
    sent, received = (
        sorted(stream[end]["bytes"] for stream in streams) for end in ("sender", "receiver")
    )
    for more, less in zip(sent, received, strict=True):
        assert 0 < less <= more <= less + IN_FLIGHT
    assert destination.wait() == 0


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_a_hundred_connections_at_once(
    options: tuple[str, ...], processes: Processes, certs: Certs, site: Site, tmp_path: Path
) -> None:
    """The page comes only when all of them are asking for it."""
    curl = require_program("curl")
    port = start_tunnel(processes, certs, site.address, *options)
    run(
        curl, "--silent", "--show-error", "--fail", "--max-time", "25",
        "--parallel", "--parallel-immediate", "--parallel-max", str(CROWD),
        "--output", tmp_path / "#1", f"http://127.0.0.1:{port}/crowd?[1-{CROWD}]",
    )  # fmt: skip
    pages = [path.read_bytes() for path in tmp_path.iterdir()]
    assert pages == [PAGE] * CROWD
