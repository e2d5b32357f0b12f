"""Applications and destinations whose data says by itself whether it is right and complete.

The application begins with a header: how many bytes it sends, how many it wants back, and a seed
that both streams follow from. So each side knows for every byte what it must be, and for the end
whether it came too early. Both end their sending with FIN (half-close): a clean end of data must
mean that it is complete, and everything that is cut must end with a reset.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import random
import socket
import struct
from typing import NamedTuple, Self

from soak.report import Broken

LOOPBACK = "127.0.0.1"
READ = 64 * 1024

# Magic, seed, bytes up, bytes down, whether the reply waits for the end of the upload, and whether
# it is cut.
_HEADER = struct.Struct(">4sIII??2x")
_MAGIC = b"SOAK"

# A prime, so that no buffer or frame size divides it: a lost or doubled piece shows.
_PERIOD = 65521
_BLOCK = random.Random(1).randbytes(_PERIOD) * 3
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST


def pattern(seed: int, at: int, size: int) -> bytes:
    """`size` bytes, at most READ, at position `at` of the stream with this seed."""
    start = (seed * 7919 + at) % _PERIOD
    return _BLOCK[start : start + size]


class Talk(NamedTuple):
    """What one application does."""

    seed: int
    up: int
    down: int
    in_turn: bool = False  # the reply comes after the end of the upload
    quits: bool = False  # the application resets its connection half-way through the upload
    is_cut: bool = False  # the destination resets its connection half-way through the reply

    @property
    def ends_early(self) -> bool:
        return self.quits or self.is_cut


class CutShort(Broken):
    """A stream has ended in order, but too early."""


class Stream:
    """One end of a connection, sending one stream of the pattern and checking the other."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._loop = asyncio.get_running_loop()
        self.longest_pause = 0.0  # seconds without a byte while receiving
        self.received = 0

    async def read(self, size: int) -> bytes:
        return await self._loop.sock_recv(self.sock, size)

    async def write(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.sock, data)

    async def opened(self, said: bytes, answer: bytes) -> bool:
        """Whether what is `said` to a proxy is answered so."""
        heard = b""
        if said:
            await self.write(said)
        while len(heard) < len(answer) and (data := await self.read(len(answer) - len(heard))):
            heard += data
        return heard == answer

    async def send(self, seed: int, size: int, at: int = 0) -> None:
        while at < size:
            piece = pattern(seed, at, min(READ, size - at))
            await self.write(piece)
            at += len(piece)

    async def check(self, seed: int, size: int, who: str) -> None:
        """Read to the end. Raises Broken at the first wrong byte and if the end comes early."""
        at = 0
        last = self._loop.time()
        while data := await self.read(READ):
            now = self._loop.time()
            self.longest_pause = max(self.longest_pause, now - last)
            last = now
            if at + len(data) > size or data != pattern(seed, at, len(data)):
                raise Broken(f"{who} got wrong bytes at {at} of {size} (seed {seed})")
            at += len(data)
            self.received = at
        if at != size:
            raise CutShort(f"{who} got a clean end after {at} of {size} bytes (seed {seed})")


async def apply(port: int, talk: Talk, opening: tuple[bytes, bytes] = (b"", b"")) -> Stream | None:
    """Be the application; None if the connection failed, which it was told by an error.

    `opening`: what it says to a proxy first, and what it is answered if that works.

    Raises Broken.
    """
    sock = socket.socket()
    sock.setblocking(False)
    with contextlib.closing(sock):
        try:
            await asyncio.get_running_loop().sock_connect(sock, (LOOPBACK, port))
            stream = Stream(sock)
            if not await stream.opened(*opening):
                return None
            header = _HEADER.pack(
                _MAGIC, talk.seed, talk.up, talk.down, talk.in_turn, talk.is_cut
            )
            await stream.write(header)
            if talk.quits:
                await stream.send(talk.seed, talk.up // 2)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                return None
            checking = asyncio.ensure_future(
                stream.check(talk.seed + 1, talk.down, "an application")
            )
            try:
                await stream.send(talk.seed, talk.up)
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                # The reset that this was answered with is seen once only. A reply that was complete
                # before is not known to be; an incomplete one is still an error.
                checking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await checking
                return None
            except BaseException:
                checking.cancel()
                raise
            await checking
            return stream
        except OSError:
            return None


class Destination:
    """Accepts all connections and answers; errors are kept for a later check."""

    def __init__(self) -> None:
        self._listener = socket.create_server((LOOPBACK, 0), backlog=4096)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.broken: list[Broken] = []
        # Ports of peers that were killed: the kernel ends their connections in order.
        self.killed: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def look(self) -> None:
        """Raise the first Broken there was."""
        if self.broken:
            raise self.broken[0]

    async def __aenter__(self) -> Self:
        # Not with sock_accept(): in CPython 3.11 it prints a traceback when it is cancelled while a
        # connection arrives.
        asyncio.get_running_loop().add_reader(self._listener, self._accept)
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self) -> None:
        try:
            sock, (_, peer) = self._listener.accept()
        except BlockingIOError:
            return
        sock.setblocking(False)
        task = asyncio.create_task(self._handle(sock, peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, sock: socket.socket, peer: int) -> None:
        with contextlib.closing(sock):
            try:
                await self._answer(Stream(sock))
            except OSError:
                self.outcomes["failed"] += 1
            except CutShort as broken:
                self.outcomes["cut short"] += 1
                if peer not in self.killed:
                    self.broken.append(broken)
            except Broken as broken:
                self.outcomes["broken"] += 1
                self.broken.append(broken)
            else:
                self.outcomes["complete"] += 1

    async def _answer(self, stream: Stream) -> None:
        header = b""
        while len(header) < _HEADER.size:
            data = await stream.read(_HEADER.size - len(header))
            if not data:
                raise CutShort(f"a destination got a clean end within the header ({header!r})")
            header += data
        magic, seed, up, down, in_turn, is_cut = _HEADER.unpack(header)
        if magic != _MAGIC:
            raise Broken(f"a destination got a wrong header ({header!r})")
        if in_turn:
            await stream.check(seed, up, "a destination")
        if is_cut:
            await stream.send(seed + 1, down // 2)
            stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            return
        if in_turn:
            await stream.send(seed + 1, down)
            stream.sock.shutdown(socket.SHUT_WR)
            return
        checking = asyncio.ensure_future(stream.check(seed, up, "a destination"))
        try:
            await stream.send(seed + 1, down)
            stream.sock.shutdown(socket.SHUT_WR)
            await checking
        finally:
            checking.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError, Broken):
                await checking
