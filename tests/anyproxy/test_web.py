"""The JSON interface for pages of a running gateway and agent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest

from anyproxy import agent_reload, gateway_reload, web
from anyproxy.agent import Agent
from anyproxy.gateway import Gateway
from anyproxy.options import GatewayOptions, WebOptions
from anyproxy.web import go_duration
from anyproxy.web_views import add_to_agent, add_to_gateway
from mtt.trust.tls_options import ServerTls
from mtt.users.user import User
from tests.anyproxy.configs import agent_of, error_of_gateway, gateway_of, merged
from tests.anyproxy.serving import ANY, agent_options, gateway_options, http_port, known
from tests.anyproxy.users import status, tunnel_request, user_of
from tests.support.certs import Certs
from tests.support.stacks import client_context
from tests.support.tunnels import connect, echo, eventually, logged, port_of, serving

ADMIN = User("admin", "a secret of the page")
PLAIN = WebOptions(bind=ANY)
WITH_LOGIN = WebOptions(bind=ANY, login=ADMIN)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.status == 200
        assert self.headers["content-type"] == "application/json"
        assert self.headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in self.headers
        return json.loads(self.body)


@contextlib.asynccontextmanager
async def pages(
    certs: Certs, options: WebOptions = PLAIN
) -> AsyncIterator[tuple[Gateway, Agent]]:
    """A gateway and its agent, both with the interface."""
    gateway = Gateway(gateway_options(certs, web=options))
    add_to_gateway(gateway, options)
    await gateway.start()
    agent = Agent(agent_options(certs, port_of(gateway), web=options))
    add_to_agent(agent, options)
    try:
        await agent.start()
        await eventually(lambda: known(gateway, agent))
        yield gateway, agent
    finally:
        await agent.close()
        await gateway.close()


async def ask(
    service: Gateway | Agent, path: str, *headers: str, method: str = "GET", body: bytes = b""
) -> Answer:
    assert service.web is not None
    port = int(service.web.addresses[0].rpartition(":")[2])
    lines = [f"{method} {path} HTTP/1.1", *headers, f"Content-Length: {len(body)}"]
    if not any(each.startswith("Host:") for each in headers):
        lines.insert(1, f"Host: 127.0.0.1:{port}")
    async with await connect(port) as peer:
        await peer.send("\r\n".join([*lines, "", ""]).encode() + body)
        first, *rest = (await peer.until(b"\r\n\r\n")).decode().strip().split("\r\n")
        found = {name.lower(): value for name, value in (each.split(": ", 1) for each in rest)}
        length = int(found.get("content-length", "0"))
        return Answer(int(first.split()[1]), found, await peer.exactly(length))


async def log_in(
    service: Gateway | Agent, name: str = ADMIN.name, password: str = ADMIN.password, *headers: str
) -> Answer:
    body = json.dumps({"username": name, "password": password}).encode()
    return await ask(service, "/api/auth/login", *headers, method="POST", body=body)


def cookie(answer: Answer) -> str:
    """The header that sends the answer's cookie."""
    return f"Cookie: other=1; {answer.headers['set-cookie'].partition(';')[0]}"


# Figures.


async def test_gateway_shows_its_figures(certs: Certs, refused_port: int) -> None:
    async with serving(echo) as target, pages(certs) as (gateway, _):
        async with user_of(gateway, target.port):
            await status(http_port(gateway), tunnel_request(refused_port))
            found = (await ask(gateway, "/api/metrics/global")).json
            uptime = found.pop("uptime")
            assert re.fullmatch(r"(\d+m)?[\d.]+m?s", uptime)
            assert found == {
                "active_connections": 1,
                "total_connections": 1,
                "bytes_sent": 1,
                "bytes_received": 1,
                "error_count": 1,
                "success_rate": 50.0,
            }

            clients = (await ask(gateway, "/api/metrics/clients")).json
            (name,) = clients
            client = clients[name]
            assert name == client["client_id"]
            assert name.startswith("agent-r0")
            assert client["is_online"] is True
            assert client["active_connections"] == client["bytes_sent"] == 1
            one = await ask(gateway, f"/api/metrics/clients?client_id={name}")
            assert one.json["client_id"] == name
            assert (await ask(gateway, "/api/metrics/clients?client_id=none")).status == 404

            connections = (await ask(gateway, "/api/metrics/connections")).json
            ((number, connection),) = connections.items()
            assert connection["connection_id"] == number
            assert connection["client_id"] == name
            assert connection["target_host"] == f"127.0.0.1:{target.port}"
            assert (connection["bytes_sent"], connection["bytes_received"]) == (1, 1)
            assert connection["status"] == "active"
            age = datetime.now(UTC) - datetime.fromisoformat(connection["start_time"])
            assert 0 <= age.total_seconds() < 30
            assert 0 < connection["duration"] < 30 * 10**9
            one = await ask(gateway, f"/api/metrics/connections?conn_id={number}")
            assert one.json["target_host"] == connection["target_host"]
            assert (await ask(gateway, "/api/metrics/connections?conn_id=0")).status == 404
        await eventually(lambda: not gateway.tunnels)
        assert (await ask(gateway, "/api/metrics/connections")).json == {}


async def test_agent_shows_its_figures(certs: Certs) -> None:
    async with (
        serving(echo) as target,
        pages(certs) as (gateway, agent),
        user_of(gateway, target.port),
    ):
        found = (await ask(agent, "/api/status")).json
        assert found["client_id"] == "agent"
        assert found["status"] == "running"
        counts = {
            "active_connections": 1,
            "total_connections": 1,
            "bytes_sent": 1,
            "bytes_received": 1,
            "error_count": 0,
        }
        assert found["local_metrics"] == counts
        assert found["client_metrics"]["is_online"] is True
        (connection,) = (await ask(agent, "/api/metrics/connections")).json.values()
        assert connection["target_host"] == f"127.0.0.1:{target.port}"


async def test_targets_of_ended_streams_are_dropped(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anyproxy.web_views.MIN_TARGETS", 2)
    async with serving(echo) as target, pages(certs) as (gateway, _):
        assert gateway.on_stream is not None
        views = gateway.on_stream.__self__  # type: ignore[attr-defined]
        for _ in range(8):
            async with user_of(gateway, target.port):
                assert len(views._targets) <= 4
            await eventually(lambda: not gateway.tunnels)


@pytest.mark.parametrize("path", ["/", "/index.html", "/api/clash/profile", "/api/auth/login"])
async def test_there_is_nothing_else(path: str, certs: Certs) -> None:
    async with pages(certs) as (gateway, agent):
        assert (await ask(gateway, path)).status == 404
        assert (await ask(agent, path)).status == 404
        assert (await ask(gateway, path, method="POST")).status == 404
        assert (await ask(gateway, "/api/metrics/global", method="POST")).status == 405


# Logins.


async def test_figures_need_a_login(certs: Certs) -> None:
    async with pages(certs, WITH_LOGIN) as (gateway, agent):
        for service, path in ((gateway, "/api/metrics/global"), (agent, "/api/status")):
            answer = await ask(service, path)
            assert (answer.status, answer.body) == (401, b"Authentication required\n")
            assert (await ask(service, "/api/other")).status == 401
            check = (await ask(service, "/api/auth/check")).json
            assert check == {"authenticated": False, "expires_at": "0001-01-01T00:00:00Z"}

            login = await log_in(service)
            value = login.json
            ends = datetime.fromisoformat(value.pop("expires_at")) - datetime.now(UTC)
            assert 86_000 < ends.total_seconds() <= 86_400
            assert value == {
                "status": "success", "message": "Login successful", "username": "admin",
            }  # fmt: skip
            name = "gateway" if service is gateway else "client"
            assert re.fullmatch(
                rf"{name}_session_id=[0-9a-f]{{64}}; Path=/; Max-Age=86400; HttpOnly; "
                "SameSite=Strict",
                login.headers["set-cookie"],
            )
            assert (await ask(service, path, cookie(login))).status == 200
            check = (await ask(service, "/api/auth/check", cookie(login))).json
            assert (check["authenticated"], check["username"]) == (True, "admin")

            out = await ask(service, "/api/auth/logout", cookie(login), method="POST")
            assert out.json == {"status": "success"}
            assert "Max-Age=0" in out.headers["set-cookie"]
            assert (await ask(service, path, cookie(login))).status == 401
            assert (await ask(service, path, "Cookie: gateway_session_id=")).status == 401


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"username": 1, "password": 2}', b"[" * 4000, b'{"username": "\\ud800"}'],
)
async def test_malformed_logins_are_refused(body: bytes, certs: Certs) -> None:
    async with pages(certs, WITH_LOGIN) as (gateway, _):
        answer = await ask(gateway, "/api/auth/login", method="POST", body=body)
        assert answer.status == 400


async def test_long_logins_are_refused(certs: Certs) -> None:
    async with pages(certs, WITH_LOGIN) as (gateway, _):
        answer = await ask(gateway, "/api/auth/login", method="POST", body=bytes(4096))
        assert answer.status == 413
        assert (await ask(gateway, "/api/auth/login")).status == 405


async def test_guesses_are_slowed_down_and_logged_without_passwords(certs: Certs) -> None:
    async with pages(certs, WITH_LOGIN) as (gateway, _):
        with logged() as lines:
            for number in range(10):
                assert (await log_in(gateway, "admin", f"guess {number}")).status == 401
            assert (await log_in(gateway)).status == 403
        assert any("login refused: wrong user or password" in line for line in lines)
        assert not any("guess" in line or ADMIN.password in line for line in lines)


async def test_guesses_count_together_with_those_at_proxies(certs: Certs) -> None:
    async with pages(certs, WITH_LOGIN) as (gateway, _):
        for number in range(5):
            assert (await log_in(gateway, "admin", f"guess {number}")).status == 401
            assert await status(http_port(gateway), tunnel_request(1, "wrong")) == 407
        assert (await log_in(gateway)).status == 403
        assert await status(http_port(gateway), tunnel_request(1)) == 407


async def test_sessions_end_after_a_day_without_requests(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pages(certs, WITH_LOGIN) as (gateway, _):
        first = await log_in(gateway)
        monkeypatch.setattr(web, "SESSION_TIME", 0.0)
        second = await log_in(gateway)
        assert (await ask(gateway, "/api/metrics/global", cookie(second))).status == 401
        assert (await ask(gateway, "/api/metrics/global", cookie(first))).status == 200
        assert (await ask(gateway, "/api/metrics/global", cookie(first))).status == 401


async def test_sessions_are_limited(certs: Certs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MAX_SESSIONS", 2)
    async with pages(certs, WITH_LOGIN) as (gateway, _):
        answers = [await log_in(gateway) for _ in range(3)]
        path = "/api/metrics/global"
        found = [(await ask(gateway, path, cookie(each))).status for each in answers]
        assert found == [401, 200, 200]


async def test_another_login_ends_all_sessions(certs: Certs) -> None:
    new = User("admin", "another one")
    async with pages(certs, WITH_LOGIN) as (gateway, agent):
        for service, path in ((gateway, "/api/metrics/global"), (agent, "/api/status")):
            session = cookie(await log_in(service))
            options = replace(service.options, web=replace(WITH_LOGIN, login=new))
            found = (
                await gateway_reload.apply(gateway, options)
                if isinstance(options, GatewayOptions)
                else await agent_reload.apply(agent, options)
            )
            assert (found.done, found.refused) == (["login of web"], [])
            assert (await ask(service, path, session)).status == 401
            assert (await log_in(service)).status == 401
            session = cookie(await log_in(service, new.name, new.password))
            assert (await ask(service, path, session)).status == 200


async def test_a_login_cannot_be_taken_away_without_a_restart(certs: Certs) -> None:
    async with pages(certs, WITH_LOGIN) as (gateway, agent):
        done = await gateway_reload.apply(gateway, replace(gateway.options, web=PLAIN))
        assert (done.done, done.refused) == ([], ["gateway.web"])
        done = await agent_reload.apply(agent, replace(agent.options, web=None))
        assert (done.done, done.refused) == ([], ["client.web"])
        assert (await ask(gateway, "/api/metrics/global")).status == 401


async def test_cookies_are_secure_with_tls(certs: Certs) -> None:
    tls = ServerTls(cert=certs.cert, key=certs.key, alpn=("http/1.1",))
    options = WebOptions(bind=ANY, login=ADMIN, tls=tls)
    async with pages(certs, options) as (gateway, _):
        assert gateway.web is not None
        host, port = gateway.web.addresses[0].split(":")
        reader, writer = await asyncio.open_connection(
            host, int(port), ssl=client_context(certs), server_hostname=certs.name
        )
        body = json.dumps({"username": ADMIN.name, "password": ADMIN.password})
        writer.write(
            f"POST /api/auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}"
            .encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"SameSite=Strict; Secure\r\n" in head
        writer.close()
        await writer.wait_closed()


# Pages of other sites.


async def test_other_sites_are_refused(certs: Certs) -> None:
    own = "Host: 127.0.0.1:8090", "Origin: http://127.0.0.1:8090"
    async with pages(certs) as (gateway, _):
        path = "/api/metrics/global"
        assert (await ask(gateway, path, *own)).status == 200
        assert (await ask(gateway, path, own[0], "Origin: http://evil.example")).status == 403
        assert (await ask(gateway, path, own[0], "Origin: null")).status == 403
        assert (await ask(gateway, path, "Host: evil.example")).status == 403


async def test_names_of_the_server_are_accepted_with_a_login(certs: Certs) -> None:
    own = "Host: gateway.example", "Origin: https://gateway.example"
    async with pages(certs, WITH_LOGIN) as (gateway, _):
        assert (await log_in(gateway, ADMIN.name, ADMIN.password, *own)).status == 200
        evil = own[0], "Origin: https://evil.example"
        assert (await log_in(gateway, ADMIN.name, ADMIN.password, *evil)).status == 403


# Values and configuration.


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "250ms"), (1, "1s"), (324.7, "5m24.7s"), (3600, "1h0m0s"), (90_061.5, "25h1m1.5s")],
)
def test_durations_are_written_as_in_go(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text


GATEWAY: dict[str, Any] = {"gateway": {"listen_addr": "127.0.0.1:1"}}
CLIENT: dict[str, Any] = {
    "client": {"id": "a", "group_id": "b", "gateway": {"addr": "127.0.0.1:1"}}
}
LOGIN = {"auth_enabled": "true", "auth_username": "admin", "auth_password": "secret"}


def test_options() -> None:
    section = {"enabled": True, "listen_addr": "127.0.0.1:8090", "session_key": "x"}
    assert gateway_of(GATEWAY).web is None
    assert gateway_of(merged(GATEWAY, "gateway.web", section | {"enabled": False})).web is None
    options = gateway_of(merged(GATEWAY, "gateway.web", section)).web
    assert options is not None
    assert (str(options.bind), options.login) == ("127.0.0.1:8090", None)
    options = agent_of(merged(CLIENT, "client.web", section | LOGIN)).web
    assert options is not None
    assert options.login == User("admin", "secret")


@pytest.mark.parametrize(
    ("section", "error"),
    [
        ({}, "listen_addr: missing"),
        ({"listen_addr": ":8090"}, "auth_enabled: everyone could read the figures at "),
        ({"listen_addr": "127.0.0.1:1"} | LOGIN | {"auth_password": ""}, "auth_password: missing"),
        ({"listen_addr": "127.0.0.1:1"} | LOGIN | {"auth_username": ""}, "auth_username: missing"),
        ({"listen_addr": "127.0.0.1:1", "tls_cert": "x"}, "tls_cert: needs tls_key"),
    ],
)
def test_unsafe_options_are_refused(section: dict[str, Any], error: str) -> None:
    found = error_of_gateway(merged(GATEWAY, "gateway.web", {"enabled": True} | section))
    assert f"gateway.web.{error}" in found
