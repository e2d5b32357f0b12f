"""What anytls-client and anytls-server can be told on their command lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anytls.options import CLIENT_FLAGS, SERVER_FLAGS
from anytls.options import client_options as checked_client
from anytls.options import server_options as checked_server
from mtt.address import Endpoint
from mtt.errors import UsageError
from mtt.options.anytls import (
    DEFAULT_POOL,
    TUNNEL_CLIENT_FLAGS,
    TUNNEL_SERVER_FLAGS,
    PoolOptions,
    tunnel_password,
)
from mtt.options.common import MUX, WSS
from mtt.options.flags import by_name, defaults, parse_args
from mtt.options.usage import usage
from mtt.trust.tls_options import ServerTls
from mtt.users.user import User
from mtt.wire import alpn
from plugin.options import parse_options
from tests.anytls.command_lines import PIN, client, server
from tests.support.files import written

OTHER_PIN = "sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="


def test_defaults_of_the_client() -> None:
    options = client("-s", "example.com:8443", "-p", "secret")
    assert options.bind == Endpoint(("127.0.0.1",), 1080)
    assert options.pool == DEFAULT_POOL == PoolOptions(5, 30, 30, True)
    assert options.users == ()
    (only,) = options.servers
    assert (only.address, only.password) == (Endpoint(("example.com",), 8443), "secret")
    assert only.tls.server_name == "example.com"
    assert not (only.tls.skip_verify or only.tls.ca or only.tls.pins or only.tls.alpn)
    assert only.tls.tls_min == "1.2"
    assert options.timeout == 300


def test_defaults_of_the_server() -> None:
    options = server("-p", "secret")
    assert options.bind == Endpoint(("0.0.0.0",), 8443)
    assert options.users == (User("default", "secret"),)
    assert (options.padding_scheme, options.users_file) == (b"", "")
    assert options.tls == ServerTls(alpn=alpn.SITE)
    assert not options.policy.allows("127.0.0.1", 80)
    assert options.policy.allows("8.8.8.8", 80)
    assert (options.timeout, options.udp_timeout) == (300, 300)
    assert options.fallback is None


def test_all_flags_of_the_reference_exist() -> None:
    assert set(by_name(CLIENT_FLAGS)) >= {"l", "s", "p", "sni", "m", "dr"}
    assert set(by_name(SERVER_FLAGS)) >= {"l", "p", "padding-scheme"}


@pytest.mark.parametrize("flags", [CLIENT_FLAGS, SERVER_FLAGS])
def test_flags_are_named_once_and_fit_the_screen(flags: Any) -> None:
    names = [flag.name for flag in flags]
    assert len(names) == len(set(names))
    text = usage(flags, "anytls", "x")
    assert "-password-file FILE" in text
    assert max(map(len, text.splitlines())) < 80


def test_a_uri_describes_a_server() -> None:
    (only,) = client("-s", "anytls://p%40ss@[2001:db8::1]/?sni=real.example&insecure=1").servers
    assert only.address == Endpoint(("2001:db8::1",), 443)
    assert only.password == "p@ss"
    assert (only.tls.server_name, only.tls.skip_verify) == ("real.example", True)
    # An IP address means that none is sent.
    (only,) = client("-s", "anytls://p@example.com/?sni=192.0.2.1").servers
    assert only.tls.server_name == "192.0.2.1"


def test_options_override_the_uri() -> None:
    (only,) = client("-s", "anytls://p@h/?sni=a.example&insecure=1", "-sni", "b.example").servers
    assert (only.tls.server_name, only.tls.skip_verify) == ("b.example", True)
    (only,) = client("-s", "anytls://p@h/?insecure=1", "-insecure=false").servers
    assert not only.tls.skip_verify
    (only,) = client("-s", "anytls://p@h/?insecure=1", "-pin", PIN).servers
    assert (only.tls.skip_verify, only.tls.pins) == (False, (PIN,))
    assert client("-s", "anytls://p@h", "-p", "p").servers[0].password == "p"


def test_tls_options() -> None:
    (only,) = client(
        "-s", "192.0.2.1:1", "-p", "x", "-pin", PIN, "-pin", OTHER_PIN, "-ca", "/ca", "-alpn",
        "h2, http/1.1", "-tls-min", "1.3", "-cert", "/c", "-key", "/k",
    ).servers  # fmt: skip
    assert only.tls.server_name == "192.0.2.1"
    assert only.tls.pins == (PIN, OTHER_PIN)
    tls = only.tls
    assert (tls.ca, tls.cert, tls.key, tls.tls_min) == ("/ca", "/c", "/k", "1.3")
    assert only.tls.alpn == ("h2", "http/1.1")


def test_the_pool() -> None:
    given = ("-s", "h:1", "-p", "x")
    assert client(*given, "-m", "0", "-idle-check", "5s", "-idle-timeout", "1m").pool == (
        PoolOptions(0, 5, 60, True)
    )  # fmt: skip
    assert client(*given, "-dr").pool == PoolOptions(0, 30, 30, False)
    assert client(*given, "-dr", "-m", "0").pool.min_idle == 0


def test_users_of_the_local_port(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = written(tmp_path / "password", "word: with blanks \n")
    options = client("-s", "h:1", "-p", "x", "-user", "me", "-user-password-file", file,
                     "-l", ":1080")  # fmt: skip
    assert options.users == (User("me", "word: with blanks "),)
    assert not caplog.records


@pytest.mark.parametrize("listen", [":1080", "0.0.0.0:1080", "127.0.0.1|192.0.2.1:1080"])
def test_open_proxy_causes_a_warning(listen: str, caplog: pytest.LogCaptureFixture) -> None:
    client("-s", "h:1", "-p", "x", "-l", listen)
    (record,) = caplog.records
    assert "set -user" in record.getMessage()


@pytest.mark.parametrize("listen", ["localhost:1080", "[::1]:1080", "127.0.0.2:1080"])
def test_loopback_proxy_causes_no_warning(listen: str, caplog: pytest.LogCaptureFixture) -> None:
    client("-s", "h:1", "-p", "x", "-l", listen)
    assert not caplog.records


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("-p x", "-s is missing"),
        ("-s h:1", "-p is missing"),
        ("-s anytls://h:1", "-p is missing"),
        ("-s h:1 -s i:1 -p x", "-s is given twice; remove one"),
        ("-s h -p x", "-s: "),
        ("-s s3cret@h:1", "-s: an @"),
        ("-s anytls:/s3cret@h:1", "-s: an @"),
        ("-s anytls://s3cret@h -p other", "-s has another password"),
        ("-s h:1 -p x -password-file y", "-p and -password-file exclude"),
        ("-s h:1 -p x -insecure -pin y", "-sv turns off"),
        ("-s h:1 -p x -sv -ca y", "-sv turns off"),
        ("-s h:1 -p x -pin y", "-pin: "),
        ("-s h:1 -p x -cert y", "-cert needs -key"),
        ("-s h:1 -p x -tls-min 1.1", "-tls-min"),
        ("-s h:1 -p x -alpn h2,,", "-alpn"),
        ("-s h:1 -p x -sni a..b", "-n"),
        ("-s h:1 -p x -m 300", "-m: 300 is not from 0 to 256"),
        ("-s h:1 -p x -m -1", "-m: -1"),
        ("-s h:1 -p x -m 2 -dr", "-m: only meaningful with reuse"),
        ("-s h:1 -p x -idle-timeout 9s -dr", "-idle-timeout: only meaningful with reuse"),
        ("-s h:1 -p x -idle-check -1ms", "-0.001s is not positive; the default is 30s"),
        ("-s h:1 -p x -idle-timeout 0", "-idle-timeout"),
        ("-s h:1 -p x -timeout 0", "-timeout"),
        ("-s h:1 -p x -user me", "-user needs -user-password-file"),
        ("-s h:1 -p x -user-password-file me", "-user-password-file needs -user"),
        ("-s h:1 -p x -l 1080", "-b: "),
        ("-s h:1 -p x -ignore-fingerprint", "-ignore-fingerprint: only meaningful with -config"),
        ("-c /does/not/exist", "-config: cannot read /does/not/exist"),
        ("-s h:1 -password-file /does/not/exist", "-password-file: cannot read"),
    ],
)
def test_wrong_options_of_the_client(argv: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        client(*argv.split())
    assert words in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("", "-p is missing"),
        ("-p x -users y", "-users and -p"),
        ("-users /does/not/exist", "-users: cannot read"),
        ("-p x -padding-scheme /does/not/exist", "-padding-scheme: cannot read"),
        ("-p x -cert y", "-cert needs -key"),
        ("-p x -cert y -key z -cert-dir d", "-cert-dir"),
        ("-p x -allow 10.0.0.1/8", "-allow: "),
        ("-p x -deny example.com", "-deny: "),
        ("-p x -fallback h", "-fallback: "),
        ("-p x -udp-timeout 0", "-udp-timeout"),
        ("-p x -n a..b", "-n: "),
        ("-p x -l 1", "-b: "),
        ("-p x -alpn \u00e4", "-alpn"),
        ("-p x -alpn h2,http/1.1", "-alpn: h2: the web site"),
    ],
)
def test_wrong_options_of_the_server(argv: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        server(*argv.split())
    assert words in str(caught.value)


def test_durations_below_a_second() -> None:
    pool = client("-s", "h:1", "-p", "x", "-idle-check", "500ms", "-idle-timeout", "1ms").pool
    assert (pool.check_interval, pool.idle_timeout) == (0.5, 0.001)
    assert server("-p", "x", "-udp-timeout", "500ms").udp_timeout == 0.5


def test_sockets_that_listen_already() -> None:
    given = parse_args(CLIENT_FLAGS, ["-s", "h:1", "-p", "x"])
    assert checked_client(given, sockets=(3,)).bind is None
    given = parse_args(SERVER_FLAGS, ["-p", "x"])
    assert checked_server(given, sockets=(3,)).bind is None


def test_a_tunnel_with_anytls(tmp_path: Path) -> None:
    flags = (*TUNNEL_CLIENT_FLAGS, WSS, MUX)
    none = defaults(flags)
    given = parse_options(flags, "anytls;p=a\\;b;m=2")  # as a plugin of shadowsocks
    assert tunnel_password(none | given, given) == "a;b"
    given = {"anytls": True, "password-file": written(tmp_path / "p", "x\n")}
    assert tunnel_password(none | given, given) == "x"
    assert tunnel_password(none, {}) == ""
    assert tunnel_password(defaults(TUNNEL_SERVER_FLAGS), {}) == ""
    for wrong, words in (
        ({"anytls": True}, "-p is missing"),
        ({"anytls": True, "p": "x", "wss": True}, "-anytls and -wss"),
        ({"anytls": True, "p": "x", "mux": True}, "-anytls and -mux"),
        ({"p": "x"}, "-p: only meaningful with -anytls"),
        ({"m": 1}, "-m: only meaningful with -anytls"),
        ({"padding-scheme": "x"}, "-padding-scheme: only meaningful"),
    ):
        with pytest.raises(UsageError, match=words):
            tunnel_password(none | wrong, wrong)
