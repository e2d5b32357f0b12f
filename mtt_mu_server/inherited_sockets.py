"""Sockets that the service manager handed over: which is for what, and who can open it."""

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
    """Descriptors that listen already."""

    tunnel: tuple[int, ...] = ()
    control: tuple[int, ...] = ()


NO_SOCKETS = InheritedSockets()


def assigned(sockets: Sequence[Inherited]) -> InheritedSockets:
    """Which of `sockets` is for what, by name; a single one without a name is for tunnels.

    Raises UsageError.
    """
    if len(sockets) == 1 and sockets[0].unnamed:
        (only,) = sockets
        if isinstance(_address(only.descriptor), tuple):
            return InheritedSockets(tunnel=(only.descriptor,))
    for each in sockets:
        if each.name not in (TUNNEL, CONTROL):
            what = "has no name" if each.unnamed else f"is named {quoted(each.name)}"
            raise UsageError(
                f"the socket handed over as descriptor {each.descriptor} {what}; {HOW}"
            )
    by_name = {
        name: tuple(each.descriptor for each in sockets if each.name == name)
        for name in (TUNNEL, CONTROL)
    }
    return InheritedSockets(by_name[TUNNEL], by_name[CONTROL])


def control_hosts(descriptors: Sequence[int], *, guarded: bool) -> tuple[str, ...]:
    """The IP addresses of the controller's sockets.

    `guarded` says that the controller speaks HTTPS and asks for a token. Raises UsageError if it
    does not and somebody could get in who does not belong there.
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
    """Host and port, or the name of a unix socket with a zero in front if it is abstract."""
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
        return False  # its directory keeps out us, and so the others
    except OSError:
        return True  # not to be seen from here, so it cannot be told
    return bool(mode & stat.S_IWOTH)  # which is what connecting takes
