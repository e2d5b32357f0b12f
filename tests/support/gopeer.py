"""What the Go programs of the original say on the wire, for peers in the test's hands.

This shares no code with the package under test, so that a mistake cannot cancel itself out.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import ssl
import struct

from tests.support.certs import Certs
from tests.support.contexts import trusting_context
from tests.support.tunnels import Tcp, connect

SYN, FIN, PSH, NOP = 0, 1, 2, 3
BINARY, CLOSE, PING, PONG = 2, 8, 9, 10
CLOSE_1000 = (1000).to_bytes(2, "big")

# io.CopyBuffer of the original reads so much at once; smux and WebSocket frames follow from it.
COPY_SIZE = 16384


class Tls(Tcp):
    """TLS by hand over a TCP connection.

    Reading gives b"" after close_notify and raises ssl.SSLEOFError after a bare FIN.
    """

    def __init__(
        self, tcp: Tcp, context: ssl.SSLContext, *, server_side: bool = False, name: str = ""
    ) -> None:
        super().__init__(tcp.sock)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self._in, self._out, server_side=server_side, server_hostname=name or None
        )
        self._done = False

    async def handshake(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._more()
            except ssl.SSLError:
                await self._flush()
                raise
            else:
                return await self._flush()

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self.tls.write(view[:COPY_SIZE]) :]
        await self._flush()

    async def _receive(self, size: int) -> bytes:
        while not self._done:
            try:
                return self.tls.read(size)
            except ssl.SSLWantReadError:
                await self._more()
            except ssl.SSLZeroReturnError:
                self._done = True
            except ssl.SSLError as error:
                if error.reason == "UNEXPECTED_EOF_WHILE_READING":  # early CPython 3.11
                    raise ssl.SSLEOFError(*error.args) from None
                raise
        return b""

    async def finish(self) -> None:
        """Send close_notify."""
        self._shutdown()
        await self._flush()

    def close(self) -> None:
        """As Go closes: close_notify if it fits, and the descriptor, unread input or not."""
        if self.sock.fileno() >= 0:
            self._shutdown()
            with contextlib.suppress(OSError):
                self.sock.send(self._out.read())
            self.sock.close()

    def _shutdown(self) -> None:
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()

    async def _more(self) -> None:
        data = await self._loop.sock_recv(self.sock, 65536)
        if data:
            self._in.write(data)
        else:
            self._in.write_eof()

    async def _flush(self) -> None:
        if data := self._out.read():
            await self._loop.sock_sendall(self.sock, data)


async def tls_connect(port: int, certs: Certs, *, alpn: list[str] | None = None) -> Tls:
    """Connect as the Go client does: verified, with SNI, without ALPN unless given."""
    context = trusting_context(certs.ca)
    if alpn:
        context.set_alpn_protocols(alpn)
    tls = Tls(await connect(port), context, name=certs.name)
    try:
        await tls.handshake()
    except BaseException:
        tls.close()
        raise
    return tls


def ws_frame(opcode: int, payload: bytes, *, client: bool) -> bytes:
    size = len(payload)
    if size <= 125:
        head, length = size, b""
    elif size <= 0xFFFF:
        head, length = 126, size.to_bytes(2, "big")
    else:
        head, length = 127, size.to_bytes(8, "big")
    if not client:
        return bytes((0x80 | opcode, head)) + length + payload
    key = os.urandom(4)
    return bytes((0x80 | opcode, 0x80 | head)) + length + key + masked(payload, key)


def masked(payload: bytes, key: bytes) -> bytes:
    pad = int.from_bytes((key * (len(payload) // 4 + 1))[: len(payload)], "big")
    return (int.from_bytes(payload, "big") ^ pad).to_bytes(len(payload), "big")


def accept_for(key: str) -> str:
    digest = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return base64.b64encode(digest).decode()


def upgrade_request(host: str, path: str = "/", protocol: str = "smux_off", **more: str) -> bytes:
    """The Go client's request; `more` replaces headers, written with _ for -."""
    headers = {
        "Host": host,
        "User-Agent": "Go-http-client/1.1",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec-WebSocket-Protocol": protocol,
        "Sec-WebSocket-Version": "13",
        "Upgrade": "websocket",
    } | {name.replace("_", "-"): value for name, value in more.items()}
    lines = [f"GET {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items() if value]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


class WebSocket(Tcp):
    """The bytes in binary messages, on a connection that was upgraded."""

    def __init__(self, below: Tcp, *, client: bool) -> None:
        super().__init__(below.sock)
        self.below = below
        self._client = client
        self._sending = asyncio.Lock()  # one writes data while the other answers a ping
        self.close_code: bytes | None = None  # payload of the peer's close frame

    async def frame(self) -> tuple[int, bytes]:
        """The next frame, unmasked; (CLOSE, b"") also stands for an end without one."""
        head = await self.below.exactly(2)
        if len(head) < 2:
            return CLOSE, b""
        assert head[0] & 0xF0 == 0x80, "neither fragments nor reserved bits are expected"
        assert bool(head[1] & 0x80) != self._client, "client frames are masked, server frames not"
        size = head[1] & 0x7F
        if size >= 126:
            size = int.from_bytes(await self.below.exactly(2 if size == 126 else 8), "big")
        key = await self.below.exactly(4) if head[1] & 0x80 else b"\0\0\0\0"
        return head[0] & 0x0F, masked(await self.below.exactly(size), key)

    async def _receive(self, size: int) -> bytes:
        while True:
            opcode, payload = await self.frame()
            if opcode == CLOSE:
                self.close_code = payload
                return b""
            if opcode == BINARY and payload:
                self._ahead = payload[size:]
                return payload[:size]
            if opcode == PING:
                await self.send(payload, PONG)

    async def send(self, data: bytes, opcode: int = BINARY) -> None:
        async with self._sending:
            await self.below.send(ws_frame(opcode, data, client=self._client))

    async def finish(self) -> None:
        await self.send(CLOSE_1000, CLOSE)

    def close(self) -> None:
        """Close 1000 and all below, waiting for nothing."""
        if self.sock.fileno() >= 0:
            below = self.below
            if isinstance(below, Tls):
                with contextlib.suppress(ssl.SSLError):
                    below.tls.write(ws_frame(CLOSE, CLOSE_1000, client=self._client))
            below.close()


async def ws_connect(port: int, certs: Certs, protocol: str, path: str = "/") -> WebSocket:
    """Connect and upgrade as the Go client does."""
    tls = await tls_connect(port, certs)
    await tls.send(upgrade_request(certs.name, path, protocol))
    head = await tls.until(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n"), head
    return WebSocket(tls, client=True)


def smux_frame(command: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack("<BBHI", 1, command, len(payload), stream) + payload


async def smux_read(below: Tcp) -> tuple[int, int, bytes] | None:
    """The next frame `(command, stream, payload)`; None at the end of the session."""
    head = await below.exactly(8)
    if len(head) < 8:
        return None
    version, command, size, stream = struct.unpack("<BBHI", head)
    assert version == 1
    assert command in (SYN, FIN, PSH, NOP)
    return command, stream, await below.exactly(size)


async def peer_connect(mode: str, port: int, certs: Certs) -> Tcp:
    """The connection of a Go client in `mode`: the tunnel itself, or what carries its frames."""
    if "wss" in mode:
        return await ws_connect(port, certs, "smux_on" if "mux" in mode else "smux_off")
    return await tls_connect(port, certs)
