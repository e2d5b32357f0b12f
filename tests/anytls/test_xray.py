"""The file of -c as Xray has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mtt.address import Endpoint
from mtt.errors import UsageError
from mtt.trust.pem import InlinePem
from mtt.users.user import User
from tests.anytls.configs import LINES, TEXT, XRAY, client


def test_an_xray_outbound(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    local, pool, (one, two) = client(path, XRAY)
    assert local == {"b": "127.0.0.1:10808", "users": (User("a", "b"),)}
    assert pool == {"m": 2, "idle-check": 30, "idle-timeout": 45}
    assert (one["server"], one["p"]) == (Endpoint(("one.example.com",), 443), "first")
    assert (two["server"], two["p"]) == (Endpoint(("192.0.2.2",), 8443), "second")
    assert one["n"] == two["n"] == "www.example.com"
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


def test_inline_certificates_of_xray(path: Path) -> None:
    outbound = json.loads(json.dumps(XRAY["outbounds"][0]))
    outbound["streamSettings"]["tlsSettings"] = {"certificates": [
        {"usage": "verify", "certificate": LINES},
        {"certificate": LINES, "key": LINES, "keyFile": "/k"},
    ]}  # fmt: skip
    one, two = client(path, outbound).servers
    label = f"-config: {path}: streamSettings.tlsSettings.certificates"
    for each in (one, two):
        assert each["ca"] == InlinePem(f"{label}[0].certificate", TEXT)
        assert each["cert"] == InlinePem(f"{label}[1].certificate", TEXT)
        assert each["key"] == "/k"


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
        ("streamSettings", {"tlsSettings": {"disableSystemRoot": True}}, "no trusted roots"),
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
