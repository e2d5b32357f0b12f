"""Options of all AnyTLS clients and servers: password, session pool, padding scheme."""

from __future__ import annotations

from typing import NamedTuple

from mtt.errors import UsageError
from mtt.options.common import only_with, positive
from mtt.options.flags import Flag, Group, Values, parse_duration

# The reference's defaults.
DEFAULT_MIN_IDLE = 5
DEFAULT_IDLE_CHECK = "30s"
DEFAULT_IDLE_TIMEOUT = "30s"

# An idle session costs memory on both sides.
MAX_MIN_IDLE = 256

# Bytes in UTF-8. On the wire it is a hash. Longer than any real password, so a longer file is the
# wrong file.
MAX_PASSWORD = 1024

# fmt: off
PASSWORD = Flag("p", "str", "Password. Other users of this machine can see it in the process "
                "list; use -password-file to keep it secret.", "PASSWORD", secret=True,
                group=Group.ACCESS)
PASSWORD_FILE = Flag("password-file", "str", "File with the password on one line.", "FILE",
                     group=Group.ACCESS)
MIN_IDLE = Flag("m", "int", f"Idle sessions to keep, 0 to {MAX_MIN_IDLE}; the next connection then "
                "needs no handshake.", "N", str(DEFAULT_MIN_IDLE), group=Group.REUSE)
WARM = Flag("warm", "int", "Sessions to open at start, before a connection needs one, 0 to "
            f"{MAX_MIN_IDLE}. No other AnyTLS client does that, so an observer can tell.", "N",
            "0", group=Group.REUSE)
IDLE_CHECK = Flag("idle-check", "duration", "How often idle sessions beyond -m are checked. 5s or "
                  "less means 30s, as in all AnyTLS clients.", "DURATION",
                  DEFAULT_IDLE_CHECK, group=Group.REUSE)
IDLE_TIMEOUT = Flag("idle-timeout", "duration", "How long idle sessions beyond -m are kept. 5s or "
                    "less means 30s, as in all AnyTLS clients.", "DURATION", DEFAULT_IDLE_TIMEOUT,
                    group=Group.REUSE)
DISABLE_REUSE = Flag("dr", "bool", "Disable session reuse: one session per connection.",
                     group=Group.REUSE)
PADDING_SCHEME = Flag("padding-scheme", "str", "File with the padding scheme that clients have to "
                      "use, instead of the default scheme.", "FILE", group=Group.MODE)
ANYTLS = Flag("anytls", "bool", "Use AnyTLS: padding against traffic analysis, session reuse, and "
              "a password (-p or -password-file). Both ends need it.", group=Group.MODE)
# fmt: on

POOL_FLAGS = (MIN_IDLE, WARM, IDLE_CHECK, IDLE_TIMEOUT, DISABLE_REUSE)


# The options of AnyTLS as a mode of the tunnel, see `tunnel_password()`.
def _of_tunnel(*flags: Flag) -> tuple[Flag, ...]:
    return ANYTLS, *(flag._replace(help=f"{flag.help} Needs -anytls.") for flag in flags)


TUNNEL_CLIENT_FLAGS = _of_tunnel(PASSWORD, PASSWORD_FILE, *POOL_FLAGS)
TUNNEL_SERVER_FLAGS = _of_tunnel(PASSWORD, PASSWORD_FILE, PADDING_SCHEME)

_TUNNEL_FLAGS = {*TUNNEL_CLIENT_FLAGS, *TUNNEL_SERVER_FLAGS} - {ANYTLS}

# The other modes of a tunnel and their options.
_OTHER_MODES = ("v2ray", "wss", "mux", "preconnect")


class PoolOptions(NamedTuple):
    """How a client keeps idle sessions."""

    min_idle: int = DEFAULT_MIN_IDLE  # newest sessions kept, however old
    check_interval: float = parse_duration(DEFAULT_IDLE_CHECK)  # seconds
    idle_timeout: float = parse_duration(DEFAULT_IDLE_TIMEOUT)  # seconds, for those beyond min_idle
    reuse: bool = True  # False: a session per connection
    warm: int = 0  # sessions opened at the start and kept


DEFAULT_POOL = PoolOptions()


def pool_options(values: Values, given: Values) -> PoolOptions:
    """The value of POOL_FLAGS: from all `values` and those `given`. Raises UsageError."""
    if values["dr"]:
        for flag in POOL_FLAGS:
            if flag is not DISABLE_REUSE and given.get(flag.name):
                raise UsageError(
                    f"-{flag.name}: only meaningful with reuse, which -dr disables; remove one"
                )
        values = values | {"m": 0, "warm": 0}
    return PoolOptions(
        min_idle=checked_min_idle("-m", values["m"]),
        check_interval=positive(values, "idle-check", DEFAULT_IDLE_CHECK),
        idle_timeout=positive(values, "idle-timeout", DEFAULT_IDLE_TIMEOUT),
        reuse=not values["dr"],
        warm=checked_min_idle("-warm", values["warm"]),
    )


def checked_min_idle(option: str, number: int) -> int:
    """`number` if it is a valid number of idle sessions. Raises UsageError."""
    if not 0 <= number <= MAX_MIN_IDLE:
        raise UsageError(f"{option}: {number} is not from 0 to {MAX_MIN_IDLE}")
    return number


def given_password(values: Values) -> str:
    """The password from -p or -password-file; empty without both. Raises UsageError."""
    text: str = values["p"]
    path: str = values["password-file"]
    if text and path:
        raise UsageError("-p and -password-file exclude each other; drop -p, which others can see")
    if path:
        return read_password("-password-file", path)
    return checked_password("-p", text) if text else ""


def tunnel_password(values: Values, given: Values) -> str:
    """The password of a tunnel with -anytls, else empty: from all `values` and those `given`.

    Raises UsageError if an option is missing, superfluous, or of another mode.
    """
    if not values["anytls"]:
        only_with("anytls", {"anytls": False} | given, _TUNNEL_FLAGS)
        return ""
    for name in _OTHER_MODES:
        if values.get(name):
            raise UsageError(f"-anytls and -{name} exclude each other; remove one")
    password = given_password(values)
    if not password:
        raise UsageError("-p is missing: -anytls needs a password, from -p or -password-file")
    return password


def read_password(option: str, path: str) -> str:
    """The password in a file of one line. Raises UsageError, which does not show it."""
    from mtt.files import read_text  # imports logging, which delays the start of plugins

    # Room for a byte order mark and an end of line.
    text = read_text(option, path, limit=MAX_PASSWORD + 8, secret=True)
    text = text.removesuffix("\n").removesuffix("\r")
    if "\n" in text or "\r" in text:
        raise UsageError(f"{option}: {path} has more than one line; write the password alone")
    if not text:
        raise UsageError(f"{option}: {path} is empty; write the password into it")
    return checked_password(option, text)


def checked_password(option: str, text: str) -> str:
    """`text` if it is a valid password: not empty, not too long, UTF-8. Raises UsageError."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:  # raw bytes from the command line, or half a surrogate pair in JSON
        raise UsageError(f"{option}: the password is not UTF-8 text") from None
    if not 0 < size <= MAX_PASSWORD:
        what = f"has more than {MAX_PASSWORD} bytes" if size else "is empty"
        raise UsageError(f"{option}: the password {what}; make one with: openssl rand -base64 24")
    return text


def given_scheme(values: Values) -> bytes:
    """The content of -padding-scheme; empty without it. Raises UsageError."""
    path: str = values["padding-scheme"]
    if not path:
        return b""
    from mtt.files import read_file
    from mtt.wire.padding import MAX_SCHEME

    option = "-padding-scheme"
    # Unmodified: clients compare a hash of the text, which includes the end of the last line.
    return checked_scheme(f"{option}: {path}", read_file(option, path, limit=MAX_SCHEME))


def checked_scheme(where: str, raw: bytes) -> bytes:
    """`raw` if it is a valid padding scheme. Raises UsageError."""
    from mtt.wire.padding import Scheme, SchemeError  # only if needed: plugins must start fast

    try:
        Scheme.parse(raw, strict=True)
    except SchemeError as error:
        raise UsageError(f"{where}: {error}") from None
    return raw
