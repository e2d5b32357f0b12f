"""The records of one TLS connection: OpenSSL between two memory BIOs, bytes in and bytes out."""

from __future__ import annotations

import contextlib
import ssl
from typing import Any

from mtt.layers.base import Data
from mtt.layers.reads import LARGE_READ, READ_SIZE

RECORD_SIZE = 16384  # of plaintext at most (RFC 8446, 5.1)

# What goes through a BIO at a time: it keeps the memory that it once needed, and there are two for
# each connection.
BIO_SIZE = READ_SIZE

# A record with an alert in it, without its header: AES-GCM in TLS 1.2 takes the most.
_ALERT_SIZE = 26
_HEADER = 5  # bytes of a record's header; the last two are the length of what follows

# Plaintext of one turn: one read, and a record that an earlier read had begun.
_PLAIN_SIZE = LARGE_READ + 32 * 1024
_plain = memoryview(bytearray(_PLAIN_SIZE))  # one for all connections, see reads._shared


class Records:
    """One connection.

    Args:
        context, server_side, server_name, session: as of `SSLContext.wrap_bio()`, which raises
            ValueError for a name that cannot be one.

    Attributes:
        ended: nothing more will arrive: the connection below has ended.
        incoming: what has arrived and is not decrypted.
        outgoing: what is to be sent.
        ssl: does the handshake, and knows the peer.
        stash: what had to be decrypted before its time came.
        eof: the peer has said close_notify.
        damaged: an error in the last record that has arrived, which may be the end, see `_is_gap`.
        error: the peer breaks TLS.
        tracks: see `is_at_edge`.
    """

    __slots__ = (
        "_head", "_last", "_left", "damaged", "ended", "eof", "error", "incoming", "outgoing",
        "ssl", "stash", "tracks",
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
        self.ended = False
        self.tracks = True
        self._last = 0  # size of the last record
        self._left = 0  # bytes of the last record that are still to come
        self._head = b""  # or the beginning of its header
        self.eof = False
        self.error: Exception | None = None

    @property
    def is_at_edge(self) -> bool:
        """Whether what has arrived ends with a whole record. OpenSSL does not tell.

        Only meaningful while `tracks` is true, which costs a little for each read.
        """
        return not (self._left or self._head)

    def take(self, arrived: Data) -> None:
        """Keep what has arrived for `read` or the handshake."""
        if self.tracks:
            self._track(arrived)
        self.incoming.write(arrived)

    def _track(self, arrived: Data) -> None:
        if self._head:
            arrived, self._head = b"".join((self._head, arrived)), b""
        size = len(arrived)
        at = self._left
        while at + _HEADER <= size:
            self._last = arrived[at + 3] << 8 | arrived[at + 4]
            at += _HEADER + self._last
        if at < size:
            self._head = bytes(arrived[at:])
            at = size
        self._left = at - size

    def read(self, arrived: Data | None = None) -> tuple[Data, bool]:
        """Decrypt what was there and what has arrived: the data, and whether there may be more.

        The data may be a view of memory that is used again by the next read of any connection.
        Sets `eof` and `error`. There may be something to send afterwards: a key update, an alert.
        """
        incoming = self.incoming
        if arrived is not None and self.tracks:
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
        """Append the plaintext of what is in the BIO to the `filled` bytes; how many there are."""
        read: Any = self.ssl.read  # typeshed does not know the form with a buffer
        incoming = self.incoming
        try:
            while filled < _PLAIN_SIZE:
                count = read(_PLAIN_SIZE - filled, _plain[filled:] if filled else _plain)
                if not count:
                    self.eof = True
                    break
                filled += count
                if not incoming.pending:
                    break  # spares OpenSSL the trouble of saying "want read" by an exception
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:  # close_notify, after we have sent ours
            self.eof = True
        except ssl.SSLError as error:
            error.with_traceback(None)  # which refers to us
            if self._is_gap(error):
                self.damaged = error
                self.outgoing.read()  # no alert, unless it is an error in the end
            else:
                self.error = error
        return filled

    def _is_gap(self, error: ssl.SSLError) -> bool:
        """Whether `error` may be due to a record that a Go program has counted, but not sent.

        It happens to the one with the WebSocket close frame: its deadline is over when Go ends the
        tunnel. The close_notify behind it has a number then that nobody expects.
        """
        return (
            error.reason == "DECRYPTION_FAILED_OR_BAD_RECORD_MAC"
            and self.tracks
            and self.is_at_edge
            and self._last <= _ALERT_SIZE
            and not self.incoming.pending
        )

    def write(self, data: Data | bytearray, head: bytes = b"") -> bytes:
        """The records for `head` (much less than one record) and `data` behind it, and whatever
        else is to be sent. Raises ssl.SSLError.
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
        """Say close_notify."""
        self.stash_rest()
        # "want read": the peer's close_notify is not there yet; anything else is moot.
        with contextlib.suppress(ssl.SSLError):
            self.ssl.unwrap()

    def stash_rest(self) -> None:
        """Decrypt all that has arrived.

        unwrap() goes on to look for the peer's close_notify, and would destroy data on its way.
        """
        more = not self.eof
        while more and self.error is None:
            held, self.stash = self.stash, b""
            data, more = self.read()
            self.stash = held + data
