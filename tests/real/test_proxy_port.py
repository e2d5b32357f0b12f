"""curl as the client of our proxy port: each protocol, with 20 MB both ways."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mtt.proxy.port import Login
from tests.proxy.direct import direct_proxy, port_of
from tests.real.checks import http_transfers
from tests.real.destinations import PAGE, Site
from tests.support.processes import run
from tests.support.programs import require_program

USER = Login("user", "pass:wörd")
# curl wants them percent-encoded in a URL.
IN_URL = "user:pass%3Aw%C3%B6rd@"

OPTIONS = {
    "socks5-hostname": ("--socks5-hostname", "127.0.0.1:{port}"),
    "socks5": ("--socks5", "127.0.0.1:{port}"),
    "socks4": ("--socks4", "127.0.0.1:{port}"),
    "socks4a": ("--socks4a", "127.0.0.1:{port}"),
    "http": ("--proxy", "http://127.0.0.1:{port}"),
    "http-connect": ("--proxytunnel", "--proxy", "http://127.0.0.1:{port}"),
}  # fmt: skip
WITH_LOGIN = {
    "socks5": ("--proxy", f"socks5h://{IN_URL}127.0.0.1:{{port}}"),
    "http": ("--proxy", f"http://{IN_URL}127.0.0.1:{{port}}"),
    "http-connect": ("--proxytunnel", "--proxy", f"http://{IN_URL}127.0.0.1:{{port}}"),
    # Asks without at first, and comes again.
    "http-any": ("--proxy-anyauth", "--proxy", f"http://{IN_URL}127.0.0.1:{{port}}"),
}


def options(of: tuple[str, ...], port: int) -> list[str]:
    return [option.format(port=port) for option in of]


CURL = ("--silent", "--fail", "--max-time", "25")


async def curl(*arguments: str) -> bytes:
    return await asyncio.to_thread(run, require_program("curl"), *CURL, *arguments)


@pytest.mark.parametrize("name", OPTIONS)
async def test_curl(name: str, site: Site, tmp_path: Path) -> None:
    async with direct_proxy() as proxy:
        proxy.names.add("site.test")
        # With the other two it is curl that looks names up.
        host = "127.0.0.1" if name in ("socks5", "socks4") else "site.test"
        base = f"http://{host}:{site.address.rpartition(':')[2]}"
        given = options(OPTIONS[name], port_of(proxy))
        await asyncio.to_thread(http_transfers, base, tmp_path, *given)
        assert {asked for asked, _ in proxy.asked} == {host}


@pytest.mark.parametrize("name", WITH_LOGIN)
async def test_curl_with_user_and_password(name: str, site: Site) -> None:
    async with direct_proxy(logins=[USER]) as proxy:
        given = options(WITH_LOGIN[name], port_of(proxy))
        assert await curl(*given, f"http://{site.address}/") == PAGE


async def test_curl_is_told_why() -> None:
    async with direct_proxy() as proxy:
        # 97 is a SOCKS proxy's no, 22 an HTTP status; to a CONNECT it depends on the version.
        for name, expected in (
            ("socks5-hostname", "97 000 000"),
            ("socks4a", "97 000 000"),
            ("http", "22 502 000"),
            ("http-connect", "000 502"),
        ):
            given = options(OPTIONS[name], port_of(proxy))
            what = ("--write-out", "%{exitcode} %{http_code} %{http_connect}")
            # By a shell, because curl exits with that code.
            shell = ("sh", "-c", '"$@" || true', "sh", require_program("curl"), *CURL, *what)
            line = await asyncio.to_thread(run, *shell, *given, "http://127.0.0.1:1/")
            assert line.decode().endswith(expected)


async def test_requests_for_which_curl_would_keep_its_connection(site: Site) -> None:
    async with direct_proxy() as proxy:
        given = options(OPTIONS["http"], port_of(proxy))
        urls = [f"http://{site.address}/{number}" for number in range(3)]
        assert await curl(*given, *urls) == PAGE * 3
        assert len(proxy.asked) == 3
