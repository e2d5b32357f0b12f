"""Client configurations are read back by the project's own parsers and by independent ones."""

from __future__ import annotations

import base64
import random
import shlex
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

import mtt_client
import mtt_mu_server.__main__
import mtt_server
from mtt.address import Endpoint
from mtt.errors import UsageError
from mtt.options import links
from mtt.options.flags import Values, parse_args
from mtt.options.links import Login, Trust, server_address, ss_link, trust_values
from mtt.options.proxy import with_environment
from mtt.options.tunnel import CLIENT_FLAGS, client_options
from mtt.trust import selfsigned
from plugin.options import parse_options
from tests.support.certs import Certs

SERVER = Endpoint(("example.com",), 443)
PIN = "sha256/vnSCoJ6H4MUgWEVxsGdHSIMnqcxvXQmmVVWyqz6T9xs="
NASTY = [
    "a;b=c", "\\", "a\\;b", " x ", "=", "a,b", "wss,mux", "'\"$`!", "\u00e4\u20ac", "%3B#?&",
    "a b", "-x", "\udcff", ";", "x\\",
]  # fmt: skip


def by_kind(found: Any) -> dict[str, str]:
    return {link.kind: link.text for link in found if not link.missing}


def read_link(text: str) -> tuple[str, str, str, int | None, str, str]:
    """Method, password, host, port, plugin and name, as SIP002 defines them."""
    url = urlsplit(text)
    user = url.netloc.rpartition("@")[0]
    if ":" in user:  # SIP022
        method, password = (unquote(part) for part in user.split(":"))
    else:
        raw = base64.b64decode(user + "=" * (-len(user) % 4), b"-_", validate=True)
        method, password = raw.decode().split(":", 1)
    plugin = parse_qs(url.query, strict_parsing=True)["plugin"][0] if url.query else ""
    assert url.scheme == "ss"
    return method, password, url.hostname or "", url.port, plugin, unquote(url.fragment)


# Formatting.

VALUES: list[Values] = [
    {"wss": True, "wss-path": "/a%20b?ed=2048", "mux": True, "mux-max-stream": 8},
    {"pin": (PIN, PIN.lower()), "n": "example.com", "timeout": 0.25, "mux-idle": 90.0},
    {"anytls": True, "dr": True, "warm": 2, "idle-check": 1e-9},
    {"proxy": "http://user:p%40ss;=@proxy:3128", "ca": "/etc/my certs/ca.pem"},
    *({"anytls": True, "p": text} for text in NASTY),
]


@pytest.mark.parametrize("values", VALUES)
def test_our_parsers_read_it_back(values: Values) -> None:
    words = shlex.split(links.command_line("mtt-client", CLIENT_FLAGS, values))
    assert words[0] == "mtt-client"
    assert parse_args(CLIENT_FLAGS, words[1:]) == values
    assert parse_options(CLIENT_FLAGS, links.plugin_options(CLIENT_FLAGS, values)) == values


def test_random_passwords_are_read_back() -> None:
    rng = random.Random(1)
    for _ in range(300):
        text = "".join(rng.choices("ab\\;=, %'\"", k=rng.randint(1, 12)))
        test_our_parsers_read_it_back({"anytls": True, "p": text})


def test_a_shell_reads_it_back() -> None:
    for text in [text for text in NASTY if text.isprintable()]:
        line = links.command_line("printf", CLIENT_FLAGS, {"p": text}).replace("-p", "%s", 1)
        done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, check=True)
        assert done.stdout.decode() == text


def test_defaults_and_addresses_are_not_plugin_options() -> None:
    values = {"b": "127.0.0.1:1", "s": "a:1", "wss": False, "timeout": 300.0, "pin": (), "n": ""}
    assert links.plugin_options(CLIENT_FLAGS, values) == ""
    assert links.command_line("c", CLIENT_FLAGS, values) == "c -b 127.0.0.1:1 -s a:1"


@pytest.mark.parametrize("method", ["aes-256-gcm", "2022-blake3-aes-128-gcm"])
@pytest.mark.parametrize("password", ["secret", "pa:ss+/=?#@", "\u00e4 \u20ac", "a" * 100])
@pytest.mark.parametrize("host", ["example.com", "192.0.2.1", "2001:db8::1"])
@pytest.mark.parametrize("plugin", ["", "mtt-client", r"mtt-client;wss;wss-path=/a\;b%20&c=d;n=\\"])
def test_link_of_shadowsocks(method: str, password: str, host: str, plugin: str) -> None:
    text = ss_link(Login(method, password), Endpoint((host,), 8388), plugin, "my server #1")
    assert text.isascii()
    assert read_link(text) == (method, password, host, 8388, plugin, "my server #1")


def test_link_is_that_of_the_specification() -> None:
    # SIP002's examples; the second one's plugin has a semicolon before an escaped one.
    login = Login("rc4-md5", "passwd")
    plugin = "obfs-local;obfs=http"
    assert ss_link(login, Endpoint(("192.168.100.1",), 8888), plugin, "Example2") == (
        "ss://cmM0LW1kNTpwYXNzd2Q@192.168.100.1:8888/?plugin=obfs-local%3Bobfs%3Dhttp#Example2"
    )
    login = Login("2022-blake3-aes-256-gcm", "YctPZ6U7xPPcU+gp3u+0tx/tRizJN9K8y+uKlW2qjlI=")
    assert ss_link(login, Endpoint(("192.168.100.1",), 8888), "", "Example3") == (
        "ss://2022-blake3-aes-256-gcm:YctPZ6U7xPPcU%2Bgp3u%2B0tx%2FtRizJN9K8y%2BuKlW2qjlI%3D"
        "@192.168.100.1:8888#Example3"
    )


@pytest.mark.parametrize(
    "text, login",
    [
        ("aes-256-gcm:secret", ("aes-256-gcm", "secret")),
        ("AES-256-GCM:a:b", ("aes-256-gcm", "a:b")),
        ("aes-256-gcm", ("aes-256-gcm", "")),
        ("aes-256-gcm:?", ("aes-256-gcm", "")),
    ],
)
def test_login(text: str, login: tuple[str, str]) -> None:
    assert links.parse_login("-link-ss", text) == login


@pytest.mark.parametrize("text", ["", ":secret", "secret word", "a/b:secret"])
def test_wrong_login_is_not_shown(text: str) -> None:
    with pytest.raises(UsageError, match=r"^-link-ss: not like") as raised:
        links.parse_login("-link-ss", text)
    assert "secret" not in str(raised.value)


# The server's side.

NAMES = Trust(("*.example.com", "example.com", "www.example.com"))


@pytest.mark.parametrize(
    "text, trust, bind, address",
    [
        ("", NAMES, Endpoint(("",), 8443), "example.com:8443"),
        ("", NAMES, None, "example.com:443"),
        ("a.example", NAMES, Endpoint(("",), 8443), "a.example:8443"),
        ("a.example:1", NAMES, Endpoint(("",), 8443), "a.example:1"),
        ("a.example", NAMES, Endpoint(("",), 0), "a.example:443"),
        # Behind a proxy that does TLS, the own port is not the clients'.
        ("a.example", None, Endpoint(("",), 8080), "a.example:443"),
        ("2001:db8::1", NAMES, Endpoint(("",), 8443), "[2001:db8::1]:8443"),
        ("[2001:db8::1]", NAMES, Endpoint(("",), 8443), "[2001:db8::1]:8443"),
        ("[2001:db8::1]:1", NAMES, Endpoint(("",), 8443), "[2001:db8::1]:1"),
        ("b\u00fccher.example", NAMES, None, "xn--bcher-kva.example:443"),
    ],
)
def test_server_address(
    text: str, trust: Trust | None, bind: Endpoint | None, address: str
) -> None:
    assert str(server_address(text, trust, bind)) == address


@pytest.mark.parametrize(
    "text, trust, error",
    [
        ("", None, "-link-server is missing: give the address"),
        ("", Trust(("random.name",), PIN), "-link-server is missing"),
        ("", Trust(("*.example.com",)), "-link-server is missing"),
        (":443", NAMES, "-link-server: ':443' is not a host"),
        ("|:443", NAMES, "-link-server: '|:443' lacks a host"),
        ("a.example:0", NAMES, "-link-server: 'a.example:0' lacks a host or a port"),
        ("a.example:x", NAMES, "-link-server: 'x' is not a port number"),
        ("https://a.example", NAMES, "-link-server: "),
    ],
)
def test_server_address_is_needed(text: str, trust: Trust | None, error: str) -> None:
    with pytest.raises(UsageError) as raised:
        server_address(text, trust, None)
    assert str(raised.value).startswith(error)


@pytest.mark.parametrize(
    "trust, values",
    [
        (None, {}),
        (Trust(("random.name",), PIN), {"pin": (PIN,)}),
        (Trust(("example.com",)), {}),
        (Trust(("*.com", "a.example")), {}),
        (Trust(()), {}),
        (Trust(("*.example.org", "a.example.org")), {"n": "a.example.org"}),
        (Trust(("*.example.org",)), {"n": "www.example.org"}),
    ],
)
def test_how_a_client_verifies(trust: Trust | None, values: Values) -> None:
    assert trust_values(trust, SERVER) == values


def test_certificate_of_a_ca_needs_no_pin(certs: Certs, tmp_path: Path) -> None:
    given = {"cert": certs.cert, "key": certs.key, "d": "127.0.0.1:8388", "wss": True}
    found = by_kind(mtt_server.links(given, None))
    line = f"mtt-client -b 127.0.0.1:8388 -s {certs.name}:443 -wss"
    assert found == {"command": line, "plugin": "wss"}
    found = by_kind(mtt_server.links({"link-server": "192.0.2.1:8443"} | given, None))
    assert found["plugin"] == f"wss;n={certs.name}"


def test_self_signed_certificate_needs_a_pin(tmp_path: Path) -> None:
    cert, key = selfsigned.self_signed("kfoe.ab")
    (tmp_path / "cert.pem").write_bytes(cert)
    (tmp_path / "key.pem").write_bytes(key)
    given = {"cert": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
    options = by_kind(mtt_server.links({"link-server": "a:1"} | given, None))["plugin"]
    assert options.startswith("pin=sha256/")
    kept = {"cert-dir": str(tmp_path / "identity"), "link-server": "a:1"}
    first, second = (by_kind(mtt_server.links(kept, None))["plugin"] for _ in range(2))
    assert first == second
    with pytest.raises(UsageError, match=r"-link: the generated certificate.*add -cert-dir"):
        mtt_server.links({"link-server": "a:1"}, None)


@pytest.mark.parametrize(
    "given, client",
    [
        ({"mux": True, "udp": True}, {"mux": True, "udp": True}),
        # Our own client does without the protocol of v2ray-plugin.
        ({"v2ray": True, "mux": True}, {"wss": True, "mux": True}),
        ({"wss": True, "wss-path": "/a b%;?x"[:6]}, {"wss": True, "wss-path": "/a%20b%25;"}),
        ({"anytls": True, "p": "a;b"}, {"anytls": True, "p": "a;b"}),
    ],
)
def test_client_of_a_server(given: Values, client: Values, certs: Certs) -> None:
    tls = {"cert": certs.cert, "key": certs.key}
    found = by_kind(mtt_server.links(tls | given, None))
    assert parse_options(CLIENT_FLAGS, found["plugin"]) == client
    words = shlex.split(found["command"])
    options = client_options(parse_args(CLIENT_FLAGS, words[1:]))
    assert str(options.server) == f"{certs.name}:443"


def test_server_behind_a_proxy() -> None:
    given = {"disable-tls": True, "wss": True, "b": "127.0.0.1:8443", "link-server": "example.com"}
    found = by_kind(mtt_server.links(given, Login("aes-128-gcm", "secret")))
    assert found["command"].endswith(" -s example.com:443 -wss")
    assert read_link(found["ss"]) == (
        "aes-128-gcm", "secret", "example.com", 443, "mtt-client;wss", "example.com",
    )  # fmt: skip


def test_user_of_the_multi_user_server() -> None:
    given = {"disable-tls": True, "link-server": "example.com", "link-path": "/se cret"}
    links_of = mtt_mu_server.__main__.links
    found = by_kind(links_of(given, None))
    assert found["plugin"] == "wss;wss-path=/se%20cret"
    assert by_kind(links_of(given | {"udp": True}, None))["plugin"].endswith(";udp")
    assert found["command"].startswith("mtt-client -b 127.0.0.1:1080 -s example.com:443 -wss ")
    with pytest.raises(UsageError, match="-link needs the path of a user: add -link-path"):
        links_of(given | {"link-path": ""}, None)
    with pytest.raises(UsageError, match="-link-path: the path of a user begins with /"):
        links_of(given | {"link-path": "secret"}, None)


# Phones with v2ray-plugin.


def test_link_for_v2ray_plugin(certs: Certs) -> None:
    given = {"cert": certs.cert, "key": certs.key, "wss": True, "wss-path": "/p q;r"}
    login = Login("aes-256-gcm", "secret")
    text = by_kind(mtt_server.links(given | {"link-server": "192.0.2.1:8443"}, login))["v2ray"]
    assert read_link(text) == (
        "aes-256-gcm", "secret", "192.0.2.1", 8443,
        rf"v2ray-plugin;tls;host={certs.name};path=/p%20q\;r", "192.0.2.1",
    )  # fmt: skip
    given = {"disable-tls": True, "link-server": "example.com", "link-path": "/secret"}
    text = by_kind(mtt_mu_server.__main__.links(given, login))["v2ray"]
    assert read_link(text)[4] == "v2ray-plugin;tls;host=example.com;path=/secret"


@pytest.mark.parametrize(
    "given, missing",
    [
        ({}, "v2ray-plugin speaks WebSocket; use -wss on the server"),
        ({"wss": True, "pin": (PIN,)}, "v2ray-plugin on a phone trusts only the system's CAs"),
        ({"wss": True, "sv": True}, "v2ray-plugin on a phone trusts only the system's CAs"),
    ],
)
def test_servers_that_v2ray_plugin_cannot_use(given: Values, missing: str) -> None:
    found = mtt_client.links({"s": "example.com:443"} | given, Login("aes-256-gcm", "secret"))
    assert "v2ray" not in by_kind(found)
    assert found[-1].missing.startswith(missing)


# The client's side.


def test_client_link_has_its_given_options() -> None:
    given = {"s": "example.com:443", "wss": True, "pin": (PIN,), "link": "all", "link-ss": "a:b"}
    found = by_kind(mtt_client.links(given, Login("a", "b")))
    assert found["command"] == (
        f"mtt-client -b 127.0.0.1:1080 -s example.com:443 -wss -pin {PIN}"
    )
    assert read_link(found["ss"])[4] == f"mtt-client;wss;pin={PIN}"


@pytest.mark.parametrize("given", ["env", "http://user:secret@proxy:3128"])
def test_proxy_of_this_machine_is_not_passed_on(given: str) -> None:
    environ = {"HTTPS_PROXY": "http://user:secret@proxy:3128"}
    values = with_environment({"s": "a:1", "wss": True, "proxy": given}, environ)
    assert by_kind(mtt_client.links(values, None))["plugin"] == "wss"


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^-s is missing"):
        mtt_client.links({"link": "all"}, None)
