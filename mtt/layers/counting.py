"""A layer that counts the bytes of a stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mtt.layers.base import Data
from mtt.layers.layer import Layer
from mtt.layers.parked import Parked


@dataclass(slots=True)
class ByteCounts:
    """Bytes of all streams that share these counts: written to them, and received from them."""

    written: int = 0
    received: int = 0


class CountingLayer(Layer):
    """Counts the bytes of a stream of a session.

    `start()` takes over the stream, parked; another protocol then takes over the layer.
    """

    name = "byte counter"
    shares_connection = True  # as the stream does

    __slots__ = ("_counts",)

    def __init__(self, counts: ByteCounts) -> None:
        super().__init__(Parked())
        self._counts = counts

    # The protocol of the stream.

    def data_received(self, data: Data) -> None:
        self._counts.received += len(data)
        self.upper.data_received(data)

    def eof_received(self) -> bool | None:
        return self.upper.eof_received()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.upper.connection_made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.report_lost(exc)

    # The transport of the protocol above.

    def write(self, data: Any) -> None:
        self._counts.written += len(data)
        self.lower.write(data)

    def half_closes(self) -> bool | None:
        return self.lower.half_closes()

    def limit_reads(self) -> None:
        self.lower.limit_reads()

    def close(self) -> None:
        self.lower.close()

    def cut(self) -> None:
        self.lower.cut()

    def abort(self) -> None:
        self.lower.abort()
