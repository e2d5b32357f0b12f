"""The log of all commands: single lines on stderr, which for plugins is shadowsocks' log.

Levels: INFO for starts and changes, WARNING for failed connections, ERROR for faults of the machine
or of this program. DEBUG adds the opening and closing of every tunnel. Payload is never logged.

A line is text, or one JSON object (RFC 8259):
{"time": RFC 3339 in UTC, "level": ..., "program": ..., "msg": ...}, with "traceback" in DEBUG, and
"tunnel" if there are several.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mtt.address import peer_name
from mtt.errors import NothingSaidError, describe

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger("mtt")

# Which of several tunnels the running code works for: str() of it precedes its log lines, unless
# empty. None with a single tunnel.
subject: ContextVar[object | None] = ContextVar("subject", default=None)

# Seconds per burst of lines of the same kind, see Throttle. A flood of connections must not flood
# the log.
THROTTLE_INTERVAL = 10.0
# Lines per burst about failed connections: enough to identify the peers.
FAILURE_BURST = 20

_STDERR = 2

# Peers choose parts of the logged text. Unescaped, they could forge lines and send escape sequences
# to terminals. C0, DEL, C1, and Unicode's line separators.
_ESCAPES = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)
} | {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}


def setup(level: str = "info", prog: str = "mtt", format: str = "text") -> None:
    """Start logging to stderr as `prog`. `level` is the lowest level to log, in lower case;
    `format` is text or json. May be called again."""
    handler = StderrHandler()
    handler.setFormatter(JsonFormatter(prog) if format == "json" else LineFormatter(prog))
    for name in ("mtt", "asyncio"):
        log = logging.getLogger(name)
        log.handlers[:] = [handler]
        log.propagate = False
    set_level(level)
    sys.unraisablehook = _report_unraisable


def set_level(level: str) -> None:
    """Change the lowest level to log."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    debug = threshold <= logging.DEBUG
    # asyncio's lines are for developers; errors in callbacks go to the loop's exception handler.
    logging.getLogger("asyncio").setLevel(logging.WARNING if debug else logging.CRITICAL)
    logger.setLevel(threshold)


def _report_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Log a failed callback from C, for which Python would print a traceback.

    Clients can cause this at will, with a server name that `ssl` cannot decode. The handshake then
    fails and is logged separately.
    """
    logger.debug("ignored: %s", escape(repr(unraisable.exc_value)))


class Throttle:
    """Limits log lines of one kind, which peers can cause a thousand times a second.

    In every THROTTLE_INTERVAL, the first `burst` lines are written. The next one that is written
    includes the number of suppressed lines.
    """

    __slots__ = ("_burst", "_left", "_next", "_suppressed")

    def __init__(self, burst: int = 1) -> None:
        self._burst = self._left = burst
        self._next = 0.0
        self._suppressed = 0

    def warning(self, text: str, *args: object) -> None:
        self.log(logging.WARNING, text, *args)

    def info(self, text: str, *args: object) -> None:
        self.log(logging.INFO, text, *args)

    def log(self, level: int, text: str, *args: object) -> None:
        """Write a line as `logger.log` does, or suppress and count it."""
        if not logger.isEnabledFor(level):
            return
        now = time.monotonic()
        if now >= self._next:
            self._left = self._burst
            self._next = now + THROTTLE_INTERVAL
        if not self._left:
            self._suppressed += 1
            return
        self._left -= 1
        if self._suppressed:
            line = text % args if args else text  # as in logging
            text, args = "%s (%d similar lines suppressed)", (line, self._suppressed)
            self._suppressed = 0
        logger.log(level, text, *args)

    def failure(self, transport: asyncio.BaseTransport, error: Exception) -> None:
        """Log why a connection did not become a tunnel; at level DEBUG if it sent no byte."""
        if isinstance(error, NothingSaidError):
            logger.debug("%s: %s", peer_name(transport), error)
        else:
            self.warning("%s: %s", peer_name(transport), describe(error))


def escape(text: str) -> str:
    """`text` as exactly one line, with control characters and line ends escaped."""
    return text.translate(_ESCAPES)


def write_line(text: str) -> None:
    """Write `text` to stderr as exactly one line; does nothing if stderr is closed.

    Uses one write() per line instead of `sys.stderr`, so that processes with a common stderr do not
    mix their lines, and no buffer is left whose flush fails at exit. If stderr was closed at the
    start, descriptor 2 may meanwhile be a connection.
    """
    _write(escape(text) + "\n")


def _write(text: str) -> None:
    if sys.__stderr__ is None:
        return
    # A broken pipe or a full disk must not disturb the tunnels.
    with contextlib.suppress(OSError):
        os.write(_STDERR, text.encode("utf-8", "backslashreplace"))


class LineFormatter(logging.Formatter):
    """`2006-01-02 15:04:05 LEVEL prog: message`; the date format is shadowsocks-libev's.

    With several tunnels: `... prog: tunnel: message`.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {prog}: %(message)s", "%Y-%m-%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        name = _subject_name()
        if name:
            record.message = f"{name}: {record.message}"
        # Here and not in format(), so that a traceback (only in DEBUG) keeps its lines.
        return escape(super().formatMessage(record))


class JsonFormatter(logging.Formatter):
    """One JSON object per record, in ASCII and always on one line."""

    def __init__(self, prog: str) -> None:
        super().__init__()
        from json import JSONEncoder  # imported only if needed: plugins must start fast

        self._encode = JSONEncoder().encode
        self._prog = prog

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "program": self._prog,
            # Escaped as in text format: tools such as jq print strings unescaped to terminals.
            "msg": escape(_valid(record.getMessage())),
        }
        name = _subject_name()
        if name:
            fields["tunnel"] = escape(_valid(name))
        if record.exc_info:
            fields["traceback"] = _valid(self.formatException(record.exc_info))
        return self._encode(fields)


def _subject_name() -> str:
    found = subject.get()
    return "" if found is None else str(found)


def _valid(text: str) -> str:
    """`text` without lone surrogates, which JSON parsers handle differently (RFC 8259, 8.2)."""
    return text.encode("utf-8", "backslashreplace").decode()


class StderrHandler(logging.Handler):
    """Writes records to stderr; an error in logging never affects the program."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:
            record.msg = f"cannot format a log line: {record.msg!r}"
            record.args = record.exc_info = None
            text = self.format(record)
        _write(text + "\n")
