"""Linux first, but what other systems lack must not be in the way of an ordinary tunnel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.certs import Certs

ROOT = Path(__file__).parent.parent

# As on Windows: no POSIX modules, no unix sockets, no TCP options but the common ones.
POOR = """
import asyncio, signal, socket, sys
for name in ("fcntl", "termios", "resource", "pwd", "grp"):
    sys.modules[name] = None
pair, unix = socket.socketpair, socket.AF_UNIX
socket.socketpair = lambda: pair(unix)  # which asyncio needs here
for name in list(vars(socket)):
    if name.startswith("TCP_") and name != "TCP_NODELAY" or name in ("AF_UNIX", "send_fds"):
        delattr(socket, name)
sys.platform = "win32"
"""

EVERYTHING = """
import importlib, pkgutil
import anyproxy, anytls, mtt, mtt_client, mtt_mu_server, mtt_server, plugin
for package in (anyproxy, anytls, mtt, mtt_mu_server, plugin):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""

TUNNEL = """
async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
    writer.write_eof()
    writer.close()

async def main(mode):
    from mtt.client import Client
    from mtt.options.tunnel import client_options, server_options
    from mtt.server import Server
    there = await asyncio.start_server(echo, "127.0.0.1", 0)
    flags = {"wss": "wss" in mode, "mux": "mux" in mode}
    to = f"127.0.0.1:{there.sockets[0].getsockname()[1]}"
    server = Server(server_options(
        {"b": "127.0.0.1:0", "d": to, "cert": sys.argv[1], "key": sys.argv[2], **flags}))
    await server.start()
    client = Client(client_options(
        {"b": "127.0.0.1:0", "s": server.addresses[0], "n": "test.local", "ca": sys.argv[3],
         **flags}))
    await client.start()
    host, _, port = client.addresses[0].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    data = bytes(range(256)) * 4000
    writer.write(data)
    writer.write_eof()
    assert await reader.read() == data
    writer.close()
    await client.close()
    await server.close()
    there.close()

for mode in ("tls", "wss", "mux", "wss+mux"):
    asyncio.run(main(mode))
print("carried")
"""

REFUSED = """
async def main():
    from mtt.errors import StartError
    from mtt.net.listen import bind
    from mtt.net.resolve import Resolver
    try:
        await bind(None, "/tmp/some.sock", resolver=Resolver())
    except StartError as error:
        print(error)

asyncio.run(main())
"""


def run(program: str, *argv: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", POOR + program, *argv],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_can_be_imported() -> None:
    run(EVERYTHING)


@pytest.mark.deadline(90)
def test_a_tunnel_works_in_every_mode(certs: Certs) -> None:
    assert run(TUNNEL, certs.cert, certs.key, certs.ca) == "carried\n"


def test_what_the_system_lacks_is_refused_with_a_message() -> None:
    assert "unix sockets" in run(REFUSED)
