"""-link of anytls-client and anytls-server: our own parsers read back what they print."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from anytls.links import of_client, of_server
from anytls.options import CLIENT_FLAGS, client_options
from anytls.servers import ServerChoice
from anytls.uri import format_uri, parse_uri
from mtt.address import Endpoint
from mtt.errors import UsageError
from mtt.options.flags import Values, parse_args
from tests.support.certs import Certs

PASSWORD = "p@ss:w/ \u00e4;=\\"


def by_kind(found: Any) -> dict[str, str]:
    return {link.kind: link.text for link in found if not link.missing}


def choice_of(values: Values) -> ServerChoice:
    (choice,) = client_options(values).servers
    return choice


def choices(found: dict[str, str], directory: Path) -> dict[str, ServerChoice]:
    """The server according to each link."""
    words = shlex.split(found["command"])
    assert words[0] == "anytls-client"
    path = directory / "outbound.json"
    path.write_text(found["sing-box"])
    read = {
        "command": choice_of(parse_args(CLIENT_FLAGS, words[1:])),
        "sing-box": choice_of({"config": str(path)}),
    }
    if "uri" in found:
        read["uri"] = choice_of({"s": found["uri"]})
    return read


@pytest.mark.parametrize("sni", ["", "real.example.com", "192.0.2.1"])
@pytest.mark.parametrize("insecure", [True, False])
@pytest.mark.parametrize("host", ["example.com", "2001:db8::1"])
def test_uri(host: str, sni: str, insecure: bool) -> None:
    server = Endpoint((host,), 8443)
    text = format_uri(server, PASSWORD, sni=sni, insecure=insecure)
    assert text.isascii()
    uri = parse_uri("-s", text)
    assert (uri.endpoint, uri.password, uri.sni) == (server, PASSWORD, sni)
    assert bool(uri.insecure) == insecure


def test_server_with_a_certificate_of_a_ca(certs: Certs, tmp_path: Path) -> None:
    given = {"p": PASSWORD, "cert": certs.cert, "key": certs.key, "b": ":8443"}
    read = choices(by_kind(of_server(given)), tmp_path)
    assert set(read) == {"command", "sing-box", "uri"}
    for choice in read.values():
        assert choice.address == Endpoint((certs.name,), 8443)
        assert choice.password == PASSWORD
        assert choice.tls.server_name == certs.name
        assert not choice.tls.pins and not choice.tls.skip_verify
    # At an address that is not in the certificate.
    read = choices(by_kind(of_server(given | {"link-server": "192.0.2.1:1"})), tmp_path)
    for choice in read.values():
        assert choice.address == Endpoint(("192.0.2.1",), 1)
        assert choice.tls.server_name == certs.name


def test_server_with_a_self_signed_certificate(tmp_path: Path) -> None:
    given = {"p": PASSWORD, "cert-dir": str(tmp_path / "identity"), "link-server": "192.0.2.1"}
    found = of_server(given)
    read = choices(by_kind(found), tmp_path)
    assert set(read) == {"command", "sing-box"}
    assert read["command"].tls.pins
    # sing-box gets the certificate, and the name in it.
    ca = str(getattr(read["sing-box"].tls.ca, "text", ""))
    assert ca == (tmp_path / "identity" / "cert.pem").read_text()
    (missing,) = (link.missing for link in found if link.missing)
    assert missing.startswith("a URI cannot carry the pin")


def test_user_of_several(certs: Certs, tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text("alice:one\nbob:two\n")
    given = {"users": str(path), "cert": certs.cert, "key": certs.key}
    with pytest.raises(UsageError, match=r"^-link: there are 2 users; add -link-user NAME"):
        of_server(given)
    with pytest.raises(UsageError, match=r"^-link-user: there is no user 'carol'"):
        of_server(given | {"link-user": "carol"})
    read = choices(by_kind(of_server(given | {"link-user": "bob"})), tmp_path)
    assert {choice.password for choice in read.values()} == {"two"}


@pytest.mark.parametrize(
    "given",
    [
        {"s": "anytls://secret@example.com:8443/?sni=a.example&insecure=1"},
        {"s": "example.com:8443", "p": "secret", "n": "a.example", "alpn": "h2,http/1.1"},
        {"s": "example.com:8443", "p": "secret", "pin": ("sha256/" + 43 * "A" + "=",)},
        {"s": "example.com:8443", "p": "secret", "tls-min": "1.3", "m": 3},
    ],
)
def test_client(given: Values, tmp_path: Path) -> None:
    wanted = choice_of(given)
    for choice in choices(by_kind(of_client(given)), tmp_path).values():
        assert (choice.address, choice.password) == (wanted.address, wanted.password)
        assert choice.tls.server_name == wanted.tls.server_name
        assert choice.tls.skip_verify == wanted.tls.skip_verify
        assert choice.tls.pins == wanted.tls.pins


def test_client_with_a_file(certs: Certs, tmp_path: Path) -> None:
    outbound = {
        "type": "anytls", "server": "example.com", "server_port": 1, "password": "secret",
        "tls": {"enabled": True, "certificate_path": certs.ca},
    }  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(outbound))
    found = by_kind(of_client({"config": str(path)}))
    assert found["command"] == f"anytls-client -s example.com:1 -p secret -ca {certs.ca}"
    assert choices(found, tmp_path)["sing-box"].tls.ca
    path.write_text(json.dumps({"outbounds": [outbound, outbound | {"server": "b"}]}))
    with pytest.raises(UsageError, match="-config has 2 servers; give one with -s"):
        of_client({"config": str(path)})
