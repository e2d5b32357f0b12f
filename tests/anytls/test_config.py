"""The file of -c, with configurations as they are in use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anytls.config import read_client
from mtt.address import Endpoint
from mtt.trust.pem import InlinePem
from mtt.users.user import User
from tests.anytls.configs import (
    INBOUND,
    LINES,
    LISTENER,
    OUTBOUND,
    SERVER,
    TEXT,
    TLS,
    UTLS,
    WHOLE_CLIENT,
    XRAY,
    client,
    server,
)


def test_a_sing_box_outbound(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    local, pool, (only,) = client(path, OUTBOUND)
    assert local == {}
    assert pool == {"m": 5, "idle-check": 30, "idle-timeout": 90}
    assert only["server"] == Endpoint(("vpn.example.com",), 8443)
    assert only["p"] == "8JCsPssfgS8tiRwiMlhARg=="
    assert only["n"] == "www.example.com"
    assert only["alpn"] == ("h2", "http/1.1")
    assert only["tls-min"] == "1.3"
    assert not (only["sv"] or only["ca"] or only["pin"] or only["no-sni"])
    assert not caplog.records


def test_a_whole_sing_box_configuration(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    local, pool, (tokyo, paris) = client(path, WHOLE_CLIENT)
    assert local == {"b": ":2080", "users": (User("me", "mine"), User("you", "yours"))}
    assert pool == {"m": 0}  # sing-box's own default
    assert tokyo["server"] == Endpoint(("192.0.2.1",), 443)
    assert (tokyo["sv"], tokyo["n"]) == (True, "bing.com")
    assert paris["server"] == Endpoint(("2001:db8::1",), 443)
    assert paris["pin"] == ("sha256/2ZVxVcFhUQvu9y9vcDVqlFsJkMwpbHUnQ+gpCVyHt5k=",)
    assert (paris["no-sni"], paris["alpn"]) == (True, ("h2",))
    for name in ("log", "dns", "route", "inbounds[0] (tun)", "inbounds[2]", "inbounds[1].sniff",
                 "outbounds[1].domain_resolver", "outbounds[3] (vless)"):  # fmt: skip
        assert name in caplog.text
    for name in ("selector", "direct", "first", "yours"):
        assert name not in caplog.text.replace("the first local port", "")


def test_a_sing_box_inbound(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = server(path, INBOUND)
    assert values["b"] == ":443"
    assert values["users"] == (
        User("sekai", "8JCsPssfgS8tiRwiMlhARg=="), User("user-2", "another")
    )  # fmt: skip
    assert values["padding"].startswith(b"stop=8\n0=30-30\n1=100-400\n2=400-500,c,")
    assert values["padding"].endswith(b"\n7=500-1000")
    assert values["cert"] == "/etc/ssl/fullchain.pem"
    assert values["key"] == "/etc/ssl/privkey.pem"
    assert values["n"] == "vpn.example.com"
    assert values["udp-timeout"] == 120
    assert not caplog.records


def test_an_inbound_alone(path: Path) -> None:
    inbound = json.loads(INBOUND)["inbounds"][0]
    assert server(path, inbound)["b"] == ":443"
    assert server(path, inbound | {"listen": "0.0.0.0"})["b"] == "0.0.0.0:443"
    assert server(path, inbound | {"listen": None})["b"] == "127.0.0.1:443"
    assert server(path, inbound | {"tcp_fast_open": True})["fast-open"]


@pytest.mark.parametrize("tls", [None, {}, {"enabled": False, "certificate_path": "/c"}])
def test_an_inbound_without_tls(tls: Any, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = server(path, {"inbounds": [LISTENER | {"tls": tls}]})
    assert values["no-tls"] == f"-config: {path}: inbounds[0].tls"
    assert not caplog.records


def test_numbers_in_quotes(path: Path) -> None:
    """Forms of panels give text."""
    (only,) = client(path, SERVER | {"server_port": " 443 ", "min_idle_session": "3"}).servers
    assert (only["server"].port, only["m"]) == (443, 3)
    assert server(path, LISTENER | {"listen_port": "8443"})["b"] == ":8443"
    outbound = json.loads(json.dumps(XRAY["outbounds"][0]))
    outbound["settings"]["servers"][0]["port"] = "8443"
    assert client(path, outbound).servers[0]["server"].port == 8443


@pytest.mark.parametrize(
    ("text", "seconds"), [("1d", 86400), ("1d12h", 129600), ("500ms", 0.5), (0.25, 0.25)]
)
def test_durations_in_files(text: Any, seconds: float, path: Path) -> None:
    times = {"idle_session_timeout": text, "idle_session_check_interval": text}
    pool = client(path, SERVER | times).pool
    assert pool["idle-timeout"] == pool["idle-check"] == seconds
    assert server(path, LISTENER | {"udp_timeout": text})["udp-timeout"] == seconds


@pytest.mark.parametrize(
    ("listen", "address"),
    [("[::]", ":443"), ("[::1]", "[::1]:443"), ("::1", "[::1]:443"), ("::", ":443")],
)
def test_listen_with_and_without_brackets(listen: str, address: str, path: Path) -> None:
    assert server(path, LISTENER | {"listen": listen, "listen_port": 443})["b"] == address
    for local in (
        {"type": "socks", "listen": listen, "listen_port": 443},
        {"protocol": "socks", "listen": listen, "port": "443"},
    ):
        assert client(path, {"inbounds": [local], "outbounds": [SERVER]}).local["b"] == address


@pytest.mark.parametrize("by", ["option", "top", "tls"])
@pytest.mark.parametrize("kind", ["sing-box", "xray", "alone"])
def test_a_fingerprint_can_be_ignored(
    by: str, kind: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if kind == "xray":
        whole = json.loads(json.dumps(XRAY))
        del whole["routing"]
        tls = whole["outbounds"][0]["streamSettings"]["tlsSettings"]
        tls["fingerprint"] = "chrome"
        where = "outbounds[0].streamSettings.tlsSettings.fingerprint"
    else:
        tls = TLS | {"utls": UTLS}
        outbound = SERVER | {"tls": tls}
        whole = outbound if kind == "alone" else {"outbounds": [outbound]}
        where = "tls.utls" if kind == "alone" else "outbounds[0].tls.utls"
    if by != "option":
        (whole if by == "top" else tls)["ignore-fingerprint"] = True
    path.write_text(json.dumps(whole))
    found = read_client(str(path), ignore_fingerprint=by == "option")
    assert found.servers
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"fingerprint IGNORED ({where})" in record.getMessage()


@pytest.mark.parametrize("fingerprint", ["", "unsafe", "none"])
def test_no_browsers_fingerprint_needs_no_permission(
    fingerprint: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbound = json.loads(json.dumps(XRAY["outbounds"][0]))
    outbound["streamSettings"]["tlsSettings"]["fingerprint"] = fingerprint
    assert client(path, outbound).servers
    assert not caplog.records


def test_inline_certificates_of_sing_box(path: Path) -> None:
    tls = TLS | {"certificate": LINES, "client_certificate": TEXT.strip(), "client_key": LINES}
    (only,) = client(path, {"outbounds": [SERVER | {"tls": tls}]}).servers
    label = f"-config: {path}: outbounds[0].tls"
    assert only["ca"] == InlinePem(f"{label}.certificate", TEXT)
    assert only["cert"] == InlinePem(f"{label}.client_certificate", TEXT)
    assert only["key"] == InlinePem(f"{label}.client_key", TEXT)
    assert "s3cret" not in repr(only["key"])

    tls = TLS | {"certificate": LINES, "certificate_path": "unused", "key": [], "key_path": "/k",
                 "client_authentication": "require-and-verify", "client_certificate": LINES}
    values = server(path, LISTENER | {"tls": tls})
    assert values["cert"] == InlinePem(f"-config: {path}: tls.certificate", TEXT)
    assert values["key"] == "/k"
    assert values["client-ca"] == InlinePem(f"-config: {path}: tls.client_certificate", TEXT)
