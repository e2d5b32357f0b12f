"""anytls-client and anytls-server as programs, with curl and a resolver as applications."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from pathlib import Path

import pytest

from mtt.layers.anytls_heads import PREAMBLE_TIME
from mtt.wire.dns import build_query, parse_response
from tests.net.fake_dns import fake_dns, holding
from tests.proxy.clients import socks5
from tests.proxy.test_association import Udp, ask
from tests.real.checks import http_transfers
from tests.real.destinations import PAGE, Destination, Site, payload, read_to_end, speak_and_close
from tests.support.certs import Certs
from tests.support.processes import Process, Processes, eventually, free_port, listening, run
from tests.support.programs import require_package, require_program
from tests.support.tunnels import cancel, connect

PASSWORD = "päss;word of the tests"
# Tests have only this machine to go to, which is denied otherwise.
OWN = ("-allow", "127.0.0.0/8", "-allow", "::1/128")

OPTIONS = {
    "socks5-hostname": ("--socks5-hostname", "127.0.0.1:{port}"),
    "socks5": ("--socks5", "127.0.0.1:{port}"),
    "socks4a": ("--socks4a", "127.0.0.1:{port}"),
    "http": ("--proxy", "http://127.0.0.1:{port}"),
    "http-connect": ("--proxytunnel", "--proxy", "http://127.0.0.1:{port}"),
}
CURL = ("--silent", "--show-error", "--fail", "--max-time", "25")


class Pair:
    """Starts both programs; the password comes from a file."""

    def __init__(self, processes: Processes, certs: Certs, directory: Path) -> None:
        self._processes = processes
        self._certs = certs
        self.name, self.ca = certs.name, certs.ca
        self.password = directory / "password"
        self.password.write_text(PASSWORD + "\n")
        self.password.chmod(0o600)

    def server(self, *options: str | Path, port: int = 0) -> tuple[Process, int]:
        server = self._processes.command(
            "anytls-server", "-b", f"127.0.0.1:{port}", "-password-file", self.password,
            "-cert", self._certs.cert, "-key", self._certs.key, *OWN, *options,
        )  # fmt: skip
        return server, listening(server)[1]

    def client(self, server: int, *options: str | Path) -> tuple[Process, int]:
        client = self._processes.command(
            "anytls-client", "-b", "127.0.0.1:0", "-s", f"127.0.0.1:{server}",
            "-password-file", self.password, "-n", self._certs.name, "-ca", self._certs.ca,
            *options,
        )  # fmt: skip
        return client, listening(client)[1]


@pytest.fixture
def pair(processes: Processes, certs: Certs, tmp_path: Path) -> Pair:
    return Pair(processes, certs, tmp_path)


def proxy_options(name: str, port: int) -> list[str]:
    return [option.format(port=port) for option in OPTIONS[name]]


def fetch(port: int, url: str, name: str = "socks5-hostname") -> bytes:
    return run(require_program("curl"), *CURL, *proxy_options(name, port), url)


def datagram_head(port: int) -> bytes:
    """What SOCKS puts before a datagram to or from a port of this machine."""
    return b"\0\0\0\1\x7f\0\0\1" + port.to_bytes(2, "big")


def fails(port: int, url: str) -> str:
    """curl's exit code, and what it says: 97 and a number for the SOCKS proxy's no."""
    curl = (require_program("curl"), "--silent", "--max-time", "20")
    what = ("--write-out", "%{exitcode} %{errormsg}", *proxy_options("socks5-hostname", port))
    # By a shell, because curl exits with that code.
    return run("sh", "-c", '"$@" || true', "sh", *curl, *what, url).decode()


@pytest.mark.parametrize("name", OPTIONS)
def test_curl(name: str, pair: Pair, site: Site, tmp_path: Path) -> None:
    server, server_port = pair.server()
    client, port = pair.client(server_port)
    # With --socks5 it is curl that looks names up.
    host = "127.0.0.1" if name == "socks5" else "localhost"
    base = f"http://{host}:{site.address.rpartition(':')[2]}"
    http_transfers(base, tmp_path, *proxy_options(name, port))
    for process in (client, server):
        assert process.stop() == 0
        assert "WARNING" not in process.output
        assert "ERROR" not in process.output


@pytest.mark.deadline(90)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_many_downloads_at_once(loop: str, pair: Pair) -> None:
    if loop == "uvloop":
        require_package("uvloop")
    count, part = 200, payload()[:500_000]

    async def download(port: int, there: int) -> bool:
        said, answer = socks5(there)
        async with await connect(port) as application:
            await application.send(said)
            assert await application.exactly(len(answer)) == answer
            return await application.rest() == part

    async def all_of_them(port: int, there: int) -> None:
        assert all(await asyncio.gather(*(download(port, there) for _ in range(count))))

    _, server_port = pair.server("-loop", loop)
    _, port = pair.client(server_port, "-loop", loop)
    with Destination(lambda connection: connection.sendall(part)) as there:
        asyncio.run(all_of_them(port, int(there.address.rpartition(":")[2])))


def test_names_are_resolved_over_udp(pair: Pair) -> None:
    """A resolver of ours that speaks SOCKS."""

    async def resolve(port: int) -> None:
        async with (
            asyncio.timeout(20),
            fake_dns(holding("192.0.2.7", "192.0.2.8")) as dns,
            await connect(port) as control,
        ):
            with Udp() as resolver:
                relay = await ask(control)
                head = datagram_head(dns.address[1])
                for number in range(20):
                    query = build_query(number, "www.example.com", 1)
                    resolver.send(head + query, relay)
                    answer = await resolver.receive()
                    assert answer.startswith(head)
                    addresses, _, _ = parse_response(query, answer[len(head) :])
                    assert set(addresses) == {"192.0.2.7", "192.0.2.8"}
            assert len(dns.seen) == 20

    _, server_port = pair.server()
    _, port = pair.client(server_port)
    asyncio.run(resolve(port))


def test_dig(pair: Pair) -> None:
    """It knows no SOCKS, so the headers are put on and taken off on its way."""
    dig = require_program("dig")
    options = "@127.0.0.1", "+noedns", "+short", "+tries=1", "+time=15"

    async def wrap(plain: Udp, wrapped: Udp, head: bytes, relay: int) -> None:
        while True:
            query, asking = await asyncio.get_running_loop().sock_recvfrom(plain.sock, 65536)
            wrapped.send(head + query, relay)
            plain.send((await wrapped.receive()).removeprefix(head), asking[1])

    async def resolve(port: int) -> None:
        async with (
            asyncio.timeout(25),
            fake_dns(holding("192.0.2.7", "2001:db8::8")) as dns,
            await connect(port) as control,
        ):
            with Udp() as plain, Udp() as wrapped:
                relay = await ask(control)
                wrapping = asyncio.create_task(
                    wrap(plain, wrapped, datagram_head(dns.address[1]), relay)
                )
                for kind, address in (("A", "192.0.2.7"), ("AAAA", "2001:db8::8")):
                    query = ("-p", str(plain.port), "www.example.com", kind)
                    answer = await asyncio.to_thread(run, dig, *options, *query)
                    assert answer.decode().split() == [address]
                await cancel(wrapping)
            assert len(dns.seen) == 2

    _, server_port = pair.server()
    _, port = pair.client(server_port)
    asyncio.run(resolve(port))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["term", "kill"])
def test_the_client_recovers_from_a_restart_of_the_server(
    number: int, pair: Pair, site: Site
) -> None:
    url = f"http://{site.address}/"
    server, server_port = pair.server("-grace", "0")
    client, port = pair.client(server_port)
    assert fetch(port, url) == PAGE
    server.stop(number)
    assert fails(port, url).startswith("97 ")
    pair.server(port=server_port)
    for _ in range(3):
        assert fetch(port, url) == PAGE
    assert client.running


def test_a_restart_in_the_middle_of_a_download(
    pair: Pair, processes: Processes, site: Site, tmp_path: Path
) -> None:
    """It fails, visibly; the next one works."""
    server, server_port = pair.server("-grace", "0")
    _, port = pair.client(server_port)
    received = tmp_path / "received"
    curl = processes.start(
        require_program("curl"), "-sS", "--limit-rate", "1M", "--output", received,
        *proxy_options("socks5-hostname", port), f"http://{site.address}/payload",
    )  # fmt: skip
    eventually(lambda: received.exists() and received.stat().st_size > 0, "the download begins")
    server.stop()
    assert curl.wait() in (18, 56)  # partial file, receive error
    pair.server(port=server_port)
    assert fetch(port, f"http://{site.address}/payload") == payload()


def test_curl_gets_the_reason(pair: Pair, site: Site) -> None:
    _, server_port = pair.server("-deny", "127.0.0.1/32:1")
    client, port = pair.client(server_port)
    for url, words in (
        (f"http://127.0.0.1:{free_port()}/", "(5)"),
        ("http://127.0.0.1:1/", "(2)"),
        ("http://name.invalid/", "(4)"),
    ):
        assert words in fails(port, url)
    assert fetch(port, f"http://{site.address}/") == PAGE
    assert "WARNING" not in client.output


@pytest.mark.parametrize("with_site", [False, True], ids=["alone", "site"])
def test_a_wrong_password(with_site: bool, pair: Pair, site: Site, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("not this one\n")
    other.chmod(0o600)
    server, server_port = pair.server(*(("-fallback", site.address) if with_site else ()))
    client, port = pair.client(server_port, "-password-file", other)
    began = time.monotonic()
    assert "(1)" in fails(port, f"http://{site.address}/")
    # After HEARTBEAT_DELAY a silent server is taken for one that reports no success, and curl would
    # have been told of one; nor was this what a server says when it is tired of waiting.
    assert time.monotonic() - began < PREAMBLE_TIME
    client.expect(rf"WARNING .*127\.0\.0\.1:{server_port}: .*is the password right\?")
    assert "not this one" not in client.output
    if not with_site:
        server.expect(r"WARNING .*127\.0\.0\.1:\d+: authentication failed \(wrong password")
        url = f"https://{pair.name}:{server_port}/"
        asked = run(
            require_program("curl"), "--silent", "--max-time", "20", "--cacert", pair.ca,
            "--resolve", f"{pair.name}:{server_port}:127.0.0.1", "--http1.1",
            "--write-out", " %{http_code} %{num_connects}", url, url,
        )  # fmt: skip
        assert asked == b"404 page not found\n 404 1404 page not found\n 404 0"


def test_several_servers_in_turn(pair: Pair, certs: Certs, site: Site, tmp_path: Path) -> None:
    """The first one is dead, the second wants another password."""
    other = pair.password.with_name("other")
    other.write_text("another\n")
    other.chmod(0o600)
    _, stranger = pair.server("-password-file", other, "-fallback", site.address)
    _, works = pair.server()
    config = tmp_path / "config.json"
    config.write_text(
        '{"inbounds": [{"type": "mixed", "listen": "127.0.0.1", "listen_port": 1080}], '
        '"outbounds": ['
        + ",".join(
            f'{{"type": "anytls", "tag": "{port}", "server": "127.0.0.1", "server_port": {port},'
            f' "password": "{PASSWORD}", "tls": {{"enabled": true, "server_name": "{certs.name}",'
            f' "certificate_path": "{certs.ca}"}}}}'
            for port in (free_port(), stranger, works)
        )
        + "]}"
    )
    config.chmod(0o600)
    client = pair._processes.command("anytls-client", "-c", config, "-l", "127.0.0.1:0")
    port = listening(client)[1]
    for _ in range(3):
        assert fetch(port, f"http://{site.address}/") == PAGE
    assert client.output.count(f"127.0.0.1:{works} is used instead") == 2


def test_the_destination_may_speak_first(pair: Pair) -> None:
    _, server_port = pair.server()
    _, port = pair.client(server_port)
    with Destination(speak_and_close) as there:
        said, answer = socks5(int(there.address.rpartition(":")[2]))
        with socket.create_connection(("127.0.0.1", port), timeout=20) as application:
            application.sendall(said)
            assert read_to_end(application) == answer + payload()
