"""Forwarded TCP ports: users of the gateway reach targets behind an agent."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from dataclasses import replace

import pytest

from anyproxy import ports
from anyproxy.agent import Agent
from anyproxy.options import GroupOptions, OpenPort
from anyproxy.ports import PortResult
from mtt.proxy.host_rules import HostRules, parse_patterns
from tests.anyproxy.forwarding import forwarding, is_refused, opened, ports_of, to_tcp, to_udp
from tests.anyproxy.serving import GROUP, agent_for, gateway_for
from tests.support.certs import Certs
from tests.support.tunnels import MEGABYTE, connect, echo, eventually, listening, logged, serving

NET_10 = (ipaddress.ip_network("10.0.0.0/8"),)
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)


def agents_of(gateway, group: str = GROUP):  # type: ignore[no-untyped-def]
    return list(gateway.groups.get(group).agents.values())


def results_of(gateway, *wanted):  # type: ignore[no-untyped-def]
    """The results of ports that the gateway's only agent announces."""
    (agent,) = agents_of(gateway)
    return gateway.ports.announce(GROUP, agent, wanted)


def error_of(gateway, wanted) -> str:  # type: ignore[no-untyped-def]
    (result,) = results_of(gateway, wanted)
    assert isinstance(result, PortResult)
    return result.error


async def test_user_reaches_the_target(certs: Certs) -> None:
    async with serving(echo) as there, forwarding(certs, to_tcp(there.port)) as gateway:
        async with await connect(await opened(gateway)) as user:
            _, back = await asyncio.gather(user.send(MEGABYTE), user.exactly(len(MEGABYTE)))
            assert back == MEGABYTE
            assert ports_of(gateway)[0].users == 1
            await user.finish()
            assert await user.rest() == b""
        await eventually(lambda: not ports_of(gateway)[0].users)


async def test_agent_logs_where_its_port_is(certs: Certs) -> None:
    async with serving(echo) as there, gateway_for(certs) as gateway:
        with logged() as lines:
            async with agent_for(certs, gateway, open_ports=(to_tcp(there.port),), replicas=2):
                port = await opened(gateway)
                await eventually(lambda: len(ports_of(gateway)[0].claims) == 2)
                await eventually(lambda: any("is forwarded" in line for line in lines))
                await asyncio.sleep(0.05)
    assert [line for line in lines if "is forwarded" in line] == [
        f"INFO port 127.0.0.1:{port} (tcp) of {gateway.addresses[0]} is forwarded "
        f"to 127.0.0.1:{there.port}"
    ]
    assert f"port 127.0.0.1:{port} (tcp) opened for agent 'agent-r0' of group '{GROUP}'" in "".join(
        lines
    )


async def test_target_that_refuses_resets_the_user(certs: Certs, refused_port: int) -> None:
    async with (
        forwarding(certs, to_tcp(refused_port)) as gateway,
        await connect(await opened(gateway)) as user,
    ):
        assert await is_refused(user)


async def test_rules_of_the_agent_hold_for_its_ports(certs: Certs) -> None:
    rules = HostRules(forbidden=parse_patterns("forbidden_hosts", ["127.0.0.0/8"], allow=False))
    async with serving(echo) as there, gateway_for(certs) as gateway:
        options = {"open_ports": (to_tcp(there.port),), "rules": rules}
        async with (
            agent_for(certs, gateway, **options),
            await connect(await opened(gateway)) as user,
        ):
            assert await is_refused(user)
        assert not there.count


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_proxy_protocol_tells_the_target_the_user(certs: Certs, version: str) -> None:
    async with listening() as there:
        wanted = to_tcp(there.port, proxy_protocol=version)
        async with forwarding(certs, wanted) as gateway:
            port = await opened(gateway)
            async with await connect(port) as user:
                await user.send(b"hello")
                own = user.sock.getsockname()[1]
                target = await there.accept()
                if version == "v1":
                    header = f"PROXY TCP4 127.0.0.1 127.0.0.1 {own} {port}\r\n".encode()
                else:
                    header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\1\x7f\0\0\1"
                    header += own.to_bytes(2, "big") + port.to_bytes(2, "big")
                assert await target.exactly(len(header) + 5) == header + b"hello"


@pytest.mark.parametrize("by", ["agent", "operator"])
async def test_users_from_elsewhere_are_refused(certs: Certs, by: str) -> None:
    options = {"default_group": GroupOptions(allow_from=NET_10)} if by == "operator" else {}
    async with serving(echo) as there:
        wanted = to_tcp(there.port, allow_from=NET_10 if by == "agent" else LOOPBACK)
        async with forwarding(certs, wanted, **options) as gateway:
            port = await opened(gateway)
            with logged() as lines:
                async with await connect(port) as user:
                    assert await is_refused(user)
            assert f"INFO port 127.0.0.1:{port}: user refused (allow_from): 127.0.0.1" in lines
        assert not there.count


async def test_listed_users_are_let_in(certs: Certs) -> None:
    options = {"default_group": GroupOptions(allow_from=(*NET_10, *LOOPBACK))}
    async with serving(echo) as there:
        wanted = to_tcp(there.port, allow_from=LOOPBACK)
        async with (
            forwarding(certs, wanted, **options) as gateway,
            await connect(await opened(gateway)) as user,
        ):
            await user.check_echo()


async def test_user_limit_of_the_gateway_holds(certs: Certs) -> None:
    async with (
        serving(echo) as there,
        forwarding(certs, to_tcp(there.port), max_conns=2) as gateway,
    ):
        port = await opened(gateway)
        # The agent's session is a connection, too.
        async with await connect(port) as user, await connect(port) as other:
            await user.check_echo()
            assert await is_refused(other)


async def test_ports_that_cannot_be_opened(certs: Certs) -> None:
    group = GroupOptions(ports=(range(20000, 30000), range(61000, 61001)))
    others = {"strict": group, "lost": GroupOptions(ports_bind="nowhere.example")}
    async with gateway_for(certs, groups=others) as gateway, agent_for(certs, gateway):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            number = taken.getsockname()[1]
            assert error_of(gateway, to_tcp(22, number)) == (
                f"cannot listen on 127.0.0.1:{number}: address already in use: "
                "another program listens there; stop it or choose another port"
            )
        (free,) = results_of(gateway, to_tcp(22))
        number = int(free.address.rpartition(":")[2])
        assert not free.error
        first, again = results_of(gateway, to_tcp(22, number), to_tcp(23, number))
        assert first.address == f"127.0.0.1:{number}"
        assert again.error == f"port {number} (tcp) is there twice"
        first, again = results_of(gateway, to_tcp(22), to_tcp(22))
        assert (first.error, again.error) == ("", "a port for this target is there twice")
        assert error_of(gateway, to_tcp(22, protocol="TCP")) == (
            "the protocol is neither tcp nor udp"
        )
        assert error_of(gateway, replace(to_tcp(22), local_host="a\nb")).startswith("the target: ")
        error = error_of(gateway, to_udp(53, proxy_protocol="v1"))
        assert error == "proxy_protocol is for TCP ports only"
        async with agent_for(certs, gateway, group="strict", id="other"):
            (agent,) = agents_of(gateway, "strict")
            low, drawn = gateway.ports.announce("strict", agent, [to_tcp(22, 80), to_tcp(22)])
            assert low.error.startswith("the group may not open port 80; ")
            assert 20000 <= int(drawn.address.rpartition(":")[2]) <= 61000
        async with agent_for(certs, gateway, group="lost", id="other"):
            (agent,) = agents_of(gateway, "lost")
            (result,) = gateway.ports.announce("lost", agent, [to_tcp(22)])
            assert "nowhere.example: it is not an IP address" in result.error


async def test_port_of_another_group_is_a_conflict_until_it_closes(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "HOLD_TIME", 0.1)
    async with serving(echo) as there, forwarding(certs, to_tcp(there.port)) as gateway:
        number = await opened(gateway)
        where = gateway.addresses[0]
        (agent,) = agents_of(gateway)
        with logged() as lines:
            other = {"group": "work", "open_ports": (to_tcp(there.port, number),)}
            async with agent_for(certs, gateway, **other):
                await eventually(lambda: any("is not forwarded" in line for line in lines))
                assert [port.group for port in gateway.ports] == [GROUP]
                gateway.ports.release(agent)
                await eventually(lambda: [port.group for port in gateway.ports] == ["work"])
                await eventually(lambda: any("is forwarded to" in line for line in lines))
    told = [line for line in lines if " forwarded to" in line]
    assert told[-2:] == [  # the first agent may be slow to log its own
        f"WARNING port {number} (tcp) of {where} is not forwarded to 127.0.0.1:{there.port}: "
        f"port {number} (tcp) is in use by another group",
        f"INFO port 127.0.0.1:{number} (tcp) of {where} is forwarded to 127.0.0.1:{there.port}",
    ]


async def test_ports_no_longer_announced_close(certs: Certs) -> None:
    async with serving(echo) as there, forwarding(certs) as gateway:
        first, second = results_of(gateway, to_tcp(there.port), to_udp(53))
        number = int(first.address.rpartition(":")[2])
        async with await connect(number) as user:
            await user.check_echo()
            (only,) = results_of(gateway, to_udp(53))
            assert only.address == second.address
            assert [port.protocol for port in gateway.ports] == ["udp"]
            await user.check_echo(b"goes on")
            with pytest.raises(ConnectionRefusedError):
                await connect(number)
            results_of(gateway)
            assert not list(gateway.ports)


async def test_ports_that_a_new_configuration_forbids_close(certs: Certs) -> None:
    groups = {GROUP: GroupOptions()}
    async with gateway_for(certs, groups=groups) as gateway, agent_for(certs, gateway):
        (result,) = results_of(gateway, to_tcp(22))
        number = int(result.address.rpartition(":")[2])
        gateway.ports.recheck()
        assert ports_of(gateway)
        groups[GROUP] = GroupOptions(ports=(range(number + 1, number + 2),))
        gateway.ports.recheck()
        assert not ports_of(gateway)
        (result,) = results_of(gateway, to_tcp(22, number))
        assert result.error


async def test_changed_options_of_a_group_move_ports(certs: Certs) -> None:
    groups = {GROUP: GroupOptions(ports=())}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
    async with serving(echo) as there, gateway_for(certs, groups=groups) as gateway:
        with logged() as lines:
            async with agent_for(certs, gateway, open_ports=(to_tcp(there.port, number),)):
                await eventually(lambda: any("may not open" in line for line in lines))
                for host in ("127.0.0.1", "127.0.0.2"):
                    groups[GROUP] = GroupOptions(ports=(range(1, 65536),), ports_bind=host)
                    gateway.ports.recheck()
                    (port,) = ports_of(gateway)
                    assert port.addresses == [f"{host}:{number}"]
                    told = f"INFO port {host}:{number} (tcp) of {gateway.addresses[0]} is forwarded"
                    await eventually(lambda told=told: any(told in line for line in lines))


def announce(agent: Agent, *wanted: OpenPort) -> None:
    agent.use_options(replace(agent.options, open_ports=wanted))
    agent.announce_ports()


async def test_agent_with_other_ports_than_before(certs: Certs) -> None:
    async with (
        serving(echo) as there,
        gateway_for(certs) as gateway,
        agent_for(certs, gateway, open_ports=(to_tcp(there.port),), replicas=2) as agent,
    ):
        number = await opened(gateway)
        announce(agent, to_tcp(there.port), to_udp(53))
        await opened(gateway, "udp")
        assert await opened(gateway) == number
        announce(agent, to_udp(53))
        await eventually(lambda: not ports_of(gateway))
        assert len(ports_of(gateway, "udp")[0].claims) == 2


async def test_number_of_ports_is_limited(certs: Certs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "MAX_OPEN_PORTS", 3)
    monkeypatch.setattr(ports, "MAX_GROUP_PORTS", 5)
    async with gateway_for(certs) as gateway, agent_for(certs, gateway, replicas=2):
        agents = agents_of(gateway)
        wanted = [to_tcp(number) for number in range(1, 5)]
        results = gateway.ports.announce(GROUP, agents[0], wanted)
        assert [result.error for result in results] == ["", "", "", "an agent may have 3 ports"]
        more = [to_tcp(number) for number in range(11, 14)]
        results = gateway.ports.announce(GROUP, agents[1], more)
        limit = "the group has 5 ports, which is the limit"
        assert [result.error for result in results] == ["", "", limit]
        gateway.ports.announce(GROUP, agents[0], [])
        results = gateway.ports.announce(GROUP, agents[1], more)
        assert not any(result.error for result in results)


async def test_ports_of_all_groups_leave_descriptors_for_others(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "first_reserved", lambda: 8.0)
    async with gateway_for(certs) as gateway, agent_for(certs, gateway), agent_for(
        certs, gateway, group="other"
    ):
        one, other = (next(iter(group.agents.values())) for group in gateway.groups)
        assert not gateway.ports.announce(GROUP, one, [to_tcp(1)])[0].error
        first, second = gateway.ports.announce("other", other, [to_tcp(2), to_tcp(3)])
        assert not first.error
        assert second.error == "the gateway has 2 ports; its limit of open files allows no more"


async def test_metrics_count_ports_and_users(certs: Certs) -> None:
    async with (
        serving(echo) as there,
        forwarding(certs, to_tcp(there.port), to_udp(53)) as gateway,
        await connect(await opened(gateway)) as user,
    ):
        await user.check_echo()
        page = gateway.metrics_page()
    assert 'mtt_forwarded_ports{protocol="tcp"} 1\n' in page
    assert 'mtt_forwarded_ports{protocol="udp"} 1\n' in page
    assert 'mtt_forwarded_users{protocol="tcp"} 1\n' in page
    assert 'mtt_forwarded_users{protocol="udp"} 0\n' in page


async def test_gateway_that_stops_frees_its_ports_and_keeps_users(certs: Certs) -> None:
    async with (
        serving(echo) as there,
        forwarding(certs, to_tcp(there.port), to_udp(53)) as gateway,
    ):
        port, udp = await opened(gateway), await opened(gateway, "udp")
        async with await connect(port) as user:
            await user.check_echo()
            gateway.cleanup()
            socket.create_server(("127.0.0.1", port)).close()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind(("127.0.0.1", udp))
            await user.check_echo()
            assert error_of(gateway, to_tcp(22)) == "the gateway is shutting down"
            draining = asyncio.create_task(gateway.drain())
            await asyncio.sleep(0.1)
            assert not draining.done()
        await draining
