"""What needs `cryptography` is done by a child process, and here where that fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtt.errors import UsageError
from mtt.trust import child
from mtt.trust.identity import Identity
from mtt.trust.selfsigned import self_signed
from tests.support.certs import Certs
from tests.support.processes import Processes

POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

SERVER = ("mtt-server", "-b", "127.0.0.1:0", "-d", "127.0.0.1:1")


# Work for children; they know it by its name.


def where(*texts: str) -> tuple[int, tuple[str, ...]]:
    return os.getpid(), texts


def refuse_in_child(parent: int) -> int:
    if os.getpid() != parent:
        raise UsageError("not here")
    return parent


def hang_in_child(parent: int) -> int:
    if os.getpid() != parent:
        threading.Event().wait()
    return parent


def open_descriptors() -> int:
    return sum(os.path.exists(f"/proc/self/fd/{number}") for number in range(256))


def refuse() -> None:
    raise UsageError("not anywhere")


@pytest.fixture
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_is_allowed", True)
    # As in a process that has not loaded it.
    monkeypatch.delitem(sys.modules, "cryptography", raising=False)


@pytest.fixture(params=["alone", "beside a thread"])
def allowed(_allowed: None, request: pytest.FixtureRequest) -> Iterator[None]:
    """Children are allowed, and this process is of one thread, or of two."""
    if request.param == "alone":
        assert threading.active_count() == 1, "another test has left a thread"
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    yield
    stop.set()
    thread.join()


@POSIX
def test_work_is_done_by_a_child(allowed: None) -> None:
    pid, texts = child.run(where, "a", "b")
    assert pid != os.getpid()
    assert texts == ("a", "b")


@POSIX
def test_no_child_is_left(allowed: None) -> None:
    child.run(where)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@POSIX
def test_failing_child_is_replaced(allowed: None) -> None:
    assert child.run(refuse_in_child, os.getpid()) == os.getpid()


@POSIX
def test_stuck_child_is_replaced(allowed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "TIME_LIMIT", 0.2)
    assert child.run(hang_in_child, os.getpid()) == os.getpid()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@POSIX
def test_child_has_no_connections(_allowed: None) -> None:
    """Or they would stay open when the parent closes them."""
    with open(os.devnull), open(os.devnull):
        assert child.run(open_descriptors) == 4  # the standard streams and the answer


def test_errors_are_raised_here(allowed: None) -> None:
    with pytest.raises(UsageError, match="not anywhere"):
        child.run(refuse)


def test_system_without_processes(allowed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(os, "fork", fail, raising=False)
    monkeypatch.setattr(subprocess, "Popen", fail)
    assert child.run(where)[0] == os.getpid()


def test_no_child_unless_allowed() -> None:
    assert child.run(where)[0] == os.getpid()


def test_no_child_once_cryptography_is_loaded(
    _allowed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cryptography

    monkeypatch.setitem(sys.modules, "cryptography", cryptography)
    assert child.run(where)[0] == os.getpid()


def test_results_are_those_of_this_process(
    allowed: None, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = Path(certs.cert).read_bytes()
    found = Identity(pem, path=certs.cert).words
    assert "cryptography" not in sys.modules
    certificate, key = child.run(self_signed, "a.b")
    assert "cryptography" not in sys.modules
    assert b"PRIVATE KEY" in key
    described = Identity(certificate).words
    monkeypatch.setattr(child, "_is_allowed", False)
    assert found == Identity(pem, path=certs.cert).words
    assert described == Identity(certificate).words
    assert described.description == "self-signed for a.b"


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux's /proc")
@pytest.mark.parametrize("given", ["files", "self-signed", "directory"])
def test_server_does_not_load_cryptography(given: str, certs: Certs, tmp_path: Path) -> None:
    """Neither at its start nor when it reads its files again: that would be 10 MB for its life."""
    options: dict[str, tuple[str | Path, ...]] = {
        "files": ("-cert", certs.cert, "-key", certs.key),
        "self-signed": (),
        "directory": ("-cert-dir", tmp_path),
    }
    with Processes() as processes:
        server = processes.command(*SERVER, *options[given])
        server.expect("listening on .*pin sha256/")
        if given != "self-signed":
            server.send(signal.SIGHUP)
            server.expect("reloaded: .*pin sha256/")
        maps = Path(f"/proc/{server.pid}/maps").read_text()
        assert "_ssl" in maps
        assert "cryptography" not in maps
        assert "_hashlib" not in maps  # half a megabyte
        assert server.stop() == 0
