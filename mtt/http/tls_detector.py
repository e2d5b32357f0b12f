"""Checks the first bytes on a port that imitates a web server, before TLS does.

As with nginx, the first byte decides between TLS and HTTP, and clients without a common ALPN name
are refused. `ssl` cannot refuse them: it has no callback with the client's names. So they are read
here, and OpenSSL refuses the client (see `mtt.trust.certificates.ServerConnection`) after it has
checked the rest of the ClientHello.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from mtt.errors import Cause, PeerError
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.tls import TlsLayer
from mtt.trust.certificates import ServerConnection
from mtt.wire.client_hello import ClientHelloError, offered_alpn
from mtt.wire.http1 import may_be_request

# nginx's client_header_timeout. The number of waiting connections is limited.
HANDSHAKE_TIME = 60.0

# A ClientHello takes one or two reads. Each read parses it from the start, so a ClientHello in more
# reads is not checked.
MAX_READS = 16

_HANDSHAKE = 0x16  # the first byte of TLS (RFC 8446, 5.1)
_SSL2 = 0x80  # nginx and OpenSSL read this bit as part of an SSLv2 record's length


class TlsDetector(StreamProtocol):
    """The first protocol of a connection, before `tls` or `on_plain`.

    Args:
        alpn: the server's ALPN names; a client with ALPN must offer one of them.
        on_plain: takes over a connection without TLS, and its first bytes.
    """

    borrows = True

    __slots__ = ("_alpn", "_hello", "_on_plain", "_reads", "_tls", "_transport")

    _transport: StreamTransport

    def __init__(
        self,
        tls: TlsLayer,
        *,
        alpn: Collection[bytes],
        on_plain: Callable[[StreamTransport, bytes], None],
    ) -> None:
        self._tls = tls
        self._alpn = alpn
        self._on_plain = on_plain
        self._hello = b""
        self._reads = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._tls.connection_made(transport)

    def data_received(self, data: Data) -> None:
        if not self._hello and data[0] != _HANDSHAKE and not data[0] & _SSL2:
            self._leave_tls(bytes(data))
            return
        self._hello += data
        self._reads += 1
        try:
            offered = offered_alpn(self._hello) if self._reads <= MAX_READS else []
        except ClientHelloError:  # OpenSSL will answer it
            offered = []
        if offered is not None:
            if offered and self._alpn and not any(name in self._alpn for name in offered):
                connection = self._tls.get_extra_info("ssl_object")
                if isinstance(connection, ServerConnection):
                    connection.refuse_alpn()
            self._transport.set_protocol(self._tls)
        self._tls.data_received(data)

    def eof_received(self) -> bool | None:
        return self._tls.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._tls.connection_lost(exc)

    def pause_writing(self) -> None:
        self._tls.pause_writing()

    def resume_writing(self) -> None:
        self._tls.resume_writing()

    def _leave_tls(self, received: bytes) -> None:
        if may_be_request(received):
            error = PeerError("TLS: http request", cause=Cause.PLAINTEXT_HTTP)
        else:
            error = PeerError("TLS: wrong version number", cause=Cause.TLS)
        self._tls.detach(error)
        self._on_plain(self._transport, received)
