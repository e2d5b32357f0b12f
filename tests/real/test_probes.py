"""What a prober sees: our servers, with -fallback to an nginx and without, and nginx with TLS.

Both get the same bytes. What they answer must be the same, byte for byte, and so must be the way in
which they end the connection, or keep it open. Differences that have to stay are in the table of
docs/concealment.md.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.real.nginx import start_nginx
from tests.support.certs import Certs
from tests.support.contexts import trusting_context
from tests.support.processes import ROOT, Processes, free_port, listening, run
from tests.support.programs import require_program

# Seconds. A connection is kept open when nothing comes for so long: from nginx, which shows what to
# expect; from ours when that is expected; and from ours when an end is expected instead.
NGINX, QUIET, LATE = 1.0, 0.4, 5.0

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

GET = b"GET / HTTP/1.1\r\nHost: test.local\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: test.local\r\nConnection: close\r\n\r\n"
SECRET = "/a-secret-path"


# Without a site these are judged when the head is complete, see docs/concealment.md.
LATER = {
    "no HTTP", "HTTP/0.9", "HTTP/3", "two hosts", "bad host", "bad header", "NUL in a header",
    "long line", "long header", "request and bad request",
}  # fmt: skip
# Answers that do not come from nginx alone.
FORWARDED = re.compile(rb"HTTP/1\.1 (?:404|405) ")


class Heard(NamedTuple):
    """What a server says, and how it ends."""

    answer: bytes
    end: str


# Asks a port, and waits so many seconds for more; returns what was heard.
Probe = Callable[[int, float], Heard]


class End:
    """In what is sent: the end of TCP, with or without close_notify before it."""

    def __init__(self, *, notify: bool) -> None:
        self.notify = notify


NOTIFY, CUT = End(notify=True), End(notify=False)
Said = tuple[bytes | End, ...]

# Sent without TLS.
IN_CLEAR: dict[str, Said] = {
    "request": (GET,),
    "two requests": (GET + GET,),
    "HEAD": (GET.replace(b"GET", b"HEAD"),),
    "POST": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",),
    "CONNECT": (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",),
    "HTTP/1.0": (b"GET / HTTP/1.0\r\n\r\n",),
    "no host": (b"GET / HTTP/1.1\r\n\r\n",),
    "small letters": (b"get / http/1.1\r\n\r\n",),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",),
    "half a line": (b"GET / HT",),
    "half a head": (b"GET / HTTP/1.1\r\n",),
    "one letter": (b"G",),
    "one letter, and the end": (b"G", CUT),
    "request, and the end": (GET, CUT),
    "empty lines": (b"\r\n\r\n",),
    "ssh": (b"SSH-2.0-OpenSSH_9.2p1\r\n",),
    "zeros": (bytes(20),),
    "nothing, and the end": (CUT,),
    "first byte of TLS": (b"\x16",),
    "record of text": (b"\x16\x03\x01\x00\x05hello",),
    "SSLv2": (b"\x80\x2e\x01\x00\x02" + bytes(50),),
    "high bytes": (bytes(range(200, 256)),),
}

# Sent inside TLS.
INSIDE: dict[str, Said] = {
    "request": (GET,),
    "last request": (LAST,),
    "secret path": (LAST.replace(b"/ ", SECRET.encode() + b" "),),
    "request, close_notify, and the end": (GET, NOTIFY),
    "half a request, close_notify, and the end": (b"GET / HT", NOTIFY),
    "request, and the end": (GET, CUT),
    "half a request, and the end": (b"GET / HT", CUT),
    "nothing": (),
    "nothing, and the end": (CUT,),
    "nothing, close_notify, and the end": (NOTIFY,),
    "zeros": (bytes(10),),
    "one byte": (b"\x01",),
    "31 bytes": (bytes(range(31)),),
    "32 bytes": (bytes(range(32)),),
    "100 bytes": (bytes(range(100)),),
    "small letters": (b"get /",),
    "text": (b"hello world",),
    "empty lines": (b"\r\n\r\n",),
    "empty line and request": (b"\r\n" + LAST,),
    "control character": (b"GET /\x01",),
    "no HTTP": (b"GET / HTTX",),
    "HTTP/0.9": (b"GET /\r\n",),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\n\r\n",),
    "HTTP/3": (b"GET / HTTP/3",),
    "no host": (b"GET / HTTP/1.1\r\n\r\n",),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n",),
    "bad host": (b"GET / HTTP/1.1\r\nHost: a/b\r\n",),
    "bad header": (b"GET / HTTP/1.1\r\nHost: a\r\n:",),
    "NUL in a header": (b"GET / HTTP/1.1\r\nHost: a\r\nA: \0",),
    "half a head": (b"GET / HTTP/1.1\r\nHost: a\r\nAb",),
    "long line": (b"GET /" + b"a" * 9000,),
    "long header": (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 9000,),
    "large head": (b"GET / HTTP/1.1\r\nHost: a\r\n" + (b"X: " + b"a" * 40 + b"\r\n") * 1000,),
    "request and zeros": (GET, bytes(10)),
    "request and text": (GET, b"hello\r\n"),
    "request and bad request": (GET, b"GET / HTTP/1.1\r\nHost: a/b\r\n"),
    "request and half a request": (GET, b"GET / HT"),
    "no WebSocket": (GET.replace(b"\r\n\r\n", b"\r\nUpgrade: websocket\r\n\r\n"),),
    "upload": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n", b"hello"),
    "Expect": (b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",),
}

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

    def compare(self, probe: Probe, *, bare: bool = True) -> None:
        """Make sure that all with a site answer as nginx does, and as early.

        Args:
            bare: and those without a site, for what nginx answers itself.
        """
        with ThreadPoolExecutor(len(self._ours) + len(self._bare)) as pool:
            without_site = pool.submit(self._compare_bare, probe, pool) if bare else None
            expected, found = probe_all(probe, self._nginx, self._ours, pool)
            for name, heard in found:
                assert heard == expected, name
            if without_site:
                without_site.result()

    def _compare_bare(self, probe: Probe, pool: ThreadPoolExecutor) -> None:
        """What nginx forwards, our server answers behind it, so to say."""
        expected, found = probe_all(probe, self._bare_nginx, self._bare, pool)
        for name, heard in found:
            if FORWARDED.search(expected.answer):
                assert heard.answer.startswith(b"HTTP/1.1 4"), name
                assert b"\r\nServer: nginx\r\nDate:\r\n" in heard.answer
            else:
                assert heard == expected, name


def probe_all(
    probe: Probe, nginx: int, ours: dict[str, int], pool: ThreadPoolExecutor
) -> tuple[Heard, list[tuple[str, Heard]]]:
    """What nginx answers, and then all of ours at once."""
    expected = probe(nginx, NGINX)
    quiet = QUIET if expected.end == "open" else LATE
    found = pool.map(lambda port: probe(port, quiet), ours.values())
    return expected, list(zip(ours, found, strict=True))


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
    def probe(port: int, quiet: float) -> Heard:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            return heard_by(connection, said, quiet)

    servers.compare(probe)


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
    said = INSIDE[what]

    def probe(port: int, quiet: float) -> Heard:
        with connect(servers, port, servers.context) as connection:
            return heard_by(connection, said, quiet)

    servers.compare(probe, bare=what not in LATER)


@pytest.mark.parametrize("names", ALPN.values(), ids=ALPN)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_alpn(version: ssl.TLSVersion, names: list[str], servers: Servers, certs: Certs) -> None:
    context = trusting_context(certs.ca)
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(names)

    def probe(port: int, quiet: float) -> Heard:
        try:
            with connect(servers, port, context) as connection:
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


def connect(servers: Servers, port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    connection = socket.create_connection(("127.0.0.1", port))
    try:
        return context.wrap_socket(
            connection, server_hostname=servers.name, suppress_ragged_eofs=False
        )
    except BaseException:
        connection.close()
        raise


def heard_by(connection: socket.socket, said: Said, quiet: float) -> Heard:
    """What the server says to this: `said` in turn, each after the answer to the one before.

    The connection is open if nothing comes for `quiet` seconds after the last.
    """
    answer = b""
    end = "open"
    steps = said or (b"",)
    for number, each in enumerate(steps, 1):
        try:
            if isinstance(each, bytes):
                if each:
                    connection.sendall(each)
            else:
                finish(connection, each)
        except OSError:
            break  # it has ended the connection, which is read below
        more, end = read(connection, quiet if number == len(steps) else QUIET)
        answer += more
        if end != "open":
            break
    return Heard(re.sub(rb"Date: [^\r]*", b"Date:", answer), end)


def finish(connection: socket.socket, end: End) -> None:
    if isinstance(connection, ssl.SSLSocket) and end.notify:
        connection.setblocking(False)
        with contextlib.suppress(OSError):  # the server has not answered, or has ended already
            connection.unwrap()
        connection.setblocking(True)
    # Not that of SSLSocket, which forgets TLS.
    socket.socket.shutdown(connection, socket.SHUT_WR)


def read(connection: socket.socket, quiet: float) -> tuple[bytes, str]:
    """All that comes until the connection ends or is quiet."""
    answer = b""
    connection.settimeout(quiet)
    try:
        while data := connection.recv(65536):
            answer += data
    except TimeoutError:
        return answer, "open"
    except ssl.SSLEOFError:
        return answer, "cut"
    except ssl.SSLError as error:
        return answer, "cut" if "EOF" in str(error) else str(error.reason)
    except ConnectionError:
        return answer, "reset"
    return answer, "end"
