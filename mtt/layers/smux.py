"""smux as a layer: many streams on one connection, each a transport of its own. See `mux`.

Theory of operation, as far as it is smux's own
-----------------------------------------------
Streams are opened by the client only.

Receiving: a stream whose queue gets long tells the peer to stop the stream's sender, and to go on
when it is empty. Only our own ends know this sign (a NOP with the stream's id). smux has no window,
so for the others, and for what is on its way, there is the session's budget.

Closing: the connection below knows whether the peer is ours (`half_closes`). A Go peer answers FIN
with FIN, and ignores an empty PSH. A stream counts against the peer's limit of streams until the
peer has said FIN as well.

Keepalive: each side sends a NOP now and then; a session from which not a single frame came for a
while is dead, unless it was us who did not read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar

from mtt.errors import NetworkError, PeerError
from mtt.layers.base import Data, StreamProtocol
from mtt.layers.keepalive import Keepalive
from mtt.layers.mux import MuxSession
from mtt.layers.reads import READ_SIZE
from mtt.layers.smux_stream import SmuxStream
from mtt.wire.smux import FIN, NOP, PSH, SYN, Decoder, SmuxError, frame

# Bytes queued for paused readers, all streams of a session together, when the peer cannot stop a
# stream's sender: from there on one slow reader stalls its neighbours. (The Go peers: 256 KiB.)
RECEIVE_BUDGET = 1024 * 1024
# The same when it can: room for what is on its way when it is told, on a fast and long line.
OWN_BUDGET = 4 * 1024 * 1024
# A session with a NOP overdue gets no new streams.
STALE_TIME = 35.0
# Streams of one session. Clients open at most 16; the rest is room for foreign ones.
MAX_STREAMS = 256
# A peer that opens streams while this much waits to be sent to it does not read at all: even when
# every stream has just been told to pause, each gives us one last read.
SEND_LIMIT = MAX_STREAMS * 2 * READ_SIZE
# Ids are 32 bits wide and not re-used.
_LAST_ID = 0xFFFFFFFF


class SmuxSession(MuxSession[SmuxStream]):
    """One multiplexed connection.

    Args:
        accept: server side: gives the protocol for a stream that the peer opened. None on a
            client, where a peer that opens streams is refused.
        on_change: called when a stream ended, which may have made room or emptied the session.
        on_lost: called once when the session is over, with the reason (None: closed by us).
    """

    __slots__ = ("_accept", "_decoder", "_keepalive", "_next_id")

    name: ClassVar[str] = "mux session"
    psh: ClassVar[int] = PSH
    _answers_fin = True

    def __init__(
        self,
        *,
        accept: Callable[[], StreamProtocol] | None = None,
        on_change: Callable[[SmuxSession], None] | None = None,
        on_lost: Callable[[SmuxSession, Exception | None], None] | None = None,
    ) -> None:
        super().__init__(on_change=on_change, on_lost=on_lost)
        self._accept = accept
        self._decoder = Decoder()
        self._next_id = 3  # as the Go client: 3, 5, 7, ...
        self._keepalive: Keepalive | None = None

    @property
    def half_close(self) -> bool:
        return self.lower.half_closes() is True

    @property
    def receive_budget(self) -> int:
        return OWN_BUDGET if self.half_close else RECEIVE_BUDGET

    @property
    def exhausted(self) -> bool:
        """Whether all stream ids have been used."""
        return self._next_id > _LAST_ID

    @property
    def healthy(self) -> bool:
        """Whether a new stream may rely on it, as far as the session itself knows."""
        return self._now() - self._seen_at < STALE_TIME and not self.is_stalled

    # The protocol of the connection below.

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._keepalive = Keepalive(self, self)

    def _decode(self, data: Data) -> list[tuple[int, int, Data]]:
        try:
            return self._decoder.feed(data)
        except SmuxError as error:
            # What came before is handed up first, and nothing is read behind it.
            self.lower.pause_reading()
            failure = PeerError(f"smux: {error}")
            asyncio.get_running_loop().call_soon(self.close, failure)
            return error.events

    def _command(self, command: int, stream_id: int, payload: Data) -> None:
        if command == FIN:
            self._fin_received(stream_id)
        elif command == SYN:
            self._syn_received(stream_id)
        elif stream_id in self._streams and self.half_close:
            self._streams[stream_id].receive_stop()

    def _syn_received(self, stream_id: int) -> None:
        if stream_id in self._streams:
            return
        if self.lower.get_write_buffer_size() > SEND_LIMIT:
            self.abort(PeerError("smux: the peer opens streams but reads nothing"))
            return
        if self._accept is None or self.used_slots >= MAX_STREAMS:
            self._send_fin(stream_id)
            return
        self._finishing.pop(stream_id, None)
        self._arrived(SmuxStream(self, stream_id, self._accept()))

    # For streams and owners.

    def open_stream(self, upper: StreamProtocol) -> SmuxStream:
        """Open a stream (client). Raises NetworkError when the session is over."""
        if self.lost or self.exhausted:
            raise NetworkError("the mux session is over")
        stream = SmuxStream(self, self._next_id, upper)
        self._next_id += 2
        if not self._ahead:
            asyncio.get_running_loop().call_soon(self._send_ahead)
        self._ahead += frame(SYN, stream.id)
        self._made(stream)
        return stream

    def _send_ahead(self) -> None:
        """Streams whose applications have nothing to say yet are opened all the same."""
        if self._ahead and not self.lost:
            self.send(b"")

    def _send_fin(self, stream_id: int) -> None:
        self.send_control(frame(FIN, stream_id))

    def _send_reset(self, stream_id: int) -> None:
        self.send_control(frame(PSH, stream_id))

    def _forget(self) -> None:
        if self._keepalive is not None:
            self._keepalive.stop()
        self._accept = None

    # For the keepalive.

    def keep_alive(self) -> None:
        if not self.write_paused:
            self.send_noop()

    def send_noop(self) -> None:
        self.send(frame(NOP, 0))

    def silent_since(self) -> float | None:
        return None if self._held else self._seen_at

    def peer_is_dead(self) -> None:
        self.abort(NetworkError("the mux session is dead: no sign of life from the peer"))
