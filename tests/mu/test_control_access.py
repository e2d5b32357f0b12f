"""The controller's endpoint: access, and where it listens.

The rules by themselves are in tests.http.test_access.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from pathlib import Path

import pytest

from mtt.errors import StartError
from tests.mu.panel import Panel, multi_user_server
from tests.mu.posting import PING, closing, post, status
from tests.support.certs import Certs
from tests.support.contexts import trusting_context
from tests.support.tunnels import logged

TOKEN = "0123456789abcdef-._~+/="


async def test_pages_in_browsers_are_refused(certs: Certs) -> None:
    body = b'{"opt":1,"args_bunch":[{"path":"/a","dst":"h:1"}]}'
    with logged() as lines:
        async with multi_user_server(certs) as (_, panel):
            for origin in ("http://evil.example", "null", f"http://{panel.address}", ""):
                assert status(await panel.exchange(post(body, f"Origin: {origin}"))) == 403
            assert status(await panel.exchange(post(body, host="evil.example"))) == 403
            for path in ("/healthz", "/metrics"):
                request = f"GET {path} HTTP/1.1\r\nHost: evil.example\r\n\r\n".encode()
                assert status(await panel.exchange(request)) == 403
            assert await panel.command(9) == {"res": 1}
    assert not any("/a" in line for line in lines)


async def test_unix_socket(certs: Certs, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    before = os.umask(0)
    try:
        async with multi_user_server(certs, c=f"unix:{path}") as (_, panel):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert await panel.command(9) == {"res": 1}
            assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert not path.exists()


async def test_in_public_with_token_and_tls(certs: Certs, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    context = trusting_context(certs.ca)
    given = {"c": "0.0.0.0:0", "c-token-file": str(token), "c-cert": certs.cert,
             "c-key": certs.key}  # fmt: skip
    with logged() as lines:
        async with multi_user_server(certs, **given) as (server, _):
            port = int(server.controller_addresses[0].rpartition(":")[2])

            async def ask(request: bytes) -> int:
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", port, ssl=context, server_hostname=certs.name
                )
                writer.write(request)
                answer = await reader.read()
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()
                return status(answer)

            header = f"Authorization: Bearer {TOKEN}"
            assert await ask(closing(PING, header, host=certs.name)) == 200
            assert await ask(closing(PING, header, host="192.0.2.1")) == 200
            assert await ask(closing(PING, host=certs.name)) == 401
            assert await ask(closing(PING, header, host="evil.example")) == 403
            get = f"GET /metrics HTTP/1.1\r\nHost: {certs.name}\r\n\r\n".encode()
            assert await ask(get) == 401
            # In clear there is no answer to a question.
            plain = await Panel(f"127.0.0.1:{port}").exchange(closing(PING, header))
            assert b"res" not in plain
    assert not any(TOKEN in line for line in lines)


async def test_the_port_is_taken(certs: Certs, tmp_path: Path) -> None:
    async with multi_user_server(certs) as (_, panel):
        with pytest.raises(StartError, match="cannot listen"):
            async with multi_user_server(certs, c=panel.address, db=str(tmp_path / "db")):
                pass
    async with multi_user_server(certs, db=str(tmp_path / "db")) as (_, panel):
        assert await panel.command(9) == {"res": 1}  # the database was closed
