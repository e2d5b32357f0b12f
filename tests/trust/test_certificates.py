"""A server's context: certificate and key, versions, cipher suites, ALPN."""

from __future__ import annotations

import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from mtt.errors import UsageError
from mtt.trust import identity as identities
from mtt.trust.certificates import client_context, server_context
from mtt.trust.tls_options import ClientTls, ServerTls
from tests.support.certs import Certs, key_pem
from tests.trust.handshakes import client_of, pin_of, presented, server_of, shake


def test_certificate_from_files(certs: Certs) -> None:
    context, identity = server_context(ServerTls(cert=certs.cert, key=certs.key))
    client, server = shake(client_of(ca=certs.ca), context, certs.name)
    assert client.version() == server.version() == "TLSv1.3"
    last = x509.load_pem_x509_certificate(Path(certs.cert).read_bytes()).not_valid_after_utc
    assert identity.words.description == (
        f"certificate for test.local, localhost, 127.0.0.1 and 1 more, valid until {last:%Y-%m-%d}"
    )
    certificate = x509.load_pem_x509_certificate(Path(certs.cert).read_bytes())
    assert identity.words.pin == pin_of(certificate)


def test_certificate_and_key_in_one_file(certs: Certs, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(Path(certs.key).read_bytes() + Path(certs.cert).read_bytes())
    context, identity = server_context(ServerTls(cert=str(both), key=str(both)))
    assert identity.words.pin == pin_of(presented(context))


def test_given_certificate_works_without_cryptography(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    # Neither takes what it says from other tests nor leaves it to them.
    monkeypatch.setattr(identities, "_words", identities._words.__wrapped__)
    context, identity = server_context(ServerTls(cert=certs.cert, key=certs.key))
    assert context.cert_store_stats()["x509"] == 0
    assert identity.words.description == f"certificate from {certs.cert}"
    assert identity.words.pin is None


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


@pytest.mark.parametrize(("given", "missing"), [("cert", "key"), ("key", "cert")])
def test_certificate_and_key_require_each_other(certs: Certs, given: str, missing: str) -> None:
    with pytest.raises(UsageError, match=f"^-{given} needs -{missing}"):
        server_of(**{given: getattr(certs, given)})


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
def test_any_server_name_is_acknowledged(name: str | None) -> None:
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
