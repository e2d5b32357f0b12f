"""The options of anyproxy-client, from its command line and the configuration file."""

from __future__ import annotations

from collections.abc import Mapping

from anyproxy import config
from anyproxy.options import (
    ANYWHERE,
    MAX_OPEN_PORTS,
    NO_GROUP,
    PROTOCOLS,
    TCP,
    UDP_TIMEOUT,
    AgentOptions,
    OpenPort,
)
from mtt.address import Endpoint, is_ip
from mtt.errors import UsageError
from mtt.log import logger
from mtt.options.common import LOOPBACK, host_name, reachable
from mtt.options.flags import Values, quoted
from mtt.options.proxy import ENVIRONMENT, Way, from_environment, parse_proxy
from mtt.options.section import Section
from mtt.proxy.host_rules import HostRules, parse_patterns
from mtt.trust.identity import parse_pin
from mtt.trust.tls_options import ClientTls
from mtt.wire import proxy_protocol

# Sessions with each gateway. One carries thousands of streams; more help on slow links.
MAX_REPLICAS = 64
MAX_GATEWAYS = 64

# Schemes of a gateway's address, each with its default port.
_SCHEMES = {"ws": 80, "wss": 443}
_PATHS = ("", "/ws")  # without a slash at the end


def agent_options(values: Values) -> AgentOptions:
    """The options of anyproxy-client, from the `values` of `config.with_file()`.

    Logs warnings. Raises UsageError.
    """
    top: Section = values[config.TREE]
    top.skip("gateway", "proxy", "log")
    if not top.has("client"):
        if top.has("gateway"):
            top.fail("client", "missing; this is the file of a gateway")
        top.missing("client", "the settings of the agent there")
    client = top.section("client")
    config.refuse_other_transports(top.section("transport"), "type")
    name, group = _names(client)
    # In older files, what is about the gateway is among the other keys.
    is_older = client.has("gateway_addr")
    gateway = client if is_older else client.section("gateway")
    addresses, schemes = _gateways(gateway, "gateway_addr" if is_older else "addr")
    cert_key = "gateway_tls_cert" if is_older else "tls_cert"
    tls = _tls(gateway, cert_key, schemes)
    if tls is None and any(map(config.is_remote, addresses)):
        logger.warning(
            "%s: missing: anyone on the path can read passwords and connections; if the gateway "
            "has TLS, write wss:// before its address", gateway.label(cert_key),
        )  # fmt: skip
    options = AgentOptions(
        bind=None,
        id=name,
        group=group,
        password=config.password_of(client, "group_password"),
        replicas=_replicas(client),
        gateways=addresses,
        tls=tls,
        login=config.login(gateway),
        proxy=_proxy(gateway, values.get(config.ENVIRON, {})),
        rules=_rules(client),
        protocols=_protocols(client),
        open_ports=_open_ports(client),
        web=config.web(client),
        udp_timeout=client.duration("udp_timeout", UDP_TIMEOUT),
        **config.service_values(values),
    )
    config.refuse_other_transports(gateway)
    gateway.done()
    client.done()
    top.done()
    return options


def _proxy(gateway: Section, environ: Mapping[str, str]) -> Way:
    """The proxy on the way to the gateways. Raises UsageError."""
    text = gateway.text("proxy")
    if text == ENVIRONMENT:
        return from_environment(environ)
    return parse_proxy(gateway.label("proxy"), text) if text else None


def _names(client: Section) -> tuple[str, str]:
    """The names of the client and its group."""
    is_older = client.has("client_id")
    key = "client_id" if is_older else "id"
    name = config.name_of(client, key, client.required(key, "the name of this client"))
    group = client.text("group_id")
    if not group and not is_older:
        client.missing("group_id", "the group's name, which is the users' login")
    return name, config.name_of(client, "group_id", group or NO_GROUP)


def _replicas(client: Section) -> int:
    replicas = client.number("replicas", 1, most=MAX_REPLICAS)
    if replicas == 0:  # in the Go program a client that does nothing
        logger.warning("%s: 0 means 1 here; write 1", client.label("replicas"))
    return replicas or 1


# Gateways.


def _gateways(section: Section, key: str) -> tuple[tuple[Endpoint, ...], set[str]]:
    """The gateways' addresses, and the schemes written before them; "" for none."""
    texts = section.texts(key)
    if not texts:
        section.missing(key, "the gateway's address, like wss://gateway.example.com:8443")
    if len(texts) > MAX_GATEWAYS:
        section.fail(key, f"{len(texts)} gateways are too many; {MAX_GATEWAYS} at most")
    found: dict[Endpoint, None] = {}
    schemes = set()
    for text in texts:
        scheme, separator, rest = text.partition("://")
        if not separator:
            scheme, rest = "", text
        elif scheme.lower() not in _SCHEMES:
            section.fail(key, "the address begins with another scheme than wss:// and ws://")
        else:
            scheme = scheme.lower()
            rest, slash, path = rest.partition("/")
            if (slash + path).rstrip("/") not in _PATHS:
                section.fail(key, "the path is always /ws; remove it")
            if not rest.rpartition(":")[2].isdigit():  # also for a bare IPv6 address in brackets
                rest = f"{rest.removesuffix(':')}:{_SCHEMES[scheme]}"
        schemes.add(scheme)
        address = reachable(section.label(key), rest)
        hosts = tuple(
            host if is_ip(host) else host_name(section.label(key), host) for host in address.hosts
        )
        found[address._replace(hosts=hosts)] = None
    return tuple(found), schemes


def _tls(section: Section, cert_key: str, schemes: set[str]) -> ClientTls | None:
    """The TLS options; None if neither the addresses nor any key ask for TLS, as in Go."""
    roots, ca = section.text(cert_key), section.text("ca")
    if roots and ca:
        section.fail("ca", f"the same as {cert_key}; remove one")
    cert, key = config.both(section, "client_cert", "client_key")
    server_name = section.text("server_name")
    if server_name:
        server_name = host_name(section.label("server_name"), server_name)
    insecure = section.boolean("insecure", weakens=True)
    pins = []
    for text in section.texts("pin"):
        try:
            pins.append(parse_pin(text))
        except UsageError:
            section.fail("pin", f"{quoted(text)} is not like the gateway's, sha256/BASE64")
    if insecure and (roots or ca or pins):
        section.fail("insecure", "skips verification; remove it, or what is to be verified")
    if not (roots or ca or cert or server_name or insecure or pins or "wss" in schemes):
        return None
    if "ws" in schemes:
        section.fail(cert_key, "not with ws://, which means no TLS; write wss:// in the address")
    return ClientTls(
        server_name=server_name,
        ca=roots or ca,
        pins=tuple(pins),
        skip_verify=insecure,
        cert=cert,
        key=key,
        options=(section.where("client_cert"), section.where("client_key")),
        ca_option=section.where(cert_key if roots else "ca"),
    )


# Targets.


def _rules(client: Section) -> HostRules:
    allowed, forbidden = (
        parse_patterns(client.label(key), client.texts(key), allow=key == "allowed_hosts")
        for key in ("allowed_hosts", "forbidden_hosts")
    )
    return HostRules(allowed, forbidden)


def _protocols(client: Section) -> frozenset[str]:
    """The allowed protocols; all without the key, or with an empty list, as with hosts."""
    found = client.texts("allowed_protocols")
    for text in found:
        if text not in PROTOCOLS:
            client.fail("allowed_protocols", f"{quoted(text)} is not tcp or udp")
    return frozenset(found or PROTOCOLS)


def _open_ports(client: Section) -> tuple[OpenPort, ...]:
    sections = client.sections("open_ports")
    if len(sections) > MAX_OPEN_PORTS:
        client.fail("open_ports", f"{len(sections)} are too many; {MAX_OPEN_PORTS} at most")
    found: dict[tuple[object, ...], OpenPort] = {}
    for section in sections:
        port = _open_port(section)
        key: tuple[object, ...] = port.protocol, port.remote_port
        if not port.remote_port:  # any port, one for each target
            key = *key, port.local_host, port.local_port
        if key in found:
            section.fail("remote_port", f"{port.remote_port} ({port.protocol}) is there twice")
        found[key] = port
    return tuple(found.values())


def _open_port(section: Section) -> OpenPort:
    host = section.text("local_host") or LOOPBACK
    port = OpenPort(
        remote_port=section.port("remote_port", least=0),  # 0: any
        local_host=host if is_ip(host) else host_name(section.label("local_host"), host),
        local_port=section.port("local_port"),
        protocol=section.choice("protocol", PROTOCOLS, TCP),
        proxy_protocol=section.text("proxy_protocol").lower(),
        allow_from=config.networks(section, "allow_from", ANYWHERE),
    )
    if port.proxy_protocol not in ("", *proxy_protocol.VERSIONS):
        section.fail("proxy_protocol", f"{quoted(port.proxy_protocol)} is not v1 or v2")
    if port.proxy_protocol and port.protocol != TCP:
        section.fail("proxy_protocol", "only for tcp; remove it")
    section.done()
    return port
