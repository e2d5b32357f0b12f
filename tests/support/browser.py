"""A real browser for tests of web pages: Chromium, driven by WebDriver (W3C) through chromedriver.

    with start_browser(processes, directory, "--proxy-server=...") as browser:
        browser.open(url)
        browser.find("#name").type("anna")
        browser.find("button").click()
        assert browser.find("#answer").text == "hello anna"

Starting takes about a second, so one browser serves all tests of a module.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.processes import PATIENCE, Process, Processes
from tests.support.programs import require_program

# The key of a reference to an element in JSON (WebDriver, 12.3).
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"

# No services of its maker, no first-run pages, no QUIC past a proxy, no other machine.
_ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--disable-default-apps", "--disable-extensions",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    "--window-size=1000,800",
)  # fmt: skip


class WebDriverError(AssertionError):
    """A command of WebDriver that failed, with the browser's reason."""


class Browser:
    """One window of a browser. Commands raise WebDriverError."""

    def __init__(self, port: int, capabilities: dict[str, Any]) -> None:
        self._port = port
        self._path = "/session"
        wanted = {"capabilities": {"alwaysMatch": capabilities}}
        found = self._call("POST", "", wanted)
        self._path = f"/session/{found['sessionId']}"
        self._debugger = found["capabilities"]["goog:chromeOptions"]["debuggerAddress"]

    def close(self) -> None:
        """End the session, and the browser with it."""
        self._call("DELETE", "")

    def open(self, url: str) -> None:
        """Navigate, and wait until the page is loaded."""
        self._call("POST", "/url", {"url": url})

    @property
    def url(self) -> str:
        return str(self._call("GET", "/url"))

    @property
    def title(self) -> str:
        return str(self._call("GET", "/title"))

    @property
    def source(self) -> str:
        """The document as it is now, in HTML."""
        return str(self._call("GET", "/source"))

    def find(self, selector: str) -> Element:
        """The first element of a CSS selector; waits up to PATIENCE seconds for it."""
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        return Element(self, found[_ELEMENT])

    def find_all(self, selector: str) -> list[Element]:
        """All elements of a CSS selector; waits up to PATIENCE seconds for the first."""
        found = self._call("POST", "/elements", {"using": "css selector", "value": selector})
        return [Element(self, each[_ELEMENT]) for each in found]

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns: the body of a function of these `arguments`."""
        return self._call("POST", "/execute/sync", {"script": script, "args": arguments})

    def run_async(self, script: str, *arguments: Any) -> Any:
        """What a script passes to its last argument, a function, at some later time."""
        return self._call("POST", "/execute/async", {"script": script, "args": arguments})

    def cookies(self) -> list[dict[str, Any]]:
        """The cookies of the page, those of scripts and the others."""
        found: list[dict[str, Any]] = self._call("GET", "/cookie")
        return found

    def resize(self, width: int, height: int) -> None:
        """Set the size of the window, pixels."""
        self._call("POST", "/window/rect", {"width": width, "height": height})

    def screenshot(self, path: Path | None = None) -> bytes:
        """The visible part of the page as a PNG, which is also written to `path`."""
        picture = base64.b64decode(self._call("GET", "/screenshot"))
        if path is not None:
            path.write_bytes(picture)
        return picture

    def devtools(self) -> str:
        """The URL of a WebSocket for the DevTools protocol of the page."""
        connection = http.client.HTTPConnection(self._debugger, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("GET", "/json/list")
            targets = json.loads(connection.getresponse().read())
        (url,) = (each["webSocketDebuggerUrl"] for each in targets if each["type"] == "page")
        return str(url)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The value of the answer to a command (WebDriver, 6.3)."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=2 * PATIENCE)
        with contextlib.closing(connection):
            content = json.dumps(body if body is not None else {}) if method == "POST" else None
            connection.request(method, self._path + path, content)
            answer = connection.getresponse()
            value = json.loads(answer.read())["value"]
        if answer.status != 200:
            raise WebDriverError(f"{method} {path}: {value['error']}: {value['message']}")
        return value


class Element:
    """An element of the page that the browser shows."""

    def __init__(self, browser: Browser, number: str) -> None:
        self._browser = browser
        self._path = f"/element/{number}"

    @property
    def text(self) -> str:
        """Its visible text."""
        return str(self._get("/text"))

    @property
    def is_displayed(self) -> bool:
        return bool(self._get("/displayed"))

    def attribute(self, name: str) -> str | None:
        value: str | None = self._get(f"/attribute/{name}")
        return value

    def property(self, name: str) -> Any:
        """A property of the DOM, such as "value" of an input."""
        return self._get(f"/property/{name}")

    def click(self) -> None:
        self._post("/click", {})

    def type(self, text: str) -> None:
        """Type into it, behind what is there."""
        self._post("/value", {"text": text})

    def clear(self) -> None:
        """Remove what is in an input."""
        self._post("/clear", {})

    def _get(self, path: str) -> Any:
        return self._browser._call("GET", self._path + path)

    def _post(self, path: str, body: dict[str, Any]) -> None:
        self._browser._call("POST", self._path + path, body)


@contextlib.contextmanager
def start_browser(
    processes: Processes, directory: Path, *arguments: str, **capabilities: Any
) -> Iterator[Browser]:
    """Start a browser with more `arguments` and `capabilities`; its profile is in `directory`.

    Without the programs the test is skipped, see `require_program`.
    """
    chromium, driver = require_program("chromium"), require_program("chromedriver")
    home = directory / "browser"
    home.mkdir()
    # The browser writes nowhere else.
    process = processes.start(driver, "--port=0", env={"HOME": str(home), "TMPDIR": str(home)})
    options = {
        "binary": chromium,
        "args": [*_ARGUMENTS, f"--user-data-dir={home / 'profile'}", *arguments],
    }
    milliseconds = int(PATIENCE * 1000)
    every = {
        "goog:chromeOptions": options,
        "timeouts": dict.fromkeys(("implicit", "pageLoad", "script"), milliseconds),
        **capabilities,
    }
    browser = Browser(_port(process), every)
    try:
        yield browser
    finally:
        browser.close()


def _port(driver: Process) -> int:
    return int(driver.expect(r"started successfully on port (\d+)")[1])
