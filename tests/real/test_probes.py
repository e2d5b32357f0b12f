"""What a prober sees: our servers, with -fallback to an nginx and without, and nginx with TLS.

Both get the same bytes. What they answer must be the same, byte for byte, and so must be the way in
which they end the connection, or keep it open. Differences that have to stay are in the table of
docs/concealment.md.
"""

from __future__ import annotations

import re
import socket
import ssl
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.real.nginx import start_nginx
from tests.real.probing import (
    CUT,
    IN_CLEAR,
    INSIDE,
    LAST,
    QUIET,
    SECRET,
    Heard,
    Probe,
    Said,
    Talk,
    connect,
    heard_by,
)
from tests.support.certs import Certs
from tests.support.contexts import trusting_context
from tests.support.processes import ROOT, Processes, free_port, listening, run
from tests.support.programs import require_program

# Seconds. A connection is kept open when nothing comes for so long: from nginx, which shows what to
# expect, and from ours when an end is expected. See QUIET as well.
NGINX, LATE = 1.0, 5.0

CONFIG = """
http {{
    access_log off;
    {paths}
    server {{
        listen 127.0.0.1:{port};
        listen 127.0.0.1:{tls_port} ssl;
        ssl_certificate {certs.cert};
        ssl_certificate_key {certs.key};
        ssl_protocols TLSv1.2 TLSv1.3;
        root {directory}/www;
    }}
    server {{
        listen 127.0.0.1:{bare_port} ssl;
        ssl_certificate {certs.cert};
        ssl_certificate_key {certs.key};
        ssl_protocols TLSv1.2 TLSv1.3;
        server_tokens off;
        location / {{ return 404; }}
    }}
}}
"""

# Without a site these are judged when the head is complete, see docs/concealment.md.
LATER = {
    "no HTTP", "HTTP/0.9", "HTTP/3", "two hosts", "bad host", "bad header", "NUL in a header",
    "long line", "long header", "request and bad request",
}  # fmt: skip
# Answers that do not come from nginx alone.
FORWARDED = re.compile(rb"HTTP/1\.1 (?:404|405) ")

ALPN: dict[str, list[str]] = {
    "http/1.1": ["http/1.1"],
    "http/1.0": ["http/1.0"],
    "h2, http/1.1": ["h2", "http/1.1"],
    "h2": ["h2"],
    "other": ["other"],
}


class Servers:
    """nginx, with TLS and as a site, and ours in front of the site."""

    def __init__(self, processes: Processes, certs: Certs, directory: Path) -> None:
        self.context = trusting_context(certs.ca)
        self.name = certs.name
        (directory / "www").mkdir()
        (directory / "www" / "index.html").write_text("<title>a shop</title>")
        port, self._nginx, self._bare_nginx = free_port(), free_port(), free_port()
        start_nginx(
            processes, directory, CONFIG, certs=certs, port=port, tls_port=self._nginx,
            bare_port=self._bare_nginx,
        )  # fmt: skip
        own = ("-cert", certs.cert, "-key", certs.key)
        site = ("-fallback", f"127.0.0.1:{port}")
        self._ours = start_all(processes, *own, *site)
        self._bare = start_all(processes, *own)
        # What nginx answers to each, asked many at once: those that it keeps open take a second.
        with ThreadPoolExecutor(12) as pool:
            asked = {
                (port, probe): pool.submit(probe, port, NGINX)
                for port in (self._nginx, self._bare_nginx)
                for probe in self.probes()
            }
        self._expected = {key: future.result() for key, future in asked.items()}

    def probes(self) -> Iterable[Probe]:
        yield from map(self.in_clear, IN_CLEAR.values())
        yield from map(self.inside_tls, INSIDE.values())

    def in_clear(self, said: Said) -> Probe:
        return Talk(said, None, "")

    def inside_tls(self, said: Said) -> Probe:
        return Talk(said, self.context, self.name)

    def nginx(self, port: int, probe: Probe) -> Heard:
        return self._expected.get((port, probe)) or probe(port, NGINX)

    def compare(self, probe: Probe, *, bare: bool = True) -> None:
        """Make sure that all with a site answer as nginx does, and as early.

        Args:
            bare: and those without a site, for what nginx answers itself.
        """
        with ThreadPoolExecutor(len(self._ours) + len(self._bare) + 1) as pool:
            without_site = pool.submit(self._compare_bare, probe, pool) if bare else None
            expected = self.nginx(self._nginx, probe)
            for name, heard in probe_all(probe, expected, self._ours, pool):
                assert heard == expected, name
            if without_site:
                without_site.result()

    def _compare_bare(self, probe: Probe, pool: ThreadPoolExecutor) -> None:
        """What nginx forwards, our server answers behind it, so to say."""
        expected = self.nginx(self._bare_nginx, probe)
        for name, heard in probe_all(probe, expected, self._bare, pool):
            if FORWARDED.search(expected.answer):
                assert heard.answer.startswith(b"HTTP/1.1 4"), name
                assert b"\r\nServer: nginx\r\nDate:\r\n" in heard.answer
            else:
                assert heard == expected, name


def probe_all(
    probe: Probe, expected: Heard, ours: dict[str, int], pool: ThreadPoolExecutor
) -> Iterable[tuple[str, Heard]]:
    """What each of ours answers, asked all at once."""
    quiet = QUIET if expected.end == "open" else LATE
    return zip(ours, pool.map(lambda port: probe(port, quiet), ours.values()), strict=True)


def start_all(processes: Processes, *options: str) -> dict[str, int]:
    """Start a server of each kind; returns their ports."""
    tunnel = ("-b", "127.0.0.1:0", "-d", "127.0.0.1:9")
    started = {
        "mtt-server -wss": processes.command(
            "mtt-server", *tunnel, "-wss", "-wss-path", SECRET, *options
        ),
        "mtt-server -anytls": processes.command(
            "mtt-server", *tunnel, "-anytls", "-p", "password", *options
        ),
        "mtt-mu-server": processes.start(
            sys.executable, "-m", "mtt_mu_server", "-b", "127.0.0.1:0", "-c", "127.0.0.1:0",
            *options, cwd=ROOT,
        ),
        "anytls-server": processes.command(
            "anytls-server", "-b", "127.0.0.1:0", "-p", "password", *options
        ),
    }  # fmt: skip
    return {name: listening(server)[1] for name, server in started.items()}


@pytest.fixture(scope="module")
def servers(
    certs: Certs, tmp_path_factory: pytest.TempPathFactory
) -> Iterable[Servers]:
    with Processes() as processes:
        yield Servers(processes, certs, tmp_path_factory.mktemp("probes"))


@pytest.mark.parametrize("said", IN_CLEAR.values(), ids=IN_CLEAR)
def test_without_tls(said: Said, servers: Servers) -> None:
    servers.compare(servers.in_clear(said))


@pytest.mark.parametrize("size", [3, 100])
def test_hello_that_is_cut(size: int, servers: Servers) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = servers.context.wrap_bio(incoming, outgoing, server_hostname=servers.name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()

    def probe(port: int, quiet: float) -> Heard:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            return heard_by(connection, (hello[:size], CUT), quiet)

    servers.compare(probe, bare=False)


@pytest.mark.parametrize("what", INSIDE)
def test_inside_tls(what: str, servers: Servers) -> None:
    servers.compare(servers.inside_tls(INSIDE[what]), bare=what not in LATER)


@pytest.mark.parametrize("names", ALPN.values(), ids=ALPN)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_alpn(version: ssl.TLSVersion, names: list[str], servers: Servers, certs: Certs) -> None:
    context = trusting_context(certs.ca)
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(names)

    def probe(port: int, quiet: float) -> Heard:
        try:
            with connect(port, context, servers.name) as connection:
                return Heard(heard_by(connection, (LAST,), quiet).answer, str(connection.version()))
        except ssl.SSLError as error:
            return Heard(b"", f"{error.reason}")

    servers.compare(probe, bare=False)


SHAKE = re.compile(
    r"^(?:TLS server extension .*|New, .*|ALPN protocol: .*|Server Temp Key: .*|Peer sign.*)$", re.M
)


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize("order", [1, -1], ids=["weakest first", "strongest first"])
def test_handshake_is_the_same(order: int, version: str, servers: Servers) -> None:
    """Extensions, which show on the way with TLS 1.2; and the client chooses the cipher suite."""
    openssl = require_program("openssl")
    if version == "-tls1_2":
        names = ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384"]
        option = "-cipher"
    else:
        names = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"]
        option = "-ciphersuites"

    def probe(port: int, quiet: float) -> Heard:
        shown = run(
            openssl, "s_client", "-connect", f"127.0.0.1:{port}", "-servername", servers.name,
            version, option, ":".join(names[::order]), "-alpn", "http/1.1", "-tlsextdebug",
        )  # fmt: skip
        found = SHAKE.findall(shown.decode())
        assert any(names[::order][0] in line for line in found)
        assert any("server name" in line for line in found)
        return Heard(b"", "\n".join(found))

    servers.compare(probe, bare=False)
