"""With programs of others: curl, promtool, systemd, the WebSocket client `websockets`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.mu.panel import multi_user_server
from tests.support.certs import Certs
from tests.support.contexts import trusting_context
from tests.support.processes import ROOT, Processes, listening, run
from tests.support.programs import require_package, require_program
from tests.support.tunnels import echo, port_of, serving

# How many blocks with curl each document has at least.
DOCUMENTS = {"docs/multi-user.md": 5, "docs/api.md": 10}


def start(processes: Processes, *argv: str) -> Any:
    server = processes.start(sys.executable, "-m", "mtt_mu_server", *argv, cwd=ROOT)
    server.name = "mtt-mu-server"
    return server


def test_curl_drives_the_controller(certs: Certs, tmp_path: Path) -> None:
    curl = (require_program("curl"), "--silent", "--show-error", "--max-time", "20")
    with Processes() as processes:
        server = start(processes, "-b", "127.0.0.1:0", "-c", "127.0.0.1:0", "-disable-tls")
        url = f"http://{server.expect(r'controller on (127.0.0.1:[0-9]+)')[1]}/"
        listening(server)
        for body, answer in [
            ('{"opt":9}', {"res": 1}),
            ('{"opt":1,"args_bunch":[{"path":"/a","dst":"127.0.0.1:1"}]}', {"res": 1}),
            ('{"opt":9}', {"res": 1, "current_users": 1}),
        ]:
            assert json.loads(run(*curl, "--fail", "--data", body, url)) == answer
        large = tmp_path / "large"
        users = [{"path": f"/{number:020}", "dst": "127.0.0.1:1"} for number in range(34_000)]
        large.write_text(json.dumps({"opt": 1, "args_bunch": users}))
        assert 1_900_000 < large.stat().st_size < 2_097_152
        assert run(*curl, "--fail", "--data-binary", f"@{large}", url) == b'{"res":1}'
        assert b'"current_users":34001' in run(*curl, "--data", '{"opt":9}', url)
        large.write_bytes(large.read_bytes().ljust(2_097_152))
        code = run(*curl, "--data-binary", f"@{large}", "--output", tmp_path / "answer",
                   "--write-out", "%{http_code}", url)  # fmt: skip
        assert code == b"413"
        code = run(*curl, "--header", "Origin: http://evil.example", "--data", '{"opt":3}',
                   "--output", tmp_path / "answer", "--write-out", "%{http_code}", url)  # fmt: skip
        assert code == b"403"
        assert b'"current_users":34001' in run(*curl, "--data", '{"opt":9}', url)
        assert run(*curl, "--fail", url + "healthz") == b"ok\n"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_curl_lines_of_the_document_work(document: str, tmp_path: Path) -> None:
    """Each block of the document is pasted into a shell, against a server as it says to start."""
    require_program("curl")
    text = (ROOT / document).read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    blocks = [block for block in blocks if "curl" in block and "--unix-socket" in block]
    assert len(blocks) >= DOCUMENTS[document]
    control = tmp_path / "control.sock"
    with Processes() as processes:
        server = start(
            processes, "-b", "127.0.0.1:0", "-c", f"unix:{control}", "-disable-tls",
            "-db", str(tmp_path / "db"),
        )  # fmt: skip
        server.expect("listening on")
        for block in blocks:
            script = block.replace("/run/mtt-mu-server/control.sock", str(control))
            answer = run("sh", "-ec", script)
            begins = (b'{"res":1', b"ok", b"# HELP", b"event: start")
            assert answer.startswith(begins), (block, answer)


@pytest.mark.parametrize("option", ["", "-metrics-users"])
def test_promtool_likes_the_metrics(option: str, tmp_path: Path) -> None:
    promtool, curl = require_program("promtool"), require_program("curl")
    control = tmp_path / "control.sock"
    with Processes() as processes:
        server = start(processes, "-b", "127.0.0.1:0", "-c", f"unix:{control}", "-disable-tls",
                       *filter(None, [option]))  # fmt: skip
        server.expect("listening on")
        page = run(curl, "-sS", "--unix-socket", control, "http://localhost/metrics")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=page, capture_output=True, timeout=20, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_systemd_likes_the_unit(tmp_path: Path) -> None:
    systemd_analyze = require_program("systemd-analyze")
    unit = (ROOT / "contrib" / "mtt-mu-server.service").read_text()
    assert "ExecStart=/usr/local/bin/mtt-mu-server " in unit
    # It also asks for the program to be there.
    copy = tmp_path / "mtt-mu-server.service"
    copy.write_text(unit.replace("/usr/local/bin/mtt-mu-server ", "/bin/true "))
    done = subprocess.run(
        [systemd_analyze, "verify", str(copy)], capture_output=True, text=True, timeout=30,
        check=False,
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if "mtt-mu-server" in line]
    assert (done.returncode, ours) == (0, [])


async def test_the_client_of_the_package_websockets(certs: Certs) -> None:
    # Not a program of the system: nothing needs it, and the tests need pytest only.
    websockets = require_package("websockets")
    from websockets.asyncio.client import connect

    context = trusting_context(certs.ca)
    async with serving(echo) as there, multi_user_server(certs) as (server, panel):
        await panel.add("/a", there.port)
        url = f"wss://{certs.name}:{port_of(server)}"
        given: dict[str, Any] = {"host": "127.0.0.1", "ssl": context, "proxy": None}
        async with connect(f"{url}/a", **given) as websocket:
            assert websocket.subprotocol is None
            for size in (1, 125, 126, 65535, 65536, 300_000):
                await websocket.send(bytes(size))
                received = 0
                while received < size:
                    message = await websocket.recv()
                    assert isinstance(message, bytes)
                    received += len(message)
                assert received == size
            await (await websocket.ping())
        async with connect(f"{url}/a", subprotocols=["smux_off"], **given) as websocket:  # type: ignore[list-item]
            assert websocket.subprotocol == "smux_off"
        with pytest.raises(websockets.InvalidStatus) as refused:
            await connect(f"{url}/b", **given)
        assert refused.value.response.status_code == 404
        used = await panel.statistics("/a")
        assert used["total_conns"] == 2
        assert used["bytes_up"] == used["bytes_down"] == 1 + 125 + 126 + 65535 + 65536 + 300_000
