"""Half-close of open TLS connections."""

from __future__ import annotations

import asyncio
import random
import ssl

import pytest

from tests.layers.tls_side import Peer, both_versions, stack
from tests.support.certs import Certs
from tests.support.stacks import End
from tests.support.transports import turns


@both_versions
async def test_half_close_with_data_the_other_way(version: ssl.TLSVersion, certs: Certs) -> None:
    up, down = random.Random(44).randbytes(500_000), random.Random(45).randbytes(500_000)
    for swap in (False, True):
        async with stack(version).open(certs, small=True) as ends:
            one, other = reversed(ends) if swap else ends
            task = asyncio.create_task(other.send(down))
            await one.recorder.received(50_000)
            await one.send(up)
            one.transport.write_eof()
            one.transport.write(b"late")
            await other.recorder.at_eof()
            assert other.recorder.data == up
            await task
            other.transport.write_eof()
            await one.recorder.at_eof()
            assert one.recorder.data == down
            await finish(one, other)


async def finish(one: End, other: End) -> None:
    one.close()
    other.close()
    assert await one.recorder.ended() is None
    assert await other.recorder.ended() is None


@both_versions
@pytest.mark.parametrize("ended", [False, True], ids=["open", "ended"])
async def test_write_eof_while_unread_data_wait(
    ended: bool, version: ssl.TLSVersion, certs: Certs
) -> None:
    data = random.Random(46).randbytes(60_000)
    async with Peer(certs, version) as one:
        one.layer.pause_reading()
        one.feed(one.say(data))
        if ended:
            one.feed(one.end())
        one.layer.write_eof()
        await turns()
        assert not one.recorder.data
        one.layer.resume_reading()
        await turns()
        assert one.recorder.data == data
        assert one.recorder.eof is ended
        if not ended:
            one.feed(one.say(b"more") + one.end())
            assert one.recorder.data == data + b"more"
            assert one.recorder.eof


@both_versions
async def test_write_eof_amid_a_record(version: ssl.TLSVersion, certs: Certs) -> None:
    async with Peer(certs, version) as one:
        record = one.say(b"z" * 10_000)
        one.feed(record[:5000])
        one.layer.write_eof()
        one.feed(record[5000:])
        assert one.recorder.data == b"z" * 10_000
        one.feed(one.say(b"more"))
        assert one.recorder.data[10_000:] == b"more"


@both_versions
async def test_write_eof_from_inside_data_received(version: ssl.TLSVersion, certs: Certs) -> None:
    data = random.Random(47).randbytes(250_000)
    async with Peer(certs, version) as one:
        one.recorder.on_data = lambda _piece: one.layer.write_eof()
        one.feed(one.say(data) + one.end())
        await turns()
        assert one.recorder.data == data
        assert one.recorder.eof


@both_versions
async def test_protocol_that_does_not_stay_ends_both_directions(
    version: ssl.TLSVersion, certs: Certs
) -> None:
    async with Peer(certs, version) as one:
        one.recorder.stay = False
        one.feed(one.say(b"last") + one.end())
        assert one.recorder.data == b"last"
        assert one.layer.is_closing()
        assert one.transport.eof_written
        assert one.heard() == b""
        one.layer.eof_received()
        one.transport.lose(None)
        assert await one.recorder.ended() is None


@both_versions
async def test_fin_after_close_notify_leaves_writing_open(
    version: ssl.TLSVersion, certs: Certs
) -> None:
    async with Peer(certs, version, half_close=False) as one:
        one.feed(one.say(b"all") + one.end())
        one.layer.eof_received()
        one.layer.eof_received()  # asyncio repeats it
        await turns()
        assert one.recorder.eof
        assert not one.recorder.lost
        one.layer.write(b"still writing")
        assert one.heard() == b"still writing"


@both_versions
async def test_fin_of_a_half_closed_foreign_peer_ends_both_directions(
    version: ssl.TLSVersion, certs: Certs
) -> None:
    """Without ALPN; stunnel, for instance, goes on reading after its close_notify."""
    async with Peer(certs, version, alpn=None) as one:
        one.feed(one.say(b"all") + one.end())
        assert one.recorder.eof
        assert one.layer.can_write_eof()
        one.layer.write(b"reply")
        one.layer.eof_received()
        assert one.layer.is_closing()
        one.layer.write(b"late")
        assert one.heard() == b"reply"
        with pytest.raises(ssl.SSLZeroReturnError):  # close_notify, after the peer's own
            one.ssl.read(1)
        assert await one.recorder.ended() is None


@both_versions
async def test_fin_before_all_data_is_delivered_is_a_failure(
    version: ssl.TLSVersion, certs: Certs
) -> None:
    async with Peer(certs, version, alpn=None) as one:
        one.feed(one.end())
        one.layer.write(b"reply")
        one.transport.buffered = 100  # not acknowledged
        one.layer.eof_received()
        assert one.layer.is_closing()
        assert isinstance(await one.recorder.ended(), ConnectionResetError)
        assert one.heard() == b"reply"
        assert not one.transport.aborted
