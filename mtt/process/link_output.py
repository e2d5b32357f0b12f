"""The output of -link."""

from __future__ import annotations

import getpass
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from mtt.errors import UsageError
from mtt.options.common import LINK, LINK_ALL, LINK_SS, QR
from mtt.options.flags import Values
from mtt.options.links import Link, Login, parse_login, shown

if TYPE_CHECKING:
    from mtt.options.tunnel_file import TunnelFile

# The variable with the password of shadowsocks.
SS_PASSWORD = "SS_PASSWORD"


def printed(
    links: Callable[[Values, Login | None], Sequence[Link]],
    given: Values,
    values: Values,
    environ: Mapping[str, str],
) -> str:
    """The text for stdout.

    Args:
        links: makes the links of a tunnel.
        given: the options of the command line.
        values: all options; with -config, also the tunnels of the file.
        environ: SS_PASSWORD in it is the password of shadowsocks.

    Raises MttError.
    """
    kind = given.get(LINK.name)
    if not kind:
        name = next(name for name in given if name.startswith(f"{LINK.name}-") or name == QR.name)
        raise UsageError(f"-{name}: only meaningful with -{LINK.name}; add -{LINK.name} all")
    login = None
    if given.get(LINK_SS.name):
        login = parse_login(f"-{LINK_SS.name}", given[LINK_SS.name])
        if not login.password:
            login = login._replace(password=environ.get(SS_PASSWORD) or _asked())

    def text(of: Values) -> str:
        return shown(links(of, login), kind, qr=given.get(QR.name, False))

    file: TunnelFile | None = values.get("tunnels")
    if file is None:
        return text(values)
    texts = []
    for tunnel in file.tunnels:
        with file.errors(tunnel.place):
            texts.append(text(tunnel.values))
        if tunnel.place and kind == LINK_ALL:
            texts[-1] = f"{tunnel.place}\n\n{texts[-1]}"
    return ("\n" if kind == LINK_ALL else "").join(texts)


def _asked() -> str:
    """Ask for the password of shadowsocks on the terminal. Raises UsageError."""
    try:
        with warnings.catch_warnings():
            # Without a terminal, getpass would echo the password.
            warnings.simplefilter("error", getpass.GetPassWarning)
            password = getpass.getpass("Shadowsocks password: ")
    except (getpass.GetPassWarning, EOFError):
        raise UsageError(
            f"-{LINK_SS.name}: no terminal to ask for the password; set {SS_PASSWORD}"
        ) from None
    if not password:
        raise UsageError(f"-{LINK_SS.name}: the password is empty")
    return password
