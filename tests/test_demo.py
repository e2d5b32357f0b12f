"""`make run`, without make: the demo starts, carries a page in every mode, and ends in order."""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtt.address import Endpoint
from mtt.errors import UsageError
from tools.demo import MODES, PAGE, Settings, read_settings

TOP = Path(__file__).resolve().parent.parent
SETTINGS = ("MODE", "DEST", "PORT")
posix_only = pytest.mark.skipif(os.name != "posix", reason="ends the demo with SIGTERM")


@contextlib.contextmanager
def running(**environment: str) -> Iterator[subprocess.Popen[str]]:
    """The demo as a process, with its standard output to read."""
    inherited = {name: os.environ[name] for name in os.environ if name not in SETTINGS}
    with subprocess.Popen(
        [sys.executable, "-m", "tools.demo"],
        cwd=TOP,
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def opened(
    process: subprocess.Popen[str], last: str = r"open http://(\S+)/ "
) -> tuple[str, str]:
    """All of the demo's lines up to one that matches `last`, and its group."""
    assert process.stdout is not None
    lines = ""
    for line in process.stdout:
        lines += line
        if found := re.match(last, line):
            return lines, found[1]
    assert process.stderr is not None
    raise AssertionError(f"the demo ended early: {lines}{process.stderr.read()}")


def ended(process: subprocess.Popen[str], stop: signal.Signals) -> tuple[int, str]:
    """The exit code after a signal, and all the log lines."""
    process.send_signal(stop)
    _, log = process.communicate()
    return process.returncode, log


@posix_only
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "v2ray"])
def test_the_demo_carries_its_page(mode: str) -> None:
    with running(MODE=mode) as process:
        lines, address = opened(process)
        assert f"the tunnel ({mode}) leads to " in lines
        assert f"fetched / through the tunnel: 200 OK, {len(PAGE)} bytes\n" in lines
        with urllib.request.urlopen(f"http://{address}/") as answer:
            assert answer.read() == PAGE
        code, log = ended(process, signal.SIGTERM)
    assert code == 0
    assert "Traceback" not in log
    addresses = re.findall(r"listening on \S+?:(\d+)", log)
    assert len(addresses) == 2
    for port in addresses:  # both programs are gone
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(port)))


@posix_only
def test_the_demo_of_the_gateway_prints_a_line_for_curl() -> None:
    with running(MODE="gateway") as process:
        lines, proxy = opened(process, r"try curl -x (\S+) http://\S+ ;")
        url = re.findall(r"(http://127\S+/) ;", lines)[0]
        assert f"fetched {url} through the tunnel: 200 OK, {len(PAGE)} bytes\n" in lines
        user = urllib.parse.urlsplit(proxy)
        login = base64.b64encode(f"{user.username}:{user.password}".encode()).decode()
        assert user.hostname is not None
        connection = http.client.HTTPConnection(user.hostname, user.port)
        connection.request("GET", url, headers={"Proxy-Authorization": f"Basic {login}"})
        assert connection.getresponse().read() == PAGE
        connection.close()
        code, log = ended(process, signal.SIGTERM)
    assert code == 0
    assert "Traceback" not in log
    assert re.search(r"agent \S*demo-r0\S* joined group ", log)


@posix_only
def test_the_demo_leads_to_a_destination_of_the_user() -> None:
    with running() as other:
        _, destination = opened(other)
        with running(DEST=destination) as process:
            lines, address = opened(process)
            assert f"leads to {destination}\n" in lines
            with urllib.request.urlopen(f"http://{address}/") as answer:
                assert answer.read() == PAGE
            assert ended(process, signal.SIGINT)[0] == 0
        assert ended(other, signal.SIGTERM)[0] == 0


@posix_only
def test_the_demo_stays_when_the_destination_does_not_answer() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # not listening
        destination = f"127.0.0.1:{unused.getsockname()[1]}"
        with running(DEST=destination) as process:
            lines, _ = opened(process)
            assert "no HTTP answer came through the tunnel: " in lines
            assert ended(process, signal.SIGTERM)[0] == 0


@posix_only
def test_the_demo_ends_with_a_program_that_cannot_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with running(PORT=port) as process:
            output, log = process.communicate()
    assert process.returncode == 1
    assert output == ""
    assert log.splitlines()[-1].startswith("demo: mtt-client ended by itself, exit code 1")
    assert "Traceback" not in log


def test_a_wrong_setting_is_one_line() -> None:
    with running(MODE="quic") as process:
        output, log = process.communicate()
    assert (process.returncode, output) == (2, "")
    modes = "tls, wss, mux, wss+mux, v2ray, v2ray+mux, anytls, gateway"
    assert log == f"demo: MODE: 'quic' is unknown; choose one of {modes}\n"


def test_settings() -> None:
    assert read_settings({}) == Settings("tls", None, 0)
    assert read_settings({"MODE": "", "DEST": "", "PORT": ""}) == Settings("tls", None, 0)
    given = {"MODE": "wss+mux", "DEST": "[::1]:80", "PORT": "8080"}
    assert read_settings(given) == Settings("wss+mux", Endpoint(("::1",), 80), 8080)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MODE", "TLS"),
        ("DEST", "example.com"),
        ("DEST", "::1:80"),
        ("PORT", "http"),
        ("PORT", "65536"),
    ],
)
def test_settings_that_are_refused_name_the_culprit(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=rf"^{name}: '{value}'"):
        read_settings({name: value})
