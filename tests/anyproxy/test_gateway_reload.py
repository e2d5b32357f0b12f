"""A gateway gets another configuration while it runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anyproxy.gateway import Gateway
from anyproxy.gateway_reload import apply
from anyproxy.options import CredentialOptions, GroupOptions, OpenPort, ProxyOptions, WebOptions
from mtt.address import Endpoint
from mtt.errors import StartError, UsageError
from mtt.trust.tls_options import ServerTls
from mtt.users.user import User
from tests.anyproxy.serving import (
    ANY,
    GROUP,
    PASSWORD,
    agent_for,
    both,
    gateway_for,
    http_port,
    known,
    socks_port,
)
from tests.anyproxy.upgrades import plain_gateway, verdict
from tests.anyproxy.users import status, tunnel_request, user_of
from tests.support.certs import Certs
from tests.support.tunnels import connect, echo, eventually, port_of, serving
from tests.trust.handshakes import pin


async def changes(gateway: Gateway, **fields: Any) -> tuple[list[str], list[str]]:
    """Change fields of the options; returns what was done, and what needs a restart."""
    found = await apply(gateway, replace(gateway.options, **fields))
    return found.done, found.refused


def at(port: int) -> Endpoint:
    """An address to listen on."""
    return Endpoint(("127.0.0.1",), port)


# Proxies.


async def test_the_same_options_change_nothing(certs: Certs) -> None:
    async with gateway_for(certs) as gateway:
        assert await changes(gateway) == ([], [])


async def test_a_removed_proxy_keeps_its_connections(certs: Certs) -> None:
    async with (
        serving(echo) as target,
        both(certs) as (gateway, _),
        user_of(gateway, target.port) as user,
    ):
        port = http_port(gateway)
        assert await changes(gateway, http=None) == (["1 proxy removed"], [])
        with pytest.raises(ConnectionRefusedError):
            await connect(port)
        await user.check_echo()
        for _ in range(3):
            found = await changes(gateway, http=ProxyOptions(bind=ANY))
            assert found == (["1 proxy added"], [])
            async with user_of(gateway, target.port):
                pass
            assert await changes(gateway, http=None) == (["1 proxy removed"], [])
        assert len(gateway.former_proxies) == 1  # those without connections are forgotten
        await user.check_echo()


async def test_an_added_proxy_serves(certs: Certs) -> None:
    async with serving(echo) as target, both(certs, http=None) as (gateway, _):
        assert await changes(gateway, http=ProxyOptions(bind=ANY)) == (["1 proxy added"], [])
        async with user_of(gateway, target.port):
            pass


async def test_a_moved_proxy_keeps_its_connections(certs: Certs) -> None:
    async with (
        serving(echo) as target,
        both(certs) as (gateway, _),
        user_of(gateway, target.port) as user,
    ):
        before = http_port(gateway)
        moved = ProxyOptions(bind=Endpoint(("127.0.0.2",), 0))
        assert await changes(gateway, http=moved) == (["1 proxy moved"], [])
        with pytest.raises(ConnectionRefusedError):
            await connect(before)
        assert gateway.proxies[0].addresses[0].startswith("127.0.0.2:")
        await user.check_echo()


async def test_a_proxy_moves_to_all_interfaces_of_its_own_port(certs: Certs) -> None:
    """The old address is in the way of the new one."""
    async with serving(echo) as target, both(certs) as (gateway, _):
        port = http_port(gateway)
        moved = ProxyOptions(bind=Endpoint(("0.0.0.0",), port))
        assert await changes(gateway, http=moved) == (["1 proxy moved"], [])
        assert gateway.proxies[0].addresses == [f"0.0.0.0:{port}"]
        async with user_of(gateway, target.port):
            pass


async def test_two_proxies_exchange_their_ports(certs: Certs) -> None:
    async with gateway_for(certs) as gateway:
        http, socks5 = http_port(gateway), socks_port(gateway)
        found = await changes(
            gateway,
            http=ProxyOptions(bind=at(socks5)),
            socks5=ProxyOptions(bind=at(http)),
        )
        assert found == (["2 proxies moved"], [])
        assert (http_port(gateway), socks_port(gateway)) == (socks5, http)


async def test_an_address_in_use_changes_nothing(certs: Certs) -> None:
    async with serving(echo) as target, both(certs) as (gateway, _):
        taken = ProxyOptions(bind=at(target.port))
        before, port = gateway.options, http_port(gateway)
        with pytest.raises(StartError):
            await changes(gateway, http=ProxyOptions(bind=ANY), socks5=taken, login=User("a", "b"))
        assert gateway.options is before
        assert http_port(gateway) == port
        async with await connect(socks_port(gateway)):  # it listens again, on some port
            pass
        async with user_of(gateway, target.port):
            pass


async def test_another_login_of_a_proxy_is_asked_at_once(certs: Certs) -> None:
    async with serving(echo) as target, both(certs) as (gateway, _):
        options = replace(
            gateway.options.proxies["HTTP"], login=User("anna", "hers"), group=GROUP,
            group_login=False,
        )  # fmt: skip
        async with user_of(gateway, target.port) as user:
            assert await changes(gateway, http=options) == (["1 proxy changed"], [])
            assert await status(http_port(gateway), tunnel_request(target.port)) == 407
            async with user_of(gateway, target.port, "hers", "anna"):
                pass
            await user.check_echo()


# Certificates.


async def test_another_certificate_is_shown_to_new_agents(certs: Certs, tmp_path: Path) -> None:
    async with gateway_for(certs) as gateway:
        tls = ServerTls(cert=certs.other_cert, key=certs.other_key, alpn=("http/1.1",))
        old = gateway.certificates[0]
        assert await changes(gateway, tls=tls) == (["certificate"], [])
        (files,) = gateway.certificates
        assert pin(files) != pin(old)
        assert gateway._frontend.context == files.context


async def test_a_broken_certificate_changes_nothing(certs: Certs, tmp_path: Path) -> None:
    broken = tmp_path / "cert.pem"
    broken.write_text("junk")
    async with gateway_for(certs) as gateway:
        before = gateway.options
        with pytest.raises(UsageError):
            await changes(gateway, tls=ServerTls(cert=str(broken), key=certs.key), http=None)
        assert gateway.options is before
        assert len(gateway.proxies) == 2


async def test_files_of_a_new_certificate_are_followed(
    certs: Certs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtt.followed.CHECK_INTERVAL", 0.02)
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    shutil.copy(certs.cert, cert)
    shutil.copy(certs.key, key)
    async with gateway_for(certs) as gateway:
        await changes(gateway, tls=ServerTls(cert=str(cert), key=str(key), alpn=("http/1.1",)))
        (files,) = gateway.certificates
        before = pin(files)
        shutil.copy(certs.other_cert, cert)
        shutil.copy(certs.other_key, key)
        await eventually(lambda: pin(files) != before)


# Groups and agents.


async def test_another_password_of_a_group_counts_for_users_and_agents(certs: Certs) -> None:
    groups = {GROUP: GroupOptions(password=PASSWORD)}
    async with (
        serving(echo) as target,
        both(certs, groups=groups) as (gateway, _),
        user_of(gateway, target.port) as user,
    ):
        new = {GROUP: GroupOptions(password="another one")}
        assert await changes(gateway, groups=new) == (["groups"], [])
        assert await status(http_port(gateway), tunnel_request(target.port)) in (407, 502)
        await user.check_echo()
        async with agent_for(certs, gateway, id="new", password="another one"):
            async with user_of(gateway, target.port, "another one"):
                pass
            assert await status(http_port(gateway), tunnel_request(target.port)) == 407
            await user.check_echo()


async def test_agents_stay_if_their_password_is_still_right(certs: Certs) -> None:
    async with both(certs) as (gateway, agent):
        (session,) = agent.open_sessions
        new = {GROUP: GroupOptions(password=PASSWORD, max_agents=3)}
        assert await changes(gateway, groups=new) == (["groups"], [])
        assert known(gateway, agent)
        assert not session.lost


async def test_another_login_of_agents_retires_them(certs: Certs) -> None:
    async with serving(echo) as target, both(certs) as (gateway, agent):
        async with user_of(gateway, target.port) as user:
            found = await changes(gateway, login=User("agents", "secret"))
            assert found == (["login of agents"], [])
            assert not known(gateway, agent)
            await user.check_echo()
        async with agent_for(certs, gateway, id="new", login=User("agents", "secret")):
            pass


async def test_agents_with_the_current_login_stay(certs: Certs) -> None:
    old, new = User("agents", "old"), User("agents", "new")
    async with (
        both(certs) as (gateway, agent),  # without a login
        agent_for(certs, gateway, id="early", login=new) as early,
    ):
        assert await changes(gateway, login=new) == (["login of agents"], [])
        assert known(gateway, early)
        assert not known(gateway, agent)
        await changes(gateway, login=old)
        assert not known(gateway, early)


async def test_login_changes_while_an_agent_joins(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = User("agents", "old"), User("agents", "new")
    async with plain_gateway(certs, login=old) as gateway:

        async def admit(*_: Any) -> str:
            await changes(gateway, login=new)
            return ""

        monkeypatch.setattr(gateway.agents, "_admit", admit)
        assert (await verdict(gateway, login=old))[0] == 401
        assert gateway.groups.get(GROUP) is None


async def test_ports_that_are_not_allowed_any_more_close(certs: Certs) -> None:
    async with serving(echo) as target, gateway_for(certs) as gateway:
        port = OpenPort(remote_port=0, local_host="127.0.0.1", local_port=target.port)
        groups = {GROUP: GroupOptions(ports=(range(1, 65536),))}
        await changes(gateway, groups=groups)
        async with agent_for(certs, gateway, open_ports=(port,)):
            await eventually(lambda: list(gateway.ports))
            await changes(gateway, groups={GROUP: GroupOptions(ports=())})
            assert not list(gateway.ports)


# What needs a restart.


async def test_keys_that_need_a_restart_keep_their_values(certs: Certs, tmp_path: Path) -> None:
    async with gateway_for(certs) as gateway:
        before = gateway.options
        for _ in range(2):  # as long as they differ
            found = await changes(
                gateway,
                bind=Endpoint(("127.0.0.1",), 1),
                tls=None,
                credentials=CredentialOptions(kind="file", path=str(tmp_path / "file")),
                udp_timeout=3.0,
                web=WebOptions(bind=ANY),
            )
            keys = "listen_addr", "tls_cert", "credential", "udp_timeout", "web"
            assert found == ([], [f"gateway.{key}" for key in keys])
            assert gateway.options == before
        assert port_of(gateway)


async def test_nothing_listens_after_the_gateway_has_stopped(certs: Certs) -> None:
    async with gateway_for(certs, http=None) as gateway:
        gateway.cleanup()
        assert await changes(gateway, http=ProxyOptions(bind=ANY)) == ([], [])
        assert len(gateway.proxies) == 1


async def test_metrics_per_group_are_switched_on_and_off(certs: Certs) -> None:
    async with serving(echo) as target, both(certs) as (gateway, _):
        found = await changes(gateway, metrics_per_group=True)
        assert found == (["metrics per group"], [])
        async with user_of(gateway, target.port):
            line = f'mtt_group_streams_opened_total{{group="{GROUP}"}} 1\n'
            assert line in gateway.metrics_page()
        await changes(gateway, metrics_per_group=False)
        assert "mtt_group_" not in gateway.metrics_page()
