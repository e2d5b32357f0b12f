"""What the commands can be told: their option tables, and the checked result.

`client_options()` and `server_options()` check everything that can be checked without touching
the network, so that a command that starts to listen does not stop over its own options.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from mtt.errors import UsageError
from mtt.flags import Flag, Values, defaults, parse_duration, quoted
from mtt.net.address import Endpoint, host_port, is_ip, parse_endpoint, parse_port
from mtt.process import PROCESS_FLAGS

DEFAULT_TIMEOUT = "5m"
DEFAULT_PATH = "/"
DEFAULT_MAX_STREAM = 4
DEFAULT_TLS_MIN = "1.2"
TLS_VERSIONS = (DEFAULT_TLS_MIN, "1.3")

# The Go servers end a session that opens more streams than this.
MAX_STREAM_LIMIT = 16

DNS_PORT = 53

# RFC 1035, 2.3.4: 63 octets per label, 253 characters in text form. Underscores are no host
# name characters, but exist in DNS and in people's networks.
_HOST_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", re.ASCII | re.I)

_DNS_SERVER = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::(.+))?")

# RFC 3986, 2.1: a percent sign starts an escape and nothing else.
_BAD_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")

# Options of several commands, defined once.
BIND = Flag("b", "str", "Address to listen on. An empty host listens on all interfaces.",
            "HOST:PORT")
BIND_UNIX = Flag("bind-unix", "str", "Unix socket to listen on instead of -b: a path, or @name "
                 "for an abstract one.", "PATH")
CERT = Flag("cert", "str", "PEM file with the certificate and its chain. Without -cert and -key "
            "a self-signed certificate is made.", "FILE")
KEY = Flag("key", "str", "PEM file with the private key of -cert.", "FILE")
CERT_DIR = Flag("cert-dir", "str", "Directory that keeps the self-signed certificate and its key, "
                "so that the server's pin outlives a restart.", "DIR")
CLIENT_CA = Flag("client-ca", "str", "PEM file with the certificates that vouch for clients; who "
                 "cannot show one of theirs does not get in.", "FILE")
TLS_MIN = Flag("tls-min", "str", "Oldest version of TLS to speak, 1.2 or 1.3.", "VERSION",
               DEFAULT_TLS_MIN)
DISABLE_TLS = Flag("disable-tls", "bool", "Do not speak TLS; a proxy in front does.")
CERT_NAME = Flag("n", "str", "Host name in the self-signed certificate; random if not given.",
                 "NAME")
WSS = Flag("wss", "bool", "Speak WebSocket inside TLS, as proxies and CDNs can forward it.")
WSS_PATH = Flag("wss-path", "str", "Path of the WebSocket.", "PATH", DEFAULT_PATH, secret=True)
FALLBACK = Flag("fallback", "str", "Web site (plain HTTP) that gets all visitors who do not ask "
                "for a tunnel.", "HOST:PORT")
MUX = Flag("mux", "bool", "Carry several connections over one tunnel connection.")
MAX_CONNS = Flag("max-conns", "int", "Connections to carry at a time, streams of -mux included; "
                 "0 for no limit.", "N", "0")
TIMEOUT = Flag("timeout", "duration", "Close a tunnel in which nothing moved for this long.",
               "DURATION", DEFAULT_TIMEOUT)
FAST_OPEN = Flag("fast-open", "bool", "Use TCP fast open, where the system has it.")

CLIENT_FLAGS = (
    BIND,
    Flag("s", "str", "Address of the server. Several hosts may be joined with |.", "HOST:PORT"),
    WSS,
    WSS_PATH,
    Flag("n", "str", "Name the server must prove, sent as SNI and as the Host of -wss; the host "
         "of -s if not given.", "NAME"),
    Flag("sv", "bool", "Skip verification: accept any certificate, and so any attacker. -ca or "
         "-pin is the safe way to trust a self-signed one."),
    Flag("ca", "str", "PEM file with the certificates to trust, instead of the system's.", "FILE"),
    Flag("pin", "str", "Accept the server by this hash of its public key; it prints that at "
         "start.", "sha256/BASE64", repeatable=True),
    CERT._replace(help="PEM file with our own certificate and its chain, for servers that ask for "
                  "one."),
    KEY,
    TLS_MIN,
    MUX,
    Flag("mux-max-stream", "int", "Connections that share one tunnel connection under -mux, "
         f"1 to {MAX_STREAM_LIMIT}.", "N", str(DEFAULT_MAX_STREAM)),
    Flag("mux-warm", "int", "Idle tunnel connections under -mux that are kept for the next "
         "connection, so that it costs no handshake.", "N", "1"),
    Flag("mux-idle", "duration", "How long the others are kept.", "DURATION", "30s"),
    TIMEOUT,
    MAX_CONNS,
    FAST_OPEN,
    Flag("fallback-dns", "str", "DNS server to ask for the names in -s and -b instead of the "
         f"system's resolver. The port is {DNS_PORT} if not given.", "IP:PORT"),
    Flag("V", "bool", "Keep our own connections out of an Android VPN, through the unix socket "
         "protect_path in the working directory."),
    *PROCESS_FLAGS,
)

SERVER_FLAGS = (
    BIND,
    BIND_UNIX,
    Flag("d", "str", "Address to forward every connection to.", "HOST:PORT"),
    CERT,
    KEY,
    CERT_DIR,
    CLIENT_CA,
    TLS_MIN,
    DISABLE_TLS,
    CERT_NAME,
    WSS,
    WSS_PATH,
    FALLBACK._replace(help=FALLBACK.help + " Needs -wss."),
    MUX._replace(help="Expect -mux from clients. With -wss each client says so itself."),
    TIMEOUT,
    MAX_CONNS,
    FAST_OPEN,
    *PROCESS_FLAGS,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """What mtt-client was told, checked."""

    bind: Endpoint | None  # None with sockets
    sockets: tuple[int, ...] = ()  # descriptors that listen already
    server: Endpoint
    server_name: str  # a host name in ASCII, or an IP literal without brackets
    wss: bool = False
    wss_path: str = DEFAULT_PATH  # a request target: escaped, perhaps with a ?query
    skip_verify: bool = False
    ca: str = ""  # a PEM file; empty for the system's roots
    pins: tuple[str, ...] = ()  # "sha256/BASE64"
    cert: str = ""  # PEM files, of the client itself; both or none
    key: str = ""
    tls_min: str = DEFAULT_TLS_MIN  # one of TLS_VERSIONS
    mux: bool = False
    mux_max_stream: int = DEFAULT_MAX_STREAM
    mux_warm: int = 1
    mux_idle: float = 30.0  # seconds
    timeout: float = parse_duration(DEFAULT_TIMEOUT)  # seconds
    max_conns: int = 0  # 0 for no limit
    fast_open: bool = False
    fallback_dns: tuple[str, int] | None = None  # IP literal and port
    verbose: bool = False
    plugin: bool = False  # started by shadowsocks


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What mtt-server was told, checked."""

    bind: Endpoint | None  # None with bind_unix or sockets
    bind_unix: str = ""  # a path, "@name" for an abstract socket, or empty
    sockets: tuple[int, ...] = ()  # descriptors that listen already
    destination: Endpoint
    cert: str = ""  # PEM files; both empty for a self-signed certificate
    key: str = ""
    cert_dir: str = ""  # where a self-signed one is kept; empty for a new one at each start
    client_ca: str = ""  # a PEM file; empty to let everybody in
    tls_min: str = DEFAULT_TLS_MIN  # one of TLS_VERSIONS
    disable_tls: bool = False
    name: str = ""  # for the self-signed certificate; empty for a random one
    wss: bool = False
    wss_path: str = DEFAULT_PATH  # compared with the decoded path of requests
    fallback: Endpoint | None = None  # a web site
    mux: bool = False
    timeout: float = parse_duration(DEFAULT_TIMEOUT)  # seconds
    max_conns: int = 0  # 0 for no limit
    fast_open: bool = False
    verbose: bool = False
    plugin: bool = False  # started by shadowsocks


def client_options(
    given: Values, *, plugin: bool = False, sockets: tuple[int, ...] = ()
) -> ClientOptions:
    """The options of mtt-client from what was `given` of CLIENT_FLAGS.

    `sockets` are descriptors to listen on instead of -b. Raises UsageError.
    """
    values = defaults(CLIENT_FLAGS) | given
    bind_endpoint = None
    if not sockets:
        bind = required(values, "b", "the address to listen on, like -b 127.0.0.1:1080")
        bind_endpoint = parse_endpoint("-b", bind)
    server = required(values, "s", "the server's address, like -s example.com:443")
    server_endpoint = reachable("-s", server)
    max_stream: int = values["mux-max-stream"]
    if not 1 <= max_stream <= MAX_STREAM_LIMIT:
        raise UsageError(f"-mux-max-stream: {max_stream} is not from 1 to {MAX_STREAM_LIMIT}")
    if values["sv"] and (values["ca"] or values["pin"]):
        raise UsageError("-sv turns off the verification that -ca and -pin ask for; drop one")
    certificate_pair(values, "to go without a client certificate")
    return ClientOptions(
        bind=bind_endpoint,
        sockets=sockets,
        server=server_endpoint,
        server_name=_server_name(values["n"], server_endpoint),
        wss=values["wss"],
        wss_path=_request_target(values["wss-path"]),
        skip_verify=values["sv"],
        ca=values["ca"],
        pins=_pins(values["pin"]),
        cert=values["cert"],
        key=values["key"],
        tls_min=tls_min(values),
        mux=values["mux"],
        mux_max_stream=max_stream,
        mux_warm=at_least(0, values, "mux-warm"),
        mux_idle=at_least(0, values, "mux-idle"),
        timeout=tunnel_timeout(values),
        max_conns=at_least(0, values, "max-conns"),
        fast_open=values["fast-open"],
        fallback_dns=_dns_server(values["fallback-dns"]),
        verbose=values["verbose"],
        plugin=plugin,
    )


def server_options(
    given: Values, *, plugin: bool = False, sockets: tuple[int, ...] = ()
) -> ServerOptions:
    """The options of mtt-server from what was `given` of SERVER_FLAGS.

    `sockets` are descriptors to listen on instead of -b or -bind-unix. Raises UsageError.
    """
    values = defaults(SERVER_FLAGS) | given
    bind, bind_unix = (None, "") if sockets else bind_address(values)
    destination = required(values, "d", "the destination's address, like -d 127.0.0.1:8388")
    server_certificates(values)
    if values["fallback"] and not values["wss"]:
        raise UsageError("-fallback needs -wss: without it every connection is a tunnel")
    return ServerOptions(
        bind=bind,
        bind_unix=bind_unix,
        sockets=sockets,
        destination=reachable("-d", destination),
        cert=values["cert"],
        key=values["key"],
        cert_dir=values["cert-dir"],
        client_ca=values["client-ca"],
        tls_min=tls_min(values),
        disable_tls=values["disable-tls"],
        name=host_name("-n", values["n"]) if values["n"] else "",
        wss=values["wss"],
        wss_path=_path_pattern(values["wss-path"]),
        fallback=fallback_site(values),
        mux=values["mux"],
        timeout=tunnel_timeout(values),
        max_conns=at_least(0, values, "max-conns"),
        fast_open=values["fast-open"],
        verbose=values["verbose"],
        plugin=plugin,
    )


def required(values: Values, name: str, what: str) -> str:
    """The text of the option `name`, which must be there: `what` completes "give ..."."""
    text: str = values[name]
    if not text:
        raise UsageError(f"-{name} is missing: give {what}")
    return text


def bind_address(values: Values) -> tuple[Endpoint | None, str]:
    """Where a server listens: exactly one of -b and -bind-unix."""
    path: str = values["bind-unix"]
    if not path:
        bind = required(
            values, "b", "the address to listen on, like -b 0.0.0.0:443, or use -bind-unix"
        )
        return parse_endpoint("-b", bind), ""
    if values["b"]:
        raise UsageError("-b and -bind-unix exclude each other; drop one")
    if path == "@" or "\0" in path:
        raise UsageError(f"-bind-unix: {quoted(path)} is neither a path nor @name")
    return None, path


def reachable(option: str, text: str) -> Endpoint:
    """An endpoint to connect to: unlike one to listen on it needs real hosts and a real port."""
    endpoint = parse_endpoint(option, text)
    if not all(endpoint.hosts):
        raise UsageError(f"{option}: {quoted(text)} lacks a host; write it like example.com:443")
    if endpoint.port == 0:
        raise UsageError(f"{option}: {quoted(text)} has port 0; give one from 1 to 65535")
    for host in endpoint.hosts:
        host_name(option, host)
    return endpoint


def fallback_site(values: Values) -> Endpoint | None:
    """What -fallback says. Raises UsageError."""
    return reachable("-fallback", values["fallback"]) if values["fallback"] else None


def certificate_pair(values: Values, without: str) -> None:
    """Raise UsageError if only one of -cert and -key was given; `without` says what none is for."""
    for given, missing in (("cert", "key"), ("key", "cert")):
        if values[given] and not values[missing]:
            raise UsageError(
                f"-{given} needs -{missing} with it; give both, or none {without}"
            )


def server_certificates(values: Values) -> None:
    """Raise UsageError if what a server was told about certificates contradicts itself."""
    certificate_pair(values, "to get a self-signed certificate")
    if values["cert-dir"] and values["cert"]:
        raise UsageError("-cert-dir is for a self-signed certificate; drop it, or -cert and -key")
    if values["client-ca"] and values["disable-tls"]:
        # Not ignored: whoever asks for certificates must not be left with an open door.
        raise UsageError("-client-ca needs TLS, which -disable-tls turns off; drop one")


def tls_min(values: Values) -> str:
    """What -tls-min says, one of TLS_VERSIONS. Raises UsageError."""
    version: str = values["tls-min"]
    if version not in TLS_VERSIONS:
        raise UsageError(f"-tls-min: {quoted(version)} is not {' or '.join(TLS_VERSIONS)}")
    return version


def tunnel_timeout(values: Values) -> float:
    """The seconds of -timeout."""
    seconds: float = values["timeout"]
    if seconds <= 0:
        raise UsageError(f"-timeout: {seconds:g}s is not positive; the default is "
                         f"{DEFAULT_TIMEOUT}")
    return seconds


def at_least(least: int, values: Values, name: str) -> Any:
    """The number of the option `name`, which must not be smaller."""
    value = values[name]
    if value < least:
        raise UsageError(f"-{name}: {value:g} is less than {least}")
    return value


def _server_name(name: str, server: Endpoint) -> str:
    return host_name("-n", name) if name else host_name("-s", server.host)


def host_name(option: str, name: str) -> str:
    """The IP literal or ASCII host name for `name`, which may be written in any script.

    It ends up in SNI, in a Host header and in certificates, none of which can carry a zone,
    brackets, or the dot that marks a name as complete (RFC 6066, section 3).
    """
    bare = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    if is_ip(bare):
        return bare.partition("%")[0]
    try:
        ascii_name = name if name.isascii() else name.encode("idna").decode("ascii")
    except UnicodeError:
        ascii_name = ""
    ascii_name = ascii_name.removesuffix(".")
    if not _HOST_NAME.fullmatch(ascii_name):
        raise UsageError(f"{option}: {quoted(name)} is neither a host name nor an IP address")
    return ascii_name


def _slashed(path: str) -> str:
    """`path` with the leading slash that users forget; there is no other path they can mean."""
    if any(char < " " or "\x7f" <= char <= "\x9f" for char in path):
        raise UsageError("-wss-path: the path contains control characters")
    return path if path.startswith("/") else "/" + path


def _request_target(path: str) -> str:
    """The client's -wss-path as it stands in the request: a path, perhaps with a query.

    A fragment is not sent, like in any URL (RFC 3986, 3.5).
    """
    target = _slashed(path.partition("#")[0])
    if " " in target:
        raise UsageError("-wss-path: a path cannot contain blanks; write a blank as %20")
    if _BAD_ESCAPE.search(target.partition("?")[0]):
        raise UsageError("-wss-path: a % must start an escape like %20; write % itself as %25")
    return "".join(char if char.isascii() else _escaped(char) for char in target)


def _escaped(char: str) -> str:
    # Bytes of the command line that are not UTF-8 arrive as lone surrogates and leave as bytes.
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogateescape"))


def _path_pattern(path: str) -> str:
    """The server's -wss-path."""
    if "?" in path or "#" in path:
        raise UsageError("-wss-path: only the path counts; drop the ? or # and what follows")
    return _slashed(path)


def _pins(texts: tuple[str, ...]) -> tuple[str, ...]:
    if not texts:
        return ()
    from mtt.identity import parse_pin

    return tuple(parse_pin(text) for text in texts)


def _dns_server(text: str) -> tuple[str, int] | None:
    """The DNS server in `text`: `IP`, `IP:port` or `[IPv6]:port`; None if empty."""
    if not text:
        return None
    if is_ip(text):
        return text, DNS_PORT
    if match := _DNS_SERVER.fullmatch(text):
        host = match[1].strip("[]")
        try:
            port = parse_port(match[2] or str(DNS_PORT))
        except ValueError:
            port = 0
        if is_ip(host) and port:
            return host, port
    raise UsageError(
        f"-fallback-dns: {quoted(text)} is not the IP address of a DNS server; write it like "
        f"192.0.2.53 or {host_port('2001:db8::53', DNS_PORT)}"
    )
