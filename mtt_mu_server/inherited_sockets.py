"""Sockets inherited from the service manager: their purpose, and checks of their access."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from mtt.address import is_loopback, unmapped
from mtt.errors import UsageError, describe
from mtt.options.flags import quoted

if TYPE_CHECKING:
    from mtt.process.systemd import Inherited

# FileDescriptorName= in a socket unit.
TUNNEL, CONTROL = "tunnel", "control"
HOW = f"write FileDescriptorName={TUNNEL} or {CONTROL} in the socket unit"


class InheritedSockets(NamedTuple):
    """Listening descriptors by purpose."""

    tunnel: tuple[int, ...] = ()
    control: tuple[int, ...] = ()


NO_SOCKETS = InheritedSockets()


def assigned(sockets: Sequence[Inherited]) -> InheritedSockets:
    """The purposes of `sockets` by name; a single one without a name is for tunnels.

    Raises UsageError.
    """
    if len(sockets) == 1 and sockets[0].unnamed:
        (only,) = sockets
        if isinstance(_address(only.descriptor), tuple):
            return InheritedSockets(tunnel=(only.descriptor,))
    for each in sockets:
        if each.name not in (TUNNEL, CONTROL):
            what = "has no name" if each.unnamed else f"is named {quoted(each.name)}"
            raise UsageError(f"inherited socket, descriptor {each.descriptor}: {what}; {HOW}")
    return InheritedSockets(
        tunnel=tuple(each.descriptor for each in sockets if each.name == TUNNEL),
        control=tuple(each.descriptor for each in sockets if each.name == CONTROL),
    )


def control_hosts(descriptors: Sequence[int], *, guarded: bool) -> tuple[str, ...]:
    """The IP addresses of the controller's sockets.

    `guarded`: the controller uses HTTPS and requires a token. If it does not, raises UsageError for
    sockets that other users or machines can reach.
    """
    hosts = []
    for descriptor in descriptors:
        address = _address(descriptor)
        if isinstance(address, tuple):
            hosts.append(address[0])
            if not guarded and not is_loopback(address[0]):
                raise UsageError(
                    f"the {CONTROL} socket at {address[0]} can be reached from other machines, so "
                    "it needs -c-token-file, -c-cert, -c-key too; or write a loopback address, or "
                    "a path, in the socket unit"
                )
        elif not guarded and _open_to_all(address):
            raise UsageError(
                f"the {CONTROL} socket {quoted(os.fsdecode(address))} can be opened by every user "
                "of this machine; write SocketMode=0600 in the socket unit"
            )
    return tuple(hosts)


def _address(descriptor: int) -> tuple[str, int] | bytes:
    """Host and port, or the name of a unix socket, which starts with a zero if abstract."""
    try:
        copy = socket.socket(fileno=os.dup(descriptor))
    except OSError as error:
        raise UsageError(
            f"cannot listen on inherited descriptor {descriptor}: {describe(error)}"
        ) from None
    with copy:
        name = copy.getsockname()
    if isinstance(name, tuple):
        return unmapped(name[0]), name[1]
    return os.fsencode(name)


def _open_to_all(path: bytes) -> bool:
    if not path.startswith(b"/"):
        return True  # an abstract socket, which has no permissions
    try:
        mode = os.stat(path).st_mode
    except PermissionError:
        return False  # its directory denies access to this user, and so to others
    except OSError:
        return True  # not visible from here, so its permissions are unknown
    return bool(mode & stat.S_IWOTH)  # connecting requires write permission
