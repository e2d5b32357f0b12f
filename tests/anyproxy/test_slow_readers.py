"""Users who stop reading, and the others behind the same agent."""

from __future__ import annotations

from mtt.layers.mux_tunnel import OWN_BUDGET, STOP_AT
from mtt.layers.smux import SmuxSession
from tests.anyproxy.serving import both, http_port
from tests.anyproxy.users import tunnel_request, user_of
from tests.support.certs import Certs
from tests.support.tunnels import Tcp, connect, echo, eventually, serving


async def test_downloads_that_stop_do_not_stop_other_users(certs: Certs) -> None:
    async def bulk(connection: Tcp) -> None:
        while True:
            await connection.send(bytes(256 * 1024))

    count = OWN_BUDGET // STOP_AT + 8  # more than a session of a tunnel could hold
    async with (
        serving(bulk) as large,
        serving(echo) as target,
        both(certs) as (gateway, _),
        user_of(gateway, target.port) as before,
    ):
        (session,) = gateway._frontend.sessions
        assert isinstance(session, SmuxSession)
        stopped = []
        for _ in range(count):
            stopped.append(await connect(http_port(gateway), buffer=4096))
            await stopped[-1].send(tunnel_request(large.port))
            assert b" 200 " in await stopped[-1].until(b"\r\n\r\n")
        streams = session._streams.values()
        await eventually(lambda: sum(each.queued > STOP_AT for each in streams) == count)
        assert session._queued > OWN_BUDGET
        assert session.healthy
        await before.check_echo()
        async with user_of(gateway, target.port) as after:
            await after.check_echo()
        for each in stopped:
            each.reset()
        await eventually(lambda: not session._queued)
