"""UDP over TCP where it begins: the datagrams of one association, in one stream."""

from __future__ import annotations

from logging import DEBUG
from typing import Any, Protocol

from mtt.address import host_port
from mtt.errors import PeerError
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.holding import hand_over
from mtt.log import FAILURE_BURST, Throttle
from mtt.metrics import Counters
from mtt.wire import uot


class Receiver(Protocol):
    """What gets the datagrams of a channel: an `Association`, as a rule."""

    def deliver(self, host: str, port: int, payload: Data) -> None: ...
    def lost(self, error: Exception | None) -> None: ...


class UotChannel(StreamProtocol):
    """The protocol of a stream that carries UDP over TCP, which it takes over.

    Args:
        stream: held; ours from now on.
        association: gets the datagrams that come.
        counters: where the bytes are counted.
    """

    __slots__ = ("_association", "_clogged", "_counters", "_decoder", "_drops", "_stream")

    def __init__(
        self, stream: StreamTransport, association: Receiver, counters: Counters
    ) -> None:
        self._stream = stream
        self._association: Receiver | None = association  # until it is over
        self._counters = counters
        self._decoder = uot.Decoder()
        self._clogged = False  # the stream does not take any more
        self._drops = Throttle(FAILURE_BURST)
        hand_over(stream, self)

    # Called by the association.

    def send(self, host: str, port: int, payload: bytes) -> None:
        """Carry a datagram, or drop it."""
        if self._clogged:
            self._drop(host, port, "the server does not take them")
            return
        if not self._stream.can_write_eof():  # the server is not ours
            why = uot.unfit_for_go(host, port)
            if not why and len(payload) > uot.MAX_FOREIGN:
                why = f"a Go server takes {uot.MAX_FOREIGN} bytes, not {len(payload)}"
            if why:
                self._drop(host, port, why)
                return
        try:
            datagram = uot.encode_datagram(payload, host, port)
        except ValueError as error:
            self._drop(host, port, str(error))
            return
        self._counters.bytes_up += len(payload)
        self._stream.write(datagram)

    def close(self) -> None:
        """The association is over."""
        self._association = None
        self._stream.close()

    # The protocol of the stream.

    def connection_made(self, transport: Any) -> None:
        """We know it already."""

    def data_received(self, data: Data) -> None:
        association = self._association
        if association is None:
            return
        try:
            datagrams = self._decoder.feed(data)
        except uot.UotError as error:
            self._association = None
            self._stream.abort()
            association.lost(PeerError(f"UDP over TCP: {error}"))
            return
        for host, port, payload in datagrams:
            self._counters.bytes_down += len(payload)
            association.deliver(host, port, payload)

    def eof_received(self) -> bool:
        self._lost(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(exc)

    def pause_writing(self) -> None:
        self._clogged = True

    def resume_writing(self) -> None:
        self._clogged = False

    def _lost(self, error: Exception | None) -> None:
        association, self._association = self._association, None
        if association is not None:
            association.lost(error)

    def _drop(self, host: str, port: int, why: str) -> None:
        where = host_port(host, port)
        self._drops.log(DEBUG, "a datagram to %s was dropped: %s", where, why)
