"""Mux.Cool as a layer: the sessions of V2Ray, Xray and v2ray-plugin. See `mux_tunnel`.

v2ray-plugin ends both directions of a stream with END, and the other side answers with END. It
sends no keepalive, so silence of a foreign peer does not mean that the peer is dead. It answers
data for an unknown stream with END; this side drops such data without an answer, because two sides
that answer each other would never stop.

Between two programs of this kind, END ends one direction, and KEEP_ALIVE with a stream's id stops
that stream's sender. END with option ERROR resets a stream of any peer.

Clash and Mihomo as clients have one stream per connection, number 0, and ignore its END. So the
server closes the connection after it.

All streams go to the server's destination; the destination in the stream is ignored.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

from mtt.errors import PeerError
from mtt.layers.base import Data
from mtt.layers.mux_tunnel import TunnelSession, TunnelStream
from mtt.wire.mux_cool import (
    END,
    KEEP,
    KEEP_ALIVE,
    LAST_ID,
    MAX_LENGTH,
    MAX_PAYLOAD,
    NEW,
    NEW_OTHER,
    RESET,
    Decoder,
    data_frames,
    end,
    header,
    keep_alive,
    new,
)

# The number of a connection's only stream. V2Ray numbers its streams from 1.
ONLY_STREAM = 0


class MuxCoolStream(TunnelStream):
    """One stream of a `MuxCoolSession`."""

    name = "Mux.Cool stream"

    __slots__ = ()

    def abort(self) -> None:
        """Cut the stream. Every peer can distinguish this from an ordinary end."""
        if not self._session.is_gone(self):
            self._session.send_reset(self.id)
            self._write_eof = True  # this was the end
        self._finish(reset=False)


class MuxCoolSession(TunnelSession):
    """One multiplexed connection. Args: see `TunnelSession`."""

    __slots__ = ()

    protocol: ClassVar[str] = "Mux.Cool"
    decoder_class: ClassVar[type[Decoder]] = Decoder
    psh: ClassVar[int] = KEEP
    stream_class: ClassVar[type[TunnelStream]] = MuxCoolStream
    id_step: ClassVar[int] = 1
    last_id: ClassVar[int] = LAST_ID
    max_payload: ClassVar[int] = MAX_PAYLOAD
    max_length: ClassVar[int] = MAX_LENGTH
    opening = staticmethod(new)
    data_header = staticmethod(header)
    data_frames = staticmethod(data_frames)

    def _command_received(self, command: int, stream_id: int, payload: Data) -> None:
        if command == END:
            self._fin_received(stream_id)
        elif command == RESET:
            self._reset_received(stream_id)
        elif command == KEEP_ALIVE:
            self._stop_received(stream_id)
        elif stream_id in self._streams:
            # The data that follows would go to the wrong stream.
            self.abort(PeerError(f"Mux.Cool: the peer opens stream {stream_id} twice"))
        elif command == NEW:
            self._open_received(stream_id)
        elif command == NEW_OTHER:
            self.refuse(stream_id)

    def _reset_received(self, stream_id: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.receive_reset()
        else:
            self._fin_received(stream_id)

    @property
    def _answers_fin(self) -> bool:
        # v2ray-plugin does, too, after a second. But it has no limit on streams, so ours that have
        # ended need not count until then.
        return self.half_close

    def refuse(self, stream_id: int) -> None:
        self.send_reset(stream_id)

    def silent_since(self) -> float | None:
        return super().silent_since() if self.half_close else None

    # The frames.

    def send_stop(self, stream_id: int) -> None:
        self.send_control(keep_alive(stream_id))

    def send_fin(self, stream_id: int) -> None:
        self.send_control(end(stream_id))
        self._end_with(stream_id, failed=False)

    def send_reset(self, stream_id: int) -> None:
        self.send_control(end(stream_id, error=True))
        self._end_with(stream_id, failed=True)

    def _end_with(self, stream_id: int, *, failed: bool) -> None:
        """Close the connection if this was its only stream."""
        if stream_id == ONLY_STREAM and not self.half_close:
            # Not at once: the caller is the stream.
            asyncio.get_running_loop().call_soon(self._end_connection, failed)

    def _end_connection(self, failed: bool) -> None:
        if not self.lost:
            self._end(None)
            if failed:
                self.lower.cut()
            else:
                self.lower.close()

    def send_noop(self) -> None:
        self.send(keep_alive())
