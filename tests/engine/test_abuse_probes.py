"""Strangers who are slow, leave at once or fail: they are cut, with little noise in the log."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from mtt.http import tls_detector
from mtt.http.limits import VISITORS
from mtt.http.server import HttpServer
from mtt.layers.tls import TlsLayer
from mtt.log import FAILURE_BURST
from tests.engine.siege import besieged, ended, shorten
from tests.support.certs import Certs
from tests.support.gopeer import SYN, smux_frame, tls_connect, upgrade_request
from tests.support.tunnels import (
    MODES,
    SOON,
    check_works,
    client_of,
    connect,
    echo,
    empty,
    eventually,
    in_every_mode,
    listening,
    logged,
    maybe_reset,
    port_of,
    server_at,
    serving,
)


async def test_failures_that_a_peer_repeats_do_not_flood_the_log(certs: Certs) -> None:
    async with listening() as there:
        nowhere = there.port
    count = 2 * FAILURE_BURST
    async with (
        asyncio.timeout(SOON),
        server_at("mux", nowhere, certs) as server,
        await tls_connect(port_of(server), certs) as stranger,
    ):
        with logged() as lines:
            await stranger.send(b"".join(smux_frame(SYN, 3 + 2 * n) for n in range(count)))
            await eventually(lambda: server.counters.dial_failures == count)
            assert len([line for line in lines if "connect" in line]) == FAILURE_BURST
            for _ in range(count):
                async with await tls_connect(port_of(server), certs) as other:
                    await other.send(b"no frame of mux")
                    await ended(other)
            broken = [line for line in lines if "smux" in line]
            assert len(broken) == FAILURE_BURST  # they have a count of their own


@pytest.mark.parametrize("mode", MODES)
async def test_unfinished_handshake_is_cut(
    mode: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(monkeypatch, TlsLayer, "handshake_time", 0.3)
    monkeypatch.setattr(tls_detector, "HANDSHAKE_TIME", 0.3)
    async with (
        besieged(mode, certs) as server,
        await connect(port_of(server)) as silent,
        await connect(port_of(server)) as slow,
    ):
        await slow.send(b"\x16\x03\x01\x02\x00\x01")
        assert await ended(silent) == b""
        await ended(slow)


async def test_request_head_sent_byte_by_byte_is_cut(
    certs: Certs, short_linger: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(monkeypatch, HttpServer, "limits", VISITORS._replace(head=0.4))
    with logged() as lines:
        async with (
            besieged("wss", certs) as server,
            await tls_connect(port_of(server), certs) as slow,
        ):
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(SOON):
                    for byte in upgrade_request(certs.name) * 100:
                        await slow.send(bytes([byte]))
                        await asyncio.sleep(0.02)
            assert await ended(slow) == b""
    assert sum("no complete HTTP request within 0.4 s" in line for line in lines) == 1


@in_every_mode
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_probes_that_connect_and_close_leave_no_noise(
    how: str, mode: str, certs: Certs
) -> None:
    with logged() as lines:
        async with besieged(mode, certs) as server:
            for _ in range(10):
                probe = await connect(port_of(server))
                probe.close() if how == "close" else probe.reset()
            await eventually(lambda: empty(server))
    assert not [line for line in lines if "INFO" not in line]


@in_every_mode
async def test_probes_of_a_plugin_do_not_reach_the_server(mode: str, certs: Certs) -> None:
    """Shadowsocks finds out by connecting and closing whether its plugin is up."""
    with logged() as lines:
        async with (
            serving(echo) as there,
            server_at(mode, there.port, certs) as server,
            serving(echo) as decoy,
            client_of(mode, decoy.port, certs, plugin=True) as client,
        ):
            for _ in range(5):
                (await connect(port_of(client))).close()
            async with await connect(port_of(client)) as silent:
                await client.close()
                with maybe_reset():
                    assert await silent.rest() == b""
            assert decoy.count == 0
            async with client_of(mode, port_of(server), certs, plugin=True) as client:
                await check_works(port_of(client))
    assert not [line for line in lines if "INFO" not in line]


@in_every_mode
async def test_failed_connection_logs_peer_and_cause_in_one_line(mode: str, certs: Certs) -> None:
    with logged() as lines:
        async with serving(echo) as there, server_at(mode, there.port, certs) as server:
            strange = dict(certs.__dict__, ca=certs.other_ca)
            async with (
                client_of(mode, port_of(server), Certs(**strange)) as client,
                await connect(port_of(client)) as application,
            ):
                await application.send(b"SECRET")
                with maybe_reset():
                    assert await application.rest() == b""
            await eventually(lambda: sum("WARNING" in line for line in lines) == 2)
    by_server, by_client = sorted(
        (line for line in lines if "WARNING" in line), key=lambda line: "not accepted" in line
    )
    assert "alert unknown ca" in by_server
    assert f"127.0.0.1:{port_of(server)}: " in by_client
    assert "certificate" in by_client
    assert not any("SECRET" in line for line in lines)
