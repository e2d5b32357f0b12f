"""Heads and answers of the streams between gateway and agent.

    head     u16 size | u8 network | address | fields    gateway to agent, first on a stream
    answer   u16 size | u8 result | [address | fields]   agent to gateway, first on a stream
    field    u8 type | u8 size | value
    message  u16 size | JSON object                      both ways, on the agent's own stream

Big-endian; `size` counts the bytes after it. Addresses have the form of SOCKS5, see
`mtt.wire.addresses`. Readers ignore fields of unknown types and unknown keys of messages, so later
versions can add some.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mtt.outcome import Outcome
from mtt.wire import addresses
from mtt.wire.addresses import AddressError
from mtt.wire.errors import WireError

# The WebSocket subprotocol that both ends agree on (RFC 6455, 1.9). Peers without it are the Go
# programs, which ignore subprotocols.
SUBPROTOCOL = "mtt-agent-1"

TCP, UDP = 1, 2
_NETWORKS = (TCP, UDP)

# The user's address. The agent may pass it on to the target in a PROXY protocol header.
_USER = 1

# Network, two addresses, and room for fields of later versions. It bounds what a reader buffers.
MAX_SIZE = 1024
_MAX_FIELD = 255
MAX_MESSAGE = 0xFFFF

_RESULTS = {
    Outcome.SUCCEEDED: 0,
    Outcome.GENERAL_FAILURE: 1,
    Outcome.NOT_ALLOWED: 2,
    Outcome.NETWORK_UNREACHABLE: 3,
    Outcome.HOST_UNREACHABLE: 4,
    Outcome.CONNECTION_REFUSED: 5,
    Outcome.TIMED_OUT: 6,
    Outcome.UNRESOLVABLE: 7,
    Outcome.NO_AGENT: 8,  # the agent is leaving; the gateway asks another one
    Outcome.OVERLOADED: 9,  # likewise
}
_OUTCOMES = {result: outcome for outcome, result in _RESULTS.items()}


class AgentError(WireError):
    """The peer's head or answer is malformed."""


@dataclass(frozen=True, slots=True)
class Head:
    """What the gateway asks the agent for.

    Attributes:
        network: TCP or UDP. A UDP stream carries datagrams with addresses, see `mtt.wire.uot`.
        host: IP literal, or the name as the user wrote it; the agent resolves it.
        port: 0 to 65535.
        user: host and port of the user; None if the gateway does not tell.
    """

    network: int
    host: str
    port: int
    user: tuple[str, int] | None = None

    def encode(self) -> bytes:
        """The head on the wire. Raises ValueError if an address cannot be encoded."""
        fields = b"" if self.user is None else _field(_USER, addresses.encode(*self.user))
        return _sized(bytes((self.network,)) + addresses.encode(self.host, self.port) + fields)


@dataclass(frozen=True, slots=True)
class Answer:
    """How the agent's attempt ended.

    Attributes:
        outcome: SUCCEEDED, or why the target was not reached.
        reached: IP literal and port that the agent is connected to; None if unknown. No other
            text from the agent's network travels.
    """

    outcome: Outcome
    reached: tuple[str, int] | None = None

    def encode(self) -> bytes:
        """The answer on the wire. Raises ValueError if the address cannot be encoded."""
        reached = b"" if self.reached is None else addresses.encode(*self.reached)
        result = _RESULTS.get(self.outcome, _RESULTS[Outcome.GENERAL_FAILURE])
        return _sized(bytes((result,)) + reached)


def parse_head(data: bytes) -> tuple[Head, int] | None:
    """The head that `data` begins with and the offset after it; None while it is incomplete.

    Raises AgentError.
    """
    body = _body(data, "head")
    if body is None:
        return None
    network = body[0]
    if network not in _NETWORKS:
        raise AgentError(f"unknown network {network}")
    host, port, at = _address(body, 1)
    user = None
    for kind, value in _fields(body[at:]):
        if kind == _USER:
            user = _address(value, 0)[:2]
    return Head(network, host, port, user), 2 + len(body)


def parse_answer(data: bytes) -> tuple[Answer, int] | None:
    """The answer that `data` begins with and the offset after it; None while it is incomplete.

    Unknown results, those of later versions, are GENERAL_FAILURE. Raises AgentError.
    """
    body = _body(data, "answer")
    if body is None:
        return None
    outcome = _OUTCOMES.get(body[0], Outcome.GENERAL_FAILURE)
    reached = None
    if len(body) > 1:
        host, port, at = _address(body, 1)
        reached = host, port
        for _ in _fields(body[at:]):
            pass  # no fields yet; malformed ones are errors
    return Answer(outcome, reached), 2 + len(body)


def encode_message(message: Mapping[str, Any]) -> bytes:
    """A message on the wire. Raises ValueError if it is longer than MAX_MESSAGE."""
    text = json.dumps(message, separators=(",", ":")).encode()
    if len(text) > MAX_MESSAGE:
        raise ValueError(f"a message of {len(text)} bytes; {MAX_MESSAGE} at most")
    return _sized(text)


def parse_message(data: bytes | bytearray) -> tuple[dict[str, Any], int] | None:
    """The message that `data` begins with and the offset after it; None while it is incomplete.

    Raises AgentError.
    """
    if len(data) < 2 or len(data) < (end := 2 + int.from_bytes(data[:2], "big")):
        return None
    try:
        message = json.loads(data[2:end])
    except (ValueError, RecursionError):
        raise AgentError("a message is not JSON") from None
    if not isinstance(message, dict):
        raise AgentError("a message is not a JSON object")
    return message, end


def _sized(body: bytes) -> bytes:
    return len(body).to_bytes(2, "big") + body


def _field(kind: int, value: bytes) -> bytes:
    if len(value) > _MAX_FIELD:
        raise ValueError(f"a field of {len(value)} bytes; {_MAX_FIELD} at most")
    return bytes((kind, len(value))) + value


def _body(data: bytes, what: str) -> bytes | None:
    if len(data) < 2:
        return None
    size = int.from_bytes(data[:2], "big")
    if not 0 < size <= MAX_SIZE:
        raise AgentError(f"the {what} of a stream has {size} bytes; 1 to {MAX_SIZE} are valid")
    return data[2 : 2 + size] if len(data) >= 2 + size else None


def _address(body: bytes, at: int) -> tuple[str, int, int]:
    try:
        found = addresses.decode(body, at)
    except AddressError as error:
        raise AgentError(str(error)) from None
    if found is None:
        raise AgentError("an address is cut short")
    return found


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        if len(data) < 2 or len(data) < 2 + data[1]:
            raise AgentError("a field is cut short")
        end = 2 + data[1]
        yield data[0], data[2:end]
        data = data[end:]
