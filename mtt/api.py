"""Client and server for programs that embed the tunnel in their own event loop: docs/embedding.md.

The commands run the same client and server, but own their process: here are no signals, no log
handlers, no child processes. Keyword arguments stand for the commands' options and are checked
alike. They have the options' names, except for single letters and abbreviations.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Required, Self, TypedDict, Unpack

from mtt import client, server
from mtt.errors import StartError, UsageError
from mtt.modes import MODES
from mtt.options.flags import Flag, Values
from mtt.options.tunnel import CLIENT_FLAGS, SERVER_FLAGS, client_options, server_options
from mtt.tunnels.service import Service

FilePath = str | os.PathLike[str]

# Options of other names than their keyword arguments; elsewhere an underscore stands for a dash.
_OPTIONS = {
    "listen": "b",
    "listen_unix": "bind-unix",
    "destination": "d",
    "server": "s",
    "server_name": "n",
    "certificate_name": "n",
    "skip_verify": "sv",
    "password": "p",
    "min_idle": "m",
    "disable_reuse": "dr",
}

# An option in the text of an error, but not in a quoted value.
_OPTION = re.compile(r"(?<![\w/.'\"-])-([a-zA-Z][\w-]*)")

# Types of values, by the kind of the option. Durations are seconds.
_TYPES: dict[str, type[Any]] = {"bool": bool, "int": int, "duration": float, "str": str}


class CommonKeywords(TypedDict, total=False):
    """The keyword arguments of both ends. None stands for an option that is not given."""

    listen: str | None  # "host:port"; port 0 draws a free one
    mode: str  # "tls" (the default), "wss", "mux", "wss+mux", "v2ray", "v2ray+mux" or "anytls"
    cert: FilePath | None
    key: FilePath | None
    tls_min: str | None
    wss_path: str | None
    password: str | None
    password_file: FilePath | None
    timeout: float | None
    max_conns: int | None
    fast_open: bool
    metrics: str | None
    udp: bool
    udp_timeout: float | None


class ClientKeywords(CommonKeywords, total=False):
    """The keyword arguments of a client."""

    server: Required[str]  # "host:port"
    proxy: str | None
    server_name: str | None
    ca: FilePath | None
    pin: str | Sequence[str] | None
    skip_verify: bool
    wss_mask: bool
    early_data: int | None
    mux_max_stream: int | None
    mux_warm: int | None
    mux_idle: float | None
    preconnect: int | None
    min_idle: int | None
    warm: int | None
    idle_check: float | None
    idle_timeout: float | None
    disable_reuse: bool
    fallback_dns: str | None


class ServerKeywords(CommonKeywords, total=False):
    """The keyword arguments of a server."""

    destination: Required[str]  # "host:port"
    listen_unix: FilePath | None
    cert_dir: FilePath | None
    certificate_name: str | None
    client_ca: FilePath | None
    disable_tls: bool
    fallback: str | None
    proxy_protocol: str | None
    fallback_proxy_protocol: str | None
    trusted_proxies: str | None
    padding_scheme: FilePath | None


CLIENT_KEYWORDS = ClientKeywords.__required_keys__ | ClientKeywords.__optional_keys__
SERVER_KEYWORDS = ServerKeywords.__required_keys__ | ServerKeywords.__optional_keys__


def option_of(keyword: str) -> str:
    """The name of the option that a keyword argument, except `mode`, stands for."""
    return _OPTIONS.get(keyword) or keyword.replace("_", "-")


def _values(keywords: Mapping[str, Any], known: frozenset[str], flags: Sequence[Flag]) -> Values:
    """The option values in `keywords`; `known` are valid. Raises TypeError and UsageError."""
    by_name = {flag.name: flag for flag in flags}
    values: Values = {}
    for keyword, value in keywords.items():
        if keyword not in known:
            raise TypeError(f"unexpected keyword argument {keyword!r}")
        if keyword == "mode":
            if value not in MODES:
                raise UsageError(f"mode: {value!r} is none of {', '.join(MODES)}")
            values |= dict.fromkeys(MODES[value].options, True)
        elif value is not None:
            flag = by_name[option_of(keyword)]
            values[flag.name] = _value(keyword, flag, value)
    return values


def _value(keyword: str, flag: Flag, value: Any) -> Any:
    """The option's value for the keyword argument `value`. Raises TypeError."""
    if flag.repeatable:
        several = (value,) if isinstance(value, str) else tuple(value)
        return tuple(_value(keyword, flag._replace(repeatable=False), each) for each in several)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif flag.kind == "duration" and type(value) is int:
        value = float(value)
    wanted = _TYPES[flag.kind]
    if (isinstance(value, bool) and wanted is not bool) or not isinstance(value, wanted):
        raise TypeError(f"{keyword} is of type {wanted.__name__}, not {type(value).__name__}")
    return value


@contextlib.contextmanager
def _errors_name(keywords: frozenset[str]) -> Iterator[None]:
    """Make errors name `keywords` instead of options."""
    names = {option_of(keyword): keyword for keyword in keywords}
    names |= {option: f'mode "{option}"' for mode in MODES.values() for option in mode.options}
    try:
        yield
    except (UsageError, StartError) as error:
        text = _OPTION.sub(lambda found: names.get(found[1], found[0]), str(error))
        raise type(error)(text) from error.__cause__


class _Embedded:
    """One run of a service: from `start()`, or the beginning of an `async with`, to `close()`.

    `make` makes the service. Errors about its options name `keywords`.
    """

    def __init__(self, keywords: frozenset[str], make: Callable[[], Service]) -> None:
        self._keywords = keywords
        self._make: Callable[[], Service] | None = make  # None once started
        self._service: Service | None = None

    async def start(self) -> None:
        """Listen, and serve in the background.

        Raises StartError (no permission, port in use) or UsageError (a certificate cannot be used);
        nothing is left behind then.
        """
        make, self._make = self._make, None
        if make is None:
            raise RuntimeError("it has been started before; make another one")
        with _errors_name(self._keywords):
            service = make()
            try:
                await service.start()
            except BaseException:
                await service.close()
                raise
        self._service = service

    async def drain(self) -> None:
        """Stop listening and wait until the last tunnel has ended, however long that takes."""
        if self._service is not None:
            await self._service.drain()

    async def close(self) -> None:
        """Stop listening and cut all tunnels. Does nothing when called again."""
        service, self._service = self._service, None
        if service is not None:
            await service.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def reload(self) -> None:
        """Reload certificates and keys in the background; the log reports the result."""
        self._running().reload()

    @property
    def addresses(self) -> tuple[str, ...]:
        """The listening addresses: "host:port" with the real port, or a unix socket's path."""
        return tuple(self._running().addresses)

    @property
    def metrics_addresses(self) -> tuple[str, ...]:
        """The addresses of the metrics server; empty without `metrics`."""
        return tuple(self._running().metrics_addresses)

    @property
    def tunnels(self) -> int:
        """The number of tunnels that are open or being opened."""
        return self._running().tunnels

    def _running(self) -> Service:
        if self._service is None:
            raise RuntimeError("it is not running: use `async with`, or `start()` it first")
        return self._service


class Client(_Embedded):
    """Listens for connections and carries each to a server, as mtt-client does.

    Raises UsageError for options that cannot work; nothing else happens before `start()`.
    """

    def __init__(self, **keywords: Unpack[ClientKeywords]) -> None:
        with _errors_name(CLIENT_KEYWORDS):
            self._options = client_options(_values(keywords, CLIENT_KEYWORDS, CLIENT_FLAGS))
        super().__init__(CLIENT_KEYWORDS, partial(client.Client, self._options))


class Server(_Embedded):
    """Takes the tunnels of clients and connects each to a destination, as mtt-server does.

    Raises UsageError for options that cannot work; nothing else happens before `start()`.
    """

    def __init__(self, **keywords: Unpack[ServerKeywords]) -> None:
        with _errors_name(SERVER_KEYWORDS):
            self._options = server_options(_values(keywords, SERVER_KEYWORDS, SERVER_FLAGS))
        super().__init__(SERVER_KEYWORDS, partial(server.Server, self._options))

    @property
    def pin(self) -> str | None:
        """The value for a client's `pin`, once the server runs; None without TLS."""
        files = self._running().certificates
        identity = files[0].identity if files else None
        return identity.words.pin if identity is not None else None
