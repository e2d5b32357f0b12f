"""A browser with a gateway as its HTTPS proxy: a page behind an agent, and its WebSockets."""

# ruff: noqa: E402  (whether the package is there has to be known first)

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.anyproxy.serving import GROUP, PASSWORD
from tests.real.gateways import Gateway, start_agent, start_gateway
from tests.support.browser import Browser, start_browser
from tests.support.certs import Certs
from tests.support.processes import PATIENCE, Processes
from tests.support.programs import require_package

require_package("websockets.sync.server")

from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as connect_websocket
from websockets.sync.server import ServerConnection, serve

PAGE = """<!doctype html>
<title>A page behind an agent</title>
<form id=form><input id=message><button disabled>Send</button></form>
<ol id=answers></ol>
<script>
const socket = new WebSocket("ws://" + location.host + "/echo");
socket.onopen = () => { document.querySelector("button").disabled = false; };
socket.onmessage = event => {
    const item = document.createElement("li");
    item.textContent = event.data;
    document.querySelector("#answers").append(item);
};
document.querySelector("#form").onsubmit = event => {
    event.preventDefault();
    socket.send(document.querySelector("#message").value);
};
</script>
"""

# Sends a message of so many bytes, and tells whether the same one came back.
EXCHANGE = """
const [size, done] = arguments;
const socket = new WebSocket("ws://" + location.host + "/echo");
const sent = new Uint8Array(size).map((_, index) => index * index % 251);
socket.binaryType = "arraybuffer";
socket.onopen = () => socket.send(sent);
socket.onerror = () => done("failed");
socket.onmessage = event => {
    const got = new Uint8Array(event.data);
    done(got.length === size && got.every((byte, index) => byte === sent[index]));
};
"""


@pytest.fixture(scope="module")
def site() -> Iterator[int]:
    """A web server with the page, and a WebSocket that echoes; yields its port."""

    def page(websocket: ServerConnection, request: Request) -> Response | None:
        assert "proxy-authorization" not in request.headers
        if request.path == "/echo":
            return None
        response = websocket.respond(200 if request.path == "/" else 404, PAGE)
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "text/html; charset=utf-8"
        return response

    def echo(websocket: ServerConnection) -> None:
        for message in websocket:
            websocket.send(message)

    with serve(
        echo, "127.0.0.1", 0, process_request=page, max_size=None, compression=None
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def gateway(certs: Certs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("gateway")
    tls = {"tls_cert": certs.cert, "tls_key": certs.key}
    with Processes() as processes:
        gateway = start_gateway(processes, certs, directory, http=tls)
        start_agent(processes, certs, directory, gateway)
        yield gateway


@pytest.fixture(scope="module")
def browser(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser that knows the login of the proxy."""
    with (
        Processes() as processes,
        start_browser(
            processes,
            tmp_path_factory.mktemp("browser"),
            f"--proxy-server=https://localhost:{gateway.http}",
            # Not around it to 127.0.0.1, as usual, but with questions to its maker.
            "--proxy-bypass-list=<-loopback>;*.google.com;*.googleapis.com",
            "--ignore-certificate-errors",  # of the proxy
        ) as browser,
        proxy_login(browser, GROUP, PASSWORD),
    ):
        yield browser


@contextlib.contextmanager
def proxy_login(browser: Browser, name: str, password: str) -> Iterator[None]:
    """Answer for the user when the browser asks for the login of a proxy.

    It takes none from the command line. This is the DevTools protocol, domain Fetch.
    """
    numbers = itertools.count()
    login = {"response": "ProvideCredentials", "username": name, "password": password}

    def command(method: str, **params: Any) -> None:
        message = {"id": next(numbers), "method": f"Fetch.{method}", "params": params}
        socket.send(json.dumps(message))

    def answer(socket: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            for text in socket:
                event = json.loads(text)
                if event.get("method") == "Fetch.authRequired":
                    number = event["params"]["requestId"]
                    command("continueWithAuth", requestId=number, authChallengeResponse=login)
                elif event.get("method") == "Fetch.requestPaused":
                    command("continueRequest", requestId=event["params"]["requestId"])

    with connect_websocket(browser.devtools(), proxy=None, max_size=None) as socket:
        command("enable", handleAuthRequests=True)
        assert "result" in json.loads(socket.recv(PATIENCE))
        thread = threading.Thread(target=answer, args=(socket,))
        thread.start()
        yield
    thread.join()


def test_page_and_its_websockets(browser: Browser, gateway: Gateway, site: int) -> None:
    browser.open(f"http://127.0.0.1:{site}/")
    assert browser.title == "A page behind an agent"
    for number, text in enumerate(("hello", "gr\u00fc\u00dfe"), 1):
        browser.find("#message").clear()
        browser.find("#message").type(text)
        browser.find("button:enabled").click()
        assert browser.find(f"li:nth-child({number})").text == text
    sizes = 0, 125, 1_000_000
    for size in sizes:
        assert browser.run_async(EXCHANGE, size) is True
    least = 2 + len(sizes)  # the page, its socket, and the others: none went around the proxy
    gateway.process.expect(rf"(?s)(: open\n.*){{{least}}}")
