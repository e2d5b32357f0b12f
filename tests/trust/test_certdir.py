"""The identity that a server keeps in the directory of `-cert-dir`."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mtt.errors import StartError, UsageError
from mtt.trust.certdir import kept_pair
from mtt.trust.reload import TlsFiles, server_tls
from mtt.trust.tls_options import ServerTls
from tests.support.certs import key_pem
from tests.trust.handshakes import pin

POSIX = pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")


def kept(directory: Path, name: str = "") -> TlsFiles:
    return server_tls(ServerTls(cert_dir=str(directory), name=name, alpn=("http/1.1",)))


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


@POSIX
@pytest.mark.parametrize("name", ["cert.pem", "key.pem"])
def test_a_pipe_in_the_directory_is_not_opened(name: str, tmp_path: Path) -> None:
    kept(tmp_path, "some.example")
    (tmp_path / "cert.pem").unlink()
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(UsageError, match=rf"^-cert-dir: .*/{name} is a pipe"):
        kept(tmp_path, "some.example")


@pytest.mark.parametrize("kind", ["file", "no parent", "NUL"])
def test_unusable_directory(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = {"file": tmp_path / "file", "no parent": tmp_path / "a" / "b", "NUL": "a\0b"}[kind]
    reason = {
        "file": "cannot use .*: it is not a directory",
        "no parent": "cannot create .*: the directory above does not exist; create it",
        "NUL": "cannot use ",
    }[kind]
    with pytest.raises(StartError, match=f"^-cert-dir: {reason}"):
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
