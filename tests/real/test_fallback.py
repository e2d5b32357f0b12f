"""A real web site behind `-fallback`: what a browser sees, and that tunnels pass beside it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.real.destinations import PAGE, Site
from tests.real.nginx import start_nginx
from tests.real.tunnels import start_client, start_server
from tests.support.certs import Certs
from tests.support.contexts import trusting_context
from tests.support.processes import ROOT, Processes, free_port, listening, run
from tests.support.programs import require_program

SECRET = "/a-secret-path"

CONFIG = """
http {{
    access_log {directory}/access.log;
    {paths}
    client_max_body_size 100m;
    server {{
        listen 127.0.0.1:{port};
        root {directory}/www;
        location /uploads/ {{
            dav_methods PUT;
            create_full_put_path on;
        }}
    }}
}}
"""


@pytest.fixture
def web(processes: Processes, tmp_path: Path) -> tuple[str, Path]:
    """A running nginx with a page, and where it keeps its files."""
    files = tmp_path / "www"
    (files / "uploads").mkdir(parents=True)
    (files / "index.html").write_text("<title>a shop</title>")
    port = free_port()
    start_nginx(processes, tmp_path, CONFIG, port=port)
    return f"127.0.0.1:{port}", files


@pytest.fixture(params=["mtt-server", "mtt-mu-server"])
def server_port(
    request: pytest.FixtureRequest,
    processes: Processes,
    certs: Certs,
    site: Site,
    web: tuple[str, Path],
) -> int:
    """A server of either kind with one secret path, and nginx for all visitors."""
    if request.param == "mtt-server":
        options = ("-wss", "-wss-path", SECRET, "-fallback", web[0])
        return start_server(processes, certs, site.address, *options)[1]
    curl = require_program("curl")
    server = processes.start(
        sys.executable, "-m", "mtt_mu_server", "-b", "127.0.0.1:0", "-c", "127.0.0.1:0",
        "-cert", certs.cert, "-key", certs.key, "-fallback", web[0], cwd=ROOT,
    )  # fmt: skip
    panel = server.expect(r"controller on (127.0.0.1:[0-9]+)")[1]
    user = {"opt": 1, "args_bunch": [{"path": SECRET, "dst": site.address}]}
    assert run(curl, "-sSf", "--data", json.dumps(user), f"http://{panel}/") == b'{"res":1}'
    return listening(server)[1]


@pytest.fixture
def browser(server_port: int, certs: Certs) -> tuple[str, ...]:
    return (
        require_program("curl"), "-sS", "--max-time", "30", "--cacert", certs.ca,
        "--resolve", f"{certs.name}:{server_port}:127.0.0.1",
    )  # fmt: skip


def test_a_browser_sees_the_site_and_nothing_else(
    browser: tuple[str, ...], server_port: int, certs: Certs, web: tuple[str, Path], tmp_path: Path
) -> None:
    base = f"https://{certs.name}:{server_port}"
    codes = run(
        *browser, f"{base}/", f"{base}/nothing", f"{base}{SECRET}", "-o", tmp_path / "1",
        "-o", tmp_path / "2", "-o", tmp_path / "3",
        "-w", "%{http_code} %{num_connects} %{header_json}\n",
    ).decode()  # fmt: skip
    assert (tmp_path / "1").read_text() == "<title>a shop</title>"
    # One connection for all three, and the secret path is as unknown as any other.
    assert [line.split()[:2] for line in codes.splitlines() if line[:1].isdigit()] == [
        ["200", "1"], ["404", "0"], ["404", "0"],
    ]  # fmt: skip
    assert (tmp_path / "2").read_bytes() == (tmp_path / "3").read_bytes()
    assert "nginx" in codes


def test_an_upload_arrives_unchanged(
    browser: tuple[str, ...], server_port: int, certs: Certs, web: tuple[str, Path], tmp_path: Path
) -> None:
    data = os.urandom(5_000_000)
    (tmp_path / "data").write_bytes(data)
    url = f"https://{certs.name}:{server_port}/uploads/file"
    code = run(*browser, "-T", tmp_path / "data", "-w", "%{http_code}", url)
    assert code.endswith(b"201")
    assert (web[1] / "uploads" / "file").read_bytes() == data
    assert run(*browser, url) == data


def test_the_tunnel_works_beside_the_site(
    processes: Processes, server_port: int, certs: Certs
) -> None:
    for options in ((), ("-mux",)):
        _, port = start_client(
            processes, certs, server_port, "-wss", "-wss-path", SECRET, *options
        )
        assert run(require_program("curl"), "-sSf", f"http://127.0.0.1:{port}/") == PAGE


def test_no_alpn_but_http_1_1_is_ever_agreed_on(server_port: int, certs: Certs) -> None:
    import socket

    context = trusting_context(certs.ca)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", server_port)) as tcp,
        context.wrap_socket(tcp, server_hostname=certs.name) as tls,
    ):
        assert tls.selected_alpn_protocol() == "http/1.1"
