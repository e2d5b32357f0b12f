"""Files of -c that are refused, and keys that are warned of."""

from __future__ import annotations

import json
import logging
import os
import random
from pathlib import Path
from typing import Any

import pytest

from anytls.config import MAX_SERVERS, read_client, read_server
from anytls.json_file import MAX_CONFIG
from mtt.errors import UsageError
from tests.anytls.configs import (
    INBOUND,
    LISTENER,
    SERVER,
    TLS,
    UTLS,
    WHOLE_CLIENT,
    XRAY,
    client,
    server,
)


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
def test_refused_keys_of_an_outbound(
    change: dict[str, Any], key: str, words: str, path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        client(path, {"outbounds": [{"type": "direct"}, SERVER | change]})
    text = str(caught.value)
    assert text.startswith(f"-config: {path}: outbounds[1].")
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
def test_refused_keys_of_an_inbound(
    change: dict[str, Any], key: str, words: str, path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        server(path, {"inbounds": [LISTENER | change]})
    text = str(caught.value)
    assert text.startswith(f"-config: {path}: inbounds[0].")
    assert key in text.split(" ")[2] and words in text
    assert "s3cret" not in text


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
def test_files_without_a_configuration(content: str, words: str, path: Path) -> None:
    path.write_text(content)
    for read in (read_client, read_server):
        with pytest.raises(UsageError) as caught:
            read(str(path))
        assert str(caught.value).startswith(f"-config: {path}")
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


def test_number_of_servers_is_limited(path: Path) -> None:
    with pytest.raises(UsageError, match="64 at most"):
        client(path, {"outbounds": [SERVER] * (MAX_SERVERS + 1)})


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of Unix")
def test_world_readable_file_causes_a_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
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
