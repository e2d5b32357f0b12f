"""anyproxy-gateway and anyproxy-client as programs, started with configuration files."""

from __future__ import annotations

import base64
import http.client
import json
import re
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.certs import Certs
from tests.support.processes import ROOT, Processes, command

PASSWORD = "a group's password"


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"behind the gateway"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def page() -> Iterator[int]:
    """The port of a web site."""
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def write(folder: Path, name: str, tree: dict[str, Any]) -> Path:
    path = folder / name
    path.touch(0o600)
    path.write_text(json.dumps(tree))
    return path


def gateway_tree(certs: Certs) -> dict[str, Any]:
    return {
        "log": {"format": "json"},
        "gateway": {
            "listen_addr": "127.0.0.1:0",
            "tls_cert": certs.cert,
            "tls_key": certs.key,
            "auth_username": "agents",
            "auth_password": "${AGENTS}",
            "proxy": {"http": {"listen_addr": "127.0.0.1:0"}},
        },
    }


def client_tree(certs: Certs, port: int) -> dict[str, Any]:
    return {
        "client": {
            "id": "home",
            "group_id": "family",
            "group_password": PASSWORD,
            "gateway": {
                "addr": f"wss://127.0.0.1:{port}",
                "ca": certs.ca,
                "server_name": certs.name,
                "auth_username": "agents",
                "auth_password": "${AGENTS}",
            },
        }
    }


def test_a_page_behind_the_gateway(
    certs: Certs, tmp_path: Path, processes: Processes, page: int
) -> None:
    environ = {"AGENTS": "secret"}
    config = write(tmp_path, "gateway.json", gateway_tree(certs))
    gateway = processes.start(
        *command("anyproxy-gateway"), "--config", config, env=environ, cwd=ROOT
    )
    agents, users = gateway.expect(
        r'"msg": ?"listening on 127.0.0.1:(\d+), .*HTTP proxy on 127.0.0.1:(\d+)'
    ).groups()
    config = write(tmp_path, "client.json", client_tree(certs, int(agents)))
    client = processes.start(
        *command("anyproxy-client"), "-config", config, env=environ, cwd=ROOT
    )
    client.expect(r"(?m)^\S+ \S+ INFO anyproxy-client: connected to the gateway")

    login = base64.b64encode(f"family:{PASSWORD}".encode()).decode()
    connection = http.client.HTTPConnection("127.0.0.1", int(users), timeout=10)
    connection.request(
        "GET", f"http://127.0.0.1:{page}/", headers={"Proxy-Authorization": f"Basic {login}"}
    )
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b"behind the gateway")
    connection.close()
    assert client.stop() == 0
    assert gateway.stop() == 0


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="only Unix has SIGHUP")
def test_sighup_reloads_the_configuration(
    certs: Certs, tmp_path: Path, processes: Processes
) -> None:
    environ = {"AGENTS": "secret"}
    tree = gateway_tree(certs)
    config = write(tmp_path, "gateway.json", tree)
    gateway = processes.start(
        *command("anyproxy-gateway"), "-config", config, env=environ, cwd=ROOT
    )
    agents = gateway.expect(r"listening on 127.0.0.1:(\d+), ")[1]
    client_of = client_tree(certs, int(agents))
    client_config = write(tmp_path, "client.json", client_of)
    client = processes.start(
        *command("anyproxy-client"), "-config", client_config, env=environ, cwd=ROOT
    )
    client.expect("connected to the gateway")

    config.write_text("{broken")
    gateway.send(signal.SIGHUP)
    gateway.expect("the old configuration stays in use: -config: .*gateway.json: not JSON")
    tree["gateway"]["proxy"]["socks5"] = {"listen_addr": "127.0.0.1:0"}
    tree["gateway"]["listen_addr"] = "127.0.0.1:1"
    write(tmp_path, "gateway.json", tree)
    gateway.send(signal.SIGHUP)
    gateway.expect("reloaded: 1 proxy added")
    gateway.expect("changed, but not before a restart: gateway.listen_addr")

    client_of["client"]["forbidden_hosts"] = ["10.0.0.0/8"]
    write(tmp_path, "client.json", client_of)
    client.send(signal.SIGHUP)
    client.expect("reloaded: rules")
    assert client.stop() == 0
    assert gateway.stop() == 0


@pytest.mark.parametrize("end", ["gateway", "client"])
def test_check(certs: Certs, tmp_path: Path, processes: Processes, end: str) -> None:
    tree = gateway_tree(certs) if end == "gateway" else client_tree(certs, 1)
    config = write(tmp_path, "c.json", tree)
    name = f"anyproxy-{end}"
    arguments: tuple[str | Path, ...] = (*command(name), "-config", config, "-check")
    good = processes.start(*arguments, env={"AGENTS": "secret"}, cwd=ROOT)
    assert good.wait() == 0
    assert good.expect_silence() == f"{name}: the configuration is usable\n"

    bad = processes.start(*arguments, cwd=ROOT)
    assert bad.wait() == 1
    key = "gateway.auth_password" if end == "gateway" else "client.gateway.auth_password"
    text = f"-config: {config}: {key}: the environment variable AGENTS is not set; set it"
    assert text in bad.expect_silence()

    place = tree["gateway"] if end == "gateway" else tree["client"]["gateway"]
    place["tls_cert" if end == "gateway" else "ca"] = "/none.pem"
    write(tmp_path, "c.json", tree)
    bad = processes.start(*arguments, env={"AGENTS": "secret"}, cwd=ROOT)
    assert bad.wait() == 1
    option = "gateway.tls_cert" if end == "gateway" else "client.gateway.ca"
    assert re.search(rf"{option}: .*/none\.pem", bad.expect_silence())
