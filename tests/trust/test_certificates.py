from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import importlib.util
import os
import re
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mtt.errors import PeerError, StartError, UsageError
from mtt.trust.certificates import client_context, finish_client_context, server_context
from mtt.trust.identity import Identity, check_pin, parse_pin
from mtt.trust.pem import InlinePem, PemSource
from mtt.trust.tls_options import ClientTls, ServerTls
from tests.support.certs import Authority, Certs, key_pem, pem
from tests.support.tunnels import logged

UNRELATED_PIN = "sha256/" + base64.b64encode(bytes(32)).decode()


def shake(
    client: ssl.SSLContext, server: ssl.SSLContext, name: str, session: ssl.SSLSession | None = None
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends of a handshake in memory; raises what the client raises."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=name, session=session)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for end in (ours, theirs):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    with pytest.raises(ssl.SSLWantReadError):
        ours.read(1)  # takes the session tickets that follow a handshake of TLS 1.3
    return ours, theirs


def client_of(
    *, ca: PemSource = "", skip_verify: bool = False, pins: tuple[str, ...] = ()
) -> ssl.SSLContext:
    return client_context(ClientTls(ca=ca, skip_verify=skip_verify, pins=pins))


def server_of(*, cert: PemSource = "", key: PemSource = "", name: str = "") -> ssl.SSLContext:
    return server_context(ServerTls(cert=cert, key=key, name=name))[0]


def presented(context: ssl.SSLContext) -> x509.Certificate:
    """The certificate that a server with this context shows."""
    client, _ = shake(client_of(skip_verify=True), context, "any.name")
    der = client.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der)


def pin_of(certificate: x509.Certificate) -> str:
    info = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return "sha256/" + base64.b64encode(hashlib.sha256(info).digest()).decode()


# The server's certificate


def test_self_signed_is_what_the_original_makes() -> None:
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
    assert identity.description == "self-signed for my.name"
    assert identity.pin == pin_of(certificate)


def test_self_signed_is_new_each_time() -> None:
    first, second = (presented(server_of(name="a.b")) for _ in range(2))
    assert first.serial_number != second.serial_number
    assert pin_of(first) != pin_of(second)


def test_self_signed_has_a_random_name_without_one() -> None:
    names = set()
    for _ in range(20):
        _, identity = server_context(ServerTls())
        name = identity.description.removeprefix("self-signed for ")
        assert re.fullmatch(r"[a-z]{3,7}\.[a-z]{1,3}", name)
        names.add(name)
    assert len(names) > 10


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7"])
def test_self_signed_for_an_address(address: str) -> None:
    certificate = presented(server_of(name=address))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(found) for found in names.get_values_for_type(x509.IPAddress)] == [address]


def test_self_signed_for_a_name_longer_than_a_common_name_may_be() -> None:
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
def test_self_signed_is_never_on_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_certificate_from_files(certs: Certs) -> None:
    context, identity = server_context(ServerTls(cert=certs.cert, key=certs.key))
    client, server = shake(client_of(ca=certs.ca), context, certs.name)
    assert client.version() == server.version() == "TLSv1.3"
    last = x509.load_pem_x509_certificate(Path(certs.cert).read_bytes()).not_valid_after_utc
    assert identity.description == (
        f"certificate for test.local, localhost, 127.0.0.1 and 1 more, valid until {last:%Y-%m-%d}"
    )
    assert identity.pin == pin_of(x509.load_pem_x509_certificate(Path(certs.cert).read_bytes()))


def test_certificate_and_key_in_one_file(certs: Certs, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(Path(certs.key).read_bytes() + Path(certs.cert).read_bytes())
    context, identity = server_context(ServerTls(cert=str(both), key=str(both)))
    assert identity.pin == pin_of(presented(context))


def test_expired_certificate_says_so() -> None:
    certificate, _ = Authority("CA").issue("old.test", days=-1)
    assert re.fullmatch(
        r"certificate for old\.test, expired on \d{4}-\d\d-\d\d",
        Identity(certificate, path="old.pem").description,
    )


def test_description_falls_back_to_the_common_name() -> None:
    certificate, _ = Authority("CA").issue(common_name="plain")
    assert Identity(certificate, path="x").description.startswith("certificate for plain, valid")


def test_identity_tolerates_certificates_only_openssl_can_parse() -> None:
    identity = Identity(b"?", path="/etc/strange.pem")
    assert identity.description == "certificate from /etc/strange.pem"
    assert identity.pin is None


def test_given_certificate_works_without_cryptography(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    context, identity = server_context(ServerTls(cert=certs.cert, key=certs.key))
    assert context.cert_store_stats()["x509"] == 0
    assert identity.description == f"certificate from {certs.cert}"
    assert identity.pin is None


def test_contexts_do_not_import_cryptography_early(certs: Certs) -> None:
    program = (
        "import sys\n"
        "from mtt.trust.certificates import client_context, server_context\n"
        "from mtt.trust.tls_options import ClientTls, ServerTls\n"
        "cert, key, ca = sys.argv[1:]\n"
        "server_context(ServerTls(cert=cert, key=key))\n"
        "client_context(ClientTls(ca=ca))\n"
        "sys.exit(any(name.startswith('cryptography') for name in sys.modules))\n"
    )
    command = [sys.executable, "-c", program, certs.cert, certs.key, certs.ca]
    assert subprocess.run(command, cwd=Path(__file__).parents[2]).returncode == 0


def chain_files(
    directory: Path, order: str, *, days: int = 1, issuer_days: int = 1
) -> tuple[str, str, str]:
    """CA, chain and key, the chain with root, intermediate and leaf in this `order` of "ril"."""
    root = Authority("root")
    middle = Authority("intermediate", issuer=root, days=issuer_days)
    leaf, key = middle.issue("some.name", days=days)
    parts = {"r": pem(root.certificate), "i": pem(middle.certificate), "l": leaf}
    contents = {"ca": parts["r"], "chain": b"".join(map(parts.__getitem__, order)), "key": key}
    for name, content in contents.items():
        Path(directory, name).touch(0o600)
        Path(directory, name).write_bytes(content)
    return str(directory / "ca"), str(directory / "chain"), str(directory / "key")


@pytest.mark.parametrize("order", ["l", "li", "lir", "ril", "il", "lri", "irl", "rli"])
def test_chain_in_the_wrong_order_works_with_a_warning(tmp_path: Path, order: str) -> None:
    ca, cert, key = chain_files(tmp_path, order)
    context, identity = server_context(ServerTls(cert=cert, key=key))
    assert presented(context).issuer.rfc4514_string() == "CN=intermediate"
    assert identity.names == ("some.name",)
    if "i" in order:
        shake(client_of(ca=ca), context, "some.name")
    if order in ("l", "li", "lir"):
        assert identity.warnings == ()
    else:
        (line,) = identity.warnings
        assert line.startswith(f"the certificates in {cert} are in the wrong order; put the ")


def test_a_cross_signed_root_is_in_order(tmp_path: Path) -> None:
    old, new = Authority("old"), Authority("new")
    builder = Authority("new", issuer=old)
    cert = tmp_path / "chain"
    leaf, _ = new.issue("some.name")
    cert.write_bytes(leaf + pem(builder.certificate) + pem(new.certificate))
    assert Identity(cert.read_bytes(), path=str(cert)).warnings == ()


@pytest.mark.parametrize(
    ("days", "issuer_days", "words"),
    [(-1, 1, "the certificate in {} expired on "), (1, -1, "certificate 2 in {} expired on ")],
)
def test_expired_certificates_cause_a_warning(
    tmp_path: Path, days: int, issuer_days: int, words: str
) -> None:
    _, cert, key = chain_files(tmp_path, "lir", days=days, issuer_days=issuer_days)
    _, identity = server_context(ServerTls(cert=cert, key=key))
    (line,) = identity.warnings
    assert line.startswith(words.format(cert))
    assert line.endswith("renew it")


def test_not_yet_valid_certificate_causes_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, cert, _ = chain_files(tmp_path, "l")

    class Past(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Past:
            return cls(2020, 1, 1, tzinfo=tz)

    monkeypatch.setattr("mtt.trust.identity.datetime.datetime", Past)
    (line,) = Identity(Path(cert).read_bytes(), path=cert).warnings
    assert line.startswith(f"the certificate in {cert} is not valid before ")


@pytest.mark.parametrize(("mode", "count"), [(0o600, 0), (0o640, 0), (0o644, 1), (0o604, 1)])
def test_world_readable_key_causes_a_warning(
    certs: Certs, tmp_path: Path, mode: int, count: int
) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes(Path(certs.key).read_bytes())
    key.chmod(mode)
    with logged() as lines:
        server_of(cert=certs.cert, key=str(key))
        client_context(ClientTls(cert=certs.cert, key=str(key)))
    line = f"WARNING -key: every user can read {key}; run chmod o-r on it"
    assert lines == [line] * 2 * count


@pytest.mark.parametrize(("given", "missing"), [("cert", "key"), ("key", "cert")])
def test_certificate_and_key_require_each_other(certs: Certs, given: str, missing: str) -> None:
    with pytest.raises(UsageError, match=f"^-{given} needs -{missing}"):
        server_of(**{given: getattr(certs, given)})


def bad_file(kind: str, certs: Certs, directory: Path) -> str:
    path = directory / f"{kind}.pem"
    if kind == "garbage":
        path.write_bytes(b"\0garbage\n")
    elif kind == "der":
        path.write_bytes(ssl.PEM_cert_to_DER_cert(Path(certs.cert).read_text()))
    elif kind == "damaged certificate":
        path.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    elif kind == "damaged key":
        path.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    elif kind == "encrypted":
        path.write_bytes(key_pem(ec.generate_private_key(ec.SECP256R1()), b"secret"))
    elif kind == "directory":
        path.mkdir()
    elif kind == "NUL":
        return "a\0b"
    else:
        assert kind == "missing"
    return str(path)


@pytest.mark.parametrize(
    ("option", "kind", "reason"),
    [
        ("cert", "missing", "cannot read .*: no such file or directory"),
        ("cert", "directory", "cannot read .*: is a directory"),
        ("cert", "NUL", "cannot read "),
        ("cert", "garbage", "has no PEM certificate"),
        ("cert", "der", "has no PEM certificate"),
        ("cert", "damaged certificate", "is damaged"),
        ("key", "missing", "cannot read .*: no such file or directory"),
        ("key", "garbage", "has no PEM private key"),
        ("key", "damaged key", "is damaged"),
        ("key", "encrypted", "is encrypted; decrypt it: openssl pkey"),
    ],
)
def test_bad_certificate_or_key(
    certs: Certs, tmp_path: Path, option: str, kind: str, reason: str
) -> None:
    paths = {"cert": certs.cert, "key": certs.key, option: bad_file(kind, certs, tmp_path)}
    with pytest.raises(UsageError, match=rf"^-{option}: .*{reason}") as caught:
        server_of(**paths)
    assert "\n" not in str(caught.value)


def test_unreadable_key(certs: Certs, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes(Path(certs.key).read_bytes())
    key.chmod(0)
    try:
        key.read_bytes()
    except PermissionError:
        pass
    else:
        pytest.skip("this user may read everything")
    with pytest.raises(UsageError, match=r"^-key: cannot read .*: permission denied"):
        server_of(cert=certs.cert, key=str(key))


def test_key_of_another_kind(certs: Certs, tmp_path: Path) -> None:
    key = tmp_path / "rsa.pem"
    key.write_bytes(key_pem(rsa.generate_private_key(65537, 2048)))
    with pytest.raises(UsageError, match=r"^-key: .*rsa\.pem does not belong to .*/cert\.pem"):
        server_of(cert=certs.cert, key=str(key))


def test_mismatched_certificate_and_key(certs: Certs) -> None:
    with pytest.raises(
        UsageError, match=r"^-key: .*other-key\.pem does not belong to .*/cert\.pem"
    ):
        server_of(cert=certs.cert, key=certs.other_key)


# The server's handshake


def test_server_context_options() -> None:
    context = server_of(name="a.b")
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION
    assert not context.options & ssl.OP_NO_TICKET


def test_client_order_of_cipher_suites_is_preferred_as_in_nginx() -> None:
    assert not server_of(name="a.b").options & ssl.OP_CIPHER_SERVER_PREFERENCE


def test_server_sends_two_tickets_as_web_servers_do() -> None:
    assert server_of(name="a.b").num_tickets == 2


@pytest.mark.parametrize("name", ["a.b", "another.name", None])
def test_server_name_is_acknowledged_whatever_it_is(name: str | None) -> None:
    client = client_of(skip_verify=True)
    client.maximum_version = ssl.TLSVersion.TLSv1_2  # its ServerHello is in clear, with all it says
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=name)
    theirs = server_of(name="a.b").wrap_bio(to_server, to_client, server_side=True)
    for end in (ours, theirs):
        with pytest.raises(ssl.SSLWantReadError):
            end.do_handshake()
    assert (SERVER_NAME in extensions(to_client.read())) == (name is not None)


SERVER_NAME = 0  # RFC 6066, 3


def extensions(flight: bytes) -> list[int]:
    """The extensions of the ServerHello at the beginning of `flight` (RFC 5246, 7.4.1.3)."""
    at = 5 + 4 + 2 + 32  # record, message, version, random
    at += 1 + flight[at] + 2 + 1  # session id, cipher suite, compression
    end = at + 2 + int.from_bytes(flight[at : at + 2], "big")
    at += 2
    found = []
    while at < end:
        found.append(int.from_bytes(flight[at : at + 2], "big"))
        at += 4 + int.from_bytes(flight[at + 2 : at + 4], "big")
    return found


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
def test_versions_below_1_2_are_refused(certs: Certs) -> None:
    old_client = client_of(skip_verify=True)
    old_client.minimum_version = old_client.maximum_version = ssl.TLSVersion.TLSv1_1
    old_client.set_ciphers("ALL:@SECLEVEL=0")
    server = server_of(cert=certs.cert, key=certs.key)
    server.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version|unsupported.protocol"):
        shake(old_client, server, "a.b")

    old_server = server_of(cert=certs.cert, key=certs.key)
    old_server.minimum_version = old_server.maximum_version = ssl.TLSVersion.TLSv1_1
    old_server.set_ciphers("ALL:@SECLEVEL=0")
    client = client_of(skip_verify=True)
    client.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version|unsupported.protocol"):
        shake(client, old_server, "a.b")


@pytest.mark.parametrize("end", ["client", "server"])
def test_a_minimum_of_1_3(end: str, certs: Certs) -> None:
    least = {"client": "1.2", "server": "1.2", end: "1.3"}
    server, _ = server_context(ServerTls(cert=certs.cert, key=certs.key, tls_min=least["server"]))
    client = client_context(ClientTls(ca=certs.ca, tls_min=least["client"]))
    assert shake(client, server, certs.name)[0].version() == "TLSv1.3"
    (server if end == "client" else client).maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version|unsupported.protocol"):
        shake(client, server, certs.name)


@pytest.mark.parametrize("end", ["client", "server"])
def test_suites_have_forward_secrecy_and_authenticated_encryption(end: str, certs: Certs) -> None:
    context = server_of(name="a.b") if end == "server" else client_of(skip_verify=True)
    for suite in context.get_ciphers():
        assert suite["aead"], suite["name"]
        assert suite["protocol"] == "TLSv1.3" or suite["name"].startswith("ECDHE-"), suite["name"]
    assert context.security_level >= 1  # as the system has it


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_sessions_resume(certs: Certs, version: ssl.TLSVersion) -> None:
    server = server_of(cert=certs.cert, key=certs.key)
    client = client_of(ca=certs.ca)
    client.minimum_version = client.maximum_version = version
    first, _ = shake(client, server, certs.name)
    assert not first.session_reused
    again, _ = shake(client, server, certs.name, first.session)
    assert again.session_reused


@pytest.mark.parametrize(
    ("offered", "accepted", "selected"),
    [
        (("http/1.1",), ("http/1.1",), "http/1.1"),
        (("h2", "http/1.1"), ("http/1.1",), "http/1.1"),
        ((), ("http/1.1",), None),
        (("h2",), ("http/1.1",), None),
        (("http/1.1",), (), None),
    ],
)
def test_alpn_never_fails_a_handshake(
    certs: Certs, offered: tuple[str, ...], accepted: tuple[str, ...], selected: str | None
) -> None:
    server, _ = server_context(ServerTls(cert=certs.cert, key=certs.key, alpn=accepted))
    client = client_context(ClientTls(ca=certs.ca, alpn=offered))
    ours, theirs = shake(client, server, certs.name)
    assert ours.selected_alpn_protocol() == theirs.selected_alpn_protocol() == selected


# What the client believes


@pytest.mark.parametrize("name", ["test.local", "localhost", "127.0.0.1", "::1"])
def test_client_accepts_every_name_of_the_certificate(certs: Certs, name: str) -> None:
    server = server_of(cert=certs.cert, key=certs.key)
    client, _ = shake(client_of(ca=certs.ca), server, name)
    assert client.version() is not None


@pytest.mark.parametrize("name", ["other.local", "x.test.local", "127.0.0.2"])
def test_client_refuses_another_name(certs: Certs, name: str) -> None:
    server = server_of(cert=certs.cert, key=certs.key)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake(client_of(ca=certs.ca), server, name)


def test_client_refuses_another_authority(certs: Certs) -> None:
    server = server_of(cert=certs.other_cert, key=certs.other_key)
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        shake(client_of(ca=certs.ca), server, certs.name)


def test_client_refuses_an_expired_certificate(tmp_path: Path) -> None:
    authority = Authority("CA")
    certificate, key = authority.issue("old.test", days=-1)
    for name, content in [("c", certificate), ("k", key), ("ca", pem(authority.certificate))]:
        (tmp_path / name).write_bytes(content)
    server = server_of(cert=str(tmp_path / "c"), key=str(tmp_path / "k"))
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        shake(client_of(ca=str(tmp_path / "ca")), server, "old.test")


def test_client_ignores_the_common_name(tmp_path: Path) -> None:
    authority = Authority("CA")
    certificate, key = authority.issue(common_name="plain.test")
    for name, content in [("c", certificate), ("k", key), ("ca", pem(authority.certificate))]:
        (tmp_path / name).write_bytes(content)
    server = server_of(cert=str(tmp_path / "c"), key=str(tmp_path / "k"))
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake(client_of(ca=str(tmp_path / "ca")), server, "plain.test")


def test_client_trusts_a_servers_own_certificate_given_as_authority(
    certs: Certs, tmp_path: Path
) -> None:
    client, _ = shake(
        client_of(ca=certs.cert), server_of(cert=certs.cert, key=certs.key), certs.name
    )
    assert client.version() is not None
    server = server_of(name="self.test")
    saved = tmp_path / "saved.pem"
    saved.write_bytes(pem(presented(server)))
    client, _ = shake(client_of(ca=str(saved)), server, "self.test")
    assert client.version() is not None


def test_client_uses_the_roots_of_the_system(certs: Certs, monkeypatch: pytest.MonkeyPatch) -> None:
    server = server_of(cert=certs.cert, key=certs.key)
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        shake(client_of(), server, certs.name)
    monkeypatch.setenv("SSL_CERT_FILE", certs.ca)
    context = client_of()
    finish_client_context(context, pins=())
    client, _ = shake(context, server, certs.name)
    assert client.version() is not None


def test_a_given_authority_replaces_those_of_the_system(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", certs.ca)
    server = server_of(cert=certs.cert, key=certs.key)
    context = client_of(ca=certs.other_ca)
    finish_client_context(context, pins=())
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        shake(context, server, certs.name)


def test_skip_verify_accepts_anything(certs: Certs) -> None:
    for context in (client_of(skip_verify=True), client_of(skip_verify=True, ca=certs.ca)):
        client, _ = shake(context, server_of(name="a.b"), "quite.different")
        assert client.version() is not None


@pytest.mark.parametrize("memory", [True, False])
def test_pem_from_a_configuration_file(
    certs: Certs, memory: bool, request: pytest.FixtureRequest
) -> None:
    if not memory:
        request.getfixturevalue("no_memory_files")

    def inline(path: str) -> InlinePem:
        return InlinePem("-c: f: tls.x", Path(path).read_text())

    server, identity = server_context(ServerTls(
        cert=inline(certs.cert), key=inline(certs.key), client_ca=inline(certs.other_ca)
    ))
    client = client_context(ClientTls(
        ca=inline(certs.ca), cert=inline(certs.other_cert), key=inline(certs.other_key)
    ))  # fmt: skip
    _, theirs = shake(client, server, certs.name)
    assert theirs.getpeercert()
    assert identity.description.startswith(f"certificate for {certs.name}")
    assert "PRIVATE" not in repr(inline(certs.key))


@pytest.mark.parametrize(
    ("cert", "key", "text"),
    [
        ("cert", "other_key", "tls.key does not belong to the certificate -c: f: tls.cert"),
        ("key", "key", "tls.cert has no PEM certificate in it"),
        ("cert", "cert", "tls.key has no PEM private key in it"),
    ],
)
def test_bad_pem_in_a_configuration_file(certs: Certs, cert: str, key: str, text: str) -> None:
    inline_cert = InlinePem("-c: f: tls.cert", Path(getattr(certs, cert)).read_text())
    inline_key = InlinePem("-c: f: tls.key", Path(getattr(certs, key)).read_text())
    with pytest.raises(UsageError) as caught:
        server_of(cert=inline_cert, key=inline_key)
    assert str(caught.value) == f"-c: f: {text}"
    with pytest.raises(UsageError, match=r"^-c: f: tls\.ca has no PEM certificate"):
        client_of(ca=InlinePem("-c: f: tls.ca", "x"))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "cannot read .*: no such file or directory"),
        ("directory", "cannot read .*: is a directory"),
        ("garbage", "has no PEM certificate"),
        ("der", "has no PEM certificate"),
        ("damaged certificate", "has no PEM certificate"),
    ],
)
def test_bad_authority(certs: Certs, tmp_path: Path, kind: str, reason: str) -> None:
    with pytest.raises(UsageError, match=f"^-ca: .*{reason}"):
        client_of(ca=bad_file(kind, certs, tmp_path))


# Who a client is


def client_with(cert: str, key: str) -> ssl.SSLContext:
    return client_context(ClientTls(skip_verify=True, cert=cert, key=key))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", r"^-client-ca: cannot read .*: no such file or directory"),
        ("garbage", r"^-client-ca: .* has no PEM certificate"),
    ],
)
def test_bad_authority_of_clients(certs: Certs, tmp_path: Path, kind: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        server_context(ServerTls(
            cert=certs.cert, key=certs.key, client_ca=bad_file(kind, certs, tmp_path)
        ))  # fmt: skip


def test_bad_certificate_of_a_client(certs: Certs, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^-cert: .* has no PEM certificate"):
        client_with(bad_file("garbage", certs, tmp_path), certs.key)
    with pytest.raises(UsageError, match=r"^-key: .* does not belong to"):
        client_with(certs.cert, certs.other_key)


def test_the_server_sees_the_clients_certificate(certs: Certs) -> None:
    server, _ = server_context(ServerTls(cert=certs.cert, key=certs.key, client_ca=certs.other_ca))
    client = client_with(certs.other_cert, certs.other_key)
    _, theirs = shake(client, server, certs.name)
    expected = ssl.PEM_cert_to_DER_cert(Path(certs.other_cert).read_text())
    assert theirs.getpeercert(binary_form=True) == expected


# Pins


def test_pin_replaces_verification() -> None:
    server, identity = server_context(ServerTls(name="a.b"))
    assert identity.pin is not None
    client, _ = shake(client_of(pins=(identity.pin,)), server, "quite.different")
    der = client.getpeercert(binary_form=True)
    assert der is not None
    check_pin(der, (UNRELATED_PIN, identity.pin))
    with pytest.raises(PeerError, match=re.escape(f"the server's pin is {identity.pin}, not")):
        check_pin(der, (UNRELATED_PIN,))


def test_pin_does_not_replace_a_given_authority(certs: Certs) -> None:
    server, identity = server_context(ServerTls(name="a.b"))
    assert identity.pin is not None
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(client_of(ca=certs.ca, pins=(identity.pin,)), server, "a.b")


def test_pin_of_a_certificate_that_cannot_be_decoded() -> None:
    with pytest.raises(PeerError, match="has a key of an unsupported type"):
        check_pin(b"\x30\x03garbage", (UNRELATED_PIN,))


def test_pin_without_cryptography(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=r"^-pin needs the Python package 'cryptography'"):
        client_of(pins=(UNRELATED_PIN,))


def test_pin_hashes_the_key_as_encoded_in_the_certificate(certs: Certs) -> None:
    certificate = x509.load_pem_x509_certificate(Path(certs.cert).read_bytes())
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert key in certificate.public_bytes(Encoding.DER)
    digest = base64.b64encode(hashlib.sha256(key).digest()).decode()
    assert Identity(Path(certs.cert).read_bytes()).pin == f"sha256/{digest}"


@pytest.mark.parametrize("digest", [bytes(32), b"\xff" * 32])  # Base64 "AAA...", "///..."
@pytest.mark.parametrize("prefix", ["sha256/", "sha256//"])
def test_parse_pin(prefix: str, digest: bytes) -> None:
    encoded = base64.b64encode(digest).decode()
    assert parse_pin(prefix + encoded) == "sha256/" + encoded


def test_parse_pin_accepts_only_canonical_base64() -> None:
    """The last character has bits that Base64 does not use."""
    assert parse_pin(UNRELATED_PIN.replace("A=", "B=")) == UNRELATED_PIN


@pytest.mark.parametrize(
    "text",
    ["", "sha256/", "sha256/AAAA", UNRELATED_PIN[7:], UNRELATED_PIN + "A", "sha256/" + "ü" * 44,
     UNRELATED_PIN.replace("sha256", "sha1"), "sha256/" + "!" * 44],
)  # fmt: skip
def test_parse_pin_refuses_invalid_pins(text: str) -> None:
    with pytest.raises(UsageError, match=r"^-pin: "):
        parse_pin(text)
