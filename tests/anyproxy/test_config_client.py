"""The section "client" of a configuration file: every key, and every error."""

from __future__ import annotations

import base64
import ipaddress
from dataclasses import replace
from typing import Any

import pytest

from anyproxy.options import OpenPort
from mtt.address import Endpoint
from mtt.errors import UsageError
from mtt.options.proxy import FromEnvironment, ProxyServer, parse_proxy
from mtt.trust.tls_options import ClientTls
from tests.anyproxy.configs import agent_of, error_of_agent, merged

PIN = "sha256/" + base64.b64encode(bytes(32)).decode()
TREE: dict[str, Any] = {
    "client": {
        "id": "home",
        "group_id": "family",
        "gateway": {"addr": "127.0.0.1:8443"},
    }
}
ADDRESS = "client.gateway.addr"


def test_smallest_file(caplog: pytest.LogCaptureFixture) -> None:
    options = agent_of(TREE)
    assert (options.id, options.group, options.password) == ("home", "family", "")
    assert (options.replicas, options.tls, options.login) == (1, None, None)
    assert options.gateways == (Endpoint(("127.0.0.1",), 8443),)
    assert options.proxy is None
    assert options.open_ports == ()
    assert options.udp_timeout == 300
    assert options.rules.allows("example.com", "192.0.2.1", 80)
    assert caplog.messages == []


def test_command_line() -> None:
    options = agent_of(TREE, timeout=7.0, **{"max-conns": 9, "metrics": "9100"})
    assert (options.timeout, options.max_conns) == (7, 9)
    assert options.metrics == Endpoint(("127.0.0.1",), 9100)


def test_no_replicas_are_one(caplog: pytest.LogCaptureFixture) -> None:
    assert agent_of(merged(TREE, "client.replicas", 0)).replicas == 1
    assert caplog.messages == ["client.replicas: 0 means 1 here; write 1"]


@pytest.mark.parametrize(
    ("value", "expected", "has_tls"),
    [
        ("gw.example.com:8443", ["gw.example.com:8443"], False),
        ("wss://gw.example.com:8443/", ["gw.example.com:8443"], True),
        ("WSS://gw.example.com/ws", ["gw.example.com:443"], True),
        ("ws://gw.example.com", ["gw.example.com:80"], False),
        ("wss://[2001:db8::1]", ["[2001:db8::1]:443"], True),
        ("wss://[2001:db8::1]:1/ws/", ["[2001:db8::1]:1"], True),
        (["a:1", "wss://b", "a:1"], ["a:1", "b:443"], True),
        ("b\u00fccher.example:1", ["xn--bcher-kva.example:1"], False),
    ],
)
def test_addresses(value: object, expected: list[str], has_tls: bool) -> None:
    options = agent_of(merged(TREE, ADDRESS, value))
    assert [str(each) for each in options.gateways] == expected
    assert (options.tls is not None) == has_tls


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"tls_cert": "c.pem"}, ClientTls(ca="c.pem")),
        ({"ca": "c.pem"}, ClientTls(ca="c.pem")),
        ({"pin": PIN}, ClientTls(pins=(PIN,))),
        ({"pin": [PIN, PIN]}, ClientTls(pins=(PIN, PIN))),
        ({"server_name": "b\u00fccher.example"}, ClientTls(server_name="xn--bcher-kva.example")),
        ({"insecure": True}, ClientTls(skip_verify=True)),
        ({"client_cert": "c", "client_key": "k"}, ClientTls(cert="c", key="k")),
        ({"insecure": False}, None),
        ({"tls_cert": ""}, None),
    ],
)
def test_tls(keys: dict[str, Any], expected: ClientTls | None) -> None:
    tree = merged(TREE, ADDRESS, "127.0.0.1:1")
    tree["client"]["gateway"] |= keys
    if expected is not None:
        name = "tls_cert" if "tls_cert" in keys else "ca"
        expected = replace(
            expected, ca_option=f"client.gateway.{name}",
            options=("client.gateway.client_cert", "client.gateway.client_key"),
        )  # fmt: skip
    assert agent_of(tree).tls == expected


def test_no_tls_across_a_network(caplog: pytest.LogCaptureFixture) -> None:
    agent_of(merged(TREE, ADDRESS, ["127.0.0.1:1", "gw.example.com:2"]))
    (message,) = caplog.messages
    assert message.startswith("client.gateway.tls_cert: missing: anyone on the path can read")
    caplog.clear()
    agent_of(merged(TREE, ADDRESS, ["localhost:1", "[::1]:2"]))
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("text", "address", "login"),
    [
        ("proxy:3128", "proxy:3128", None),
        ("http://proxy:3128/", "proxy:3128", None),
        ("http://u:p%40%3A@proxy:3128", "proxy:3128", ("u", "p@:")),
    ],
)
def test_proxy(text: str, address: str, login: tuple[str, str] | None) -> None:
    proxy = agent_of(merged(TREE, "client.gateway.proxy", text)).proxy
    assert isinstance(proxy, ProxyServer)
    assert (str(proxy), proxy.login) == (address, login)


def test_rules_and_protocols(caplog: pytest.LogCaptureFixture) -> None:
    tree = merged(TREE, "client.allowed_hosts", ["*.example.com:443", "10.0.0.0/8"])
    tree["client"] |= {"forbidden_hosts": "10.9.0.0/16", "allowed_protocols": ["udp"]}
    options = agent_of(tree)
    assert options.protocols == {"udp"}
    assert options.rules.allows("x.example.com", "192.0.2.1", 443)
    assert options.rules.allows("10.1.1.1", "10.1.1.1", 1)
    assert not options.rules.allows("10.9.1.1", "10.9.1.1", 1)
    assert not options.rules.allows("x.example.com", "192.0.2.1", 80)


def test_open_ports() -> None:
    ports = [
        {"remote_port": "8000", "local_port": 80},
        {
            "remote_port": 8000,
            "local_port": 22,
            "local_host": "fe80::1%eth0",
            "protocol": "UDP",
            "allow_from": "192.0.2.0/24",
        },
        {"remote_port": 1, "local_port": 2, "local_host": "nas.lan", "proxy_protocol": "v2"},
    ]
    assert agent_of(merged(TREE, "client.open_ports", ports)).open_ports == (
        OpenPort(remote_port=8000, local_host="127.0.0.1", local_port=80),
        OpenPort(
            remote_port=8000,
            local_host="fe80::1%eth0",
            local_port=22,
            protocol="udp",
            allow_from=(ipaddress.ip_network("192.0.2.0/24"),),
        ),
        OpenPort(remote_port=1, local_host="nas.lan", local_port=2, proxy_protocol="v2"),
    )


def test_any_open_ports() -> None:
    ports = [{"remote_port": 0, "local_port": port} for port in (80, 81)]
    found = agent_of(merged(TREE, "client.open_ports", ports)).open_ports
    assert [(port.remote_port, port.local_port) for port in found] == [(0, 80), (0, 81)]
    with_two = [*ports, ports[0]]
    assert error_of_agent(merged(TREE, "client.open_ports", with_two)) == (
        "client.open_ports[2].remote_port: 0 (tcp) is there twice"
    )


def test_keys_of_the_other_end_are_not_read() -> None:
    agent_of({**TREE, "gateway": {"nonsense": 1}, "proxy": 1})


@pytest.mark.parametrize(
    ("path", "value", "error"),
    [
        ("client.id", "", ": missing; give the name of this client"),
        ("client.id", "\u00e9", ": '\u00e9' is not printable ASCII without spaces around it"),
        ("client.id", "x" * 129, f": {'x' * 80 + '...'!r} is longer than 128 characters"),
        ("client.group_id", "", ": missing; give the group's name, which is the users' login"),
        ("client.group_id", "a:b", ": 'a:b' has a colon; remove it"),
        ("client.group_password", "\u00e9",
         ": a password of a group is printable ASCII without spaces around it"),
        ("client.replica", 1, ": unknown; did you mean replicas?"),
        ("client.replicas", 65, ": 65 is not from 0 to 64"),
        ("client.udp_timeout", "-1s", ": '-1s' is not positive; write it like 5m"),
        ("clients", {}, ": unknown; did you mean client?"),
        (ADDRESS, "", ": missing; give the gateway's address, like wss://gateway.example.com:8443"),
        (ADDRESS, ["a:1"] * 65, ": 65 gateways are too many; 64 at most"),
        (ADDRESS, "https://a", ": the address begins with another scheme than wss:// and ws://"),
        (ADDRESS, "wss://a/path", ": the path is always /ws; remove it"),
        (ADDRESS, "gw.example.com",
         ": 'gw.example.com' has no port; write it like gw.example.com:443"),
        (ADDRESS, "a:0", ": 'a:0' has port 0; give one from 1 to 65535"),
        (ADDRESS, "a b:1", ": 'a b:1' is not host:port ('a b' is not a host); write it like "
         "192.0.2.1:443, example.com:443 or [2001:db8::1]:443"),
        ("client.gateway.transport_type", "grpc",
         ": 'grpc' is not supported; write websocket here and at the other end"),
        ("client.gateway.tls_crt", "x", ": unknown; did you mean tls_cert?"),
        ("client.gateway.insecur", True, ": unknown; remove it"),
        ("client.gateway.pin", "abc", ": 'abc' is not like the gateway's, sha256/BASE64"),
        ("client.gateway.client_cert", "c", ": needs client_key; give both, or neither"),
        ("client.gateway.server_name", "a b",
         ": 'a b' is neither a host name nor an IP address"),
        ("client.gateway.auth_username", "u",
         ": the password is empty; make one with: openssl rand -base64 24"),
        ("client.gateway.proxy", "socks4://user:secret@a:1",
         ": only HTTP and SOCKS5 proxies are supported; write http://host:port, https://host:port "
         "or socks5://host:port"),
        ("client.gateway.proxy", "http://a",
         ": not like http://host:3128 or http://user:password@host:3128"),
        ("client.gateway.proxy", "http://:secret@a:1", ": the user has no name"),
        ("client.allowed_hosts", ["("],
         ": '(': not a regular expression: missing ), unterminated subpattern at position 0"),
        ("client.forbidden_hosts", [""], ": '': empty; write \"*\" for every target"),
        ("client.allowed_protocols", ["icmp"], ": 'icmp' is not tcp or udp"),
        ("client.open_ports", {}, ": not a list"),
    ],
)  # fmt: skip
def test_errors_name_the_path(path: str, value: object, error: str) -> None:
    assert error_of_agent(merged(TREE, path, value)) == path + error


GOOD = {"remote_port": 1, "local_port": 2}


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ({"remote_port": None}, "remote_port: missing; give a port from 0 to 65535"),
        ({"remote_port": None, "remote_prt": 1}, "remote_prt: unknown; did you mean remote_port?"),
        ({"remote_port": 65536}, "remote_port: 65536 is not from 0 to 65535"),
        ({"local_port": 0}, "local_port: 0 is not from 1 to 65535"),
        ({"local_port": None}, "local_port: missing; give a port from 1 to 65535"),
        ({"local_host": "a b"}, "local_host: 'a b' is neither a host name nor an IP address"),
        ({"protocol": "sctp"}, "protocol: 'sctp' is not one of tcp, udp"),
        ({"proxy_protocol": "v3"}, "proxy_protocol: 'v3' is not v1 or v2"),
        ({"proxy_protocol": "v1", "protocol": "udp"}, "proxy_protocol: only for tcp; remove it"),
        ({"allow_from": "x"}, "allow_from: 'x' is not a range of addresses, like 192.0.2.0/24"),
        ({"remoteport": 1}, "remoteport: unknown; did you mean remote_port?"),
        (GOOD, None),
    ],
)
def test_errors_about_open_ports(keys: dict[str, Any], error: str | None) -> None:
    tree = merged(TREE, "client.open_ports", [{**GOOD, "remote_port": 9}, {**GOOD, **keys}])
    if error is None:
        assert len(agent_of(tree).open_ports) == 2
    else:
        assert error_of_agent(tree) == f"client.open_ports[1].{error}"


def test_errors_about_several_keys() -> None:
    port = dict(GOOD)
    assert error_of_agent(merged(TREE, "client.open_ports", [port, port])) == (
        "client.open_ports[1].remote_port: 1 (tcp) is there twice"
    )
    assert error_of_agent(merged(TREE, "client.open_ports", [port] * 257)) == (
        "client.open_ports: 257 are too many; 256 at most"
    )
    for keys, error in (
        ({"tls_cert": "a", "ca": "b"}, "ca: the same as tls_cert; remove one"),
        ({"insecure": True, "ca": "b"},
         "insecure: skips verification; remove it, or what is to be verified"),
        ({"addr": "ws://a", "ca": "b"},
         "tls_cert: not with ws://, which means no TLS; write wss:// in the address"),
        ({"addr": ["ws://a", "wss://b"]},
         "tls_cert: not with ws://, which means no TLS; write wss:// in the address"),
    ):  # fmt: skip
        tree = merged(TREE, "client.gateway.auth_username", "")
        tree["client"]["gateway"] |= keys
        assert error_of_agent(tree) == f"client.gateway.{error}"


def test_file_of_a_gateway() -> None:
    assert error_of_agent({"gateway": {}}) == "client: missing; this is the file of a gateway"


def test_file_of_neither_end() -> None:
    assert error_of_agent({"clients": {}}) == "clients: unknown; did you mean client?"
    assert error_of_agent({}) == "client: missing; give the settings of the agent there"


def test_both_shapes_at_once() -> None:
    tree = merged(TREE, "client.gateway_addr", "a:1")
    assert error_of_agent(tree) == "client.gateway: unknown; did you mean gateway_addr?"


def test_proxy_of_the_environment() -> None:
    tree = merged(TREE, "client.gateway.proxy", "env")
    environ = {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "example.com"}
    way = agent_of(tree, environ=environ).proxy
    assert way == FromEnvironment(parse_proxy("HTTPS_PROXY", "http://proxy:3128"), "example.com")
    assert agent_of(tree).proxy == FromEnvironment(None, "")
    with pytest.raises(UsageError, match=r"^HTTPS_PROXY: only HTTP and SOCKS5 proxies"):
        agent_of(tree, environ={"HTTPS_PROXY": "ftp://proxy:21"})
