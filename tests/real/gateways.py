"""Gateways of AnyProxy and their agents, each in a process of its own."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.anyproxy.serving import GROUP, PASSWORD
from tests.real.destinations import MB, SOCKET_TIMEOUT, payload
from tests.real.nginx import start_nginx
from tests.support.certs import Certs
from tests.support.processes import Process, Processes, clean_environment, free_port, run
from tests.support.programs import require_program

ANY = "127.0.0.1:0"
LOGIN = f"{GROUP}:{PASSWORD}"


@dataclass(frozen=True)
class Gateway:
    """A running gateway: its process and its ports on 127.0.0.1."""

    process: Process
    port: int  # of the agents
    http: int
    socks5: int

    def wait_for(self, agent: str, times: int = 1) -> None:
        """Wait until an agent has joined, as often as this."""
        self.process.expect(rf"(?s)(agent '{agent}-r0' joined .*){{{times}}}")


def start_gateway(
    processes: Processes,
    certs: Certs,
    directory: Path,
    *,
    http: dict[str, Any] | None = None,
    socks5: dict[str, Any] | None = None,
    port: int = 0,
    name: str = "gateway",
    constants: Mapping[str, object] | None = None,
) -> Gateway:
    """Start a gateway; its configuration file is in `directory`.

    `http`, `socks5`: more keys of its proxies. `constants`: see `Processes.command`.
    """
    tls = {"tls_cert": certs.cert, "tls_key": certs.key}
    proxies = {
        "http": {"listen_addr": ANY, **(http or {})},
        "socks5": {"listen_addr": ANY, **(socks5 or {})},
    }
    tree = {"listen_addr": f"127.0.0.1:{port}", **tls, "proxy": proxies}
    process = _start(processes, directory, "gateway", name, tree, constants)
    found = process.expect(
        r"listening on 127.0.0.1:(\d+), agents, "
        r"HTTP proxy on 127.0.0.1:(\d+), SOCKS5 proxy on 127.0.0.1:(\d+)"
    )
    return Gateway(process, *map(int, found.groups()))


def start_agent(
    processes: Processes,
    certs: Certs,
    directory: Path,
    *gateways: Gateway,
    name: str = "agent",
    times: int = 1,
    **keys: Any,
) -> Process:
    """Start an agent that joins these gateways, and wait until it has, for the nth time.

    `keys`: more keys of its configuration file, which is in `directory`.
    """
    addresses = [f"wss://127.0.0.1:{gateway.port}" for gateway in gateways]
    tree = {
        "id": name,
        "group_id": GROUP,
        "group_password": PASSWORD,
        "gateway": {"addr": addresses, "ca": certs.ca, "server_name": certs.name},
        **keys,
    }
    process = _start(processes, directory, "client", name, tree)
    for gateway in gateways:
        gateway.wait_for(name, times)
    return process


def _start(
    processes: Processes,
    directory: Path,
    kind: str,
    name: str,
    tree: dict[str, Any],
    constants: Mapping[str, object] | None = None,
) -> Process:
    path = directory / f"{name}.json"
    path.touch(0o600)  # it has passwords
    path.write_text(json.dumps({kind: tree}))
    process = processes.command(
        f"anyproxy-{kind}", "-config", path, "-log-level", "debug", constants=constants
    )
    process.name = name
    return process


def connect(gateway: Gateway, port: int) -> socket.socket:
    """A tunnel to a port of 127.0.0.1 behind an agent, through the HTTP proxy."""
    user = socket.create_connection(("127.0.0.1", gateway.http), timeout=SOCKET_TIMEOUT)
    login = base64.b64encode(LOGIN.encode()).decode()
    head = f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nProxy-Authorization: Basic {login}\r\n\r\n"
    user.sendall(head.encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):  # byte by byte, because a target may speak first
        byte = user.recv(1)
        assert byte, f"closed after {answer!r}"
        answer += byte
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    return user


# A web server behind an agent, and curl in front of the gateways.

NGINX = """
http {{
    access_log {directory}/access.log;
    {paths}
    server {{
        listen 127.0.0.1:{port};
        listen 127.0.0.1:{tls_port} ssl http2;
        ssl_certificate {certs.cert};
        ssl_certificate_key {certs.key};
        root {directory}/www;
        client_max_body_size 100m;
        location /put/ {{
            dav_methods PUT;
        }}
        location /limited/ {{
            dav_methods PUT;
            client_max_body_size 1k;
        }}
        location = /empty {{
            return 204;
        }}
    }}
}}
"""

# curl's options for each proxy.
PROXIES = {
    "http": ("--proxy", "http://127.0.0.1:{plain.http}"),
    "http-connect": ("--proxytunnel", "--proxy", "http://127.0.0.1:{plain.http}"),
    "https": ("--proxy", "https://localhost:{secure.http}"),
    "https-connect": ("--proxytunnel", "--proxy", "https://localhost:{secure.http}"),
    "socks5": ("--proxy", "socks5h://127.0.0.1:{plain.socks5}"),
}


@dataclass(frozen=True)
class Network:
    """A web server behind an agent of two gateways.

    `secure` has an HTTPS proxy, `plain` one without TLS.
    """

    certs: Certs
    plain: Gateway
    secure: Gateway
    site: Path  # the server's files
    port: int
    tls_port: int

    def url(self, path: str = "", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}/{path}"

    def curl(self, proxy: str, *arguments: str | Path, stdin: bytes = b"") -> bytes:
        """What curl prints; it must succeed."""
        program = require_program("curl")
        return run(program, *self._options(proxy), "--fail", *arguments, stdin=stdin)

    def curl_tries(self, proxy: str, *requests: tuple[str | Path, ...]) -> str:
        """What curl prints, however the requests end."""
        arguments: list[str | Path] = [require_program("curl")]
        for request in requests:
            arguments += [*self._options(proxy), "--output", "/dev/null", *request, "--next"]
        done = subprocess.run(
            arguments[:-1], stdout=subprocess.PIPE, env=clean_environment(), check=False
        )
        return done.stdout.decode()

    def _options(self, proxy: str) -> list[str]:
        return [
            *("--silent", "--show-error", "--max-time", "25"),
            *("--cacert", self.certs.ca, "--proxy-cacert", self.certs.ca),
            *("--proxy-user", LOGIN),
            *(part.format(plain=self.plain, secure=self.secure) for part in PROXIES[proxy]),
        ]


@contextlib.contextmanager
def network_in(directory: Path, certs: Certs) -> Iterator[Network]:
    """Run all programs of a network."""
    site = directory / "www"
    (site / "put").mkdir(parents=True)
    (site / "payload").write_bytes(payload())
    (site / "megabyte").write_bytes(payload(MB))
    (site / "page").write_text("a page\n")
    ports = {"port": free_port(), "tls_port": free_port()}
    with Processes() as processes:
        start_nginx(processes, directory, NGINX, certs=certs, **ports)
        plain = start_gateway(processes, certs, directory)
        tls = {"tls_cert": certs.cert, "tls_key": certs.key}
        secure = start_gateway(processes, certs, directory, http=tls, name="secure")
        start_agent(processes, certs, directory, plain, secure)
        yield Network(certs, plain, secure, site, **ports)
