"""Client and server as two files say, such as panels write."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from anytls.client import Client
from anytls.options import client_options, server_options
from anytls.server import Server
from tests.anytls.proxying import through
from tests.anytls.serving import OWN
from tests.support.certs import Certs
from tests.support.files import written
from tests.support.tunnels import SOON, echo, port_of, serving


def lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


@contextlib.asynccontextmanager
async def started(program: Client | Server) -> AsyncIterator[None]:
    await program.start()
    try:
        yield
    finally:
        await program.close()


@pytest.mark.parametrize("style", ["sing-box", "xray"])
async def test_panel_files_carry_traffic(style: str, certs: Certs, tmp_path: Path) -> None:
    inbound = {
        "type": "anytls", "listen": "[::1]", "listen_port": "8443",
        "users": [{"name": "u", "password": "pw"}],
        "tls": {
            "enabled": True, "certificate": lines(certs.cert), "key": lines(certs.key),
            "client_authentication": "require-and-verify",
            "client_certificate": lines(certs.other_ca),
        },
    }  # fmt: skip
    given = {"config": written(tmp_path / "server.json", inbound), "b": "127.0.0.1:0", "allow": OWN}
    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        started(server := Server(server_options(given))),
    ):
        outbound: dict[str, Any]
        if style == "sing-box":
            outbound = {
                "type": "anytls", "server": "127.0.0.1", "server_port": str(port_of(server)),
                "password": "pw", "idle_session_timeout": "1d",
                "tls": {
                    "enabled": True, "server_name": certs.name, "certificate": lines(certs.ca),
                    "client_certificate": lines(certs.other_cert),
                    "client_key": lines(certs.other_key),
                    "utls": {"enabled": True, "fingerprint": "chrome"},
                },
            }  # fmt: skip
        else:
            outbound = {
                "protocol": "anytls",
                "settings": {"address": "127.0.0.1", "port": port_of(server), "password": "pw"},
                "streamSettings": {"security": "tls", "tlsSettings": {
                    "serverName": certs.name, "fingerprint": "chrome",
                    "certificates": [
                        {"usage": "verify", "certificate": lines(certs.ca)},
                        {"certificate": lines(certs.other_cert), "key": lines(certs.other_key)},
                    ],
                }},
            }  # fmt: skip
        given = {"config": written(tmp_path / "client.json", outbound), "b": "127.0.0.1:0",
                 "ignore-fingerprint": True}  # fmt: skip
        async with (
            started(client := Client(client_options(given))),
            through(client, there.port) as application,
        ):
            await application.check_echo(b"hello")
