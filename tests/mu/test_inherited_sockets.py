"""Sockets from the service manager: for tunnels, and for the controller."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mtt.address import Endpoint
from mtt.errors import UsageError
from mtt.process.systemd import UNNAMED, Inherited
from mtt_mu_server.options import options
from mtt_mu_server.server import MultiUserServer
from tests.mu.panel import Panel
from tests.mu.users import client
from tests.support.certs import Certs
from tests.support.processes import ROOT, Processes, free_port, run
from tests.support.programs import require_program
from tests.support.systemd import Manager
from tests.support.tunnels import check_works, echo, serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="systemd is for Linux")

C = {"c": "127.0.0.1:8080"}
B = {"b": ":443"}
PUBLIC = {"c-token-file": "t", "c-cert": "c", "c-key": "k"}


@pytest.fixture
def sockets() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def tcp(stack: contextlib.ExitStack, host: str = "127.0.0.1") -> int:
    return stack.enter_context(socket.create_server((host, 0))).fileno()


def unix(stack: contextlib.ExitStack, path: Path | str, mode: int = 0o600) -> int:
    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
    sock.bind(str(path))
    sock.listen()
    if isinstance(path, Path):
        path.chmod(mode)
    return sock.fileno()


def test_without_sockets() -> None:
    checked = options(B | C)
    assert checked.inherited == ((), ())
    assert checked.controller_hosts == ("127.0.0.1",)


@pytest.mark.parametrize("name", ["tunnel", UNNAMED, "mtt-mu-server.socket"])
def test_a_socket_for_tunnels(name: str, sockets: contextlib.ExitStack) -> None:
    descriptor = tcp(sockets, "0.0.0.0")
    for given in (C, B | C):
        checked = options(given, [Inherited(descriptor, name)])
        assert checked.inherited == ((descriptor,), ())
        assert checked.bind is None
        assert checked.controller == Endpoint(("127.0.0.1",), 8080)
    with pytest.raises(UsageError, match=r"^-c is missing"):
        options({}, [Inherited(descriptor, name)])
    os.fstat(descriptor)  # still there


def test_ipv4_address_of_an_ipv6_socket_for_the_controller(sockets: contextlib.ExitStack) -> None:
    sock = sockets.enter_context(socket.socket(socket.AF_INET6))
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::ffff:127.0.0.1", 0))
    sock.listen()
    checked = options(B, [Inherited(sock.fileno(), "control")])
    assert checked.controller_hosts == ("127.0.0.1",)


def test_sockets_for_both(sockets: contextlib.ExitStack, tmp_path: Path) -> None:
    tunnels = [tcp(sockets), unix(sockets, tmp_path / "tunnel", 0o666)]
    controls = [unix(sockets, tmp_path / "control", 0o660), tcp(sockets)]
    given = [
        Inherited(tunnels[0], "tunnel"), Inherited(controls[0], "control"),
        Inherited(tunnels[1], "tunnel"), Inherited(controls[1], "control"),
    ]  # fmt: skip
    checked = options({}, given)
    assert checked.inherited == (tuple(tunnels), tuple(controls))
    assert (checked.bind, checked.bind_unix) == (None, "")
    assert (checked.controller, checked.controller_unix) == (None, "")
    assert checked.controller_hosts == ("127.0.0.1",)
    with pytest.raises(UsageError, match=r"^-b is missing"):
        options({}, [Inherited(controls[0], "control")])


def test_missing_and_unknown_names(sockets: contextlib.ExitStack, tmp_path: Path) -> None:
    one, two, local = tcp(sockets), tcp(sockets), unix(sockets, tmp_path / "socket")
    how = "write FileDescriptorName=tunnel or control in the socket unit"
    for given, words in [
        ([(local, UNNAMED)], f"descriptor {local}: has no name; {how}"),
        ([(one, UNNAMED), (two, UNNAMED)], f"descriptor {one}: has no name; {how}"),
        ([(one, "tunnel"), (two, "x.socket")], f"descriptor {two}: has no name; {how}"),
        ([(one, "web")], f"descriptor {one}: is named 'web'; {how}"),
        ([(one, "tunnel"), (two, "Control")], f"descriptor {two}: is named 'Control'; {how}"),
    ]:
        with pytest.raises(UsageError) as caught:
            options(B | C, [Inherited(*each) for each in given])
        assert str(caught.value) == f"inherited socket, {words}"


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("0.0.0.0", "the control socket at 0.0.0.0 can be reached from other machines"),
        ("::", "the control socket at :: can be reached from other machines"),
    ],
)
def test_public_controller_socket_needs_tls_and_token(
    host: str, words: str, sockets: contextlib.ExitStack
) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = sockets.enter_context(socket.create_server((host, 0), family=family))
    given = [Inherited(sock.fileno(), "control")]
    some: dict[str, Any]
    for some in ({}, {"c-cert": "c", "c-key": "k"}, {"c-token-file": "t"}):
        with pytest.raises(UsageError) as caught:
            options(B | some, given)
        assert words in str(caught.value)
        assert "-c-token-file, -c-cert, -c-key" in str(caught.value)
    assert options(B | PUBLIC, given).controller_hosts == (host,)


def test_controller_unix_socket_needs_private_permissions(
    sockets: contextlib.ExitStack, tmp_path: Path
) -> None:
    open_to_all = unix(sockets, tmp_path / "open", 0o666)
    abstract = unix(sockets, "\0mtt-test-" + secrets.token_hex(8))
    gone = unix(sockets, tmp_path / "gone")
    (tmp_path / "gone").unlink()
    for descriptor in (open_to_all, abstract, gone):
        given = [Inherited(descriptor, "control")]
        with pytest.raises(UsageError, match="every user of this machine; write SocketMode=0600"):
            options(B, given)
        assert options(B | PUBLIC, given).inherited.control == (descriptor,)


def test_descriptor_that_is_not_a_socket() -> None:
    reading, writing = os.pipe()
    for given in ([Inherited(reading, "control")], [Inherited(reading, UNNAMED)]):
        with pytest.raises(UsageError, match=f"cannot listen on inherited descriptor {reading}: "):
            options(B, given)
    os.close(reading)
    os.close(writing)


async def test_a_server_on_both(certs: Certs, tmp_path: Path) -> None:
    path = tmp_path / "control"
    with contextlib.ExitStack() as sockets:
        given = [
            Inherited(os.dup(unix(sockets, path)), "control"),
            Inherited(os.dup(tcp(sockets)), "tunnel"),
        ]
    server = MultiUserServer(options({"cert": certs.cert, "key": certs.key}, given))
    await server.start()
    assert server.controller_addresses == [str(path)]
    async with serving(echo) as there:
        await Panel(str(path)).add("/a", there.port)
        async with client("wss", server, certs, "/a") as port:
            await check_works(port)
    await server.close()
    assert path.exists()  # it is systemd's, for the next start


def activated(processes: Processes, names: str, *argv: str | Path, **environ: str) -> Any:
    """mtt-mu-server for sockets with `names`, which stand in `argv` in front of its options."""
    end = argv.index("--")
    fdname = (f"--fdname={names}",) if names else ()
    return processes.start(
        require_program("systemd-socket-activate"), *argv[:end], *fdname, "-E", "NOTIFY_SOCKET",
        sys.executable, "-m", "mtt_mu_server", "-disable-tls", *argv[end + 1 :],
        cwd=ROOT, env=environ,
    )  # fmt: skip


@pytest.mark.parametrize("workers", ["1", "2"])
def test_activation_of_both(tmp_path: Path, workers: str) -> None:
    curl = require_program("curl")
    port, path = free_port(), tmp_path / "control"
    before = os.umask(0o177)
    try:
        with Manager(tmp_path) as heard, Processes() as processes:
            process = activated(
                processes, "tunnel:control", "-l", f"127.0.0.1:{port}", "-l", path, "--",
                "-workers", workers, NOTIFY_SOCKET=heard.address,
            )  # fmt: skip
            process.expect("Listening on")
            answer = run(curl, "-sS", "--unix-socket", path, "-d", '{"opt":9}', "http://localhost")
            assert answer == b'{"res":1}'
            process.expect(rf"listening on 127\.0\.0\.1:{port}, ")
            process.expect(rf" users, controller on {path}")
            assert heard.hear() == f"READY=1\nSTATUS=listening on 127.0.0.1:{port}"
            assert process.stop() == 0
    finally:
        os.umask(before)
    assert path.exists()


def test_activation_of_tunnels_alone() -> None:
    port = free_port()
    with Processes() as processes:
        process = activated(
            processes, "", "-l", f"127.0.0.1:{port}", "--", "-c", "127.0.0.1:0"
        )
        process.expect("Listening on")
        with socket.create_connection(("127.0.0.1", port)):
            process.expect(rf"listening on 127\.0\.0\.1:{port}, .*, controller on 127\.0\.0\.1:")
        assert process.stop() == 0


def test_activation_with_a_control_socket_for_all(tmp_path: Path) -> None:
    port = free_port()
    with Processes() as processes:
        process = activated(
            processes, "control", "-l", f"0.0.0.0:{port}", "--", "-b", "127.0.0.1:0"
        )
        process.expect("Listening on")
        with socket.create_connection(("127.0.0.1", port)):
            process.expect("the control socket at 0.0.0.0 can be reached from other machines")
            assert process.wait() == 2


def test_the_unit_names_its_socket() -> None:
    unit = (ROOT / "contrib" / "mtt-mu-server.socket").read_text()
    assert re.findall(r"(?m)^FileDescriptorName=(.*)$", unit) == ["tunnel"]
