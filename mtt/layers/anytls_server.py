"""The server's side of an AnyTLS session. See `anytls`."""

from __future__ import annotations

from collections.abc import Callable

from mtt.errors import PeerError
from mtt.layers.anytls import HALF_CLOSE, AnyTlsSession
from mtt.layers.anytls_stream import ServerStream
from mtt.layers.base import Upper
from mtt.wire.anytls import (
    ALERT,
    NO_SETTINGS,
    SERVER_SETTINGS,
    SETTINGS,
    SYN,
    SYNACK,
    UPDATE_PADDING,
    VERSION,
    encode_settings,
    parse_settings,
    server_settings,
    shown,
    version_of,
)
from mtt.wire.padding import DEFAULT, Scheme
from mtt.wire.socks import Outcome

# Streams of one session. The clients there are carry one at a time; the rest is room for others.
MAX_STREAMS = 256


class ServerSession(AnyTlsSession[ServerStream]):
    """A server's session: the protocol of the TLS layer once the preamble has been read.

    Args:
        accept: gives the protocol for a stream that the client has opened.
        scheme: the padding that clients shall use.
        on_change: called when a stream ended.
        on_lost: called once when the session is over, with the reason (None: closed by us).

    Attributes:
        client: what the client calls itself, fit for a log line.
    """

    __slots__ = ("_accept", "_greeted", "_scheme", "client")

    def __init__(
        self,
        accept: Callable[[], Upper],
        *,
        scheme: Scheme = DEFAULT,
        on_change: Callable[[ServerSession], object] | None = None,
        on_lost: Callable[[ServerSession, Exception | None], object] | None = None,
    ) -> None:
        super().__init__(on_change=on_change, on_lost=on_lost)
        self._accept: Callable[[], Upper] | None = accept
        self._scheme = scheme
        self._greeted = False  # the client's settings have come
        self.client = ""

    def _said(self, command: int, stream_id: int, payload: bytes) -> None:
        if command == SYN:
            self._syn_received(stream_id)
        elif command == SETTINGS and payload:
            self._settings_received(payload)

    def _settings_received(self, payload: bytes) -> None:
        settings = parse_settings(payload)
        if settings.get("padding-md5") != self._scheme.md5:
            self.control(UPDATE_PADDING, 0, self._scheme.raw)
        if version_of(settings) >= VERSION:
            self.version = VERSION
            if not self._greeted:
                self._half_close = settings.get(HALF_CLOSE) == "1"
            answer = server_settings()
            if self._half_close:
                answer += b"\n" + encode_settings({HALF_CLOSE: "1"})
            self.control(SERVER_SETTINGS, 0, answer)
        if not self._greeted:
            self._greeted = True
            self.client = shown(settings.get("client", "").encode())

    def _syn_received(self, stream_id: int) -> None:
        if not self._greeted:
            self.control(ALERT, 0, NO_SETTINGS)
            self._fail(PeerError("AnyTLS session: the client opens a stream before its settings"))
            return
        if stream_id in self._streams or self._accept is None:
            return
        self._finishing.pop(stream_id, None)
        if self.used_slots >= MAX_STREAMS:
            if self.version >= VERSION:
                self.control(SYNACK, stream_id, Outcome.GENERAL_FAILURE.text.encode())
            self._send_fin(stream_id)
            return
        self._made(ServerStream(self, stream_id, self._accept()))

    def _forget(self) -> None:
        self._accept = None
