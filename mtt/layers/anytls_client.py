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
from mtt.wire.anytls import (
    FIN,
    HEART_REQUEST,
    HEART_RESPONSE,
    MAX_PAYLOAD,
    PSH,
    SERVER_SETTINGS,
    SETTINGS,
    SYN,
    SYNACK,
    UPDATE_PADDING,
    VERSION,
    client_settings,
    encode_settings,
    frame,
    parse_settings,
    preamble,
    shown,
    version_of,
)
from mtt.wire.padding import DEFAULT, Padder, RandRange, Scheme, SchemeError

# What we call ourselves; the protocol asks third parties to be truthful.
CLIENT = f"mos-tls-tunnel/{__version__}"
# Who does not answer within this time is gone: a round trip, and what was lost sent again twice.
HEART_TIME = 5.0
# Who has not answered after this time gets no new stream.
LATE_TIME = 1.0
# Strangers are closed without a word, or get the answer of some web site.
_UNHEARD = "without a word of AnyTLS: is the password right?"
# For so long the server's answer to our settings is expected: what was lost is sent again by then.
SETTINGS_TIME = 10.0
# Streams of which only the end is missing, beside the one in use. To a Go server each costs memory
# and a connection until it ends, which takes a second or so.
MAX_LINGERING = 32
# For so long one of them may keep the others waiting, if it begins to carry data again all the same
# and its reader is slow: there is no flow control but that of the whole session.
STALL_TIME = 5.0
# Padding schemes that one session takes. Servers send one, in answer to the settings; to read what
# somebody has made for the purpose takes a hundred times as long as to send it.
MAX_UPDATES = 32
# Ids are 32 bits wide and not re-used.
_LAST_ID = 0xFFFFFFFF

# Sizes that can be foretold would be a fingerprint.
_randrange = random.SystemRandom().randrange


class Learned:
    """What a client has learned of its server, in whichever session: one object for all of them.

    Args:
        scheme: the padding to begin with.
        on_refused: called with a line for the log when the server wants a scheme that is unfit.

    Attributes:
        scheme: the padding in use.
        version: of the server: 1, 2 or newer; 0 if it is not known yet.
    """

    def __init__(
        self, scheme: Scheme = DEFAULT, *, on_refused: Callable[[str], object] | None = None
    ) -> None:
        self.scheme = scheme
        self.version = 0
        self._on_refused = on_refused
        self._refused = b""

    def update(self, raw: bytes) -> None:
        """Take a scheme from the server, if it is fit; it counts from the next packet on."""
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
        server: what is known of the server, shared by the sessions with it.
        half_close: offer half-close; only servers of ours know it.
        client: what we call ourselves.
        randrange: the source of random sizes.
        on_change: called when a stream ended.
        on_lost: called once when the session is over, with the reason (None: closed by us).
    """

    __slots__ = (
        "_asked_at", "_beat_answered", "_client", "_dead_timer", "_hashed", "_keepalive",
        "_known_version", "_next_id", "_offer_half_close", "_padder", "_preface", "_randrange",
        "_server", "_settings_at", "_stall_timer", "_updates",
    )  # fmt: skip

    def __init__(
        self,
        hashed: bytes,
        server: Learned,
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
        self._preface = b""  # settings and SYN, which go out with the first PSH
        self._next_id = 1
        self._settings_at: float | None = None  # when they were sent
        self._known_version = 0  # of the server, by then
        self._updates = 0  # of the padding scheme
        self._asked_at = 0.0
        self._beat_answered: bool | None = None  # since `ask`; None if that asked otherwise
        self._keepalive: Keepalive | None = None
        self._dead_timer: asyncio.TimerHandle | None = None  # runs while an answer is due
        self._stall_timer: asyncio.TimerHandle | None = None  # see _end_stall

    @property
    def server_version(self) -> int:
        """What the server has announced here or before; 0 if it is not known yet."""
        return self.version or self._server.version

    @property
    def may_half_close(self) -> bool:
        """Whether the server may yet say that it knows half-close."""
        if not self._offer_half_close or self.version or self._known_version == 1:
            return False
        if self._settings_at is None:
            return False
        return asyncio.get_running_loop().time() - self._settings_at < SETTINGS_TIME

    @property
    def exhausted(self) -> bool:
        """Whether all stream ids have been used."""
        return self._next_id > _LAST_ID

    @property
    def has_room(self) -> bool:
        """Whether a new stream finds it unused, or used only by streams that linger.

        An application's end is told to a Go server late (see `relay`). Until then the server would
        have one connection more for each of a series of requests, instead of one for all.
        """
        streams = self._streams
        return not (
            self._finishing or self._held or self.write_paused or len(streams) > MAX_LINGERING
        ) and all(stream.lingers for stream in streams.values())

    @property
    def healthy(self) -> bool:
        """Whether a new stream may rely on it, as far as the session itself knows."""
        if self.lost or self.exhausted or self.is_stalled:
            return False
        now = asyncio.get_running_loop().time()
        return self._dead_timer is None or now - self._asked_at < LATE_TIME

    # The protocol of the connection below.

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        padding = self._server.scheme.padding0(self._randrange)
        self.send(preamble(self._hashed, padding))
        self._keepalive = Keepalive(self)

    def eof_received(self) -> bool:
        if self._is_unheard:
            self._end(PeerError(f"the server closed the session {_UNHEARD}"))
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        # Who closes on a stranger without having read all of it has its kernel send RST.
        if isinstance(exc, ConnectionError) and self._is_unheard:
            exc = NetworkError(f"the AnyTLS session was lost {_UNHEARD} ({describe(exc)})")
        super().connection_lost(exc)

    @property
    def _is_unheard(self) -> bool:
        """Whether the server has not said what one of AnyTLS, version 2, would have."""
        if self.version:
            return False
        known = self._server.version  # from other sessions
        return not known or (known >= VERSION and self._next_id > 1)

    def _heard(self) -> None:
        super()._heard()
        if self._dead_timer is not None:
            self._dead_timer.cancel()
            self._dead_timer = None

    def _said(self, command: int, stream_id: int, payload: bytes) -> None:
        if command == SYNACK:
            stream = self._streams.get(stream_id)
            if stream is not None:
                stream.receive_answer(shown(payload))
        elif command == SERVER_SETTINGS and payload:
            settings = parse_settings(payload)
            self.version = self._server.version = max(1, version_of(settings))
            if self._offer_half_close and settings.get(HALF_CLOSE) == "1":
                self._peer_half_closes()
            if self._beat_answered is False:  # we are to ask, and could not before
                self.ask()
        elif command == UPDATE_PADDING:
            self._updates += 1
            if self._updates > MAX_UPDATES:
                self.close(PeerError("the server changes its padding scheme again and again"))
            else:
                self._server.update(payload)
        elif command == HEART_RESPONSE:
            if self._beat_answered is not None:
                self._beat_answered = True
        elif command == SYN:
            self.control(FIN, stream_id)

    # Sending.

    def open_stream(self, upper: StreamProtocol, destination: bytes) -> ClientStream:
        """Open a stream.

        Args:
            upper: the protocol above.
            destination: where to, as `wire.addresses.encode` has it.

        Raises why the session is over, if it is.
        """
        if self.lost or self.exhausted:
            raise again(self.error or NetworkError("the AnyTLS session is over"))
        stream = ClientStream(self, self._next_id, upper)
        self._next_id += 1
        if self._settings_at is None:
            self._preface = self._greeting() + frame(SYN, stream.id)
        else:
            self.control(SYN, stream.id)
        self._streams[stream.id] = stream
        stream.write(destination)
        self._made(stream)
        return stream

    def greet(self) -> None:
        """Say the settings now, ahead of the first stream."""
        self._preface = self._greeting()
        self._packet(b"")

    def _greeting(self) -> bytes:
        settings = client_settings(self._client, self._server.scheme.md5)
        if self._offer_half_close:
            settings += b"\n" + encode_settings({HALF_CLOSE: "1"})
        return frame(SETTINGS, 0, settings)

    def send_data(self, stream_id: int, data: Data) -> None:
        while self._padder.active and data:
            self._packet(frame(PSH, stream_id, data[:MAX_PAYLOAD]))
            data = data[MAX_PAYLOAD:]
        if data:
            super().send_data(stream_id, data)

    def _packet(self, data: bytes) -> None:
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

    # Streams that linger, and do not.

    def queued(self, size: int) -> None:
        super().queued(size)
        if self._held and self._stall_timer is None and len(self._streams) > 1:
            loop = asyncio.get_running_loop()
            self._stall_timer = loop.call_later(STALL_TIME, self._end_stall)

    def _end_stall(self) -> None:
        """Cut what was taken for a stream that lingers, and has stopped the session instead."""
        self._stall_timer = None
        if self._held:
            for stream in list(self._streams.values()):
                stream.give_way()

    # Signs of life.

    def ask(self) -> None:
        # A busy session is not cut if nothing comes: a Go server whose destination reads slowly
        # does not come to read the question.
        if self.idle_since is None or self.server_version == 1 or self.write_paused or self._held:
            self._beat_answered = None
            super().ask()
        else:
            self._beat_answered = False
            if self.version:  # otherwise when the answer to our settings says it
                self.question()

    def has_answered(self) -> bool:
        if self._beat_answered is False and self.server_version == 1:  # as it turned out meanwhile
            self.ask()
        if self._beat_answered is None:
            return super().has_answered()
        return self._beat_answered

    def question(self) -> None:
        """Ask for a sign of life, without which the session ends after HEART_TIME."""
        # Not when the question, or the answer, would wait behind data.
        if not (self.lost or self._dead_timer is not None or self.write_paused or self._held):
            loop = asyncio.get_running_loop()
            self._asked_at = loop.time()
            self._dead_timer = loop.call_later(HEART_TIME, self._dead)
            self.control(HEART_REQUEST, 0)

    def keep_alive(self) -> None:
        """Ask, if there is no stream, and it is known that the server answers."""
        if self.idle_since is not None and self.version >= VERSION:
            self.question()

    def no_version(self, *, certain: bool) -> None:
        """The server is of version 1: data came before an answer to the settings, which is certain,
        or no answer came in time. If one comes later, all is as it should be."""
        if not self.version:
            self._server.version = 1
            if certain:
                self.version = 1

    def _dead(self) -> None:
        self._dead_timer = None
        if self._held:
            return
        if not self.version:  # it was of a newer version when last heard of
            self._server.version = 0
        self.abort(NetworkError("the AnyTLS session is dead: no sign of life from the server"))

    def _forget(self) -> None:
        if self._keepalive is not None:
            self._keepalive.stop()
        for timer in (self._dead_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        self._dead_timer = self._stall_timer = None
