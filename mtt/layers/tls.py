"""TLS as a layer: `ssl.SSLObject` between two memory BIOs, over a plain TCP transport.

Theory of operation
-------------------
asyncio has TLS of its own, but it keeps 256 KiB per connection, cannot half-close, and closes
without the alert that a failed handshake owes to the peer. Here OpenSSL does the protocol on
memory (`records`), and this layer carries bytes:

    socket -> shared buffer -> incoming BIO -> SSLObject.read -> upper.data_received
    upper.write -> SSLObject.write -> outgoing BIO -> one write of the socket

What arrived is read completely in the same turn, so between turns the incoming BIO is empty,
unless the protocol above has paused reading: then the socket is paused as well and the BIO holds
at most one read. The outgoing BIO is empty between turns, except after the one in which a client's
handshake ended. Nothing else is buffered, so pausing the layer pauses TCP, and TCP's back-pressure
is ours.

States: HANDSHAKE -> OPEN -> CLOSED. Inside OPEN each direction ends by itself: `Records.eof` after
the peer's close_notify, `_write_eof` after ours (RFC 8446, 6.1, half-close). CLOSED is entered by
`close`, `abort`, a failure, or the end of the TCP connection; the layer then lets go of the socket,
which `linger` closes when everything has been delivered.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Callable
from typing import Any

from mtt.errors import Cause, NetworkError, NothingSaidError, PeerError
from mtt.layers.base import NO_PROTOCOL, Data, StreamProtocol
from mtt.layers.layer import SignalingLayer
from mtt.layers.records import Records
from mtt.trust.failures import tls_failure

# TCP connect is over when this starts; a handshake is two round trips and some arithmetic.
HANDSHAKE_TIME = 10.0
# A peer that does not read gets so many bytes of answers on top of the data that wait for it, such
# as key updates (RFC 8446, 4.6.3); then it is not read any more, either, until it has read. An
# honest peer asks for one after gigabytes.
ANSWERS_LIMIT = 16 * 1024
# How long the FIN behind a damaged alert may take (see `Records.damaged`): one retransmission.
DAMAGED_TIME = 1.0

# Not an Enum: each message asks for the state several times, and CPython 3.11 takes seven times as
# long to get a member of one.
HANDSHAKE, OPEN, CLOSED = range(3)


class TlsLayer(SignalingLayer):
    """One TLS connection, client or server side.

    Args:
        upper: the protocol above; sees `connection_made` after the handshake, or
            `connection_lost` alone if there is none (`PeerError`, `NetworkError`).
        context: certificates, versions, ALPN.
        server_side: which side we are.
        server_name: client only: SNI (sent unless it is an IP literal) and name to verify.
        session: client only: the session of an earlier connection, to resume it.
        verify: called after the handshake; raises PeerError if the peer is not the right one.
        on_end: called with the TLS object of an open connection when it ends; by then a client
            has the newest session.
        half_close: an agreed ALPN name tells that both ends are ours and end each direction by
            itself. A peer without ALPN may take close_notify for the end of both, as Go programs
            do, which close the TCP connection with it. One that says close_notify and does not
            close ends each direction by itself, too, until it does: stunnel, for instance.
        handshake_time: seconds for the handshake; None if somebody else sees to its end.
    """

    borrows = True
    name = "TLS"

    __slots__ = (
        "_answered", "_eof_told", "_half_close", "_half_closed", "_heard", "_on_end", "_pumping",
        "_records", "_state", "_streams", "_timer", "_verify", "_write_eof",
    )  # fmt: skip

    def __init__(
        self,
        upper: StreamProtocol,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_name: str | None = None,
        session: ssl.SSLSession | None = None,
        verify: Callable[[ssl.SSLObject], None] | None = None,
        on_end: Callable[[ssl.SSLObject], None] | None = None,
        half_close: bool = False,
        handshake_time: float | None = HANDSHAKE_TIME,
    ) -> None:
        super().__init__(upper)
        self._records = Records(
            context, server_side=server_side, server_name=server_name, session=session
        )
        self._state = HANDSHAKE
        self._verify = verify
        self._on_end = on_end
        self._streams = half_close
        self._half_close = False  # agreed upon
        self._half_closed = False  # not agreed upon, but the peer has done it
        self._heard = self._pumping = self._eof_told = self._write_eof = False
        self._answered = 0  # bytes of our own that were sent all the same
        self._timer: asyncio.TimerHandle | None = None
        if handshake_time is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(handshake_time, self._handshake_expired)

    # The protocol of the TCP transport.

    def connection_made(self, transport: Any) -> None:
        self.lower = transport
        if self._state == CLOSED:  # aborted between accept and this call
            self.lower.abort()
        else:
            self._handshake()

    def data_received(self, data: Data) -> None:
        if self._state == OPEN:
            self._pump(data)
        elif self._state == HANDSHAKE:
            self._records.take(data)
            self._heard = True
            self._handshake()

    def eof_received(self) -> bool:
        """TCP ended. Behind close_notify that is in order. Without it the stream was cut, or the
        peer is a Go program: those end one complete answer in 500 this way."""
        self._records.ended = True
        if self._state == OPEN:
            self._pump()
        elif self._state == HANDSHAKE:
            # Without the alert that OpenSSL has for it: web servers do not answer to an end.
            self._fail(self._cut_handshake())
        return True  # the socket is closed by us, after what is still to be sent

    def connection_lost(self, exc: Exception | None) -> None:
        if self._state == HANDSHAKE:
            exc = self._cut_handshake()
        if self._state != CLOSED:
            self._closed()
            exc = exc or NetworkError("connection lost")
        self.report_lost(exc)

    def pause_writing(self) -> None:
        self.write_paused = True
        if self._state == OPEN:
            self.upper.pause_writing()

    def resume_writing(self) -> None:
        was_held, self.write_paused, self._answered = self._is_held, False, 0
        if self._state == OPEN:
            if was_held and not self._paused:
                self.lower.resume_reading()
            self.upper.resume_writing()

    # Handshake.

    def _handshake(self) -> None:
        try:
            self._records.ssl.do_handshake()
            if self._verify is not None:
                self._verify(self._records.ssl)
        except ssl.SSLWantReadError:
            self._flush()
            return
        # ValueError: a name that IDNA cannot encode
        except (ssl.SSLError, PeerError, ValueError) as error:
            self._fail(error)
            return
        self._stop_timer()
        self._state = OPEN
        records = self._records
        self._half_close = self._streams and records.ssl.selected_alpn_protocol() is not None
        if self._half_close:
            self.set_peer_is_ours()
        if records.ssl.server_side:
            self._flush()
        self.upper.connection_made(self)
        if records.incoming.pending:  # application data came with the last handshake message
            self._pump()
        if self._state == OPEN and records.outgoing.pending:
            # A client's last message travels with its first data, if they come in the next turn.
            asyncio.get_running_loop().call_soon(self._flush)

    def give_up(self, error: Exception) -> None:
        """Do nothing more for the connection below, which is not TLS and is another's now."""
        self._closed()
        self.report_lost(error)

    def _cut_handshake(self) -> NetworkError:
        if self._heard:
            return NetworkError("the connection ended during the TLS handshake", cause=Cause.EOF)
        return NothingSaidError("the connection ended before a byte was said")

    def _handshake_expired(self) -> None:
        self._timer = None
        if hasattr(self, "lower"):
            self._fail(NetworkError("timed out in the TLS handshake", cause=Cause.TIMEOUT))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Receiving.

    def _pump(self, arrived: Data | None = None) -> None:
        """Hand up everything that can be read, until there is no more or the upper pauses."""
        records = self._records
        if self._pumping or self._paused or self._state != OPEN:
            if arrived is not None:
                records.take(arrived)
            return
        self._pumping = True
        try:
            more = bool(records.stash) or not records.eof
            while more:
                data, more = records.read(arrived)
                arrived = None
                if records.outgoing.pending:
                    self._answer()
                if data:
                    upper = self.upper
                    upper.data_received(data if upper.borrows else bytes(data))
                if self._state != OPEN:  # the upper has closed us
                    return
                more = more and not (self._paused or (records.eof and not records.stash))
        finally:
            self._pumping = False
        if records.error is not None:
            self._fail(records.error)
        elif records.damaged is not None and not records.ended:
            # From a Go program, a FIN follows; from anyone else it is a failure.
            if self._timer is None:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(DAMAGED_TIME, self._fail, records.damaged)
        elif not (self._paused or records.stash):
            if records.eof and not self._eof_told:
                self._eof_told = True
                self._half_closed = not (self._half_close or records.ended) and self._streams
                if not self.upper.eof_received():
                    self.close()
            if records.ended and self._state == OPEN:
                self._tcp_ended()

    def _tcp_ended(self) -> None:
        """All that came before the end of TCP has been handed up."""
        if not self._eof_told:
            if not (self._records.tracks and self._records.is_at_edge):
                self._fail(
                    NetworkError("cut off: the connection ended without TLS close_notify")
                )
                return
            self._eof_told = self._records.eof = True
            if not self.upper.eof_received():
                self.close()
        elif self._half_close:
            # Our own ends say close_notify and keep TCP open as long as they take anything.
            self._fail(ConnectionResetError(errno.ECONNRESET, "the peer takes no more data"))
        elif self._half_closed:
            self.close()

    def _answer(self) -> None:
        """Send what the peer's records ask for."""
        before = self.lower.socket_written
        self._flush()
        if self.write_paused and not self._is_held:
            self._answered += self.lower.socket_written - before
            if self._is_held:
                self.lower.pause_reading()

    @property
    def _is_held(self) -> bool:
        """Whether the peer is not read because it does not read our answers."""
        return self._answered > ANSWERS_LIMIT

    # The transport of the protocol above.

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "ssl_object":
            return self._records.ssl
        return self.lower.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._state == CLOSED

    @property
    def _has_more(self) -> bool:
        return self._state != CLOSED  # only OpenSSL knows

    def _deliver(self) -> None:
        self._pump()

    def _pause_below(self) -> None:
        if self._state != CLOSED:
            self.lower.pause_reading()

    def _resume_below(self) -> None:
        if self._state != CLOSED and not self._is_held:
            self.lower.resume_reading()

    def write_framed(self, head: bytes, data: Data | bytearray) -> None:
        """Encrypt and send, without a copy of all the data."""
        if self._state != OPEN or self._write_eof or not data:
            return
        try:
            encrypted = self._records.write(data, head)
        except ssl.SSLError as error:
            self._fail(error)
            return
        self._tail = 0
        self.lower.write(encrypted)

    def set_peer_is_ours(self) -> None:
        self._records.tracks = False  # see is_at_edge: where it leaves matters no more

    def half_closes(self) -> bool | None:
        """Whether the peer goes on sending after our end, or has shown that it goes on reading."""
        return self._half_close or self._half_closed

    def write_eof(self) -> None:
        """Send close_notify: no more data from us, the other direction goes on."""
        if self._state == OPEN and not self._write_eof:
            self._shut_down()

    def close(self) -> None:
        """Deliver what was written, say close_notify, and close when the peer has it all."""
        if self._state != OPEN:
            if self._state == HANDSHAKE:
                self.abort()
            return
        if not self._write_eof:
            self._shut_down()
        self._closed()
        self.lower.close()

    def close_silently(self) -> None:
        """As `close()`, without close_notify: some web servers leave so."""
        if self._state == OPEN:
            self._write_eof = True
        self.close()

    def cut(self) -> None:
        if self._state != OPEN:
            self.abort()
            return
        self._flush()
        if self._write_eof:
            self.lower.write_eof()  # by that our own ends know at once that we take no more
        self._closed()
        self.lower.cut()

    def abort(self) -> None:
        if self._state != CLOSED:
            self._closed()
        if hasattr(self, "lower"):
            self.lower.abort()  # which may still linger

    # Ends.

    def _shut_down(self) -> None:
        self._write_eof = True
        self._records.shut_down()
        self._flush()

    def _fail(self, error: Exception) -> None:
        """End the connection because of `error`; the alert that OpenSSL wrote is still sent."""
        if self._state == CLOSED:
            return
        handshake = self._state == HANDSHAKE
        self._flush()
        self._closed()
        self.lower.set_protocol(NO_PROTOCOL)  # its end tells nothing more
        if handshake and isinstance(error, PeerError):  # our own verdict, for which no alert is
            self.lower.cut()
        elif handshake:
            self.lower.close()
        else:
            self.lower.abort()
        if isinstance(error, ssl.SSLError):
            error = tls_failure(error, server_side=self._records.ssl.server_side)
        asyncio.get_running_loop().call_soon(self.report_lost, error)

    def _closed(self) -> None:
        if self._on_end is not None and self._state == OPEN:
            self._on_end(self._records.ssl)
        self._state = CLOSED
        self._stop_timer()
        # These refer to objects that refer to us.
        self._on_end = self._verify = None
        self._records.stash = b""

    def _flush(self) -> None:
        data = self._records.outgoing.read()
        if data:
            self.lower.write(data)
            self._tail += len(data)  # what the socket counts: it is right below
