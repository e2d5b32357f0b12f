"""Users of the server: their numbers, and their file read again."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from mtt.users import accounts
from tests.anytls.serving import empty, server_for
from tests.anytls.streams import HERE, check_echo
from tests.support.anytlspeer import SYNACK, peer_connect
from tests.support.certs import Certs
from tests.support.metrics import parse
from tests.support.tunnels import SOON, echo, eventually, logged, port_of, serving


def write_users(path: Path, **users: str) -> str:
    path.write_text("".join(f"{name}:{password}\n" for name, password in users.items()))
    path.chmod(0o600)
    return str(path)


async def test_many_users_each_with_their_own_counters(
    certs: Certs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "MAX_SHOWN", 3)
    users = {f"user{n}": f"secret {n}" for n in range(10_000)} | {'a"b\\c': "odd one"}
    path = write_users(tmp_path / "users", **users)
    who = ('a"b\\c', "user9999", "user0", "user17", "user5000")
    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        server_for(certs, users=path) as server,
    ):
        for number, name in enumerate(who, 1):
            async with await peer_connect(port_of(server), certs, password=users[name]) as peer:
                await peer.open(1, HERE, there.port, b"x" * number)
                assert await peer.frame() == (SYNACK, 1, b"")
                assert await peer.data(1, number) == b"x" * number
                page = parse(server.metrics_page())
                shown = name if number <= 3 else ""
                label = shown.replace("\\", "\\\\").replace('"', '\\"')
                assert page[f'mtt_anytls_user_sessions{{user="{label}"}}'] == 1
            await eventually(lambda: empty(server))
        page = parse(server.metrics_page())
        prefix = "mtt_anytls_user_"
        up = {
            name.partition('user="')[2].partition('",direction="up"')[0]: value
            for name, value in page.items()
            if name.startswith(f"{prefix}transferred_bytes_total") and '"up"' in name
        }
        # Those that came after the third stand together.
        assert up == {'a\\"b\\\\c': 1, "user9999": 2, "user0": 3, "": 4 + 5}
        assert page[f'{prefix}streams_opened_total{{user=""}}'] == 2
        assert page[f'{prefix}sessions{{user="user0"}}'] == 0
        assert len([name for name in page if name.startswith(prefix)]) == 4 * 4


async def test_users_are_read_again_and_former_ones_are_cut(certs: Certs, tmp_path: Path) -> None:
    path = write_users(tmp_path / "users", stays="one", leaves="two", changes="three")
    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        server_for(certs, users=path) as server,
    ):
        peers = {
            password: await peer_connect(port_of(server), certs, password=password)
            for password in ("one", "two", "three")
        }
        for peer in peers.values():
            await check_echo(peer, 1, there.port)
        with logged() as lines:
            write_users(tmp_path / "users", stays="one", changes="new", comes="four")
            server.reload()
            await eventually(lambda: any("reloaded: users: 3; " in line for line in lines))
        assert any(line.endswith("sessions of removed users cut: 2") for line in lines)
        for password in ("two", "three"):
            with pytest.raises(ConnectionError):
                await peers[password].frame()
        await check_echo(peers["one"], 2, there.port)
        for password in ("new", "four"):
            async with await peer_connect(port_of(server), certs, password=password) as peer:
                await check_echo(peer, 1, there.port)
        page = parse(server.metrics_page())
        assert page['mtt_anytls_user_streams_opened_total{user="changes"}'] == 2
        assert 'mtt_anytls_user_streams_opened_total{user="leaves"}' not in page

        (tmp_path / "users").write_text("nonsense\n")
        with logged() as lines:
            server.reload()
            await eventually(lambda: any("the old users stay in use" in line for line in lines))
        await check_echo(peers["one"], 3, there.port)
        for peer in peers.values():
            peer.tls.close()


async def test_announcement_counts_renewed_users(certs: Certs, tmp_path: Path) -> None:
    path = write_users(tmp_path / "users", one="1", two="2")
    async with server_for(certs, users=path) as server:
        with logged() as lines:
            server.announce()
            assert f"listening on {server.addresses[0]}, AnyTLS, users: 2; cert" in lines[0]
            write_users(tmp_path / "users", one="1", two="2", three="3")
            server.renew()
            server.announce()
            assert ", users: 3; " in lines[1]
            Path(path).unlink()
            server.renew()
            assert "ERROR the old users stay in use: -users: cannot read" in lines[2]
            os.mkfifo(path)
            server.renew()  # without a wait for a writer
            assert f"-users: {path} is a pipe, which is read at the start alone" in lines[3]
