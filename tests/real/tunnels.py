"""Our two commands, started as the two ends of a tunnel."""

from __future__ import annotations

from pathlib import Path

from tests.support.certs import Certs
from tests.support.processes import Process, Processes, listening


def start_server(
    processes: Processes, certs: Certs | None, destination: str, *options: str
) -> tuple[Process, int]:
    """Start an mtt-server with a certificate for `test.local`; without `certs`, without TLS."""
    tls = ("-cert", certs.cert, "-key", certs.key) if certs else ("-disable-tls",)
    server = processes.command("mtt-server", "-b", "127.0.0.1:0", "-d", destination, *tls, *options)
    return server, listening(server)[1]


def start_client(
    processes: Processes, certs: Certs, server_port: int, *options: str
) -> tuple[Process, int]:
    """Start an mtt-client that verifies its server as `test.local`, unless `options` differ."""
    usual = {"-n": certs.name, "-ca": certs.ca}
    verify = [part for name in usual if name not in options for part in (name, usual[name])]
    client = processes.command(
        "mtt-client", "-b", "127.0.0.1:0", "-s", f"127.0.0.1:{server_port}", *verify, *options
    )
    return client, listening(client)[1]


def start_tunnel(processes: Processes, certs: Certs, destination: str, *options: str) -> int:
    """Start both ends with the same `options`; returns the port that leads to `destination`."""
    _, server_port = start_server(processes, certs, destination, *options)
    _, port = start_client(processes, certs, server_port, *options)
    return port


def write_file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
