"""Both ends verify each other, started as docs/hardening.md says."""

from __future__ import annotations

import re
from pathlib import Path

from tests.real.destinations import PAGE, Site
from tests.support.certs import Certs
from tests.support.documents import adapted, commands
from tests.support.processes import Processes, listening, run
from tests.support.programs import require_program

SERVER, _ = commands("hardening.md", "mtt-server")
(CLIENT,) = commands("hardening.md", "mtt-client")


def test_only_clients_with_a_certificate_get_in(
    processes: Processes, certs: Certs, site: Site, tmp_path: Path
) -> None:
    given = {
        "-b": "127.0.0.1:0", "-d": site.address, "-cert-dir": str(tmp_path / "own"),
        "-client-ca": certs.ca,
    }  # fmt: skip
    server = processes.command("mtt-server", *adapted(SERVER, given), "-verbose")
    _, port = listening(server)
    places = {
        "-b": "127.0.0.1:0", "-s": f"127.0.0.1:{port}", "-cert": certs.cert, "-key": certs.key,
        "-pin": server.expect(r"pin (sha256/\S+)")[1],
    }  # fmt: skip
    client = processes.command("mtt-client", *adapted(CLIENT, places))
    curl = (require_program("curl"), "-sS", "--max-time", "10")
    assert run(*curl, "-f", f"http://127.0.0.1:{listening(client)[1]}/") == PAGE

    stranger = run("sh", "-c", '"$@" 2>&1 || true', "sh", *curl, "-k", f"https://127.0.0.1:{port}/")
    assert PAGE not in stranger
    server.expect("did not return a certificate|certificate required")
    old = run(
        "sh", "-c", '"$@" 2>&1 || true', "sh", *curl, "-k", "--tls-max", "1.2",
        "--cert", certs.cert, "--key", certs.key, f"https://127.0.0.1:{port}/",
    )  # fmt: skip
    assert re.search(b"protocol version", old), old
