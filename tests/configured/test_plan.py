"""The plan of a configuration file, checked as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mtt_client
from mtt.address import Endpoint
from mtt.configured.plan import Plan, plan
from mtt.errors import UsageError
from mtt.options.tunnel import CLIENT_FLAGS
from mtt.options.tunnel_file import with_tunnels
from mtt.process.command import Prepared, Start
from mtt.process.systemd import Inherited
from tests.options.test_tunnel_file import write


def planned(folder: Path, *tunnels: dict[str, Any], start: Start = Start(), **top: Any) -> Plan:  # noqa: B008
    content = {"s": "example.com:443"} | top
    if tunnels:
        content["tunnel"] = list(tunnels)
    path = write(folder, content)
    values = with_tunnels(CLIENT_FLAGS, {"config": path}, {})
    return plan(values, start, mtt_client.prepare)


def error(folder: Path, *tunnels: dict[str, Any], **others: Any) -> str:
    with pytest.raises(UsageError) as caught:
        planned(folder, *tunnels, **others)
    text = str(caught.value)
    start = f"-config: {folder}/t.json: "
    assert text.startswith(start)
    return text.removeprefix(start)


def names(plan: Plan) -> list[str]:
    return [each.name for each in plan.tunnels]


def test_tunnels_without_a_name_have_their_address(tmp_path: Path) -> None:
    found = planned(
        tmp_path,
        {"name": "home", "b": "127.0.0.1:1"},
        {"b": "[::1]:2"},
        {"b": "127.0.0.1:0"},
        {"b": "127.0.0.1:0"},
    )
    assert names(found) == ["home", "[::1]:2", "127.0.0.1:0", "127.0.0.1:0 (2)"]


def test_what_tunnels_share(tmp_path: Path) -> None:
    top: dict[str, Any] = {"metrics": "9100", "max-conns": 5, "workers": 2, "grace": "3s"}
    found = planned(tmp_path, {"b": ":1", "max-conns": 4}, **top)
    assert found.metrics == (Endpoint(("127.0.0.1",), 9100), "")
    assert found.max_conns == 3
    assert (found.process.workers, found.process.grace) == (2, 3.0)
    (tunnel,) = found.tunnels
    assert tunnel.prepared.options.max_conns == 2
    assert tunnel.prepared.options.metrics is None


def test_errors_of_options_name_the_tunnel(tmp_path: Path) -> None:
    text = error(tmp_path, {"b": ":1"}, {"name": "home", "b": ":2", "wss-path": "/x"})
    assert text == (
        'tunnel[1] "home": -wss-path: only meaningful with -wss; add -wss or remove it'
    )
    assert error(tmp_path, b=":1", **{"mux-warm": -1}).startswith("-mux-warm: ")
    assert error(tmp_path, b=":1", metrics="abc") == (
        "-metrics: 'abc' has no port; write it like abc:9100"
    )
    assert error(tmp_path, b=":1", grace="-1s").startswith("-grace: -1s is negative")
    assert error(tmp_path, b=":1", **{"max-conns": -1}) == "-max-conns: -1 is less than 0"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("127.0.0.1:1", "127.0.0.1:1"),
        (":1", "127.0.0.1:1"),
        ("[::]:1", ":1"),
        ("[::]:1", "0.0.0.0:1"),
        ("0.0.0.0:1", "127.0.0.1:1"),
        ("localhost:1", "LOCALHOST:1"),
        ("10.0.0.1|127.0.0.1:1", "127.0.0.1:1"),
        ("[::ffff:127.0.0.1]:1", "127.0.0.1:1"),
    ],
)
def test_two_tunnels_on_one_address(tmp_path: Path, one: str, other: str) -> None:
    text = error(tmp_path, {"name": "a", "b": one}, {"b": other})
    assert text.startswith('tunnel[0] "a" and tunnel[1] listen on one address, ')
    assert text.endswith("; change one")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("127.0.0.1:1", "127.0.0.1:2"),
        ("127.0.0.1:1", "127.0.0.2:1"),
        ("0.0.0.0:1", "[::1]:1"),
        ("localhost:1", "127.0.0.1:1"),  # depends on the resolver
    ],
)
def test_two_addresses(tmp_path: Path, one: str, other: str) -> None:
    assert len(planned(tmp_path, {"b": one}, {"b": other}).tunnels) == 2


def test_a_tunnel_on_the_address_of_metrics(tmp_path: Path) -> None:
    text = error(tmp_path, {"b": ":9100"}, metrics="9100")
    assert text == (
        "metrics and tunnel[0] listen on one address, :9100 (there as 127.0.0.1:9100); change one"
    )


def test_what_only_one_tunnel_can_use(tmp_path: Path) -> None:
    def prepare(values: dict[str, Any], start: Start) -> Prepared:
        return mtt_client.prepare(values, start)._replace(alone=("the database /x",))

    path = write(tmp_path, {"s": "a:1", "tunnel": [{"b": ":1"}, {"b": ":2"}]})
    values = with_tunnels(CLIENT_FLAGS, {"config": path}, {})
    with pytest.raises(UsageError, match="both use the database /x; change one"):
        plan(values, Start(), prepare)


def test_a_plugin_has_one_tunnel(tmp_path: Path) -> None:
    start = Start(plugin=True)
    text = error(tmp_path, {"b": ":1"}, start=start)
    assert text == "a plugin has one tunnel; remove [[tunnel]]"
    assert planned(tmp_path, start=start, b=":1").tunnels[0].prepared.options.bind is not None


def test_inherited_sockets_go_to_tunnels_by_name(tmp_path: Path) -> None:
    start = Start(sockets=(Inherited(3, "b"), Inherited(4, "a"), Inherited(5, "b")))
    found = planned(tmp_path, {"name": "a"}, {"name": "b"}, {"b": ":1"}, start=start)
    assert [each.prepared.options.sockets for each in found.tunnels] == [(4,), (3, 5), ()]
    assert [each.prepared.options.sockets for each in planned(tmp_path, start=start).tunnels] == [
        (3, 4, 5)
    ]
    with pytest.raises(UsageError, match="descriptor 3: no tunnel has the name 'b'; write"):
        planned(tmp_path, {"name": "a"}, {"b": ":1"}, start=start)
