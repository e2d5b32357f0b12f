"""The bare TLS handshake: OpenSSL on memory, in this process, with the commands' own settings.

It is the least a new connection can cost each side: no sockets, no event loop, no relay.
"""

from __future__ import annotations

import contextlib
import ssl
import time

from bench.certs import SERVER_NAME, Certs
from mtt.trust import certificates
from mtt.trust.tls_options import ClientTls, ServerTls
from mtt.wire import alpn

FULL = "bare handshake"
RESUMED = "bare handshake, resumed"


class Clock:
    """CPU time of one side."""

    def __init__(self) -> None:
        self.total = 0.0

    def __enter__(self) -> None:
        self._start = time.thread_time()

    def __exit__(self, *_exc: object) -> None:
        self.total += time.thread_time() - self._start


def measure_handshake(certs: Certs, *, resumed: bool, count: int) -> dict[str, float]:
    """CPU microseconds of each side for one handshake, mean of `count`."""
    names = alpn.STREAM
    client = certificates.client_context(ClientTls(ca=certs.ca, alpn=names))
    server, _ = certificates.server_context(ServerTls(cert=certs.cert, key=certs.key, alpn=names))
    session = handshake(client, server, None, Clock(), Clock())
    client_time, server_time = Clock(), Clock()
    for _ in range(count):
        handshake(client, server, session if resumed else None, client_time, server_time)
    scale = 1e6 / count
    return {"client_us": client_time.total * scale, "server_us": server_time.total * scale}


def handshake(
    client_context: ssl.SSLContext,
    server_context: ssl.SSLContext,
    session: ssl.SSLSession | None,
    client_time: Clock,
    server_time: Clock,
) -> ssl.SSLSession | None:
    """One handshake, session tickets included; returns the client's session."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    with client_time:
        client = client_context.wrap_bio(
            to_client, to_server, server_hostname=SERVER_NAME, session=session
        )
    with server_time:
        server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(3):  # TLS 1.3 needs two flights of the client, TLS 1.2 up to three
        for side, clock in ((client, client_time), (server, server_time)):
            with clock:
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
    # The tickets, which the server has sent after its handshake.
    with client_time, contextlib.suppress(ssl.SSLWantReadError):
        client.read(1)
    if session is not None and not client.session_reused:
        raise AssertionError("the session was not resumed")
    return client.session
