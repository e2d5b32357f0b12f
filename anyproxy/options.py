"""The checked options of anyproxy-gateway and anyproxy-client, as the services take them."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mtt.address import Endpoint
from mtt.options.common import ServiceOptions
from mtt.options.proxy import Way
from mtt.proxy.host_rules import ALLOW_ALL, HostRules
from mtt.trust.tls_options import ClientTls, ServerTls
from mtt.users.user import User

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
ANYWHERE = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))

# Path of the agents' WebSocket, fixed in the Go programs.
AGENT_PATH = "/ws"

# The group of users and agents that name none.
NO_GROUP = "default"

# The Go program's table of groups.
DEFAULT_TABLE = "credentials"

# Seconds without a datagram; RFC 4787 (4.3) requires at least two minutes of a NAT and recommends
# five.
UDP_TIMEOUT = 300.0

MEMORY, FILE, DATABASE = "memory", "file", "db"
CREDENTIAL_TYPES = (MEMORY, FILE, DATABASE)

TCP, UDP = "tcp", "udp"
PROTOCOLS = (TCP, UDP)

# Forwarded ports of an agent: they fit in a message, and each takes a descriptor of the gateway.
MAX_OPEN_PORTS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class WebOptions:
    """The JSON interface for pages."""

    bind: Endpoint  # only loopback addresses without a login
    login: User | None = None
    tls: ServerTls | None = None

    def differs_in_login(self, other: WebOptions | None) -> bool:
        """Whether both have logins, and these are all that differs."""
        return (
            other is not None
            and None not in (self.login, other.login)
            and self != other == replace(self, login=other.login)
        )


# Gateway.


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyOptions:
    """One proxy port of the gateway.

    A user logs in with a group's name and password (`group_login`), or with `login`, whose
    connections go to `group`, or both. Without either, everyone who can reach the port uses
    `group`.
    """

    bind: Endpoint
    tls: ServerTls | None = None  # an HTTPS proxy
    login: User | None = None
    group: str = ""  # for `login`, and for users without one
    group_login: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialOptions:
    """Where the passwords of groups are kept."""

    kind: str = MEMORY  # one of CREDENTIAL_TYPES
    path: str = ""  # of FILE, and of the SQLite database of DATABASE
    table: str = DEFAULT_TABLE
    # Whether an agent may join a group that has no password; see also GroupOptions.
    allow_without_password: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupOptions:
    """What the agents and users of a group may do. 0 means unlimited."""

    balance: str = "round_robin"  # a name of mtt.outbound.groups.BALANCES
    password: str = field(default="", repr=False)  # fixed by the operator; empty: see credentials
    allow_without_password: bool = False  # whether an agent may join while there is no password
    ports: tuple[range, ...] = (range(1, 65536),)  # gateway ports that agents may have forwarded
    ports_bind: str = "127.0.0.1"  # address that they listen on
    max_agents: int = 0
    max_streams: int = 0
    rate: int = 0  # bytes per second, both directions together
    allow_from: tuple[Network, ...] = ANYWHERE  # users of forwarded ports


DEFAULT_GROUP = GroupOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOptions(ServiceOptions):
    """The checked options of anyproxy-gateway. `bind` is where agents connect."""

    tls: ServerTls | None  # None: agents connect without TLS
    login: User | None = None  # of agents; None: none is required
    credentials: CredentialOptions = CredentialOptions()
    groups: Mapping[str, GroupOptions] = field(default_factory=dict)  # by name
    default_group: GroupOptions = DEFAULT_GROUP  # of groups that are not in `groups`
    http: ProxyOptions | None = None
    socks5: ProxyOptions | None = None
    metrics_per_group: bool = False
    web: WebOptions | None = None
    udp_timeout: float = UDP_TIMEOUT

    @property
    def proxies(self) -> dict[str, ProxyOptions]:
        """The proxies by name."""
        found = {"HTTP": self.http, "SOCKS5": self.socks5}
        return {name: proxy for name, proxy in found.items() if proxy is not None}


# Agent.


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenPort:
    """A port of the gateway, forwarded to a target that the agent reaches."""

    remote_port: int
    local_host: str
    local_port: int
    protocol: str = TCP  # one of PROTOCOLS
    proxy_protocol: str = ""  # "v1", "v2" or empty: the header that tells the target the user
    allow_from: tuple[Network, ...] = ANYWHERE  # users


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions(ServiceOptions):
    """The checked options of anyproxy-client. `bind` is None: it does not listen."""

    id: str
    group: str
    password: str = field(default="", repr=False)
    replicas: int = 1  # sessions with each gateway
    gateways: tuple[Endpoint, ...]  # at least one; names in ASCII
    # None: without TLS. Without a server name, that of each gateway is verified.
    tls: ClientTls | None
    login: User | None = None  # of the gateway
    rules: HostRules = ALLOW_ALL
    protocols: frozenset[str] = frozenset(PROTOCOLS)
    open_ports: tuple[OpenPort, ...] = ()
    web: WebOptions | None = None
    proxy: Way = None  # on the way to the gateways
    udp_timeout: float = UDP_TIMEOUT
