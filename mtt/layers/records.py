"""The records of one TLS connection: OpenSSL between two memory BIOs, bytes in and bytes out."""

from __future__ import annotations

import contextlib
import ssl
from typing import Any

from mtt.layers.base import Data
from mtt.layers.reads import LARGE_READ, READ_SIZE

RECORD_SIZE = 16384  # the most plaintext (RFC 8446, 5.1)

# The most data that passes through a BIO at a time. A BIO keeps the memory that it once needed, and
# each connection has two.
BIO_SIZE = READ_SIZE

# The largest record with an alert, without its header: AES-GCM in TLS 1.2.
_ALERT_SIZE = 26
_HEADER = 5  # bytes of a record's header; the last two are the length of what follows

# Plaintext of one turn: one read, and a record that an earlier read had begun.
_PLAIN_SIZE = LARGE_READ + 32 * 1024
_plain = memoryview(bytearray(_PLAIN_SIZE))  # shared by all connections, see reads._shared


class Records:
    """The records of one connection.

    Args:
        context, server_side, server_name, session: as in `SSLContext.wrap_bio()`, which raises
            ValueError for an invalid name.

    Attributes:
        tcp_ended: no more data will arrive: the connection below has ended.
        incoming: data that has arrived and is not decrypted.
        outgoing: data to send.
        ssl: runs the handshake and knows the peer.
        stash: data decrypted early, for close_notify.
        eof: the peer has sent close_notify.
        damaged: an error in the last record, which may be the end, see `_may_be_go_end`.
        error: the peer violates TLS.
        tracks_boundaries: see `at_boundary`.
    """

    __slots__ = (
        "_last_size", "_missing", "_partial_header", "damaged", "eof", "error", "incoming",
        "outgoing", "ssl", "stash", "tcp_ended", "tracks_boundaries",
    )  # fmt: skip

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_name: str | None,
        session: ssl.SSLSession | None,
    ) -> None:
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.ssl = context.wrap_bio(
            self.incoming,
            self.outgoing,
            server_side=server_side,
            server_hostname=server_name,
            session=session,
        )
        self.stash = b""
        self.damaged: ssl.SSLError | None = None
        self.tcp_ended = False
        self.tracks_boundaries = True
        self._last_size = 0  # of the last record
        self._missing = 0  # bytes of the last record that have not arrived
        self._partial_header = b""
        self.eof = False
        self.error: Exception | None = None

    @property
    def at_boundary(self) -> bool:
        """Whether the data so far ends with a complete record, which OpenSSL does not report.

        Valid only while `tracks_boundaries` is true, which costs a little per read.
        """
        return not (self._missing or self._partial_header)

    def feed(self, arrived: Data) -> None:
        """Keep data for `read` or the handshake."""
        if self.tracks_boundaries:
            self._track(arrived)
        self.incoming.write(arrived)

    def _track(self, arrived: Data) -> None:
        if self._partial_header:
            arrived, self._partial_header = b"".join((self._partial_header, arrived)), b""
        size = len(arrived)
        at = self._missing
        while at + _HEADER <= size:
            self._last_size = arrived[at + 3] << 8 | arrived[at + 4]
            at += _HEADER + self._last_size
        if at < size:
            self._partial_header = bytes(arrived[at:])
            at = size
        self._missing = at - size

    def read(self, arrived: Data | None = None) -> tuple[Data, bool]:
        """Decrypt the kept data and `arrived`. Returns plaintext, and whether there may be more.

        The plaintext may be a view of a buffer that the next read of any connection reuses. Sets
        `eof` and `error`. Afterwards `outgoing` may hold a key update or an alert.
        """
        incoming = self.incoming
        if arrived is not None and self.tracks_boundaries:
            self._track(arrived)
        if self.damaged is not None:
            self.error = self.damaged if arrived is not None else None
            return b"", False
        if self.stash:
            if arrived is not None:
                incoming.write(arrived)
            data, self.stash = self.stash, b""
            return data, True
        rest: Data = b""
        if arrived is not None:
            if len(arrived) <= BIO_SIZE:
                incoming.write(arrived)
            else:
                incoming.write(arrived[:BIO_SIZE])
                rest = arrived[BIO_SIZE:]
        filled = self._decrypt(0)
        while rest and not self.eof and self.error is None and self.damaged is None:
            if filled == _PLAIN_SIZE:
                incoming.write(rest)
                break
            incoming.write(rest[:BIO_SIZE])
            rest = rest[BIO_SIZE:]
            filled = self._decrypt(filled)
        if rest and self.damaged is not None:
            self.error = self.damaged
        return _plain[:filled], filled == _PLAIN_SIZE

    def _decrypt(self, filled: int) -> int:
        """Decrypt the BIO's data after the `filled` bytes. Returns the total number of bytes."""
        read: Any = self.ssl.read  # typeshed lacks the form with a buffer
        incoming = self.incoming
        try:
            while filled < _PLAIN_SIZE:
                count = read(_PLAIN_SIZE - filled, _plain[filled:] if filled else _plain)
                if not count:
                    self.eof = True
                    break
                filled += count
                if not incoming.pending:
                    break  # saves the exception by which OpenSSL reports "want read"
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:  # close_notify, after ours
            self.eof = True
        except ssl.SSLError as error:
            error.with_traceback(None)  # which refers to this object
            if self._may_be_go_end(error):
                self.damaged = error
                self.outgoing.read()  # discards the alert
            else:
                self.error = error
        return filled

    def _may_be_go_end(self, error: ssl.SSLError) -> bool:
        """Whether `error` may follow a record that a Go program has counted, but not sent.

        That is the record with the WebSocket close frame: its deadline has passed when Go ends the
        tunnel. The close_notify after it then has an unexpected number.
        """
        return (
            error.reason == "DECRYPTION_FAILED_OR_BAD_RECORD_MAC"
            and self.tracks_boundaries
            and self.at_boundary
            and self._last_size <= _ALERT_SIZE
            and not self.incoming.pending
        )

    def write(self, data: Data | bytearray, head: bytes = b"") -> bytes:
        """Encrypt `head` (much less than one record) and `data`. Returns all data to send.

        Raises ssl.SSLError.
        """
        write, outgoing = self.ssl.write, self.outgoing
        total = len(data)
        # One record at a time: Python sets ENABLE_PARTIAL_WRITE.
        if head:
            done = min(total, RECORD_SIZE - len(head))
            write(b"".join((head, data if done == total else memoryview(data)[:done])))
        else:
            done = write(data)
        if done == total:
            return outgoing.read()
        view = memoryview(data)
        pieces: list[bytes] = []
        while done < total:
            if outgoing.pending >= BIO_SIZE:
                pieces.append(outgoing.read())
            done += write(view[done:])
        if not pieces:
            return outgoing.read()
        pieces.append(outgoing.read())
        return b"".join(pieces)

    def shut_down(self) -> None:
        """Write close_notify."""
        self.stash_rest()
        # "want read": the peer's close_notify has not arrived; other errors no longer matter.
        with contextlib.suppress(ssl.SSLError):
            self.ssl.unwrap()

    def stash_rest(self) -> None:
        """Decrypt all data that has arrived.

        unwrap() looks for the peer's close_notify, and would discard the data before it.
        """
        more = not self.eof
        while more and self.error is None:
            held, self.stash = self.stash, b""
            data, more = self.read()
            self.stash = held + data
