"""Listening on unix sockets: files, stale and live sockets, abstract names."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtt.address import Endpoint
from mtt.errors import StartError
from mtt.net import unix
from mtt.net.listen import Listener, bind
from mtt.net.resolve import Resolver
from mtt.net.unix import UNIX_PATH_MAX
from tests.net.listening import Accepting, answers, unix_answers
from tests.support.loopback import linux_only, unix_only


async def open_unix(path: str | Path) -> Listener:
    listener = await bind(None, str(path), resolver=Resolver())
    listener.serve(Accepting)
    return listener


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to stand in, whose own path does not count against the limit of addresses."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextlib.contextmanager
def live_socket(path: str, kind: int = socket.SOCK_STREAM) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(path)
        if kind == socket.SOCK_STREAM:
            sock.listen(1)
        yield sock


@unix_only
async def test_unix_socket_comes_and_goes(directory):
    listener = await open_unix("s")
    assert listener.addresses == ["s"]
    assert await unix_answers("s")
    listener.close()
    assert not os.path.lexists("s")


@unix_only
async def test_unix_socket_is_removed_after_chdir(directory, monkeypatch):
    listener = await open_unix("s")
    (directory / "elsewhere").mkdir()
    monkeypatch.chdir(directory / "elsewhere")
    Path("s").touch()
    listener.close()
    assert not os.path.lexists(directory / "s")
    assert Path("s").exists()


@unix_only
async def test_unix_socket_of_another_program_is_left_alone(directory):
    listener = await open_unix("s")
    os.rename("s", "moved")
    with live_socket("s"):
        listener.close()
        assert Path("s").is_socket()


@unix_only
async def test_tcp_and_unix_together(directory):
    both = await bind(Endpoint(("127.0.0.1",), 0), "s", resolver=Resolver())
    both.serve(Accepting)
    assert len(both.addresses) == 2
    assert await answers("127.0.0.1", int(both.addresses[0].rpartition(":")[2]))
    assert await unix_answers("s")
    both.close()


@unix_only
async def test_failure_closes_opened_sockets(directory):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    Path("file").touch()
    with pytest.raises(StartError):
        await bind(Endpoint(("127.0.0.1",), port), "file", resolver=Resolver())
    assert not await answers("127.0.0.1", port)


@unix_only
async def test_stale_socket_is_replaced(directory):
    with live_socket("s"):
        pass  # closed, but its file stays
    assert Path("s").is_socket()
    listener = await open_unix("s")
    assert await unix_answers("s")
    listener.close()


@unix_only
async def test_live_socket_is_in_use(directory):
    listener = await open_unix("s")
    with pytest.raises(StartError) as caught:
        await open_unix("s")
    assert str(caught.value) == (
        "cannot listen on s: address already in use: another program listens there; "
        "stop it or choose another path"
    )
    assert await unix_answers("s")
    listener.close()


@linux_only
async def test_live_socket_with_a_full_backlog_is_in_use(directory):
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(live_socket("s"))
        full.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket(socket.AF_UNIX))
            filler.setblocking(False)
            filler.connect_ex("s")
        with pytest.raises(StartError, match="in use"):
            await open_unix("s")
        assert Path("s").is_socket()


@linux_only
async def test_datagram_socket_is_in_use(directory):
    with live_socket("s", socket.SOCK_DGRAM):
        with pytest.raises(StartError, match="in use"):
            await open_unix("s")
        assert Path("s").is_socket()


@unix_only
@pytest.mark.parametrize("kind", ["file", "directory", "link", "dangling link", "fifo"])
async def test_other_files_are_never_removed(directory, kind):
    target = Path("target")
    if kind == "file":
        Path("s").write_text("precious")
    elif kind == "directory":
        Path("s").mkdir()
        Path("s/precious").touch()
    elif kind == "fifo":
        os.mkfifo("s")
    else:
        if kind == "link":
            with live_socket("target"):
                pass  # even a link to a stale socket
        Path("s").symlink_to(target)
    before = os.lstat("s")
    with pytest.raises(StartError, match="cannot listen on s: it exists and is not a socket"):
        await open_unix("s")
    assert os.lstat("s") == before
    assert kind != "directory" or Path("s/precious").exists()
    assert kind != "link" or target.is_socket()


@unix_only
async def test_unix_path_length_is_limited(directory):
    longest = "x" * UNIX_PATH_MAX
    listener = await open_unix(longest)
    assert await unix_answers(longest)
    listener.close()
    for path in (longest + "x", "ü" * (UNIX_PATH_MAX // 2 + 1)):
        with pytest.raises(StartError, match=f"108 bytes, a unix socket takes {UNIX_PATH_MAX}"):
            await open_unix(path)


@unix_only
async def test_missing_or_closed_directory_is_an_error(directory, monkeypatch):
    with pytest.raises(StartError, match="cannot listen on no/s: the directory does not exist"):
        await open_unix("no/s")

    class Refusing(socket.socket):
        def bind(self, address: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(unix.socket, "socket", Refusing)
    with pytest.raises(StartError, match="listen on s: no permission; choose a writable"):
        await open_unix("s")


@linux_only
async def test_abstract_socket_comes_and_goes(directory):
    name = f"@mtt-test-{os.getpid()}"
    listener = await open_unix(name)
    assert listener.addresses == [name]
    assert await unix_answers("\0" + name[1:])
    assert not os.listdir(".")
    with pytest.raises(StartError, match="in use"):
        await open_unix(name)
    listener.close()
    await asyncio.sleep(0)
    (await open_unix(name)).close()
    longest = "@" + "x" * UNIX_PATH_MAX
    (await open_unix(longest)).close()
    with pytest.raises(StartError, match="bytes, a unix socket takes"):
        await open_unix(longest + "x")


# These two pretend to another system, which no event loop would survive.


@unix_only
def test_abstract_socket_is_an_error_outside_linux(monkeypatch):
    monkeypatch.setattr(unix.sys, "platform", "darwin")
    with pytest.raises(StartError, match="only Linux has abstract sockets"):
        unix.bind_unix("@name")


def test_system_without_unix_sockets_is_an_error(monkeypatch):
    monkeypatch.delattr(socket, "AF_UNIX", raising=False)
    with pytest.raises(StartError, match="no unix sockets; use host:port"):
        unix.bind_unix("s")


@unix_only
async def test_shared_unix_socket_file_is_left(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    listener = await bind(None, path, resolver=Resolver())
    listener.disown()
    listener.close()
    assert os.path.exists(path)
