"""Listening sockets: TCP on every address of an endpoint, and unix sockets.

What accepted connections need is set on the listening socket, from which they inherit it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterable

from mtt.address import Endpoint, host_port
from mtt.errors import NetworkError, StartError, describe
from mtt.net.accept import Acceptor, ProtocolFactory
from mtt.net.resolve import Address, Resolver
from mtt.net.sockets import tune

log = logging.getLogger(__name__)

# Connections that the kernel completes before we accept them. A reconnecting crowd must fit in,
# since it sees a delay of 1 s (a lost SYN) otherwise; the kernel cuts this to its somaxconn.
BACKLOG = 1024

# Connections that may have sent data in the SYN and are not established; more of them make an
# ordinary handshake. They cost kernel memory without proof of their address, hence not BACKLOG.
FAST_OPEN_QUEUE = 256
_FAST_OPEN_SYSCTL = "/proc/sys/net/ipv4/tcp_fastopen"
_FAST_OPEN_SERVER = 2  # the bit in it that permits listeners

# How often another port is drawn when port 0 is free on one host and taken on the next.
PORT_TRIES = 16

# sockaddr_un holds 108 bytes on Linux and 104 on the BSDs and macOS, with a zero at one end.
UNIX_PATH_MAX = 107 if sys.platform in ("linux", "android") else 103

# What connecting to a unix socket in use says: accepted, its backlog is full, it wants datagrams.
# ENOENT: it went away in this moment.
_UNIX_LIVE = (0, errno.EAGAIN, errno.EPROTOTYPE, errno.ENOENT)

_ALL_IPV6, _ALL_IPV4 = "::", "0.0.0.0"


class Listener:
    """Open listening sockets; `addresses` says for people where, with the real port."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self._bound: list[socket.socket] = []  # not yet owned by the acceptor
        self._acceptor: Acceptor | None = None
        self._unix_file: tuple[str, int, int] | None = None  # absolute path, device, inode

    def close(self) -> None:
        """Stop listening; connections live on. Removes the unix socket file if it is still ours."""
        if self._unix_file is not None:
            # First, while the socket still answers: whoever finds it gone may take the path.
            path, device, inode = self._unix_file
            self._unix_file = None
            with contextlib.suppress(OSError):
                status = os.lstat(path)
                if (status.st_dev, status.st_ino) == (device, inode):
                    os.unlink(path)
        if self._acceptor is not None:
            self._acceptor.close()
        for sock in self._bound:
            sock.close()
        self._bound.clear()

    def disown(self) -> None:
        """Leave a unix socket's file to another process, which listens there as well."""
        self._unix_file = None

    def serve(
        self,
        protocol_factory: ProtocolFactory,
        *,
        use_reserve: bool = False,
        yields: Callable[[], bool] | None = None,
    ) -> None:
        """Accept connections from now on, see `Acceptor`."""
        self._acceptor = Acceptor(protocol_factory, use_reserve=use_reserve, yields=yields)
        while self._bound:
            self._acceptor.add(self._bound.pop())

    async def _bind(
        self,
        endpoint: Endpoint | None,
        unix_path: str,
        resolver: Resolver,
        fast_open: bool,
        descriptors: Iterable[int],
        private: bool,
    ) -> None:
        for descriptor in descriptors:
            self._bound.append(_adopt(descriptor))
            self.addresses.append(_name(self._bound[-1]))
        if endpoint is not None:
            groups = await _addresses(endpoint, resolver)
            self._bound += _bind_endpoint(groups, fast_open and _fast_open_available())
            self.addresses += map(_name, self._bound[len(self.addresses) :])
        if unix_path:
            sock = _bind_unix(unix_path, private)
            self._bound.append(sock)
            self.addresses.append(unix_path)
            if not unix_path.startswith("@"):
                status = os.lstat(unix_path)
                self._unix_file = os.path.abspath(unix_path), status.st_dev, status.st_ino


async def bind(
    endpoint: Endpoint | None,
    unix_path: str,
    *,
    resolver: Resolver,
    fast_open: bool = False,
    descriptors: Iterable[int] = (),
    private: bool = False,
) -> Listener:
    """Listen on every host of `endpoint`, a unix socket, and `descriptors`, whichever is given.

    Connections wait in the kernel's queue until `Listener.serve()`.

    An empty host, or `::` without an IPv4 host beside it, takes IPv4 connections, too. A name
    is listened on at those of its addresses that this machine has. Port 0 draws one free port
    for all hosts. `unix_path` is a path or `@name` in Linux's abstract namespace.
    `descriptors` are listening stream sockets that somebody has made for us, TCP or unix.
    `private` makes a unix socket that only this user can open (mode 0600).

    Raises StartError naming the address, the reason and the way out.
    """
    listener = Listener()
    try:
        await listener._bind(endpoint, unix_path, resolver, fast_open, descriptors, private)
    except BaseException:
        listener.close()
        raise
    return listener


async def listen(
    endpoint: Endpoint | None,
    unix_path: str,
    protocol_factory: ProtocolFactory,
    *,
    resolver: Resolver,
    fast_open: bool = False,
    descriptors: Iterable[int] = (),
    private: bool = False,
    use_reserve: bool = False,
) -> Listener:
    """`bind()` and `Listener.serve()` in one.

    `use_reserve` is for the few connections of those who look after this process.
    """
    listener = await bind(
        endpoint, unix_path, resolver=resolver, fast_open=fast_open, descriptors=descriptors,
        private=private,
    )  # fmt: skip
    listener.serve(protocol_factory, use_reserve=use_reserve)
    return listener


async def _addresses(endpoint: Endpoint, resolver: Resolver) -> list[list[Address]]:
    """For each host the addresses to bind. No address comes twice."""
    port = endpoint.port
    all_ipv6: Address = (socket.AF_INET6, (_ALL_IPV6, port, 0, 0))
    seen: set[Address] = set()
    groups = []
    for host in endpoint.hosts:
        try:
            group = await resolver.resolve(host, port) if host else [all_ipv6]
        except NetworkError as error:
            raise StartError(f"cannot listen on {host_port(host, port)}: {error}") from None
        if group == [all_ipv6] and not _has_ipv6():
            group = [(socket.AF_INET, (_ALL_IPV4, port))]
        fresh = [address for address in group if address not in seen]
        seen.update(fresh)
        if fresh:
            groups.append(fresh)
    return groups


def _has_ipv6() -> bool:
    """Tell whether the kernel knows IPv6; whether there are addresses does not matter for `::`."""
    if not socket.has_ipv6:
        return False
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


def _bind_endpoint(groups: list[list[Address]], fast_open: bool) -> list[socket.socket]:
    """Bound and listening sockets for all groups, on one and the same port."""
    for _ in range(PORT_TRIES - 1):
        try:
            return _bind_groups(groups, fast_open)
        except StartError as error:
            drawn = groups[0][0][1][1] == 0
            cause = error.__cause__
            if not (drawn and isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE):
                raise
    return _bind_groups(groups, fast_open)


def _bind_groups(groups: list[list[Address]], fast_open: bool) -> list[socket.socket]:
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
                    sockets.append(_bind_tcp(family, address, dual_stack, fast_open))
                except OSError as error:
                    if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                        raise _start_error(host_port(*address[:2]), error) from error
                    skipped = error
                else:
                    port = sockets[-1].getsockname()[1]
            if skipped is not None and len(sockets) == served:
                where = host_port(group[-1][1][0], port)
                raise _start_error(where, skipped) from skipped
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _bind_tcp(
    family: int, address: tuple[object, ...], dual_stack: bool, fast_open: bool
) -> socket.socket:
    """One bound and listening TCP socket. Raises OSError."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            # On Windows it would let another program steal the port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual_stack)
        tune(sock)
        if fast_open:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, FAST_OPEN_QUEUE)
        sock.bind(address)
        # At once, as between bind() and listen() a second program could bind the same port, and
        # a unix socket looks stale.
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _fast_open_available() -> bool:
    """Tell whether listeners can have fast open; say so when it is of no use."""
    if sys.platform not in ("linux", "android"):
        log.warning("listening without TCP fast open: only Linux has it")
        return False
    try:
        with open(_FAST_OPEN_SYSCTL, encoding="ascii") as file:
            permitted = int(file.read()) & _FAST_OPEN_SERVER
    except (OSError, ValueError) as error:
        log.warning("listening without TCP fast open: %s", describe(error))
        return False
    if not permitted:  # it may become so later, without a restart
        log.warning(
            "TCP fast open has no effect until the system permits it to servers: "
            "sysctl -w net.ipv4.tcp_fastopen=3"
        )
    return True


def _bind_unix(path: str, private: bool = False) -> socket.socket:
    """A bound and listening unix socket in place of a stale one, but of nothing else."""
    abstract = path.startswith("@")
    if not hasattr(socket, "AF_UNIX"):
        raise StartError(f"cannot listen on {path}: this system has no unix sockets; use host:port")
    if abstract and sys.platform not in ("linux", "android"):
        raise StartError(f"cannot listen on {path}: only Linux has abstract sockets; give a path")
    address = "\0" + path[1:] if abstract else path
    size = len(os.fsencode(path)) - abstract
    if size > UNIX_PATH_MAX:
        raise StartError(
            f"cannot listen on {path}: it has {size} bytes, a unix socket takes {UNIX_PATH_MAX}; "
            f"use a shorter path"
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # So that it is never there with wider permissions.
    umask = os.umask(0o177) if private else None
    try:
        try:
            sock.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or abstract:
                raise
            _remove_stale(path)
            sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _start_error(path, error, unix=True) from error
    except BaseException:
        sock.close()
        raise
    finally:
        if umask is not None:
            os.umask(umask)
    return sock


def _adopt(descriptor: int) -> socket.socket:
    """The listening socket behind `descriptor`, ours from now on. Raises StartError."""
    where = f"descriptor {descriptor}"
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise StartError(
            f"cannot listen on {where}, which we were started with: {describe(error)}"
        ) from error
    families = [socket.AF_INET, socket.AF_INET6, getattr(socket, "AF_UNIX", socket.AF_INET)]
    if sock.family not in families or sock.type != socket.SOCK_STREAM:
        wrong = "it is no stream socket of TCP or unix; write ListenStream= in the socket unit"
    elif not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        wrong = "it is a connection; write Accept=no in the socket unit"
    else:
        sock.set_inheritable(False)
        tune(sock)
        return sock
    sock.close()
    raise StartError(f"cannot listen on {where}, which we were started with: {wrong}")


def _name(sock: socket.socket) -> str:
    """Where `sock` listens, for people."""
    name = sock.getsockname()
    if isinstance(name, tuple):
        return host_port(*name[:2])
    # Abstract names arrive as bytes, with a zero in front.
    return "@" + os.fsdecode(name[1:]) if isinstance(name, bytes) else str(name)


def _remove_stale(path: str) -> None:
    """Remove a unix socket that a program left behind when it died.

    Raises StartError if it is anything else (a link is not followed) or if somebody listens
    there, and OSError if it cannot be told or removed.
    """
    try:
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise StartError(
            f"cannot listen on {path}: it exists and is not a socket; "
            f"remove it or choose another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        error = probe.connect_ex(path)
    if error == errno.ECONNREFUSED:
        os.unlink(path)
    elif error not in _UNIX_LIVE:
        raise OSError(error, os.strerror(error))
    # A live one is left for bind() to report as in use.


def _start_error(where: str, error: OSError, *, unix: bool = False) -> StartError:
    """Say what keeps us from listening there, and the way out."""
    reasons = {
        errno.EADDRINUSE: "address already in use: another program listens there; "
        f"stop it or choose another {'path' if unix else 'port'}",
        errno.EADDRNOTAVAIL: "this machine does not have this address",
        errno.EAFNOSUPPORT: "this system does not have this address family",
        errno.EACCES: "no permission; choose a directory that you may write to"
        if unix
        else "no permission; ports below 1024 need root or CAP_NET_BIND_SERVICE",
        errno.ENOENT: "the directory does not exist",
    }
    reason = reasons.get(error.errno or 0) or describe(error)
    return StartError(f"cannot listen on {where}: {reason}")
