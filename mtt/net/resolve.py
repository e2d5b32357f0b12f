"""Resolves host names to socket addresses, with the system's resolver or one DNS server.

Answers are cached, and concurrent lookups of the same name share one query. Both matter when a
browser opens thirty connections at once.
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
# asyncio may have only five threads, so five users with dead destinations would block all others.
# Threads are started only as needed.
RESOLVER_THREADS = 64

LOOKUP_TIMEOUT = 5.0  # seconds; what libc waits for one DNS server, half of a dial's deadline
UDP_WAITS = (1.0, 1.5, 2.5)  # seconds after each of three sends, together LOOKUP_TIMEOUT
# Seconds that the A answer may wait for the AAAA answer, or vice versa (RFC 8305, 3): some servers
# never answer AAAA queries, and lookups should not wait the whole timeout for them.
RESOLUTION_DELAY = 0.05
# Datagrams to skip that do not answer the query. Guessing an id takes thousands (RFC 5452), and a
# flood must not keep the event loop busy.
MAX_STRAYS = 32

CACHE_SIZE = 256  # names; a tunnel uses one or two, a proxy the working set of a few users
SYSTEM_TTL = 30.0  # seconds; getaddrinfo reports no TTL, and the system may cache as well
MIN_TTL = 5.0  # seconds; a TTL of 0 must still serve all connections of one page load
MAX_TTL = 3600.0  # seconds; a server that moved is found again within an hour

Protect = Callable[[socket.socket], Awaitable[None]]
Address = tuple[int, tuple[Any, ...]]  # address family, and the argument of connect() and bind()

# As cached: addresses with port 0.
_Addresses = list[Address]


def use_threads() -> None:
    """Allow many concurrent system lookups in the running loop, for servers with many users."""
    from concurrent.futures import ThreadPoolExecutor  # imported only if needed

    threads = ThreadPoolExecutor(RESOLVER_THREADS, "resolver")
    asyncio.get_running_loop().set_default_executor(threads)


def literal(host: str, port: int) -> Address | None:
    """The address of an IP literal (also IPv6 with a zone); None for a name.

    Raises NetworkError if the zone is not an interface of this machine.
    """
    try:
        socket.inet_pton(socket.AF_INET, host)
        return socket.AF_INET, (host, port)
    except (OSError, ValueError):
        pass
    ip, _, zone = host.partition("%")
    try:
        # Convert to binary and back, for the canonical spelling of the address.
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
    """Alternate the address families, otherwise in the given order (RFC 8305, 4)."""
    families: dict[int, list[Address]] = {}
    for address in dict.fromkeys(addresses):
        families.setdefault(address[0], []).append(address)
    turns = zip_longest(*families.values())
    return [address for turn in turns for address in turn if address is not None]


_LOOPBACK: _Addresses = [(socket.AF_INET6, ("::1", 0, 0, 0)), (socket.AF_INET, ("127.0.0.1", 0))]


class _Lookup:
    """A running query and the number of callers that wait for it."""

    def __init__(self, task: asyncio.Task[_Addresses]) -> None:
        self.task = task
        self.waiters = 0


class Resolver:
    """Resolves host names; belongs to one event loop and needs no closing.

    `dns_server` is the address of a DNS server to query instead of the system; raises ValueError if
    it is not an IP literal. `protect` is awaited with each socket to it before it connects.
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
        """The addresses of `host`, at least one, IPv6 and IPv4 alternating.

        An empty host is this machine, as in Go. Raises NetworkError, at the latest after
        LOOKUP_TIMEOUT, with the host, the resolver, and the reason.
        """
        address = literal(host, port)
        if address is not None:
            return [address]
        addresses = self._known(host.lower())
        if addresses is None:
            addresses = await self._shared_lookup(host.lower())
        return [(family, (rest[0], port, *rest[2:])) for family, rest in addresses]

    def forget(self, host: str) -> None:
        """Remove `host` from the cache, because its addresses did not work."""
        self._cache.pop(host.lower(), None)

    def _known(self, host: str) -> _Addresses | None:
        """Addresses known without a query: of this machine (RFC 6761, 6.3) or cached."""
        if not host:
            return _LOOPBACK
        name = host.removesuffix(".")
        if self._server is not None and (name == "localhost" or name.endswith(".localhost")):
            return _LOOPBACK
        expiry, addresses = self._cache.get(host, (0.0, None))
        return addresses if expiry > monotonic() else None

    async def _shared_lookup(self, host: str) -> _Addresses:
        """Join the running lookup of this host or start one; the last caller to leave stops it."""
        lookup = self._lookups.get(host)
        if lookup is None:
            lookup = self._lookups[host] = _Lookup(asyncio.create_task(self._lookup(host)))
        lookup.waiters += 1
        try:
            return await asyncio.shield(lookup.task)
        finally:
            lookup.waiters -= 1
            if not lookup.waiters:
                # Before any await: no caller may join a lookup that is being stopped.
                del self._lookups[host]
                await _stop([lookup.task])

    async def _lookup(self, host: str) -> _Addresses:
        if self._server is None:
            addresses, ttl = await self._ask_system(host), SYSTEM_TTL
        else:
            addresses, ttl = await self._ask_server(host)
        addresses = interleave(addresses)
        self._cache.pop(host, None)
        if len(self._cache) >= CACHE_SIZE:
            del self._cache[next(iter(self._cache))]  # the oldest
        self._cache[host] = monotonic() + ttl, addresses
        return addresses

    def _failure(self, host: str, reason: str) -> NetworkError:
        return NetworkError(
            f"cannot resolve {host}: {self._who}: {reason}", outcome=Outcome.UNRESOLVABLE
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
        except ValueError:  # UnicodeError from the idna codec
            raise self._failure(host, "not a valid host name") from None
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
        """Query AAAA and A concurrently; returns the addresses and their TTL in seconds."""
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
                ttl = min(ttl, SYSTEM_TTL)  # so that the missing half is queried again soon
                reasons.append(f"no answer within {LOOKUP_TIMEOUT:g} s")
            except (OSError, MttError, ValueError) as error:  # ValueError: not a DNS name
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
        """Query the DNS server: IP literals, possibly none, and their TTL in seconds.

        Raises OSError, NetworkError, DnsError (RcodeError if the server reports an error), or
        ValueError for a name that DNS cannot encode.
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
            # A new random port for each query. The socket is connected, so that the kernel drops
            # datagrams of other senders and reports a closed port. This never blocks.
            sock.connect(server[1])
            strays = 0
            for wait in UDP_WAITS:
                # A full send queue loses the datagram, as the network may; the next try may work.
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
                    raise NetworkError("it sends answers to other queries")
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
        # Also those that are done: otherwise asyncio logs that their exceptions were not retrieved.
        task.cancel()
    if running:
        await asyncio.wait(running)
