"""The tunnel embedded in another program: `mtt.Client`, `mtt.Server`, and docs/embedding.md."""

from __future__ import annotations

import asyncio
import configparser
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mtt
from mtt import modes
from mtt.api import CLIENT_KEYWORDS, SERVER_KEYWORDS, option_of
from mtt.options.flags import Flag, Group
from mtt.options.process import PROCESS_FLAGS
from mtt.options.tunnel import CLIENT_FLAGS, SERVER_FLAGS
from mtt.trust.reload import TlsFiles
from tests.support.certs import Certs
from tests.support.runner import open_descriptors
from tests.support.tunnels import (
    PASSWORD,
    SOON,
    check_works,
    connect,
    echo,
    in_every_mode,
    listening,
    logged,
    port_of,
    serving,
)
from tests.udp.peers import Udp, answering

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs/embedding.md").read_text()
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.S)


def server_for(destination: int, certs: Certs, mode: str = "tls", **options: Any) -> mtt.Server:
    if mode == "anytls":
        options["password"] = PASSWORD
    given = {"listen": "127.0.0.1:0", "cert": certs.cert, "key": certs.key} | options
    return mtt.Server(destination=f"127.0.0.1:{destination}", mode=mode, **given)


def client_of(server: int, certs: Certs, mode: str = "tls", **options: Any) -> mtt.Client:
    if mode == "anytls":
        options["password"] = PASSWORD
    given = {"listen": "127.0.0.1:0", "ca": certs.ca, "server_name": certs.name} | options
    return mtt.Client(server=f"127.0.0.1:{server}", mode=mode, **given)


class Left:
    """What there is of tasks, descriptors and settings of the process; none may change."""

    def __init__(self) -> None:
        self.tasks = asyncio.all_tasks()
        self.descriptors = open_descriptors()
        logger = logging.getLogger("mtt")
        self.settings = (
            [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
            logging.root.handlers[:],
            logger.handlers[:],
            logger.level,
            asyncio.get_running_loop().get_exception_handler(),
        )

    def check(self) -> None:
        after = Left()
        assert after.tasks == self.tasks
        assert after.descriptors == self.descriptors
        assert after.settings == self.settings


# The document.


def test_example_of_the_document_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", EXAMPLE], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("b'hello'\n", "")


def test_example_of_the_document_runs_on_uvloop() -> None:
    pytest.importorskip("uvloop")
    program = EXAMPLE.replace("asyncio.run(", "import uvloop; uvloop.run(")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("b'hello'\n", "")


def test_document_names_all_keywords_that_differ() -> None:
    table = dict(re.findall(r"^\| `(\w+)`.*? \| `-([\w-]+)` \|$", DOCUMENT, re.M))
    differing = {
        keyword: option_of(keyword)
        for keyword in (CLIENT_KEYWORDS | SERVER_KEYWORDS) - {"mode"}
        if option_of(keyword) != keyword.replace("_", "-")
    }
    assert table == differing


def test_document_names_all_modes() -> None:
    (row,) = re.findall(r"^\| `mode=(.*?) \|", DOCUMENT, re.M)
    assert tuple(re.findall(r'"(.*?)"', row)) == tuple(modes.MODES)


# What can be said.


@pytest.mark.parametrize(
    ("keywords", "flags"), [(CLIENT_KEYWORDS, CLIENT_FLAGS), (SERVER_KEYWORDS, SERVER_FLAGS)]
)
def test_every_option_has_a_keyword(keywords: frozenset[str], flags: tuple[Flag, ...]) -> None:
    of_modes = {"wss", "mux", "v2ray", "anytls"}
    of_process = {flag.name for flag in PROCESS_FLAGS} | {"config", "V"}
    options = {option_of(keyword) for keyword in keywords - {"mode"}}
    found = {flag.name for flag in flags if flag.group is not Group.LINK}
    assert options == found - of_modes - of_process


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"mode": "ssh"}, mtt.UsageError, r"mode: 'ssh' is none of tls, wss, mux, wss\+mux, v2ray"),
        ({"listen": "-b"}, mtt.UsageError, "listen: '-b' looks like an option"),
        ({"listen": None}, mtt.UsageError, "listen is missing: .*, or use listen_unix"),
        ({"fallback": "a:1"}, mtt.UsageError, 'fallback needs mode "wss" or mode "anytls"'),
        ({"timeout": 0}, mtt.UsageError, "timeout: 0s is not positive"),
        ({"key": None}, mtt.UsageError, "cert needs key"),
        ({"preconnect": 1}, TypeError, "unexpected keyword argument 'preconnect'"),
        ({"n": "x"}, TypeError, "unexpected keyword argument 'n'"),
        ({"timeout": "5m"}, TypeError, "timeout is of type float, not str"),
        ({"max_conns": True}, TypeError, "max_conns is of type int, not bool"),
        ({"timeout": True}, TypeError, "timeout is of type float, not bool"),
        ({"listen": 443}, TypeError, "listen is of type str, not int"),
    ],
)
def test_what_cannot_work(
    changes: dict[str, Any], error: type[Exception], text: str, certs: Certs
) -> None:
    with pytest.raises(error, match=f"^{text}"):
        server_for(1, certs, **changes)


def test_values_are_those_of_python(certs: Certs) -> None:
    pins = ["sha256/" + "A" * 43 + "=", "sha256/" + "B" * 42 + "A="]
    client = client_of(1, certs, timeout=7, pin=pins, ca=Path(certs.ca), max_conns=None)
    assert client._options.timeout == 7.0
    assert client._options.tls.pins == tuple(pins)
    assert client._options.tls.ca == certs.ca
    assert client_of(1, certs, pin=pins[0])._options.tls.pins == (pins[0],)


# What is left behind.


@in_every_mode
async def test_nothing_is_left_behind(mode: str, certs: Certs) -> None:
    async with listening() as there:
        before = Left()
        async with (
            server_for(there.port, certs, mode) as server,
            client_of(port_of(server), certs, mode) as client,
        ):
            application = await connect(port_of(client))
            await application.send(b"some")
            destination = await there.accept()
            assert await destination.exactly(4) == b"some"
            assert (client.tunnels, server.tunnels) == (1, 1)
        application.close()
        destination.close()
        before.check()


async def test_nothing_is_left_behind_by_an_exception(certs: Certs) -> None:
    async with listening() as there:
        before = Left()
        with pytest.raises(ZeroDivisionError):
            async with (
                server_for(there.port, certs, metrics="127.0.0.1:0") as server,
                client_of(port_of(server), certs),
            ):
                assert len(server.metrics_addresses) == 1
                raise ZeroDivisionError
        before.check()


async def test_nothing_is_left_behind_by_a_cancelled_block(certs: Certs) -> None:
    before = Left()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), server_for(1, certs, "wss"):
            await asyncio.Event().wait()
    before.check()


@pytest.mark.parametrize("keyword", ["listen", "metrics"])
async def test_nothing_is_left_behind_by_a_taken_port(keyword: str, certs: Certs) -> None:
    async with listening() as there:
        taken = {keyword: f"127.0.0.1:{there.port}"}
        before = Left()
        for end in (server_for(1, certs, **taken), client_of(1, certs, preconnect=2, **taken)):
            with pytest.raises(mtt.StartError, match="address already in use"):
                async with end:
                    pytest.fail("it has started")
            before.check()


async def test_nothing_is_left_behind_by_a_bad_certificate(certs: Certs, tmp_path: Path) -> None:
    before = Left()
    end = server_for(1, certs, cert=tmp_path / "none.pem")
    with pytest.raises(mtt.UsageError, match=r"^cert: cannot read .*none\.pem"):
        await end.start()
    before.check()


async def test_nothing_is_left_behind_by_a_start_that_fails_late(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: TlsFiles) -> None:
        raise mtt.StartError("no room")

    monkeypatch.setattr(TlsFiles, "follow", fail)
    before = Left()
    with pytest.raises(mtt.StartError, match="no room"):
        await server_for(1, certs).start()
    before.check()


# A run.


async def test_several_run_in_one_loop(certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_for(there.port, certs, "wss") as first,
        server_for(there.port, certs, "mux") as second,
        client_of(port_of(first), certs, "wss") as one,
        client_of(port_of(second), certs, "mux") as two,
    ):
        for _ in range(2):
            await check_works(port_of(one))
            await check_works(port_of(two))


async def test_drain_waits_for_the_last_tunnel(certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_for(there.port, certs) as server,
        client_of(port_of(server), certs) as client,
        await connect(port_of(client)) as application,
    ):
        await application.check_echo(b"a")
        draining = asyncio.create_task(server.drain())
        await asyncio.sleep(0)
        with pytest.raises(ConnectionRefusedError):
            await connect(port_of(server))
        await application.check_echo(b"b")
        assert not draining.done()
        await application.finish()
        assert await application.rest() == b""
        async with asyncio.timeout(SOON):
            await draining
        assert server.tunnels == 0


async def test_one_runs_once(certs: Certs) -> None:
    server = server_for(1, certs)
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.addresses
    await server.close()
    async with server:
        with pytest.raises(RuntimeError, match="make another one"):
            await server.start()
    await server.close()
    await server.drain()
    with pytest.raises(RuntimeError, match="make another one"):
        await server.start()


async def test_pin_is_what_a_client_trusts(certs: Certs) -> None:
    async with (
        serving(echo) as there,
        mtt.Server(listen="127.0.0.1:0", destination=f"127.0.0.1:{there.port}") as server,
        mtt.Client(listen="127.0.0.1:0", server=server.addresses[0], pin=server.pin) as client,
    ):
        await check_works(port_of(client))
    async with server_for(1, certs, cert=None, key=None, disable_tls=True) as plain:
        assert plain.pin is None


@in_every_mode
async def test_udp(mode: str, certs: Certs) -> None:
    with answering() as there:
        async with (
            server_for(there.port, certs, mode, udp=True, udp_timeout=60) as server,
            client_of(port_of(server), certs, mode, udp=True, udp_timeout=60.0) as client,
            asyncio.timeout(SOON),
        ):
            with Udp(port_of(client)) as application:
                await application.check_echo(b"a datagram")
            assert client.tunnels == server.tunnels == 1


async def test_certificates_are_read_again_when_asked(certs: Certs) -> None:
    async with server_for(1, certs) as server:
        with logged() as lines:
            server.reload()
            async with asyncio.timeout(SOON):
                while not lines:
                    await asyncio.sleep(0.01)
        assert "reloaded: certificate for" in lines[0]


# The package.


def test_importing_it_is_cheap() -> None:
    program = (
        "import mtt, sys\n"
        "print(mtt.__version__, *{'asyncio', 'ssl', 'logging', 'mtt.errors'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout == f"{mtt.__version__}\n"


def test_names_of_the_package() -> None:
    assert {mtt.StartError.__mro__[1], mtt.UsageError.__mro__[1]} == {mtt.MttError}
    assert all(hasattr(mtt, name) for name in mtt.__all__)
    assert not hasattr(mtt, "Clients")


def test_packages_are_marked_as_typed() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["options.package_data"]["*"] == "py.typed"
    included = setup["options.packages.find"]["include"].split()
    for package in {name.partition(".")[0] for name in included}:
        assert (ROOT / package / "py.typed").exists()


def test_types_of_a_program_that_embeds_it(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(EXAMPLE)
    bad.write_text("import mtt\nmtt.Server(destination='a:1', listen=443)\nmtt.Servant\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", ROOT / "pyproject.toml",
         "--cache-dir", tmp_path / "cache", good, bad],
        env=os.environ | {"MYPYPATH": str(ROOT)}, cwd=tmp_path, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert [re.sub(r".*/", "", line).split(": ")[0] for line in errors] == ["bad.py:2", "bad.py:3"]
