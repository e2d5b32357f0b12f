"""Certificates, made and renewed as docs/certificates.md says."""

from __future__ import annotations

import grp
import os
import re
import shlex
import signal
from pathlib import Path

import pytest

from tests.real.destinations import PAGE, Site
from tests.support.certs import Authority, Certs
from tests.support.documents import adapted, blocks, changed, commands, document
from tests.support.processes import Process, Processes, listening, run
from tests.support.programs import require_program

DOCUMENT = "certificates.md"
HOOK, OPENSSL, CHECK = blocks(DOCUMENT, "sh")
(SERVER,) = commands(DOCUMENT, "mtt-server")
(CLIENT,) = commands(DOCUMENT, "mtt-client")
LIVE = "/etc/letsencrypt/live/example.com"
COPY = "/etc/ssl/mtt"
NAME = "example.com"


def renew(lineage: Path, days: int) -> None:
    """What certbot leaves behind."""
    lineage.mkdir(exist_ok=True)
    certificate, key = Authority("CA").issue(NAME, days=days)
    (lineage / "fullchain.pem").write_bytes(certificate)
    (lineage / "privkey.pem").write_bytes(key)
    (lineage / "privkey.pem").chmod(0o600)


def start(processes: Processes, site: Site, directory: Path) -> Process:
    arguments = [each.replace(COPY, str(directory)) for each in SERVER]
    places = {"-b": "127.0.0.1:0", "-d": site.address}
    return processes.command("mtt-server", *adapted(arguments, places))


def test_the_hook_of_certbot(processes: Processes, site: Site, tmp_path: Path) -> None:
    lineage, copy, hook = tmp_path / "live", tmp_path / "copy", tmp_path / "hook"
    own = grp.getgrgid(os.getegid()).gr_name
    hook.write_text(changed(HOOK, {COPY: str(copy), "-g ssl-cert": f"-g {shlex.quote(own)}"}))
    hook.chmod(0o755)
    deploy = ("env", f"RENEWED_LINEAGE={lineage}", hook)
    renew(lineage, days=30)
    run(*deploy)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in copy.iterdir()} == {
        "fullchain.pem": "0o640", "privkey.pem": "0o640",
    }  # fmt: skip
    server = start(processes, site, copy)
    _, port = listening(server)
    assert "WARNING" not in server.output
    before = end_of_validity(port)
    renew(lineage, days=60)
    run(*deploy)
    server.send(signal.SIGHUP)  # as the file system's clock may be coarse; else within 10 s
    server.expect(r"reloaded: certificate for example\.com, valid until")
    assert end_of_validity(port) != before
    assert not re.search("WARNING|ERROR", server.output)


def end_of_validity(port: int) -> bytes:
    require_program("openssl")
    line = changed(CHECK, {"-connect example.com:443": f"-connect 127.0.0.1:{port}"})
    shown = run("sh", "-c", line)
    assert shown.startswith(b"notAfter=")
    return shown


@pytest.mark.parametrize("kind", ["ec", "rsa"])
def test_certificates_of_openssl(
    kind: str, processes: Processes, site: Site, certs: Certs, tmp_path: Path
) -> None:
    require_program("openssl")
    line = OPENSSL
    if kind == "rsa":
        pattern = r"write `(-newkey [^`]*)` instead of `(-newkey [^`]*)`"
        ((instead, of),) = re.findall(pattern, document(DOCUMENT))
        line = changed(line, {of: instead.replace("3072", "2048")})
    run("sh", "-c", f"cd {shlex.quote(str(tmp_path))} && {line}")
    server = start(processes, site, tmp_path)
    places = {
        "-b": "127.0.0.1:0", "-s": f"127.0.0.1:{listening(server)[1]}",
        "-ca": str(tmp_path / "fullchain.pem"),
    }  # fmt: skip
    client = processes.command("mtt-client", *adapted(CLIENT, places), "-n", NAME)
    url = f"http://127.0.0.1:{listening(client)[1]}/"
    assert run(require_program("curl"), "-sSf", url) == PAGE
