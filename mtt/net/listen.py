"""Listening sockets: TCP on every address of an endpoint, and unix sockets.

Options for accepted connections are set on the listening socket, from which they inherit them.
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

# Connections that the kernel completes before they are accepted. When many clients reconnect at
# once, those that do not fit are delayed by 1 s (a lost SYN). The kernel caps this at somaxconn.
BACKLOG = 1024

# Connections with data in the SYN that are not established yet; further ones make an ordinary
# handshake. They take kernel memory before their address is verified, so this is below BACKLOG.
FAST_OPEN_QUEUE = 256
_FAST_OPEN_SYSCTL = "/proc/sys/net/ipv4/tcp_fastopen"
_FAST_OPEN_SERVER = 2  # the bit that permits it for listeners

# Attempts to find a port for port 0 that is free on all hosts.
PORT_TRIES = 16

# sockaddr_un holds 108 bytes on Linux and 104 on the BSDs and macOS, including one zero.
UNIX_PATH_MAX = 107 if sys.platform in ("linux", "android") else 103

# Results of connecting to a unix socket in use: accepted, backlog full, datagram socket. ENOENT: it
# was removed meanwhile.
_UNIX_LIVE = (0, errno.EAGAIN, errno.EPROTOTYPE, errno.ENOENT)

_ALL_IPV6, _ALL_IPV4 = "::", "0.0.0.0"


class Listener:
    """Open listening sockets; `addresses` describes them for the log, with the actual port."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self._bound: list[socket.socket] = []  # not owned by the acceptor yet
        self._acceptor: Acceptor | None = None
        self._unix_file: tuple[str, int, int] | None = None  # absolute path, device, inode

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
        for sock in self._bound:
            sock.close()
        self._bound.clear()

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
        """Accept connections from now on, see `Acceptor`.

        `use_reserve` is for the few connections of monitoring and control.
        """
        self._acceptor = Acceptor(protocol_factory, use_reserve=use_reserve, yields=yields)
        while self._bound:
            self._acceptor.add(self._bound.pop())

    def _add(self, sock: socket.socket) -> None:
        self._bound.append(sock)
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
    """Listen on every host of `endpoint`, a unix socket, and `descriptors`, whichever is given.

    Connections wait in the kernel's queue until `Listener.serve()`.

    An empty host, or `::` without an IPv4 host beside it, accepts IPv4 connections too. For a name,
    those of its addresses are used that this machine has. Port 0 picks one free port for all hosts.
    `unix_path` is a path or `@name` in Linux's abstract namespace. `descriptors` are inherited
    listening stream sockets, TCP or unix. `private` creates a unix socket that only this user can
    open (mode 0600).

    Raises StartError with the address, the reason and the fix.
    """
    listener = Listener()
    try:
        for descriptor in descriptors:
            listener._add(_adopt(descriptor))
        if endpoint is not None:
            groups = await _addresses(endpoint, resolver)
            for sock in _bind_endpoint(groups, fast_open and _fast_open_available()):
                listener._add(sock)
        if unix_path:
            listener._add(_bind_unix(unix_path, private))
            if not unix_path.startswith("@"):
                status = os.lstat(unix_path)
                listener._unix_file = os.path.abspath(unix_path), status.st_dev, status.st_ino
    except BaseException:
        listener.close()
        raise
    return listener


async def _addresses(endpoint: Endpoint, resolver: Resolver) -> list[list[Address]]:
    """The addresses to bind for each host, without duplicates."""
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
    """Whether the kernel supports IPv6; `::` needs no IPv6 address on this machine."""
    if not socket.has_ipv6:
        return False
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


def _bind_endpoint(groups: list[list[Address]], fast_open: bool) -> list[socket.socket]:
    """Bound and listening sockets for all groups, all on the same port."""
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
            # On Windows, this option would let another program take over the port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual_stack)
        tune(sock)
        if fast_open:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, FAST_OPEN_QUEUE)
        sock.bind(address)
        # Immediately: between bind() and listen(), another program could bind the same port, and a
        # unix socket would look stale.
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
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


def _bind_unix(path: str, private: bool = False) -> socket.socket:
    """A bound and listening unix socket; replaces a stale socket, but no other file."""
    abstract = path.startswith("@")
    if not hasattr(socket, "AF_UNIX"):
        raise StartError(f"cannot listen on {path}: this system has no unix sockets; use host:port")
    if abstract and sys.platform not in ("linux", "android"):
        raise StartError(f"cannot listen on {path}: only Linux has abstract sockets; use a path")
    address = "\0" + path[1:] if abstract else path
    size = len(os.fsencode(path)) - abstract
    if size > UNIX_PATH_MAX:
        raise StartError(
            f"cannot listen on {path}: it has {size} bytes, a unix socket takes {UNIX_PATH_MAX}; "
            f"use a shorter path"
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Before bind(), so that the socket never has wider permissions.
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
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            raise _start_error(path, error, unix=True) from error
        raise
    finally:
        if umask is not None:
            os.umask(umask)
    return sock


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


def _remove_stale(path: str) -> None:
    """Remove a unix socket left behind by a crashed program.

    Raises StartError if the file is not a socket (links are not followed), and OSError if it cannot
    be checked or removed. A socket in use is not removed.
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
    # A socket in use is left for bind() to report.


def _start_error(where: str, error: OSError, *, unix: bool = False) -> StartError:
    """The error for a failure to listen, with the reason and the fix."""
    reasons = {
        errno.EADDRINUSE: "address already in use: another program listens there; "
        f"stop it or choose another {'path' if unix else 'port'}",
        errno.EADDRNOTAVAIL: "this machine does not have this address",
        errno.EAFNOSUPPORT: "this system does not support this address family",
        errno.EACCES: "no permission; choose a writable directory"
        if unix
        else "no permission; ports below 1024 need root or CAP_NET_BIND_SERVICE",
        errno.ENOENT: "the directory does not exist",
    }
    reason = reasons.get(error.errno or 0) or describe(error)
    return StartError(f"cannot listen on {where}: {reason}")
