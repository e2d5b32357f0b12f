"""OpenSSL's own client and server as strangers at the other end."""

from __future__ import annotations

import base64
import contextlib
import re
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from tests.real.destinations import (
    PAGE,
    SIZE,
    SOCKET_TIMEOUT,
    Destination,
    Site,
    payload,
    read_to_end,
)
from tests.real.tunnels import start_client, start_server
from tests.support.certs import Certs
from tests.support.processes import Processes, clean_environment, free_port, listening, run
from tests.support.programs import require_program

NAME = "some.example"
DAY = 86_400
TEN_YEARS = 3652 * DAY

# Debian's openssl.cnf sets a minimum of TLS 1.2 and of key sizes; the tests decide themselves.
NO_CONFIG = {"OPENSSL_CONF": "/dev/null"}


def s_client(port: int, *options: str, fails: bool = False) -> str:
    """Connect to `port` and end the connection; all that OpenSSL says about it."""
    done = subprocess.run(
        [require_program("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", *options],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=clean_environment(**NO_CONFIG), timeout=20, check=False,
    )  # fmt: skip
    output = done.stdout.decode("utf-8", "backslashreplace")
    assert (done.returncode != 0) == fails, output
    return output


def openssl(*arguments: str | Path, stdin: bytes = b"") -> bytes:
    return run(require_program("openssl"), *arguments, stdin=stdin)


def test_the_self_signed_certificate(processes: Processes, site: Site, tmp_path: Path) -> None:
    """What it is for, and that the two ways of trusting it that the log names are true."""
    server = processes.command("mtt-server", "-b", "127.0.0.1:0", "-d", site.address, "-n", NAME)
    _, port = listening(server)
    shown = s_client(port, "-servername", NAME)
    pem = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n", shown, re.DOTALL)
    assert pem is not None, shown
    path = tmp_path / "server.pem"
    path.write_text(pem[0])

    text = openssl("x509", "-in", path, "-noout", "-text").decode()
    assert f"Subject: CN = {NAME}\n" in text
    assert f"Issuer: CN = {NAME}\n" in text
    assert f"DNS:{NAME}\n" in text
    assert "CA:FALSE" in text
    assert "NIST CURVE: P-384" in text
    openssl("x509", "-in", path, "-noout", "-checkend", str(TEN_YEARS - 2 * DAY))
    with pytest.raises(pytest.fail.Exception, match="will expire"):
        openssl("x509", "-in", path, "-noout", "-checkend", str(TEN_YEARS + 2 * DAY))

    verified = s_client(
        port, "-CAfile", str(path), "-verify_return_error", "-verify_hostname", NAME
    )
    assert "Verification: OK" in verified

    public_key = openssl("x509", "-in", path, "-noout", "-pubkey")
    der = openssl("pkey", "-pubin", "-outform", "der", stdin=public_key)
    pin = base64.b64encode(openssl("dgst", "-sha256", "-binary", stdin=der)).decode()
    assert f"sha256/{pin}" in server.output


@pytest.mark.parametrize("options", [("-wss",), ("-wss", "-mux")], ids=["wss", "wss+mux"])
def test_alpn_of_websockets(
    options: tuple[str, ...], processes: Processes, certs: Certs, site: Site
) -> None:
    """A browser's offer ends in HTTP/1.1; h2 cannot carry our WebSocket and is never chosen."""
    _, port = start_server(processes, certs, site.address, *options)
    assert "ALPN protocol: http/1.1\n" in s_client(port, "-alpn", "h2,http/1.1")
    assert "No ALPN negotiated\n" in s_client(port)
    output = s_client(port, "-alpn", "h2", fails=True)
    assert "SSL alert number 120" in output  # no_application_protocol, as from web servers


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
def test_old_versions_are_refused(
    version: str, processes: Processes, certs: Certs, site: Site
) -> None:
    server, port = start_server(processes, certs, site.address)
    output = s_client(port, version, "-cipher", "DEFAULT:@SECLEVEL=0", fails=True)
    assert "SSL alert number 70" in output  # protocol_version
    server.expect(r"WARNING mtt-server: 127\.0\.0\.1:\d+: TLS: unsupported protocol\n")


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_new_versions_carry_data(
    version: str, processes: Processes, certs: Certs, site: Site
) -> None:
    _, port = start_server(processes, certs, site.address)
    request = b"GET /payload HTTP/1.1\r\nConnection: close\r\n\r\n"
    answer = run(
        require_program("openssl"), "s_client", "-quiet", version,
        "-connect", f"127.0.0.1:{port}", "-CAfile", certs.ca, "-verify_return_error",
        stdin=request,
    )  # fmt: skip
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"200 OK" in head
    assert body == payload(SIZE)


def line_to(port: int, last: bytes) -> Destination:
    """Carries connections to `port`, and sends `last` when the client has ended."""

    def carry(near: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", port), SOCKET_TIMEOUT) as far:
            back = threading.Thread(target=pump, args=(far, near))
            back.start()
            pump(near, far)
            far.sendall(last)
            far.shutdown(socket.SHUT_WR)
            back.join()

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):
            while data := source.recv(65536):
                sink.sendall(data)

    return Destination(carry)


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize(("inside", "end"), [(False, "end"), (True, "reset")])
def test_fin_without_close_notify_is_an_end_between_records_only(
    inside: bool, end: str, version: str, processes: Processes, certs: Certs
) -> None:
    """As Go programs leave now and then, with everything said."""
    ends: list[str] = []
    ended = threading.Event()

    def watch(connection: socket.socket) -> None:
        connection.sendall(b"ready\n")
        try:
            read_to_end(connection)
            ends.append("end")
        except ConnectionResetError:
            ends.append("reset")
        ended.set()

    with Destination(watch) as destination:
        _, port = start_server(processes, certs, destination.address)
        with line_to(port, last=b"\x17\x03\x03\x01\x00part" if inside else b"") as line:
            client = processes.start(
                require_program("openssl"), "s_client", "-quiet", version,
                "-connect", f"127.0.0.1:{line.port}",
            )  # fmt: skip
            client.expect("ready")
            client.stop(signal.SIGKILL)
            assert ended.wait(SOCKET_TIMEOUT)
    assert ends == [end]


GARBAGE = {
    "zeros": bytes(64),
    "text": b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
    "http": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "record of no known type": bytes.fromhex("7f0303000401020304"),
    "record of a future version": bytes.fromhex("1609030004010203040506"),
    "empty handshake record": bytes.fromhex("1603010000"),
    "record that is too long": bytes.fromhex("160301ffff") + bytes(32),
    "not a ClientHello": bytes.fromhex("160301000402000000"),
    "a part of a ClientHello": bytes.fromhex("160301020001"),
    "broken ClientHello": bytes.fromhex("16030100080100000403030000"),
    "data before the handshake": bytes.fromhex("170303000401020304"),
    "alert": bytes.fromhex("15030100020228"),
}


def test_garbage_gets_openssl_s_own_answer(processes: Processes, certs: Certs, site: Site) -> None:
    """Byte for byte: another answer, or none, would tell a prober what it is talking to.

    But a handshake that is cut gets none, as from web servers: `s_server` answers to an end.
    """
    _, port = start_server(processes, certs, site.address)
    reference = free_port()
    processes.start(
        require_program("openssl"), "s_server", "-accept", f"127.0.0.1:{reference}", "-www",
        "-cert", certs.cert, "-key", certs.key, "-min_protocol", "TLSv1.2",
        env=NO_CONFIG,
    ).expect("ACCEPT")  # fmt: skip
    ours = {name: _answer(port, garbage) for name, garbage in GARBAGE.items()}
    theirs = {name: _answer(reference, garbage) for name, garbage in GARBAGE.items()}
    cut = {"empty handshake record", "a part of a ClientHello"}
    assert ours == {name: b"" if name in cut else answer for name, answer in theirs.items()}
    assert sum(answer.startswith(b"\x15") for answer in theirs.values()) > len(GARBAGE) / 2


def _answer(port: int, data: bytes) -> bytes:
    """What the server at `port` answers to `data` and the end of the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=SOCKET_TIMEOUT) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return read_to_end(connection)


STRANGERS = {
    # It answers every request with a page about itself.
    "a web server": ((), ("-wss",), "the server answered the WebSocket request with 200 ok.*"),
    "an old server": (
        ("-tls1_1", "-cipher", "DEFAULT:@SECLEVEL=0"), (), "TLS: .* protocol version",
    ),
    "a server with another name": ((), ("-n", "other.example"), r"certificate not accepted: .*"),
    "a server of an unknown authority": (
        (), ("-ca", "{certs.other_ca}"), r"certificate not accepted: .*",
    ),
    "a server that wants a certificate from us": (
        ("-Verify", "1", "-verify_return_error", "-tls1_2"), (), r"TLS: .*handshake failure",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("server_options", "client_options", "reason"), STRANGERS.values(), ids=STRANGERS
)
def test_server_without_tunnel_causes_one_log_line(
    server_options: tuple[str, ...],
    client_options: tuple[str, ...],
    reason: str,
    processes: Processes,
    certs: Certs,
) -> None:
    server_port = free_port()
    processes.start(
        require_program("openssl"), "s_server", "-accept", f"127.0.0.1:{server_port}", "-www",
        "-cert", certs.cert, "-key", certs.key, *server_options,
        env=NO_CONFIG,
    ).expect("ACCEPT")  # fmt: skip
    options = [option.format(certs=certs) for option in client_options]
    client, port = start_client(processes, certs, server_port, *options)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=SOCKET_TIMEOUT) as application,
        pytest.raises(ConnectionResetError),  # not an end, which would be an empty answer
    ):
        application.recv(1)
    line = client.expect(r"(?m)^.* WARNING .*$")[0]
    assert re.search(rf"mtt-client: 127\.0\.0\.1:\d+: 127\.0\.0\.1:{server_port}: {reason}$", line)
    client.stop()
    assert client.expect_silence().count("WARNING") == 1


def test_s_server_is_a_tls_mode_server(processes: Processes, certs: Certs) -> None:
    """In TLS mode its page comes through the tunnel, HTTP being the application's business."""
    server_port = free_port()
    processes.start(
        require_program("openssl"), "s_server", "-accept", f"127.0.0.1:{server_port}", "-www",
        "-cert", certs.cert, "-key", certs.key,
    ).expect("ACCEPT")  # fmt: skip
    _, port = start_client(processes, certs, server_port)
    page = run(require_program("curl"), "-sSf", "--http0.9", f"http://127.0.0.1:{port}/")
    assert b"s_server" in page
    assert PAGE not in page
