"""AnyTLS as a layer: streams on a TLS connection whose first records are shaped. See `mux`.

What client and server have in common. Theory of operation, as far as it is AnyTLS's own
-----------------------------------------------------------------------------------------
Versions: the client's Settings come first, and announce a version; a server of version 2 answers
with ServerSettings. Only if both have version 2 there are SYNACK and heartbeats.

Closing: to the Go peers FIN ends both directions of a stream at once, and is not answered; what
comes for the stream after that is dropped. So whoever ends one direction has to wait until the
other one is quiet, as the relay does. Between our own ends, which agree on it by one more line in
their settings, FIN ends one direction, and an empty PSH resets the stream.

Flow control: there is none. A stream whose reader has paused queues a little, then the session
stops reading.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from mtt.errors import PeerError
from mtt.layers.anytls_stream import AnyTlsStream
from mtt.layers.base import Data
from mtt.layers.mux import MuxSession
from mtt.wire.anytls import (
    ALERT,
    FIN,
    HEART_REQUEST,
    HEART_RESPONSE,
    MAX_LENGTH,
    MAX_PAYLOAD,
    PSH,
    WASTE,
    Decoder,
    data_frames,
    frame,
    header,
    shown,
)

# Bytes queued for paused readers, all streams of a session together. Clients carry one stream at a
# time on a session, so this spares nobody a stall; it lets SYNACK and heartbeats through.
RECEIVE_BUDGET = 256 * 1024

# The setting by which our own ends tell each other that they know half-close: value 1. Others
# ignore it, as they do every key that they do not know.
HALF_CLOSE = "half-close"

Stream = TypeVar("Stream", bound=AnyTlsStream)


class AnyTlsSession(MuxSession[Stream]):
    """What `ClientSession` and `ServerSession` have in common.

    Attributes:
        version: what the peer has announced; 0, to be treated as 1, if it is nothing.
    """

    __slots__ = ("_decoder", "_half_close", "_idle_since", "version")

    name: ClassVar[str] = "AnyTLS session"
    psh: ClassVar[int] = PSH
    receive_budget = RECEIVE_BUDGET
    whole = 0  # PSH frames of up to so many bytes are waited for

    def __init__(
        self,
        *,
        on_change: Callable[[Any], object] | None = None,
        on_lost: Callable[[Any, Exception | None], object] | None = None,
    ) -> None:
        super().__init__(on_change=on_change, on_lost=on_lost)
        self._decoder = Decoder(whole=self.whole)
        self._half_close = False
        self._idle_since = 0.0
        self.version = 0

    # What client and server do each in its way.

    def _said(self, command: int, stream_id: int, payload: bytes) -> None:
        """The peer has said something that depends on who it is."""
        raise NotImplementedError

    # State.

    @property
    def half_close(self) -> bool:
        return self._half_close

    @property
    def _answers_fin(self) -> bool:
        return self._half_close

    @property
    def idle_since(self) -> float | None:
        """Loop time when the last stream was over on both sides; None while there is one."""
        return None if self.used_slots else self._idle_since

    @idle_since.setter
    def idle_since(self, time: float) -> None:
        self._idle_since = time

    # The protocol of the connection below.

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._idle_since = self._seen_at

    def _decode(self, data: Data) -> list[tuple[int, int, Data]]:
        return self._decoder.feed(data)

    def _command(self, command: int, stream_id: int, payload: Data) -> None:
        if command == FIN:
            self._fin_received(stream_id)
        elif command == HEART_REQUEST:
            self.control(HEART_RESPONSE, stream_id)
        elif command == ALERT:
            if payload:
                text = shown(bytes(payload))
                self.close(PeerError(f"the peer has ended the {self.name}: {text}"))
        else:
            self._said(command, stream_id, bytes(payload))

    def _peer_half_closes(self) -> None:
        """Learn that the peer knows half-close, and so is ours."""
        self._half_close = True
        self.lower.peer_is_ours()

    # For streams.

    def control(self, command: int, stream_id: int, payload: bytes = b"") -> None:
        """Send a frame that is no data."""
        self.send_control(frame(command, stream_id, payload))

    def send_data(self, stream_id: int, data: Data) -> None:
        """Send a stream's data."""
        # Our own ends pass on what has come of a frame, so it may hold a whole read; others wait
        # for all of it.
        most = MAX_LENGTH if self.half_close else MAX_PAYLOAD
        if len(data) <= most:
            self.send_framed(header(PSH, stream_id, len(data)), data)
        else:
            self.send(data_frames(stream_id, data, most))

    def send_noop(self) -> None:
        self.control(WASTE, 0)

    def _send_fin(self, stream_id: int) -> None:
        self.control(FIN, stream_id)

    def _send_reset(self, stream_id: int) -> None:
        self.control(PSH, stream_id)

    def _changed(self) -> None:
        self._idle_since = asyncio.get_running_loop().time()
        super()._changed()
