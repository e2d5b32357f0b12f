"""How agents join the gateway: the upgrade request, who may join, and the session behind it.

    TLS -> GET /ws -> login, group, password -> 101 -> session, in its group -> ... -> lost

Agents that may not join are refused before the 101. The Go program's agents back off then; they
ignore later errors, and reconnect at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple

from anyproxy.control import GatewayControl
from anyproxy.credentials import (
    AT_LIMIT,
    BLOCKED,
    HAS_NO_PASSWORD,
    NO_PASSWORD,
    STORE_FAILED,
    WRONG_PASSWORD,
)
from anyproxy.options import AGENT_PATH, PROTOCOLS, OpenPort
from anyproxy.ports import PortResult, Ports
from mtt.address import peer_name, user_name
from mtt.errors import PeerError, describe
from mtt.http.exchange import Exchange, Handler
from mtt.http.limits import OPERATORS
from mtt.http.server import HttpServer
from mtt.inbound.front import HeadReader
from mtt.layers.anyproxy import GoSession
from mtt.layers.base import StreamTransport
from mtt.layers.mux import MuxSession
from mtt.layers.parked import hand_over
from mtt.layers.smux import SmuxSession
from mtt.layers.websocket import WebSocketLayer
from mtt.log import FAILURE_BURST, Throttle
from mtt.options.common import LOOPBACK
from mtt.outbound.agent import MAX_STREAMS, OwnAgentSession
from mtt.outbound.go_agent import GoAgentSession
from mtt.outbound.groups import Agent, Groups
from mtt.users.login_throttle import LoginThrottle
from mtt.users.user import User
from mtt.wire.agent import SUBPROTOCOL
from mtt.wire.anyproxy import PortForward, PortForwardResponse, agent_name
from mtt.wire.http1 import Reply, Request, text_reply
from mtt.wire.httpproxy import basic_login
from mtt.wire.servemux import NOT_FOUND
from mtt.wire.upgrade import Upgrade, UpgradeRefused, check_hidden_request, is_own_key

# Bytes of an agent's or a group's name: both stand in log lines, metrics and pages.
MAX_NAME = 128
# Log lines about agents that join, or leave, per interval of the throttle: the agents of a gateway
# that has restarted, but not an agent that joins in a loop.
CHANGES_SHOWN = 100
# Characters of the errors about a Go agent's ports, which it logs.
MAX_ERROR = 1000

WRONG_LOGIN = "wrong login of the gateway"
# Labels of reasons in metrics.
_LABELS = {
    WRONG_LOGIN: "login",
    WRONG_PASSWORD: "password",
    NO_PASSWORD: "no_password",
    HAS_NO_PASSWORD: "group_without_password",
    BLOCKED: "blocked",
    STORE_FAILED: "store",
}
_LIMIT, _OTHER = "limit", "other"

# Returns why an agent may not join a group; "" if it may join now. Called with the names of group
# and agent, the group's password and the agent's address.
Admit = Callable[[str, str, bytes, str], Awaitable[str]]


# A name and a password.
Login = tuple[bytes, bytes]


class _Shown(NamedTuple):
    """The login and password with which an agent joined, as hashes with a key of this process."""

    login: bytes
    password: bytes  # of its group


class AgentReader(HeadReader[str, MuxSession[Any]]):
    """Reads upgrade requests, and puts the agents' sessions into their groups.

    Args:
        groups: where agents join.
        ports: forwards ports to them.
        login: what every agent must show; None for nothing.
        admit: decides about a group and its password.
        throttle: counts wrong logins, and blocks their addresses.

    Attributes:
        refused: number of refused agents by the reason's label.
    """

    counts_sessions = True
    reads_http = True

    def __init__(
        self,
        groups: Groups,
        ports: Ports,
        *,
        login: User | None,
        admit: Admit,
        throttle: LoginThrottle,
    ) -> None:
        self.login = login
        self._throttle = throttle
        self._groups = groups
        self._ports = ports
        self._admit = admit
        self._agents: dict[MuxSession[Any], Agent] = {}
        self._key = os.urandom(32)
        self._shown: dict[Agent, _Shown] = {}
        self._controls: dict[MuxSession[Any], GatewayControl] = {}
        self.refused = dict.fromkeys((*_LABELS.values(), _LIMIT, _OTHER), 0)
        self._with_ports: set[Agent] = set()  # agents that are the Go program
        self._refusals = Throttle(FAILURE_BURST)
        self._joined, self._left = Throttle(CHANGES_SHOWN), Throttle(CHANGES_SHOWN)
        self._tasks: set[asyncio.Task[None]] = set()

    def read(self, transport: StreamTransport) -> None:
        front = self.front
        front.handshakes.add(transport)
        http = HttpServer(
            self._route,
            on_failure=front.report_failure,
            on_end=front.handshakes.discard,
            limits=OPERATORS,
            tasks=self._tasks,
        )
        hand_over(transport, http)

    def drain(self) -> None:
        """End the control streams, so that sessions without users' streams count as idle."""
        for control in self._controls.values():
            control.close()

    def is_current(self, agent: Agent, password: str) -> bool:
        """Whether a connected agent could still join: its login is the current one, and so is its
        password if the operator has set one for its group (else it is empty)."""
        shown = self._shown[agent]
        if password and not hmac.compare_digest(shown.password, self._digest(password.encode())):
            return False
        if self.login is None:
            return True
        login = self.login.name.encode(), self.login.password.encode()
        return hmac.compare_digest(shown.login, self._digest(*login))

    async def close(self) -> None:
        """End the requests in progress."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _route(self, request: Request) -> Reply | Handler:
        return self._join if request.path == AGENT_PATH else NOT_FOUND

    async def _join(self, exchange: Exchange) -> None:
        """Handle an upgrade request. The checks and answers are in the order of the Go program."""
        request, transport = exchange.request, exchange.transport
        # Agents are not browsers, so Origin says nothing.
        request.headers = [each for each in request.headers if each[0] != "origin"]
        name, group = _text(request, "x-client-id"), _text(request, "x-group-id")
        if not name:
            await exchange.answer(text_reply(400, "Client ID is required"))
            return
        if SUBPROTOCOL in request.elements("sec-websocket-protocol"):
            name = agent_name(name)  # so that one that returns replaces its former connection
        user = self.front.named_user(transport, request)
        peer = user or transport.get_extra_info("peername")
        address = peer[0] if isinstance(peer, tuple) else ""
        login = basic_login(request, "authorization")
        status, reason = self._check_address_and_login(login, address)
        try:
            if not reason:
                check_hidden_request(request, early=False)  # before the slow check
                reason = _unfit(name) or _unfit(group)
            if not reason:
                password = (request.first("x-group-password") or "").encode("latin-1")
                reason = await self._admit(group, name, password, address)
                if not reason and not self._accepts(login):  # it has changed meanwhile
                    status, reason = 401, WRONG_LOGIN
            if not reason:
                upgrade = exchange.upgrade((SUBPROTOCOL,))
                shown = _Shown(self._digest(*login or ()), self._digest(password))
                if user is not None:
                    transport.bottom.set_peer(user)
                self._begin(transport, name, group, upgrade, shown)
                return
        except UpgradeRefused as refused:
            await exchange.answer(refused.reply)
            return
        self.refused[_label(reason)] += 1
        self._refusals.warning(
            "%s: agent %s refused, group %s: %s",
            peer_name(transport) if user is None else user_name(*user),
            _quoted(name), _quoted(group), reason,
        )  # fmt: skip
        await exchange.answer(text_reply(status, "Unauthorized" if status == 401 else reason))

    def _check_address_and_login(self, login: Login | None, address: str) -> tuple[int, str]:
        """The status and the reason of a refusal; the reason is empty if there is none yet."""
        if self._throttle.blocks(address):
            return 403, BLOCKED
        if not self._accepts(login):
            self._throttle.failed(address)
            return 401, WRONG_LOGIN
        return 403, ""

    def _accepts(self, login: Login | None) -> bool:
        return self.login is None or (login is not None and self.login.accepts(*login))

    def _digest(self, *texts: bytes) -> bytes:
        # A colon ends the name in a login of HTTP (RFC 7617, 2).
        return hashlib.blake2b(b":".join(texts), key=self._key).digest()

    def _begin(
        self, transport: StreamTransport, name: str, group: str, upgrade: Upgrade, shown: _Shown
    ) -> None:
        now = asyncio.get_running_loop().time()
        session: MuxSession[Any]
        layer: WebSocketLayer
        if upgrade.protocol == SUBPROTOCOL:
            control = GatewayControl(group, self._groups, self._ports)
            session = SmuxSession(
                accept=control.accept,
                first_id=2,
                max_streams=MAX_STREAMS,
                on_change=self._stream_ended,
                on_lost=partial(self._lost, group),
            )
            own = OwnAgentSession(session)
            agent = Agent(name, peer_name(transport), own, now)
            control.attach(agent, own)
            self._controls[session] = control
            layer = WebSocketLayer(session, client=False, half_close=is_own_key(upgrade.key))
        else:
            session = GoSession(
                on_ports=partial(self._ports_requested, group),
                on_change=self._stream_ended,
                on_lost=partial(self._lost, group),
            )
            agent = Agent(name, peer_name(transport), GoAgentSession(session), now)
            layer = session.message_layer(client=False)
        self._agents[session] = agent
        self._shown[agent] = shown
        self.front.register(session, group)
        former = self._groups.join(group, agent)
        if former is not None:
            self._ports.release(former)
        self._joined.info(
            "agent %s joined group %s from %s%s%s", _quoted(name), _quoted(group), agent.address,
            "" if upgrade.protocol == SUBPROTOCOL else ", the Go program",
            f"; it replaces that from {former.address}" if former is not None else "",
        )  # fmt: skip
        transport.resume_reading()
        layer.start(transport)

    def _ports_requested(self, group: str, session: GoSession, request: PortForward) -> None:
        """Forward the ports of an agent that is the Go program, which asks once."""
        agent = self._agents[session]
        if agent in self._with_ports:
            session.abort(PeerError("the agent asks for ports again"))
            return
        self._with_ports.add(agent)
        ports = [
            OpenPort(
                remote_port=port.remote_port,
                local_host=port.local_host or LOOPBACK,  # as Go's dialer understands it
                local_port=port.local_port,
                protocol=port.protocol,
            )
            for port in request.ports
        ]
        known = [port for port in ports if port.protocol in PROTOCOLS]
        announce = partial(self._ports.announce, group, agent, known)
        failed = [PortResult(port, error="unknown protocol") for port in ports if port not in known]
        failed += [each for each in announce() if each.error]
        self._ports.watch(agent, announce)
        errors = "; ".join(
            f"port {result.port.remote_port} ({result.port.protocol}): {result.error}"
            for result in failed
        )
        session.answer_ports(PortForwardResponse(not errors, errors[:MAX_ERROR]))

    def _stream_ended(self, session: MuxSession[Any]) -> None:
        agent = self._agents.get(session)
        if agent is not None:
            self._groups.stream_ended(agent)

    def _lost(self, group: str, session: MuxSession[Any], error: Exception | None) -> None:
        agent = self._agents.pop(session)
        self._controls.pop(session, None)
        self._with_ports.discard(agent)
        del self._shown[agent]
        self._groups.leave(group, agent)
        self._ports.release(agent)
        self._left.info(
            "agent %s left group %s: %s", _quoted(agent.id), _quoted(group), describe(error)
        )
        self.front.session_lost(session, error)


def _text(request: Request, header: str) -> str:
    """The value of a header in UTF-8; surrogates stand for other bytes."""
    return (request.first(header) or "").encode("latin-1").decode("utf-8", "surrogateescape")


def _unfit(name: str) -> str:
    """Why an agent or a group cannot have this name; surrogates are not printable."""
    if not name:
        return "the group has no name"
    if not name.isprintable() or len(name.encode()) > MAX_NAME:
        return f"names have 1 to {MAX_NAME} bytes of printable UTF-8"
    return ""


def _label(reason: str) -> str:
    """The label of a refusal's reason in metrics."""
    return _LIMIT if reason.endswith(AT_LIMIT) else _LABELS.get(reason, _OTHER)


def _quoted(name: str) -> str:
    """A name for the log. The peer chose it: in quotes it cannot pose as the rest of the line."""
    return repr(name[:MAX_NAME])
