"""stunnel at one end and ours at the other, configured as docs/moving.md says."""

from __future__ import annotations

from pathlib import Path

from tests.real.destinations import PAGE, Site
from tests.support.certs import Certs
from tests.support.documents import adapted, blocks, changed, commands
from tests.support.processes import Processes, accepts, eventually, free_port, listening, run
from tests.support.programs import require_program

DOCUMENT = "moving.md"
STUNNEL_SERVER, STUNNEL_CLIENT = blocks(DOCUMENT, "ini")
(SERVER,) = commands(DOCUMENT, "mtt-server")
(CLIENT,) = commands(DOCUMENT, "mtt-client")

# For a process of a test.
FOREGROUND = "foreground = yes\npid =\nsyslog = no\ndebug = notice\n"


def start_stunnel(
    processes: Processes, directory: Path, text: str, places: dict[str, str], port: int
) -> None:
    path = directory / "stunnel.conf"
    path.write_text(FOREGROUND + changed(text, places))
    processes.start(require_program("stunnel4"), path).expect("Configuration successful")
    eventually(lambda: accepts(port), "stunnel listens")  # it says nothing about that


def test_stunnel_to_ours(processes: Processes, certs: Certs, site: Site, tmp_path: Path) -> None:
    given = {"-b": "127.0.0.1:0", "-d": site.address, "-cert": certs.cert, "-key": certs.key}
    server = processes.command("mtt-server", *adapted(SERVER, given))
    port = free_port()
    places = {
        "127.0.0.1:2222": f"127.0.0.1:{port}", "/etc/stunnel/ca.pem": certs.ca,
        "connect = example.com:443": f"connect = 127.0.0.1:{listening(server)[1]}",
        "checkHost = example.com": f"checkHost = {certs.name}",
    }  # fmt: skip
    start_stunnel(processes, tmp_path, STUNNEL_CLIENT, places, port)
    assert run(require_program("curl"), "-sSf", f"http://127.0.0.1:{port}/") == PAGE


def test_ours_to_stunnel(processes: Processes, certs: Certs, site: Site, tmp_path: Path) -> None:
    port = free_port()
    places = {
        "accept = 443\n": f"accept = 127.0.0.1:{port}\n",
        "connect = 127.0.0.1:22\n": f"connect = {site.address}\n",
        "/etc/stunnel/fullchain.pem": certs.cert, "/etc/stunnel/privkey.pem": certs.key,
    }  # fmt: skip
    start_stunnel(processes, tmp_path, STUNNEL_SERVER, places, port)
    given = {"-b": "127.0.0.1:0", "-s": f"127.0.0.1:{port}", "-ca": certs.ca}
    client = processes.command("mtt-client", *adapted(CLIENT, given), "-n", certs.name)
    url = f"http://127.0.0.1:{listening(client)[1]}/"
    assert run(require_program("curl"), "-sSf", url) == PAGE
