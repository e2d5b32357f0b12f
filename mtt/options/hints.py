"""Hints for options of similar programs: the corresponding option here, for the error text.

The words are options of v2ray-plugin, xray-plugin, simple-tls, gost-plugin, simple-obfs, kcptun,
Cloak, curl and ssh, in lower case, without dashes and underscores. A word may include one value:
`mode=quic`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_UNSAFE = "skips verification, so anyone on the path can read the data; use {pin} or {ca} instead"

# Words and advice. `{name}` is an option of the command as the user has to write it. For a word
# with several texts, the first whose options the command has is used.
_HINTS = (
    ("v", "did you mean {verbose} or {version}?"),
    ("v vv verb debug", "did you mean {verbose}?"),
    ("q quiet silent loglevel level", "write {log-level}"),
    ("logfile logpath", "log lines go to stderr; remove it"),
    ("tls ssl https mode=tls mode=tcp mode=raw obfs=tls", "TLS is the default; remove it"),
    ("mode=mtls", "TLS is the default; write {mux}"),
    ("ws websocket mode=websocket mode=ws mode=wss obfs=http", "write {wss}"),
    ("mws mwss mode=mws mode=mwss", "write {wss} and {mux}"),
    ("quic kcp grpc h2 http2 mode=quic mode=kcp mode=grpc mode=h2 mode=http2",
     "not supported; use {wss} to pass web servers and CDNs"),
    ("quic kcp grpc h2 http2 ws wss websocket", "not supported; remove it"),
    ("mode obfs", "TLS alone is the default; {wss}, {mux} and {anytls} are the other modes"),
    ("mode obfs", "there is only one mode; remove it"),
    ("path wspath uri obfsuri", "write {wss} and {wss-path}"),
    ("servicename grpcpath", "gRPC is not supported; use {wss} to pass web servers and CDNs"),
    ("insecure skipverify noverify allowinsecure skipcertverify tlsskipverify verify=false "
     "verify=0 k", "{sv} " + _UNSAFE),
    ("verify", "certificates are verified by default; remove it"),
    ("certhash fingerprint pinnedpubkey certpin sha256",
     "write {pin} with the pin that the server prints at start"),
    ("cca certraw cacert cafile rootca", "write {ca}"),
    ("certfile crt certificate", "write {cert}"),
    ("keyfile privkey privatekey", "write {key}"),
    ("gencert", "without {cert} the server generates a certificate; remove it"),
    ("password passwd pass psk auth secret token", "write {anytls} and {password-file}"),
    ("passwd pass psk auth secret token", "write {password-file}"),
    ("rh pd padding", "padding comes with {anytls}"),
    ("concurrency muxconcurrency maxstreams numconn conn streams",
     "write {mux} and {mux-max-stream}"),
    ("t streamtimeout tcptimeout", "write {timeout}"),
    ("fastopen tfo tcpfastopen", "write {fast-open}"),
    ("listen local localaddr laddr l a bind", "write {b}"),
    ("nodelay keepalive tcpkeepalive ping", "always on; remove it"),
    ("fwmark mark interface dscp", "not supported; the system's routing decides"),
    ("cpu", "write {workers}"),
    ("httpproxy httpsproxy upstreamproxy forwardproxy socksproxy socks5proxy x", "write {proxy}"),
    ("conf configfile c", "write {config}"),
    ("t test validate dryrun", "write {check}"),
    ("uid publickey encryptionmethod proxymethod browsersig transport alternativenames "
     "cdnoriginhost cdnwspath", "an option of Cloak, which is another protocol"),
    ("crypt mtu sndwnd rcvwnd datashard parityshard nocomp smuxver smuxbuf autoexpire scavengettl",
     "an option of kcptun, which is another protocol"),
)  # fmt: skip

_CLIENT_HINTS = (
    ("server=true server=1", "this is the client; run mtt-server or anytls-server"),
    ("server remote remoteaddr raddr r d dst dest destination address", "write {s}"),
    ("host sni servername peer obfshost hostname", "write {n}"),
    ("disabletls notls", "only servers can run without TLS; remove it"),
)

_MULTI_USER_HINTS = (
    ("wss ws websocket mode=websocket mode=ws mode=wss", "WebSocket is always on; remove it"),
    ("wsspath path wspath", "each user has a path, set through the controller (-c); remove it"),
    ("d dst dest destination target forward",
     "each user has a destination, set through the controller (-c); remove it"),
    ("control controller api", "write {c}"),
)  # fmt: skip

_SERVER_HINTS = (
    ("server s", "this is the server; remove it"),
    ("dst dest destination target forward remote remoteaddr raddr r", "write {d}"),
    ("host sni servername peer obfshost hostname", "the server accepts any name; remove it"),
    ("insecure skipverify noverify allowinsecure skipcertverify sv verify k ca cacert pin certhash",
     "only clients verify; remove it"),
    ("muxmaxstream muxwarm muxidle preconnect concurrency muxconcurrency",
     "the client decides; remove it"),
)

# Of commands whose settings are in a file.
_FILE_HINTS = (
    ("workers cpu", "the command has one process; remove it"),
    ("s server gateway addr b l listen listenaddr bind web replicas id clientid group groupid user "
     "username p password passwd token auth tls cert tlscert key tlskey ca pin sni insecure sv",
     "set it in the file of {config} instead"),
)  # fmt: skip

_FIELD = re.compile(r"\{([a-z-]+)\}")


def hint(name: str, value: str | None, known: Mapping[str, str]) -> str:
    """Advice for the unknown option `name` with `value`; empty if there is none.

    `known`: the options of the command by name, each as the user has to write it.
    """
    word = name.lower().replace("-", "").replace("_", "")
    words = (f"{word}={(value or 'true').lower()}", word)
    tables = (
        () if "c-token-file" not in known else _MULTI_USER_HINTS,
        _FILE_HINTS if "b" not in known else _CLIENT_HINTS if "s" in known else _SERVER_HINTS,
        _HINTS,
    )
    for wanted in words:
        for names, text in (entry for table in tables for entry in table):
            if wanted in names.split() and all(each in known for each in _FIELD.findall(text)):
                return _FIELD.sub(lambda match: known[match[1]], text)
    return ""
