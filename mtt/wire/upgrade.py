"""The opening handshake of WebSocket (RFC 6455, 4), client and server.

Both send what Go's net/http with gorilla/websocket sends, so neither a peer nor an observer can
tell them from the original. Both accept what gorilla accepts, and any legal form of a list header:
additional elements, repeated lines (RFC 9110, 5.3).
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import NamedTuple

from mtt.errors import Cause
from mtt.wire.errors import WireError
from mtt.wire.http1 import REASONS, TOKEN, Reply, Request, Response, is_host, text_reply

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3

# Bytes that cannot stand in a request target. A `%` that escapes nothing counts among them.
_NOT_PATH = re.compile(rb"[^A-Za-z0-9!$&'()*+,/:;=@\[\]._~%-]|%(?![0-9A-Fa-f]{2})")
_NOT_QUERY = re.compile(rb"[^\x21-\x7e]")

# Subprotocols of the tunnel: the client chooses plain or multiplexed; the server prefers them in
# this order, like the original.
SMUX_ON = "smux_on"
SMUX_OFF = "smux_off"
PREFERENCE = (SMUX_ON, SMUX_OFF)
# The same for a connection that carries UDP (see `datagrams`); only servers with -udp agree to it.
DATAGRAMS = "udp_on"

# The first bytes of every opening handshake.
METHOD = b"GET "
# Statuses by which a web server in front says that it does not reach the server behind it.
_UNREACHED = (502, 503, 504)
# Longest line of a head that arrives in pieces: nginx's limit.
MAX_LINE = 8192
_VALUE = rb"[\t\x20-\x7e\x80-\xff]*"
_FIELD = re.compile(rb"(%s):(%s)\r?" % (TOKEN, _VALUE))
_FIELD_BEGINS = re.compile(rb"(?:%s(?::%s)?)?\r?" % (TOKEN, _VALUE))
_NOT_TARGET = re.compile(rb"[\x00-\x20\x7f]")
_BODY = (b"content-length", b"transfer-encoding")

_NO_HEADERS: Mapping[str, str] = {}

_ORIGIN = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?//([^/?#]*)")


class UpgradeError(WireError):
    """The server did not upgrade the connection, or upgraded it to something else."""

    cause = Cause.HTTP


class UpgradeRefused(WireError):
    """The request is not a valid opening handshake; `reply` is the answer."""

    cause = Cause.HTTP

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"WebSocket upgrade refused: {reason}")
        self.status = status

    @property
    def reply(self) -> Reply:
        """An ordinary response; the connection may stay open after it."""
        # Go canonicalises the header name in responses, but not in requests.
        return text_reply(self.status, REASONS[self.status], ("Sec-Websocket-Version", "13"))


class Upgrade(NamedTuple):
    """A valid opening handshake: the client's key and the agreed subprotocol.

    With `early_data`, the protocol is that data encoded, for the answer.
    """

    key: str
    protocol: str | None
    early_data: bytes = b""


class RequestBeginning:
    """Checks whether an incomplete head may still become an opening handshake.

    It refuses what web servers refuse, at the same byte, and what no client sends: absolute
    targets, folded lines, a body.
    """

    __slots__ = ("_at", "_has_host")

    def __init__(self) -> None:
        self._at = 0  # start of the first incomplete line
        self._has_host = False

    def goes_on(self, head: bytes | bytearray) -> bool:
        """Whether `head` may become a handshake; it only grows from call to call."""
        while (end := head.find(b"\n", self._at)) >= 0:
            line = bytes(head[self._at : end])
            if not (self._is_field(line) if self._at else _is_request_line(line + b"\n")):
                return False
            self._at = end + 1
        rest = bytes(head[self._at :])
        if len(rest) > MAX_LINE:
            return False
        return _FIELD_BEGINS.fullmatch(rest) is not None if self._at else _is_request_line(rest)

    def _is_field(self, line: bytes) -> bool:
        found = _FIELD.fullmatch(line)
        if found is None or len(line) > MAX_LINE:
            return False
        name = found[1].lower()
        if name != b"host":
            return name not in _BODY
        is_first, self._has_host = not self._has_host, True
        return is_first and is_host(found[2].strip(b" \t").decode("latin-1"))


def _is_request_line(line: bytes) -> bool:
    """Whether `line` is the request line of an opening handshake, or a prefix of one."""
    target, _, version = line[len(METHOD) :].partition(b" ")
    return (
        METHOD.startswith(line[: len(METHOD)])
        and (target[:1] == b"/" or len(line) <= len(METHOD))
        and not _NOT_TARGET.search(target)
        and b"HTTP/1.1\r\n".startswith(version)
        and len(line) <= MAX_LINE
        and (bool(version) or not line.endswith(b"\n"))
    )


def accept_key(key: str) -> str:
    """The value of Sec-WebSocket-Accept that answers `key` (RFC 6455, 4.2.2)."""
    import hashlib  # half a megabyte, for servers that speak WebSocket only

    digest = hashlib.sha1(key.encode("latin-1") + _GUID, usedforsecurity=False).digest()
    return b64encode(digest).decode("ascii")


class OwnKey(NamedTuple):
    """What the key of this program's client tells its server.

    `mux_cool`: the WebSocket carries Mux.Cool, unless it names a subprotocol.
    """

    mux_cool: bool


def own_key(noise: bytes, *, mux_cool: bool = False) -> str:
    """A Sec-WebSocket-Key that this program's server recognises; to others it looks random.

    `noise`: 12 random bytes. The last 4 of the 16 are derived from them. `mux_cool`: see `OwnKey`.
    """
    return b64encode(noise + _own_mark(noise, mux_cool)).decode("ascii")


def read_own_key(key: str) -> OwnKey | None:
    """What `key` tells, if it is from `own_key()`; one in 2 billion other keys is by chance."""
    try:
        raw = b64decode(key, validate=True)
    except ValueError:
        return None
    if len(raw) == 16:
        for mux_cool in (False, True):
            if raw[12:] == _own_mark(raw[:12], mux_cool):
                return OwnKey(mux_cool)
    return None


def is_own_key(key: str) -> bool:
    """Whether `key` is from `own_key()`."""
    return read_own_key(key) is not None


def _own_mark(noise: bytes, mux_cool: bool) -> bytes:
    import hashlib

    label = b"mos-tls-tunnel Mux.Cool" if mux_cool else b"mos-tls-tunnel"
    return hashlib.sha256(label + noise).digest()[:4]


def request(
    path: str,
    host: str,
    key: str,
    protocols: tuple[str, ...] = (),
    *,
    port: int | None = None,
    headers: Mapping[str, str] = _NO_HEADERS,
) -> bytes:
    """The client's request, with its headers in Go's order.

    `path`: as in a URL: a missing leading slash is added, a `?query` is sent, a `#fragment` is not,
    and bytes that a request cannot carry are percent-encoded. `host`: an ASCII name or an IP
    literal without brackets (IPv6 gets them here, and its zone is dropped, RFC 6874). `key`: 16
    random bytes in Base64. `protocols`: subprotocols to offer, the preferred one first. `port`: in
    the Host header; None for the default port. `headers`: additional ones, printable; their values
    are sent in UTF-8, as by Go.
    """
    target, question, query = path.partition("#")[0].partition("?")
    if not target.startswith("/"):
        target = "/" + target
    target = _quote(_NOT_PATH, target) + question + _quote(_NOT_QUERY, query)
    if ":" in host:
        host = f"[{host.partition('%')[0]}]"
    if port is not None:
        host = f"{host}:{port}"
    fields = {
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": key,
        "Sec-WebSocket-Version": "13",
        "Upgrade": "websocket",
        **headers,
    }
    if protocols:
        fields["Sec-WebSocket-Protocol"] = ", ".join(protocols)
    lines = [
        f"GET {target} HTTP/1.1",
        f"Host: {host}",
        "User-Agent: Go-http-client/1.1",
        *(f"{name}: {fields[name]}" for name in sorted(fields)),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def check_response(response: Response, key: str) -> str | None:
    """The subprotocol that the server chose; None if it named none.

    The caller checks whether it was offered; the original does not. Raises UpgradeError unless the
    response is a valid answer to a request with `key`.
    """
    if response.status != 101:
        advice = "check the path, and that the server runs in WebSocket mode"
        if response.status in _UNREACHED:
            advice = "a web server in front does not reach the server; check that it runs"
        raise UpgradeError(
            f"the server answered the WebSocket request with {response.answer}: {advice}"
        )
    if "websocket" not in response.tokens("upgrade"):
        raise UpgradeError("the server switched to another protocol than WebSocket")
    # A list: proxies on the way add `keep-alive` to it, or a second line.
    if "upgrade" not in response.tokens("connection"):
        raise UpgradeError("the server's 101 response lacks the header `Connection: Upgrade`")
    if response.first("sec-websocket-accept") != accept_key(key):
        raise UpgradeError("the server's Sec-WebSocket-Accept does not fit the request")
    extensions = response.tokens("sec-websocket-extensions")
    # It would change the meaning of every frame. Other extensions are ignored, as in gorilla.
    if any(name.partition(";")[0].strip() == "permessage-deflate" for name in extensions):
        raise UpgradeError("the server enabled compression, which the client did not offer")
    return response.first("sec-websocket-protocol") or None


def check_request(request: Request, preference: tuple[str, ...] = ()) -> Upgrade:
    """The `Upgrade` that a client asks for.

    `preference`: the server's subprotocols; the first that the client also offers is agreed on.
    Raises UpgradeRefused. The checks are in gorilla's order, which decides the status.
    """
    if "upgrade" not in request.tokens("connection"):
        raise UpgradeRefused(400, "no token `upgrade` in the Connection header")
    if "websocket" not in request.tokens("upgrade"):
        raise UpgradeRefused(400, "no token `websocket` in the Upgrade header")
    if request.method != "GET":
        raise UpgradeRefused(405, f"the method is {request.method}")
    if "13" not in request.tokens("sec-websocket-version"):
        raise UpgradeRefused(400, "Sec-WebSocket-Version is not 13")
    origin = request.first("origin")
    if origin is not None and _origin_host(origin) != request.host.lower():
        raise UpgradeRefused(403, "the Origin header names another host than the Host header")
    key = request.first("sec-websocket-key")
    if not key:
        raise UpgradeRefused(400, "no Sec-WebSocket-Key")
    offers = request.elements("sec-websocket-protocol")
    return Upgrade(key, next((name for name in preference if name in offers), None))


def check_hidden_request(
    request: Request, preference: tuple[str, ...] = (), *, early: bool
) -> Upgrade:
    """As `check_request`, for servers that hide the WebSocket from probes.

    HTTP/1.0 and bytes sent with the request (`early`) are refused as well: the original treats
    them in ways that no web server does.
    """
    if request.version < (1, 1):
        raise UpgradeRefused(400, "HTTP/1.0")
    if early:
        raise UpgradeRefused(400, "bytes follow the request")
    return check_request(request, preference)


def switching_protocols(key: str, protocol: str | None) -> bytes:
    """The server's response to a valid request."""
    negotiated = f"Sec-WebSocket-Protocol: {protocol}\r\n" if protocol else ""
    return (
        "HTTP/1.1 101 Switching Protocols\r\n"
        "Upgrade: websocket\r\n"
        "Connection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept_key(key)}\r\n"
        f"{negotiated}\r\n"
    ).encode("ascii")


def _origin_host(origin: str) -> str:
    """`host[:port]` of an origin in lower case; empty for `null` and other opaque origins."""
    found = _ORIGIN.match(origin)
    return found[1].rpartition("@")[2].lower() if found else ""


def _quote(unsafe: re.Pattern[bytes], text: str) -> str:
    raw = text.encode("utf-8", "surrogateescape")
    return unsafe.sub(lambda found: b"%%%02X" % found[0][0], raw).decode("ascii")
