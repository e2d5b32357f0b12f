"""What gateways and agents log, and what they never log."""

from __future__ import annotations

import base64
import contextlib
import logging
from collections.abc import AsyncIterator

from anyproxy.agent import Agent
from anyproxy.gateway import Gateway
from anyproxy.options import GroupOptions
from mtt.proxy.host_rules import HostRules, parse_patterns
from mtt.users.user import User
from tests.anyproxy.serving import agent_for, gateway_for, http_port, socks_port
from tests.anyproxy.upgrades import ID, answer, upgrade
from tests.anyproxy.users import status, tunnel_request, user_of
from tests.proxy.clients import socks5_login
from tests.support.certs import Certs
from tests.support.tunnels import Tcp, connect, eventually, logged, serving

GROUP = "office"
RIGHT, WRONG, LOGIN = "Secret-of-the-group", "Secret-of-a-guesser", "Secret-of-agents"
QUERY, BODY = "Secret-in-a-query", "Secret-in-a-body"
AGENTS = User("agents", LOGIN)
# The texts themselves, and as logins contain them.
SECRETS = ["Secret", *(
    base64.b64encode(f"{name}:{password}".encode()).decode()
    for name, password in ((GROUP, RIGHT), (GROUP, WRONG), (AGENTS.name, LOGIN))
)]  # fmt: skip


async def site(connection: Tcp) -> None:
    """A web site that answers with what it must not log, and an echo."""
    while data := await connection.read():
        if data.startswith(b"GET"):
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\nX: {BODY}\r\n\r\n"
            await connection.send(f"{head}{BODY}".encode())
        else:
            await connection.send(data)


@contextlib.asynccontextmanager
async def both(certs: Certs) -> AsyncIterator[tuple[Gateway, Agent]]:
    groups = {GROUP: GroupOptions(password=RIGHT)}
    rules = HostRules((), parse_patterns("forbidden_hosts", ["10.0.0.0/8"], allow=False))
    async with (
        gateway_for(certs, login=AGENTS, groups=groups) as gateway,
        agent_for(
            certs, gateway, login=AGENTS, group=GROUP, password=RIGHT, rules=rules
        ) as agent,
    ):
        yield gateway, agent


async def use(gateway: Gateway, target: int, refused: int) -> None:
    """Use the gateway rightly and wrongly, in all its ways."""
    async with user_of(gateway, target, RIGHT, GROUP) as user:
        await user.check_echo(BODY.encode())
    async with await connect(socks_port(gateway)) as user:
        said, reply = socks5_login(target, User(GROUP, RIGHT))
        await user.send(said)
        assert await user.exactly(len(reply)) == reply
        await user.check_echo(BODY.encode())
    login = base64.b64encode(f"{GROUP}:{RIGHT}".encode()).decode()
    for port in (target, refused):
        request = (
            f"GET http://127.0.0.1:{port}/{QUERY}?{QUERY} HTTP/1.1\r\nHost: x\r\n"
            f"Proxy-Authorization: Basic {login}\r\nCookie: {QUERY}\r\n\r\n"
        )
        assert await status(http_port(gateway), request.encode()) in (200, 502)
    for host in ("10.0.0.1", "127.0.0.1"):
        said = tunnel_request(refused, RIGHT, GROUP).replace(b"127.0.0.1", host.encode())
        assert await status(http_port(gateway), said) in (403, 502)
    assert await status(http_port(gateway), f"GET {QUERY}\x01\r\n\r\n".encode()) == 400


async def refuse(gateway: Gateway, target: int) -> None:
    """Be refused as a user of either proxy, and as an agent."""
    assert await status(http_port(gateway), tunnel_request(target, WRONG, GROUP)) == 407
    async with await connect(socks_port(gateway)) as user:
        await user.send(socks5_login(target, User(GROUP, WRONG))[0])
        assert (await user.rest())[-1] != 0
    assert (await answer(gateway, upgrade(ID, GROUP, WRONG, login=AGENTS)))[0] == 403
    assert (await answer(gateway, upgrade(ID, GROUP, RIGHT, login=User("agents", WRONG))))[0] == 401


async def test_no_level_shows_passwords_queries_or_contents(
    certs: Certs, refused_port: int
) -> None:
    with logged(logging.DEBUG) as lines:
        async with serving(site) as target, both(certs) as (gateway, _):
            await use(gateway, target.port, refused_port)
            await refuse_without_tls(certs, target.port)
            await eventually(lambda: not gateway.tunnels)
    assert len(lines) > 20
    shown = [line for line in lines if any(secret in line for secret in SECRETS)]
    assert shown == []


async def refuse_without_tls(certs: Certs, target: int) -> None:
    groups = {GROUP: GroupOptions(password=RIGHT)}
    async with (
        gateway_for(certs, tls=None, login=AGENTS, groups=groups) as gateway,
        agent_for(certs, gateway, tls=None, login=AGENTS, group=GROUP, password=RIGHT),
    ):
        await refuse(gateway, target)


async def test_agents_that_come_and_go_are_one_line_each(certs: Certs) -> None:
    with logged() as lines:
        async with both(certs):
            pass
        await eventually(lambda: any(" left group " in line for line in lines))
    ours = [line for line in lines if line.startswith("INFO agent ")]
    assert [line.split()[3] for line in ours] == ["joined", "left"]


async def test_refused_logins_are_one_line_each(certs: Certs) -> None:
    groups = {GROUP: GroupOptions(password=RIGHT)}
    async with (
        serving(site) as target,
        gateway_for(certs, tls=None, login=AGENTS, groups=groups) as gateway,
        agent_for(certs, gateway, tls=None, login=AGENTS, group=GROUP, password=RIGHT),
    ):
        with logged() as lines:
            await refuse(gateway, target.port)
            await eventually(lambda: len(lines) >= 4)
    assert all(line.startswith("WARNING 127.0.0.1:") for line in lines)
    ends = [line.split(": ", 1)[1] for line in lines]
    assert ends[:2] == ["wrong user or password"] * 2
    assert ends[2].endswith(f"refused, group '{GROUP}': wrong group password")
    assert ends[3].endswith(f"refused, group '{GROUP}': wrong login of the gateway")
    assert len(lines) == 4


async def test_connections_of_users_are_only_in_debug_lines(
    certs: Certs, refused_port: int
) -> None:
    async with serving(site) as target, both(certs) as (gateway, _):
        with logged() as lines:
            await use(gateway, target.port, refused_port)
            await eventually(lambda: not gateway.tunnels)
    # Only a target that the operator has forbidden, and a mistake of a client.
    denied, mistake = lines
    assert denied.startswith("INFO target denied (allowed_hosts, forbidden_hosts): 10.0.0.1:")
    assert mistake.startswith("WARNING 127.0.0.1:")
