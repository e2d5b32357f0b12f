"""Behind a real nginx: it terminates TLS and forwards the WebSocket or the plain stream."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.real.checks import CHECKS, Route, half_close
from tests.real.datagrams import application, echo, udp_server
from tests.real.destinations import PAGE, Site
from tests.real.nginx import start_nginx, stream_module
from tests.real.tunnels import start_client, start_server
from tests.support.certs import Certs
from tests.support.processes import Process, Processes, free_port, run
from tests.support.programs import require_program

# As docs/web-servers.md tells users to configure it, apart from the temporary directories. Without
# "keepalive" nginx would use HTTP/1.1 connections to mtt-server once each.
WEBSOCKET = """
http {{
    access_log off;
    {paths}
    map $http_upgrade $connection_header {{
        default upgrade;
        ''      '';
    }}
    upstream mtt {{
        server 127.0.0.1:{server_port};
        keepalive 4;
    }}
    server {{
        listen 127.0.0.1:{port} ssl http2;
        ssl_certificate {certs.cert};
        ssl_certificate_key {certs.key};
        location /tunnel {{
            proxy_pass http://mtt;
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_header;
        }}
        location / {{
            return 200 "welcome\n";
        }}
    }}
}}
"""

TLS_STREAM = """
stream {{
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {certs.cert};
        ssl_certificate_key {certs.key};
        proxy_pass 127.0.0.1:{server_port};
    }}
}}
"""

PLAIN_STREAM = """
stream {{
    server {{
        listen 127.0.0.1:{port};
        proxy_pass 127.0.0.1:{server_port};
    }}
}}
"""

PATH = ("-wss", "-wss-path", "/tunnel")


class Setup:
    """nginx between our two commands."""

    def __init__(self, processes: Processes, certs: Certs, directory: Path) -> None:
        self._processes = processes
        self._certs = certs
        self._directory = directory
        self.port = free_port()  # of nginx

    def route(self, config: str, options: tuple[str, ...], destination: str) -> int:
        """Start all three; returns the client's port."""
        self.start_server(config, options, destination)
        return start_client(self._processes, self._certs, self.port, *options)[1]

    def start_server(self, config: str, options: tuple[str, ...], destination: str) -> Process:
        """Start mtt-server and nginx, which do TLS or not according to `config`."""
        certs = self._certs if config == PLAIN_STREAM else None
        server, server_port = start_server(self._processes, certs, destination, *options)
        start_nginx(
            self._processes,
            self._directory,
            config,
            modules=stream_module(require_program("nginx")) if config != WEBSOCKET else "",
            certs=self._certs,
            port=self.port,
            server_port=server_port,
        )
        return server


@pytest.fixture
def setup(processes: Processes, certs: Certs, tmp_path: Path) -> Setup:
    return Setup(processes, certs, tmp_path)


SETUPS = {
    "wss": (WEBSOCKET, PATH),
    "wss+mux": (WEBSOCKET, (*PATH, "-mux")),
    "tls-stream": (TLS_STREAM, ()),
    "mux-stream": (TLS_STREAM, ("-mux",)),
    "tls-through-plain-stream": (PLAIN_STREAM, ()),
    "wss-through-plain-stream": (PLAIN_STREAM, PATH),
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
@pytest.mark.parametrize(("config", "options"), SETUPS.values(), ids=SETUPS)
def test_transfers(
    config: str,
    options: tuple[str, ...],
    check: Callable[[Route, Path], None],
    setup: Setup,
    tmp_path: Path,
) -> None:
    check(partial(setup.route, config, options), tmp_path)


@pytest.mark.parametrize("config", [WEBSOCKET, PLAIN_STREAM], ids=["websocket", "plain-stream"])
def test_datagrams(config: str, setup: Setup) -> None:
    with udp_server(echo) as there:
        port = setup.route(config, (*PATH, "-udp"), f"127.0.0.1:{there}")
        with application(port) as sock:
            for size in (1, 1200, 60_000):
                sock.send(bytes(size))
                assert sock.recv(65536) == bytes(size)


def test_half_close_through_a_plain_stream(setup: Setup, tmp_path: Path) -> None:
    half_close(partial(setup.route, PLAIN_STREAM, ()), tmp_path)


def test_ordinary_requests_share_a_connection_with_a_websocket(
    setup: Setup, processes: Processes, certs: Certs, site: Site
) -> None:
    """nginx keeps its connection to mtt-server open, and the upgrade comes on a used one."""
    server = setup.start_server(WEBSOCKET, (*PATH, "-verbose"), site.address)
    curl = (
        require_program("curl"), "-sS", "--cacert", certs.ca,
        "--resolve", f"{certs.name}:{setup.port}:127.0.0.1", "--write-out", "%{http_code} ",
    )  # fmt: skip
    base = f"https://{certs.name}:{setup.port}"
    assert run(*curl, f"{base}/") == b"welcome\n200 "
    assert run(*curl, *[f"{base}/tunnel"] * 3) == b"Bad Request\n400 " * 3
    _, port = start_client(processes, certs, setup.port, *PATH)
    assert run(require_program("curl"), "-sSf", f"http://127.0.0.1:{port}/") == PAGE
    peers = set(re.findall(r"127\.0\.0\.1:\d+(?=: )", server.output))
    assert len(peers) == 1, server.output
