"""The configuration file of both commands, and the parts that gateway and client share.

Keys are those of the Go program's `configs/config.yaml`, and its file may hold the settings of both
ends. Keys that have no effect here are named in a warning; settings that cannot be followed, and
unknown keys, are errors.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from typing import Any

from anyproxy.options import ANYWHERE, Network, WebOptions
from mtt.address import Endpoint, is_ip, is_loopback, unmapped
from mtt.errors import UsageError
from mtt.log import logger
from mtt.options import common
from mtt.options.flags import Flag, Group, Values, defaults, quoted
from mtt.options.process import (
    CHECK,
    GRACE,
    HELP,
    LOG,
    LOG_FORMATS,
    LOG_LEVEL,
    LOG_LEVELS,
    LOOP,
    VERBOSE,
    VERSION,
    WORKERS,
)
from mtt.options.section import Section
from mtt.trust.tls_options import ServerTls
from mtt.users.file import checked_user
from mtt.users.user import User
from mtt.wire.alpn import WEBSOCKET

CONFIG = "config"
# The Go program's default.
DEFAULT_CONFIG = "configs/config.yaml"
# The value under which `with_file()` passes the file on.
TREE = "tree"

# Bytes of a name: it stands in log lines, metrics and pages.
MAX_NAME = 128
# Bytes of a password in a header.
MAX_PASSWORD = 1024
# Ranges of addresses in one list: every connection searches them one by one.
MAX_NETWORKS = 1000

# Each process would have its own agents, so there is one; hence no -workers.
FLAGS = (
    Flag(CONFIG, "str", "Configuration file: YAML (.yaml, .yml), JSON (.json) or TOML (.toml).",
         "FILE", DEFAULT_CONFIG, group=Group.CONFIGURATION),
    CHECK,
    common.TIMEOUT,
    common.MAX_CONNS,
    common.METRICS,
    GRACE,
    LOOP,
    LOG,
    LOG_LEVEL,
    VERBOSE,
    VERSION,
    HELP,
)  # fmt: skip

_NO_FILE = "the log goes to stderr"
_LEVELS = {level: level for level in LOG_LEVELS} | {"warn": "warning"}

# The key of the environment in the values of `with_file()`.
ENVIRON = "environ"


def with_file(given: Values, environ: Mapping[str, str]) -> Values:
    """The options `given`, with those of the file of -config. Raises UsageError.

    The file's own settings follow under TREE, and the environment under ENVIRON, for
    `gateway_options()` or `agent_options()`.
    """
    from mtt.options.tree import read_tree  # only if needed: -h must be fast

    if CONFIG not in given and not os.path.exists(DEFAULT_CONFIG):
        raise UsageError(
            f"-{CONFIG}: cannot read {DEFAULT_CONFIG}: no such file; give yours with -{CONFIG} FILE"
        )
    top = read_tree(f"-{CONFIG}", path_of(given), environ, is_secret=_is_secret)
    return _log_values(top.section("log"), given) | given | {TREE: top, ENVIRON: environ}


def _is_secret(key: str, text: str) -> bool:
    if key == "proxy":  # a URL, which may have a login
        return "@" in text
    return bool(text) and key in ("auth_password", "group_password", "password")


def path_of(given: Values) -> str:
    """The path of the file."""
    path: str = (defaults(FLAGS) | given)[CONFIG]
    return path


def _log_values(log: Section, given: Values) -> Values:
    """-log and -log-level as in the section "log"."""
    level = log.choice("level", _LEVELS, "info")
    values: Values = {"log": log.choice("format", LOG_FORMATS, LOG_FORMATS[0])}
    if not given.get("verbose"):
        values["log-level"] = _LEVELS[level]
    output = ("output",) if log.text("output") != "stderr" else ()
    log.ignore(_NO_FILE, *output, "file", "max_size", "max_backups", "max_age", "compress")
    log.done()
    return values


def service_values(values: Values) -> dict[str, Any]:
    """The fields of ServiceOptions that come from the command line. Raises UsageError."""
    return common.service_values(defaults((*FLAGS, WORKERS)) | values)


def refuse_other_transports(section: Section, key: str = "transport_type") -> None:
    """Raise UsageError unless the transport is WebSocket."""
    kind = section.text(key) or "websocket"
    if kind.lower() != "websocket":
        section.fail(
            key, f"{quoted(kind)} is not supported; write websocket here and at the other end"
        )


def server_tls(section: Section) -> ServerTls | None:
    """The keys tls_cert and tls_key; None without them."""
    cert, key = both(section, "tls_cert", "tls_key")
    if not cert:
        return None
    options = (section.where("tls_cert"), section.where("tls_key"))
    return ServerTls(cert=cert, key=key, alpn=WEBSOCKET, options=options)


def web(above: Section) -> WebOptions | None:
    """The section "web"; None if it is not enabled. Raises UsageError."""
    section = above.section("web")
    is_enabled, has_login = section.boolean("enabled"), section.boolean("auth_enabled")
    bind = section.endpoint("listen_addr")
    name, password = section.text("auth_username"), section.text("auth_password")
    tls = server_tls(section)
    section.skip("static_dir", "session_key")  # pages of the Go program, and a key that it ignores
    section.done()
    if not is_enabled:
        return None
    if bind is None:
        section.fail("listen_addr", "missing; give an address, like 127.0.0.1:8090")
    if not has_login:
        if is_remote(bind):
            section.fail(
                "auth_enabled", f"everyone could read the figures at {bind}; set it, with "
                "auth_username and auth_password, or listen on 127.0.0.1"
            )  # fmt: skip
        return WebOptions(bind=bind, tls=tls)
    for key, text in (("auth_username", name), ("auth_password", password)):
        if not text:
            section.fail(key, "missing; auth_enabled needs a name and a password")
    if tls is None and is_remote(bind):
        logger.warning(
            "%s: missing: anyone on the path can read the login", section.label("tls_cert")
        )
    login = checked_user(section.label("auth_username"), name, password)
    return WebOptions(bind=bind, login=login, tls=tls)


def login(section: Section) -> User | None:
    """The keys auth_username and auth_password; None without a name. Raises UsageError."""
    name, password = section.text("auth_username"), section.text("auth_password")
    if not name:
        if password:
            section.fail("auth_password", "only used with auth_username; add it, or remove this")
        return None
    return checked_user(section.label("auth_username"), name, password)


def name_of(section: Section, key: str, text: str) -> str:
    """`text` if it can be the name of a group or client, which stands in headers and logins."""
    reason = unfit_name(text)
    if reason:
        section.fail(key, f"{quoted(text)} {reason}")
    return text


def unfit_name(name: str) -> str:
    """Why a group or client cannot have this name; "" if it can."""
    if not (name.isascii() and name.isprintable()) or name != name.strip():
        return "is not printable ASCII without spaces around it"
    if ":" in name:  # it ends the name in a login of HTTP (RFC 7617, 2)
        return "has a colon; remove it"
    return f"is longer than {MAX_NAME} characters" if len(name) > MAX_NAME else ""


def password_of(section: Section, key: str) -> str:
    """The password of a group, which is sent in a header; may be empty. Raises UsageError."""
    text = section.text(key)
    if not (text.isascii() and text.isprintable()) or text != text.strip():
        section.fail(key, "a password of a group is printable ASCII without spaces around it")
    if len(text) > MAX_PASSWORD:
        section.fail(key, f"the password has more than {MAX_PASSWORD} characters")
    return text


def is_remote(endpoint: Endpoint) -> bool:
    """Whether connections to an address may cross a network."""
    return not all(host == "localhost" or is_loopback(host) for host in endpoint.hosts)


def is_public(endpoint: Endpoint) -> bool:
    """Whether connections to an address may come from the Internet, without a NAT in between."""
    return not all(host == "localhost" or _is_private(host) for host in endpoint.hosts)


def _is_private(host: str) -> bool:
    """Whether `host` is an IP literal of a private network (RFC 1918, RFC 4193) or this machine."""
    if not is_ip(host := unmapped(host)):
        return False
    address = ipaddress.ip_address(host)
    return not (address.is_global or address.is_unspecified or address.is_multicast)


def networks(section: Section, key: str, default: tuple[Network, ...]) -> tuple[Network, ...]:
    """Ranges of addresses; `default` if the key is missing. Raises UsageError."""
    if not section.has(key):
        section.skip(key)
        return default
    texts = section.texts(key)
    if not texts:  # easily meant as "nowhere"
        section.fail(key, f"an empty list; remove it, or write {ANYWHERE[0]}")
    if len(texts) > MAX_NETWORKS:
        section.fail(key, f"{len(texts)} ranges are too many; {MAX_NETWORKS} at most")
    found = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text, strict=False))
        except ValueError:
            section.fail(key, f"{quoted(text)} is not a range of addresses, like 192.0.2.0/24")
    return tuple(found)


def both(section: Section, first: str, second: str) -> tuple[str, str]:
    """Two keys that need each other. Raises UsageError if only one is there."""
    texts = section.text(first), section.text(second)
    for key, other, (mine, others) in (
        (first, second, texts), (second, first, texts[::-1])
    ):  # fmt: skip
        if mine and not others:
            section.fail(key, f"needs {other}; give both, or neither")
    return texts
