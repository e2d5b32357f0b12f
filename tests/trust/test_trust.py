"""The kept identity of `-cert-dir`, contexts that follow their files, and the options of both."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mtt.errors import StartError, UsageError
from mtt.options.flags import parse_args
from mtt.options.tunnel import CLIENT_FLAGS, SERVER_FLAGS, client_options, server_options
from mtt.trust import reload
from mtt.trust.certdir import kept_pair
from mtt.trust.identity import Identity
from mtt.trust.reload import TlsFiles, server_tls
from mtt.trust.tls_options import ServerTls
from mtt.wire import alpn
from mtt_mu_server.options import FLAGS as MU_FLAGS
from mtt_mu_server.options import options as mu_options
from mtt_mu_server.server import MultiUserServer
from tests.anytls.serving import server_for
from tests.mu.panel import multi_user_server
from tests.support.certs import Authority, Certs, key_pem
from tests.support.tunnels import eventually, logged, server_at

POSIX = pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")


def kept(directory: Path, name: str = "") -> TlsFiles:
    return server_tls(ServerTls(cert_dir=str(directory), name=name, alpn=("http/1.1",)))


def pin(files: TlsFiles) -> str:
    assert files.identity is not None
    assert files.identity.pin is not None
    return files.identity.pin


# -cert-dir


def test_the_identity_is_kept(tmp_path: Path) -> None:
    directory = tmp_path / "new"
    first = kept(directory, "some.example")
    assert first.description.startswith("certificate for some.example, valid until ")
    assert sorted(path.name for path in directory.iterdir()) == ["cert.pem", "key.pem"]
    content = [path.read_bytes() for path in sorted(directory.iterdir())]
    for name in ("", "some.example", "Some.Example"):
        assert kept(directory, name).description == first.description
    assert content == [path.read_bytes() for path in sorted(directory.iterdir())]


@POSIX
def test_key_is_readable_only_by_its_user(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        kept(tmp_path / "new")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").iterdir()}
    assert modes == {"cert.pem": 0o644, "key.pem": 0o600}
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_removed_certificate_is_replaced_for_the_same_key(tmp_path: Path) -> None:
    first = kept(tmp_path, "old.example")
    with pytest.raises(UsageError, match=r"^-n: .*cert\.pem is for old\.example, not new\.example"):
        kept(tmp_path, "new.example")
    (tmp_path / "cert.pem").unlink()
    second = kept(tmp_path, "new.example")
    assert "new.example" in second.description
    assert pin(second) == pin(first)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"key.pem": None}, r"cert\.pem exists, but its key .*key\.pem is missing; restore"),
        ({"key.pem": b""}, r"key\.pem has no PEM private key.*remove both"),
        ({"cert.pem": b"\0"}, r"cert\.pem has no PEM certificate.*remove both"),
        ({"cert.pem": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
         r"cert\.pem is damaged.*remove both"),
        ({"key.pem": key_pem(ec.generate_private_key(ec.SECP256R1()))},
         r"key\.pem does not belong to the certificate .*cert\.pem.*remove both"),
        ({"cert.pem": None, "key.pem": b"junk"}, r"key\.pem is not a usable private key"),
        ({"cert.pem": None,
          "key.pem": key_pem(ec.generate_private_key(ec.SECP256R1()), b"secret")},
         r"key\.pem is not a usable private key .*encrypted"),
        ({"cert.pem": None,
          "key.pem": ed25519.Ed25519PrivateKey.generate().private_bytes(
              Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())},
         r"key\.pem is not a usable private key .*RSA"),
    ],
    ids=["no key", "empty key", "no PEM", "damaged", "foreign key", "junk", "encrypted", "kind"],
)  # fmt: skip
def test_a_damaged_directory(
    damage: dict[str, bytes | None], reason: str, tmp_path: Path
) -> None:
    kept(tmp_path)
    for name, content in damage.items():
        if content is None:
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_bytes(content)
    left = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match=f"(?s)^-cert-dir: .*{reason}") as caught:
        kept(tmp_path)
    assert "\n" not in str(caught.value)
    assert left == {path: path.read_bytes() for path in tmp_path.iterdir()}


@pytest.mark.parametrize("kind", ["file", "no parent", "NUL"])
def test_unusable_directory(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = {"file": tmp_path / "file", "no parent": tmp_path / "a" / "b", "NUL": "a\0b"}[kind]
    with pytest.raises(StartError, match=r"^-cert-dir: cannot use "):
        kept_pair(str(path), "")


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mtt.trust.certdir.os.fsync", full)
        with pytest.raises(StartError, match="no space left on device"):
            kept(tmp_path)
    assert list(tmp_path.iterdir()) == []
    kept(tmp_path)


@POSIX
def test_servers_that_start_together_share_one_identity(tmp_path: Path) -> None:
    pins: list[str] = []
    threads = [
        threading.Thread(target=lambda: pins.append(pin(kept(tmp_path / "new")))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pins) == 6
    assert len(set(pins)) == 1


# Files that change


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
    monkeypatch.setattr(reload, "CHECK_INTERVAL", 0.02)
    return Pair(tmp_path, certs)


def pin_in(path: str) -> str | None:
    return Identity(Path(path).read_bytes()).pin


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
    look, looks = reload._file_state, 0

    def look_and_write(path: str) -> tuple[int, ...] | None:
        nonlocal looks
        looks += 1
        if looks < 10:
            pair.key.write_bytes(bytes(looks))
        elif looks == 10:
            pair.put(pair.key, certs.key)
        return look(path)

    monkeypatch.setattr(reload, "_file_state", look_and_write)
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
    monkeypatch.setattr(reload, "CHECK_INTERVAL", 3600.0)
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
    monkeypatch.setattr(reload, "CHECK_INTERVAL", 0.02)
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


# Options

CLIENT = ("-b", "127.0.0.1:0", "-s", "example.com:443")
SERVER = ("-b", "127.0.0.1:0", "-d", "127.0.0.1:1")
MU_SERVER = ("-b", "127.0.0.1:0", "-c", "127.0.0.1:0")


def test_options_of_both_ends() -> None:
    client = client_options(
        parse_args(CLIENT_FLAGS, [*CLIENT, "-cert", "c", "-key", "k", "-tls-min", "1.3"])
    )
    assert (client.tls.cert, client.tls.key, client.tls.tls_min) == ("c", "k", "1.3")
    server = server_options(
        parse_args(SERVER_FLAGS, [*SERVER, "-cert-dir", "d", "-client-ca", "ca"])
    )
    assert server.tls == ServerTls(cert_dir="d", client_ca="ca", tls_min="1.2")
    many = mu_options(parse_args(MU_FLAGS, [*MU_SERVER, "-cert-dir", "d", "-client-ca", "ca"]))
    assert many.tls == ServerTls(cert_dir="d", client_ca="ca", tls_min="1.2", alpn=alpn.SITE)


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ("-cert-dir d -cert c -key k", "-cert-dir is for a self-signed certificate; drop it"),
        ("-client-ca ca -disable-tls", "-client-ca needs TLS, which -disable-tls turns off"),
        ("-tls-min 1.1", "-tls-min: '1.1' is not 1.2 or 1.3"),
    ],
)
def test_invalid_server_options(argv: str, reason: str) -> None:
    with pytest.raises(UsageError, match=f"^{reason}"):
        server_options(parse_args(SERVER_FLAGS, [*SERVER, *argv.split()]))
    with pytest.raises(UsageError, match=f"^{reason}"):
        mu_options(parse_args(MU_FLAGS, [*MU_SERVER, *argv.split()]))


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ("-cert c", "-cert needs -key; give both, or neither to go without"),
        ("-key k", "-key needs -cert;"),
        ("-tls-min TLS1.3", "-tls-min: 'TLS1.3' is not 1.2 or 1.3"),
    ],
)
def test_invalid_client_options(argv: str, reason: str) -> None:
    with pytest.raises(UsageError, match=f"^{reason}"):
        client_options(parse_args(CLIENT_FLAGS, [*CLIENT, *argv.split()]))
