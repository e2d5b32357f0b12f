"""The file of -c, with configurations as they are in use."""

from __future__ import annotations

import json
import logging
import os
import random
from pathlib import Path
from typing import Any

import pytest

from anytls.config import MAX_SERVERS, ClientFile, read_client, read_server
from anytls.json_file import MAX_CONFIG
from mtt.address import Endpoint
from mtt.errors import UsageError
from mtt.trust.pem import InlinePem
from mtt.users.user import User

# https://sing-box.sagernet.org/configuration/outbound/anytls, with the TLS that it needs.
OUTBOUND = """
{
  "type": "anytls",
  "tag": "anytls-out",

  "server": "vpn.example.com",
  "server_port": 8443,
  "password": "8JCsPssfgS8tiRwiMlhARg==",
  "idle_session_check_interval": "30s",
  "idle_session_timeout": "1m30s",
  "min_idle_session": 5,
  "tls": {
    "enabled": true,
    "server_name": "www.example.com",
    "alpn": ["h2", "http/1.1"],
    "min_version": "1.3",
    "utls": {"enabled": false, "fingerprint": "chrome"},
    "reality": {"enabled": false},
  },

  // Dial Fields
  "tcp_fast_open": false,
  "detour": "",
}
"""

# As a graphical client writes it.
WHOLE_CLIENT = """
{
  "log": {"level": "info", "timestamp": true},
  "dns": {"servers": [{"type": "udp", "tag": "remote", "server": "1.1.1.1"}]},
  "inbounds": [
    {"type": "tun", "tag": "tun-in", "address": ["172.19.0.1/30"], "auto_route": true},
    {
      "type": "mixed", "tag": "mixed-in", "listen": "::", "listen_port": 2080, "sniff": true,
      "users": [{"username": "me", "password": "mine"}, {"username": "you", "password": "yours"}]
    },
    {"type": "http", "tag": "http-in", "listen": "127.0.0.1", "listen_port": 2081}
  ],
  "outbounds": [
    {"type": "selector", "tag": "select", "outbounds": ["tokyo", "paris", "old"]},
    {
      "type": "anytls", "tag": "tokyo", "server": "192.0.2.1", "server_port": 443,
      "password": "first", "domain_resolver": "remote",
      "tls": {"enabled": true, "insecure": true, "server_name": "bing.com"}
    },
    {
      "type": "anytls", "tag": "paris", "server": "2001:db8::1", "server_port": 443,
      "password": "second",
      "tls": {
        "enabled": true, "disable_sni": true, "alpn": "h2",
        "certificate_public_key_sha256": ["2ZVxVcFhUQvu9y9vcDVqlFsJkMwpbHUnQ+gpCVyHt5k="]
      }
    },
    {"type": "vless", "tag": "old", "server": "192.0.2.9", "server_port": 443},
    {"type": "direct", "tag": "direct"}
  ],
  "route": {"rules": [{"action": "sniff"}], "final": "select"}
}
"""

# As installation scripts write it.
INBOUND = """
{
  "inbounds": [
    {
      "type": "anytls",
      "tag": "anytls-in",
      "listen": "::",
      "listen_port": 443,
      "users": [
        {"name": "sekai", "password": "8JCsPssfgS8tiRwiMlhARg=="},
        {"password": "another"}
      ],
      "padding_scheme": [
        "stop=8",
        "0=30-30",
        "1=100-400",
        "2=400-500,c,500-1000,c,500-1000,c,500-1000,c,500-1000",
        "3=9-9,500-1000",
        "4=500-1000",
        "5=500-1000",
        "6=500-1000",
        "7=500-1000"
      ],
      "udp_timeout": "2m",
      "tls": {
        "enabled": true,
        "server_name": "vpn.example.com",
        "certificate_path": "/etc/ssl/fullchain.pem",
        "key_path": "/etc/ssl/privkey.pem"
      }
    }
  ],
  "outbounds": [{"type": "direct"}]
}
"""

XRAY: dict[str, Any] = {
    "inbounds": [
        {"tag": "socks", "listen": "127.0.0.1", "port": 10808, "protocol": "socks",
         "settings": {"auth": "password", "udp": True, "accounts": [{"user": "a", "pass": "b"}]},
         "sniffing": {"enabled": True, "destOverride": ["http", "tls"]}},
    ],
    "outbounds": [
        {
            "tag": "proxy",
            "protocol": "anytls",
            "settings": {
                "servers": [
                    {"address": "one.example.com", "port": 443, "password": "first"},
                    {"address": "192.0.2.2", "port": 8443, "password": "second", "level": 0},
                ],
                "idleSessionCheckInterval": 30, "idleSessionTimeout": 45, "minIdleSession": 2,
            },
            "streamSettings": {
                "network": "tcp", "security": "tls",
                "tlsSettings": {"serverName": "www.example.com", "allowInsecure": False,
                                "alpn": ["h2", "http/1.1"], "fingerprint": ""},
                "sockopt": {"tcpFastOpen": False, "mark": 0},
            },
            "mux": {"enabled": False, "concurrency": -1},
        },
        {"tag": "direct", "protocol": "freedom"},
    ],
    "routing": {"rules": []},
}  # fmt: skip

TLS = {"enabled": True}
UTLS = {"enabled": True, "fingerprint": "chrome"}
SERVER = {"type": "anytls", "server": "h", "server_port": 1, "password": "s3cret", "tls": TLS}
LISTENER = {"type": "anytls", "listen": "::", "listen_port": 1,
            "users": [{"name": "a", "password": "s3cret"}], "tls": TLS}  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.touch(0o600)
    return path


def client(path: Path, content: Any) -> ClientFile:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_client(str(path))


def server(path: Path, content: Any) -> dict[str, Any]:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_server(str(path))


def test_a_sing_box_outbound(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    local, pool, (only,) = client(path, OUTBOUND)
    assert local == {}
    assert pool == {"m": 5, "idle-check": 30, "idle-timeout": 90}
    assert only["server"] == Endpoint(("vpn.example.com",), 8443)
    assert only["p"] == "8JCsPssfgS8tiRwiMlhARg=="
    assert only["sni"] == "www.example.com"
    assert only["alpn"] == ("h2", "http/1.1")
    assert only["tls-min"] == "1.3"
    assert not (only["insecure"] or only["ca"] or only["pin"] or only["no-sni"])
    assert not caplog.records


def test_a_whole_sing_box_configuration(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    local, pool, (tokyo, paris) = client(path, WHOLE_CLIENT)
    assert local == {"l": ":2080", "users": (User("me", "mine"), User("you", "yours"))}
    assert pool == {"m": 0}  # sing-box's own default
    assert tokyo["server"] == Endpoint(("192.0.2.1",), 443)
    assert (tokyo["insecure"], tokyo["sni"]) == (True, "bing.com")
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
    assert values["l"] == ":443"
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
    assert server(path, inbound)["l"] == ":443"
    assert server(path, inbound | {"listen": "0.0.0.0"})["l"] == "0.0.0.0:443"
    assert server(path, inbound | {"listen": None})["l"] == "127.0.0.1:443"
    assert server(path, inbound | {"tcp_fast_open": True})["fast-open"]


@pytest.mark.parametrize("tls", [None, {}, {"enabled": False, "certificate_path": "/c"}])
def test_an_inbound_without_tls(tls: Any, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = server(path, {"inbounds": [LISTENER | {"tls": tls}]})
    assert values["no-tls"] == f"-c: {path}: inbounds[0].tls"
    assert not caplog.records


def test_an_xray_outbound(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    local, pool, (one, two) = client(path, XRAY)
    assert local == {"l": "127.0.0.1:10808", "users": (User("a", "b"),)}
    assert pool == {"m": 2, "idle-check": 30, "idle-timeout": 45}
    assert (one["server"], one["p"]) == (Endpoint(("one.example.com",), 443), "first")
    assert (two["server"], two["p"]) == (Endpoint(("192.0.2.2",), 8443), "second")
    assert one["sni"] == two["sni"] == "www.example.com"
    assert one["alpn"] == ("h2", "http/1.1")
    (record,) = caplog.records
    assert "routing" in record.getMessage()
    alone = XRAY["outbounds"][0]
    assert client(path, alone).servers == (one, two)


def test_an_xray_outbound_with_its_server_in_the_settings(path: Path) -> None:
    outbound = {
        "protocol": "anytls",
        "settings": {"address": "2001:db8::1", "port": 443, "password": "p", "email": "a@b"},
        "streamSettings": {
            "security": "tls",
            "tlsSettings": {
                "allowInsecure": False, "alpn": "h2,http/1.1", "minVersion": "1.3",
                "certificates": [{"usage": "verify", "certificateFile": "/etc/ca.pem"}],
                "pinnedPeerCertificatePublicKeySha256": [
                    "2ZVxVcFhUQvu9y9vcDVqlFsJkMwpbHUnQ+gpCVyHt5k="
                ],
            },
        },
    }  # fmt: skip
    (only,) = client(path, outbound).servers
    assert only["server"] == Endpoint(("2001:db8::1",), 443)
    assert (only["ca"], only["tls-min"], only["alpn"]) == ("/etc/ca.pem", "1.3", ("h2", "http/1.1"))
    assert only["pin"] == ("sha256/2ZVxVcFhUQvu9y9vcDVqlFsJkMwpbHUnQ+gpCVyHt5k=",)


def test_numbers_in_quotes(path: Path) -> None:
    """Forms of panels give text."""
    (only,) = client(path, SERVER | {"server_port": " 443 ", "min_idle_session": "3"}).servers
    assert (only["server"].port, only["m"]) == (443, 3)
    assert server(path, LISTENER | {"listen_port": "8443"})["l"] == ":8443"
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
    assert server(path, LISTENER | {"listen": listen, "listen_port": 443})["l"] == address
    for local in (
        {"type": "socks", "listen": listen, "listen_port": 443},
        {"protocol": "socks", "listen": listen, "port": "443"},
    ):
        assert client(path, {"inbounds": [local], "outbounds": [SERVER]}).local["l"] == address


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


LINES = ["-----BEGIN CERTIFICATE-----", "s3cret", "-----END CERTIFICATE-----"]
TEXT = "\n".join(LINES) + "\n"


def test_inline_certificates_of_sing_box(path: Path) -> None:
    tls = TLS | {"certificate": LINES, "client_certificate": TEXT.strip(), "client_key": LINES}
    (only,) = client(path, {"outbounds": [SERVER | {"tls": tls}]}).servers
    label = f"-c: {path}: outbounds[0].tls"
    assert only["ca"] == InlinePem(f"{label}.certificate", TEXT)
    assert only["cert"] == InlinePem(f"{label}.client_certificate", TEXT)
    assert only["key"] == InlinePem(f"{label}.client_key", TEXT)
    assert "s3cret" not in repr(only["key"])

    tls = TLS | {"certificate": LINES, "certificate_path": "unused", "key": [], "key_path": "/k",
                 "client_authentication": "require-and-verify", "client_certificate": LINES}
    values = server(path, LISTENER | {"tls": tls})
    assert values["cert"] == InlinePem(f"-c: {path}: tls.certificate", TEXT)
    assert values["key"] == "/k"
    assert values["client-ca"] == InlinePem(f"-c: {path}: tls.client_certificate", TEXT)


def test_inline_certificates_of_xray(path: Path) -> None:
    outbound = json.loads(json.dumps(XRAY["outbounds"][0]))
    outbound["streamSettings"]["tlsSettings"] = {"certificates": [
        {"usage": "verify", "certificate": LINES},
        {"certificate": LINES, "key": LINES, "keyFile": "/k"},
    ]}  # fmt: skip
    one, two = client(path, outbound).servers
    label = f"-c: {path}: streamSettings.tlsSettings.certificates"
    for each in (one, two):
        assert each["ca"] == InlinePem(f"{label}[0].certificate", TEXT)
        assert each["cert"] == InlinePem(f"{label}[1].certificate", TEXT)
        assert each["key"] == "/k"


def test_unknown_keys_are_named(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tls = TLS | {"server-name": "x", "\x1b[31m": 1}
    client(path, {"outbounds": [SERVER | {"passwort": "s3cret", "tls": tls}], "comment": "x"})
    (record,) = caplog.records
    text = record.getMessage()
    assert "unknown, and not used: comment, " in text
    assert "outbounds[0].tls.server-name (is it server_name?)" in text
    assert "outbounds[0].passwort (is it password?)" in text
    assert "s3cret" not in text


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"tcp_fast_open": True}, "tcp_fast_open", "AnyTLS cannot use"),
        ({"detour": "other"}, "detour", "routes"),
        ({"bind_interface": "wg0"}, "bind_interface", "routes"),
        ({"routing_mark": 5}, "routing_mark", "routes"),
        ({"multiplex": {"enabled": True}}, "multiplex", "reuses"),
        ({"transport": {"type": "ws"}}, "transport", "no transport"),
        ({"tls": None}, "tls", "missing"),
        ({"tls": {"enabled": False}}, "tls", "not enabled"),
        ({"tls": TLS | {"utls": UTLS}}, "tls.utls", "add -ignore-fingerprint, or"),
        ({"tls": TLS | {"utls": UTLS, "ignore-fingerprint": 1}}, "ignore-fingerprint", "true or"),
        ({"tls": TLS | {"reality": {"enabled": True}}}, "tls.reality", "REALITY"),
        ({"tls": TLS | {"ech": {"enabled": True}}}, "tls.ech", "Encrypted Client Hello"),
        ({"tls": TLS | {"fragment": True}}, "tls.fragment", "one piece"),
        ({"tls": TLS | {"cipher_suites": ["x"]}}, "tls.cipher_suites", "OpenSSL"),
        ({"tls": TLS | {"certificate": [5]}}, "tls.certificate", "list of strings"),
        ({"tls": TLS | {"client_key": ["-----BEGIN"]}}, "tls.client_certificate_path", "missing"),
        ({"tls": TLS | {"min_version": "1.0"}}, "tls.min_version", "1.2 or 1.3"),
        ({"tls": TLS | {"max_version": "1.2"}}, "tls.max_version", "remove"),
        ({"tls": TLS | {"alpn": ["\u00e4"]}}, "tls.alpn", "ALPN"),
        ({"tls": TLS | {"alpn": [5]}}, "tls.alpn", "list of strings"),
        ({"tls": TLS | {"certificate_public_key_sha256": "x"}}, "sha256", "Base64"),
        ({"tls": TLS | {"insecure": True, "certificate_path": "x"}}, "tls.insecure", "turns off"),
        ({"tls": TLS | {"client_key_path": "x"}}, "tls.client_certificate_path", "missing"),
        ({"tls": "yes"}, "tls", "not an object"),
        ({"server": ""}, "server", "missing"),
        ({"server": "a b"}, "server", "neither a host name"),
        ({"server": ["h"]}, "server", "not a string"),
        ({"server_port": None}, "server_port", "missing"),
        ({"server_port": 0}, "server_port", "not a port"),
        ({"server_port": True}, "server_port", "not an integer"),
        ({"server_port": "443-450"}, "server_port", "not an integer"),
        ({"server_port": "65536"}, "server_port", "not a port"),
        ({"server_port": "9" * 30}, "server_port", "not an integer"),
        ({"password": ""}, "password", "missing"),
        ({"password": 12345}, "password", "not a string"),
        ({"password": "\ud800"}, "password", "UTF-8"),
        ({"min_idle_session": -1}, "min_idle_session", "0 to 256"),
        ({"idle_session_timeout": "30"}, "idle_session_timeout", "unit"),
        ({"idle_session_timeout": "-1ms"}, "idle_session_timeout", "negative"),
        ({"idle_session_timeout": -5}, "idle_session_timeout", "negative"),
        ({"idle_session_timeout": 10**400}, "idle_session_timeout", "a century"),
        ({"idle_session_timeout": "2d2"}, "idle_session_timeout", "unit"),
        ({"idle_session_check_interval": ["30s"]}, "idle_session_check_interval", "30s"),
    ],
)
def test_what_an_outbound_cannot_have(
    change: dict[str, Any], key: str, words: str, path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        client(path, {"outbounds": [{"type": "direct"}, SERVER | change]})
    text = str(caught.value)
    assert text.startswith(f"-c: {path}: outbounds[1].")
    assert key in text.split(" ")[2] and words in text
    assert "s3cret" not in text and "12345" not in text


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"users": []}, "users", "missing"),
        ({"users": [{"name": "a"}]}, "users[0]", "password is empty"),
        ({"users": [{"name": "a:b", "password": "x"}]}, "users[0]", "colon"),
        ({"users": [{"name": "a", "password": "s3cret"}, {"name": "a", "password": "x"}]},
         "users[1]", "duplicate user"),
        ({"users": [{"name": "a", "password": "s3cret"}, {"name": "b", "password": "s3cret"}]},
         "users[1]", "'b' has the same password as 'a'"),
        ({"users": {"name": "a"}}, "users", "not a list"),
        ({"users": ["s3cret"]}, "users[0]", "not an object"),
        ({"listen": "nobody home"}, "listen", "not host:port"),
        ({"listen_port": 70000}, "listen_port", "not a port"),
        ({"detour": "x"}, "detour", "routes"),
        ({"padding_scheme": ["0=30-30"]}, "padding_scheme", "stop"),
        ({"padding_scheme": ["stop=8", "1=0-10"]}, "padding_scheme", "line 2"),
        ({"padding_scheme": "stop=8\r\n"}, "padding_scheme", "CR"),
        ({"padding_scheme": ["stop=8", "0:100"]}, "padding_scheme", "like stop=8, 0=30-30"),
        ({"padding_scheme": ["stop=8", "x=100"]}, "padding_scheme", "like stop=8, 0=30-30"),
        ({"tls": TLS | {"acme": {"domain": ["x"]}}}, "tls.acme", "certbot"),
        ({"tls": TLS | {"key": ["-----BEGIN"]}}, "tls.certificate_path", "missing"),
        ({"tls": TLS | {"certificate": "x"}}, "tls.key_path", "missing; certificate needs it"),
        ({"tls": TLS | {"certificate_path": "x"}}, "tls.key_path", "missing"),
        ({"tls": TLS | {"reality": {"private_key": "s3cret"}}}, "tls.reality", "REALITY"),
        ({"tls": TLS | {"client_authentication": "request"}}, "client_authentication", "only no"),
        ({"tls": TLS | {"client_authentication": "require-and-verify"}}, "client_cert", "missing"),
        ({"udp_timeout": "x"}, "udp_timeout", "unit"),
    ],
)  # fmt: skip
def test_what_an_inbound_cannot_have(
    change: dict[str, Any], key: str, words: str, path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        server(path, {"inbounds": [LISTENER | change]})
    text = str(caught.value)
    assert text.startswith(f"-c: {path}: inbounds[0].")
    assert key in text.split(" ")[2] and words in text
    assert "s3cret" not in text


@pytest.mark.parametrize(
    ("where", "change", "words"),
    [
        ("", {"settings": None}, "settings: missing"),
        ("", {"streamSettings": None}, "streamSettings: missing"),
        ("", {"mux": {"enabled": True}}, "mux: AnyTLS reuses"),
        ("", {"proxySettings": {"tag": "x"}}, "proxySettings"),
        ("settings", {"servers": []}, "servers: empty"),
        ("settings", {"servers": [{"address": "h", "port": 1}]}, "servers[0].password: missing"),
        ("settings", {"idleSessionTimeout": -0.5}, "idleSessionTimeout: negative"),
        ("streamSettings", {"security": "reality"}, "REALITY"),
        ("streamSettings", {"security": "none"}, 'not "tls"'),
        ("streamSettings", {"network": "ws"}, "raw only"),
        ("streamSettings", {"sockopt": {"tcpFastOpen": True}}, "AnyTLS cannot use TCP fast open"),
        ("streamSettings", {"sockopt": {"dialerProxy": "x"}}, "dialerProxy"),
        ("streamSettings", {"tlsSettings": {"fingerprint": "chrome"}}, "-ignore-fingerprint"),
        ("streamSettings", {"tlsSettings": {"disableSystemRoot": True}}, "nobody to trust"),
        ("streamSettings", {"tlsSettings": {"pinnedPeerCertSha256": "x"}}, "give -pin"),
        ("streamSettings", {"tlsSettings": {"certificates": [{"certificate": ["x"]}]}},
         "certificates[0].keyFile: missing"),
        ("streamSettings", {"tlsSettings": {"certificates": [{"usage": "verify"}]}},
         "certificates[0].certificateFile: missing"),
        ("streamSettings", {"tlsSettings": {"certificates": [
            {"usage": "verify", "certificate": ["x"]}, {"usage": "verify", "certificateFile": "x"}
        ]}}, "certificates[1].usage: only one"),
    ],
)  # fmt: skip
def test_what_an_xray_outbound_cannot_have(
    where: str, change: dict[str, Any], words: str, path: Path
) -> None:
    outbound = json.loads(json.dumps(XRAY["outbounds"][0]))
    (outbound[where] if where else outbound).update(change)
    with pytest.raises(UsageError) as caught:
        client(path, outbound)
    assert words in str(caught.value)
    assert "first" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "line 1, column 1"),
        ("{", "line 1, column 2"),
        ('{\n  // "type"\n  "type": anytls\n}', "line 3, column 11"),
        ('{"a": 1,\n "a": 2}', "'a' twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": NaN}', "NaN"),
        ('{"a": ' + "1" * 5000 + "}", "too many digits"),
        ("[]", "not an object"),
        ("{}", "no AnyTLS"),
        ('{"type": "vless", "server": "h"}', "no AnyTLS"),
        ('{"inbounds": {}}', "inbounds: not a list"),
        ('{"outbounds": [[]]}', "outbounds[0] is not an object"),
        ('{"outbounds": [{"type": 5}], "inbounds": [{"type": 5}]}', "bounds[0].type: not a string"),
        ("\ufeff{}\x00", "line 1, column 3"),
        ("x" * (MAX_CONFIG + 1), "more than"),
    ],
)
def test_files_that_are_none(content: str, words: str, path: Path) -> None:
    path.write_text(content)
    for read in (read_client, read_server):
        with pytest.raises(UsageError) as caught:
            read(str(path))
        assert str(caught.value).startswith(f"-c: {path}")
        assert words in str(caught.value)


def test_files_that_cannot_be_read(path: Path) -> None:
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UsageError, match=r"not UTF-8 text \(byte 7\)"):
        read_client(str(path))
    with pytest.raises(UsageError, match="no such file"):
        read_client(f"{path}.other")
    with pytest.raises(UsageError, match="cannot read"):
        read_client(str(path.parent))
    with pytest.raises(UsageError, match="cannot read"):
        read_client("a\0b")


def test_a_second_inbound_and_one_of_xray(path: Path) -> None:
    with pytest.raises(UsageError, match=r"inbounds\[1\] is a second AnyTLS inbound"):
        server(path, {"inbounds": [LISTENER, LISTENER]})
    with pytest.raises(UsageError, match="inbound of Xray"):
        server(path, {"inbounds": [{"protocol": "anytls", "port": 1}]})


def test_pools_that_differ(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pool = client(path, {"outbounds": [SERVER | {"min_idle_session": 3}, SERVER]}).pool
    assert pool == {"m": 3}
    assert "share the first one's" in caplog.text


def test_there_is_an_end_to_servers(path: Path) -> None:
    with pytest.raises(UsageError, match="64 at most"):
        client(path, {"outbounds": [SERVER] * (MAX_SERVERS + 1)})


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of Unix")
def test_a_file_that_all_can_read(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    path.chmod(0o640)
    client(path, SERVER)
    assert not caplog.records
    path.chmod(0o644)
    client(path, SERVER)
    (record,) = caplog.records
    assert "chmod o-r" in record.getMessage()


def test_any_file_gives_a_result_or_a_usage_error(path: Path) -> None:
    """Whatever stands at a place of a good file, nothing but UsageError comes of it."""
    rng = random.Random(9)
    junk: list[Any] = [None, 0, -1, 1.5, 10**30, True, "", "x", "\ud800", [], [1], {}, {"a": 1}]
    sources = [json.loads(WHOLE_CLIENT), json.loads(INBOUND), XRAY]
    good = 0
    for _ in range(600):
        config = json.loads(json.dumps(rng.choice(sources)))
        place, key = config, rng.choice(list(config))
        while isinstance(place[key], dict | list) and place[key] and rng.random() < 0.85:
            place = place[key]
            key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        place[key] = rng.choice(junk)
        path.write_text(json.dumps(config))
        for read in (read_client, read_server):
            try:
                read(str(path))
            except UsageError as error:
                assert len(str(error)) < 600
            else:
                good += 1
    assert good > 100
