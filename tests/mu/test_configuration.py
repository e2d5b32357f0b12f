"""mtt-mu-server with the file of -config."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from mtt.process.command import Start
from mtt_mu_server.__main__ import prepare
from tests.mu.posting import closing
from tests.support.certs import Certs
from tests.support.configured import File, port_of_tunnel, running, tunnel_named
from tests.support.processes import Processes, listening
from tests.support.processes import eventually as soon
from tests.support.tunnels import (
    check_works,
    client_of,
    connect,
    echo,
    eventually,
    logged,
    port_of,
    serving,
)
from tests.support.workers import Echo, check_echo, needs_proc, standing_still, worker
from tests.support.workers import connect as connect_to


def served(folder: Path, name: str, **options: Any) -> dict[str, Any]:
    """A tunnel with a controller of its own."""
    address = {"b": "127.0.0.1:0", "c": f"unix:{folder / name}"}
    return {"name": name, "disable-tls": True} | address | options


async def command(path: Path, **fields: Any) -> dict[str, Any]:
    """The answer of the controller at `path`."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(closing(json.dumps(fields).encode()))
        answer = await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
    found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return found


async def test_each_tunnel_has_users_of_its_own(certs: Certs, tmp_path: Path) -> None:
    top = {"cert": certs.cert, "key": certs.key}
    tunnels = [served(tmp_path, name, **{"disable-tls": False}) for name in ("one", "two")]
    file = File(tmp_path, top | {"tunnel": tunnels}, "mtt-mu-server")
    async with serving(echo) as there, running(file) as run:
        user = {"path": "/secret", "dst": f"127.0.0.1:{there.port}"}
        assert await command(tmp_path / "two", opt=1, args_bunch=[user]) == {"res": 1}
        for name, count in (("one", 0), ("two", 1)):
            assert len((await command(tmp_path / name, opt=5))["users"]) == count
        port = port_of_tunnel(run, "two")
        async with client_of("wss", port, certs, **{"wss-path": "/secret"}) as client:
            await check_works(port_of(client))


async def test_change_with_the_same_controller_is_refused(tmp_path: Path) -> None:
    one, two = served(tmp_path, "one"), served(tmp_path, "two")
    file = File(tmp_path, {"tunnel": [one, two]}, "mtt-mu-server")
    with logged() as lines:
        async with running(file) as run:
            kept = tunnel_named(run, "one")
            file.write({"tunnel": [one | {"timeout": "3m"}, served(tmp_path, "three")]})
            run.reload()
            refused = f"before a restart: one (the socket {tmp_path / 'one'})"
            await eventually(lambda: any(refused in line for line in lines))
            assert "INFO reloaded: 1 tunnel added, 1 tunnel removed" in lines
            assert [each.name for each in run.running] == ["one", "three"]
            assert run.running[0] is kept
            await eventually(lambda: not (tmp_path / "two").exists())
            for name in ("one", "three"):
                assert (await command(tmp_path / name, opt=5))["users"] == []


async def test_metrics_are_each_tunnels_own(tmp_path: Path) -> None:
    tunnels = [served(tmp_path, name, metrics="127.0.0.1:0") for name in ("one", "two")]
    file = File(tmp_path, {"tunnel": tunnels}, "mtt-mu-server")
    async with running(file) as run:
        for each in run.running:
            (address,) = each.service.metrics_addresses
            async with await connect(int(address.rpartition(":")[2])) as scraper:
                await scraper.send(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
                page = (await scraper.rest()).decode()
            assert "\nmtt_tunnels 0\n" in page
            assert "\nmtt_build_info{" in page


@needs_proc
def test_workers_share_the_users_of_each_tunnel(
    processes: Processes, echo: Echo, tmp_path: Path
) -> None:
    names = ("one", "two")
    tunnels = [served(tmp_path, name, **{"disable-tls": False}) for name in names]
    top = {"workers": 2, "verbose": True, "tunnel": tunnels}
    file = File(tmp_path, top, "mtt-mu-server")
    server = processes.command("mtt-mu-server", "-config", file.path)
    ports = [int(server.expect(rf" {name}: listening on \S+?:(\d+), ")[1]) for name in names]
    for name in names:
        server.expect(rf"mtt-mu-server\[hub\]: {name}: 0 users, controller on ")
        user = {"path": f"/{name}", "dst": echo.address}
        asyncio.run(command(tmp_path / name, opt=1, args_bunch=[user]))

    def check() -> None:
        for name, port in zip(names, ports, strict=True):
            client = processes.command(
                "mtt-client", "-b", "127.0.0.1:0", "-s", f"127.0.0.1:{port}", "-sv", "-wss",
                "-wss-path", f"/{name}",
            )  # fmt: skip
            at = listening(client)[1]
            for number in (1, 2):
                with standing_still(worker(server, number)), connect_to(at) as application:
                    check_echo(application)

    check()
    os.kill(worker(server, 1), signal.SIGKILL)
    soon(lambda: server.output.count("worker 1 (pid ") >= 3, "a new worker")
    check()
    file.write(top | {"tunnel": [tunnels[0], tunnels[1] | {"timeout": "3m"}]})
    server.send(signal.SIGHUP)
    server.expect(r"changed, but not before a restart: two \(the socket ")
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("given", "alone"),
    [
        ({}, ("the address 127.0.0.1:2",)),
        ({"c": "127.0.0.1:0"}, ()),
        ({"c": "unix:/c", "db": "/d"}, ("the socket /c", "the database /d")),
        ({"metrics": "9"}, ("the address 127.0.0.1:2", "the address 127.0.0.1:9")),
    ],
)
def test_what_a_tunnel_uses_alone(given: dict[str, Any], alone: tuple[str, ...]) -> None:
    assert prepare({"b": ":1", "c": "127.0.0.1:2"} | given, Start()).alone == alone
