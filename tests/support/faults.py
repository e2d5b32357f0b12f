"""A TCP proxy that misbehaves on demand: the hostile network between client and server.

It runs in the caller's event loop. What it does to a connection follows from the seed and the
connection's number alone.

A connection or the whole network can *vanish*: from then on everything that arrives is dropped,
acknowledgements included, as if a cable had been pulled. That is done by the kernel, with a socket
filter that takes no packet (SO_ATTACH_FILTER, Linux, no privileges needed); it also works on the
listening socket, which then does not even answer a SYN.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import ctypes
import fcntl
import random
import socket
import struct
import termios
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

READ = 16 * 1024
LOOPBACK = "127.0.0.1"
# One segment of the loopback. With less the kernel sees no full segment, and on a connection that
# has been used before it delays each acknowledgement by 40 ms, as no real line would.
RECEIVE_BUFFER = 64 * 1024
# This machine as well (on Linux), but not to our dialler, which does without keepalive towards
# 127.0.0.1: no peer can vanish there without the kernel's knowing it.
ELSEWHERE = "127.0.0.2"

# Seconds that a stalled direction stands still: longer than a retransmission, shorter than any
# timeout of a tunnel.
STALL_TIME = 1.0
# Seconds in which what the proxy has sent is acknowledged by peers that read.
QUIET_TIME = 5.0
# Seconds that a half-open connection drops everything before RST is the answer: around the
# time that a client gives a dial (10 s).
HALF_OPEN_TIME = (2.0, 12.0)
# Seconds a cut connection may take to close at both ends before the proxy forgets it.
CUT_TIME = 30.0
# Bytes per second of a slow connection, and for how many bytes it stays slow.
SLOW_RATE = 100_000
# How far tiny segments go: enough for every handshake and some data, not for the day.
TINY_BYTES = 12_000
# Bytes that wait at a narrow line, as in a router; what is on a long one comes on top.
ROUTER_QUEUE = 64 * 1024

HARMLESS = ("none", "tiny", "delay", "rate", "stall")
HARMFUL = ("cut", "reset", "corrupt", "half-open")

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27  # <asm-generic/socket.h>
_DROP_ALL = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))  # BPF: ret #0
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST


def drop_packets(sock: socket.socket) -> None:
    """Let the kernel drop, unanswered, all that arrives for a TCP socket (Linux)."""
    program = struct.pack("HL", 1, ctypes.addressof(_DROP_ALL))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def take_packets(sock: socket.socket) -> None:
    """Undo `drop_packets`; TCP goes on with its next retransmission."""
    with contextlib.suppress(FileNotFoundError):  # it had no filter
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def unacknowledged(sock: socket.socket) -> int:
    """How many bytes that were sent are not in the other side's kernel yet."""
    return int(struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0])


class Fault(NamedTuple):
    """What happens to one connection: `kind`, after `at` bytes of one direction."""

    kind: str = "none"
    at: int = 0
    upstream: bool = True


Plan = Callable[[int], Fault]


def no_faults(number: int) -> Fault:
    return Fault()


def random_faults(seed: int, *, harmful: float, reach: int = 60_000) -> Plan:
    """Faults of all kinds, a share of `harmful` (0 to 1) of those that end a connection.

    They strike in the handshakes, where most of the code is, or within `reach` bytes.
    """

    def plan(number: int) -> Fault:
        rng = random.Random(f"{seed} {number}")
        kind = rng.choice(HARMFUL if rng.random() < harmful else HARMLESS)
        at = rng.randrange(rng.choice((4000, reach)))
        return Fault(kind, at, rng.random() < 0.5)

    return plan


@dataclass(frozen=True)
class Line:
    """What all connections share."""

    delay: float = 0.0  # seconds, one way
    rate: float = 0.0  # bytes per second and direction; 0: unlimited
    loss: float = 0.0  # chance that a piece is lost; TCP delivers it, and all behind it, later
    recovery: float = 0.3  # seconds that this takes: a retransmission timeout


class _Way:
    """One direction of the line: when will a piece that is sent now arrive?"""

    def __init__(self, line: Line, rng: random.Random) -> None:
        self._line = line
        self._rng = rng
        self._free = 0.0
        # Beyond the router's queue: what a line of this length holds.
        self.room = ROUTER_QUEUE + (line.rate or 50e6) * line.delay

    def due(self, now: float, size: int) -> float:
        line = self._line
        start = max(now, self._free)
        if line.rate:
            self._free = start = start + size / line.rate
        if line.loss and self._rng.random() < line.loss:
            start += line.recovery
        return start + line.delay


class _Struck(Exception):
    """The connection's fault has struck."""


class _Connection:
    """Two sockets, and what lies between."""

    def __init__(self, proxy: FaultProxy, near: socket.socket, fault: Fault, number: int) -> None:
        self._proxy = proxy
        self._near = near
        self._far = socket.socket()
        self._fault = fault
        self._rng = random.Random(f"{proxy.seed} {number} pieces")
        self._loop = asyncio.get_running_loop()
        for sock in self.sockets:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if proxy.line.rate:  # the queue shall be ours, not the kernel's megabytes
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, READ)

    @property
    def sockets(self) -> tuple[socket.socket, socket.socket]:
        return self._near, self._far

    async def run(self) -> None:
        near, far = self.sockets
        is_struck = False
        try:
            try:
                await self._loop.sock_connect(far, (LOOPBACK, self._proxy.target))
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(near, far, upstream=True))
                    group.create_task(self._pump(far, near, upstream=False))
            except* OSError:
                self.reset()
            except* _Struck:
                is_struck = True
            if is_struck:  # not in the handler, which would wrap a cancellation in a group
                await self._strike()
        finally:
            near.close()
            far.close()

    def reset(self) -> None:
        """Let closing send RST to both sides."""
        for sock in self.sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    async def _strike(self) -> None:
        kind = self._fault.kind
        if kind == "reset":
            self.reset()
        elif kind == "half-open":
            for sock in self.sockets:
                drop_packets(sock)
            await asyncio.sleep(self._rng.uniform(*HALF_OPEN_TIME))
            self.reset()
        else:
            for sock in self.sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(CUT_TIME):
                await asyncio.gather(*(self._drain(sock) for sock in self.sockets))

    async def _drain(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while await self._loop.sock_recv(sock, READ):
                pass

    async def _pump(self, source: socket.socket, sink: socket.socket, *, upstream: bool) -> None:
        fault = self._fault if self._fault.upstream == upstream else Fault()
        line = self._proxy.line
        if line != Line():
            await self._through_line(source, sink, self._proxy.ways[upstream])
            return
        passed = 0
        while data := await self._loop.sock_recv(source, READ):
            await self._proxy.up.wait()
            if fault.kind != "none" and passed + len(data) > fault.at:
                data = await self._spoil(fault, data, max(0, fault.at - passed), sink, passed)
            passed += len(data)
            await self._loop.sock_sendall(sink, data)
            self._proxy.passed[upstream] += len(data)
        await self._proxy.up.wait()
        sink.shutdown(socket.SHUT_WR)

    async def _spoil(
        self, fault: Fault, data: bytes, at: int, sink: socket.socket, passed: int
    ) -> bytes:
        """Do to `data` at index `at` what the fault asks for; returns what is still to be sent."""
        first = passed <= fault.at
        if first:
            self._proxy.struck[fault.kind] += 1
        match fault.kind:
            case "corrupt":
                if first:
                    flipped = data[at] ^ (1 << self._rng.randrange(8))
                    data = data[:at] + bytes([flipped]) + data[at + 1 :]
            case "stall":
                if first:
                    await asyncio.sleep(STALL_TIME)
            case "delay":
                await asyncio.sleep(self._rng.uniform(0.0, 0.02))
            case "rate":
                await asyncio.sleep(len(data) / SLOW_RATE)
            case "tiny":
                while data and passed < fault.at + TINY_BYTES:
                    size = self._rng.randrange(1, 200)
                    await self._loop.sock_sendall(sink, data[:size])
                    passed += size
                    data = data[size:]
                    await asyncio.sleep(0)
            case _:
                await self._loop.sock_sendall(sink, data[:at])
                raise _Struck
        return data

    async def _through_line(self, source: socket.socket, sink: socket.socket, way: _Way) -> None:
        pieces: collections.deque[tuple[float, bytes]] = collections.deque()
        waiting = 0
        changed = asyncio.Event()

        async def deliver() -> None:
            nonlocal waiting
            last = 0.0
            while True:
                while not pieces:
                    changed.clear()
                    await changed.wait()
                due, data = pieces.popleft()
                last = max(last, due)  # in order, however late the one before
                await asyncio.sleep(max(0.0, last - self._loop.time()))
                await self._proxy.up.wait()
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                await self._loop.sock_sendall(sink, data)
                waiting -= len(data)
                changed.set()

        async with asyncio.TaskGroup() as group:
            group.create_task(deliver())
            while True:
                while waiting > way.room:
                    changed.clear()
                    await changed.wait()
                data = await self._loop.sock_recv(source, READ // 4)
                waiting += len(data)
                pieces.append((way.due(self._loop.time(), len(data)), data))
                changed.set()
                if not data:
                    break


class FaultProxy:
    """Listens on `port` of loopback and carries every connection to port `target`.

    Args:
        target: where to.
        plan: the fault of each connection, by its number.
        line: delay, bandwidth and loss for all of them; connections have no faults then.
        seed: for what is random.
        host: the address to listen on.
    """

    def __init__(
        self, target: int, plan: Plan = no_faults, *, line: Line | None = None, seed: int = 0,
        host: str = LOOPBACK,
    ) -> None:
        self.target = target
        self.seed = seed
        self.line = line or Line()
        self.ways = [_Way(self.line, random.Random(f"{seed} {way}")) for way in range(2)]
        self.struck: collections.Counter[str] = collections.Counter()  # faults that happened
        self.count = 0  # connections so far
        self.passed = [0, 0]  # bytes down and up so far, without a line
        self.up = asyncio.Event()
        self.up.set()
        self._plan = plan
        self._connections: dict[_Connection, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.listener = socket.create_server((host, 0), backlog=1024)
        self.listener.setblocking(False)
        self.port: int = self.listener.getsockname()[1]

    @property
    def harm(self) -> int:
        """How many connections were spoiled so far."""
        return sum(self.struck[kind] for kind in HARMFUL)

    @property
    def open(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    async def __aenter__(self) -> Self:
        # Not with sock_accept(), which prints a traceback when it is cancelled while a
        # connection comes in, as of CPython 3.11.
        asyncio.get_running_loop().add_reader(self.listener, self._accept)
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self.listener)
        self.listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in self._connections:  # those whose task had not even begun
            for sock in connection.sockets:
                sock.close()

    async def vanish(self) -> None:
        """The network is gone: nothing arrives any more, and nothing is said about that."""
        self.up.clear()
        # What our kernel has sent must be acknowledged first: it would send it again and again, and
        # who receives that takes us for alive.
        async with asyncio.timeout(QUIET_TIME):
            while any(unacknowledged(sock) for sock in self._sockets()[1:]):
                await asyncio.sleep(0.01)
        for sock in self._sockets():
            drop_packets(sock)

    def come_back(self) -> None:
        """The network is there again; connections that outlived its absence go on."""
        for sock in self._sockets():
            take_packets(sock)
        self.up.set()

    def reset_all(self) -> None:
        """Reset all connections."""
        for connection, task in self._connections.items():
            connection.reset()
            task.cancel()

    def _sockets(self) -> list[socket.socket]:
        found = [self.listener]
        for connection in self._connections:
            found += connection.sockets
        return found

    def _own(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _accept(self) -> None:
        try:
            sock, _ = self.listener.accept()
        except BlockingIOError:
            return
        connection = _Connection(self, sock, self._plan(self.count), self.count)
        self.count += 1
        self._connections[connection] = task = asyncio.create_task(self._carry(connection))
        self._own(task)

    async def _carry(self, connection: _Connection) -> None:
        try:
            await connection.run()
        except TimeoutError:
            pass
        finally:
            del self._connections[connection]
