"""The options of anyproxy-gateway, from its command line and the configuration file."""

from __future__ import annotations

import re
from dataclasses import replace

from anyproxy import config
from anyproxy.options import (
    CREDENTIAL_TYPES,
    DATABASE,
    DEFAULT_GROUP,
    DEFAULT_TABLE,
    FILE,
    MEMORY,
    NO_GROUP,
    UDP_TIMEOUT,
    CredentialOptions,
    GatewayOptions,
    GroupOptions,
    ProxyOptions,
)
from mtt.address import Endpoint, is_ip, overlap, parse_port
from mtt.errors import UsageError
from mtt.log import logger
from mtt.options.flags import Values, quoted
from mtt.options.section import Section
from mtt.options.trusted_proxies import TrustedProxies, parse_trusted_proxies
from mtt.users.user import User

# The name of the section for all groups that have none of their own.
OTHER_GROUPS = "*"

# A sum of agents or streams that is larger is a typing error.
MAX_LIMIT = 10**6

# Go's defaults for an empty gateway.listen_addr.
_BIND, _BIND_TLS = Endpoint(("",), 80), Endpoint(("",), 443)

_SQLITE = ("sqlite", "sqlite3")
# It is part of SQL statements.
_TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")

_RATE = re.compile(r"([0-9]{1,15})\s*((?:[kMGT]i?)?)B?", re.IGNORECASE)
_UNITS = {
    "": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
    "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40,
}  # fmt: skip


def gateway_options(values: Values, *, sockets: tuple[int, ...] = ()) -> GatewayOptions:
    """The options of anyproxy-gateway, from the `values` of `config.with_file()`.

    `sockets` are descriptors to listen on for agents instead of gateway.listen_addr. Logs warnings.
    Raises UsageError.
    """
    top: Section = values[config.TREE]
    top.skip("client", "log")
    if not top.has("gateway"):
        if top.has("client"):
            top.fail("gateway", "missing; this is the file of a client")
        top.missing("gateway", "the settings of the gateway there")
    gateway = top.section("gateway")
    config.refuse_other_transports(gateway)
    config.refuse_other_transports(top.section("transport"), "type")
    tls = config.server_tls(gateway)
    if client_ca := gateway.text("client_ca"):
        if tls is None:
            gateway.fail("client_ca", "needs tls_cert and tls_key")
        tls = replace(tls, client_ca=client_ca, ca_option=gateway.where("client_ca"))
    listen = gateway.endpoint("listen_addr") or (_BIND if tls is None else _BIND_TLS)
    bind = None if sockets else listen
    agents_login = config.login(gateway)
    if tls is None and bind is not None and config.is_remote(bind):
        logger.warning(
            "%s: missing: anyone on the path can read passwords and connections; add tls_cert and "
            "tls_key, or listen on 127.0.0.1 if a proxy in front does TLS",
            gateway.label("tls_cert"),
        )
    if agents_login is None and not client_ca and bind is not None and config.is_public(bind):
        logger.warning(
            "%s: missing: anyone who can reach %s can join as an agent of a new group; set it and "
            "auth_password, or client_ca", gateway.label("auth_username"), bind,
        )  # fmt: skip
    http, socks5 = _proxies(top, gateway)
    default, groups = _groups(gateway)
    if top.has("proxy") and agents_login is not None and NO_GROUP not in groups:
        # Clients of that time have no groups, and log in as every agent does.
        groups[NO_GROUP] = replace(default, allow_without_password=True)
    options = GatewayOptions(
        bind=bind,
        sockets=sockets,
        tls=tls,
        login=agents_login,
        credentials=_credentials(gateway.section("credential")),
        groups=groups,
        default_group=default,
        http=http,
        socks5=socks5,
        web=config.web(gateway),
        metrics_per_group=gateway.boolean("metrics_per_group"),
        udp_timeout=gateway.duration("udp_timeout", UDP_TIMEOUT),
        **config.service_values(values) | {"trusted_proxies": _trusted_proxies(gateway)},
    )
    gateway.done()
    top.done()
    _refuse_shared_addresses(options, "proxy" if top.has("proxy") else "gateway.proxy")
    return options


def _refuse_shared_addresses(options: GatewayOptions, proxies: str) -> None:
    """Raise UsageError if two ports have the same address. `proxies`: the path of the section."""
    used: dict[str, Endpoint] = {}
    ports = {
        f"{proxies}.http": options.http,
        f"{proxies}.socks5": options.socks5,
        "gateway.web": options.web,
    }
    binds = {
        "gateway.listen_addr": options.bind,
        **{f"{path}.listen_addr": port.bind for path, port in ports.items() if port is not None},
        "-metrics": options.metrics,
    }
    for key, each in binds.items():
        if each is None:
            continue
        for other, address in used.items():
            if overlap(each, address):
                raise UsageError(f"{other} and {key} listen on one address, {each}; change one")
        used[key] = each


def _trusted_proxies(gateway: Section) -> TrustedProxies | None:
    """The proxies in front of the gateway. Raises UsageError."""
    if not gateway.has("trusted_proxies"):
        gateway.skip("trusted_proxies")
        return None
    label, texts = gateway.label("trusted_proxies"), gateway.texts("trusted_proxies")
    return parse_trusted_proxies(label, ",".join(texts)) if texts else None


# Proxies.


def _proxies(top: Section, gateway: Section) -> tuple[ProxyOptions | None, ProxyOptions | None]:
    """The HTTP and the SOCKS5 proxy. In older files they are at the top."""
    if top.has("proxy") and gateway.has("proxy"):
        top.fail("proxy", "there is gateway.proxy, too; move all to that")
    proxies = (top if top.has("proxy") else gateway).section("proxy")
    gateway.skip("proxy")
    tuic = proxies.section("tuic")
    if tuic.text("listen_addr"):
        tuic.fail("listen_addr", "TUIC is not supported; remove it, and use SOCKS5 for UDP")
    tuic.done()
    http, socks5 = proxies.section("http"), proxies.section("socks5")
    found = _proxy(http), _proxy(socks5, has_tls=False)
    proxies.done()
    if found == (None, None):
        logger.warning("%s: no proxy has a listen_addr; users cannot connect", proxies.label())
    return found


def _proxy(section: Section, *, has_tls: bool = True) -> ProxyOptions | None:
    bind = section.endpoint("listen_addr")
    tls = config.server_tls(section) if has_tls else None
    login: User | None = config.login(section)
    group = config.name_of(section, "group", section.text("group") or NO_GROUP)
    # With a login of its own, the proxy needs no others.
    group_login = section.boolean("group_login", login is None)
    section.done()
    if bind is None:
        return None
    if login is None and not group_login and config.is_remote(bind):
        logger.warning(
            "%s: anyone who can reach %s can use the proxy; set auth_username and auth_password",
            section.label("group_login"), bind,
        )  # fmt: skip
    elif tls is None and (login is not None or group_login) and config.is_public(bind):
        _warn_of_clear_logins(section, bind, has_tls)
    return ProxyOptions(bind=bind, tls=tls, login=login, group=group, group_login=group_login)


def _warn_of_clear_logins(section: Section, bind: Endpoint, has_tls: bool) -> None:
    if has_tls:
        key, fix = "tls_cert", "add tls_cert and tls_key, or listen on 127.0.0.1"
    else:
        key, fix = "listen_addr", "SOCKS5 has no TLS, so listen on 127.0.0.1, or use an HTTPS proxy"
    logger.warning(
        "%s: anyone on the path to %s can read the logins of users; %s",
        section.label(key), bind, fix,
    )  # fmt: skip


# Groups.


def _credentials(section: Section) -> CredentialOptions:
    kind = section.choice("type", CREDENTIAL_TYPES, MEMORY)
    allowed = section.boolean("allow_without_password", weakens=True)
    path = section.text("file_path") or "credentials.json"
    database = section.section("db")
    driver = database.text("driver").lower()
    source = database.text("data_source")
    table = database.text("table_name") or DEFAULT_TABLE
    database.done()
    section.done()
    if kind == DATABASE:
        if driver not in _SQLITE:
            database.fail("driver", f"{quoted(driver)} is not supported; write sqlite")
        path = source.removeprefix("file:").partition("?")[0]  # drivers of Go take URIs
        if not path or path.startswith(":memory:"):
            database.fail("data_source", "give the path of an SQLite file")
        if _TABLE.fullmatch(table) is None:
            database.fail("table_name", f"{quoted(table)} is not a name of letters, digits and _")
    return CredentialOptions(
        kind=kind,
        path=path if kind in (FILE, DATABASE) else "",
        table=table,
        allow_without_password=allowed,
    )


def _groups(gateway: Section) -> tuple[GroupOptions, dict[str, GroupOptions]]:
    """The options of groups without a section of their own, and those of the others by name."""
    ports = gateway.section("ports")
    base = replace(DEFAULT_GROUP, ports_bind=_address(ports, "bind", DEFAULT_GROUP.ports_bind))
    ports.done()
    sections = gateway.section("groups")
    default = base
    if sections.has(OTHER_GROUPS):
        others = sections.section(OTHER_GROUPS)
        if others.has("password"):
            others.fail("password", "every group needs its own; remove it")
        default = _group(others, base)
    groups = {}
    for name in sections.names():
        if name != OTHER_GROUPS:
            if reason := config.unfit_name(name):
                sections.fail(name, f"the name {reason}")
            groups[name] = _group(sections.section(name), default)
    return default, groups


def _group(section: Section, default: GroupOptions) -> GroupOptions:
    from mtt.outbound.groups import BALANCES  # imports asyncio

    options = GroupOptions(
        balance=section.choice("balance", BALANCES, default.balance),
        password=config.password_of(section, "password"),
        allow_without_password=section.boolean(
            "allow_without_password", default.allow_without_password, weakens=True
        ),
        ports=_ports(section, default.ports),
        ports_bind=_address(section, "ports_bind", default.ports_bind),
        max_agents=section.number("max_agents", default.max_agents, most=MAX_LIMIT),
        max_streams=section.number("max_streams", default.max_streams, most=MAX_LIMIT),
        rate=_rate(section, default.rate),
        allow_from=config.networks(section, "allow_from", default.allow_from),
    )
    section.done()
    return options


def _ports(section: Section, default: tuple[range, ...]) -> tuple[range, ...]:
    """Ports like `[8000, 9000-9010]`; `[]` for none."""
    if not section.has("ports"):
        section.skip("ports")
        return default
    found = []
    for text in section.texts("ports"):
        first, dash, last = text.partition("-")
        try:
            ports = range(parse_port(first), parse_port(last if dash else first) + 1)
            if not ports or ports.start == 0:
                raise ValueError
        except ValueError:
            section.fail("ports", f"{quoted(text)} is not like 8000 or 8000-8010")
        found.append(ports)
    return tuple(found)


def _address(section: Section, key: str, default: str) -> str:
    """An IP address to listen on."""
    address = section.text(key) or default
    if not is_ip(address):
        section.fail(key, f"{quoted(address)} is not an IP address; write 0.0.0.0 for all")
    return address


def _rate(section: Section, default: int) -> int:
    """Bytes per second, like 500kB, 10MB or 1MiB."""
    text = section.text("rate")
    if not text:
        return default
    match = _RATE.fullmatch(text)
    if match is None:
        section.fail("rate", f"{quoted(text)} is not bytes per second; write it like 500kB or 10MB")
    return int(match[1]) * _UNITS[match[2].lower()]
