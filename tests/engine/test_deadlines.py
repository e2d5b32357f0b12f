"""Nothing waits for ever: what both ends give others to connect, to answer and to speak.

Those of single layers are tested with them: TLS handshakes, heads of requests, keep-alive, closing.
"""

from __future__ import annotations

import sys
import time

import pytest

from mtt import client as client_module
from mtt.outbound import connector
from mtt.tunnels import server as server_module
from tests.support.certs import Certs
from tests.support.faults import drop_packets
from tests.support.tunnels import (
    SOON,
    both_ends,
    client_of,
    connect,
    empty,
    eventually,
    in_every_go_mode,
    in_every_mode,
    listening,
    logged,
    port_of,
    server_at,
)

# Seconds, instead of ten.
SHORT = 0.3

needs_packet_filter = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux can drop packets for one socket"
)


async def fails(port: int) -> float:
    """An application that gets no tunnel and is told so; after how many seconds."""
    begin = time.monotonic()
    async with await connect(port) as application:
        with pytest.raises(ConnectionResetError):
            await application.rest()
    return time.monotonic() - begin


@needs_packet_filter
async def test_dial_of_a_silent_server_times_out(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "CONNECT_TIME", SHORT)
    async with listening() as gone:
        drop_packets(gone.sock)
        where = f"127.0.0.1:{gone.port}"
        with logged() as lines:
            async with client_of("tls", gone.port, certs) as client:
                assert SHORT <= await fails(port_of(client)) < SHORT + SOON
                await eventually(lambda: empty(client))
    (line,) = (line for line in lines if "WARNING" in line)
    assert line.endswith(f"cannot connect to {where}: no answer within {SHORT:g} s")


@in_every_go_mode
async def test_handshake_with_a_silent_server_times_out(
    mode: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connector, "DIAL_TIME", SHORT)
    async with listening() as mute:
        with logged() as lines:
            async with client_of(mode, mute.port, certs) as client:
                assert SHORT <= await fails(port_of(client)) < SHORT + SOON
                await eventually(lambda: empty(client))
    assert any(f"no tunnel after {SHORT:g} s: connected, but no answer" in line for line in lines)


async def test_unanswered_upgrade_times_out(certs: Certs, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that speaks TLS but no HTTP: it waits for what the destination says to our request."""
    monkeypatch.setattr(connector, "DIAL_TIME", SHORT)
    async with (
        listening() as mute,
        server_at("tls", mute.port, certs) as server,
        client_of("wss", port_of(server), certs) as client,
    ):
        with logged() as lines:
            assert SHORT <= await fails(port_of(client)) < SHORT + SOON
            await eventually(lambda: empty(client))
    assert any(f"no tunnel after {SHORT:g} s: connected, but no answer" in line for line in lines)


@needs_packet_filter
@in_every_go_mode
async def test_dial_of_a_silent_destination_times_out(
    mode: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "DESTINATION_TIME", SHORT)
    async with listening() as gone:
        drop_packets(gone.sock)
        async with both_ends(mode, gone.port, certs) as (_, client):
            with logged() as lines:
                assert SHORT <= await fails(port_of(client)) < SHORT + SOON
                await eventually(lambda: empty(client))
            assert any(f"{gone.port}: no answer within {SHORT:g} s" in line for line in lines)


@in_every_mode
async def test_plugin_waits_for_the_first_byte_within_a_limit(mode: str, certs: Certs) -> None:
    """The destination may be the one to begin."""
    async with (
        listening() as there,
        server_at(mode, there.port, certs) as server,
        client_of(mode, port_of(server), certs, plugin=True) as client,
    ):
        begin = time.monotonic()
        async with (
            await connect(port_of(client)) as application,
            await there.accept() as destination,
        ):
            assert time.monotonic() - begin >= client_module.FIRST_BYTE_TIME
            await destination.send(b"banner")
            assert await application.exactly(6) == b"banner"
