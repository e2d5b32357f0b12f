"""WebSocket clients that are neither ours nor the original's."""

from __future__ import annotations

import pytest

from tests.support.certs import Certs
from tests.support.gopeer import ws_connect
from tests.support.tunnels import echo, logged, port_of, server_at, serving

# What v2ray-plugin's client sends first with its mux, as recorded.
V2RAY_PLUGIN = bytes.fromhex("000c00010101010000017f000001000d") + b"hello world 0"


@pytest.mark.parametrize(
    ("first", "protocol", "named"),
    [
        (V2RAY_PLUGIN, "", True),
        (V2RAY_PLUGIN[:13], "", False),  # in two pieces, as v2ray-plugin does not send it
        (b"hello", "", False),
        (V2RAY_PLUGIN, "smux_off", False),  # a client of the original
    ],
)
async def test_v2ray_plugin_with_mux_is_named_in_the_log(
    first: bytes, protocol: str, named: bool, certs: Certs
) -> None:
    """Its bytes are passed on all the same."""
    with logged() as lines:
        async with serving(echo) as listening, server_at("wss", listening.port, certs) as server:
            for _ in range(3):
                client = await ws_connect(port_of(server), certs, protocol)
                for data in (first, V2RAY_PLUGIN):
                    await client.check_echo(data)
                client.close()
    warnings = [line for line in lines if "v2ray-plugin" in line]
    assert len(warnings) == named
    assert all("set mux=0 in the client's plugin options" in line for line in warnings)
