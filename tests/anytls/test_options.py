"""What anytls-client and anytls-server can be told."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from anytls.options import CLIENT_FLAGS, SERVER_FLAGS, ClientOptions, ServerOptions
from anytls.options import client_options as checked_client
from anytls.options import server_options as checked_server
from mtt.address import Endpoint
from mtt.errors import UsageError
from mtt.options.anytls import (
    DEFAULT_POOL,
    TUNNEL_CLIENT_FLAGS,
    TUNNEL_SERVER_FLAGS,
    PoolOptions,
    read_password,
    tunnel_password,
)
from mtt.options.common import MUX, WSS
from mtt.options.flags import defaults, parse_args, usage
from mtt.trust.tls_options import ServerTls
from mtt.users.file import read_users
from mtt.users.user import User
from mtt.wire import alpn
from plugin.options import parse_options

PIN = "sha256/2ZVxVcFhUQvu9y9vcDVqlFsJkMwpbHUnQ+gpCVyHt5k="
OTHER_PIN = "sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="


def client(*argv: str) -> ClientOptions:
    return checked_client(parse_args(CLIENT_FLAGS, argv))


def server(*argv: str) -> ServerOptions:
    return checked_server(parse_args(SERVER_FLAGS, argv))


def written(path: Path, content: Any) -> str:
    path.touch(0o600)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


@pytest.fixture
def config(tmp_path: Path) -> str:
    outbound = {
        "type": "anytls", "server": "one.example", "server_port": 443, "password": "of-file",
        "min_idle_session": 3, "idle_session_timeout": "2m",
        "tls": {"enabled": True, "server_name": "www.example", "certificate_path": "/ca.pem",
                "alpn": ["h2"], "min_version": "1.3"},
    }  # fmt: skip
    local = {"type": "mixed", "listen": "127.0.0.1", "listen_port": 2080}
    return written(tmp_path / "config.json", {"inbounds": [local], "outbounds": [outbound]})


@pytest.fixture
def two_servers(tmp_path: Path) -> str:
    tls = {"enabled": True, "insecure": True}
    one = {"type": "anytls", "server": "a", "server_port": 1, "password": "pa", "tls": tls}
    return written(tmp_path / "two.json", {"outbounds": [one, one | {"server": "b"}]})


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


def test_all_flags_of_the_reference_are_there() -> None:
    assert {flag.name for flag in CLIENT_FLAGS} >= {"l", "s", "p", "sni", "m", "dr"}
    assert {flag.name for flag in SERVER_FLAGS} >= {"l", "p", "padding-scheme"}


@pytest.mark.parametrize("flags", [CLIENT_FLAGS, SERVER_FLAGS])
def test_flags_are_named_once_and_fit_the_screen(flags: Any) -> None:
    names = [flag.name for flag in flags]
    assert len(names) == len(set(names))
    text = usage(flags, "anytls", "x")
    assert "-password-file FILE" in text
    assert max(map(len, text.splitlines())) < 80


def test_no_secret_is_shown_by_accident(config: str, tmp_path: Path) -> None:
    users = written(tmp_path / "users", "a:s3cret\nb:s3cret2\n")
    for options in (
        client("-s", "anytls://s3cret@h"), client("-s", "h:1", "-p", "s3cret"),
        client("-c", config), server("-p", "s3cret"), server("-users", users),
    ):  # fmt: skip
        assert "s3cret" not in repr(options)
        assert "of-file" not in repr(options)
        assert dataclasses.is_dataclass(options)


def test_a_uri_says_all_about_a_server() -> None:
    (only,) = client("-s", "anytls://p%40ss@[2001:db8::1]/?sni=real.example&insecure=1").servers
    assert only.address == Endpoint(("2001:db8::1",), 443)
    assert only.password == "p@ss"
    assert (only.tls.server_name, only.tls.skip_verify) == ("real.example", True)
    # An IP address means that none is sent.
    (only,) = client("-s", "anytls://p@example.com/?sni=192.0.2.1").servers
    assert only.tls.server_name == "192.0.2.1"


def test_options_rank_above_the_uri() -> None:
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
def test_an_open_proxy_is_warned_of(listen: str, caplog: pytest.LogCaptureFixture) -> None:
    client("-s", "h:1", "-p", "x", "-l", listen)
    (record,) = caplog.records
    assert "give -user" in record.getMessage()


@pytest.mark.parametrize("listen", ["localhost:1080", "[::1]:1080", "127.0.0.2:1080"])
def test_a_proxy_of_our_own_is_not(listen: str, caplog: pytest.LogCaptureFixture) -> None:
    client("-s", "h:1", "-p", "x", "-l", listen)
    assert not caplog.records


def test_the_file_and_what_ranks_above_it(config: str) -> None:
    options = client("-c", config)
    assert options.bind == Endpoint(("127.0.0.1",), 2080)
    assert options.pool == PoolOptions(3, 30, 120, True)
    (only,) = options.servers
    assert (only.address, only.password) == (Endpoint(("one.example",), 443), "of-file")
    assert (only.tls.server_name, only.tls.ca, only.tls.alpn, only.tls.tls_min) == (
        "www.example", "/ca.pem", ("h2",), "1.3"
    )  # fmt: skip

    options = client(
        "-c", config, "-l", "127.0.0.1:1", "-m", "1", "-p", "mine", "-sni", "n.example",
        "-alpn", "http/1.1", "-tls-min", "1.2", "-s", "two.example:2",
    )  # fmt: skip
    assert options.bind == Endpoint(("127.0.0.1",), 1)
    assert options.pool == PoolOptions(1, 30, 120, True)
    (only,) = options.servers
    assert (only.address, only.password) == (Endpoint(("two.example",), 2), "mine")
    assert (only.tls.server_name, only.tls.ca, only.tls.alpn, only.tls.tls_min) == (
        "n.example", "/ca.pem", ("http/1.1",), "1.2"
    )  # fmt: skip
    assert client("-c", config, "-dr").pool.reuse is False
    assert client("-c", config, "-insecure").servers[0].tls.ca == ""
    uri = client("-c", config, "-s", "anytls://of-uri@three.example/?insecure=1").servers[0]
    assert (uri.password, uri.tls.skip_verify, uri.tls.ca) == ("of-uri", True, "")
    assert uri.tls.server_name == "www.example"


def test_several_servers(two_servers: str) -> None:
    options = client("-c", two_servers, "-pin", PIN, "-p", "both")
    assert [str(each.address) for each in options.servers] == ["a:1", "b:1"]
    assert {each.password for each in options.servers} == {"both"}
    assert not any(each.tls.skip_verify for each in options.servers)
    with pytest.raises(UsageError, match="has 2 servers; drop -s"):
        client("-c", two_servers, "-s", "h:1")


def test_ignore_fingerprint_reaches_the_file(tmp_path: Path) -> None:
    tls = {"enabled": True, "utls": {"enabled": True, "fingerprint": "chrome"}}
    path = written(tmp_path / "c", {"type": "anytls", "server": "example.com", "server_port": 1,
                                    "password": "x", "tls": tls})  # fmt: skip
    with pytest.raises(UsageError, match="add -ignore-fingerprint"):
        client("-c", path)
    assert client("-c", path, "-ignore-fingerprint").servers


def test_a_name_that_is_not_sent(tmp_path: Path) -> None:
    def outbound(**tls: Any) -> str:
        tls = {"enabled": True, "disable_sni": True} | tls
        return written(tmp_path / "c", {"type": "anytls", "server": "example.com", "password": "x",
                                        "server_port": 1, "tls": tls})  # fmt: skip

    with pytest.raises(UsageError, match="disable_sni"):
        client("-c", outbound())
    assert client("-c", outbound(insecure=True)).servers[0].tls.server_name == ""
    assert client("-c", outbound(), "-pin", PIN).servers[0].tls.server_name == ""
    assert client("-c", outbound(server_name="192.0.2.1")).servers[0].tls.server_name == "192.0.2.1"
    with pytest.raises(UsageError, match="disable_sni"):
        client("-c", outbound(), "-pin", PIN, "-ca", "x")


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
        ("-s h:1 -p x -insecure -pin y", "-insecure"),
        ("-s h:1 -p x -insecure -ca y", "-insecure"),
        ("-s h:1 -p x -pin y", "-pin: "),
        ("-s h:1 -p x -cert y", "-cert needs -key"),
        ("-s h:1 -p x -tls-min 1.1", "-tls-min"),
        ("-s h:1 -p x -alpn h2,,", "-alpn"),
        ("-s h:1 -p x -sni a..b", "-sni"),
        ("-s h:1 -p x -m 300", "-m: 300 is not from 0 to 256"),
        ("-s h:1 -p x -m -1", "-m: -1"),
        ("-s h:1 -p x -m 2 -dr", "-m: only meaningful with reuse"),
        ("-s h:1 -p x -idle-timeout 9s -dr", "-idle-timeout: only meaningful with reuse"),
        ("-s h:1 -p x -idle-check -1ms", "-0.001s is not positive; the default is 30s"),
        ("-s h:1 -p x -idle-timeout 0", "-idle-timeout"),
        ("-s h:1 -p x -timeout 0", "-timeout"),
        ("-s h:1 -p x -user me", "-user needs -user-password-file"),
        ("-s h:1 -p x -user-password-file me", "-user-password-file needs -user"),
        ("-s h:1 -p x -l 1080", "-l: "),
        ("-s h:1 -p x -ignore-fingerprint", "-ignore-fingerprint: only meaningful with -c; remove"),
        ("-c /does/not/exist", "-c: cannot read /does/not/exist"),
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
        ("-p x -l 1", "-l: "),
        ("-p x -alpn \u00e4", "-alpn"),
        ("-p x -alpn h2,http/1.1", "-alpn: h2: the web site"),
    ],
)
def test_wrong_options_of_the_server(argv: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        server(*argv.split())
    assert words in str(caught.value)


def test_passwords_that_are_none(tmp_path: Path) -> None:
    for text in ("s3cret\udc80", "s3cret" * 1000):
        with pytest.raises(UsageError) as caught:
            server("-p", text)
        assert "s3cret" not in str(caught.value)
    for content, words in (("", "is empty"), ("\n", "is empty"), ("s3cret\nb\n", "one line"),
                           ("s3cret" * 200, "more than")):  # fmt: skip
        with pytest.raises(UsageError, match=words) as caught:
            read_password("-password-file", written(tmp_path / "p", content))
        assert "s3cret" not in str(caught.value)
    assert read_password("-p", written(tmp_path / "p", "\ufeffs\u00e4cret\r\n")) == "s\u00e4cret"


def test_rules_and_scheme(tmp_path: Path) -> None:
    scheme = tmp_path / "scheme"
    scheme.write_bytes(b"stop=2\n1=100-200\n")
    options = server("-p", "x", "-allow", "10.0.0.0/8:80", "-deny", ":25", "-padding-scheme",
                     str(scheme), "-fallback", "127.0.0.1:80", "-l", ":443")  # fmt: skip
    assert options.policy.allows("10.1.2.3", 80) and not options.policy.allows("10.1.2.3", 81)
    assert not options.policy.allows("8.8.8.8", 25)
    assert options.padding_scheme == b"stop=2\n1=100-200\n"
    assert options.fallback == Endpoint(("127.0.0.1",), 80)
    scheme.write_bytes(b"stop=2\n1=0-10\n")
    with pytest.raises(UsageError, match=r"-padding-scheme: .*scheme: line 2"):
        server("-p", "x", "-padding-scheme", str(scheme))


def test_the_servers_file_and_what_ranks_above_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = written(tmp_path / "config.json", {
        "type": "anytls", "listen": "::", "listen_port": 443,
        "users": [{"name": "a", "password": "pa"}], "padding_scheme": ["stop=1"],
        "tls": {"enabled": True, "certificate_path": "/c", "key_path": "/k", "alpn": ["h2"]},
    })  # fmt: skip
    options = server("-c", config)
    assert options.bind == Endpoint(("",), 443)
    assert (options.users, options.padding_scheme) == ((User("a", "pa"),), b"stop=1")
    assert options.tls == ServerTls(cert="/c", key="/k", alpn=alpn.SITE)
    # Visitors see a site of HTTP/1.1; clients that have no other name than h2 are served.
    assert options.alpn_ignored == ("h2",)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("alpn: h2: not used: ")

    scheme = written(tmp_path / "scheme", "stop=3")
    options = server("-c", config, "-l", ":1", "-p", "mine", "-padding-scheme", scheme,
                     "-cert-dir", "/d", "-alpn", "")  # fmt: skip
    assert options.bind == Endpoint(("",), 1)
    assert (options.users, options.padding_scheme) == ((User("default", "mine"),), b"stop=3")
    assert options.tls == ServerTls(cert_dir="/d", alpn=alpn.SITE)
    assert options.alpn_ignored == ()
    users = written(tmp_path / "users", "b:pb")
    assert server("-c", config, "-users", users).users == (User("b", "pb"),)
    with pytest.raises(UsageError, match="-cert needs -key"):
        server("-c", config, "-cert", "/mine")


def test_a_file_without_tls(tmp_path: Path) -> None:
    def config(listen: str, **more: Any) -> str:
        inbound = {"type": "anytls", "listen": listen, "listen_port": 80,
                   "users": [{"name": "a", "password": "pa"}]} | more  # fmt: skip
        return written(tmp_path / "config.json", {"inbounds": [inbound]})

    for own in ("127.0.0.1", "::1", "[::1]"):
        assert server("-c", config(own)).tls is None
    config_file = config("::")
    for listen, argv in (("::", ()), ("127.0.0.1", ("-l", "0.0.0.0:80"))):
        with pytest.raises(UsageError) as caught:
            server("-c", config(listen), *argv)
        text = str(caught.value)
        assert text.startswith(f"-c: {config_file}: inbounds[0].tls: missing or not enabled, and ")
        assert text.endswith("or -disable-tls if a proxy in front does TLS")
    given = parse_args(SERVER_FLAGS, ["-c", config("127.0.0.1")])
    with pytest.raises(UsageError, match="the socket of systemd may be reachable"):
        checked_server(given, sockets=(3,))
    assert server("-c", config("::"), "-disable-tls").tls is None
    assert server("-c", config("::"), "-l", "127.0.0.1:1").tls is None
    assert checked_server(given | {"disable-tls": True}, sockets=(3,)).tls is None
    # The command line ranks above the file, both ways.
    assert server("-c", config("127.0.0.1"), "-cert-dir", "/d").tls is not None
    assert server("-c", config("::"), "-disable-tls=false").tls is not None
    tls = {"enabled": True, "certificate_path": "/c", "key_path": "/k", "alpn": ["h2"],
           "min_version": "1.3"}  # fmt: skip
    assert server("-c", config("::", tls=tls), "-disable-tls").tls is None
    tls |= {"client_authentication": "require-and-verify", "client_certificate_path": "/ca"}
    with pytest.raises(UsageError, match="-client-ca needs TLS, which -disable-tls turns off"):
        server("-c", config("::", tls=tls), "-disable-tls")
    for argv in (("-client-ca", "/ca"), ("-tls-min", "1.3"), ("-alpn", "h2")):
        with pytest.raises(UsageError, match=f"{argv[0]} needs TLS"):
            server("-c", config("127.0.0.1"), *argv)


def test_users_in_lines(tmp_path: Path) -> None:
    users = written(tmp_path / "users", "\ufeff# who\n\n alice : with: colons \r\nb\u00f6b:#x\n")
    found = (User("alice", "with: colons"), User("b\u00f6b", "#x"))
    assert read_users("-users", users) == found
    options = server("-users", users)
    assert (options.users, options.users_file) == (found, users)


def test_durations_below_a_second() -> None:
    pool = client("-s", "h:1", "-p", "x", "-idle-check", "500ms", "-idle-timeout", "1ms").pool
    assert (pool.check_interval, pool.idle_timeout) == (0.5, 0.001)
    assert server("-p", "x", "-udp-timeout", "500ms").udp_timeout == 0.5


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of Unix")
def test_secrets_that_all_can_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    users, password = written(tmp_path / "u", "a:b"), written(tmp_path / "p", "x")
    server("-users", users)
    assert not caplog.records
    os.chmod(users, 0o644)
    os.chmod(password, 0o604)
    server("-users", users)
    server("-password-file", password)
    assert len(caplog.records) == 2
    assert all("run chmod o-r on it" in record.getMessage() for record in caplog.records)


def test_a_password_from_a_pipe() -> None:
    read, write = os.pipe()
    os.write(write, b"from a pipe\n")
    os.close(write)
    try:
        path = f"/dev/fd/{read}"
        if not os.path.exists(path):
            pytest.skip("no /dev/fd here")
        assert server("-password-file", path).users == (User("default", "from a pipe"),)
    finally:
        os.close(read)


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
