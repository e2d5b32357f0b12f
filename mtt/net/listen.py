"""Listening sockets: TCP and UDP on every address of an endpoint, and unix sockets.

Options for accepted connections are set on the listening socket, from which they inherit them.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterable
from typing import Any

from mtt.address import Endpoint, host_port
from mtt.errors import NetworkError, StartError, describe
from mtt.net.accept import Acceptor, ProtocolFactory
from mtt.net.resolve import Address, Resolver, literal
from mtt.net.sockets import BACKLOG, tune
from mtt.net.unix import bind_unix, start_error

log = logging.getLogger(__name__)

# Connections with data in the SYN that are not established yet; further ones make an ordinary
# handshake. They take kernel memory before their address is verified, so this is below BACKLOG.
FAST_OPEN_QUEUE = 256
_FAST_OPEN_SYSCTL = "/proc/sys/net/ipv4/tcp_fastopen"
_FAST_OPEN_SERVER = 2  # the bit that permits it for listeners

# Attempts to find a port for port 0 that is free on all hosts.
PORT_TRIES = 16

_ALL_IPV6, _ALL_IPV4 = "::", "0.0.0.0"


class Listener:
    """Open listening sockets; `addresses` describes them for the log, with the actual port."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self._sockets: list[socket.socket] = []
        self._udp: list[socket.socket] = []
        self._acceptor: Acceptor | None = None
        self._unix_file: tuple[str, int, int] | None = None  # absolute path, device, inode

    @property
    def is_open(self) -> bool:
        return bool(self._sockets)

    @property
    def descriptors(self) -> list[int]:
        return [sock.fileno() for sock in self._sockets]

    def close(self) -> None:
        """Stop listening, but keep connections. Removes the unix socket file if it is its own."""
        if self._unix_file is not None:
            # Before the socket stops answering: another program may then take the path.
            path, device, inode = self._unix_file
            self._unix_file = None
            with contextlib.suppress(OSError):
                status = os.lstat(path)
                if (status.st_dev, status.st_ino) == (device, inode):
                    os.unlink(path)
        if self._acceptor is not None:
            self._acceptor.close()
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
        self.close_udp()

    def pause(self) -> None:
        """Stop accepting, without closing; `serve()` continues. Connections wait in the queue."""
        if self._acceptor is not None:
            self._acceptor.stop()
            self._acceptor = None

    def bind_udp(self, *, shared: bool = False) -> list[socket.socket]:
        """UDP sockets on the same addresses and ports, not blocking, which `close()` closes.

        Those of an earlier call, if there was one; none for unix sockets. `shared`: other processes
        of this program bind them as well, and the kernel assigns each sender to one of them. Raises
        StartError.
        """
        for sock in () if self._udp else self._sockets:
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                self._udp.append(_bind_udp_like(sock, shared=shared))
        return self._udp

    def close_udp(self) -> None:
        """Close the UDP sockets."""
        for sock in self._udp:
            sock.close()
        self._udp.clear()

    def disown(self) -> None:
        """Leave the unix socket file to another process that listens on it as well."""
        self._unix_file = None

    def serve(
        self,
        protocol_factory: ProtocolFactory,
        *,
        use_reserve: bool = False,
        yields: Callable[[], bool] | None = None,
    ) -> None:
        """Accept connections, see `Acceptor`; `use_reserve` is for monitoring and control."""
        self._acceptor = Acceptor(
            self._sockets, protocol_factory, use_reserve=use_reserve, yields=yields
        )

    def _add(self, sock: socket.socket) -> None:
        self._sockets.append(sock)
        self.addresses.append(_name(sock))


async def bind(
    endpoint: Endpoint | None,
    unix_path: str,
    *,
    resolver: Resolver,
    fast_open: bool = False,
    descriptors: Iterable[int] = (),
    private: bool = False,
) -> Listener:
    """Listen on all of these; connections wait in the kernel's queue until `Listener.serve()`.

    An empty host, or `::` without an IPv4 host beside it, accepts IPv4 connections too. For a name,
    those of its addresses are used that this machine has. Port 0 picks one free port for all hosts.
    `unix_path` is a path or `@name` in Linux's abstract namespace; `private` lets only this user
    open it (mode 0600). `descriptors` are inherited listening stream sockets, TCP or unix.

    Raises StartError with the address, the reason and the fix.
    """
    listener = Listener()
    try:
        for descriptor in descriptors:
            listener._add(_adopt(descriptor))
        if endpoint is not None:
            groups = await _addresses(endpoint, resolver)
            for sock in _bind_endpoint(groups, fast_open=fast_open and _fast_open_available()):
                listener._add(sock)
        if unix_path:
            listener._add(bind_unix(unix_path, private))
            if not unix_path.startswith("@"):
                status = os.lstat(unix_path)
                listener._unix_file = os.path.abspath(unix_path), status.st_dev, status.st_ino
    except BaseException:
        listener.close()
        raise
    return listener


def bind_now(endpoint: Endpoint) -> Listener:
    """Like `bind`, without waiting: the hosts of `endpoint` are IP literals or empty."""
    listener = Listener()
    for sock in _bind_endpoint(_literals(endpoint)):
        listener._add(sock)
    return listener


def bind_udp(endpoint: Endpoint) -> list[socket.socket]:
    """UDP sockets, as by `bind_now`. Raises StartError."""
    return _bind_endpoint(_literals(endpoint), socket.SOCK_DGRAM)


async def _addresses(endpoint: Endpoint, resolver: Resolver) -> list[list[Address]]:
    """The addresses to bind for each host, without duplicates."""
    groups = []
    for host in endpoint.hosts:
        try:
            groups.append(await resolver.resolve(host, endpoint.port) if host else [])
        except NetworkError as error:
            where = host_port(host, endpoint.port)
            raise StartError(f"cannot listen on {where}: {error}") from None
    return _distinct(groups, endpoint.port)


def _literals(endpoint: Endpoint) -> list[list[Address]]:
    """As `_addresses`, for IP literals."""
    groups = []
    for host in endpoint.hosts:
        try:
            address = literal(host, endpoint.port) if host else None
        except NetworkError as error:  # an unknown zone
            raise StartError(f"cannot listen on {host}: {error}") from None
        if host and address is None:
            raise StartError(f"cannot listen on {host}: it is not an IP address")
        groups.append([] if address is None else [address])
    return _distinct(groups, endpoint.port)


def _distinct(hosts: list[list[Address]], port: int) -> list[list[Address]]:
    """The addresses of each host without duplicates; an empty list means all interfaces."""
    all_ipv6: Address = (socket.AF_INET6, (_ALL_IPV6, port, 0, 0))
    seen: set[Address] = set()
    groups = []
    for group in hosts:
        group = group or [all_ipv6]
        if group == [all_ipv6] and not _has_ipv6():
            group = [(socket.AF_INET, (_ALL_IPV4, port))]
        fresh = [address for address in group if address not in seen]
        seen.update(fresh)
        if fresh:
            groups.append(fresh)
    return groups


def _has_ipv6() -> bool:
    """Whether the kernel supports IPv6; `::` needs no IPv6 address on this machine."""
    if not socket.has_ipv6:
        return False
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


def _bind_endpoint(
    groups: list[list[Address]], kind: int = socket.SOCK_STREAM, *, fast_open: bool = False
) -> list[socket.socket]:
    """Sockets for all groups, all on the same port."""
    for _ in range(PORT_TRIES - 1):
        try:
            return _bind_groups(groups, kind, fast_open)
        except StartError as error:
            drawn = groups[0][0][1][1] == 0
            cause = error.__cause__
            if not (drawn and isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE):
                raise
    return _bind_groups(groups, kind, fast_open)


def _bind_groups(groups: list[list[Address]], kind: int, fast_open: bool) -> list[socket.socket]:
    with_ipv4 = any(family == socket.AF_INET for group in groups for family, _ in group)
    sockets: list[socket.socket] = []
    port = groups[0][0][1][1]
    try:
        for group in groups:
            skipped: OSError | None = None
            served = len(sockets)
            for family, address in group:
                address = (address[0], port, *address[2:])
                dual_stack = address[0] == _ALL_IPV6 and not with_ipv4
                try:
                    sockets.append(_bind_one(kind, family, address, dual_stack, fast_open))
                except OSError as error:
                    if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                        raise start_error(host_port(*address[:2]), error) from error
                    skipped = error
                else:
                    port = sockets[-1].getsockname()[1]
            if skipped is not None and len(sockets) == served:
                where = host_port(group[-1][1][0], port)
                raise start_error(where, skipped) from skipped
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _bind_one(
    kind: int, family: int, address: tuple[Any, ...], dual_stack: bool, fast_open: bool
) -> socket.socket:
    """A TCP socket that listens, or a UDP socket that does not block. Raises OSError."""
    is_tcp = kind == socket.SOCK_STREAM
    sock = socket.socket(family, kind)
    try:
        # For UDP, and on Windows, this option would let another program take over the port.
        if is_tcp and os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual_stack)
        if is_tcp:
            tune(sock)
        if fast_open:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, FAST_OPEN_QUEUE)
        sock.bind(address)
        if is_tcp:  # immediately: between the two, another program could bind the same port
            sock.listen(BACKLOG)
        else:
            sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_udp_like(listening: socket.socket, *, shared: bool) -> socket.socket:
    """A UDP socket with the address of a listening socket. Raises StartError."""
    address = listening.getsockname()
    sock = socket.socket(listening.family, socket.SOCK_DGRAM)
    try:
        if listening.family == socket.AF_INET6:
            option = socket.IPPROTO_IPV6, socket.IPV6_V6ONLY
            sock.setsockopt(*option, listening.getsockopt(*option))
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise start_error(f"UDP {host_port(*address[:2])}", error) from error
    return sock


def _fast_open_available() -> bool:
    """Whether listeners can use fast open; logs a warning if it has no effect."""
    if sys.platform not in ("linux", "android"):
        log.warning("listening without TCP fast open: only Linux has it")
        return False
    try:
        with open(_FAST_OPEN_SYSCTL, encoding="ascii") as file:
            permitted = int(file.read()) & _FAST_OPEN_SERVER
    except (OSError, ValueError) as error:
        log.warning("listening without TCP fast open: %s", describe(error))
        return False
    if not permitted:  # the setting may change later, without a restart
        log.warning(
            "TCP fast open has no effect until the system permits it for servers: "
            "sysctl -w net.ipv4.tcp_fastopen=3"
        )
    return True


def _adopt(descriptor: int) -> socket.socket:
    """Take over the listening socket `descriptor`. Raises StartError."""
    where = f"descriptor {descriptor}"
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise StartError(f"cannot listen on inherited {where}: {describe(error)}") from error
    families = [socket.AF_INET, socket.AF_INET6, getattr(socket, "AF_UNIX", socket.AF_INET)]
    if sock.family not in families or sock.type != socket.SOCK_STREAM:
        wrong = "it is not a TCP or unix stream socket; use ListenStream= in the socket unit"
    elif not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        wrong = "it is a connection; set Accept=no in the socket unit"
    else:
        sock.set_inheritable(False)
        tune(sock)
        return sock
    sock.close()
    raise StartError(f"cannot listen on inherited {where}: {wrong}")


def _name(sock: socket.socket) -> str:
    """The address of `sock`, for the log."""
    name = sock.getsockname()
    if isinstance(name, tuple):
        return host_port(*name[:2])
    # Abstract names are bytes that start with a zero.
    return "@" + os.fsdecode(name[1:]) if isinstance(name, bytes) else str(name)
