"""The log of all commands: single lines on stderr, which ends up in shadowsocks' log for plugins.

Levels: INFO is what was started, WARNING a connection that failed, ERROR a fault of the machine
or of this program; these are always shown. DEBUG (`-verbose`) adds every tunnel's opening and
close. Nothing ever logs payload.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys

logger = logging.getLogger("mtt")

_STDERR = 2

# Whoever connects to us chooses parts of what is logged: without this they could forge lines
# and send escape sequences to terminals. C0, DEL, C1, and Unicode's own line ends.
_ESCAPES = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)
} | {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}


def setup(verbose: bool, prog: str = "mtt") -> None:
    """Start logging to stderr as `prog`, with DEBUG if `verbose`. May be called again."""
    # asyncio's own lines are for programmers; errors in callbacks reach mtt.runtime anyway.
    logging.getLogger("asyncio").setLevel(logging.WARNING if verbose else logging.CRITICAL)
    handler = StderrHandler()
    handler.setFormatter(LineFormatter(prog))
    for name in ("mtt", "asyncio"):
        log = logging.getLogger(name)
        log.handlers[:] = [handler]
        log.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)


def escape(text: str) -> str:
    """`text` with control characters and line ends made visible: exactly one line."""
    return text.translate(_ESCAPES)


def write_line(text: str) -> None:
    """Write `text` to stderr as exactly one line, or nothing if nobody listens there any more.

    One write() per line, not through `sys.stderr`: processes that share stderr do not mix their
    lines then, and no buffer is left whose flush fails at exit. If stderr was closed when we
    were started, descriptor 2 may by now be someone's connection.
    """
    _write(escape(text) + "\n")


def _write(text: str) -> None:
    if sys.__stderr__ is None:
        return
    # A broken pipe or a full disk: the tunnel matters more.
    with contextlib.suppress(OSError):
        os.write(_STDERR, text.encode("utf-8", "backslashreplace"))


class LineFormatter(logging.Formatter):
    """`2006-01-02 15:04:05 LEVEL prog: message`; the date format is shadowsocks-libev's."""

    def __init__(self, prog: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {prog}: %(message)s", "%Y-%m-%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        # Here and not in format(): a traceback, which only DEBUG asks for, keeps its lines.
        return escape(super().formatMessage(record))


class StderrHandler(logging.Handler):
    """Writes records to stderr; an error in logging never ends up in the program's way."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:
            text = escape(f"a log line could not be formatted: {record.msg!r}")
        _write(text + "\n")
