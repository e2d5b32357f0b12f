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
_MAX_RECORD = RECORD_SIZE + 2048  # TLS 1.2 (RFC 5246, 6.2.3), without its header; 1.3 has less
# How the records begin that are neither handshake nor alert: type and version.
_APPLICATION_DATA = b"\x17\x03\x03"

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
        in_step: `read_records` may be called: nothing is kept but the beginning of a record, and no
            end or error has come.
        peer_may_be_go: the peer is not known to be ours.
    """

    __slots__ = (
        "_last_size", "_missing", "_partial_header", "damaged", "eof", "error", "in_step",
        "incoming", "outgoing", "peer_may_be_go", "ssl", "stash", "tcp_ended",
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
        self.in_step = False
        self.peer_may_be_go = True
        self._last_size = 0  # of the last record
        self._missing = 0  # bytes of the last record that have not arrived
        self._partial_header = b""
        self.eof = False
        self.error: Exception | None = None

    @property
    def at_boundary(self) -> bool:
        """Whether the data so far ends with a complete record, which OpenSSL does not report."""
        return not (self._missing or self._partial_header)

    def feed(self, arrived: Data) -> None:
        """Keep data for `read` or the handshake."""
        self.in_step = False
        self.incoming.write(arrived)
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
        if arrived is not None:
            self.feed(arrived)
        if self.damaged is not None:
            self.error = self.damaged if arrived is not None else None
            return b"", False
        if self.stash:
            data, self.stash = self.stash, b""
            return data, True
        filled = self._decrypt()
        more = filled == _PLAIN_SIZE
        self.in_step = not (more or self.eof or self.error or self.damaged)
        return _plain[:filled], more

    def _decrypt(self) -> int:
        """Decrypt the BIO's data. Returns the number of bytes."""
        read: Any = self.ssl.read  # typeshed lacks the form with a buffer
        incoming = self.incoming
        filled = 0
        try:
            while filled < _PLAIN_SIZE:
                count = read(_PLAIN_SIZE - filled, _plain[filled:])
                if not count:
                    self.eof = True
                    break
                filled += count
                if not incoming.pending:
                    break  # saves the exception by which OpenSSL reports "want read"
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._note(error)
        return filled

    def read_records(self, arrived: Data) -> Data:
        """Like `read`, for all of `arrived` while `in_step`, and faster.

        The BIO gets one record at a time: it stays small and in the cache, and OpenSSL does not
        have to report "want read" by an exception.
        """
        size = len(arrived)
        if self._partial_header or size > LARGE_READ:
            return self.read(arrived)[0]
        read: Any = self.ssl.read
        if not self._missing and size > _HEADER and arrived[3] << 8 | arrived[4] == size - _HEADER:
            # One whole record, as most small messages are.
            self._last_size = size - _HEADER
            self.incoming.write(arrived)
            try:
                filled = read(RECORD_SIZE, _plain)
                if not filled:
                    self.eof = True
                    self.in_step = False
                return _plain[:filled]
            except ssl.SSLError as error:
                self._no_data(error)
                return b""
        incoming = self.incoming
        at = filled = 0
        end = self._missing  # of the record at `at`, whose beginning the BIO may have
        while True:
            if end == at:
                if size - at < _HEADER:
                    break
                self._last_size = arrived[at + 3] << 8 | arrived[at + 4]
                end = at + _HEADER + self._last_size
                if end > size and (
                    self._last_size > _MAX_RECORD or arrived[at : at + 3] != _APPLICATION_DATA
                ):
                    self.in_step = False  # OpenSSL may reject it without the rest
            if end > size:
                break
            incoming.write(arrived if end - at == size else arrived[at:end])
            try:
                count = read(RECORD_SIZE, _plain[filled:] if filled else _plain)
                if not count:
                    self.eof = True
                    self.in_step = False
                    return _plain[:filled]
                filled += count
            except ssl.SSLError as error:
                self._missing = size - end  # not 0 if there is data behind the record
                self._no_data(error)
                if not self.in_step:
                    return _plain[:filled]
            at = end
        if at < size:
            incoming.write(arrived[at:])
            if end == at:
                self._partial_header = bytes(arrived[at:])
                end = size
        self._missing = end - size
        return _plain[:filled]

    def _no_data(self, error: ssl.SSLError) -> None:
        """Handle a record without data: a key update, for instance, an end, or an error."""
        if not isinstance(error, ssl.SSLWantReadError):
            self._note(error)
            self.in_step = False

    def _note(self, error: ssl.SSLError) -> None:
        """Note why decryption failed."""
        error.with_traceback(None)  # which refers to this object
        if isinstance(error, ssl.SSLZeroReturnError):  # close_notify, after ours
            self.eof = True
        elif self._may_be_go_end(error):
            self.damaged = error
            self.outgoing.read()  # discards the alert
        else:
            self.error = error

    def _may_be_go_end(self, error: ssl.SSLError) -> bool:
        """Whether `error` may follow a record that a Go program has counted, but not sent.

        That is the record with the WebSocket close frame: its deadline has passed when Go ends the
        tunnel. The close_notify after it then has an unexpected number.
        """
        return (
            error.reason == "DECRYPTION_FAILED_OR_BAD_RECORD_MAC"
            and self.peer_may_be_go
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
        if self.stash:
            self.in_step = False
