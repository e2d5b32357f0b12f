"""The values in the messages of the control stream."""

from __future__ import annotations

import json

import pytest

from anyproxy.messages import (
    MAX_NETWORKS,
    format_ports,
    format_results,
    parse_ports,
    parse_results,
)
from anyproxy.options import MAX_OPEN_PORTS, OpenPort
from anyproxy.ports import PortResult
from mtt.errors import PeerError
from mtt.wire.agent import encode_message
from tests.anyproxy.forwarding import DNS, PORT, SSH

WEB = OpenPort(remote_port=0, local_host="2001:db8::1", local_port=80, proxy_protocol="v2")


def test_ports_survive_the_wire() -> None:
    value = json.loads(json.dumps(format_ports([SSH, DNS, WEB])))
    assert parse_ports(value) == (SSH, DNS, WEB)
    assert value[0] == PORT | {"port": 2222}
    assert value[1]["allow_from"] == ["10.0.0.0/8", "2001:db8::/32"]
    assert value[2]["proxy_protocol"] == "v2"


def test_results_survive_the_wire() -> None:
    results = [
        PortResult(SSH, "127.0.0.1:2222"),
        PortResult(DNS, error="in use"),
        PortResult(WEB, "127.0.0.1:40000", is_standby=True),
    ]
    value = json.loads(json.dumps(format_results(results)))
    assert value[0] == {
        "port": 2222, "protocol": "tcp", "ok": True, "address": "127.0.0.1:2222",
    }  # fmt: skip
    assert value[1] == {"port": 5353, "protocol": "udp", "ok": False, "error": "in use"}
    assert parse_results(value, [SSH, DNS, WEB]) == results


def test_results_of_all_ports_fit_in_a_message() -> None:
    port = OpenPort(remote_port=65535, local_host="127.0.0.1", local_port=1, protocol="udp")
    text = 'a "' + "\u0101" * 1000
    results = [PortResult(port, address=text, is_standby=True)] * (MAX_OPEN_PORTS // 2)
    results += [PortResult(port, error=text)] * (MAX_OPEN_PORTS // 2)
    encode_message({"ports": format_results(results)})


def test_results_of_an_earlier_message_are_ignored() -> None:
    value = format_results([PortResult(SSH, "127.0.0.1:2222")])
    assert parse_results(value, [DNS]) == []
    assert parse_results(value, []) == []


def test_hosts_become_canonical() -> None:
    (port,) = parse_ports([PORT | {"host": "::ffff:127.0.0.1"}])
    assert port.local_host == "127.0.0.1"


def test_unknown_keys_are_ignored() -> None:
    assert parse_ports([PORT | {"colour": ["blue"]}]) == parse_ports([PORT])


@pytest.mark.parametrize(
    "value",
    [
        None, {}, "x", [1], [[]], [{}],
        [PORT] * (MAX_OPEN_PORTS + 1),
        [PORT | {"port": "22"}], [PORT | {"port": True}], [PORT | {"port": 22.0}],
        [PORT | {"port": -1}], [PORT | {"port": 65536}], [PORT | {"target_port": 0}],
        [PORT | {"target_port": 10**4000}],
        [PORT | {"protocol": "TCP"}], [PORT | {"protocol": None}],
        [PORT | {"host": ""}], [PORT | {"host": "a b"}], [PORT | {"host": "x" * 256}],
        [PORT | {"host": "\ud800"}], [PORT | {"host": "a\nb"}], [PORT | {"host": "[a]"}],
        [PORT | {"proxy_protocol": "v3"}], [PORT | {"proxy_protocol": 1}],
        [PORT | {"allow_from": "10.0.0.0/8"}], [PORT | {"allow_from": [10]}],
        [PORT | {"allow_from": ["10.0.0.1/8"]}], [PORT | {"allow_from": ["anywhere"]}],
        [PORT | {"allow_from": ["10.0.0.0/8"] * (MAX_NETWORKS + 1)}],
    ],
)  # fmt: skip
def test_malformed_ports_are_errors(value: object) -> None:
    with pytest.raises(PeerError):
        parse_ports(value)


@pytest.mark.parametrize(
    "value",
    [None, [1], [{}], [{"port": 2222, "protocol": "tcp"}],
     [{"port": 2222, "protocol": "tcp", "ok": 1}],
     [{"port": 2222, "protocol": "tcp", "ok": True, "address": 7}]],
)  # fmt: skip
def test_malformed_results_are_errors(value: object) -> None:
    with pytest.raises(PeerError):
        parse_results(value, [SSH])
