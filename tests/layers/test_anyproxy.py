"""Sessions with the Go programs of AnyProxy: streams, their ends, the session's end."""

from __future__ import annotations

import pytest

from mtt.errors import DestinationError, NetworkError, PeerError, RefusedError
from mtt.layers import anyproxy, keepalive
from mtt.layers.parked import Parked, hand_over
from mtt.outcome import Outcome
from mtt.wire.agent import TCP, UDP, Head
from mtt.wire.anyproxy import (
    Close,
    Connect,
    ConnectResponse,
    Error,
    ForwardedPort,
    PortForward,
    PortForwardResponse,
    StreamData,
)
from tests.layers.anyproxy_side import HEAD, ID, GoSide
from tests.support.clock import Clock
from tests.support.transports import Recorder, turns

# The gateway.


async def test_stream_begins_when_the_agent_has_connected() -> None:
    gateway = GoSide(is_gateway=True)
    upper, stream = gateway.opening()
    assert gateway.said() == [Connect(stream.wire_id, "tcp", "nas.example:22")]
    assert upper.transport is None
    gateway.feed(ConnectResponse(stream.wire_id, True))
    assert upper.transport is stream
    gateway.feed(StreamData(stream.wire_id, b"SSH-2.0"), StreamData(stream.wire_id, b""))
    assert upper.data == b"SSH-2.0"
    stream.write(b"hello")
    assert gateway.said() == [StreamData(stream.wire_id, b"hello")]
    assert stream.half_closes() is False
    await gateway.over()
    assert upper.lost


async def test_address_of_ipv6_and_udp() -> None:
    gateway = GoSide(is_gateway=True)
    _, stream = gateway.opening(Head(UDP, "2001:db8::1", 53))
    assert gateway.said() == [Connect(stream.wire_id, "udp", "[2001:db8::1]:53")]
    await gateway.over()


async def test_failure_of_the_agent_is_an_outcome_and_is_closed() -> None:
    gateway = GoSide(is_gateway=True)
    upper, stream = gateway.opening()
    gateway.said()
    gateway.feed(ConnectResponse(stream.wire_id, False, "dial tcp: connection refused"))
    assert isinstance(upper.error, DestinationError)
    assert upper.error.outcome is Outcome.CONNECTION_REFUSED
    assert gateway.said() == [Close(stream.wire_id)]
    assert gateway.session.open_streams == 0
    gateway.feed(ConnectResponse(stream.wire_id, True), Close(stream.wire_id))
    assert gateway.said() == []
    await gateway.over()


async def test_data_before_the_answer_is_ignored() -> None:
    gateway = GoSide(is_gateway=True)
    upper, stream = gateway.opening()
    gateway.feed(StreamData(stream.wire_id, b"early"), ConnectResponse(stream.wire_id, True))
    gateway.feed(ConnectResponse(stream.wire_id, True), StreamData(stream.wire_id, b"x"))
    assert upper.data == b"x"
    await gateway.over()


async def test_close_before_the_answer_is_a_failure() -> None:
    gateway = GoSide(is_gateway=True)
    upper, stream = gateway.opening()
    gateway.feed(Close(stream.wire_id))
    assert isinstance(upper.error, DestinationError)
    await gateway.over()


async def test_user_who_leaves_early_is_closed() -> None:
    gateway = GoSide(is_gateway=True)
    upper, stream = gateway.opening()
    gateway.said()
    stream.abort()
    assert gateway.said() == [Close(stream.wire_id)]
    await turns()
    assert upper.lost
    gateway.feed(ConnectResponse(stream.wire_id, True))
    assert gateway.said() == []
    await gateway.over()


@pytest.mark.parametrize("end", ["close", "cut", "abort"])
async def test_each_end_of_a_stream_says_close_once(end: str) -> None:
    gateway = GoSide(is_gateway=True)
    upper, stream = gateway.opened()
    stream.write(b"last")
    getattr(stream, end)()
    stream.close()
    assert gateway.said() == [StreamData(stream.wire_id, b"last"), Close(stream.wire_id)]
    await turns()
    assert upper.lost
    gateway.feed(StreamData(stream.wire_id, b"late"), Close(stream.wire_id))
    assert gateway.said() == []
    assert not upper.data
    await gateway.over()


async def test_end_of_writing_is_the_end_of_both_directions() -> None:
    gateway = GoSide(is_gateway=True)
    upper, stream = gateway.opened()
    stream.write_eof()
    stream.write_eof()
    stream.write(b"late")
    assert gateway.said() == [Close(stream.wire_id)]
    gateway.feed(StreamData(stream.wire_id, b"on its way"), Close(stream.wire_id))
    assert upper.data == b"on its way"
    assert upper.eof
    stream.close()
    assert gateway.said() == []
    await gateway.over()


async def test_end_of_the_peer_comes_after_its_data() -> None:
    gateway = GoSide(is_gateway=True)
    upper, stream = gateway.opened()
    stream.pause_reading()
    gateway.feed(StreamData(stream.wire_id, b"one"), StreamData(stream.wire_id, b"two"))
    gateway.feed(Close(stream.wire_id))
    assert not upper.data
    assert not upper.eof
    stream.resume_reading()
    await turns()
    assert upper.data == b"onetwo"
    assert upper.eof
    stream.close()
    assert gateway.said() == [Close(stream.wire_id)]
    await gateway.over()


async def test_what_arrived_comes_before_the_loss_of_the_session() -> None:
    gateway = GoSide(is_gateway=True)
    upper, stream = gateway.opened()
    stream.pause_reading()
    gateway.feed(StreamData(stream.wire_id, b"begun"))
    gateway.lower.upper.connection_lost(ConnectionResetError())
    assert not upper.lost
    stream.resume_reading()
    await turns()
    assert upper.data == b"begun"
    assert isinstance(upper.error, NetworkError)
    assert len(gateway.lost) == 1
    with pytest.raises(NetworkError):
        gateway.opening()


async def test_closed_session_delivers_what_was_written() -> None:
    gateway = GoSide(is_gateway=True)
    upper, stream = gateway.opened()
    gateway.session.pause_writing()
    stream.write(b"waiting")
    gateway.session.close()
    assert gateway.said() == [StreamData(stream.wire_id, b"waiting")]
    await turns()
    assert upper.lost
    assert upper.error is None


async def test_messages_of_unknown_streams_are_ignored() -> None:
    for gateway in (GoSide(is_gateway=True), GoSide(is_gateway=False)):
        gateway.feed(StreamData(b"nobody", b"x"), Close(b"nobody"))
        if gateway.is_gateway:
            gateway.feed(ConnectResponse(b"nobody", True), Error("harmless here"))
        assert gateway.said() == []
        assert not gateway.lost
        await gateway.over()


@pytest.mark.parametrize("is_gateway", [True, False])
@pytest.mark.parametrize(
    "wire", [b"", b"\1", b"\2\3" + ID, b"\1\3" + ID[:-1], b"\1\x10" + ID[:-1], b"\1\6" + bytes(40)]
)
async def test_anything_unexpected_ends_the_session(is_gateway: bool, wire: bytes) -> None:
    side = GoSide(is_gateway=is_gateway)
    side.feed_bytes(wire)
    assert isinstance(side.lost[0], PeerError)
    side.feed_bytes(b"more")
    await turns()
    assert len(side.lost) == 1


@pytest.mark.parametrize("is_gateway", [True, False])
async def test_types_of_the_own_side_end_the_session(is_gateway: bool) -> None:
    own = Connect(ID, "tcp", "x:1") if is_gateway else ConnectResponse(ID, True)
    side = GoSide(is_gateway=is_gateway)
    side.feed(own)
    assert isinstance(side.lost[0], PeerError)
    await turns()


async def test_ports_are_asked_for_and_answered() -> None:
    asked, answers = [], []
    gateway = GoSide(is_gateway=True, on_ports=lambda *args: asked.append(args))
    client = GoSide(is_gateway=False, on_ports_answer=lambda *args: answers.append(args))
    ports = (ForwardedPort(80, 8080, "nas", "tcp"),)
    client.session.ask_ports("c1", ports)
    (request,) = client.said()
    gateway.feed(request)
    assert asked == [(gateway.session, PortForward("c1", ports))]
    gateway.session.answer_ports(PortForwardResponse(True))
    (answer,) = gateway.said()
    client.feed(answer)
    assert answers == [(client.session, PortForwardResponse(True))]
    await gateway.over()
    await client.over()
    gateway.session.answer_ports(PortForwardResponse(True))


async def test_ports_are_refused_without_a_callback() -> None:
    gateway = GoSide(is_gateway=True)
    gateway.feed(PortForward("c1", ()))
    (answer,) = gateway.said()
    assert isinstance(answer, PortForwardResponse)
    assert not answer.ok
    await gateway.over()


async def test_peer_that_answers_no_pings_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    gateway = GoSide(is_gateway=True)
    upper, _ = gateway.opened()
    assert gateway.session.is_healthy
    await clock.passes(anyproxy.STALE_TIME)
    assert not gateway.session.is_healthy
    await clock.passes(keepalive.DEAD_TIME + keepalive.CHECK_INTERVAL - anyproxy.STALE_TIME)
    assert isinstance(gateway.lost[0], NetworkError)
    assert upper.lost


# The agent.


async def test_stream_of_the_gateway_is_served_with_its_head() -> None:
    client = GoSide(is_gateway=False)
    client.feed(Connect(ID, "tcp", "[::1]:80"), StreamData(ID, b"at "), StreamData(ID, b"once"))
    stream, head, tell = client.served[0]
    assert head == Head(TCP, "::1", 80)
    assert isinstance(stream.get_protocol(), Parked)
    tell(Outcome.SUCCEEDED, ("::1", 80))
    tell(Outcome.GENERAL_FAILURE, None)
    assert client.said() == [ConnectResponse(ID, True)]
    upper = Recorder()
    hand_over(stream, upper)
    await turns()
    assert upper.data == b"at once"
    stream.write(b"reply")
    stream.close()
    assert client.said() == [StreamData(ID, b"reply"), Close(ID)]
    await client.over()


async def test_failure_is_told_once_and_without_close() -> None:
    client = GoSide(is_gateway=False)
    stream = client.accepted("127.0.0.1:1")
    stream.answer(Outcome.CONNECTION_REFUSED)
    stream.close()
    text = "dial tcp 127.0.0.1:1: connect: connection refused"
    assert client.said() == [ConnectResponse(ID, False, text)]
    client.feed(Close(ID))
    assert client.said() == []
    assert client.session.open_streams == 0
    await client.over()


@pytest.mark.parametrize("end", ["close", "cut", "abort"])
async def test_stream_that_ends_without_an_answer_gets_one(end: str) -> None:
    client = GoSide(is_gateway=False)
    getattr(client.accepted(), end)()
    (answer,) = client.said()
    assert isinstance(answer, ConnectResponse)
    assert not answer.ok
    await client.over()


@pytest.mark.parametrize(
    "network, address",
    [
        ("tcp4", "x:1"), ("unix", "/run/socket"), ("", "x:1"), ("TCP", "x:1"),
        ("tcp", ""), ("tcp", "x"), ("tcp", "::1"), ("udp", "x:http"), ("tcp", "x" * 300 + ":1"),
    ],
)  # fmt: skip
async def test_what_is_no_target_is_refused(network: str, address: str) -> None:
    client = GoSide(is_gateway=False)
    client.feed(Connect(ID, network, address))
    (answer,) = client.said()
    assert isinstance(answer, ConnectResponse)
    assert not answer.ok
    assert not client.served
    await client.over()


async def test_streams_beyond_the_limit_are_refused() -> None:
    client = GoSide(is_gateway=False, max_streams=2)
    client.feed(*(Connect(b"%d" % number, "tcp", "x:1") for number in range(3)))
    assert len(client.served) == 2
    (answer,) = client.said()
    assert isinstance(answer, ConnectResponse)
    assert (answer.id, answer.ok) == (b"2", False)
    await client.over()


async def test_second_connect_with_an_open_id_is_ignored() -> None:
    client = GoSide(is_gateway=False)
    client.accepted()
    client.accepted()
    assert len(client.served) == 1
    assert client.said() == []
    await client.over()


async def test_error_of_the_gateway_ends_the_session() -> None:
    client = GoSide(is_gateway=False)
    client.feed(Error("group ID and password cannot be empty"))
    assert isinstance(client.lost[0], RefusedError)
    assert "group ID and password cannot be empty" in str(client.lost[0])
    await turns()


async def test_datagrams_keep_their_boundaries() -> None:
    client = GoSide(is_gateway=False)
    client.feed(Connect(ID, "udp", "192.0.2.1:53"))
    client.feed(*(StreamData(ID, b"%d" % number) for number in range(3)), Close(ID))
    stream, head, tell = client.served[0]
    assert head == Head(UDP, "192.0.2.1", 53)
    tell(Outcome.SUCCEEDED, None)
    upper = Recorder()
    pieces: list[bytes] = []
    upper.on_data = pieces.append
    hand_over(stream, upper)
    await turns()
    assert pieces == [b"0", b"1", b"2"]
    assert upper.eof
    stream.write(b"")
    stream.write(b"answer")
    assert client.said() == [
        ConnectResponse(ID, True), StreamData(ID, b""), StreamData(ID, b"answer"),
    ]  # fmt: skip
    stream.close()
    assert client.said() == [Close(ID)]
    await client.over()


async def test_head_of_this_module_is_what_the_gateway_asks() -> None:
    client, gateway = GoSide(is_gateway=False), GoSide(is_gateway=True)
    gateway.opening(HEAD)
    client.feed(*gateway.said())
    assert client.served[0][1] == HEAD
    await client.over()
    await gateway.over()
