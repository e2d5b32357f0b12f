"""TLS as a layer: `ssl.SSLObject` between two memory BIOs, over a plain TCP transport.

Theory of operation
-------------------
asyncio has TLS of its own, but it keeps 256 KiB per connection, cannot half-close, and closes
without the alert that a failed handshake requires. Here OpenSSL runs the protocol on memory
(`records`), and this layer carries bytes:

    socket -> shared buffer -> incoming BIO -> SSLObject.read -> upper.data_received
    upper.write -> SSLObject.write -> outgoing BIO -> one write of the socket

Arrived data is read completely in the same turn, so between turns the incoming BIO is empty, unless
the protocol above has paused reading: then the socket is paused as well, and the BIO holds at most
one read. The outgoing BIO is empty between turns, except after the turn in which a client's
handshake ended. Nothing else is buffered, so pausing the layer pauses TCP.

States: HANDSHAKE -> OPEN -> CLOSED. Inside OPEN each direction ends separately: `Records.eof` after
the peer's close_notify, `_write_eof` after ours (RFC 8446, 6.1, half-close). `close`, `abort`, a
failure, or the end of the TCP connection lead to CLOSED. The layer then releases the socket, which
`linger` closes when everything is delivered.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Callable
from typing import Any

from mtt.errors import Cause, NetworkError, PeerError
from mtt.layers.base import NO_PROTOCOL, Data, StreamProtocol
from mtt.layers.layer import SignalingLayer
from mtt.layers.records import Records
from mtt.trust.failures import handshake_cut_off, tls_failure

# Seconds, from the TCP connection on: two round trips and some computation.
HANDSHAKE_TIME = 10.0
# Bytes of answers, such as key updates (RFC 8446, 4.6.3), for a peer that does not read. Above it
# the layer stops reading, too, until the peer reads. An honest peer requests one key update after
# gigabytes.
ANSWERS_LIMIT = 16 * 1024
# Seconds for the FIN after a damaged alert (see `Records.damaged`): one retransmission.
DAMAGED_TIME = 1.0

# Not an Enum: each message looks at the state several times, and CPython 3.11 takes seven times as
# long for a member of one.
HANDSHAKE, OPEN, CLOSED = range(3)


class TlsLayer(SignalingLayer):
    """One TLS connection, client or server side.

    Args:
        upper: the protocol above; gets `connection_made` after the handshake, or `connection_lost`
            alone if the handshake fails (`PeerError`, `NetworkError`).
        context: certificates, versions, ALPN.
        server_side: whether this is the server.
        server_name: client only: SNI (sent unless it is an IP literal) and name to verify.
        session: client only: the session of an earlier connection, to resume it.
        verify: called after the handshake; raises PeerError if the peer is not trusted.
        on_end: called with the TLS object when an open connection ends; by then a client has the
            newest session.
        half_close: an agreed ALPN name means that both ends are ours and half-close. A peer without
            ALPN may take close_notify for the end of both directions, as Go programs do, which
            close the TCP connection with it. A peer that sends close_notify and does not close TCP,
            such as stunnel, half-closes until it does.
        handshake_time: seconds for the handshake; None if the caller limits it.
    """

    name = "TLS"

    __slots__ = (
        "_answer_bytes", "_delivering", "_eof_told", "_half_close", "_has_received",
        "_offers_half_close", "_on_end", "_peer_half_closed", "_records", "_state", "_timer",
        "_verify", "_write_eof", "borrows",
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
        self.borrows = True
        self._records = Records(
            context, server_side=server_side, server_name=server_name, session=session
        )
        self._state = HANDSHAKE
        self._verify = verify
        self._on_end = on_end
        self._offers_half_close = half_close
        self._half_close = False  # agreed by ALPN
        self._peer_half_closed = False  # without agreement
        self._has_received = self._delivering = self._eof_told = self._write_eof = False
        self._answer_bytes = 0  # sent since the peer stopped reading
        self._timer: asyncio.TimerHandle | None = None
        if handshake_time is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(handshake_time, self._handshake_expired)

    # The protocol of the TCP transport.

    def connection_made(self, transport: Any) -> None:
        self.lower = transport
        if transport.get_extra_info("ssl_object") is not None:
            # TLS to a proxy, which decrypts into the same shared buffer as this layer.
            self.borrows = False
        if self._state == CLOSED:  # aborted between accept and this call
            self.lower.abort()
        else:
            self._handshake()

    def data_received(self, data: Data) -> None:
        records = self._records
        if self._state == OPEN:
            if self._paused or self._delivering or not records.in_step:
                self._deliver(data)
                return
            plain = records.read_records(data)
            if records.outgoing.pending:
                self._send_answers()
            if plain:
                upper = self.upper
                upper.data_received(plain if upper.borrows else bytes(plain))
            if not records.in_step:
                self._deliver()
        elif self._state == HANDSHAKE:
            records.feed(data)
            self._has_received = True
            self._handshake()

    def eof_received(self) -> bool:
        """TCP ended. Without close_notify, the stream was cut, or the peer is a Go program, which
        ends one complete answer in 500 this way."""
        self._records.tcp_ended = True
        if self._state == OPEN:
            self._deliver()
        elif self._state == HANDSHAKE:
            # Without OpenSSL's alert: web servers do not answer an end.
            self._fail(handshake_cut_off(has_received=self._has_received))
        return True  # this layer closes the socket, after what is still to be sent

    def connection_lost(self, exc: Exception | None) -> None:
        if self._state == HANDSHAKE:
            exc = handshake_cut_off(has_received=self._has_received)
        if self._state != CLOSED:
            self._set_closed()
            exc = exc or NetworkError("connection lost")
        self.report_lost(exc)

    def pause_writing(self) -> None:
        self.write_paused = True
        if self._state == OPEN:
            self.upper.pause_writing()

    def resume_writing(self) -> None:
        had_stopped, self.write_paused, self._answer_bytes = self._has_stopped_reading, False, 0
        if self._state == OPEN:
            if had_stopped and not self._paused:
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
        if self._offers_half_close and records.ssl.selected_alpn_protocol() is not None:
            self._half_close = True
            self.set_peer_is_ours()
        if records.ssl.server_side:
            self._flush()
        self.upper.connection_made(self)
        if records.incoming.pending:  # application data came with the last handshake message
            self._deliver()
        if self._state == OPEN and records.outgoing.pending:
            # A client's last message is sent with its first data, if that follows at once.
            asyncio.get_running_loop().call_soon(self._flush)

    def detach(self, error: Exception) -> None:
        """Release the connection below, which is not TLS and has another protocol now."""
        self._set_closed()
        self.report_lost(error)

    def _handshake_expired(self) -> None:
        self._timer = None
        if hasattr(self, "lower"):
            self._fail(NetworkError("timed out in the TLS handshake", cause=Cause.TIMEOUT))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Receiving.

    def _deliver(self, arrived: Data | None = None) -> None:
        records = self._records
        if self._delivering or self._paused or self._state != OPEN:
            if arrived is not None:
                records.feed(arrived)
            return
        self._delivering = True
        try:
            more = bool(records.stash) or not (records.eof or records.error)
            while more:
                data, more = records.read(arrived)
                arrived = None
                if records.outgoing.pending:
                    self._send_answers()
                if data:
                    upper = self.upper
                    upper.data_received(data if upper.borrows else bytes(data))
                if self._state != OPEN:  # closed by the protocol above
                    return
                more = more and not (self._paused or (records.eof and not records.stash))
        finally:
            self._delivering = False
        if records.error is not None:
            self._fail(records.error)
        elif records.damaged is not None and not records.tcp_ended:
            # From a Go program, a FIN follows; otherwise it is a failure.
            if self._timer is None:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(DAMAGED_TIME, self._fail, records.damaged)
        elif not (self._paused or records.stash):
            if records.eof and not self._eof_told:
                self._eof_told = True
                silent = not (self._half_close or records.tcp_ended)
                self._peer_half_closed = silent and self._offers_half_close
                if not self.upper.eof_received():
                    self.close()
            if records.tcp_ended and self._state == OPEN:
                self._tcp_ended()

    def _tcp_ended(self) -> None:
        """Handle the end of TCP, after all data before it has been handed up."""
        if not self._eof_told:
            if not (self._records.peer_may_be_go and self._records.at_boundary):
                self._fail(NetworkError("cut off: the connection ended without TLS close_notify"))
                return
            self._eof_told = self._records.eof = True
            if not self.upper.eof_received():
                self.close()
        elif self._half_close or (self._peer_half_closed and self.unsent()):
            # After close_notify, our own ends keep TCP open as long as they take data.
            gone = ConnectionResetError(errno.ECONNRESET, "the peer takes no more data")
            self._fail(gone, delivers=not self._half_close)
        elif self._peer_half_closed:
            self.close()

    def _send_answers(self) -> None:
        """Send the answers that the peer's records request."""
        before = self.lower.socket_written
        self._flush()
        if self.write_paused and not self._has_stopped_reading:
            self._answer_bytes += self.lower.socket_written - before
            if self._has_stopped_reading:
                self.lower.pause_reading()

    @property
    def _has_stopped_reading(self) -> bool:
        """Whether reading has stopped because the peer does not read the answers."""
        return self._answer_bytes > ANSWERS_LIMIT

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

    def _pause_below(self) -> None:
        if self._state != CLOSED:
            self.lower.pause_reading()

    def _resume_below(self) -> None:
        if self._state != CLOSED and not self._has_stopped_reading:
            self.lower.resume_reading()

    def write(self, data: Data | bytearray, head: bytes = b"") -> None:
        if self._state != OPEN or self._write_eof or not data:
            return
        try:
            encrypted = self._records.write(data, head)
        except ssl.SSLError as error:
            self._fail(error)
            return
        self._tail = 0
        self.lower.write(encrypted)

    def write_framed(self, head: bytes, data: Data | bytearray) -> None:
        self.write(data, head)

    def set_peer_is_ours(self) -> None:
        self._records.peer_may_be_go = False  # it always sends close_notify

    def half_closes(self) -> bool | None:
        return self._half_close or self._peer_half_closed

    def write_eof(self) -> None:
        if self._state == OPEN and not self._write_eof:
            self._write_eof = True
            self._records.shut_down()
            self._flush()

    def close(self) -> None:
        if self._state == HANDSHAKE:
            self.abort()
        elif self._state == OPEN:
            self.write_eof()
            self._set_closed()
            self.lower.close()

    def close_silently(self) -> None:
        """Close without close_notify, as some web servers do."""
        if self._state == OPEN:
            self._write_eof = True
        self.close()

    def cut(self) -> None:
        if self._state != OPEN:
            self.abort()
            return
        self._flush()
        if self._write_eof:
            self.lower.write_eof()  # tells our own ends at once that we take no more data
        self._set_closed()
        self.lower.cut()

    def abort(self) -> None:
        self._set_closed()
        if hasattr(self, "lower"):
            self.lower.abort()  # which may still linger

    # Ends.

    def _fail(self, error: Exception, *, delivers: bool = False) -> None:
        """End the connection because of `error`; the alert of OpenSSL, or all, is still sent."""
        if self._state == CLOSED:
            return
        handshake = self._state == HANDSHAKE
        self._flush()
        self._set_closed()
        self.lower.set_protocol(NO_PROTOCOL)  # `error` is reported instead of its end
        if handshake and isinstance(error, PeerError):  # from `verify`, which has no alert
            self.lower.cut()
        elif handshake or delivers:
            self.lower.close()
        else:
            self.lower.abort()
        if isinstance(error, ssl.SSLError):
            error = tls_failure(error, server_side=self._records.ssl.server_side)
        asyncio.get_running_loop().call_soon(self.report_lost, error)

    def _set_closed(self) -> None:
        if self._on_end is not None and self._state == OPEN:
            self._on_end(self._records.ssl)
        self._state = CLOSED
        self._stop_timer()
        # They refer to objects that refer to this one.
        self._on_end = self._verify = None
        self._records.stash = b""

    def _flush(self) -> None:
        data = self._records.outgoing.read()
        if data:
            self.lower.write(data)
            self._tail += len(data)  # as the socket, which is right below, counts it
