from __future__ import annotations

import pytest

import mtt_client
import mtt_server
from mtt.options.flags import Values
from mtt.process.command import given_options

CLIENT, SERVER = mtt_client.COMMAND, mtt_server.COMMAND

ENVIRON = {
    "SS_REMOTE_HOST": "2001:db8::1|example.com",
    "SS_REMOTE_PORT": "443",
    "SS_LOCAL_HOST": "127.0.0.1",
    "SS_LOCAL_PORT": "1080",
}


def test_addresses_of_shadowsocks() -> None:
    assert given_options(CLIENT, [], ENVIRON) == (
        {"b": "127.0.0.1:1080", "s": "[2001:db8::1]|example.com:443"},
        CLIENT.plugin,
    )
    assert given_options(SERVER, [], ENVIRON) == (
        {"b": "[2001:db8::1]|example.com:443", "d": "127.0.0.1:1080"},
        SERVER.plugin,
    )


@pytest.mark.parametrize(
    ("argv", "string", "expected"),
    [
        (["--fast-open"], "", {"fast-open": True}),
        (["-V"], "wss", {"V": True, "wss": True}),
        (["-n", "line"], "n=string", {"n": "string"}),
        (["-n", "line"], "wss", {"n": "line", "wss": True}),
        (["-b", "line:1"], "", {"b": "line:1"}),
        (["-b", "line:1"], "b=string:2", {"b": "string:2"}),
        ([], "s=string:2", {"s": "string:2"}),
        ([], "__android_vpn", {"V": True}),
        (["-wss"], "wss=0", {"wss": False}),
    ],
)
def test_priority_of_the_sources(argv: list[str], string: str, expected: Values) -> None:
    values, plugin = given_options(CLIENT, argv, {**ENVIRON, "SS_PLUGIN_OPTIONS": string})
    addresses = {"b": "127.0.0.1:1080", "s": "[2001:db8::1]|example.com:443"}
    assert plugin is CLIENT.plugin
    assert values == addresses | expected


def test_bind_unix_replaces_the_address_of_shadowsocks() -> None:
    environ = {**ENVIRON, "SS_PLUGIN_OPTIONS": "bind-unix=/run/x"}
    assert given_options(SERVER, [], environ) == (
        {"bind-unix": "/run/x", "d": "127.0.0.1:1080"},
        SERVER.plugin,
    )
    # But not one that the user gave as well, which is an error later on.
    values, _ = given_options(SERVER, ["-b", ":1"], environ)
    assert values["b"] == ":1"
