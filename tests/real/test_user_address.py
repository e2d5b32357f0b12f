"""The user's address through real proxies, configured as docs/behind-a-proxy.md says."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.nginx import start_nginx, stream_module
from tests.real.tunnels import start_client, start_server
from tests.support.certs import Certs
from tests.support.processes import ROOT, Processes, accepts, eventually, free_port, run
from tests.support.programs import require_program

DOCUMENT = (ROOT / "docs/behind-a-proxy.md").read_text()
HAPROXY, *_ = re.findall(r"```haproxy\n(.*?)```", DOCUMENT, re.S)
STREAM, LINE, DESTINATION = re.findall(r"```nginx\n(.*?)```", DOCUMENT, re.S)
SITE, *_ = re.findall(r"```nginx\n(.*?)```", (ROOT / "docs/web-servers.md").read_text(), re.S)
SECRET = "/some-secret-path"
TRUSTING = ("-trusted-proxies", "127.0.0.1", "-proxy-protocol", "v1")

# Ours, so that tests end soon.
HAPROXY_TIMES = """
defaults
    timeout check 5s
    default-server inter 20ms

"""


@pytest.fixture
def destination() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(15)
        yield listener


def address(listener: socket.socket) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"


def nginx_blocks(text: str) -> str:
    """A block of a document, for `str.format`."""
    return text.replace("{", "{{").replace("}", "}}")


def named_user(destination: socket.socket, client_port: int) -> list[str]:
    """The fields of the header that the destination gets before the data of a tunnel."""
    with socket.create_connection(("127.0.0.1", client_port), 15) as application:
        application.sendall(b"data")
        connection, _ = destination.accept()
        with connection, connection.makefile("rb") as received:
            fields = received.readline().decode().split()
            assert received.read(4) == b"data"
            connection.sendall(b"answer")
            assert application.recv(6) == b"answer"
    return fields


@pytest.mark.parametrize("mode", [(), ("-wss",), ("-mux",)])
@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2", "send-proxy-v2 check-send-proxy"])
def test_haproxy(
    send: str,
    mode: tuple[str, ...],
    destination: socket.socket,
    processes: Processes,
    certs: Certs,
    tmp_path: Path,
) -> None:
    haproxy = require_program("haproxy")
    options = (*mode, *TRUSTING, "-verbose")
    server, server_port = start_server(processes, certs, address(destination), *options)
    port = free_port()
    config = HAPROXY.replace(":443", f"127.0.0.1:{port}", 1).replace("8443", str(server_port))
    assert "send-proxy-v2" in config
    path = tmp_path / "haproxy.cfg"
    path.write_text(HAPROXY_TIMES + config.replace("send-proxy-v2", send))
    processes.start(haproxy, "-db", "-f", path)
    eventually(lambda: accepts(port), "haproxy listens")
    _, client_port = start_client(processes, certs, port, *mode)
    fields = named_user(destination, client_port)
    assert fields[:4] == ["PROXY", "TCP4", "127.0.0.1", "127.0.0.1"]
    assert fields[5] == str(port)  # the client connected to HAProxy
    # Health checks come all the time.
    eventually(lambda: server.output.count("ended before any data") >= 3, "health checks")
    assert not re.search("WARNING|ERROR", server.output)


@pytest.mark.parametrize("mode", [(), ("-wss", "-mux")])
def test_nginx_forwards_bytes(
    mode: tuple[str, ...],
    destination: socket.socket,
    processes: Processes,
    certs: Certs,
    tmp_path: Path,
) -> None:
    options = (*mode, *TRUSTING)
    server, server_port = start_server(processes, certs, address(destination), *options)
    port = free_port()
    config = STREAM.replace("443;", f"127.0.0.1:{port};", 1).replace("8443", str(server_port))
    modules = stream_module(require_program("nginx"))
    start_nginx(processes, tmp_path, nginx_blocks(config), modules=modules)
    _, client_port = start_client(processes, certs, port, *mode)
    fields = named_user(destination, client_port)
    assert fields[:4] == ["PROXY", "TCP4", "127.0.0.1", "127.0.0.1"]
    assert fields[5] == str(port)  # the client connected to nginx
    assert not re.search("WARNING|ERROR", server.output)


@pytest.mark.parametrize("mux", [(), ("-mux",)])
def test_nginx_forwards_a_path(
    mux: tuple[str, ...],
    destination: socket.socket,
    processes: Processes,
    certs: Certs,
    tmp_path: Path,
) -> None:
    options = ("-wss", "-wss-path", SECRET, *mux)
    server, server_port = start_server(
        processes, None, address(destination), *options, *TRUSTING
    )  # fmt: skip
    port = free_port()
    config = SITE.replace("443 ssl", f"127.0.0.1:{port} ssl").replace("8443", str(server_port))
    config = config.replace("/etc/ssl/fullchain.pem", certs.cert)
    config = config.replace("/etc/ssl/privkey.pem", certs.key)
    config = config.replace("proxy_read_timeout", f"{LINE}proxy_read_timeout")
    blocks = "http {{ access_log off; {paths}\n" + nginx_blocks(config) + "}}\n"
    start_nginx(processes, tmp_path, blocks)
    _, client_port = start_client(processes, certs, port, *options)
    # X-Forwarded-For has no port, and the server is the one behind nginx.
    header = ["PROXY", "TCP4", "127.0.0.1", "127.0.0.1", "0", str(server_port)]
    assert named_user(destination, client_port) == header
    assert not re.search("WARNING|ERROR", server.output)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_nginx_is_the_destination(
    version: str, processes: Processes, certs: Certs, tmp_path: Path
) -> None:
    port = free_port()
    config = DESTINATION.replace("8080", str(port))
    answer = 'real_ip_header proxy_protocol; return 200 "$remote_addr:$proxy_protocol_port";'
    config = config.replace("real_ip_header proxy_protocol;", answer)
    blocks = "http {{ access_log off; {paths}\n" + nginx_blocks(config) + "}}\n"
    start_nginx(processes, tmp_path, blocks)
    options = ("-proxy-protocol", version, "-verbose")
    server, server_port = start_server(processes, certs, f"127.0.0.1:{port}", *options)
    _, client_port = start_client(processes, certs, server_port)
    said = run(require_program("curl"), "-sSf", f"http://127.0.0.1:{client_port}/").decode()
    assert server.expect(r"(127\.0\.0\.1:\d+): open")[1] == said
