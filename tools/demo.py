"""The whole tunnel on one machine, as a demonstration: `make run` starts it.

    browser -> mtt-client == TLS == mtt-server -> a small web page of this program
    curl -> anyproxy-gateway == TLS == anyproxy-client -> the same, with MODE=gateway

Run from the top directory as `python -m tools.demo`. Environment variables:
    MODE  tls, wss, mux, wss+mux, anytls or gateway (default tls)
    DEST  destination host:port (default: the web page)
    PORT  port on 127.0.0.1 on which the client, or the gateway's HTTP proxy, listens (default: a
          free one)
Ctrl-C or SIGTERM ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import sys
import tempfile
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from mtt.address import Endpoint, host_port, parse_endpoint, parse_port
from mtt.errors import MttError, UsageError, describe
from mtt.modes import MODES
from mtt.trust.certdir import kept_pair

TOP = Path(__file__).resolve().parent.parent
LOOPBACK = "127.0.0.1"
SERVER_NAME = "demo.local"
# How a gateway and its agent are shown, besides the modes of the tunnel.
GATEWAY = "gateway"
GROUP, PASSWORD = "home", "demo"

LISTENING = re.compile(r"listening on (\S+:\d+)")
HTTP_PROXY = re.compile(r"HTTP proxy on (\S+:\d+)")
JOINED = re.compile(r"(agent \S+ joined group \S+)")
PIN = re.compile(r"pin (sha256/[A-Za-z0-9+/=]+)")

START_TIME = 20.0  # seconds; a start takes 0.1 s, and far longer on a busy CI machine
FETCH_TIME = 20.0  # seconds; the tunnel gives up on a destination after 10
STOP_TIME = 5.0  # seconds between SIGTERM and SIGKILL; the programs end at once

PAGE = b"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>mos-tls-tunnel</title>
<body style="font: 1.2em sans-serif; max-width: 32em; margin: 4em auto">
<h1>It works</h1>
<p>This page came to you through the tunnel: your browser spoke to mtt-client, which spoke TLS to
mtt-server, which fetched it from a small web server that listens on this machine only.</p>
</body>
</html>
"""
PAGE_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(PAGE)
)


class DemoError(MttError):
    """A program failed (exit code 1)."""


class Settings(NamedTuple):
    mode: str
    destination: Endpoint | None
    port: int


def read_settings(environment: dict[str, str]) -> Settings:
    """The settings from MODE, DEST and PORT. Raises UsageError."""
    mode = environment.get("MODE") or "tls"
    modes = (*MODES, GATEWAY)
    if mode not in modes:
        raise UsageError(f"MODE: {mode!r} is unknown; choose one of {', '.join(modes)}")
    destination = environment.get("DEST") or ""
    try:
        port = parse_port(environment.get("PORT") or "0")
    except ValueError as error:
        raise UsageError(f"PORT: {error}") from None
    return Settings(mode, parse_endpoint("DEST", destination) if destination else None, port)


async def send_page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request with the page."""
    # Clients may disconnect, or send anything.
    with contextlib.suppress(ConnectionError, EOFError, asyncio.LimitOverrunError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(PAGE_HEAD + PAGE)
        await writer.drain()
    writer.close()


class Program:
    """A running mtt-client or mtt-server; copies its log to stderr."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.process = process

    async def started(self, *patterns: re.Pattern[str]) -> list[str]:
        """Wait until the log has matched all patterns; returns the matches of their groups."""
        found: dict[re.Pattern[str], str] = {}
        try:
            async with asyncio.timeout(START_TIME):
                while len(found) < len(patterns):
                    line = await self._line()
                    if not line:
                        raise DemoError(await self.ended())
                    for pattern in patterns:
                        if match := pattern.search(line):
                            found[pattern] = match[1]
        except TimeoutError:
            raise DemoError(f"{self.name} did not start within {START_TIME:g} s") from None
        return [found[pattern] for pattern in patterns]

    async def ended(self) -> str:
        """Copy the log until the program ends; returns how it ended."""
        while await self._line():
            pass
        return f"{self.name} ended by itself, exit code {await self.process.wait()}"

    async def stop(self) -> None:
        """End the program, with SIGKILL after STOP_TIME."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            async with asyncio.timeout(STOP_TIME):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()

    async def _line(self) -> str:
        assert self.process.stderr is not None
        line = (await self.process.stderr.readline()).decode(errors="replace")
        if line:
            print(f"{self.name}: {line.rstrip()}", file=sys.stderr, flush=True)
        return line


@contextlib.asynccontextmanager
async def program(name: str, *arguments: str) -> AsyncIterator[Program]:
    """Run the command `name` of this repository inside the context.

    It has its own session, so that only the demo receives the terminal's Ctrl-C and ends the
    programs in order.
    """
    package, _, role = name.partition("-")
    module = f"anyproxy.{role}_command" if package == "anyproxy" else name.replace("-", "_")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, cwd=TOP,
        stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    running = Program(name, process)
    try:
        yield running
    finally:
        await running.stop()


async def demo(settings: Settings) -> None:
    """Run until cancelled. Raises DemoError if a program fails."""
    async with contextlib.AsyncExitStack() as stack:
        if settings.destination is not None:
            destination = str(settings.destination)
        else:
            page = await stack.enter_async_context(
                await asyncio.start_server(send_page, LOOPBACK, 0)
            )
            destination = host_port(*page.sockets[0].getsockname())
        enter = stack.enter_async_context
        if settings.mode == GATEWAY:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="mtt-demo-"))
            first, second = await start_gateway(settings, destination, enter, directory)
        else:
            first, second = await start_tunnel(settings, destination, enter)
        ends = (asyncio.create_task(first.ended()), asyncio.create_task(second.ended()))
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        raise DemoError(done.pop().result())


Enter = Callable[[contextlib.AbstractAsyncContextManager[Program]], Awaitable[Program]]


async def start_tunnel(
    settings: Settings, destination: str, enter: Enter
) -> tuple[Program, Program]:
    """Start server and client, and show that the tunnel works."""
    common = ("-n", SERVER_NAME, *MODES[settings.mode].command_line("demo"))
    server_bind, client_bind = (host_port(LOOPBACK, port) for port in (0, settings.port))
    server = await enter(program("mtt-server", "-b", server_bind, "-d", destination, *common))
    server_address, pin = await server.started(LISTENING, PIN)
    client = await enter(
        program("mtt-client", "-b", client_bind, "-s", server_address, "-pin", pin, *common)
    )
    (address,) = await client.started(LISTENING)
    print(f"the tunnel ({settings.mode}) leads to {destination}", flush=True)
    is_own = settings.destination is None
    host = {"Host": address if is_own else destination}
    print(await asyncio.to_thread(fetch, address, "/", host, is_own=is_own), flush=True)
    print(f"open http://{address}/ ; Ctrl-C ends the demo", flush=True)
    return server, client


async def start_gateway(
    settings: Settings, destination: str, enter: Enter, directory: str
) -> tuple[Program, Program]:
    """Start gateway and agent, and show that the agent carries requests of the HTTP proxy."""
    cert, key = kept_pair(directory, SERVER_NAME)
    proxy = {"http": {"listen_addr": host_port(LOOPBACK, settings.port)}}
    listen = {"listen_addr": host_port(LOOPBACK, 0), "tls_cert": cert, "tls_key": key}
    file = _written(directory, "gateway", {**listen, "proxy": proxy})
    gateway = await enter(program("anyproxy-gateway", "-config", file))
    address, proxy_address = await gateway.started(LISTENING, HTTP_PROXY)
    trust = {"addr": address, "tls_cert": cert, "server_name": SERVER_NAME}
    login = {"id": "demo", "group_id": GROUP, "group_password": PASSWORD}
    file = _written(directory, "client", {**login, "gateway": trust})
    agent = await enter(program("anyproxy-client", "-config", file))
    await gateway.started(JOINED)
    url = f"http://{destination}/"
    through = f"http://{GROUP}:{PASSWORD}@{proxy_address}"
    headers = {
        "Host": destination,
        "Proxy-Authorization": f"Basic {b64encode(f'{GROUP}:{PASSWORD}'.encode()).decode()}",
    }
    is_own = settings.destination is None
    print(f"users of the HTTP proxy on {proxy_address} reach what the agent reaches", flush=True)
    print(await asyncio.to_thread(fetch, proxy_address, url, headers, is_own=is_own), flush=True)
    print(f"try curl -x {through} {url} ; Ctrl-C ends the demo", flush=True)
    return gateway, agent


def _written(directory: str, part: str, values: dict[str, Any]) -> str:
    """The path of a configuration file with one part."""
    path = Path(directory) / f"{part}.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps({part: values}))
    return str(path)


def fetch(address: str, target: str, headers: dict[str, str], *, is_own: bool) -> str:
    """Get `target` from `address` over HTTP; returns a line about the answer.

    `is_own`: the demo's own page is expected. Raises DemoError if that does not arrive whole. DEST
    need not be a web server, and may not be running yet.
    """
    connection = http.client.HTTPConnection(address, timeout=FETCH_TIME)
    try:
        with contextlib.closing(connection):
            connection.request("GET", target, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        if is_own:
            raise DemoError(f"no page came through the tunnel: {describe(error)}") from None
        return f"no HTTP answer came through the tunnel: {describe(error)}"
    if is_own and body != PAGE:
        raise DemoError("the page arrived changed")
    status = f"{answer.status} {answer.reason}"
    return f"fetched {target} through the tunnel: {status}, {len(body)} bytes"


async def until_stopped(settings: Settings) -> None:
    """Run the demo until SIGINT, SIGTERM or SIGHUP."""
    task = asyncio.create_task(demo(settings))

    def stop() -> None:
        if not task.cancelling():  # a second Ctrl-C must not stop the cleanup
            task.cancel()

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        # Windows has neither SIGHUP nor this method; Ctrl-C cancels the task there.
        with contextlib.suppress(AttributeError, NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(getattr(signal, name), stop)
    with contextlib.suppress(asyncio.CancelledError):
        await task


def main() -> int:
    try:
        asyncio.run(until_stopped(read_settings(dict(os.environ))))
    except KeyboardInterrupt:
        return 0
    except MttError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
