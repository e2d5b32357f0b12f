"""The configuration files in `examples/` and in the document about them are usable, and work."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import urllib.request
from pathlib import Path

import pytest

from mtt.configured.plan import Plan, plan
from mtt.options.process import PROCESS_FLAGS
from mtt.process.command import Start
from tests.support.configured import PROGRAMS
from tests.support.processes import PATIENCE, Process, Processes, command
from tests.support.workers import Echo, check_echo, connect

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
DOCUMENT = (ROOT / "docs" / "several-tunnels.md").read_text()
FILES = {
    "tunnels-client.toml": "mtt-client",
    "tunnels-server.toml": "mtt-server",
    "mu-server.toml": "mtt-mu-server",
}
ENVIRON = {
    "TUNNEL_PATH": "f3a9",
    "TUNNEL_PASSWORD": "correct horse",
    "SERVER_PIN": "sha256/vnSCoJ6H4MUgWEVxsGdHSIMnqcxvXQmmVVWyqz6T9xs=",
}


def planned(program: str, path: Path) -> Plan:
    definition, prepare = PROGRAMS[program]
    assert definition.complete is not None
    return plan(definition.complete({"config": str(path)}, ENVIRON), Start(), prepare)


@pytest.mark.parametrize("name", FILES)
def test_examples_are_usable(name: str) -> None:
    path = EXAMPLES / name
    assert planned(FILES[name], path).tunnels
    assert f"{FILES[name]} -config {name}" in path.read_text()


def test_every_example_is_tested() -> None:
    anyproxy = {"client.yaml", "gateway.yaml"}  # tests/anyproxy/test_config_documents.py
    assert {path.name for path in EXAMPLES.iterdir()} == {*FILES, *anyproxy}


BLOCKS = re.findall(r"^```toml\n(.*?)^```$", DOCUMENT, re.M | re.S)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_files_in_the_document_are_usable(number: int, tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.touch(0o600)
    path.write_text(BLOCKS[number])
    program = "mtt-client" if re.search(r"^s = ", BLOCKS[number], re.M) else "mtt-server"
    found = planned(program, path)
    assert len(found.tunnels) == max(1, BLOCKS[number].count("[[tunnel]]"))


def test_the_document_knows_the_keys_of_the_process() -> None:
    (sentence,) = re.findall(r"`config` and `check`.*?level\.", DOCUMENT, re.S)
    of_process = {flag.name for flag in PROCESS_FLAGS if not flag.final}
    assert set(re.findall(r"`([\w-]+)`", sentence)) == of_process | {"config", "metrics"}


# The server's and the client's example, with addresses of this machine.


def addressed(name: str, folder: Path, addresses: dict[str, str]) -> Path:
    """An example with other addresses, by those in it."""
    text = (EXAMPLES / name).read_text()
    for before, now in addresses.items():
        assert f'"{before}"' in text, before
        text = text.replace(f'"{before}"', f'"{now}"')
    path = folder / name
    path.touch(0o600)
    path.write_text(text)
    return path


def start(processes: Processes, program: str, path: Path, **environ: str) -> Process:
    argv = (*command(program), "-config", str(path))
    process = processes.start(*argv, env=ENVIRON | environ, cwd=ROOT)
    process.name = program
    return process


def port_of(process: Process, name: str) -> int:
    return int(process.expect(rf" {name}: listening on \S+?:(\d+)[, ]")[1])


def figures(process: Process) -> str:
    address = process.expect(r" metrics on (\S+)")[1]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=PATIENCE) as answer:
        text: str = answer.read().decode()
    return text


def test_the_tunnels_of_the_examples_work(processes: Processes, tmp_path: Path) -> None:
    any_port = "127.0.0.1:0"
    with contextlib.closing(Echo()) as echo:
        path = addressed(
            "tunnels-server.toml",
            tmp_path,
            {
                "identity": str(tmp_path / "identity"), "9101": any_port,
                ":443": any_port, ":5433": any_port, ":8443": any_port,
                "127.0.0.1:8080": echo.address, "127.0.0.1:5432": echo.address,
                "127.0.0.1:22": echo.address,
            },
        )  # fmt: skip
        server = start(processes, "mtt-server", path)
        names = ("web", "database", "ssh")
        ports = [port_of(server, name) for name in names]
        pin = server.expect(r"pin (\S+)")[1]
        addresses = {
            f"example.com:{port}": f"127.0.0.1:{real}"
            for port, real in zip((443, 5433, 8443), ports, strict=True)
        }
        local = dict.fromkeys(("127.0.0.1:8080", "127.0.0.1:5432", "127.0.0.1:2222"), any_port)
        path = addressed(
            "tunnels-client.toml", tmp_path, addresses | local | {"9102": any_port}
        )
        client = start(processes, "mtt-client", path, SERVER_PIN=pin)
        for name in names:
            with connect(port_of(client, name)) as application:
                check_echo(application)
        for process in (server, client):
            page = figures(process)
            for name in names:
                assert f'mtt_tunnels_opened_total{{tunnel="{name}"}} 1' in page

        text = path.read_text()
        path.write_text(text[: text.rindex("[[tunnel]]")])
        client.send(signal.SIGHUP)
        client.expect("reloaded: 1 tunnel removed")
        assert client.stop() == 0
        assert server.stop() == 0
    for process in (server, client):
        assert ENVIRON["TUNNEL_PASSWORD"] not in process.output
        assert ENVIRON["TUNNEL_PATH"] not in process.output


def test_check(processes: Processes, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.touch(0o600)
    directory = tmp_path / "identity"
    tunnel = {"name": "x", "b": ":443", "d": "a:1", "cert-dir": str(directory)}
    path.write_text(json.dumps({"tunnel": [tunnel]}))
    good = processes.command("mtt-server", "-check", "-config", path)
    assert good.wait() == 0
    assert good.expect_silence() == "mtt-server: the configuration is usable\n"
    assert not directory.exists()

    path.write_text(json.dumps({"tunnel": [tunnel | {"wsspath": "/"}]}))
    bad = processes.command("mtt-server", "-check", "-config", path)
    assert bad.wait() == 1
    assert bad.expect_silence() == (
        f'mtt-server: -config: {path}: tunnel[0] "x": unknown key "wsspath"; '
        "did you mean wss-path?\n"
    )
    for program, arguments, code in (
        ("mtt-client", ("-b", ":1", "-s", "a:1"), 0),
        ("mtt-client", ("-b", ":1"), 1),
        ("anytls-server", ("-p", "x"), 0),
    ):
        process = processes.command(program, "-check", *arguments)
        assert process.wait() == code
        assert process.expect_silence().count("\n") == 1
