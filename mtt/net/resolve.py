"""From host names to socket addresses: through the system, or by asking one DNS server.

Answers are cached for a while, and lookups of the same name that happen at the same time
share one question; both matter when a browser opens thirty connections in one moment.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from itertools import zip_longest
from time import monotonic
from typing import Any

from mtt.address import host_port
from mtt.errors import MttError, NetworkError, describe
from mtt.outcome import Outcome
from mtt.wire import dns

# The system's resolver blocks a thread per name, for half a minute if the name's servers are dead.
# asyncio has as few as five threads, so five users with dead destinations would keep all others
# waiting. Threads that nobody needs are not started.
RESOLVER_THREADS = 64

LOOKUP_TIMEOUT = 5.0  # seconds; what libc waits for one DNS server, half of a dial's deadline
UDP_WAITS = (1.0, 1.5, 2.5)  # seconds after each of three sends, together LOOKUP_TIMEOUT
# How long the A answer may wait for the AAAA answer or the other way round (RFC 8305, 3): some
# servers never answer AAAA queries, and nobody should wait out the whole timeout for them.
RESOLUTION_DELAY = 0.05
# Datagrams which are no answer to our question and are skipped. Guessing an id takes thousands
# (RFC 5452), and a flood must not keep the loop busy.
MAX_STRAYS = 32

CACHE_SIZE = 256  # names; a tunnel uses one or two, a proxy the working set of a few users
SYSTEM_TTL = 30.0  # seconds; getaddrinfo tells no TTL, and the system may cache by itself
MIN_TTL = 5.0  # seconds; a TTL of 0 still serves the connections that one page load opens
MAX_TTL = 3600.0  # seconds; a server that moved is found again after an hour at the latest

Protect = Callable[[socket.socket], Awaitable[None]]
Address = tuple[int, tuple[Any, ...]]  # address family, and what connect() and bind() take

# What the cache holds: addresses with port 0.
_Addresses = list[Address]


def use_threads() -> None:
    """Let the running loop ask the system for many names at a time: for servers of many users."""
    from concurrent.futures import ThreadPoolExecutor  # not for those who do without

    threads = ThreadPoolExecutor(RESOLVER_THREADS, "resolver")
    asyncio.get_running_loop().set_default_executor(threads)


def literal(host: str, port: int) -> Address | None:
    """The address that an IP literal stands for (IPv6 with a zone, too), None for a name.

    Raises NetworkError if the zone is no interface of this machine.
    """
    try:
        socket.inet_pton(socket.AF_INET, host)
        return socket.AF_INET, (host, port)
    except (OSError, ValueError):
        pass
    ip, _, zone = host.partition("%")
    try:
        # There and back: of the many spellings of one address only one comes out.
        ip = socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, ip))
    except (OSError, ValueError):
        return None
    if not zone:
        return socket.AF_INET6, (ip, port, 0, 0)
    try:
        scope = int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
    except OSError:
        raise NetworkError(
            f"{host}: this machine has no interface {zone}", outcome=Outcome.HOST_UNREACHABLE
        ) from None
    return socket.AF_INET6, (ip, port, 0, scope)


def interleave(addresses: Iterable[Address]) -> list[Address]:
    """Let the address families take turns, in the given order otherwise (RFC 8305, 4)."""
    families: dict[int, list[Address]] = {}
    for address in dict.fromkeys(addresses):
        families.setdefault(address[0], []).append(address)
    turns = zip_longest(*families.values())
    return [address for turn in turns for address in turn if address is not None]


_LOOPBACK: _Addresses = [
    (socket.AF_INET6, ("::1", 0, 0, 0)),
    (socket.AF_INET, ("127.0.0.1", 0)),
]


class _Lookup:
    """A running question and how many wait for its answer."""

    def __init__(self, task: asyncio.Task[_Addresses]) -> None:
        self.task = task
        self.waiters = 0


class Resolver:
    """Finds the addresses of hosts; belongs to one event loop and needs no closing.

    `dns_server` is the IP literal and the port of a DNS server to ask instead of the system.
    `protect` is awaited with each socket towards that server before it connects.
    Raises ValueError if the server is not given by an IP literal.
    """

    def __init__(
        self, dns_server: tuple[str, int] | None = None, protect: Protect | None = None
    ) -> None:
        self._server: Address | None = None
        self._who = "the system's resolver"
        if dns_server is not None:
            self._server = literal(*dns_server)
            if self._server is None:
                raise ValueError(f"{dns_server[0]!r} is not an IP address")
            self._who = f"DNS server {host_port(*dns_server)}"
        self._protect = protect
        self._cache: dict[str, tuple[float, _Addresses]] = {}  # expiry, addresses
        self._lookups: dict[str, _Lookup] = {}

    async def resolve(self, host: str, port: int) -> list[Address]:
        """The addresses of `host`, at least one, IPv6 and IPv4 in turns.

        An empty host is this machine, as in Go. Raises NetworkError, after LOOKUP_TIMEOUT at
        the latest, naming the host, who was asked, and the reason.
        """
        address = literal(host, port)
        if address is not None:
            return [address]
        addresses = self._known(host.lower())
        if addresses is None:
            addresses = await self._shared_lookup(host.lower())
        return [(family, (rest[0], port, *rest[2:])) for family, rest in addresses]

    def forget(self, host: str) -> None:
        """Drop what the cache says about `host`: its addresses turned out to be of no use."""
        self._cache.pop(host.lower(), None)

    def _known(self, host: str) -> _Addresses | None:
        """Addresses that need no question: of this machine (RFC 6761, 6.3) or in the cache."""
        if not host:
            return _LOOPBACK
        name = host.removesuffix(".")
        if self._server is not None and (name == "localhost" or name.endswith(".localhost")):
            return _LOOPBACK
        entry = self._cache.get(host)
        if entry is None:
            return None
        if entry[0] <= monotonic():
            del self._cache[host]
            return None
        return entry[1]

    def _remember(self, host: str, addresses: _Addresses, ttl: float) -> None:
        self._cache.pop(host, None)
        if len(self._cache) >= CACHE_SIZE:
            del self._cache[next(iter(self._cache))]  # the oldest
        self._cache[host] = monotonic() + ttl, addresses

    async def _shared_lookup(self, host: str) -> _Addresses:
        """Join the running lookup of this host or start it; the last one to leave stops it."""
        lookup = self._lookups.get(host)
        if lookup is None:
            lookup = self._lookups[host] = _Lookup(asyncio.create_task(self._lookup(host)))
        lookup.waiters += 1
        try:
            return await asyncio.shield(lookup.task)
        finally:
            lookup.waiters -= 1
            if not lookup.waiters:
                # Before anything is awaited: nobody may join a lookup that is being stopped.
                del self._lookups[host]
                await _stop([lookup.task])

    async def _lookup(self, host: str) -> _Addresses:
        if self._server is None:
            addresses, ttl = await self._ask_system(host), SYSTEM_TTL
        else:
            addresses, ttl = await self._ask_server(host)
        addresses = interleave(addresses)
        self._remember(host, addresses, ttl)
        return addresses

    def _failure(self, host: str, reason: str) -> NetworkError:
        return NetworkError(
            f"cannot resolve {host}: {self._who}: {reason}", outcome=Outcome.HOST_UNREACHABLE
        )

    async def _ask_system(self, host: str) -> _Addresses:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT):
                infos = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except TimeoutError:
            raise self._failure(host, f"no answer within {LOOKUP_TIMEOUT:g} s") from None
        except socket.gaierror as error:
            raise self._failure(host, str(error.strerror).lower()) from None
        except ValueError:  # UnicodeError: the name does not pass the idna codec
            raise self._failure(host, "this is not a host name") from None
        except OSError as error:
            raise self._failure(host, describe(error)) from None
        addresses: _Addresses = [
            (family, (str(address[0]).partition("%")[0], *address[1:]))
            for family, _, _, _, address in infos
            if family in (socket.AF_INET, socket.AF_INET6)
        ]
        if not addresses:
            raise self._failure(host, "the name has no address")
        return addresses[: dns.MAX_ADDRESSES]

    async def _ask_server(self, host: str) -> tuple[_Addresses, float]:
        """Ask for AAAA and A at once; the addresses, and for how many seconds they hold."""
        deadline = monotonic() + LOOKUP_TIMEOUT
        tasks = [
            asyncio.create_task(self._query(host, qtype)) for qtype in (dns.TYPE_AAAA, dns.TYPE_A)
        ]
        try:
            done, pending = await asyncio.wait(
                tasks, timeout=LOOKUP_TIMEOUT, return_when=asyncio.FIRST_COMPLETED
            )
            if pending:
                useful = any(task.exception() is None and task.result()[0] for task in done)
                wait = deadline - monotonic()
                await asyncio.wait(pending, timeout=min(wait, RESOLUTION_DELAY) if useful else wait)
        finally:
            await _stop(tasks)

        addresses: _Addresses = []
        ttl = MAX_TTL
        reasons = []
        for task in tasks:
            try:
                texts, seconds = task.result()
            except asyncio.CancelledError:  # by _stop
                ttl = min(ttl, SYSTEM_TTL)  # ask for the missing half again before long
                reasons.append(f"no answer within {LOOKUP_TIMEOUT:g} s")
            except (OSError, MttError, ValueError) as error:  # ValueError: no name for DNS
                reasons.append(describe(error))
            else:
                if texts:
                    ttl = min(ttl, seconds)
                    addresses += [found for text in texts if (found := literal(text, 0))]
                else:
                    reasons.append("the name has no address")
        if not addresses:
            raise self._failure(host, "; ".join(dict.fromkeys(reasons)))
        return addresses, max(ttl, MIN_TTL)

    async def _query(self, host: str, qtype: int) -> tuple[tuple[str, ...], int]:
        """One question to the DNS server: IP literals, maybe none, and their TTL in seconds.

        Raises OSError, NetworkError, DnsError (RcodeError when the server says no), or ValueError
        for a name that DNS cannot carry.
        """
        assert self._server is not None
        query = dns.build_query(int.from_bytes(os.urandom(2)), host, qtype)
        addresses, ttl, truncated = await self._query_udp(self._server, query)
        if truncated:
            addresses, ttl, truncated = await self._query_tcp(self._server, query)
            if truncated:
                raise NetworkError("its answer is truncated even over TCP")
        return addresses, ttl

    async def _query_udp(self, server: Address, query: bytes) -> dns.Answer:
        loop = asyncio.get_running_loop()
        with socket.socket(server[0], socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            if self._protect is not None:
                await self._protect(sock)
            # A fresh random port for each question; connected, so that the kernel drops what
            # others send and reports it when nobody listens there. This never blocks.
            sock.connect(server[1])
            strays = 0
            for wait in UDP_WAITS:
                # A full send queue is a lost datagram like any other: the next try may get out.
                with suppress(BlockingIOError):
                    sock.send(query)
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        while strays < MAX_STRAYS:
                            try:
                                return dns.parse_response(query, await loop.sock_recv(sock, 4096))
                            except dns.RcodeError:
                                raise
                            except dns.DnsError:
                                strays += 1
                if strays >= MAX_STRAYS:
                    raise NetworkError("it sends answers to questions that nobody asked")
        raise NetworkError(f"no answer within {LOOKUP_TIMEOUT:g} s")

    async def _query_tcp(self, server: Address, query: bytes) -> dns.Answer:
        """The same over TCP, where a length precedes each message (RFC 1035, 4.2.2)."""
        loop = asyncio.get_running_loop()
        with socket.socket(server[0], socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            if self._protect is not None:
                await self._protect(sock)
            await loop.sock_connect(sock, server[1])
            await loop.sock_sendall(sock, len(query).to_bytes(2, "big") + query)
            length = int.from_bytes(await _receive_exactly(sock, 2), "big")
            return dns.parse_response(query, await _receive_exactly(sock, length))


async def _receive_exactly(sock: socket.socket, count: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < count:
        piece = await loop.sock_recv(sock, count - len(data))
        if not piece:
            raise NetworkError("it closed the connection without an answer")
        data += piece
    return data


async def _stop(tasks: list[asyncio.Task[Any]]) -> None:
    """Cancel the tasks that still run and wait until their sockets are closed."""
    running = [task for task in tasks if not task.done()]
    for task in tasks:
        # Those that are done, too: asyncio then takes it that nobody cares for their failure.
        task.cancel()
    if running:
        await asyncio.wait(running)
