"""The server's side of an AnyTLS session. See `anytls`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mtt.errors import PeerError
from mtt.layers.anytls import HALF_CLOSE, AnyTlsSession
from mtt.layers.anytls_stream import AnyTlsStream
from mtt.layers.base import Data, StreamProtocol
from mtt.outcome import Outcome
from mtt.wire import anytls as wire
from mtt.wire.padding import DEFAULT, Scheme

# Streams of one session. Known clients carry one at a time; the rest is room for others.
MAX_STREAMS = 256

# The client's padding splits its packets. Frames up to WHOLE_SIZE are reassembled, because some
# destinations reject a TLS hello or a request in two pieces. The pieces of one packet follow each
# other at once; after WHOLE_TIME the stream gets what has arrived, and the rest as it comes. Larger
# frames take several TCP segments anyway, and are passed on as they arrive.
WHOLE_SIZE = 16 * 1024
WHOLE_TIME = 0.1


class ServerStream(AnyTlsStream):
    """A stream that the peer has opened. Its data begins with the destination."""

    __slots__ = ("_acknowledged",)

    _session: ServerSession

    def __init__(self, session: ServerSession, stream_id: int, upper: StreamProtocol) -> None:
        super().__init__(session, stream_id, upper)
        self._acknowledged = False

    def acknowledge(self, outcome: Outcome = Outcome.SUCCEEDED) -> None:
        """Tell the client, once, whether the destination is reached; if not, `close()` the stream.

        Clients of version 1 cannot be told.
        """
        session = self._session
        if self._acknowledged or self._write_eof or session.is_gone(self):
            return
        self._acknowledged = True
        if session.version >= wire.VERSION:
            session.send_command(wire.SYNACK, self.id, wire.synack(outcome))


class ServerSession(AnyTlsSession[ServerStream]):
    """A server's session: the protocol of the TLS layer once the preamble has been read.

    Args:
        scheme: the padding scheme that clients have to use.
        accept, on_change, on_lost: see `MuxSession`.

    Attributes:
        client: the client's name for itself, escaped for the log.
    """

    __slots__ = ("_has_settings", "_scheme", "_whole_timer", "client")

    whole = WHOLE_SIZE

    def __init__(
        self,
        accept: Callable[[], StreamProtocol],
        *,
        scheme: Scheme = DEFAULT,
        on_change: Callable[[ServerSession], object] | None = None,
        on_lost: Callable[[ServerSession, Exception | None], object] | None = None,
    ) -> None:
        super().__init__(accept=accept, on_change=on_change, on_lost=on_lost)
        self._scheme = scheme
        self._has_settings = False  # the client's
        self._whole_timer: asyncio.TimerHandle | None = None  # runs while a frame is incomplete
        self.client = ""

    def _decode(self, data: Data) -> list[tuple[int, int, Data]]:
        before = self._decoder.held
        events = super()._decode(data)
        held = self._decoder.held
        if held != before + len(data) and self._whole_timer is not None:  # for an earlier frame
            self._whole_timer.cancel()
            self._whole_timer = None
        if held and self._whole_timer is None:
            loop = asyncio.get_running_loop()
            self._whole_timer = loop.call_later(WHOLE_TIME, self._release_partial_frame)
        return events

    def _release_partial_frame(self) -> None:
        """Give a stream what has arrived of a frame."""
        self._whole_timer = None
        stream_id, data = self._decoder.release()
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.receive(data)

    def _role_command_received(self, command: int, stream_id: int, payload: bytes) -> None:
        if command == wire.SYN:
            self._syn_received(stream_id)
        elif command == wire.SETTINGS and payload:
            self._settings_received(payload)

    def _settings_received(self, payload: bytes) -> None:
        settings = wire.parse_settings(payload)
        if settings.get("padding-md5") != self._scheme.md5:
            self.send_command(wire.UPDATE_PADDING, 0, self._scheme.raw)
        if wire.version_of(settings) >= wire.VERSION:
            self.version = wire.VERSION
            if not self._has_settings and settings.get(HALF_CLOSE) == "1":
                self._peer_half_closes()
            answer = wire.server_settings()
            if self.half_close:
                answer += b"\n" + wire.encode_settings({HALF_CLOSE: "1"})
            self.send_command(wire.SERVER_SETTINGS, 0, answer)
        if not self._has_settings:
            self._has_settings = True
            self.client = wire.shown(settings.get("client", "").encode())

    def _syn_received(self, stream_id: int) -> None:
        if not self._has_settings:
            self.send_command(wire.ALERT, 0, wire.NO_SETTINGS)
            self.close(PeerError(f"{self.name}: the client opened a stream before its settings"))
            return
        if stream_id in self._streams or self._accept is None:
            return
        self._awaiting_fin.pop(stream_id, None)
        if self.used_slots >= MAX_STREAMS:
            if self.version >= wire.VERSION:
                self.send_command(wire.SYNACK, stream_id, wire.synack(Outcome.GENERAL_FAILURE))
            self.send_fin(stream_id)
            return
        self._stream_arrived(ServerStream(self, stream_id, self._accept()))

    def _release(self) -> None:
        if self._whole_timer is not None:
            self._whole_timer.cancel()
            if self.error is not None:  # deliver what arrived before the failure
                self._release_partial_frame()
