"""What tunnels lead to: `python -m bench.destination echo|http PORT`, and nginx where there is.

`echo` answers with what it gets; `http` answers every request with the same page, and is used
when nginx is not installed.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from bench.processes import LOOPBACK, Program, Programs, find_tool, free_port

PAGE = b"x" * 128
BACKLOG = 4096

_NGINX = """
daemon off;
pid {directory}/nginx.pid;
error_log stderr crit;
worker_processes 1;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests 100000000;
    tcp_nodelay on;
    server {{
        listen {host}:{port} backlog={backlog};
        location / {{ return 200 "{page}"; }}
    }}
}}
"""


def start_iperf(programs: Programs) -> int:
    """Start an iperf3 server; returns its port. Raises BenchError."""
    port = free_port()
    program = programs.start([find_tool("iperf3"), "-s", "-B", LOOPBACK, "-p", str(port)])
    return _ready(program, port)


def start_site(programs: Programs, directory: Path) -> int:
    """Start a small web site, of nginx if that is installed. Raises BenchError."""
    port = free_port()
    nginx = find_tool("nginx")
    if not nginx:
        return _ready(programs.start(_own("http", port)), port)
    config = directory / "nginx.conf"
    config.write_text(
        _NGINX.format(
            directory=directory, host=LOOPBACK, port=port, backlog=BACKLOG, page=PAGE.decode()
        )
    )
    # -e: or it opens its compiled-in log before it has read the configuration.
    argv = [nginx, "-e", "stderr", "-p", str(directory), "-c", str(config)]
    return _ready(programs.start(argv), port)


def start_echo(programs: Programs) -> int:
    """Start a server that echoes. Raises BenchError."""
    port = free_port()
    return _ready(programs.start(_own("echo", port)), port)


def _own(kind: str, port: int) -> list[str]:
    return [sys.executable, "-m", "bench.destination", kind, str(port)]


def _ready(program: Program, port: int) -> int:
    program.wait_listening(port)
    return port


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Http(Echo):
    """Requests without a body, as wrk and ab send them."""

    def __init__(self) -> None:
        self.head = b""

    def data_received(self, data: bytes) -> None:
        self.head += data
        while (end := self.head.find(b"\r\n\r\n")) >= 0:
            request, self.head = self.head[:end], self.head[end + 4 :]
            stays = b"HTTP/1.1" in request
            kind = b"keep-alive" if stays else b"close"
            self.transport.write(
                b"HTTP/1.1 200 OK\r\nConnection: %s\r\nContent-Length: %d\r\n\r\n%s"
                % (kind, len(PAGE), PAGE)
            )
            if not stays:
                self.transport.close()


async def serve(kind: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    protocol = {"echo": Echo, "http": Http}[kind]
    server = await loop.create_server(protocol, LOOPBACK, port, backlog=BACKLOG)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
