"""Certificates that change while a server runs."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from pathlib import Path
from typing import Any

import pytest

from mtt import followed
from mtt.trust.identity import Identity
from mtt.trust.reload import TlsFiles, server_tls
from mtt.trust.tls_options import ServerTls
from mtt_mu_server.options import options as mu_options
from mtt_mu_server.server import MultiUserServer
from tests.anytls.serving import server_for
from tests.mu.panel import multi_user_server
from tests.support.certs import Authority, Certs
from tests.support.tunnels import eventually, logged, server_at
from tests.trust.handshakes import pin


class Pair:
    """The certificate and key of a server, to be replaced."""

    def __init__(self, directory: Path, certs: Certs) -> None:
        self.certs = certs
        self.cert, self.key = directory / "cert.pem", directory / "key.pem"
        self.put(self.cert, certs.cert)
        self.put(self.key, certs.key)

    def put(self, path: Path, content: str) -> None:
        """Replace a file in one step, as certbot does."""
        new = path.with_suffix(".new")
        shutil.copy(content, new)
        new.replace(path)

    def tls(self) -> TlsFiles:
        return server_tls(ServerTls(cert=str(self.cert), key=str(self.key), alpn=("http/1.1",)))


@pytest.fixture
def pair(tmp_path: Path, certs: Certs, monkeypatch: pytest.MonkeyPatch) -> Pair:
    monkeypatch.setattr(followed, "CHECK_INTERVAL", 0.02)
    return Pair(tmp_path, certs)


def pin_in(path: str) -> str | None:
    return Identity(Path(path).read_bytes()).words.pin


async def test_a_renewed_pair_is_used(pair: Pair, certs: Certs) -> None:
    files = pair.tls()
    old = files.context()
    files.follow()
    with logged() as lines:
        pair.put(pair.key, certs.other_key)  # does not fit for a moment
        pair.put(pair.cert, certs.other_cert)
        await eventually(lambda: files.context() is not old)
        await asyncio.sleep(0.1)
    await files.close()
    assert pin(files) == pin_in(certs.other_cert)
    (line,) = lines
    assert line.startswith("INFO reloaded: certificate for test.local")
    assert line.endswith(f"pin {pin(files)} (a NEW pin)")


@pytest.mark.parametrize(
    "serve",
    [
        lambda certs, **files: server_at("tls", 9, certs, **files),
        server_for,
        multi_user_server,
    ],
    ids=["mtt-server", "anytls-server", "mtt-mu-server"],
)
async def test_expired_certificate_causes_a_warning_at_start(
    serve: Any, pair: Pair, certs: Certs
) -> None:
    cert, key = Authority("any CA").issue("some.name", days=-1)
    pair.key.write_bytes(key)
    pair.cert.write_bytes(cert)
    async with serve(certs, cert=str(pair.cert), key=str(pair.key)) as served:
        server = served[0] if isinstance(served, tuple) else served
        with logged() as lines:
            server.announce()
    assert lines[0].startswith("INFO listening on ")
    assert lines[1].startswith(f"WARNING the certificate in {pair.cert} expired on ")


async def test_expired_controller_certificate_causes_a_warning(
    pair: Pair, certs: Certs
) -> None:
    cert, key = Authority("any CA").issue("some.name", days=-1)
    pair.key.write_bytes(key)
    pair.cert.write_bytes(cert)
    files = {"c-cert": str(pair.cert), "c-key": str(pair.key)}
    with logged() as lines:
        async with multi_user_server(certs, **files):
            pass
    assert lines[0].startswith(f"WARNING the certificate in {pair.cert} expired on ")


async def test_expired_certificate_causes_a_warning_at_reload(pair: Pair) -> None:
    cert, key = Authority("any CA").issue("some.name", days=-1)
    files = pair.tls()
    old = files.context()
    files.follow()
    with logged() as lines:
        files.warn()
        assert not lines
        pair.key.write_bytes(key)
        pair.cert.write_bytes(cert)
        await eventually(lambda: files.context() is not old)
        await eventually(lambda: len(lines) == 2)
    await files.close()
    assert lines[0].startswith("INFO reloaded: certificate for some.name, expired on ")
    assert lines[1].startswith(f"WARNING the certificate in {pair.cert} expired on ")


async def test_files_that_are_being_written_are_left_alone(
    pair: Pair, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as each look finds something new, they are not even tried."""
    files = pair.tls()
    look, looks = followed._file_state, 0

    def look_and_write(path: str) -> tuple[int, ...] | None:
        nonlocal looks
        looks += 1
        if looks < 10:
            pair.key.write_bytes(bytes(looks))
        elif looks == 10:
            pair.put(pair.key, certs.key)
        return look(path)

    monkeypatch.setattr(followed, "_file_state", look_and_write)
    old = files.context()
    files.follow()
    with logged() as lines:
        await eventually(lambda: files.context() is not old)
        await eventually(lambda: lines)
    await files.close()
    assert [line.partition(":")[0] for line in lines] == ["INFO reloaded"]


def test_a_process_without_a_loop_reads_changed_files(pair: Pair, certs: Certs) -> None:
    files = pair.tls()
    old = files.context()
    files.renew()
    assert files.context() is old
    pair.put(pair.cert, certs.other_cert)
    with logged() as lines:
        files.renew()
        assert files.context() is old  # half of it
        pair.put(pair.key, certs.other_key)
        files.renew()
    assert files.context() is not old
    assert pin(files) == pin_in(certs.other_cert)
    (line,) = lines
    assert line.startswith("ERROR the old certificates stay in use: ")


async def test_a_broken_file_keeps_the_old_pair_and_is_reported_once(
    pair: Pair, certs: Certs
) -> None:
    files = pair.tls()
    old = files.context()
    files.follow()
    with logged() as lines:
        for content, reason in (
            (b"junk", "has no PEM private key in it"),
            (Path(certs.other_key).read_bytes(), "does not belong to the certificate"),
        ):
            pair.key.write_bytes(content)
            await eventually(lambda: lines)
            await asyncio.sleep(0.15)
            (line,) = lines
            assert line.startswith(f"ERROR the old certificates stay in use: -key: {pair.key} ")
            assert reason in line
            lines.clear()
        pair.key.unlink()
        await eventually(lambda: lines)
        assert "cannot read" in lines.pop()
        assert files.context() is old
        pair.put(pair.key, certs.key)
        await eventually(lambda: files.context() is not old)
    await files.close()
    assert pin(files) == pin_in(certs.cert)
    assert [line.partition(":")[0] for line in lines] == ["INFO reloaded"]


async def test_requested_reload_is_immediate(
    pair: Pair, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed, "CHECK_INTERVAL", 3600.0)
    files = pair.tls()
    old = files.context()
    files.follow()
    with logged() as lines:
        pair.key.write_bytes(b"junk")
        files.reload()
        await eventually(lambda: lines)
        assert files.context() is old
        pair.put(pair.key, certs.key)
        files.reload()
        await eventually(lambda: files.context() is not old)
        await eventually(lambda: len(lines) == 2)
    await files.close()
    assert "NEW pin" not in lines[1]


async def test_contexts_without_files_are_not_watched() -> None:
    files = server_tls(ServerTls(alpn=("http/1.1",)))
    files.follow()
    assert len(asyncio.all_tasks()) == 1
    await files.close()


async def test_reload_of_client_authorities_keeps_a_memory_identity(
    tmp_path: Path, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed, "CHECK_INTERVAL", 0.02)
    ca = tmp_path / "ca.pem"
    shutil.copy(certs.ca, ca)
    files = server_tls(ServerTls(client_ca=str(ca), alpn=("http/1.1",)))
    before, old = pin(files), files.context()
    files.follow()
    shutil.copy(certs.other_ca, ca)
    await eventually(lambda: files.context() is not old)
    await files.close()
    assert pin(files) == before
    assert files.context().verify_mode is ssl.CERT_REQUIRED


async def test_the_multi_user_server_follows_all_its_files(
    pair: Pair, certs: Certs, tmp_path: Path
) -> None:
    """Its controller has a certificate of its own."""
    control_cert, control_key = tmp_path / "c-cert", tmp_path / "c-key"
    pair.put(control_cert, certs.cert)
    pair.put(control_key, certs.key)
    given = {
        "b": "127.0.0.1:0", "c": "127.0.0.1:0", "cert": str(pair.cert), "key": str(pair.key),
        "c-cert": str(control_cert), "c-key": str(control_key), "client-ca": certs.ca,
    }  # fmt: skip
    server = MultiUserServer(mu_options(given))
    await server.start()
    before = [files.context() for files in server.certificates]
    assert [context.verify_mode for context in before] == [ssl.CERT_REQUIRED, ssl.CERT_NONE]
    with logged() as lines:
        pair.key.write_bytes(b"junk")
        control_key.write_bytes(b"junk")
        await eventually(lambda: len(lines) == 2)
        for key in (pair.key, control_key):
            pair.put(key, certs.key)
        await eventually(
            lambda: not any(files.context() in before for files in server.certificates)
        )
    await server.close()
    assert sorted(line.partition(" has ")[0].partition("use: ")[2] for line in lines[:2]) == [
        f"-c-key: {control_key}", f"-key: {pair.key}",
    ]  # fmt: skip
