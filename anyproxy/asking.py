"""How an agent asks a gateway to let it join: the request for a WebSocket, and the answer."""

from __future__ import annotations

import asyncio
from base64 import b64encode

from anyproxy.options import AGENT_PATH, AgentOptions
from mtt.address import Endpoint
from mtt.errors import Cause, MttError, PeerError, RefusedError
from mtt.layers.base import StreamTransport
from mtt.layers.upgrade import UpgradeClient
from mtt.outbound.connector import CONNECT_TIME
from mtt.wire.agent import SUBPROTOCOL

# The gateway's answers to agents that it does not admit.
_REFUSALS = {401: "wrong login; check auth_username and auth_password", 403: "forbidden"}
# Characters of a gateway's reason that are logged.
_MAX_REASON = 200


async def ask_to_join(
    transport: StreamTransport, gateway: Endpoint, client_id: str, options: AgentOptions
) -> str | None:
    """Have a new connection upgraded. Returns the subprotocol; None from the Go program.

    Raises RefusedError if the gateway does not admit the agent, and PeerError and NetworkError,
    naming the gateway; the connection is aborted.
    """
    try:
        upgrade = UpgradeClient(
            transport,
            AGENT_PATH,
            gateway.host,
            (SUBPROTOCOL,),
            port=gateway.port,
            headers=_headers(client_id, options),
        )
        async with asyncio.timeout(CONNECT_TIME):
            await upgrade.answered()
    except BaseException as error:
        transport.abort()
        if isinstance(error, TimeoutError):
            text = f"{gateway}: no answer within {CONNECT_TIME:g} s"
            raise PeerError(text, cause=Cause.TIMEOUT) from None
        if not isinstance(error, MttError):
            raise
        if upgrade.status in _REFUSALS:
            raise RefusedError(f"{gateway}: {_refusal(upgrade)}") from None
        raise type(error)(f"{gateway}: {error}") from None
    return upgrade.protocol


def _headers(client_id: str, options: AgentOptions) -> dict[str, str]:
    headers = {
        "X-Client-Id": client_id,
        "X-Group-Id": options.group,
        "X-Group-Password": options.password,
    }
    if options.login is not None:
        login = f"{options.login.name}:{options.login.password}"
        headers["Authorization"] = f"Basic {b64encode(login.encode()).decode('ascii')}"
    return headers


def _refusal(upgrade: UpgradeClient) -> str:
    """Why the gateway refuses the agent, for the log. A 403 has the reason in its body."""
    text = _REFUSALS[upgrade.status]
    if upgrade.status == 403:
        line = upgrade.body.partition(b"\n")[0].decode("ascii", "replace")
        # A proxy on the way may answer with a page.
        if line.isprintable() and 0 < len(line) <= _MAX_REASON and "<" not in line:
            text = line
    return f"the gateway refuses this agent: {upgrade.status}, {text}"
