"""Scanners of TLS servers, testssl.sh and sslscan, against a default server."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.real.destinations import Site
from tests.support.processes import Process, Processes, listening, run
from tests.support.programs import require_program

NAME = "some.example"

# testssl's severities that are no reproach. LOW is for web sites, which this is not: it wants
# Strict-Transport-Security and a CAA record in DNS. WARN is for what testssl could not find out:
# whether sessions resume, when the machine is busy and it has left before the ticket came.
HARMLESS = {"OK", "INFO", "LOW", "WARN"}

# Findings about every self-signed certificate: no authority, no revocation, and ten years of
# validity.
SELF_SIGNED = {"cert_chain_of_trust", "cert_revocation", "cert_validityPeriod"}

# It counts the CCS attack as failed when no answer comes for 5 s. OpenSSL has read what it was sent
# within milliseconds.
SHORT_WAIT = {"CCS_MAX_WAITSOCK": "2"}

SUITES = {
    "TLSv1.2": {
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
    },
    "TLSv1.3": {
        "TLS_AES_256_GCM_SHA384",
        "TLS_CHACHA20_POLY1305_SHA256",
        "TLS_AES_128_GCM_SHA256",
    },
}


def start(processes: Processes, site: Site, *options: str) -> tuple[Process, int]:
    server = processes.command(
        "mtt-server", "-b", "127.0.0.1:0", "-d", site.address, "-n", NAME, "-wss", *options
    )
    return server, listening(server)[1]


# testssl starts OpenSSL some hundred times.
@pytest.mark.deadline(150)
def test_testssl_finds_nothing_but_the_self_signed_certificate(
    processes: Processes, site: Site, tmp_path: Path
) -> None:
    testssl, openssl = require_program("testssl"), require_program("openssl")
    server, port = start(processes, site)
    report = tmp_path / "report.json"
    # Protocols, certificate and extensions, vulnerabilities. The suites are sslscan's part, which
    # is faster by two orders of magnitude.
    scan = processes.start(
        testssl, "--quiet", "--color", "0", "--warnings", "off", "--openssl", openssl,
        "--ip", "127.0.0.1", "-p", "-S", "-U", "--jsonfile", report, f"{NAME}:{port}",
        env=SHORT_WAIT,
    )  # fmt: skip
    scan.wait(140)  # its exit code counts what it does not like
    found = json.loads(report.read_text())
    verdicts = {entry["id"]: entry["severity"] for entry in found}
    # It has seen us and not something else.
    assert verdicts["TLS1_3"] == verdicts["heartbleed"] == verdicts["ROBOT"] == "OK"
    assert any(NAME in entry["finding"] for entry in found if entry["id"] == "cert_subjectAltName")
    reproaches = {name for name, severity in verdicts.items() if severity not in HARMLESS}
    assert reproaches == SELF_SIGNED, [e for e in found if e["id"] in reproaches - SELF_SIGNED]
    assert "Traceback" not in server.output


@pytest.mark.parametrize("least", ["1.2", "1.3"])
def test_sslscan_finds_modern_tls_only(least: str, processes: Processes, site: Site) -> None:
    _, port = start(processes, site, "-tls-min", least)
    found = run(require_program("sslscan"), "--no-colour", f"127.0.0.1:{port}").decode()
    enabled = set(re.findall(r"(?m)^(\S+) +enabled$", found))
    versions = {"TLSv1.2", "TLSv1.3"} if least == "1.2" else {"TLSv1.3"}
    assert enabled == versions
    suites: dict[str, set[str]] = {}
    for version, suite in re.findall(r"(?:Preferred|Accepted) +(\S+) +\d+ bits +(\S+)", found):
        suites.setdefault(version, set()).add(suite)
    assert suites == {version: SUITES[version] for version in versions}
    assert "Session renegotiation not supported" in found or least == "1.3"
    assert "not vulnerable to heartbleed" in found
