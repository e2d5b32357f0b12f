"""curl as the client of our proxy port: each protocol, with 20 MB both ways."""

from __future__ import annotations

import asyncio
import http.client
import re
import socket
import threading
import urllib.request
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from mtt.users.user import User
from tests.proxy.direct import direct_proxy
from tests.real.absolute_form import AbsoluteForm
from tests.real.checks import http_transfers
from tests.real.destinations import PAGE, SIZE, Destination, Site, digest, payload
from tests.support.processes import run
from tests.support.programs import require_package, require_program
from tests.support.tunnels import port_of

USER = User("user", "pass:wörd")
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
    async with direct_proxy(users=[USER]) as proxy:
        given = options(WITH_LOGIN[name], port_of(proxy))
        assert await curl(*given, f"http://{site.address}/") == PAGE


async def test_curl_gets_the_reason() -> None:
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


async def test_curl_keeps_its_connection_and_the_proxy_the_origins(site: Site) -> None:
    async with direct_proxy() as proxy:
        given = options(OPTIONS["http"], port_of(proxy))
        urls = [f"http://{site.address}/{number}" for number in range(5)]
        connects = ("--write-out", "%{num_connects}\n")
        answer = await curl(*given, *connects, *urls)
        assert answer == b"".join(PAGE + line for line in [b"1\n", *[b"0\n"] * 4])
        assert len(proxy.asked) == 1


async def test_curl_posts_on_one_connection(site: Site) -> None:
    async with direct_proxy() as proxy:
        given = options(OPTIONS["http"], port_of(proxy))
        connects = ("--data-binary", "abc", "--write-out", " %{num_connects}\n")
        urls = [f"http://{site.address}/{number}" for number in range(20)]
        answer = (await curl(*given, *connects, *urls)).decode()
        line = f"3 {digest(b'abc')} "
        assert answer == f"{line}1\n" + f"{line}0\n" * 19


async def test_curl_uploads_chunks_and_waits_for_100_continue(site: Site, tmp_path: Path) -> None:
    (tmp_path / "sent").write_bytes(payload())
    async with direct_proxy() as proxy:
        given = options(OPTIONS["http"], port_of(proxy))
        upload = ("--data-binary", f"@{tmp_path / 'sent'}", "--expect100-timeout", "20")
        expect = ("--header", "Expect: 100-continue")
        answer = await curl(*given, *upload, *expect, f"http://{site.address}/")
        assert answer.decode() == f"{SIZE} {digest(payload())}"
    with Chunks() as destination:
        async with direct_proxy() as proxy:
            given = options(OPTIONS["http"], port_of(proxy))
            upload = ("--upload-file", "-", "--no-buffer", "--raw")
            argv = (require_program("curl"), *CURL, *given, *upload)
            url = f"http://{destination.address}/"
            answer = await asyncio.to_thread(run, *argv, url, stdin=b"0123456789" * 10_000)
            assert answer == b"7\r\nreceived\r\n0\r\nX-Trailer: 1\r\n\r\n".replace(b"7", b"8")
        assert b"Transfer-Encoding: chunked\r\n" in destination.head
        assert destination.body.endswith(b"\r\n0\r\n\r\n")


class Chunks(Destination):
    """Takes a chunked upload, and answers in chunks with a trailer."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.head = self.body = b""

    def _answer(self, connection: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(65536)
        self.head, _, self.body = data.partition(b"\r\n\r\n")
        self.head += b"\r\n"
        if b"100-continue" in self.head:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not self.body.endswith(b"\r\n0\r\n\r\n"):
            self.body += connection.recv(65536)
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Trailer\r\n\r\n"
            b"8\r\nreceived\r\n0\r\nX-Trailer: 1\r\n\r\n"
        )


async def test_wget_with_user_and_password_in_the_url() -> None:
    heads: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(65536)
        heads.append(data)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with Destination(answer) as destination:
        async with direct_proxy() as proxy:
            wget = (
                require_program("wget"), "--quiet", "--output-document=-", "--tries=1",
                "--execute", "use_proxy=yes", "--execute",
                f"http_proxy=http://127.0.0.1:{port_of(proxy)}",
            )  # fmt: skip
            url = f"http://user:p%40ss@{destination.address}/x"
            assert await asyncio.to_thread(run, *wget, url) == b"ok"
            # urllib leaves it in the URI.
            handler = urllib.request.ProxyHandler({"http": f"127.0.0.1:{port_of(proxy)}"})
            opener = urllib.request.build_opener(handler)
            answered = await asyncio.to_thread(opener.open, url + "#fragment")
            with answered:
                assert answered.read() == b"ok"
    authorization = b"Authorization: Basic " + b64encode(b"user:p@ss") + b"\r\n"
    assert len(heads) == 2
    for head in heads:
        assert head.startswith(b"GET /x HTTP/1.1\r\n")
        assert authorization in head
        assert b"@" not in head


async def test_http_client_of_python_uses_its_connection_again(site: Site) -> None:
    def requests(port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        for number in range(50):
            connection.request("POST", f"http://{site.address}/{number}", b"x" * number)
            body = connection.getresponse().read()
            assert body.decode() == f"{number} {digest(b'x' * number)}"
            before = connection.sock
            connection.request("HEAD", f"http://{site.address}/")
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (501, b"")  # it has no do_HEAD
            assert connection.sock is before
        connection.close()

    async with direct_proxy() as proxy:
        await asyncio.to_thread(requests, port_of(proxy))


async def test_ab_with_and_without_keep_alive(site: Site) -> None:
    async with direct_proxy() as proxy:
        for keep in ((), ("-k",)):
            output = await asyncio.to_thread(
                run, require_program("ab"), "-q", *keep, "-n", "200", "-c", "10",
                "-X", f"127.0.0.1:{port_of(proxy)}", f"http://{site.address}/",
            )  # fmt: skip
            assert re.search(rb"Complete requests: +200\n", output)
            assert re.search(rb"Failed requests: +0\n", output)


async def test_a_websocket_through_the_plain_proxy_port() -> None:
    server = require_package("websockets.sync.server")
    client = require_package("websockets.sync.client")

    def echo(websocket: Any) -> None:
        for message in websocket:
            websocket.send(message)

    def talk(proxy_port: int, port: int) -> None:
        sock = socket.create_connection(("127.0.0.1", proxy_port), timeout=20)
        # What a client does that takes the port for an ordinary HTTP proxy.
        sock.sendall(f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        while not sock.recv(65536).endswith(b"hello"):
            pass
        with client.connect(f"ws://127.0.0.1:{port}/", sock=AbsoluteForm(sock, port)) as websocket:
            for message in ("hello", payload(1_000_000)):
                websocket.send(message)
                assert websocket.recv() == message

    def page(connection: Any, request: Any) -> Any:
        upgrade = request.headers.get("Upgrade")
        return None if upgrade else connection.respond(200, "hello")

    with server.serve(echo, "127.0.0.1", 0, process_request=page, max_size=None) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        try:
            async with direct_proxy() as proxy:
                port = serving.socket.getsockname()[1]
                await asyncio.to_thread(talk, port_of(proxy), port)
        finally:
            serving.shutdown()
            thread.join()
