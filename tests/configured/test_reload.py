"""A configuration file that changes while its tunnels run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mtt import followed
from mtt.configured.service import ConfiguredTunnels
from mtt.configured.tunnels import Tunnels
from mtt.errors import StartError
from mtt.server import Server
from mtt.tunnels.service import Service
from tests.support.certs import Certs
from tests.support.configured import File, port_of_tunnel, running, trusting, tunnel_named
from tests.support.tunnels import (
    Tcp,
    check_works,
    connect,
    echo,
    eventually,
    logged,
    port_of,
    server_at,
    serving,
)


class House:
    """A client with several tunnels to one server, and the lines of its log."""

    def __init__(
        self, file: File, tunnels: Tunnels, server: Server, top: dict[str, Any], lines: list[str]
    ) -> None:
        self.file = file
        self.tunnels = tunnels
        self.server = server
        self.top = top  # what all tunnels have in common
        self.lines = lines

    def at(self, name: str, port: int = 0, **options: Any) -> dict[str, Any]:
        return client(self.server, name, port, **options)

    def port(self, name: str) -> int:
        return port_of_tunnel(self.tunnels, name)

    async def change(self, line: str, *tunnels: dict[str, Any], **top: Any) -> None:
        """Write the file, and wait for a line of the log."""
        before = len(self.lines)
        self.file.write(content(self.top | top, *tunnels))
        self.tunnels.reload()
        await eventually(lambda: any(line in each for each in self.lines[before:]))


def client(server: Server, name: str, port: int = 0, **options: Any) -> dict[str, Any]:
    """A tunnel of mtt-client."""
    address = {"b": f"127.0.0.1:{port}", "s": f"127.0.0.1:{port_of(server)}"}
    return {"name": name} | address | options


def content(top: dict[str, Any], *tunnels: dict[str, Any]) -> dict[str, Any]:
    return top | {"tunnel": list(tunnels)}


@contextlib.asynccontextmanager
async def house(folder: Path, certs: Certs, *names: str, **top: Any) -> AsyncIterator[House]:
    async with serving(echo) as there, server_at("tls", there.port, certs) as server:
        everything = trusting(certs) | top
        file = File(folder, content(everything, *(client(server, name) for name in names)),
                    "mtt-client")  # fmt: skip
        with logged() as lines:
            async with running(file) as tunnels:
                yield House(file, tunnels, server, everything, lines)


@contextlib.asynccontextmanager
async def application(port: int) -> AsyncIterator[Tcp]:
    async with await connect(port) as found:
        await found.check_echo()
        yield found


async def is_refused(port: int) -> bool:
    try:
        (await connect(port)).close()
    except ConnectionRefusedError:
        return True
    return False


async def test_an_unchanged_tunnel_goes_on(certs: Certs, tmp_path: Path) -> None:
    async with house(tmp_path, certs, "one", "two") as run, application(run.port("one")) as one:
        kept = tunnel_named(run.tunnels, "one").service
        port = run.port("one")
        await run.change("1 tunnel changed", run.at("one"), run.at("two", timeout="1m"))
        assert tunnel_named(run.tunnels, "one").service is kept
        assert run.port("one") == port
        await one.check_echo(b"still here")
        await check_works(port)
        await check_works(run.port("two"))


async def test_an_unchanged_tunnel_keeps_its_sessions(certs: Certs, tmp_path: Path) -> None:
    async with serving(echo) as there, server_at("mux", there.port, certs) as server:
        top = trusting(certs)
        mux, other = client(server, "mux", mux=True), client(server, "other", mux=True)
        file = File(tmp_path, content(top, mux, other), "mtt-client")
        with logged() as lines:
            async with running(file) as tunnels:
                for name in ("mux", "other"):
                    await check_works(port_of_tunnel(tunnels, name))
                kept = tunnel_named(tunnels, "mux").service
                sessions = list(kept._sessions())
                assert sessions
                file.write(content(top, mux))
                tunnels.reload()
                await eventually(lambda: "INFO reloaded: 1 tunnel removed" in lines)
                await eventually(lambda: not tunnels.leaving)  # its idle sessions are closed
                assert list(kept._sessions()) == sessions
                await check_works(port_of_tunnel(tunnels, "mux"))


async def test_nothing_changes(certs: Certs, tmp_path: Path) -> None:
    async with house(tmp_path, certs, "one", "two") as run:
        before = list(run.tunnels.running)
        await run.change("reloaded: the configuration has not changed", run.at("one"),
                         run.at("two"))  # fmt: skip
        assert run.tunnels.running == before
        assert not run.tunnels.leaving


async def test_tunnels_in_another_order_and_with_other_names(certs: Certs, tmp_path: Path) -> None:
    async with house(tmp_path, certs, "one", "two") as run, application(run.port("one")) as one:
        ports = [run.port(name) for name in ("one", "two")]
        await run.change("reloaded: 1 tunnel renamed", run.at("two"), run.at("first"))
        assert [run.port(name) for name in ("first", "two")] == ports
        await one.check_echo()


async def test_an_added_tunnel_serves(certs: Certs, tmp_path: Path) -> None:
    async with house(tmp_path, certs, "one") as run:
        await run.change("reloaded: 1 tunnel added", run.at("one"), run.at("new"))
        await check_works(run.port("new"))
        assert any("listening on 127.0.0.1:" in line for line in run.lines)


async def test_a_removed_tunnel_closes_its_port_and_drains(certs: Certs, tmp_path: Path) -> None:
    async with house(tmp_path, certs, "one", "two") as run:
        port = run.port("two")
        async with application(port) as two:
            await run.change("reloaded: 1 tunnel removed", run.at("one"))
            assert await is_refused(port)
            assert "INFO removed: waiting up to 10 s for 1 tunnel" in run.lines
            await two.check_echo(b"the last words")
            assert run.tunnels.tunnels == 1
        await eventually(lambda: not run.tunnels.leaving)
        assert run.tunnels.tunnels == 0


async def test_a_removed_tunnel_is_cut_after_grace(certs: Certs, tmp_path: Path) -> None:
    async with house(tmp_path, certs, "one", "two", grace="50ms") as run:
        async with application(run.port("two")) as two:
            await run.change("1 tunnel cut after 0.05 s", run.at("one"))
            with contextlib.suppress(ConnectionResetError):
                assert await two.read() == b""
        await eventually(lambda: not run.tunnels.leaving)


async def test_without_grace_a_removed_tunnel_is_cut(certs: Certs, tmp_path: Path) -> None:
    async with (
        house(tmp_path, certs, "one", "two", grace="0s") as run,
        application(run.port("two")) as two,
    ):
        await run.change("removed: 1 tunnel cut", run.at("one"))
        with contextlib.suppress(ConnectionResetError):
            assert await two.read() == b""


async def test_a_changed_tunnel_has_new_options_for_new_connections(
    certs: Certs, tmp_path: Path
) -> None:
    async with house(tmp_path, certs, "one") as run:
        port = run.port("one")
        await run.change("1 tunnel changed", run.at("one", port))
        sockets = tunnel_named(run.tunnels, "one").service._listener
        async with (
            application(port) as before,
            serving(shout) as there,
            server_at("tls", there.port, certs) as other,
        ):
            await run.change("1 tunnel changed", client(other, "one", port))
            assert tunnel_named(run.tunnels, "one").service._listener is sockets
            async with await connect(port) as after:
                await after.send(b"a")
                assert await after.exactly(1) == b"A"
            await before.check_echo()


async def shout(connection: Tcp) -> None:
    while data := await connection.read():
        await connection.send(data.upper())


async def test_a_connection_in_the_queue_survives_a_change(certs: Certs, tmp_path: Path) -> None:
    async with house(tmp_path, certs, "one") as run:
        port = run.port("one")
        await run.change("1 tunnel changed", run.at("one", port))
        tunnel_named(run.tunnels, "one").service._listener.pause()  # type: ignore[union-attr]
        async with await connect(port) as waiting:
            await run.change("1 tunnel changed", run.at("one", port, timeout="1m"))
            await waiting.check_echo()


async def test_a_port_moves_between_tunnels(certs: Certs, tmp_path: Path) -> None:
    async with house(tmp_path, certs, "one", "two") as run:
        one, two = run.port("one"), run.port("two")
        await run.change(
                "2 tunnels changed", run.at("one", one, timeout="1m"), run.at("two", two)
            )
        async with application(one) as first, application(two) as second:
            await run.change(
                "2 tunnels changed", run.at("one", two, timeout="1m"), run.at("two", one)
            )
            assert (run.port("one"), run.port("two")) == (two, one)
            for each in (first, second):
                await each.check_echo()
            await check_works(one)
            await check_works(two)


async def test_an_address_grows_to_all_interfaces(certs: Certs, tmp_path: Path) -> None:
    async with house(tmp_path, certs, "one") as run:
        port = run.port("one")
        await run.change("1 tunnel changed", run.at("one", port))
        async with application(port) as before:
            wide = run.at("one") | {"b": f"0.0.0.0:{port}"}
            await run.change("1 tunnel changed", wide)
            await check_works(port)
            await before.check_echo()
            await run.change("1 tunnel changed", run.at("one", port))
            await check_works(port)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", "not JSON"),
        ('{"tunnel": [{"name": "x", "wsspath": "/"}]}', 'tunnel[0] "x": unknown key "wsspath"'),
        ('{"b": ":1"}', "-s is missing"),
        ('{"b": ":1", "s": "a:1", "ca": "/none"}', "-ca: cannot read /none"),
    ],
)
async def test_a_broken_file_changes_nothing(
    certs: Certs, tmp_path: Path, text: str, error: str
) -> None:
    async with house(tmp_path, certs, "one") as run, application(run.port("one")) as one:
        before = list(run.tunnels.running)
        run.file.write(text)
        run.tunnels.reload()
        await eventually(lambda: any("stays in use" in line for line in run.lines))
        (line,) = (line for line in run.lines if "stays in use" in line)
        assert line.startswith("ERROR the old configuration stays in use: -config: ")
        assert error in line
        assert run.tunnels.running == before
        await one.check_echo()
        await check_works(run.port("one"))


async def test_an_address_in_use_changes_nothing(certs: Certs, tmp_path: Path) -> None:
    async with (
        house(tmp_path, certs, "one", "two") as run,
        application(run.port("one")) as one,
        serving(echo) as taken,
    ):
        before, ports = list(run.tunnels.running), run.tunnels.addresses
        await run.change(
            'in use: tunnel[2] "bad": cannot listen on 127.0.0.1:',
            run.at("one", timeout="1m"), run.at("good"), run.at("bad", taken.port),
        )  # fmt: skip
        assert run.tunnels.running == before
        assert run.tunnels.addresses == ports
        await one.check_echo()
        for name in ("one", "two"):
            await check_works(run.port(name))


async def test_a_tunnel_that_does_not_start_changes_nothing(
    certs: Certs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path, certs, "one", "two") as run, application(run.port("one")) as one:
        ports = {name: run.port(name) for name in ("one", "two")}
        both = [run.at(name, port) for name, port in ports.items()]
        await run.change("2 tunnels changed", *both)
        before = list(run.tunnels.running)
        serve, calls = Service.serve, []

        async def fails(self: Service, *arguments: Any) -> None:
            calls.append(self)
            await serve(self, *arguments)
            if len(calls) == 2:
                raise StartError("no luck")

        with monkeypatch.context() as patch:
            patch.setattr(Service, "serve", fails)
            both = [each | {"timeout": "1m"} for each in both]
            await run.change('stays in use: tunnel[1] "two": no luck', *both)
        assert len(calls) == 2
        assert run.tunnels.running == before
        await one.check_echo()
        for port in ports.values():
            await check_works(port)


async def test_another_password_in_a_file_is_a_change(certs: Certs, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.touch(0o600)
    secret.write_text("one")
    options = {"anytls": True, "password-file": str(secret)}
    async with house(tmp_path, certs, "b") as run:
        await run.change("1 tunnel added", run.at("a", **options), run.at("b"))
        secret.write_text("another")
        await run.change("reloaded: 1 tunnel changed", run.at("a", **options), run.at("b"))


async def test_settings_that_need_a_restart_are_named(certs: Certs, tmp_path: Path) -> None:
    async with house(tmp_path, certs, "one") as run:
        changed = {"grace": "1s", "metrics": "127.0.0.1:0", "loop": "asyncio", "workers": 2}
        for _ in range(2):  # each time, until it is restarted
            line = "before a restart: grace, workers, loop, metrics"
            await run.change(line, run.at("one"), **changed)


async def test_the_file_is_followed(
    certs: Certs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed, "CHECK_INTERVAL", 0.02)
    async with house(tmp_path, certs, "one") as run:
        run.file.write(content(run.top, run.at("one"), run.at("new")))
        await eventually(lambda: len(run.tunnels.running) == 2)


async def test_the_end_of_the_process_ends_removed_tunnels(certs: Certs, tmp_path: Path) -> None:
    async with house(tmp_path, certs, "one", "two") as run:
        async with application(run.port("two")) as two:
            await run.change("1 tunnel removed", run.at("one"))
            await run.tunnels.close()
            with contextlib.suppress(ConnectionResetError):
                assert await two.read() == b""
        assert run.tunnels.tunnels == 0


async def test_nothing_listens_after_the_end(certs: Certs, tmp_path: Path) -> None:
    async with house(tmp_path, certs, "one") as run:
        configuration = run.tunnels.configuration
        assert configuration is not None
        run.file.write(content(run.top, run.at("one"), run.at("new")))
        plan = configuration._load()[0]
        run.tunnels.cleanup()
        changes = await configuration._apply(plan)
        assert not changes.done
        assert [each.name for each in run.tunnels.running] == ["one"]
        assert run.tunnels.addresses == [] or await is_refused(run.port("one"))


async def test_worker_that_cannot_apply_an_update_ends(
    certs: Certs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one takes its place, with the new configuration."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    async with house(tmp_path, certs, "one") as run:
        worker = run.tunnels
        assert isinstance(worker, ConfiguredTunnels)
        secret = tmp_path / "password"
        secret.touch(0o600)
        secret.write_text("a password")
        options = {"anytls": True, "password-file": str(secret)}
        run.file.write(content(run.top, run.at("one", **options)))
        configuration = worker.configuration
        assert configuration is not None
        plan, _ = configuration._load()
        secret.unlink()
        worker._write((plan.values, {}))
        worker.take_update([os.dup(worker._message)])
        await eventually(lambda: codes)
        worker._forget_message()
        assert codes == [1]
        (line,) = (line for line in run.lines if line.startswith("ERROR"))
        assert line.startswith("ERROR worker stopped: cannot apply the new configuration: ")
        assert "-password-file: cannot read" in line
