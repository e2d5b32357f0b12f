"""The control stream: its messages, and what a peer may not do on it."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from typing import Any

import pytest

from anyproxy import control
from anyproxy.control import AgentControl, GatewayControl, PortReports
from anyproxy.forwarded import Means
from anyproxy.messages import format_ports, format_results
from anyproxy.options import DEFAULT_GROUP, MAX_OPEN_PORTS, OpenPort
from anyproxy.ports import PortResult, Ports
from mtt.errors import MttError, PeerError
from mtt.layers.smux import SmuxSession
from mtt.observe.metrics import Counters
from mtt.outbound.agent import OwnAgentSession
from mtt.outbound.groups import Agent, Groups
from mtt.tunnels.open_tunnels import OpenTunnels
from mtt.wire.agent import encode_message
from mtt.wire.smux import FIN, PSH, SYN, Decoder, frame
from tests.anyproxy.forwarding import DNS, PORT, SSH
from tests.support.clock import Clock
from tests.support.transports import FakeLayer, turns
from tests.support.tunnels import logged


class Gateway:
    """The gateway's end of a session; the test is the agent."""

    def __init__(self) -> None:
        self.groups = Groups()
        tunnels = OpenTunnels(Counters(), timeout=300)
        means = Means(self.groups.open, lambda _: DEFAULT_GROUP, tunnels, tunnels.counters, 300)
        self.ports = Ports(means)
        self.control = GatewayControl("home", self.groups, self.ports)
        self.session = SmuxSession(
            accept=self.control.accept,
            first_id=2,
            on_change=lambda _: self.groups.stream_ended(self.agent),
            on_lost=self._lost,
        )
        own = OwnAgentSession(self.session)
        self.agent = Agent("agent-r0", "192.0.2.7:1", own, 0.0)
        self.control.attach(self.agent, own)
        self.lower = FakeLayer(self.session, half_close=True)
        self.session.connection_made(self.lower)
        self.groups.join("home", self.agent)
        self.receive(frame(SYN, 3))

    def _lost(self, _: SmuxSession, error: Exception | None) -> None:
        self.groups.leave("home", self.agent)
        self.ports.release(self.agent)

    def receive(self, data: bytes) -> None:
        self.session.data_received(data)

    def say(self, message: object) -> None:
        text = json.dumps(message).encode()
        self.receive(frame(PSH, 3, len(text).to_bytes(2, "big") + text))

    def answers(self) -> list[Any]:
        """The messages that the gateway has sent."""
        data = b"".join(
            bytes(payload)
            for command, number, payload in Decoder().feed(self.lower.take())
            if (command, number) == (PSH, 3)
        )
        return messages_in(data)

    @property
    def error(self) -> str:
        assert self.session.lost
        assert isinstance(self.session.error, PeerError)
        return str(self.session.error)

    async def over(self) -> None:
        self.session.abort()
        self.ports.close()
        await turns()


def messages_in(data: bytes) -> list[Any]:
    found = []
    while data:
        end = 2 + int.from_bytes(data[:2], "big")
        found.append(json.loads(data[2:end]))
        data = data[end:]
    return found


# The gateway's end.


async def test_gateway_answers() -> None:
    gateway = Gateway()
    gateway.say({"ports": [PORT], "colour": "blue"})
    ((answer,),) = [message["ports"] for message in gateway.answers()]
    (port,) = gateway.ports
    assert answer == {
        "port": 0, "protocol": "tcp", "ok": True, "address": port.addresses[0],
    }  # fmt: skip
    assert not gateway.session.lost
    await gateway.over()


async def test_message_in_pieces() -> None:
    gateway = Gateway()
    for byte in encode_message({"ports": [PORT]}):
        gateway.receive(frame(PSH, 3, bytes((byte,))))
    assert len(gateway.answers()) == 1
    await gateway.over()


async def test_messages_of_later_versions_are_ignored() -> None:
    gateway = Gateway()
    gateway.say({"colour": "blue"})
    gateway.say({})
    assert gateway.answers() == []
    assert not gateway.session.lost
    await gateway.over()


@pytest.mark.parametrize(
    "said",
    [b"\0\0", b"\0\x02[]", b"\0\x01{", b"\0\x03\xff\xfe\x00", b"\0\x0anot JSON..",
     b"\xff\xff" + b"[" * 65535, b"\x20\0" + b"9" * 8192,
     encode_message({"ports": {}}), encode_message({"drain": 1})],
)  # fmt: skip
async def test_malformed_message_ends_the_session(said: bytes) -> None:
    gateway = Gateway()
    for at in range(0, len(said), 60000):
        gateway.receive(frame(PSH, 3, said[at : at + 60000]))
    assert gateway.error.startswith("control stream: ")
    assert gateway.lower.aborted
    await gateway.over()


async def test_second_stream_ends_the_session() -> None:
    gateway = Gateway()
    gateway.receive(frame(SYN, 5) + frame(SYN, 7) + frame(PSH, 5, b"x"))
    assert gateway.error == "the agent opens streams besides its control stream"
    await gateway.over()


async def test_flood_of_messages_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    gateway = Gateway()
    for _ in range(control.MAX_MESSAGES):
        gateway.say({"ports": []})
    await clock.passes(control.PERIOD)
    for _ in range(control.MAX_MESSAGES):
        gateway.say({"ports": []})
    assert not gateway.session.lost
    gateway.say({"ports": []})
    assert "more than 20 messages in 60 s" in gateway.error
    await gateway.over()


async def test_answers_to_an_agent_that_reads_nothing_do_not_pile_up() -> None:
    gateway = Gateway()
    gateway.session.pause_writing()
    for _ in range(10):
        gateway.say({"ports": [PORT]})
    assert gateway.answers() == []
    gateway.session.resume_writing()
    assert len(gateway.answers()) == 1
    await gateway.over()


async def test_leaving_agent_without_streams_is_closed_at_once() -> None:
    gateway = Gateway()
    gateway.say({"ports": [PORT]})
    gateway.say({"drain": False})
    assert not gateway.session.lost
    # All in one read; nothing of it is handled after the end.
    data = encode_message({"drain": True}) * 2 + encode_message({"ports": [PORT]})
    gateway.receive(frame(PSH, 3, data) + frame(FIN, 3))
    assert gateway.session.lost
    assert gateway.session.error is None
    assert gateway.groups.get("home") is None
    await gateway.over()


async def test_control_stream_is_no_users_stream() -> None:
    gateway = Gateway()
    assert gateway.session.open_streams == 1
    assert gateway.agent.session.open_streams == 0
    gateway.receive(frame(FIN, 3))
    assert gateway.session.open_streams == 0
    assert gateway.agent.session.open_streams == 0
    await gateway.over()


# The agent's end.


class AgentEnd:
    """The agent's end of a session; the test is the gateway."""

    def __init__(self, *ports: OpenPort) -> None:
        self.reports: list[list[PortResult]] = []
        self.session = SmuxSession(first_id=3)
        self.lower = FakeLayer(self.session, half_close=True)
        self.session.connection_made(self.lower)
        self.control = AgentControl(self.session, lambda found: self.reports.append(list(found)))
        self.session.open_stream(self.control)
        self.control.announce(ports)

    async def sent(self) -> list[Any]:
        await turns()
        frames = Decoder().feed(self.lower.take())
        return messages_in(b"".join(bytes(data) for kind, _, data in frames if kind == PSH))

    def say(self, *results: PortResult) -> None:
        message = encode_message({"ports": format_results(results)})
        self.session.data_received(frame(PSH, 3, message))

    async def over(self) -> None:
        self.session.abort()
        await turns()


async def test_agent_announces_its_ports_first() -> None:
    agent = AgentEnd(SSH)
    await turns()
    first, second = Decoder().feed(agent.lower.take())
    assert first[:2] == (SYN, 3)
    assert messages_in(bytes(second[2])) == [{"ports": format_ports([SSH])}]
    await agent.over()


async def test_agent_without_ports_opens_the_stream_only() -> None:
    agent = AgentEnd()
    await turns()
    assert [event[:2] for event in Decoder().feed(agent.lower.take())] == [(SYN, 3)]
    await agent.over()


async def test_agent_asks_again_for_ports_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    agent = AgentEnd(SSH, DNS)
    assert len(await agent.sent()) == 1
    agent.say(PortResult(SSH, "127.0.0.1:2222"), PortResult(DNS, error="in use"))
    await clock.passes(control.RETRY_TIME - 1)
    assert await agent.sent() == []
    await clock.passes(1)
    assert await agent.sent() == [{"ports": format_ports([SSH, DNS])}]
    agent.say(PortResult(SSH, "127.0.0.1:2222"), PortResult(DNS, "127.0.0.1:5353"))
    await clock.passes(10 * control.RETRY_TIME)
    assert await agent.sent() == []
    assert [[result.error for result in results] for results in agent.reports] == [
        ["", "in use"], ["", ""],
    ]  # fmt: skip
    await agent.over()


async def test_agent_gives_up_its_last_port() -> None:
    agent = AgentEnd(SSH)
    await agent.sent()
    agent.control.announce(())
    assert await agent.sent() == [{"ports": []}]
    await agent.over()


async def test_ports_that_do_not_fit_in_a_message_are_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    networks = tuple(ipaddress.ip_network(f"2001:db8:{n:x}::/48") for n in range(64))
    port = OpenPort(remote_port=0, local_host="a", local_port=1, allow_from=networks)
    agent = AgentEnd(*[port] * 64)
    assert await agent.sent() == []
    assert "open_ports: the gateway cannot be told" in caplog.text
    await agent.over()


async def test_agent_that_leaves_says_so_and_waits_for_the_gateway(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    agent = AgentEnd(SSH)
    await agent.sent()
    agent.control.drain()
    frames = Decoder().feed(agent.lower.take())
    assert [event[0] for event in frames] == [PSH, FIN]
    assert messages_in(bytes(frames[0][2])) == [{"drain": True}]
    assert agent.session.open_streams == 1
    agent.control.announce([DNS])  # a change comes too late
    assert not agent.lower.take()
    await clock.passes(control.LEAVE_TIME)
    assert agent.session.open_streams == 0
    await agent.over()


async def test_gateway_that_ends_the_stream_ends_it_for_the_agent() -> None:
    agent = AgentEnd(SSH)
    agent.session.data_received(frame(FIN, 3))
    assert agent.session.open_streams == 0
    assert not agent.session.lost
    agent.control.announce((DNS,))
    agent.control.drain()
    await agent.over()


async def test_malformed_answer_ends_the_session() -> None:
    agent = AgentEnd(SSH)
    agent.session.data_received(frame(PSH, 3, encode_message({"ports": 1})))
    assert isinstance(agent.session.error, MttError)
    await agent.over()


async def test_end_follows_what_waited_for_the_peer() -> None:
    agent = AgentEnd()
    await agent.sent()
    agent.session.pause_writing()
    agent.control.drain()
    await asyncio.sleep(0)
    assert await agent.sent() == []
    agent.session.resume_writing()
    assert [event[0] for event in Decoder().feed(agent.lower.take())] == [PSH, FIN]
    await agent.over()




def test_endless_port_reports_do_not_flood_the_log() -> None:
    reports = PortReports()
    with logged() as lines:
        for number in range(1000):
            reports.report("gateway", [PortResult(SSH, f"127.0.0.1:{number}")])
    assert len(lines) == MAX_OPEN_PORTS
