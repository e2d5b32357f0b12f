"""The commands as programs: exit codes, what they print, and what they hand to the engine."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import mtt_client
import mtt_server
from mtt import __version__
from mtt.errors import UsageError
from mtt.options.flags import by_name, parse_args
from mtt.options.tunnel import ClientOptions, ServerOptions
from mtt.options.tunnel_file import TUNNELS
from mtt.options.usage import usage
from mtt.process.command import Command, Start, given_options
from mtt.process.systemd import Inherited
from tests.support.processes import command as command_line
from tools.commands import COMMANDS

ROOT = Path(__file__).parents[1]

# Options of the peer that a help text names.
OF_THE_OTHER_END = {"client-ca", "d", "wss"}

PLUGIN = {
    "SS_REMOTE_HOST": "127.0.0.1",
    "SS_REMOTE_PORT": "443",
    "SS_LOCAL_HOST": "127.0.0.1",
    "SS_LOCAL_PORT": "1080",
}


def run(command: str, *argv: str, **environ: str) -> tuple[int, str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SS_")}
    done = subprocess.run(
        [*command_line(command), *argv], cwd=ROOT,
        env=inherited | environ, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_version_and_help(command: str) -> None:
    assert run(command, "-version") == (0, f"{command} {__version__}\n", "")
    code, out, err = run(command, "-h")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: {command} [option ...]\n")


@pytest.mark.parametrize(
    ("command", "argv", "environ", "words"),
    [
        ("mtt-client", [], {}, "-b is missing"),
        ("mtt-client", ["-b", "localhost:1"], {}, "-s is missing"),
        ("mtt-client", ["-b", "localhost:1", "-s", "a:1", "-wss", "true"], {}, "-wss=true"),
        ("mtt-client", ["-b", "localhost:1", "-s", "a:1", "-timeout", "0"], {}, "-timeout"),
        ("mtt-client", [], {"SS_LOCAL_HOST": "127.0.0.1"}, "SS_LOCAL_PORT"),
        ("mtt-client", [], {**PLUGIN, "SS_PLUGIN_OPTIONS": "wss;nope=1"}, "option nope"),
        ("mtt-client", ["--nope"], PLUGIN, "-nope"),
        ("mtt-server", [], {}, "-b is missing"),
        ("mtt-server", ["-b", ":1"], {}, "-d is missing"),
        ("mtt-server", ["-b", ":1", "-d", "localhost:2", "-cert", "x"], {}, "-key"),
        ("mtt-server", [], {**PLUGIN, "SS_PLUGIN_OPTIONS": "wss,key=/k"}, "-cert"),
        ("mtt-client", [], {**PLUGIN, "SS_PLUGIN_OPTIONS": "anytls"}, "-p is missing"),
        ("mtt-client", [], {**PLUGIN, "SS_PLUGIN_OPTIONS": "p=secret"}, "-p: only meaningful"),
        ("mtt-server", [], {**PLUGIN, "SS_PLUGIN_OPTIONS": "anytls;p=s;wss"}, "-wss exclude"),
        ("anytls-client", [], {}, "-s is missing"),
        ("anytls-client", ["-s", "a:1"], {}, "-p is missing"),
        ("anytls-client", ["-s", "a:1", "-p", "x", "-nope"], {}, "-nope"),
        ("anytls-server", [], {}, "-p is missing"),
        ("anytls-server", ["-p", "x", "-allow", "nonsense"], {}, "-allow"),
        ("anyproxy-client", [], {}, "-config: cannot read configs/config.yaml"),
        ("anyproxy-client", ["-config", "/none.toml"], {}, "-config: cannot read /none.toml"),
        ("anyproxy-gateway", ["--config=/none.json"], {}, "-config: cannot read /none.json"),
        ("anyproxy-gateway", ["-c", "x"], {}, "write -config FILE"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    command: str, argv: list[str], environ: dict[str, str], words: str
) -> None:
    code, out, err = run(command, *argv, **environ)
    assert (code, out) == (2, "")
    assert err.startswith(f"{command}: ")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_help_has_examples_that_are_understood(command: Command) -> None:
    assert len(command.examples) == 2
    for _, line in command.examples:
        name, *arguments = shlex.split(line)
        assert name == command.name
        assert parse_args(command.flags, arguments)
    text = usage(command.flags, command.name, command.description, command.examples)
    assert max(map(len, text.splitlines())) < 80


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_help_names_only_options_that_the_command_has(command: Command) -> None:
    known = by_name(command.flags)
    named = {
        name
        for text in (command.description, *(flag.help for flag in command.flags))
        for name in re.findall(r"(?<![\w/.:-])-([A-Za-z][\w-]*)", text)
    }
    assert {"log-level"} <= named
    assert named - known.keys() <= OF_THE_OTHER_END


def test_help_into_a_closed_pipe() -> None:
    receiver, sender = os.pipe()
    os.close(receiver)
    try:
        done = subprocess.run(
            [sys.executable, ROOT / "mtt_client.py", "-h"],
            stdout=sender, stderr=subprocess.PIPE, timeout=20, check=False,
        )  # fmt: skip
    finally:
        os.close(sender)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("command", ["mtt_client", "mtt_server"])
def test_help_and_errors_do_not_wait_for_the_engine(command: str) -> None:
    code = (
        f"import sys; before = set(sys.modules); import {command}; "
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20,
        check=True,
    )  # fmt: skip
    imported = set(done.stdout.split())
    assert command in imported
    assert not imported & {"asyncio", "cryptography", "logging", "difflib", "textwrap"}


class Recorder:
    """Stands for the engine's Client and Server."""

    def __init__(self, options: Any, protect: Any = None) -> None:
        self.options, self.protect = options, protect


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (("mtt.client", "Client"), ("mtt.server", "Server")):
        fake = types.ModuleType(module)
        setattr(fake, name, Recorder)
        monkeypatch.setitem(sys.modules, module, fake)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("plugin", [True, False])
def test_client_gets_its_options(plugin: bool) -> None:
    client: Any = mtt_client.service({"b": ":1", "s": "a:2"}, Start(plugin))
    assert isinstance(client.options, ClientOptions)
    assert client.options.plugin == plugin
    assert client.protect is None


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    ("environ", "proxy"),
    [
        ({}, "None"),
        ({"https_proxy": "http://proxy:3128"}, "proxy:3128"),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "a"}, "None"),
    ],
)
@pytest.mark.parametrize("wanted", [True, False])
def test_client_takes_the_proxy_of_the_environment_on_request(
    wanted: bool, environ: dict[str, str], proxy: str
) -> None:
    complete = mtt_client.COMMAND.complete
    assert complete is not None
    given = {"b": ":1", "s": "a:2"} | ({"proxy": "env"} if wanted else {})
    client: Any = mtt_client.service(complete(given, environ), Start())
    assert str(client.options.proxy) == (proxy if wanted else "None")


@pytest.mark.usefixtures("engine")
def test_vpn_protection_on_request() -> None:
    client: Any = mtt_client.service({"b": ":1", "s": "a:2", "V": True}, Start(True))
    assert client.protect.__self__.__class__.__name__ == "VpnProtection"


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("plugin", [True, False])
def test_server_gets_its_options(plugin: bool) -> None:
    server: Any = mtt_server.service({"b": ":1", "d": "a:2"}, Start(plugin))
    assert isinstance(server.options, ServerOptions)
    assert server.options.plugin == plugin


@pytest.mark.usefixtures("engine")
def test_sockets_of_systemd_stand_for_the_address() -> None:
    start = Start(sockets=(Inherited(3, "a"), Inherited(4, "b")))
    client: Any = mtt_client.service({"s": "a:2"}, start)
    assert (client.options.bind, client.options.sockets) == (None, (3, 4))
    server: Any = mtt_server.service({"b": ":1", "d": "a:2"}, start)
    assert (server.options.bind, server.options.sockets) == (None, (3, 4))


@pytest.mark.parametrize("command", ["mtt_client", "mtt_server"])
def test_no_configuration_modules_without_a_file(command: str) -> None:
    code = (
        f"import sys, {command} as program; from mtt.process.command import Start; "
        "given = {'b': '127.0.0.1:0', 's': 'a:1', 'sv': True} "
        "if 'client' in program.__name__ else {'b': '127.0.0.1:0', 'd': 'a:1'}; "
        "service = program.service(program.COMMAND.complete(given, {}), Start(True)); "
        "service.load(); print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20,
        check=True,
    )  # fmt: skip
    loaded = set(done.stdout.split())
    assert "mtt.tunnels.service" in loaded
    assert not loaded & {
        "mtt.options.tunnel_file", "mtt.options.tree", "mtt.options.section", "tomllib",
        "mtt.process.configuration", "mtt.net.relisten", "mtt.observe.sums",
        "mtt.configured", "mtt.configured.plan",
    }  # fmt: skip


def test_a_plugin_with_a_configuration_file(tmp_path: Path) -> None:
    """Shadowsocks decides on the addresses, and the plugin's options override the file."""
    path = tmp_path / "t.json"
    path.write_text('{"b": ":3", "s": "b:4", "n": "c", "timeout": "2m", "mux": true}')
    environ = PLUGIN | {"SS_PLUGIN_OPTIONS": f"config={path};timeout=1m"}
    values, plugin = given_options(mtt_client.COMMAND, [], environ)
    assert plugin is not None
    assert mtt_client.COMMAND.complete is not None
    values = mtt_client.COMMAND.complete(values, environ)
    (tunnel,) = values[TUNNELS].tunnels
    expected = {"b": "127.0.0.1:1080", "s": "127.0.0.1:443", "n": "c", "timeout": 60.0, "mux": True}
    assert tunnel.values == expected
    checked = mtt_client.prepare(tunnel.values, Start(True)).options
    assert isinstance(checked, ClientOptions)
    assert checked.plugin


def test_a_plugin_is_not_only_checked() -> None:
    with pytest.raises(UsageError, match="plugin option check is not an option"):
        given_options(mtt_client.COMMAND, [], PLUGIN | {"SS_PLUGIN_OPTIONS": "check"})
