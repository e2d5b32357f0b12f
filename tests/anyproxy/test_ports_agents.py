"""Agents of forwarded ports come and go: take-over, return, leaving in order."""

from __future__ import annotations

import asyncio

import pytest

from anyproxy import forwarded, ports
from anyproxy.gateway import Gateway
from mtt.errors import PeerError
from tests.anyproxy.forwarding import dropped, is_refused, opened, ports_of, to_tcp
from tests.anyproxy.serving import GROUP, agent_for, gateway_for
from tests.support.certs import Certs
from tests.support.tunnels import Tcp, connect, echo, eventually, logged, serving


def saying(word: bytes):  # type: ignore[no-untyped-def]
    """A target that says a word to everyone, and then echoes."""

    async def serve(connection: Tcp) -> None:
        await connection.send(word)
        await echo(connection)

    return serve


async def word_at(port: int) -> bytes:
    async with await connect(port) as user:
        return await user.exactly(1)


def claims(gateway: Gateway) -> list[str]:
    """The agents that claim the only TCP port, its owner first."""
    (port,) = ports_of(gateway)
    return [agent.id for agent in port.claims]


def taken_over(target: int) -> str:
    """The end of an agent's line about its port."""
    return f"is forwarded to 127.0.0.1:{target}"


async def test_next_agent_takes_over_when_the_owner_leaves(certs: Certs) -> None:
    async with (
        serving(saying(b"A")) as a,
        serving(saying(b"B")) as b,
        gateway_for(certs) as gateway,
    ):
        with logged() as lines:
            async with agent_for(certs, gateway, open_ports=(to_tcp(a.port),), id="a"):
                number = await opened(gateway)
                second = {"open_ports": (to_tcp(b.port, number),), "id": "b"}
                async with agent_for(certs, gateway, **second) as other:
                    await eventually(lambda: claims(gateway) == ["a-r0", "b-r0"])
                    assert [await word_at(number) for _ in range(3)] == [b"A"] * 3
                    for session in list(gateway._frontend.sessions):
                        if gateway.agents._agents[session].id == "a-r0":
                            session.abort()
                    await eventually(lambda: claims(gateway)[0] == "b-r0")
                    assert await word_at(number) == b"B"
                    await eventually(lambda: any(taken_over(b.port) in line for line in lines))
                    # The first one returns. It gets the port that it had, behind the other one.
                    await eventually(lambda: claims(gateway) == ["b-r0", "a-r0"], 10)
                    assert await word_at(number) == b"B"
                    assert other.open_sessions
        told = next(line for line in lines if "when that one leaves" in line)
        where = gateway.addresses[0]
        assert told == (
            f"INFO port 127.0.0.1:{number} (tcp) of {where} is forwarded to another agent; "
            f"to 127.0.0.1:{b.port} when that one leaves"
        )


async def test_replica_serves_while_another_one_is_gone(certs: Certs) -> None:
    async with (
        serving(saying(b"A")) as there,
        gateway_for(certs) as gateway,
        agent_for(certs, gateway, open_ports=(to_tcp(there.port),), replicas=2),
    ):
        number = await opened(gateway)
        await eventually(lambda: len(claims(gateway)) == 2)
        owned = claims(gateway)[0]
        for session in list(gateway._frontend.sessions):
            if gateway.agents._agents[session].id == owned:
                session.abort()
        assert await word_at(number) == b"A"
        await eventually(lambda: len(claims(gateway)) == 2, 10)
        assert claims(gateway)[1] == owned
        assert len(ports_of(gateway)) == 1


async def test_users_wait_while_the_agent_reconnects(certs: Certs) -> None:
    async with (
        serving(saying(b"A")) as there,
        gateway_for(certs) as gateway,
        agent_for(certs, gateway, open_ports=(to_tcp(there.port),)) as agent,
    ):
        number = await opened(gateway)
        await dropped(agent)
        await eventually(lambda: not claims(gateway))
        async with await connect(number) as user:
            assert await user.exactly(1) == b"A"
        assert claims(gateway) == ["agent-r0"]
        assert await opened(gateway) == number


async def test_port_without_an_agent_closes_after_a_while(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "HOLD_TIME", 0.2)
    async with serving(echo) as there, gateway_for(certs) as gateway:
        async with agent_for(certs, gateway, open_ports=(to_tcp(there.port),)):
            number = await opened(gateway)
        await eventually(lambda: not claims(gateway))
        async with await connect(number) as user:
            assert await is_refused(user)  # its wait ends with the port
        assert not ports_of(gateway)
        with pytest.raises(ConnectionRefusedError):
            await connect(number)


async def test_user_does_not_wait_forever(certs: Certs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarded, "HOLD_TIME", 0.1)
    async with serving(echo) as there, gateway_for(certs) as gateway:
        async with agent_for(certs, gateway, open_ports=(to_tcp(there.port),)):
            number = await opened(gateway)
        await eventually(lambda: not claims(gateway))
        async with await connect(number) as user:
            assert await is_refused(user)
        assert ports_of(gateway)


async def test_same_agent_joins_again_before_its_old_session_ends(certs: Certs) -> None:
    """As after a change of the network that the gateway has not noticed."""
    async with (
        serving(saying(b"A")) as there,
        gateway_for(certs) as gateway,
        agent_for(certs, gateway, open_ports=(to_tcp(there.port),)),
    ):
        number = await opened(gateway)
        async with await connect(number) as user:
            assert await user.exactly(1) == b"A"
            options = {"open_ports": (to_tcp(there.port, number),)}
            async with agent_for(certs, gateway, **options):
                group = gateway.groups.get(GROUP)
                assert group is not None
                await eventually(lambda: len(claims(gateway)) == 1)
                assert len(group.leaving) == 1
                assert await word_at(number) == b"A"
                await user.check_echo()  # through the old session
                user.close()
                # Its control stream does not keep the old session.
                await eventually(lambda: not group.leaving)


async def test_agent_that_leaves_finishes_its_streams(certs: Certs) -> None:
    async with (
        serving(saying(b"A")) as a,
        serving(saying(b"B")) as b,
        gateway_for(certs) as gateway,
        agent_for(certs, gateway, open_ports=(to_tcp(a.port),), id="a") as leaving,
    ):
        number = await opened(gateway)
        second = {"open_ports": (to_tcp(b.port, number),), "id": "b"}
        async with agent_for(certs, gateway, **second), await connect(number) as user:
            await eventually(lambda: len(claims(gateway)) == 2)
            assert await user.exactly(1) == b"A"
            drain = asyncio.create_task(leaving.drain())
            await eventually(lambda: claims(gateway) == ["b-r0"])
            assert await word_at(number) == b"B"
            await user.check_echo(b"goes on")
            assert not drain.done()
            assert leaving.open_sessions
            await user.finish()
            assert await user.rest() == b""
            async with asyncio.timeout(5):
                await drain
            assert not leaving.open_sessions
            await eventually(lambda: set(gateway.groups.get(GROUP).agents) == {"b-r0"})  # type: ignore[union-attr]


async def test_new_agent_of_the_same_name_takes_the_port_of_one_that_left(certs: Certs) -> None:
    async with serving(saying(b"A")) as there, gateway_for(certs) as gateway:
        wanted = (to_tcp(there.port),)
        async with agent_for(certs, gateway, open_ports=wanted) as first:
            number = await opened(gateway)
            await first.drain()
        async with agent_for(certs, gateway, open_ports=wanted):
            assert await word_at(number) == b"A"
            assert await opened(gateway) == number
        async with agent_for(certs, gateway, open_ports=wanted, id="another"):
            await eventually(lambda: len(ports_of(gateway)) == 2)  # any port is one of its own


async def test_agent_that_breaks_the_rules_loses_its_ports(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "HOLD_TIME", 0.05)
    async with serving(echo) as there, gateway_for(certs) as gateway:
        async with agent_for(certs, gateway, open_ports=(to_tcp(there.port),)) as agent:
            await opened(gateway)
            (session,) = agent.open_sessions
            with logged() as lines:
                agent._controls[session].send("ports", [{"port": "many"}])
                await eventually(lambda: session.lost)
                await eventually(lambda: any("control stream" in line for line in lines))
            (lost,) = [line for line in lines if "left group" in line]
            assert "control stream: port is missing, or has the wrong type" in lost
            assert gateway.counters.session_failures == 1
            assert not isinstance(session.error, PeerError)
        await eventually(lambda: not ports_of(gateway))
