"""How open TLS connections end: close, cuts, damage, record edges."""

from __future__ import annotations

import random
import ssl

import pytest

from mtt.errors import NetworkError, PeerError
from mtt.layers import linger, tls
from tests.layers.tls_side import Peer, both_versions, stack
from tests.support.certs import Certs
from tests.support.transports import turns

CLOSE_NOTIFY_SEEN = b""


# Failures.


@both_versions
async def test_fin_without_close_notify_is_a_failure(version: ssl.TLSVersion, certs: Certs) -> None:
    async with Peer(certs, version) as one:
        one.feed(one.say(b"whole") + one.say(b"cut off")[:-1])
        one.layer.eof_received()
        error = await one.recorder.ended()
        assert isinstance(error, NetworkError)
        assert "close_notify" in str(error)
        assert one.recorder.data == b"whole"
        assert not one.recorder.eof
        assert one.transport.aborted


@both_versions
async def test_cut_is_reported_once_the_reader_resumes(
    version: ssl.TLSVersion, certs: Certs
) -> None:
    async with Peer(certs, version) as one:
        one.layer.pause_reading()
        one.feed(one.say(b"whole") + one.say(b"cut off")[:-1])
        one.layer.eof_received()
        await turns()
        assert not one.recorder.lost
        one.layer.resume_reading()
        assert isinstance(await one.recorder.ended(), NetworkError)
        assert one.recorder.data == b"whole"


@both_versions
async def test_cut_after_write_eof_is_a_failure(version: ssl.TLSVersion, certs: Certs) -> None:
    async with Peer(certs, version) as one:
        one.layer.write_eof()
        one.feed(one.say(b"half")[:-3])
        one.layer.eof_received()
        assert isinstance(await one.recorder.ended(), NetworkError)
        assert not one.recorder.eof


@both_versions
async def test_fin_of_a_half_closed_own_peer_is_a_reset(
    version: ssl.TLSVersion, certs: Certs
) -> None:
    async with stack(version).open(certs) as (client, server):
        client.transport.write(b"all")
        client.transport.write_eof()
        await server.recorder.at_eof()
        client.tcp.write_eof()
        assert isinstance(await server.recorder.ended(), ConnectionResetError)
        assert server.recorder.data == b"all"


@both_versions
async def test_foreign_peer_may_end_at_a_record_edge(version: ssl.TLSVersion, certs: Certs) -> None:
    async with Peer(certs, version, half_close=False) as one:
        record = one.say(b"whole")
        one.feed(record[:3])
        one.feed(record[3:7])
        one.feed(record[7:] + one.say(b", all of it"))
        one.layer.eof_received()
        one.layer.eof_received()
        await turns()
        assert one.recorder.data == b"whole, all of it"
        assert one.recorder.eof
        assert not one.recorder.lost
        one.layer.write(b"reply")
        assert one.heard() == b"reply"
        one.layer.close()


@both_versions
@pytest.mark.parametrize("missing", [1, 4, 5, 6, -1, -2, -4, -5])
async def test_foreign_peer_that_ends_inside_a_record_is_cut(
    missing: int, version: ssl.TLSVersion, certs: Certs
) -> None:
    async with Peer(certs, version, half_close=False) as one:
        one.feed(one.say(b"whole") + one.say(b"cut off")[:-missing])
        one.layer.eof_received()
        assert isinstance(await one.recorder.ended(), NetworkError)
        assert one.recorder.data == b"whole"
        assert not one.recorder.eof


@both_versions
async def test_go_server_that_skips_its_last_record_has_ended(
    version: ssl.TLSVersion, certs: Certs
) -> None:
    async with Peer(certs, version, half_close=False) as one:
        whole = one.say(b"whole")
        one.say(b"\x88\x02\x03\xe8")  # numbered, and never sent
        one.feed(whole + one.end())
        await turns()
        assert not (one.recorder.eof or one.recorder.lost)
        one.layer.eof_received()
        await turns()
        assert one.recorder.data == b"whole"
        assert one.recorder.eof
        assert not one.recorder.lost


@both_versions
@pytest.mark.parametrize("then", ["data", "nothing", "reset"])
async def test_damaged_alert_without_a_fin_is_a_failure(
    then: str, version: ssl.TLSVersion, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "DAMAGED_TIME", 3600.0 if then != "nothing" else 0.0)
    async with Peer(certs, version, half_close=False) as one:
        one.say(b"lost")
        one.feed(one.end())
        if then == "data":
            one.layer.data_received(b"x")
        elif then == "reset":
            one.transport.lose(ConnectionResetError())
        error = await one.recorder.ended()
        assert isinstance(error, ConnectionResetError if then == "reset" else PeerError)
        assert not one.recorder.eof


@both_versions
@pytest.mark.parametrize("size", [20, 1000])
async def test_other_damaged_records_are_a_failure_at_once(
    size: int, version: ssl.TLSVersion, certs: Certs
) -> None:
    async with Peer(certs, version, half_close=False) as one:
        one.say(b"lost")
        one.feed(one.say(bytes(size)))
        assert isinstance(await one.recorder.ended(), PeerError)


@both_versions
async def test_own_peer_that_ends_at_a_record_edge_is_cut(
    version: ssl.TLSVersion, certs: Certs
) -> None:
    async with stack(version).open(certs) as (client, server):
        client.transport.write(b"some")
        await server.recorder.received(4)
        client.tcp.write_eof()
        error = await server.recorder.ended()
        assert isinstance(error, NetworkError)
        assert "without TLS close_notify" in str(error)
        assert not server.recorder.eof


@both_versions
async def test_a_damaged_record_is_answered_with_an_alert(
    version: ssl.TLSVersion, certs: Certs
) -> None:
    async with Peer(certs, version) as one:
        record = bytearray(one.say(b"secret"))
        record[-1] ^= 1
        one.feed(bytes(record))
        error = await one.recorder.ended()
        assert isinstance(error, PeerError)
        assert "bad record mac" in str(error)
        assert not one.recorder.data
        with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
            one.heard()
        assert one.transport.aborted


@both_versions
async def test_noise_on_an_open_connection(version: ssl.TLSVersion, certs: Certs) -> None:
    rng = random.Random(48)
    for _ in range(25):
        async with Peer(certs, version) as one:
            one.feed(one.say(b"fine"))
            record = bytearray(one.say(rng.randbytes(200)))
            record[rng.randrange(5, len(record))] ^= 1 << rng.randrange(8)
            one.feed(bytes(record) + rng.randbytes(100))
            assert isinstance(await one.recorder.ended(), PeerError)
            assert one.recorder.data == b"fine"


@both_versions
async def test_a_reset_is_a_failure(version: ssl.TLSVersion, certs: Certs) -> None:
    async with stack(version).open(certs) as (client, server):
        linger.reset_on_close(client.tcp.get_extra_info("socket"))
        client.tcp.abort()
        assert isinstance(await server.recorder.ended(), ConnectionResetError)
        assert isinstance(await client.recorder.ended(), NetworkError)
        assert not server.recorder.eof


@both_versions
async def test_close_sends_close_notify(version: ssl.TLSVersion, certs: Certs) -> None:
    async with Peer(certs, version) as one:
        one.layer.write(b"last words")
        one.layer.close()
        assert one.transport.eof_written
        assert one.heard() == b"last words"
        assert one.ssl.read(1) == CLOSE_NOTIFY_SEEN


# What is under way when the end comes.


@both_versions
@pytest.mark.parametrize("how", ["close", "abort"])
async def test_close_or_abort_while_reading_is_paused(
    how: str, version: ssl.TLSVersion, certs: Certs
) -> None:
    async with Peer(certs, version) as one:
        one.layer.pause_reading()
        one.feed(one.say(b"unread"))
        getattr(one.layer, how)()
        if how == "close":
            # What comes is discarded from now on, and the peer's end is seen.
            assert one.transport.reading
            assert one.transport.eof_written
            assert one.heard() == b""
            one.transport.lose(None)
        one.layer.resume_reading()
        await one.recorder.ended()
        await turns()
        assert one.recorder.data == b""
        assert not one.recorder.eof


@both_versions
@pytest.mark.parametrize("how", ["close", "abort", "lost"])
async def test_nothing_is_delivered_after_an_end(
    how: str, version: ssl.TLSVersion, certs: Certs
) -> None:
    async with Peer(certs, version) as one:
        one.layer.pause_reading()
        one.feed(one.say(b"too late") + one.end())
        one.layer.resume_reading()  # hands it up in the next turn
        if how == "lost":
            one.transport.closing = True
            one.layer.connection_lost(None)
        else:
            getattr(one.layer, how)()
        await turns()
        assert one.recorder.data == b""
        assert not one.recorder.eof


@both_versions
async def test_pausing_again_keeps_pending_data(version: ssl.TLSVersion, certs: Certs) -> None:
    async with Peer(certs, version) as one:
        one.layer.pause_reading()
        one.feed(one.say(b"data") + one.end())
        one.layer.resume_reading()
        one.layer.pause_reading()
        await turns()
        assert one.recorder.data == b""
        one.layer.resume_reading()
        await turns()
        assert one.recorder.data == b"data"
        assert one.recorder.eof


@both_versions
@pytest.mark.parametrize("waiting", [0, 1000])
async def test_close_after_the_fin_of_tcp_waits_for_nothing(
    waiting: int, version: ssl.TLSVersion, certs: Certs
) -> None:
    async with Peer(certs, version, half_close=False, alpn=None) as one:
        one.feed(one.say(b"all") + one.end())
        one.layer.eof_received()
        one.layer.write(b"reply")
        one.transport.buffered = waiting
        one.layer.close()
        assert one.heard() == b"reply"
        with pytest.raises(ssl.SSLZeroReturnError):  # close_notify, after the peer's own
            one.ssl.read(1)
        # The peer has ended both of its layers: nothing is left to wait for.
        assert one.transport.closing
        assert not one.transport.aborted
        assert await one.recorder.ended() is None
