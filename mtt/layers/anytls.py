"""AnyTLS as a layer: streams on a TLS connection whose first records are padded. See `mux`.

The common part of client and server. Theory of operation, as far as it is specific to AnyTLS
----------------------------------------------------------------------------------------------
Versions: the client's Settings come first, and announce a version. A server of version 2 answers
with ServerSettings. SYNACK and heartbeats exist only if both sides have version 2.

Closing: for Go peers FIN ends both directions of a stream at once, and is not answered; they drop
what arrives for the stream after that. So the side that ends one direction has to wait until the
other one is idle, as the relay does. Our own ends agree on half-close by one more line in their
settings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from mtt.errors import PeerError
from mtt.layers.anytls_stream import AnyTlsStream
from mtt.layers.base import Data, StreamProtocol
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

# Bytes queued for paused readers, all streams of a session together; AnyTLS has no other flow
# control. Clients carry one stream at a time on a session, so more would avoid no stall; this lets
# SYNACK and heartbeats through.
RECEIVE_BUDGET = 256 * 1024

# The setting by which our own ends announce half-close: value 1. Other peers ignore unknown keys.
HALF_CLOSE = "half-close"

Stream = TypeVar("Stream", bound=AnyTlsStream)


class AnyTlsSession(MuxSession[Stream]):
    """The base of `ClientSession` and `ServerSession`.

    Attributes:
        version: announced by the peer; 0 if none is, which means 1.
    """

    __slots__ = ("_decoder", "_idle_since", "half_close", "version")

    name: ClassVar[str] = "AnyTLS session"
    psh: ClassVar[int] = PSH
    receive_budget = RECEIVE_BUDGET
    whole = 0  # PSH frames of up to this many bytes are reassembled

    half_close: bool

    def __init__(
        self,
        *,
        accept: Callable[[], StreamProtocol] | None = None,
        on_change: Callable[[Any], object] | None = None,
        on_lost: Callable[[Any, Exception | None], object] | None = None,
    ) -> None:
        super().__init__(accept=accept, on_change=on_change, on_lost=on_lost)
        self._decoder = Decoder(whole=self.whole)
        self.half_close = False
        self._idle_since = 0.0
        self.version = 0

    def _role_command_received(self, command: int, stream_id: int, payload: bytes) -> None:
        """Handle a command that only clients or only servers expect."""
        raise NotImplementedError

    # State.

    @property
    def _answers_fin(self) -> bool:
        return self.half_close

    @property
    def idle_since(self) -> float | None:
        """Loop time when the last stream had ended on both sides; None while there is one."""
        return None if self.used_slots else self._idle_since

    @idle_since.setter
    def idle_since(self, time: float) -> None:
        self._idle_since = time

    # The protocol of the connection below.

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._idle_since = self.heard_at

    def _decode(self, data: Data) -> list[tuple[int, int, Data]]:
        return self._decoder.feed(data)

    def _command_received(self, command: int, stream_id: int, payload: Data) -> None:
        if command == FIN:
            self._fin_received(stream_id)
        elif command == HEART_REQUEST:
            self.send_command(HEART_RESPONSE, stream_id)
        elif command == ALERT:
            if payload:
                text = shown(bytes(payload))
                self.close(PeerError(f"the peer ended the {self.name}: {text}"))
        else:
            self._role_command_received(command, stream_id, bytes(payload))

    def _peer_half_closes(self) -> None:
        """Note that the peer knows half-close, and so is ours."""
        self.half_close = True
        self.lower.set_peer_is_ours()

    # For streams.

    def send_command(self, command: int, stream_id: int, payload: bytes = b"") -> None:
        """Send a frame that is not data."""
        self.send_control(frame(command, stream_id, payload))

    def send_data(self, stream_id: int, data: Data) -> None:
        # Our own ends pass on parts of a frame, so one frame may hold a whole read. Other peers
        # wait for the whole frame.
        most = MAX_LENGTH if self.half_close else MAX_PAYLOAD
        if len(data) <= most:
            self.send_framed(header(PSH, stream_id, len(data)), data)
        else:
            self.send(data_frames(stream_id, data, most))

    def send_noop(self) -> None:
        self.send_command(WASTE, 0)

    def send_fin(self, stream_id: int) -> None:
        self.send_command(FIN, stream_id)

    def send_reset(self, stream_id: int) -> None:
        self.send_command(PSH, stream_id)

    def _notify_change(self) -> None:
        self._idle_since = asyncio.get_running_loop().time()
        super()._notify_change()
