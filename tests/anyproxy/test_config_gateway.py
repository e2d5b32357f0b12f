"""The section "gateway" of a configuration file: every key, and every error."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from anyproxy import config
from anyproxy.gateway_config import gateway_options
from anyproxy.options import DEFAULT_GROUP, CredentialOptions, GroupOptions
from mtt.address import Endpoint
from mtt.options.section import Section
from mtt.trust.tls_options import ServerTls
from mtt.users.user import User
from tests.anyproxy.configs import error_of_gateway, gateway_of, merged

TREE: dict[str, Any] = {
    "gateway": {
        "listen_addr": "127.0.0.1:8443",
        "proxy": {"http": {"listen_addr": "127.0.0.1:8080"}},
    }
}


def test_smallest_file(caplog: pytest.LogCaptureFixture) -> None:
    options = gateway_of(TREE)
    assert options.bind == Endpoint(("127.0.0.1",), 8443)
    assert (options.tls, options.login, options.socks5) == (None, None, None)
    assert options.credentials == CredentialOptions()
    assert (options.groups, options.default_group) == ({}, DEFAULT_GROUP)
    assert options.udp_timeout == 300
    assert options.timeout == 300
    assert caplog.messages == []


def test_command_line() -> None:
    options = gateway_of(TREE, timeout=7.0, **{"max-conns": 9, "metrics": "9100"})
    assert (options.timeout, options.max_conns) == (7, 9)
    assert options.metrics == Endpoint(("127.0.0.1",), 9100)


def test_sockets_of_systemd_stand_for_the_address() -> None:
    options = gateway_options({config.TREE: Section("", TREE)}, sockets=(3,))
    assert (options.bind, options.sockets) == (None, (3,))


CERT = {"tls_cert": "c.pem", "tls_key": "k.pem"}


@pytest.mark.parametrize(("tls", "port"), [({}, 80), (CERT, 443)])
def test_default_address_is_that_of_go(tls: dict[str, str], port: int) -> None:
    tree = merged(TREE, "gateway.listen_addr", "")
    tree["gateway"] |= tls
    assert gateway_of(tree).bind == Endpoint(("",), port)


def test_tls() -> None:
    tree = merged(TREE, "gateway.client_ca", "ca.pem")
    tree["gateway"] |= CERT
    assert gateway_of(tree).tls == ServerTls(
        cert="c.pem", key="k.pem", client_ca="ca.pem", alpn=("http/1.1",),
        options=("gateway.tls_cert", "gateway.tls_key"), ca_option="gateway.client_ca",
    )  # fmt: skip


def test_no_tls_across_a_network(caplog: pytest.LogCaptureFixture) -> None:
    gateway_of(merged(TREE, "gateway.listen_addr", "10.0.0.1:8443"))
    (message,) = caplog.messages
    assert message.startswith("gateway.tls_cert: missing: anyone on the path can read passwords")


def test_warning_if_agents_need_no_login(caplog: pytest.LogCaptureFixture) -> None:
    tree = merged(TREE, "gateway.listen_addr", ":8443")
    tree["gateway"] |= CERT
    gateway_of(tree)
    (message,) = caplog.messages
    start = "gateway.auth_username: missing: anyone who can reach :8443 can join as an agent"
    assert message.startswith(start)
    for fix in ({"auth_username": "a", "auth_password": "b"}, {"client_ca": "ca.pem"}):
        gateway_of({"gateway": tree["gateway"] | fix})
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("name", ["http", "socks5"])
def test_login_of_a_proxy(name: str) -> None:
    proxy = {
        "listen_addr": "127.0.0.1:1",
        "auth_username": "u",
        "auth_password": "p",
        "group": "office",
    }
    found = getattr(gateway_of(merged(TREE, f"gateway.proxy.{name}", proxy)), name)
    assert (found.login, found.group, found.group_login) == (User("u", "p"), "office", False)
    proxy["group_login"] = "true"
    found = getattr(gateway_of(merged(TREE, f"gateway.proxy.{name}", proxy)), name)
    assert found.group_login


@pytest.mark.parametrize(("address", "warns"), [("127.0.0.1:1", False), (":1", True)])
def test_open_proxy(address: str, warns: bool, caplog: pytest.LogCaptureFixture) -> None:
    proxy = {"listen_addr": address, "group_login": False}
    found = gateway_of(merged(TREE, "gateway.proxy.socks5", proxy)).socks5
    assert found is not None
    assert (found.login, found.group, found.group_login) == (None, "default", False)
    assert ["can use the proxy" in message for message in caplog.messages] == [True] * warns


@pytest.mark.parametrize(
    ("address", "warns"),
    [
        ("127.0.0.1:1", False), ("[::1]:1", False), ("localhost:1", False), ("10.1.2.3:1", False),
        ("192.168.0.1:1", False), ("100.64.0.1:1", False), ("[fd00::1]:1", False),
        ("[::ffff:10.0.0.1]:1", False), (":1", True), ("0.0.0.0:1", True), ("[::]:1", True),
        ("8.8.8.8:1", True), ("[2a00::1]:1", True), ("[::ffff:8.8.8.8]:1", True),
        ("10.0.0.1|8.8.8.8:1", True), ("gateway.example:1", True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["http", "socks5"])
def test_logins_in_the_clear_on_a_public_address(
    name: str, address: str, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    gateway_of(merged(TREE, "gateway.proxy", {name: {"listen_addr": address}}))
    key = {"http": "tls_cert", "socks5": "listen_addr"}[name]
    start = f"gateway.proxy.{name}.{key}: anyone on the path to {address} can read the logins"
    assert [message.startswith(start) for message in caplog.messages] == [True] * warns


def test_https_proxy_on_a_public_address(caplog: pytest.LogCaptureFixture) -> None:
    gateway_of(merged(TREE, "gateway.proxy", {"http": {"listen_addr": ":1", **CERT}}))
    assert caplog.messages == []


def test_no_proxy(caplog: pytest.LogCaptureFixture) -> None:
    options = gateway_of(merged(TREE, "gateway.proxy", {"http": {"listen_addr": ""}}))
    assert (options.http, options.socks5) == (None, None)
    assert caplog.messages == ["gateway.proxy: no proxy has a listen_addr; users cannot connect"]


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({}, CredentialOptions()),
        ({"type": "memory", "file_path": "x"}, CredentialOptions()),
        ({"type": "FILE"}, CredentialOptions(kind="file", path="credentials.json")),
        ({"type": "file", "file_path": "/g.json"}, CredentialOptions(kind="file", path="/g.json")),
        (
            {"type": "db", "db": {"driver": "sqlite3", "data_source": "file:g.db?cache=shared"}},
            CredentialOptions(kind="db", path="g.db"),
        ),
        (
            {"type": "db", "db": {"driver": "sqlite", "data_source": "g.db", "table_name": "t_1"}},
            CredentialOptions(kind="db", path="g.db", table="t_1"),
        ),
        ({"allow_without_password": True}, CredentialOptions(allow_without_password=True)),
    ],
)
def test_credentials(section: dict[str, Any], expected: CredentialOptions) -> None:
    assert gateway_of(merged(TREE, "gateway.credential", section)).credentials == expected


def test_groups() -> None:
    tree = merged(TREE, "gateway.ports", {"bind": "0.0.0.0"})
    tree["gateway"]["groups"] = {
        "*": {"max_streams": 10, "ports": []},
        "office": {
            "balance": "sticky",
            "password": "secret",
            "ports": [8000, "9000-9010"],
            "ports_bind": "::1",
            "max_agents": 3,
            "max_streams": "20",
            "rate": "1MB",
            "allow_from": ["192.0.2.0/24", "2001:db8::1"],
            "allow_without_password": True,
        },
        "home": {},
    }
    options = gateway_of(tree)
    assert options.default_group == GroupOptions(max_streams=10, ports=(), ports_bind="0.0.0.0")
    assert options.groups["home"] == options.default_group
    assert options.groups["office"] == GroupOptions(
        balance="sticky",
        password="secret",
        ports=(range(8000, 8001), range(9000, 9011)),
        ports_bind="::1",
        max_agents=3,
        max_streams=20,
        rate=10**6,
        allow_from=(ipaddress.ip_network("192.0.2.0/24"), ipaddress.ip_network("2001:db8::1/128")),
        allow_without_password=True,
    )


@pytest.mark.parametrize(
    ("text", "rate"),
    [(5000, 5000), ("5000", 5000), ("500kB", 500_000), ("10 M", 10**7), ("1MiB", 2**20), ("", 0),
     ("2gib", 2**31), ("7B", 7)],
)  # fmt: skip
def test_rates(text: object, rate: int) -> None:
    assert gateway_of(merged(TREE, "gateway.groups.g.rate", text)).groups["g"].rate == rate


def test_udp_timeout() -> None:
    assert gateway_of(merged(TREE, "gateway.udp_timeout", "1m")).udp_timeout == 60


def test_keys_of_the_other_end_are_not_read() -> None:
    gateway_of({**TREE, "client": {"nonsense": 1}})


PROXY = "gateway.proxy."
GROUP = "gateway.groups.g."


@pytest.mark.parametrize(
    ("path", "value", "error"),
    [
        ("gateway.listen_addr", "8443", ": '8443' has no host; write it like 127.0.0.1:8443"),
        ("gateway.listen_adr", ":1", ": unknown; did you mean listen_addr?"),
        ("gatewai", {}, ": unknown; did you mean gateway?"),
        ("gateway.transport_type", "quic",
         ": 'quic' is not supported; write websocket here and at the other end"),
        ("transport.type", "grpc",
         ": 'grpc' is not supported; write websocket here and at the other end"),
        ("gateway.tls_cert", "c.pem", ": needs tls_key; give both, or neither"),
        ("gateway.tls_key", "k.pem", ": needs tls_cert; give both, or neither"),
        ("gateway.client_ca", "ca.pem", ": needs tls_cert and tls_key"),
        ("gateway.auth_password", "x", ": only used with auth_username; add it, or remove this"),
        ("gateway.auth_username", "u",
         ": the password is empty; make one with: openssl rand -base64 24"),
        ("gateway.auth_username", "a:b", ": colon or control character in the name 'a:b'"),
        ("gateway.udp_timeout", "5", ": '5' is not a duration; write it with a unit, like 300s, "
         "5m or 1h30m"),
        ("gateway.credential.type", "redis", ": 'redis' is not one of memory, file, db"),
        ("gateway.credential.typ", "file", ": unknown; did you mean type?"),
        ("gateway.credential.db.drivers", "x", ": unknown; did you mean driver?"),
        ("gateway.ports.bind", "localhost",
         ": 'localhost' is not an IP address; write 0.0.0.0 for all"),
        ("gateway.ports.bnd", "::", ": unknown; did you mean bind?"),
        (PROXY + "tuic.listen_addr", ":9443",
         ": TUIC is not supported; remove it, and use SOCKS5 for UDP"),
        (PROXY + "ftp", {}, ": unknown; remove it"),
        (PROXY + "http.tls_key", "k.pem", ": needs tls_cert; give both, or neither"),
        (PROXY + "socks5.tls_cert", "c.pem", ": unknown; remove it"),
        (PROXY + "http.group", "a:b", ": 'a:b' has a colon; remove it"),
        (PROXY + "http.group_login", "maybe",
         ": 'maybe' is not a boolean; write true or false"),
        (PROXY + "socks5.auth_password", "x",
         ": only used with auth_username; add it, or remove this"),
        ("proxy", {"http": {}}, ": there is gateway.proxy, too; move all to that"),
        ("gateway.groups.*.password", "x", ": every group needs its own; remove it"),
        (GROUP + "balance", "random",
         ": 'random' is not one of round_robin, least_streams, sticky"),
        (GROUP + "password", " x",
         ": a password of a group is printable ASCII without spaces around it"),
        (GROUP + "password", "x" * 1025, ": the password has more than 1024 characters"),
        (GROUP + "ports", ["80-79"], ": '80-79' is not like 8000 or 8000-8010"),
        (GROUP + "ports", ["0-9"], ": '0-9' is not like 8000 or 8000-8010"),
        (GROUP + "ports", "x", ": 'x' is not like 8000 or 8000-8010"),
        (GROUP + "ports", [70000], ": '70000' is not like 8000 or 8000-8010"),
        (GROUP + "ports_bind", "x", ": 'x' is not an IP address; write 0.0.0.0 for all"),
        (GROUP + "max_agents", -1, ": -1 is not from 0 to 1000000"),
        (GROUP + "max_streams", "x", ": 'x' is not an integer; write it like 4"),
        (GROUP + "rate", "fast",
         ": 'fast' is not bytes per second; write it like 500kB or 10MB"),
        (GROUP + "rate", "5i",
         ": '5i' is not bytes per second; write it like 500kB or 10MB"),
        (GROUP + "allow_from", [], ": an empty list; remove it, or write 0.0.0.0/0"),
        (GROUP + "allow_from", "example.com",
         ": 'example.com' is not a range of addresses, like 192.0.2.0/24"),
        (GROUP + "allow_without_pasword", True, ": unknown; remove it"),
    ],
)  # fmt: skip
def test_errors_name_the_path(path: str, value: object, error: str) -> None:
    assert error_of_gateway(merged(TREE, path, value)) == path + error


def test_errors_about_other_keys_than_the_wrong_one() -> None:
    database = merged(TREE, "gateway.credential.type", "db")
    path = "gateway.credential.db."
    assert error_of_gateway(database) == f"{path}driver: '' is not supported; write sqlite"
    mysql = merged(database, path + "driver", "mysql")
    assert error_of_gateway(mysql) == f"{path}driver: 'mysql' is not supported; write sqlite"
    sqlite = merged(database, path + "driver", "sqlite")
    for source in ("", ":memory:", "file::memory:?cache=shared"):
        found = error_of_gateway(merged(sqlite, path + "data_source", source))
        assert found == f"{path}data_source: give the path of an SQLite file"
    sqlite = merged(sqlite, path + "data_source", "g.db")
    found = error_of_gateway(merged(sqlite, path + "table_name", "a; b"))
    assert found == f"{path}table_name: 'a; b' is not a name of letters, digits and _"


@pytest.mark.parametrize("name", ["a:b", " a", "\u00e9", "x" * 129])
def test_names_of_groups(name: str) -> None:
    tree = merged(TREE, "gateway.groups", {name: {}})
    assert ": the name " in error_of_gateway(tree)


def test_too_many_ranges() -> None:
    error = error_of_gateway(merged(TREE, GROUP + "allow_from", ["192.0.2.1"] * 1001))
    assert error == f"{GROUP}allow_from: 1001 ranges are too many; 1000 at most"


def test_file_of_a_client() -> None:
    assert error_of_gateway({"client": {}}) == "gateway: missing; this is the file of a client"


def test_file_of_neither_end() -> None:
    assert error_of_gateway({"gatewy": {}}) == "gatewy: unknown; did you mean gateway?"
    assert error_of_gateway({}) == "gateway: missing; give the settings of the gateway there"


@pytest.mark.parametrize("address", ["127.0.0.1:1", ":1"])
def test_two_ports_at_one_address(address: str) -> None:
    tree = {
        "gateway": {
            "listen_addr": "127.0.0.1:1",
            "proxy": {"socks5": {"listen_addr": "127.0.0.1:2"}, "http": {"listen_addr": address}},
        }
    }
    assert error_of_gateway(tree) == (
        "gateway.listen_addr and gateway.proxy.http.listen_addr listen on one address, "
        f"{address}; change one"
    )
