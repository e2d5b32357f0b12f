"""Tunnels with -udp in a configuration file that changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtt.configured.tunnels import Tunnels
from mtt.server import Server
from tests.support.certs import Certs
from tests.support.configured import File, port_of_tunnel, running, trusting
from tests.support.tunnels import (
    check_works,
    echo,
    eventually,
    port_of,
    server_at,
    serving,
)
from tests.udp.peers import Udp, answering


async def test_datagrams_go_on_when_a_tunnel_changes(certs: Certs, tmp_path: Path) -> None:
    async with serving(echo) as there:
        with answering(port=there.port):
            async with server_at("tls", there.port, certs, udp=True) as server:
                file = File(tmp_path, described(certs, server), "mtt-client")
                async with running(file) as tunnels:
                    await check_changes(file, tunnels, certs, server)


def described(certs: Certs, server: Server, **options: Any) -> dict[str, Any]:
    tunnel = {"name": "one", "b": "127.0.0.1:0", "s": f"127.0.0.1:{port_of(server)}", "udp": True}
    return trusting(certs) | {"tunnel": [tunnel | options]}


async def check_changes(file: File, tunnels: Tunnels, certs: Certs, server: Server) -> None:
    async def change(**options: Any) -> None:
        before = tunnels.running
        file.write(described(certs, server, **options))
        tunnels.reload()
        await eventually(lambda: tunnels.running != before)
        assert port_of_tunnel(tunnels, "one") == port
        await check_works(port)

    port = port_of_tunnel(tunnels, "one")
    with Udp(port) as application:
        await application.check_echo(b"before")
        await change(timeout="1m")
        await application.check_echo(b"after")
        await change(udp=False)
        (only,) = tunnels.running
        assert only.service._listener is not None
        assert not only.service._listener._udp
        await change(udp=True)
        await application.check_echo(b"again")
