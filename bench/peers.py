"""The programs to compare with, where they are installed.

All of them run with their defaults where those are sensible, in a chain of client and server as
ours, with the same certificate. TLS 1.3 everywhere; OpenSSL prefers AES-256-GCM, Go AES-128-GCM.

Any other program can be measured by its two command lines in the environment:

    PEER_CLIENT='prog -l {listen} -s {connect} -ca {ca}'
    PEER_SERVER='prog -l {listen} -d {dest} -cert {cert} -key {key}'

`{listen}`, `{connect}` and `{dest}` become host:port (`{listen_port}` the port alone, and so on);
`{connect}` and `{dest}` are the same but for their names. `{name}` is the name in the certificate.
The variable SSL_CERT_FILE of both names the CA. Neither may fork into the background.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping

from bench.certs import SERVER_NAME, Certs
from bench.processes import LOOPBACK, address, find_tool
from bench.subjects import Command, Place, Subject

DIRECT = "direct"
HAPROXY = "haproxy"
STUNNEL = "stunnel"
V2RAY = "v2ray-plugin"
V2RAY_MUX = "v2ray-plugin mux"
PEER = "peer"

NAMES = (DIRECT, HAPROXY, STUNNEL, V2RAY, V2RAY_MUX, PEER)

# One thread, like each end of ours: this is the limit of one core that only copies. The
# timeouts are those that HAProxy warns about when they are missing.
_HAPROXY = """
global
    nbthread 1
    maxconn 8192
defaults
    mode tcp
    timeout connect 10s
    timeout client 5m
    timeout server 5m
listen relay
    bind {listen} backlog 4096
    server next {connect}
"""

_STUNNEL = """
foreground = yes
pid =
syslog = no
debug = warning
[tunnel]
accept = {listen}
connect = {connect}
"""
_STUNNEL_SERVER = "cert = {certs.cert}\nkey = {certs.key}\n"
_STUNNEL_CLIENT = (
    "client = yes\nCAfile = {certs.ca}\nverifyChain = yes\ncheckHost = {name}\nsni = {name}\n"
)


def peer_subjects(environment: Mapping[str, str] = os.environ) -> list[Subject]:
    return [
        Subject(DIRECT),
        _haproxy(),
        _stunnel(),
        _v2ray(V2RAY, mux=False),
        _v2ray(V2RAY_MUX, mux=True),
        _peer(environment),
    ]


def _missing(program: str, package: str) -> str:
    return "" if program else f"not installed: apt install {package}"


def _write(place: Place, name: str, template: str) -> str:
    path = place.directory / name
    path.write_text(
        template.format(
            listen=address(place.listen),
            connect=address(place.connect),
            certs=place.certs,
            name=SERVER_NAME,
        )
    )
    return str(path)


def _haproxy() -> Subject:
    program = find_tool("haproxy")

    def command(place: Place) -> list[str]:
        return [program, "-db", "-q", "-f", _write(place, "haproxy.cfg", _HAPROXY)]

    return Subject(HAPROXY, command, command, _missing(program, "haproxy"))


def _stunnel() -> Subject:
    program = find_tool("stunnel4", "stunnel")

    def command(role: str) -> Command:
        return lambda place: [program, _write(place, "stunnel.conf", _STUNNEL + role)]

    return Subject(
        STUNNEL, command(_STUNNEL_CLIENT), command(_STUNNEL_SERVER), _missing(program, "stunnel4")
    )


def _v2ray(name: str, *, mux: bool) -> Subject:
    """v2ray-plugin, WebSocket over TLS. `mux=0` on both ends is its plain mode, 1 its default."""
    program = find_tool("ss-v2ray-plugin", "v2ray-plugin")

    def options(place: Place) -> list[str]:
        return [
            *(program, "-tls", "-host", SERVER_NAME, "-loglevel", "error"),
            *("-localAddr", LOOPBACK, "-localPort", str(place.listen)),
            *("-remoteAddr", LOOPBACK, "-remotePort", str(place.connect)),
            *("-mux", str(place.streams) if mux else "0"),
        ]

    def server(place: Place) -> list[str]:
        return [*options(place), "-server", "-cert", place.certs.cert, "-key", place.certs.key]

    missing = _missing(program, "shadowsocks-v2ray-plugin")
    return Subject(name, options, server, missing, mux=mux, env=_trust)


def _peer(environment: Mapping[str, str]) -> Subject:
    client, server = (environment.get(f"PEER_{role}", "") for role in ("CLIENT", "SERVER"))
    if not (client and server):
        return Subject(PEER, missing="PEER_CLIENT and PEER_SERVER are not set")
    return Subject(PEER, _template(client), _template(server), env=_trust)


def _trust(certs: Certs) -> Mapping[str, str]:
    return {"SSL_CERT_FILE": certs.ca}  # Go and OpenSSL both honour it


def _template(line: str) -> Command:
    def command(place: Place) -> list[str]:
        ports = {"listen": place.listen, "connect": place.connect, "dest": place.connect}
        values = {name: address(port) for name, port in ports.items()}
        values |= {f"{name}_port": str(port) for name, port in ports.items()}
        values |= {
            "cert": place.certs.cert,
            "key": place.certs.key,
            "ca": place.certs.ca,
            "name": SERVER_NAME,
        }
        arguments = []
        for argument in shlex.split(line):
            for name, value in values.items():
                argument = argument.replace(f"{{{name}}}", value)
            arguments.append(argument)
        return arguments

    return command


