"""The server's side of an AnyTLS session. See `anytls`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mtt.errors import PeerError
from mtt.layers.anytls import HALF_CLOSE, AnyTlsSession
from mtt.layers.anytls_stream import ServerStream
from mtt.layers.base import Data, StreamProtocol
from mtt.outcome import Outcome
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
    synack,
    version_of,
)
from mtt.wire.padding import DEFAULT, Scheme

# Streams of one session. The clients there are carry one at a time; the rest is room for others.
MAX_STREAMS = 256

# The client's padding cuts its packets. Frames up to WHOLE_SIZE are put together again: some
# destinations reject a TLS hello or a request in two pieces. The pieces of one packet
# follow each other at once; after WHOLE_TIME the stream gets what has arrived, and the rest as it
# comes. Larger frames take several segments of TCP anyway, and are passed on as they arrive.
WHOLE_SIZE = 16 * 1024
WHOLE_TIME = 0.1


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

    __slots__ = ("_accept", "_greeted", "_scheme", "_whole_timer", "client")

    whole = WHOLE_SIZE

    def __init__(
        self,
        accept: Callable[[], StreamProtocol],
        *,
        scheme: Scheme = DEFAULT,
        on_change: Callable[[ServerSession], object] | None = None,
        on_lost: Callable[[ServerSession, Exception | None], object] | None = None,
    ) -> None:
        super().__init__(on_change=on_change, on_lost=on_lost)
        self._accept: Callable[[], StreamProtocol] | None = accept
        self._scheme = scheme
        self._greeted = False  # the client's settings have come
        self._whole_timer: asyncio.TimerHandle | None = None  # runs while a frame is held
        self.client = ""

    def _decode(self, data: Data) -> list[tuple[int, int, Data]]:
        before = self._decoder.held
        events = super()._decode(data)
        held = self._decoder.held
        if held != before + len(data) and self._whole_timer is not None:  # it is another one now
            self._whole_timer.cancel()
            self._whole_timer = None
        if held and self._whole_timer is None:
            loop = asyncio.get_running_loop()
            self._whole_timer = loop.call_later(WHOLE_TIME, self._pass_on)
        return events

    def _pass_on(self) -> None:
        """Give a stream what has come of a frame."""
        self._whole_timer = None
        stream_id, data = self._decoder.release()
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.receive(data)

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
            if not self._greeted and settings.get(HALF_CLOSE) == "1":
                self._peer_half_closes()
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
            self.close(PeerError("AnyTLS session: the client opens a stream before its settings"))
            return
        if stream_id in self._streams or self._accept is None:
            return
        self._finishing.pop(stream_id, None)
        if self.used_slots >= MAX_STREAMS:
            if self.version >= VERSION:
                self.control(SYNACK, stream_id, synack(Outcome.GENERAL_FAILURE))
            self._send_fin(stream_id)
            return
        self._arrived(ServerStream(self, stream_id, self._accept()))

    def _forget(self) -> None:
        self._accept = None
        if self._whole_timer is not None:
            self._whole_timer.cancel()
            if self.error is not None:  # what came before a failure is passed on before it
                self._pass_on()
