"""The output of -link: text and QR codes."""

from __future__ import annotations

import getpass
import signal
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from mtt.errors import UsageError
from mtt.options.common import LINK, LINK_ALL, LINK_SS, QR
from mtt.options.flags import Values
from mtt.options.links import Link, Login, parse_login

if TYPE_CHECKING:
    from mtt.options.tunnel_file import TunnelFile

# The variable with the password of shadowsocks.
SS_PASSWORD = "SS_PASSWORD"

# The margin of a QR code, in modules: the standard asks for 4, and cameras are content with 2.
_MARGIN = 2


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
    # The handler of `early` ends the process at once; getpass would not turn the echo on again.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with warnings.catch_warnings():
            # Without a terminal, getpass would echo the password.
            warnings.simplefilter("error", getpass.GetPassWarning)
            password = getpass.getpass("Shadowsocks password: ")
    except (getpass.GetPassWarning, EOFError):
        raise UsageError(
            f"-{LINK_SS.name}: no terminal to ask for the password; set {SS_PASSWORD}"
        ) from None
    except KeyboardInterrupt:
        raise UsageError(f"-{LINK_SS.name}: no password was given") from None
    finally:
        signal.signal(signal.SIGINT, before)
    if not password:
        raise UsageError(f"-{LINK_SS.name}: the password is empty")
    return password


def shown(links: Sequence[Link], kind: str, *, qr: bool = False) -> str:
    """The text of -link: the link of one kind, or all with their titles; with `qr`, its code.

    Raises UsageError.
    """
    there = [link for link in links if not link.missing]
    if kind == LINK_ALL and not qr:
        return "\n".join(f"{link.title}:\n{_indented(link.text)}" for link in there)
    # The last one is the most useful to a phone.
    found = there[-1] if kind == LINK_ALL else next(link for link in links if link.kind == kind)
    if found.missing:
        raise UsageError(f"-{LINK.name} {kind}: {found.missing}")
    return (draw_qr(found.text) if qr else "") + found.text + "\n"


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines() or ["(none)"])


def draw_qr(text: str) -> str:
    """A QR code of `text` for a terminal, two rows of the code in each line.

    Raises UsageError if the package for it is missing, or the text is too long.
    """
    try:
        import segno
    except ImportError:
        raise UsageError(
            f"-{QR.name} needs segno; run pip install segno, or with pipx pipx inject "
            "mos-tls-tunnel segno, or for the Debian package apt install python3-segno"
        ) from None
    try:
        code = segno.make_qr(text.encode("utf-8", "surrogateescape"), error="L")
    except ValueError:
        raise UsageError(f"-{QR.name}: the text is too long for a QR code") from None
    return _drawn([[bool(each) for each in row] for row in code.matrix])


def _drawn(matrix: Sequence[Sequence[bool]]) -> str:
    """A matrix of dark modules as lines for a dark terminal: a light module is a full block."""
    width = len(matrix[0]) + 2 * _MARGIN
    light = [False] * width
    rows = [light] * _MARGIN
    rows += [[False] * _MARGIN + list(row) + [False] * _MARGIN for row in matrix]
    rows += [light] * (_MARGIN + (len(rows) + _MARGIN) % 2)
    blocks = {(False, False): "█", (False, True): "▀", (True, False): "▄", (True, True): " "}
    return "".join(
        "".join(blocks[pair] for pair in zip(upper, lower, strict=True)) + "\n"
        for upper, lower in zip(rows[::2], rows[1::2], strict=True)
    )
