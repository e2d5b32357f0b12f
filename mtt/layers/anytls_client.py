"""The client's side of an AnyTLS session. See `anytls`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from mtt.errors import NetworkError, PeerError, again, describe
from mtt.layers.anytls import HALF_CLOSE, AnyTlsSession
from mtt.layers.anytls_stream import ClientStream
from mtt.layers.base import Data, StreamProtocol
from mtt.layers.keepalive import Keepalive
from mtt.version import __version__
from mtt.wire import anytls as wire
from mtt.wire.padding import DEFAULT, Padder, RandRange, Scheme, SchemeError

# The client's name; the protocol asks third-party programs to be truthful.
CLIENT = f"mos-tls-tunnel/{__version__}"
# A server that does not answer a heartbeat within this time is dead: a round trip, and two
# retransmissions.
HEART_TIME = 5.0
# A server that has not answered after this time gets no new stream.
LATE_TIME = 1.0
# Servers close connections with a wrong password silently, or send a web site's reply.
_NO_REPLY = "without an AnyTLS reply: is the password right? Does the server speak AnyTLS?"
# Seconds in which the server's answer to the settings is expected, retransmissions included.
SETTINGS_TIME = 10.0
# Streams of which only the end is missing, beside the one in use. Each costs a Go server memory and
# a connection until it ends, which takes a second or so.
MAX_LINGERING = 32
# Seconds for which such a stream may block the others, if data arrives on it after all and its
# reader is slow: only the session as a whole has flow control.
STALL_TIME = 5.0
# Padding schemes that one session accepts. Servers send one, in answer to the settings. Parsing a
# malicious one takes a hundred times as long as sending it.
MAX_UPDATES = 32

# Predictable sizes would be a fingerprint.
_randrange = random.SystemRandom().randrange


class ServerState:
    """What the client knows of a server, shared by all sessions with it.

    Args:
        scheme: the initial padding.
        on_refused: called with a line for the log when the server sends an invalid scheme.

    Attributes:
        scheme: the padding in use.
        version: the server's: 1, 2 or newer; 0 if not known yet.
    """

    def __init__(
        self, scheme: Scheme = DEFAULT, *, on_refused: Callable[[str], object] | None = None
    ) -> None:
        self.scheme = scheme
        self.version = 0
        self._on_refused = on_refused
        self._refused = b""

    def update(self, raw: bytes) -> None:
        """Use the server's scheme, if it is valid, from the next packet on."""
        try:
            self.scheme = Scheme.parse(raw)
        except SchemeError as error:
            if raw != self._refused and self._on_refused is not None:  # every session gets it
                self._on_refused(f"the server's padding scheme is not used: {error}")
            self._refused = raw


class ClientSession(AnyTlsSession[ClientStream]):
    """A client's session: the protocol of the TLS layer, from its `connection_made` on.

    Args:
        hashed: the `wire.anytls.password_hash`.
        server: shared by the sessions with the same server.
        half_close: offer half-close; only our own servers know it.
        client: the client's name for itself.
        randrange: the source of random sizes.
        on_change, on_lost: see `MuxSession`.
    """

    __slots__ = (
        "_client", "_hashed", "_heartbeat_answered", "_heartbeat_at", "_heartbeat_timer",
        "_known_version", "_offer_half_close", "_padder", "_preface", "_randrange", "_server",
        "_settings_at", "_stall_timer", "_updates",
    )  # fmt: skip

    def __init__(
        self,
        hashed: bytes,
        server: ServerState,
        *,
        half_close: bool = False,
        client: str = CLIENT,
        randrange: RandRange = _randrange,
        on_change: Callable[[ClientSession], object] | None = None,
        on_lost: Callable[[ClientSession, Exception | None], object] | None = None,
    ) -> None:
        super().__init__(on_change=on_change, on_lost=on_lost)
        self._hashed = hashed
        self._server = server
        self._offer_half_close = half_close
        self._client = client
        self._randrange = randrange
        self._padder = Padder(server.scheme, randrange)
        self._preface = b""  # settings and SYN, sent with the first PSH
        self._settings_at: float | None = None  # when the settings were sent
        self._known_version = 0  # the server's, at that time
        self._updates = 0  # of the padding scheme
        self._heartbeat_at = 0.0
        self._heartbeat_answered: bool | None = None  # since `ping`; None if that sent another kind
        self._heartbeat_timer: asyncio.TimerHandle | None = None  # runs while an answer is due
        self._stall_timer: asyncio.TimerHandle | None = None  # see _end_stall

    @property
    def server_version(self) -> int:
        """The version that the server has announced on any session; 0 if not known yet."""
        return self.version or self._server.version

    @property
    def may_half_close(self) -> bool:
        """Whether the server may still announce half-close."""
        if not self._offer_half_close or self.version or self._known_version == 1:
            return False
        at = self._settings_at
        return at is not None and asyncio.get_running_loop().time() - at < SETTINGS_TIME

    @property
    def has_room(self) -> bool:
        """Whether all streams of the session, if any, are lingering.

        A Go server hears of an application's end late (see `relay`). Until then it would have one
        more connection for each of a series of requests, instead of one for all.
        """
        if self._awaiting_fin or self._reading_paused or self.write_paused:
            return False
        streams = self._streams.values()
        return len(streams) <= MAX_LINGERING and all(stream.is_lingering for stream in streams)

    @property
    def healthy(self) -> bool:
        """Whether the session can take a new stream, as far as it knows."""
        if self.lost or self.exhausted or self.is_stalled:
            return False
        now = asyncio.get_running_loop().time()
        return self._heartbeat_timer is None or now - self._heartbeat_at < LATE_TIME

    # The protocol of the connection below.

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        padding = self._server.scheme.padding0(self._randrange)
        self.send(wire.preamble(self._hashed, padding))
        self._keepalive = Keepalive(self)

    def eof_received(self) -> bool:
        if self._is_unconfirmed:
            self._end(PeerError(f"the server closed the session {_NO_REPLY}"))
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        # A server that closes without reading all of a wrong client's data has its kernel send RST.
        if isinstance(exc, ConnectionError) and self._is_unconfirmed:
            exc = NetworkError(f"the AnyTLS session was lost {_NO_REPLY} ({describe(exc)})")
        super().connection_lost(exc)

    @property
    def _is_unconfirmed(self) -> bool:
        """Whether the reply that an AnyTLS server of version 2 sends is missing."""
        if self.version:
            return False
        known = self._server.version  # from other sessions
        return not known or (known >= wire.VERSION and self._next_id > 1)

    def _mark_heard(self) -> None:
        super()._mark_heard()
        if self._heartbeat_timer is not None:
            self._heartbeat_timer.cancel()
            self._heartbeat_timer = None

    def _role_command_received(self, command: int, stream_id: int, payload: bytes) -> None:
        if command == wire.SYNACK:
            stream = self._streams.get(stream_id)
            if stream is not None:
                stream.receive_answer(wire.shown(payload))
        elif command == wire.SERVER_SETTINGS and payload:
            settings = wire.parse_settings(payload)
            self.version = self._server.version = max(1, wire.version_of(settings))
            if self._offer_half_close and settings.get(HALF_CLOSE) == "1":
                self._peer_half_closes()
            if self._heartbeat_answered is False:  # `ping` had to wait for the version
                self.ping()
        elif command == wire.UPDATE_PADDING:
            self._updates += 1
            if self._updates > MAX_UPDATES:
                self.close(PeerError("the server changes its padding scheme too often"))
            else:
                self._server.update(payload)
        elif command == wire.HEART_RESPONSE:
            if self._heartbeat_answered is not None:
                self._heartbeat_answered = True
        elif command == wire.SYN:
            self.send_command(wire.FIN, stream_id)

    # Sending.

    def open_stream(self, upper: StreamProtocol, destination: bytes) -> ClientStream:
        """Open a stream.

        Args:
            upper: the protocol above.
            destination: as encoded by `wire.addresses.encode`.

        Raises the session's error if it is over.
        """
        if self.lost or self.exhausted:
            raise again(self.error or NetworkError("the AnyTLS session is over"))
        stream = ClientStream(self, self._next_id, upper)
        self._next_id += 1
        if self._settings_at is None:
            self._preface = self._settings_frame() + wire.frame(wire.SYN, stream.id)
        else:
            self.send_command(wire.SYN, stream.id)
        self._streams[stream.id] = stream
        stream.write(destination)
        stream.begin()
        return stream

    def send_settings(self) -> None:
        """Send the settings now, ahead of the first stream."""
        self._preface = self._settings_frame()
        self._send_packet(b"")

    def _settings_frame(self) -> bytes:
        settings = wire.client_settings(self._client, self._server.scheme.md5)
        if self._offer_half_close:
            settings += b"\n" + wire.encode_settings({HALF_CLOSE: "1"})
        return wire.frame(wire.SETTINGS, 0, settings)

    def send_data(self, stream_id: int, data: Data) -> None:
        while self._padder.active and data:
            self._send_packet(wire.frame(wire.PSH, stream_id, data[:wire.MAX_PAYLOAD]))
            data = data[wire.MAX_PAYLOAD:]
        if data:
            super().send_data(stream_id, data)

    def _send_packet(self, data: bytes) -> None:
        if self._preface:
            data, self._preface = self._preface + data, b""
            self._settings_at = asyncio.get_running_loop().time()
            self._known_version = self._server.version
        if not self._padder.active:
            self.send(data)
            return
        self._padder.scheme = self._server.scheme
        for record in self._padder.write(data):
            self.send(record)

    # Lingering streams.

    def count_queued(self, size: int) -> None:
        super().count_queued(size)
        if self._reading_paused and self._stall_timer is None and len(self._streams) > 1:
            loop = asyncio.get_running_loop()
            self._stall_timer = loop.call_later(STALL_TIME, self._end_stall)

    def _end_stall(self) -> None:
        """Cut a stream that seemed to linger and now blocks the session."""
        self._stall_timer = None
        if self._reading_paused:
            for stream in list(self._streams.values()):
                stream.fail_if_stalling()

    # Signs of life.

    def ping(self) -> None:
        # On a busy session a missing answer proves nothing: a Go server whose destination reads
        # slowly does not read the request.
        is_busy = self.idle_since is None or self.write_paused or self._reading_paused
        if is_busy or self.server_version == 1:
            self._heartbeat_answered = None
            super().ping()
        else:
            self._heartbeat_answered = False
            if self.version:  # otherwise when the settings are answered
                self.request_heartbeat()

    def ping_answered(self) -> bool:
        if self._heartbeat_answered is False and self.server_version == 1:  # not known at `ping`
            self.ping()
        if self._heartbeat_answered is None:
            return super().ping_answered()
        return self._heartbeat_answered

    def request_heartbeat(self) -> None:
        """Ask the server for a heartbeat; without it, the session ends after HEART_TIME."""
        would_wait = self.write_paused or self._reading_paused  # behind data
        if not (self.lost or would_wait or self._heartbeat_timer is not None):
            loop = asyncio.get_running_loop()
            self._heartbeat_at = loop.time()
            self._heartbeat_timer = loop.call_later(HEART_TIME, self._heartbeat_expired)
            self.send_command(wire.HEART_REQUEST, 0)

    def keep_alive(self) -> None:
        # With a stream, or without a server that is known to answer, nothing is sent.
        if self.idle_since is not None and self.version >= wire.VERSION:
            self.request_heartbeat()

    def assume_version_1(self, *, certain: bool) -> None:
        """Note that the server has version 1.

        `certain`: data came before an answer to the settings. Otherwise no answer came in time; one
        that comes later is still accepted.
        """
        if not self.version:
            self._server.version = 1
            if certain:
                self.version = 1

    def _heartbeat_expired(self) -> None:
        self._heartbeat_timer = None
        if self._reading_paused:
            return
        if not self.version:  # known from another session, and perhaps no longer true
            self._server.version = 0
        self.abort(NetworkError("the AnyTLS session is dead: no sign of life from the server"))

    def _release(self) -> None:
        for timer in (self._heartbeat_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        self._heartbeat_timer = self._stall_timer = None
