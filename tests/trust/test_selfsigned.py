"""The certificate that a server makes for itself."""

from __future__ import annotations

import datetime
import os
import re
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from mtt.errors import StartError, UsageError
from mtt.trust.certificates import server_context
from mtt.trust.tls_options import ServerTls
from tests.trust.handshakes import pin_of, presented, server_of


def test_self_signed_resembles_that_of_the_original() -> None:
    context, identity = server_context(ServerTls(name="my.name"))
    certificate = presented(context)
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP384R1)
    assert (
        certificate.subject.rfc4514_string() == "CN=my.name" == certificate.issuer.rfc4514_string()
    )
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName("my.name")]
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not constraints.ca
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert 3651 <= lifetime.days <= 3653
    assert certificate.not_valid_before_utc < datetime.datetime.now(datetime.UTC)
    assert identity.words.description == "self-signed for my.name"
    assert identity.words.pin == pin_of(certificate)


def test_self_signed_is_new_each_time() -> None:
    first, second = (presented(server_of(name="a.b")) for _ in range(2))
    assert first.serial_number != second.serial_number
    assert pin_of(first) != pin_of(second)


def test_self_signed_has_a_random_name_without_one() -> None:
    names = set()
    for _ in range(20):
        _, identity = server_context(ServerTls())
        name = identity.words.description.removeprefix("self-signed for ")
        assert re.fullmatch(r"[a-z]{3,7}\.[a-z]{1,3}", name)
        names.add(name)
    assert len(names) > 10


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7"])
def test_self_signed_for_an_address(address: str) -> None:
    certificate = presented(server_of(name=address))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(found) for found in names.get_values_for_type(x509.IPAddress)] == [address]


def test_self_signed_for_a_name_too_long_for_a_common_name() -> None:
    name = ".".join(["long" * 5] * 5)
    certificate = presented(server_of(name=name))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [name]


def test_self_signed_needs_a_name_in_ascii() -> None:
    with pytest.raises(UsageError, match=r"^-n: 'bücher\.example' .*xn--"):
        server_of(name="bücher.example")


@pytest.fixture
def no_memory_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no files in memory here")
def test_self_signed_key_stays_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    server_of(name="a.b")


@pytest.mark.usefixtures("no_memory_files")
def test_self_signed_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    server_of(name="a.b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_memory_files")
def test_self_signed_without_temporary_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(StartError, match=r"no such file or directory.*TMPDIR"):
        server_of(name="a.b")


def test_self_signed_without_cryptography(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(UsageError, match="needs the Python package 'cryptography'"):
        server_of(name="a.b")
