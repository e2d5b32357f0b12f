"""The agent's own stream, on which agent and gateway send each other messages.

    agent      {"ports": [...]}    ports to forward, all of them; again after a change, or to retry
               {"drain": true}     the agent leaves: no new streams. The end of the stream follows
    gateway    {"ports": [...]}    what became of them, in the same order; again after a change

See `mtt.wire.agent` for messages, and `messages` for their values. Unknown keys are ignored; a
malformed message ends the session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from logging import INFO, WARNING
from typing import Any

from anyproxy.messages import (
    Message,
    format_ports,
    format_results,
    item,
    parse_ports,
    parse_results,
)
from anyproxy.options import MAX_OPEN_PORTS, OpenPort
from anyproxy.ports import PortResult, Ports
from mtt.address import host_port
from mtt.errors import PeerError
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.smux import SmuxSession
from mtt.log import Throttle, logger
from mtt.outbound.agent import OwnAgentSession
from mtt.outbound.groups import Agent, Groups
from mtt.wire.agent import encode_message, parse_message

# Messages that an agent may send within PERIOD seconds. It sends one per RETRY_TIME, and one
# for each change of its configuration.
MAX_MESSAGES = 20
PERIOD = 60.0
# Seconds until an agent asks again for ports that the gateway did not open: another agent may hold
# them, for `forwarded.HOLD_TIME` at least.
RETRY_TIME = 30.0
# Seconds for a gateway to end the stream of an agent that leaves.
LEAVE_TIME = 3.0


class Control(StreamProtocol):
    """Either end."""

    def __init__(self) -> None:
        self._transport: StreamTransport | None = None  # None before and after
        self._buffer = bytearray()  # an incomplete message
        self._is_paused = False
        self._held: dict[str, bytes] = {}  # messages by key, while paused: the newest of each
        self._is_ending = False

    def received(self, message: Message) -> None:
        """Handle a message. Raises PeerError if it is malformed."""
        raise NotImplementedError

    def fail(self, error: PeerError) -> None:
        """Cut the session."""
        raise NotImplementedError

    def send(self, key: str, value: Any) -> None:
        """Send a message. Raises ValueError if it is too long."""
        message = encode_message({key: value})
        if self._is_paused:  # a peer that reads nothing must not fill the memory
            self._held[key] = message
        elif self._transport is not None:
            self._transport.write(message)

    def end(self) -> None:
        """End this direction, after what was sent."""
        self._is_ending = True
        if self._transport is not None and not self._is_paused:
            self._transport.write_eof()

    def close(self) -> None:
        """End the stream."""
        if self._transport is not None:
            self._transport.close()

    # The protocol of the stream.

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: Data) -> None:
        self._buffer += data
        try:
            while self._transport is not None:
                found = parse_message(self._buffer)
                if found is None:
                    break
                message, end = found
                del self._buffer[:end]
                self.received(message)
        except PeerError as error:
            self.fail(PeerError(f"control stream: {error}"))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        held, self._held = self._held, {}
        if self._transport is not None:
            if held:
                self._transport.write(b"".join(held.values()))
            if self._is_ending:
                self._transport.write_eof()


class GatewayControl(Control):
    """The gateway's end; `attach` it before the session begins."""

    _agent: Agent
    _session: OwnAgentSession

    def __init__(self, group: str, groups: Groups, ports: Ports) -> None:
        super().__init__()
        self._group = group
        self._groups = groups
        self._ports = ports
        self._is_open = False
        self._wanted: tuple[OpenPort, ...] = ()
        self._results: list[PortResult] = []
        self._left = MAX_MESSAGES
        self._period_end = 0.0

    def attach(self, agent: Agent, session: OwnAgentSession) -> None:
        """Set the agent and its session."""
        self._agent = agent
        self._session = session

    def accept(self) -> StreamProtocol:
        """The protocol of a stream that the agent opens: only one is permitted."""
        if self._is_open:
            return _Surplus(self._session)
        self._is_open = True
        return self

    def received(self, message: Message) -> None:
        self._count_message()
        if "ports" in message:
            self._wanted = parse_ports(message["ports"])
            self._announce()
            self.send("ports", format_results(self._results))
            self._ports.watch(self._agent, self._announce_again)
        if item(message, "drain", bool, False):
            logger.info("agent %r of group %r is leaving", self._agent.id, self._group)
            self._ports.release(self._agent)
            self._groups.retire(self._group, self._agent)

    def _announce(self) -> None:
        self._results = self._ports.announce(self._group, self._agent, self._wanted)

    def _announce_again(self) -> None:
        """Tell the agent if other ports are open than before."""
        before = self._results
        self._announce()
        if self._results != before:
            self.send("ports", format_results(self._results))

    def _count_message(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._period_end:
            self._period_end = now + PERIOD
            self._left = MAX_MESSAGES
        if not self._left:
            raise PeerError(f"more than {MAX_MESSAGES} messages in {PERIOD:g} s")
        self._left -= 1

    def fail(self, error: PeerError) -> None:
        self._session.abort(error)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._session.control = transport

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._session.control = None


class _Surplus(StreamProtocol):
    """A stream that the agent may not open."""

    def __init__(self, session: OwnAgentSession) -> None:
        self._session = session

    def connection_made(self, transport: Any) -> None:
        self._session.abort(PeerError("the agent opens streams besides its control stream"))

    def data_received(self, data: Data) -> None:
        """Ignored: the session is over."""


class AgentControl(Control):
    """The agent's end.

    Args:
        session: the session that it is of.
        report: logs what became of ports.
    """

    def __init__(
        self, session: SmuxSession, report: Callable[[Iterable[PortResult]], object]
    ) -> None:
        super().__init__()
        self._session = session
        self._ports: Sequence[OpenPort] = ()
        self._report = report
        self._timer: asyncio.TimerHandle | None = None

    def announce(self, ports: Sequence[OpenPort]) -> None:
        """Have the gateway forward these ports, and no others."""
        if self._is_ending:
            return
        before, self._ports = self._ports, ports
        self._cancel_timer()
        if not (before or ports):
            return
        try:
            self.send("ports", format_ports(ports))
        except ValueError as error:
            logger.error("open_ports: the gateway cannot be told: %s", error)

    def drain(self) -> None:
        """Tell the gateway that the agent leaves."""
        self._cancel_timer()
        self.send("drain", True)
        self.end()
        if self._transport is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(LEAVE_TIME, self._transport.close)

    def fail(self, error: PeerError) -> None:
        self._session.abort(error)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._cancel_timer()

    def received(self, message: Message) -> None:
        if "ports" not in message:
            return
        results = parse_results(message["ports"], self._ports)
        self._report(results)
        if any(result.error for result in results) and not self._is_ending:
            self._cancel_timer()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(RETRY_TIME, self._retry)

    def _retry(self) -> None:
        self.announce(self._ports)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class PortReports:
    """Logs what became of an agent's ports, once per change, for all its sessions.

    A gateway that reports changes without end does not flood the log.
    """

    def __init__(self) -> None:
        self._logged: dict[tuple[str, OpenPort], str] = {}
        self._lines = Throttle(MAX_OPEN_PORTS)

    def report(self, gateway: str, results: Iterable[PortResult]) -> None:
        """Log the results of a gateway."""
        for result in results:
            port = result.port
            target = host_port(port.local_host, port.local_port)
            if result.error:
                text = f"port {port.remote_port} ({port.protocol}) of {gateway} is not forwarded "
                text += f"to {target}: {result.error}"
            elif result.is_standby:
                text = f"port {result.address} ({port.protocol}) of {gateway} is forwarded to "
                text += f"another agent; to {target} when that one leaves"
            else:
                text = f"port {result.address} ({port.protocol}) of {gateway} is forwarded "
                text += f"to {target}"
            if self._logged.get((gateway, port)) != text:
                self._logged[gateway, port] = text
                self._lines.log(WARNING if result.error else INFO, "%s", text)
