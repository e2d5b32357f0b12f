"""The lines of docs/monitoring.md, pasted into a shell."""

from __future__ import annotations

import re

from tests.support.certs import Certs
from tests.support.documents import adapted, changed, commands, document
from tests.support.processes import Processes, run
from tests.support.programs import require_program

DOCUMENT = "monitoring.md"
(SERVER,) = commands(DOCUMENT, "mtt-server")


def test_lines_of_the_document(processes: Processes, certs: Certs) -> None:
    require_program("curl")
    places = {"-b": "127.0.0.1:0", "-metrics": "0"}
    server = processes.command(
        "mtt-server", *adapted(SERVER, places), "-cert", certs.cert, "-key", certs.key
    )
    address = server.expect(r"metrics on (127\.0\.0\.1:\d+)")[1]
    lines = re.findall(r"^    (curl .*)$", document(DOCUMENT), re.M)
    answers = [run("sh", "-ec", changed(line, {"127.0.0.1:9100": address})) for line in lines]
    assert b"\nmtt_build_info{" in answers[0]
    assert answers[1] == b"ok\n"
