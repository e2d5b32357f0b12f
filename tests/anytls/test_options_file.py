"""The file of -c and what ranks above it; secrets in files."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from anytls.options import SERVER_FLAGS
from anytls.options import server_options as checked_server
from mtt.address import Endpoint
from mtt.errors import UsageError
from mtt.options.anytls import PoolOptions, read_password
from mtt.options.flags import parse_args
from mtt.trust.tls_options import ServerTls
from mtt.users.file import read_users
from mtt.users.user import User
from mtt.wire import alpn
from tests.anytls.command_lines import PIN, client, server
from tests.support.files import written


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


def test_errors_show_no_secrets(config: str, tmp_path: Path) -> None:
    users = written(tmp_path / "users", "a:s3cret\nb:s3cret2\n")
    for options in (
        client("-s", "anytls://s3cret@h"), client("-s", "h:1", "-p", "s3cret"),
        client("-c", config), server("-p", "s3cret"), server("-users", users),
    ):  # fmt: skip
        assert "s3cret" not in repr(options)
        assert "of-file" not in repr(options)
        assert dataclasses.is_dataclass(options)


def test_command_line_overrides_the_file(config: str) -> None:
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


def test_server_name_is_not_sent(tmp_path: Path) -> None:
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


def test_unusable_passwords(tmp_path: Path) -> None:
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


def test_command_line_overrides_the_servers_file(
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
        assert text.startswith(f"-config: {config_file}: inbounds[0].tls: missing or not enabled, ")
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


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of Unix")
def test_world_readable_secrets_cause_warnings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
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
