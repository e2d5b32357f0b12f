"""As plugins of shadowsocks-libev: curl -> ss-local -> mtt-client => mtt-server -> ss-server."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pytest

from mtt.options.links import command_line
from mtt.options.tunnel import SERVER_FLAGS
from plugin.options import parse_options
from tests.real.checks import http_transfers
from tests.real.destinations import PAGE, Site
from tests.support.certs import Authority, Certs
from tests.support.documents import blocks, changed
from tests.support.processes import (
    ROOT,
    Process,
    Processes,
    command,
    eventually,
    free_port,
    is_free,
    listening,
    run,
)
from tests.support.programs import require_program

MODES = {
    "tls": "",
    "wss": "wss",
    "wss with a path": "wss;wss-path=/some/path",
    "mux": "mux",
    "wss+mux": "wss;mux",
    "v2ray+mux": "v2ray;mux",
    "anytls": r"anytls;p=pass\;word",
}


class Pair(NamedTuple):
    """A running ss-server and ss-local with their plugins."""

    server: Process
    local: Process
    server_port: int
    socks: str


class Shadowsocks:
    """Starts the programs of shadowsocks-libev with our commands as their plugins."""

    def __init__(self, processes: Processes, certs: Certs, directory: Path) -> None:
        self._processes = processes
        self._directory = directory
        self.server_port = free_port()
        self.local_port = free_port()
        self.server_options = f"cert={certs.cert};key={certs.key}"
        self.client_options = f"n={certs.name};ca={certs.ca}"

    def start_pair(self, mode: str = "", hosts: list[str] | None = None) -> Pair:
        hosts = hosts or ["127.0.0.1"]
        server = self.start("ss-server", "mtt-server", f"{mode};{self.server_options}", hosts)
        listening(server)
        local = self.start("ss-local", "mtt-client", f"{mode};{self.client_options}", hosts)
        listening(local)
        local.expect(rf"listening at 127\.0\.0\.1:{self.local_port}")
        return Pair(server, local, self.server_port, f"127.0.0.1:{self.local_port}")

    def start(
        self, program: str, plugin: str, options: str, hosts: list[str] | None = None
    ) -> Process:
        """Start `program` with the option string `options` for `plugin`."""
        config = {
            "server": hosts or ["127.0.0.1"],
            "server_port": self.server_port,
            "local_address": "127.0.0.1",
            "local_port": self.local_port,
            "password": "a password of the tests",
            "method": "aes-128-gcm",
            "mode": "tcp_only",
            "timeout": 60,
        }
        path = self._directory / f"{program}.json"
        path.write_text(json.dumps(config))
        return self._processes.start(
            require_program(program), "-c", path,
            "--plugin", self.executable(plugin), "--plugin-opts", options,
            cwd=self._directory,
        )  # fmt: skip

    def executable(self, plugin: str) -> Path:
        """Shadowsocks wants one executable file, as pip makes them in the directory `bin`."""
        if plugin == "ss-v2ray-plugin":
            return Path(require_program(plugin))
        if plugin.startswith("ss-"):
            return Path(require_program(plugin))
        path = self._directory / plugin
        path.write_text(f'#!/bin/sh\nexec {shlex.join(command(plugin))} "$@"\n')
        path.chmod(0o755)
        return path


def fetch_page(pair: Pair, site: Site) -> bytes:
    curl = require_program("curl")
    return run(curl, "-sSf", "--socks5-hostname", pair.socks, f"http://{site.address}/")


@pytest.fixture
def shadowsocks(processes: Processes, certs: Certs, tmp_path: Path) -> Shadowsocks:
    return Shadowsocks(processes, certs, tmp_path)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_transfers(mode: str, shadowsocks: Shadowsocks, site: Site, tmp_path: Path) -> None:
    pair = shadowsocks.start_pair(mode)
    http_transfers(f"http://{site.address}", tmp_path, "--socks5-hostname", pair.socks)
    for process in (pair.local, pair.server):
        assert "WARNING" not in process.output
        assert "ERROR" not in process.output


def test_phone_with_v2ray_plugin(shadowsocks: Shadowsocks, certs: Certs, site: Site) -> None:
    """With the plugin options of the document, and the plugin's default mux."""
    document = (ROOT / "docs/v2ray-plugin.md").read_text()
    (options,) = re.findall(r'"plugin_opts": "(wss;.*?)"', document)
    (phone,) = re.findall(r"`(tls;host=.*?)`", document)
    options = options.replace("fullchain.pem", certs.cert).replace("privkey.pem", certs.key)
    server = shadowsocks.start("ss-server", "mtt-server", options)
    listening(server)
    phone = phone.replace("example.com", certs.name)
    local = shadowsocks.start("ss-local", "ss-v2ray-plugin", f"{phone};cert={certs.ca}")
    local.expect("started")
    socks = f"127.0.0.1:{shadowsocks.local_port}"
    local.expect(f"listening at {re.escape(socks)}")
    assert fetch_page(Pair(server, local, shadowsocks.server_port, socks), site) == PAGE


def test_the_files_of_the_document(
    processes: Processes, site: Site, shadowsocks: Shadowsocks, tmp_path: Path
) -> None:
    for name, content in zip(("cert", "key"), Authority("CA").issue("example.com"), strict=True):
        (tmp_path / name).touch(0o600)
        (tmp_path / name).write_bytes(content)
    port, local_port = free_port(), free_port()
    server, client = map(json.loads, blocks("shadowsocks.md", "json"))
    own = {"server": "127.0.0.1", "server_port": port}
    for program, config, places in (
        ("ss-server", server, {"/etc/ssl/fullchain.pem": f"{tmp_path}/cert",
                               "/etc/ssl/privkey.pem": f"{tmp_path}/key"}),
        ("ss-local", client, {"example.com": f"example.com;ca={tmp_path}/cert"}),
    ):  # fmt: skip
        plugin = shadowsocks.executable(Path(config["plugin"]).name)
        options = changed(config["plugin_opts"], places)
        config |= own | {"plugin": str(plugin), "plugin_opts": options}
        if "local_port" in config:
            config["local_port"] = local_port
        path = tmp_path / f"{program}.json"
        path.write_text(json.dumps(config))
        process = processes.start(require_program(program), "-c", path, cwd=tmp_path)
        listening(process)
    process.expect("listening at")
    pair = Pair(process, process, port, f"127.0.0.1:{local_port}")
    assert fetch_page(pair, site) == PAGE


def test_plugin_in_the_path(
    processes: Processes, shadowsocks: Shadowsocks, tmp_path: Path
) -> None:
    plugin = shadowsocks.executable("mtt-server")
    server = processes.start(
        require_program("ss-server"), "-s", "127.0.0.1", "-p", str(shadowsocks.server_port),
        "-k", "secret", "-m", "aes-128-gcm", "--plugin", plugin.name,
        "--plugin-opts", shadowsocks.server_options,
        cwd=Path("/"), env={"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
    )  # fmt: skip
    listening(server)


@pytest.mark.parametrize("mode", [r"wss;wss-path=/a b\;c%", "anytls;p=x y"])
def test_printed_plugin_options_work(
    mode: str, shadowsocks: Shadowsocks, site: Site, tmp_path: Path
) -> None:
    """What mtt-server prints with -link is all that ss-local needs."""
    shadowsocks.server_options = f"cert-dir={tmp_path / 'identity'}"
    server = shadowsocks.start("ss-server", "mtt-server", f"{mode};{shadowsocks.server_options}")
    listening(server)
    values = parse_options(SERVER_FLAGS, f"{mode};{shadowsocks.server_options}")
    line = command_line("mtt-server", SERVER_FLAGS, values)
    address = f"127.0.0.1:{shadowsocks.server_port}"
    given = (*shlex.split(line)[1:], "-link", "plugin", "-link-server", address)
    options = run(*command("mtt-server"), *given).decode().removesuffix("\n")
    local = shadowsocks.start("ss-local", "mtt-client", options)
    listening(local)
    local.expect("listening at")
    socks = f"127.0.0.1:{shadowsocks.local_port}"
    assert fetch_page(Pair(server, local, shadowsocks.server_port, socks), site) == PAGE


def test_printed_link_works_with_v2ray_plugin(
    shadowsocks: Shadowsocks, certs: Certs, site: Site
) -> None:
    """With the CA in addition, which a phone has already."""
    options = f"wss;wss-path=/p;{shadowsocks.server_options}"
    server = shadowsocks.start("ss-server", "mtt-server", options)
    listening(server)
    address = f"127.0.0.1:{shadowsocks.server_port}"
    link = run(
        *command("mtt-server"), "-wss", "-wss-path", "/p", "-cert", certs.cert, "-key", certs.key,
        "-link", "v2ray", "-link-server", address, "-link-ss", "aes-128-gcm:secret",
    ).decode()  # fmt: skip
    plugin = unquote(urlsplit(link.strip()).query.removeprefix("plugin="))
    name, _, options = plugin.partition(";")
    local = shadowsocks.start("ss-local", f"ss-{name}", f"{options};cert={certs.ca}")
    local.expect("listening at")
    local.expect("started")
    socks = f"127.0.0.1:{shadowsocks.local_port}"
    assert fetch_page(Pair(server, local, shadowsocks.server_port, socks), site) == PAGE


def test_several_addresses(shadowsocks: Shadowsocks, site: Site) -> None:
    """They come to the plugin in one variable, joined by |."""
    hosts = ["127.0.0.1", "::1"]
    pair = shadowsocks.start_pair("wss", hosts)
    port = pair.server_port
    pair.server.expect(rf"listening on 127\.0\.0\.1:{port}, \[::1\]:{port}, wss")
    assert fetch_page(pair, site) == PAGE


def test_a_password_in_a_file(shadowsocks: Shadowsocks, site: Site, tmp_path: Path) -> None:
    """Which no list of processes shows."""
    path = tmp_path / "password"
    path.write_text("pass;word\n")
    path.chmod(0o600)
    pair = shadowsocks.start_pair(f"anytls;password-file={path}")
    assert fetch_page(pair, site) == PAGE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["term", "kill"])
@pytest.mark.parametrize("program", ["ss-local", "ss-server"])
def test_the_plugin_ends_with_shadowsocks(
    program: str,
    number: int,
    shadowsocks: Shadowsocks,
    processes: Processes,
    site: Site,
    tmp_path: Path,
) -> None:
    """Even in the middle of a download, and the port is free for the next one."""
    pair = shadowsocks.start_pair("wss;mux")
    received = tmp_path / "received"
    processes.start(
        require_program("curl"), "-sS", "--limit-rate", "100k", "--output", received,
        "--socks5-hostname", pair.socks, f"http://{site.address}/payload",
    )  # fmt: skip
    eventually(lambda: received.exists() and received.stat().st_size > 0, "the download begins")
    process = pair.local if program == "ss-local" else pair.server
    _, plugin_port = listening(process)
    assert not is_free(plugin_port)
    process.stop(number)
    process.expect_silence()
    eventually(lambda: is_free(plugin_port), f"port {plugin_port} is free again")


@pytest.mark.parametrize(
    ("program", "plugin"), [("ss-local", "mtt-client"), ("ss-server", "mtt-server")]
)
def test_an_unknown_option_ends_both_with_one_line(
    program: str, plugin: str, shadowsocks: Shadowsocks
) -> None:
    process = shadowsocks.start(program, plugin, "wss;sevrer=x")
    assert process.wait() != 0
    lines = [line for line in process.expect_silence().splitlines() if plugin + ":" in line]
    assert len(lines) == 1
    assert "plugin option sevrer" in lines[0]


def test_missing_server_ends_the_connection(shadowsocks: Shadowsocks, site: Site) -> None:
    """curl fails at once, and the log names the server and the reason."""
    local = shadowsocks.start("ss-local", "mtt-client", shadowsocks.client_options)
    listening(local)
    local.expect("listening at")
    with pytest.raises(pytest.fail.Exception, match="curl failed"):
        run(
            require_program("curl"), "-sSf", "--max-time", "10",
            "--socks5-hostname", f"127.0.0.1:{shadowsocks.local_port}", f"http://{site.address}/",
        )  # fmt: skip
    local.expect(rf"WARNING mtt-client: 127\.0\.0\.1:\d+: .*{shadowsocks.server_port}.*refused")
    assert local.running


def test_probes_do_not_reach_the_server(shadowsocks: Shadowsocks, site: Site) -> None:
    """shadowsocks-rust connects and closes to see whether its plugin is there."""
    pair = shadowsocks.start_pair("verbose")
    address = listening(pair.local)
    for _ in range(20):
        socket.create_connection(address).close()
    assert fetch_page(pair, site) == PAGE
    pair.server.expect(r"mtt-server: \S+: open")
    for process in (pair.local, pair.server):
        assert process.output.count(": open") == 1
        assert "WARNING" not in process.output
