"""The options of mtt-client and mtt-server: their tables, and the checked results.

`client_options()` and `server_options()` check everything that needs no network, so that a command
that has started to listen does not fail because of its options.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mtt.address import Endpoint, host_port, is_ip, parse_endpoint, parse_port
from mtt.errors import UsageError
from mtt.options import anytls, common, tls
from mtt.options.flags import Flag, Group, Values, defaults, quoted
from mtt.options.process import CONFIG, process_flags
from mtt.trust.tls_options import ClientTls, ServerTls
from mtt.wire.addresses import unbracketed

if TYPE_CHECKING:
    from mtt.options.proxy import ProxyServer

DEFAULT_MAX_STREAM = 4

# The Go servers end a session that opens more streams than this.
MAX_STREAM_LIMIT = 16

# Each one holds an idle connection at the server and at the destination, and is replaced twice a
# minute; browsers rarely open so many connections at once.
MAX_PRECONNECT = 100

# The request has to fit into the 8 KiB that nginx and Xray accept.
MAX_EARLY_DATA = 4096

DNS_PORT = 53

DEFAULT_TLS = ServerTls()

_DNS_SERVER = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::(.+))?")

# RFC 3986, 2.1: a percent sign starts an escape and nothing else.
_BAD_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")


WSS_MASK = Flag("wss-mask", "bool", "Mask WebSocket frames with random keys instead of zeros, for "
                "proxies that require it. It protects nothing inside TLS and costs time on both "
                "ends.", group=Group.MODE)  # fmt: skip
MUX_FLAGS = (
    Flag("mux-max-stream", "int", "Maximum connections per tunnel connection with -mux, 1 to "
         f"{MAX_STREAM_LIMIT}.", "N", str(DEFAULT_MAX_STREAM), group=Group.REUSE),
    Flag("mux-warm", "int", "Idle tunnel connections to keep with -mux; the next connection then "
         "needs no handshake.", "N", "1", group=Group.REUSE),
    Flag("mux-idle", "duration", "How long other idle tunnel connections are kept with -mux.",
         "DURATION", "30s", group=Group.REUSE),
)  # fmt: skip

EARLY_DATA = Flag("early-data", "int", "With -v2ray: send up to N bytes of a connection's first "
                  f"data (at most {MAX_EARLY_DATA}) with the request, to save a round trip. "
                  "?ed=N at the end of -wss-path means the same. Not with -mux.", "N", "0",
                  group=Group.REUSE)  # fmt: skip

CLIENT_FLAGS = (
    common.BIND,
    Flag("s", "str", "Address of the server. Join several hosts with |.", "HOST:PORT",
         may_be_empty=True, group=Group.ADDRESSES),
    common.PROXY,
    common.WSS,
    common.WSS_PATH,
    WSS_MASK,
    common.V2RAY,
    EARLY_DATA,
    Flag("n", "str", "Server name for SNI, the Host header of -wss, and certificate verification; "
         "the host of -s if not given.", "NAME", may_be_empty=True, group=Group.TRUST),
    tls.SKIP_VERIFY,
    *tls.CLIENT_TLS_FLAGS,
    common.MUX._replace(otherwise="mux-max-stream is the number of connections"),
    *MUX_FLAGS,
    Flag("preconnect", "int", "Tunnel connections to keep ready without -mux, 0 to "
         f"{MAX_PRECONNECT} per process; new connections then need no handshake. The server and "
         "the destination see them as idle connections.", "N", "0", group=Group.REUSE),
    *anytls.TUNNEL_CLIENT_FLAGS,
    common.UDP,
    common.UDP_TIMEOUT,
    common.TIMEOUT,
    common.MAX_CONNS,
    common.FAST_OPEN,
    common.METRICS,
    Flag("fallback-dns", "str", "DNS server for the names in -s, -proxy and -b, instead of the "
         f"system's resolver. Port {DNS_PORT} if not given.", "IP:PORT", may_be_empty=True,
         group=Group.ADDRESSES),
    Flag("V", "bool", "Keep the plugin's own connections out of an Android VPN, through the Unix "
         "socket protect_path in the working directory.", group=Group.PROCESS),
    CONFIG,
    common.LINK,
    common.LINK_SS,
    common.QR,
    *process_flags(client=True, plugin=True),
)

SERVER_FLAGS = (
    common.BIND,
    common.BIND_UNIX,
    Flag("d", "str", "Destination of all connections.", "HOST:PORT", may_be_empty=True,
         group=Group.ADDRESSES),
    *tls.SERVER_TLS_FLAGS,
    common.WSS,
    common.WSS_PATH,
    common.V2RAY._replace(help="Like -wss, but expect v2ray-plugin, V2Ray or Xray from clients "
                          "without a subprotocol, instead of detecting them. With -mux, expect "
                          "their mux."),
    common.FALLBACK._replace(help=common.FALLBACK.help + " Needs -wss or -anytls."),
    *common.USER_ADDRESS_FLAGS,
    common.MUX._replace(help="Expect -mux from clients. With -wss the client decides."),
    *anytls.TUNNEL_SERVER_FLAGS,
    common.UDP,
    common.UDP_TIMEOUT,
    common.TIMEOUT,
    common.MAX_CONNS,
    common.FAST_OPEN,
    common.METRICS,
    CONFIG,
    common.LINK,
    common.LINK_SERVER,
    common.LINK_SS,
    common.QR,
    *process_flags(plugin=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelOptions(common.ServiceOptions):
    """The checked options that both ends have."""

    wss: bool = False
    # The client's is a request target: escaped, perhaps with a ?query. The server's is compared
    # with the decoded path of requests.
    wss_path: str = common.DEFAULT_PATH
    mux: bool = False
    v2ray: bool = False  # implies wss
    anytls_password: str = field(default="", repr=False)  # empty without -anytls
    plugin: bool = False  # started by shadowsocks

    @property
    def mode(self) -> str:
        """The name of the mode, see `mtt.modes`."""
        return common.mode_name(
            wss=self.wss, v2ray=self.v2ray, mux=self.mux, anytls=bool(self.anytls_password)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions(TunnelOptions):
    """The checked options of mtt-client."""

    server: Endpoint
    tls: ClientTls  # its ALPN names are the mode's
    proxy: ProxyServer | None = None  # on the way to the server
    wss_mask: bool = False  # random masking keys
    early_data: int = 0  # bytes, up to MAX_EARLY_DATA
    mux_max_stream: int = DEFAULT_MAX_STREAM
    mux_warm: int = 1
    mux_idle: float = 30.0  # seconds
    preconnect: int = 0  # up to MAX_PRECONNECT
    pool: anytls.PoolOptions = anytls.DEFAULT_POOL
    fallback_dns: tuple[str, int] | None = None  # IP literal and port


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions(TunnelOptions):
    """The checked options of mtt-server."""

    destination: Endpoint
    tls: ServerTls | None = DEFAULT_TLS  # None without TLS; its ALPN names are the mode's
    padding_scheme: bytes = b""  # empty for the default one


def client_options(
    given: Values, *, plugin: bool = False, sockets: tuple[int, ...] = ()
) -> ClientOptions:
    """The options of mtt-client, from those `given` of CLIENT_FLAGS.

    `sockets` are descriptors to listen on instead of -b. Raises UsageError.
    """
    values = common.with_websocket(defaults(CLIENT_FLAGS) | given)
    bind = None
    if not sockets:
        text = common.required(values, "b", "the address to listen on, like -b 127.0.0.1:1080")
        bind = parse_endpoint("-b", text)
    text = common.required(values, "s", "the server's address, like -s example.com:443")
    server = common.reachable("-s", text)
    max_stream: int = values["mux-max-stream"]
    if not 1 <= max_stream <= MAX_STREAM_LIMIT:
        raise UsageError(f"-mux-max-stream: {max_stream} is not from 1 to {MAX_STREAM_LIMIT}")
    if values["sv"] and (values["ca"] or values["pin"]):
        raise UsageError("-sv turns off the verification that -ca and -pin ask for; remove one")
    common.only_with("wss", values, (common.WSS_PATH, WSS_MASK))
    common.only_with("v2ray", values, (EARLY_DATA,))
    wss_path, early_data = _request_target(values["wss-path"]), 0
    if values["v2ray"]:
        # Only if needed: plugins must start fast.
        from mtt.options.early_data import given_early_data

        wss_path, early_data = given_early_data(wss_path, values, MAX_EARLY_DATA)
    common.only_with("mux", values, MUX_FLAGS)
    option, name = ("-n", values["n"]) if values["n"] else ("-s", server.host)
    server_name = common.host_name(option, name)
    return ClientOptions(
        bind=bind,
        sockets=sockets,
        server=server,
        tls=tls.given_client_tls(values, server_name=server_name, skip_verify=values["sv"]),
        proxy=_proxy(values, server),
        wss=values["wss"],
        wss_path=wss_path,
        early_data=early_data,
        wss_mask=values["wss-mask"],
        mux=values["mux"],
        v2ray=values["v2ray"],
        mux_max_stream=max_stream,
        mux_warm=common.at_least(0, values, "mux-warm"),
        mux_idle=common.at_least(0, values, "mux-idle"),
        preconnect=_preconnect(values),
        anytls_password=anytls.tunnel_password(values, given),
        pool=anytls.pool_options(values, given),
        fallback_dns=_dns_server(values["fallback-dns"]),
        plugin=plugin,
        **common.service_values(values),
    )


def server_options(
    given: Values, *, plugin: bool = False, sockets: tuple[int, ...] = ()
) -> ServerOptions:
    """The options of mtt-server, from those `given` of SERVER_FLAGS.

    `sockets` are descriptors to listen on instead of -b or -bind-unix. Raises UsageError.
    """
    values = common.with_websocket(defaults(SERVER_FLAGS) | given)
    bind, bind_unix = (None, "") if sockets else common.bind_address(values)
    destination = common.required(values, "d", "the destination's address, like -d 127.0.0.1:8388")
    common.only_with("wss", values, (common.WSS_PATH,))
    path = values["wss-path"]
    if values["v2ray"]:
        from mtt.options.early_data import without_early_data  # only if needed

        path = without_early_data(path)
    if values["anytls"] and values["disable-tls"]:
        raise UsageError(
            "-anytls and -disable-tls exclude each other: AnyTLS itself encrypts nothing"
        )
    if values["udp"] and values["disable-tls"] and not values["wss"]:
        raise UsageError(
            "-udp and -disable-tls exclude each other without -wss: the TLS handshake tells "
            "datagrams from other connections; add -wss or remove one"
        )
    if values["fallback"] and not (values["wss"] or values["anytls"]):
        raise UsageError("-fallback needs -wss or -anytls; otherwise every connection is a tunnel")
    return ServerOptions(
        bind=bind,
        bind_unix=bind_unix,
        sockets=sockets,
        destination=common.reachable("-d", destination),
        tls=tls.given_server_tls(values),
        wss=values["wss"],
        wss_path=_path_pattern(path),
        mux=values["mux"],
        v2ray=values["v2ray"],
        anytls_password=anytls.tunnel_password(values, given),
        padding_scheme=anytls.given_scheme(values),
        plugin=plugin,
        **common.service_values(values),
    )


def _slashed(path: str) -> str:
    """`path` with the leading slash that users often omit."""
    if any(char < " " or "\x7f" <= char <= "\x9f" for char in path):
        raise UsageError("-wss-path: the path contains control characters")
    return path if path.startswith("/") else "/" + path


def _request_target(path: str) -> str:
    """The client's -wss-path as sent in the request: a path, optionally with a query.

    A fragment is not sent, as with any URL (RFC 3986, 3.5).
    """
    target = _slashed(path.partition("#")[0])
    if " " in target:
        raise UsageError("-wss-path: a path cannot contain spaces; write a space as %20")
    if _BAD_ESCAPE.search(target.partition("?")[0]):
        raise UsageError("-wss-path: a % must start an escape like %20; write % itself as %25")
    # Command-line bytes that are not UTF-8 arrive as lone surrogates, and are sent as bytes.
    raw = target.encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if byte < 0x80 else f"%{byte:02X}" for byte in raw)


def _path_pattern(path: str) -> str:
    """The server's -wss-path."""
    if "?" in path or "#" in path:
        raise UsageError("-wss-path: only the path is compared; remove ? or # and what follows")
    return _slashed(path)


def _preconnect(values: Values) -> int:
    """The value of -preconnect. Raises UsageError."""
    count: int = values["preconnect"]
    if not 0 <= count <= MAX_PRECONNECT:
        raise UsageError(
            f"-preconnect: {count} is not from 0 to {MAX_PRECONNECT}; each one is an idle "
            "connection at the server and at the destination"
        )
    if count and values["mux"]:
        raise UsageError(
            "-preconnect and -mux exclude each other; with -mux, -mux-warm keeps connections ready"
        )
    return count


def _proxy(values: Values, server: Endpoint) -> ProxyServer | None:
    """The value of -proxy."""
    if not values["proxy"]:
        return None
    from mtt.options.proxy import given_proxy  # only if needed: plugins must start fast

    return given_proxy(values, server)


def _dns_server(text: str) -> tuple[str, int] | None:
    """The DNS server in `text`: `IP`, `IP:port` or `[IPv6]:port`; None if empty."""
    if not text:
        return None
    if is_ip(text):
        return text, DNS_PORT
    if match := _DNS_SERVER.fullmatch(text):
        try:
            host, port = unbracketed(match[1]), parse_port(match[2] or str(DNS_PORT))
        except ValueError:
            host, port = "", 0
        if is_ip(host) and port:
            return host, port
    raise UsageError(
        f"-fallback-dns: {quoted(text)} is not the IP address of a DNS server; write it like "
        f"192.0.2.53 or {host_port('2001:db8::53', DNS_PORT)}"
    )
