"""The binary messages between a gateway and an agent of the Go program AnyProxy.

    message   u8 version (1) | u8 type | body    one WebSocket message each
    id        20 bytes, ASCII, padded with NUL   a stream's, chosen by the gateway
    s         u16 size | text

    01 CONNECT             id | s network | s address                       gateway
    02 CONNECT_RESPONSE    id | u8 ok | s error                             agent
    03 CLOSE               id                                               both
    04 PORT_FORWARD        s client id | u16 count | count x (u16 remote port | u16 local port
                           | s local host | u8 size | protocol)             agent
    05 PORT_FORWARD_RESP   u8 ok | s error | u16 count | count x (u16 port | u8 ok)   gateway
    06 AUTH                s x 5                                            unused
    07 AUTH_RESPONSE       s status | s reason                              unused
    08 ERROR               s text                                           gateway
    10 DATA                id | bytes to the end of the message             both

Big-endian. A reader cuts an id at its first NUL, takes only 1 for true, and ignores bytes after a
complete body. The Go programs end the session on every other deviation, and on messages of the
other side's types.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import NamedTuple

from mtt.outcome import Outcome
from mtt.wire.errors import WireError

Data = bytes | memoryview

VERSION = 1
CONNECT, CONNECT_RESPONSE, CLOSE = 0x01, 0x02, 0x03
PORT_FORWARD, PORT_FORWARD_RESPONSE = 0x04, 0x05
AUTH, AUTH_RESPONSE = 0x06, 0x07
ERROR, DATA = 0x08, 0x10
FROM_GATEWAY = frozenset({CONNECT, CLOSE, PORT_FORWARD_RESPONSE, ERROR, DATA})
# A Go gateway takes an ERROR, too, although its agents send none.
FROM_AGENT = frozenset({CONNECT_RESPONSE, CLOSE, PORT_FORWARD, ERROR, DATA})

TCP, UDP = "tcp", "udp"

ID_SIZE = 20
# What each DATA message begins with, and the offset of its data.
DATA_HEAD = bytes((VERSION, DATA))
DATA_OFFSET = len(DATA_HEAD) + ID_SIZE
# The Go programs have no limit. They send 32 KiB of data in a message; other peers send more.
MAX_MESSAGE = 4 * 1024 * 1024
_MAX_TEXT = 0xFFFF


class AnyproxyError(WireError):
    """A message is malformed, or not of a type that the peer may send."""


class Connect(NamedTuple):
    """The gateway opens a stream to `address`, "host:port"."""

    id: bytes
    network: str
    address: str

    def encode(self) -> bytes:
        body = padded(self.id) + _text(self.network) + _text(self.address)
        return _message(CONNECT, body)


class ConnectResponse(NamedTuple):
    """How the agent's attempt ended; the error is one of Go's texts."""

    id: bytes
    ok: bool
    error: str = ""

    def encode(self) -> bytes:
        return _message(CONNECT_RESPONSE, padded(self.id) + bytes((self.ok,)) + _text(self.error))


class Close(NamedTuple):
    """Both directions of a stream end."""

    id: bytes

    def encode(self) -> bytes:
        return _message(CLOSE, padded(self.id))


class ForwardedPort(NamedTuple):
    """A port of the gateway that leads to `local_host` and `local_port`, seen from the agent."""

    remote_port: int
    local_port: int
    local_host: str
    protocol: str

    def encode(self) -> bytes:
        protocol = self.protocol.encode()
        if len(protocol) > 0xFF:
            raise ValueError("a protocol name of more than 255 bytes")
        return b"".join((
            self.remote_port.to_bytes(2, "big"), self.local_port.to_bytes(2, "big"),
            _text(self.local_host), bytes((len(protocol),)), protocol,
        ))  # fmt: skip


class PortForward(NamedTuple):
    """The agent asks for ports, once, after the upgrade."""

    client_id: str
    ports: tuple[ForwardedPort, ...]

    def encode(self) -> bytes:
        ports = b"".join([port.encode() for port in self.ports])
        return _message(PORT_FORWARD, _text(self.client_id) + _count(self.ports) + ports)


class PortForwardResponse(NamedTuple):
    """The gateway's answer, with the result of each port; the Go gateway sends no results."""

    ok: bool
    error: str = ""
    results: tuple[tuple[int, bool], ...] = ()

    def encode(self) -> bytes:
        results = [port.to_bytes(2, "big") + bytes((ok,)) for port, ok in self.results]
        body = bytes((self.ok,)) + _text(self.error) + _count(self.results) + b"".join(results)
        return _message(PORT_FORWARD_RESPONSE, body)


class Auth(NamedTuple):
    """Defined, but never sent: the login is in headers of the upgrade."""

    client_id: str
    group_id: str
    username: str
    password: str
    group_password: str

    def encode(self) -> bytes:
        return _message(AUTH, b"".join(map(_text, self)))


class AuthResponse(NamedTuple):
    """Defined, but never sent."""

    status: str
    reason: str

    def encode(self) -> bytes:
        return _message(AUTH_RESPONSE, _text(self.status) + _text(self.reason))


class Error(NamedTuple):
    """The gateway refuses a registration, and closes the session."""

    text: str

    def encode(self) -> bytes:
        return _message(ERROR, _text(self.text))


class StreamData(NamedTuple):
    """Data of a stream: a piece of a byte stream, or one datagram."""

    id: bytes
    data: Data | bytearray

    def encode(self) -> bytes:
        return b"".join((DATA_HEAD, padded(self.id), self.data))


Message = (
    Connect | ConnectResponse | Close | PortForward | PortForwardResponse
    | Auth | AuthResponse | Error | StreamData
)  # fmt: skip


def parse(message: Data, types: frozenset[int] | None = None) -> Message:
    """The message in the payload of one WebSocket message.

    `types`: those that the peer may send, FROM_GATEWAY or FROM_AGENT; None: all. Raises
    AnyproxyError.
    """
    if len(message) < 2:
        raise AnyproxyError(f"a message of {len(message)} bytes")
    version, kind = message[0], message[1]
    if version != VERSION:
        raise AnyproxyError(f"unknown version {version}")
    read = _READERS.get(kind)
    if read is None or (types is not None and kind not in types):
        raise AnyproxyError(f"unexpected message of type {kind:#04x}")
    return read(_Reader(message))


def padded(stream_id: bytes) -> bytes:
    """An id as it is on the wire; a longer one is cut."""
    return stream_id[:ID_SIZE].ljust(ID_SIZE, b"\0")


def new_id(random: bytes) -> bytes:
    """An id in the form of the Go programs' xids, made of 12 random bytes."""
    return base64.b32hexencode(random).rstrip(b"=").lower()


# What makes an agent's id unique, at its end.
_XID = re.compile(r"-[0-9a-v]{20}\Z")


def agent_id(name: str, replica: int, random: bytes) -> str:
    """An agent's id in the upgrade, as the Go agent forms it: unique for each connection.

    The Go gateway confuses two connections with the same id, also if the first one is dead.
    """
    return f"{name}-r{replica}-{new_id(random).decode()}"


def agent_name(client_id: str) -> str:
    """The part of an agent's id that is the same for all its connections."""
    return _XID.sub("", client_id)


def cut(field: bytes) -> bytes:
    """The id in its field of 20 bytes, padded anew: what follows the first NUL does not count."""
    return padded(field.partition(b"\0")[0])


def join_address(host: str, port: int) -> str:
    """The address of a CONNECT."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(address: str) -> tuple[str, int] | None:
    """Host and port of a CONNECT's address; None if it is not of this form."""
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return None
    if not (host and port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 0xFFFF):
        return None
    return host, int(port)


# How the texts of Go's dialer end, some of them on other systems, and their outcomes. The host's
# name, which the user chooses, stands before that.
_ENDS = {
    "connection refused": Outcome.CONNECTION_REFUSED,
    "actively refused it.": Outcome.CONNECTION_REFUSED,
    "no such host": Outcome.UNRESOLVABLE,
    "server misbehaving": Outcome.UNRESOLVABLE,
    "no suitable address found": Outcome.UNRESOLVABLE,
    "network is unreachable": Outcome.NETWORK_UNREACHABLE,
    "unreachable network.": Outcome.NETWORK_UNREACHABLE,
    "no route to host": Outcome.HOST_UNREACHABLE,
    "host is unreachable": Outcome.HOST_UNREACHABLE,
    "unreachable host.": Outcome.HOST_UNREACHABLE,
    "host is down": Outcome.HOST_UNREACHABLE,
    "timeout": Outcome.TIMED_OUT,
    "timed out": Outcome.TIMED_OUT,
    "deadline exceeded": Outcome.TIMED_OUT,
    "forbidden": Outcome.NOT_ALLOWED,  # by the agent's rules
    "denied": Outcome.NOT_ALLOWED,
    "operation not permitted": Outcome.NOT_ALLOWED,  # a firewall of the agent's machine
}
_DENIED = "Connection denied"


def outcome_of(error: str) -> Outcome:
    """The outcome for the error text of a CONNECT_RESPONSE without success."""
    if error.startswith(_DENIED):
        return Outcome.NOT_ALLOWED
    return next(
        (outcome for end, outcome in _ENDS.items() if error.endswith(end)),
        Outcome.GENERAL_FAILURE,
    )


_TEXTS = {
    Outcome.CONNECTION_REFUSED: "connect: connection refused",
    Outcome.NETWORK_UNREACHABLE: "connect: network is unreachable",
    Outcome.HOST_UNREACHABLE: "connect: no route to host",
    Outcome.UNRESOLVABLE: "no such host",
    Outcome.TIMED_OUT: "i/o timeout",
}


def error_text(outcome: Outcome, network: str, address: str) -> str:
    """The error text of a CONNECT_RESPONSE, as the Go agent writes it."""
    address = address[:512]
    if outcome is Outcome.NOT_ALLOWED:
        return f"{_DENIED} - host '{address}' is forbidden"
    return f"dial {network} {address}: {_TEXTS.get(outcome, 'connection failed')}"


class _Reader:
    """Reads the fields of a message, from its body on."""

    __slots__ = ("_at", "_message")

    def __init__(self, message: Data) -> None:
        self._message = message
        self._at = 2

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._message):
            raise AnyproxyError("a message is cut short")
        taken = bytes(self._message[self._at : end])
        self._at = end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def id(self) -> bytes:
        return self.take(ID_SIZE).partition(b"\0")[0]

    def is_true(self) -> bool:
        return self.take(1) == b"\1"

    def text(self, size_bytes: int = 2) -> str:
        # Go strings may hold any bytes; what is not UTF-8 is no host, and unreadable in a log.
        return self.take(self.number(size_bytes)).decode(errors="replace")

    def rest(self) -> Data:
        return self._message[self._at :]


def _forwarded_port(reader: _Reader) -> ForwardedPort:
    return ForwardedPort(reader.number(2), reader.number(2), reader.text(), reader.text(1))


def _port_forward(reader: _Reader) -> PortForward:
    client_id = reader.text()
    count = reader.number(2)
    return PortForward(client_id, tuple(_forwarded_port(reader) for _ in range(count)))


def _port_forward_response(reader: _Reader) -> PortForwardResponse:
    ok, error = reader.is_true(), reader.text()
    count = reader.number(2)
    results = tuple((reader.number(2), reader.is_true()) for _ in range(count))
    return PortForwardResponse(ok, error, results)


_READERS: dict[int, Callable[[_Reader], Message]] = {
    CONNECT: lambda reader: Connect(reader.id(), reader.text(), reader.text()),
    CONNECT_RESPONSE: lambda reader: ConnectResponse(reader.id(), reader.is_true(), reader.text()),
    CLOSE: lambda reader: Close(reader.id()),
    PORT_FORWARD: _port_forward,
    PORT_FORWARD_RESPONSE: _port_forward_response,
    AUTH: lambda reader: Auth(*(reader.text() for _ in range(5))),
    AUTH_RESPONSE: lambda reader: AuthResponse(reader.text(), reader.text()),
    ERROR: lambda reader: Error(reader.text()),
    DATA: lambda reader: StreamData(reader.id(), reader.rest()),
}


def _message(kind: int, body: bytes) -> bytes:
    return bytes((VERSION, kind)) + body


def _text(text: str) -> bytes:
    encoded = text.encode(errors="replace")
    if len(encoded) > _MAX_TEXT:
        raise ValueError(f"a text of {len(encoded)} bytes; {_MAX_TEXT} at most")
    return len(encoded).to_bytes(2, "big") + encoded


def _count(items: tuple[object, ...]) -> bytes:
    if len(items) > 0xFFFF:
        raise ValueError(f"{len(items)} ports; {0xFFFF} at most")
    return len(items).to_bytes(2, "big")
