"""The client side of SOCKS 5 (RFC 1928, RFC 1929): asks a proxy for a connection.

    05 n methods            -> 05 method
    01 user password        -> 01 status                    (if the method is 2)
    05 01 00 address        -> 05 reply 00 address
"""

from __future__ import annotations

from mtt.errors import Cause
from mtt.outcome import Outcome
from mtt.wire import addresses
from mtt.wire.addresses import AddressError
from mtt.wire.errors import WireError
from mtt.wire.socks import LOGIN, NO_LOGIN

MAX_LOGIN = 255  # bytes of a user, and of a password

# Replies to a request (RFC 1928, 6). Proxies commonly use "TTL expired" for timeouts.
_OUTCOMES = {
    1: Outcome.GENERAL_FAILURE,
    2: Outcome.NOT_ALLOWED,
    3: Outcome.NETWORK_UNREACHABLE,
    4: Outcome.HOST_UNREACHABLE,
    5: Outcome.CONNECTION_REFUSED,
    6: Outcome.TIMED_OUT,
}
_OTHER = {7: "command not supported", 8: "address type not supported"}


class SocksClientError(WireError):
    """The proxy does not speak SOCKS 5."""

    cause = Cause.HTTP


class LoginRefused(SocksClientError):
    """The proxy requires a login, or rejected this one."""


class RequestRefused(SocksClientError):
    """The proxy has not connected, for the reason `outcome`."""

    def __init__(self, reply: int) -> None:
        self.outcome = _OUTCOMES.get(reply, Outcome.GENERAL_FAILURE)
        super().__init__(_OTHER.get(reply) or self.outcome.text)


class SocksClient:
    """One handshake.

    Args:
        host: IP literal, or a name in ASCII, which the proxy resolves.
        login: user and password, each of 1 to MAX_LOGIN bytes; None for none.

    Raises ValueError if the host or the login cannot be sent.

    Attributes:
        greeting: to be sent first.
        rest: what came behind the last answer; None until the proxy has connected.
    """

    def __init__(self, host: str, port: int, login: tuple[bytes, bytes] | None = None) -> None:
        self._request = b"\x05\x01\x00" + addresses.encode(host, port)
        self._login = b""
        if login is not None:
            if not all(len(part) <= MAX_LOGIN for part in login):
                raise ValueError(f"a user or password of more than {MAX_LOGIN} bytes")
            self._login = b"\x01" + b"".join(b"%c%b" % (len(part), part) for part in login)
        self.greeting = b"\x05\x02%c%c" % (NO_LOGIN, LOGIN) if self._login else b"\x05\x01\x00"
        self.rest: bytes | None = None
        self._buffer = b""
        self._step = SocksClient._method  # not bound, which would be a reference cycle

    def feed(self, data: bytes | memoryview) -> bytes:
        """Take `data` from the proxy; returns what to send next, perhaps nothing.

        Raises SocksClientError.
        """
        self._buffer += data
        sent = b""
        while self.rest is None and (answer := self._step(self)) is not None:
            sent += answer
        return sent

    # Each takes one answer; returns what to send, or None while the answer is incomplete.

    def _method(self) -> bytes | None:
        if self._buffer[:1] not in (b"", b"\x05"):
            raise SocksClientError("it does not speak SOCKS5")
        if len(self._buffer) < 2:
            return None
        method = self._buffer[1]
        self._buffer = self._buffer[2:]
        if method == NO_LOGIN:
            self._step = SocksClient._reply
            return self._request
        if method == LOGIN and self._login:
            self._step = SocksClient._status
            return self._login
        raise LoginRefused("no common authentication method")

    def _status(self) -> bytes | None:
        if len(self._buffer) < 2:
            return None
        if self._buffer[1]:
            raise LoginRefused("wrong user or password")
        self._buffer = self._buffer[2:]
        self._step = SocksClient._reply
        return self._request

    def _reply(self) -> bytes | None:
        data = self._buffer
        if data[:1] not in (b"", b"\x05"):
            raise SocksClientError("it does not speak SOCKS5")
        if len(data) >= 2 and data[1]:  # some proxies send no address then
            raise RequestRefused(data[1])
        if len(data) < 4:
            return None
        try:
            address = addresses.decode(data, 3, allow_empty=True)
        except AddressError as error:
            raise SocksClientError(f"it does not speak SOCKS5: {error}") from None
        if address is None:
            return None
        self.rest = data[address[2] :]
        return b""
