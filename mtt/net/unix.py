"""Bound unix sockets, and the errors of all sockets that cannot be bound."""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys

from mtt.errors import StartError, describe
from mtt.net.sockets import BACKLOG

# sockaddr_un holds 108 bytes on Linux and 104 on the BSDs and macOS, including one zero.
UNIX_PATH_MAX = 107 if sys.platform in ("linux", "android") else 103

# Results of connecting to a unix socket in use: accepted, backlog full, datagram socket. ENOENT: it
# was removed meanwhile.
_UNIX_LIVE = (0, errno.EAGAIN, errno.EPROTOTYPE, errno.ENOENT)


def bind_unix(path: str, private: bool = False) -> socket.socket:
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
        # Immediately: a bound socket that does not listen looks stale to another program.
        sock.listen(BACKLOG)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            raise start_error(path, error, unix=True) from error
        raise
    finally:
        if umask is not None:
            os.umask(umask)
    return sock


def _remove_stale(path: str) -> None:
    """Remove a unix socket left behind by a crashed program, but none in use.

    Raises StartError if the file is not a socket (links are not followed), and OSError if it cannot
    be checked or removed.
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
    elif error not in _UNIX_LIVE:  # one in use is left for bind() to report
        raise OSError(error, os.strerror(error))


def start_error(where: str, error: OSError, *, unix: bool = False) -> StartError:
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
