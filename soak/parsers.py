"""Every parser of the program, with samples of what it understands and the errors it may raise."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from mtt.address import parse_endpoint
from mtt.errors import MttError
from mtt.options.common import reachable
from mtt.options.flags import parse_args
from mtt.options.proxy import given_proxy, with_environment
from mtt.options.tunnel import CLIENT_FLAGS, SERVER_FLAGS, client_options, server_options
from mtt.wire import (
    datagrams,
    dns,
    early_data,
    http1,
    mux_cool,
    proxy_protocol,
    smux,
    upgrade,
    websocket,
)
from mtt.wire.forwarded import forwarded_for
from mtt.wire.heads import HeadBuffer
from mtt.wire.httpproxy import connect_request
from mtt.wire.servemux import ServeMux
from mtt.wire.socks_client import SocksClient, SocksClientError
from mtt_mu_server import api
from mtt_mu_server.decoding import Refused
from mtt_mu_server.options import FLAGS as MU_FLAGS
from plugin.options import parse_options
from plugin.sip003 import read_environment
from soak.anyproxy_parsers import ANYPROXY_PARSERS
from soak.anytls_parsers import ANYTLS_PARSERS
from soak.mutation import Parser, text

QUERY = dns.build_query(4711, "server.example", 1)
KEY = upgrade.own_key(bytes(12))
PROTOCOLS = ("smux_on", "smux_off")

UPGRADE = upgrade.request("/tunnel", "server.example", KEY, PROTOCOLS)
UPGRADED = upgrade.switching_protocols(KEY, "smux_on")
ORDINARY = (
    b"POST /a%20b/../c?d=e HTTP/1.1\r\nHost: [::1]:443\r\nConnection: keep-alive\r\n"
    b"Transfer-Encoding: chunked\r\nX-Long: " + b"x" * 200 + b"\r\n\r\n"
)
_MASK = b"\1\2\3\4"
FRAMES = b"".join(
    (
        websocket.frame(websocket.TEXT, b"", _MASK),
        websocket.frame(websocket.BINARY, b"some data", _MASK),
        websocket.frame(websocket.PING, b"are you there?", _MASK),
        websocket.frame(websocket.BINARY, bytes(range(256)) * 2, _MASK),
        websocket.frame(websocket.CLOSE, websocket.close_payload(1000, "done"), _MASK),
    )
)
STREAMS = b"".join(
    (
        smux.frame(smux.SYN, 3),
        smux.frame(smux.PSH, 3, b"some data"),
        smux.frame(smux.NOP, 0),
        smux.data_frames(3, bytes(range(256)) * 100),
        smux.frame(smux.FIN, 3),
    )
)

COOL_STREAMS = b"".join(
    (
        mux_cool.new(1),
        mux_cool.data_frames(1, b"some data"),
        mux_cool.keep_alive(),
        bytes.fromhex("001400020101 01 0050 02 0b") + b"example.com" + b"\0\2hi",
        bytes.fromhex("000c00030101 02 0035 01 7f000001 0003") + b"udp",
        mux_cool.data_frames(2, bytes(range(256)) * 100),
        mux_cool.end(1),
        mux_cool.end(2, error=True),
    )
)


def _answer(*records: bytes) -> bytes:
    head = QUERY[:2] + b"\x81\x80" + QUERY[4:6] + len(records).to_bytes(2, "big") + bytes(4)
    return head + QUERY[12:] + b"".join(records)


def _record(kind: int, data: bytes, name: bytes = b"\xc0\x0c") -> bytes:
    head = kind.to_bytes(2, "big") + b"\0\1" + (300).to_bytes(4, "big")
    return name + head + len(data).to_bytes(2, "big") + data


def _request(data: bytes) -> None:
    http1.find_head_end(data)
    request = http1.parse_request(data)
    with contextlib.suppress(MttError):
        upgrade.check_request(request, PROTOCOLS)
    with contextlib.suppress(MttError):
        upgrade.check_hidden_request(request, PROTOCOLS, early=False)
    for pattern in ("/", "/tunnel", "/deep/path/"):
        reply = ServeMux(pattern).route(request)
        if reply is not None:
            reply.encode(request, date="Thu, 01 Jan 1970 00:00:00 GMT", close=False)


def _response(data: bytes) -> None:
    upgrade.check_response(http1.parse_response(data), KEY)


def _frames(data: bytes) -> None:
    for masked in (True, False):
        decoder = websocket.Decoder(masked=masked)
        with contextlib.suppress(websocket.WebSocketError):
            for at in range(0, len(data), 7):
                for opcode, payload in decoder.feed(data[at : at + 7]):
                    if opcode == websocket.CLOSE:
                        websocket.parse_close(bytes(payload))


def _streams(data: bytes) -> None:
    decoder = smux.Decoder()
    for at in range(0, len(data), 11):
        decoder.feed(data[at : at + 11])


def _early_data(data: bytes) -> None:
    for sure in (False, True):
        found = early_data.decode(text(data), sure=sure)
        assert not found or early_data.encode(found) == text(data)


def _cool_streams(data: bytes) -> None:
    mux_cool.is_head(data)
    mux_cool.is_plugin_head(data)
    decoder = mux_cool.Decoder()
    for at in range(0, len(data), 11):
        decoder.feed(data[at : at + 11])


def _datagrams(data: bytes) -> None:
    datagrams.is_opening(data)
    decoder = datagrams.Decoder()
    for at in range(0, len(data), 11):
        for flow, payload in decoder.feed(data[at : at + 11]):
            datagrams.encode(flow, payload)


def _words(data: bytes) -> None:
    words = text(data).split("\n")
    for flags, options in (
        (CLIENT_FLAGS, client_options), (SERVER_FLAGS, server_options), (MU_FLAGS, None),
    ):  # fmt: skip
        with contextlib.suppress(MttError):
            values = parse_args(flags, words)
            if options is not None:
                options(values)


def _plugin_options(data: bytes) -> None:
    for flags in (CLIENT_FLAGS, SERVER_FLAGS):
        with contextlib.suppress(MttError):
            parse_options(flags, text(data))


def _environment(data: bytes) -> None:
    names = ("SS_LOCAL_HOST", "SS_LOCAL_PORT", "SS_REMOTE_HOST", "SS_REMOTE_PORT")
    read_environment(dict(zip(names, text(data).split("\n"), strict=False)))


def _proxy(data: bytes) -> None:
    """Every host that options accept can be sent to a proxy."""
    lines = [*text(data).split("\n"), "", "", ""]
    server = reachable("-s", lines[0])
    values = with_environment({"proxy": "env"}, {"HTTPS_PROXY": lines[1], "NO_PROXY": lines[2]})
    proxy = given_proxy(values, server)
    for host in server.hosts:
        connect_request(host, server.port, proxy.login if proxy is not None else None)


def _proxy_answer(data: bytes) -> None:
    buffer = HeadBuffer()
    for at in range(0, len(data), 7):
        buffer += data[at : at + 7]
        buffer.final_response()


def _socks_answers(data: bytes) -> None:
    client = SocksClient("server.example", 443, (b"user", b"password"))
    for at in range(0, len(data), 3):
        if client.rest is None:
            client.feed(data[at : at + 3])


def _proxy_header(data: bytes) -> None:
    header = proxy_protocol.parse(data)
    if header is not None:
        assert header.size <= len(data)
        for version in proxy_protocol.VERSIONS:  # whatever is read can be sent on
            proxy_protocol.encode(version, header.source, header.destination)


def _forwarded(data: bytes) -> None:
    for name in ("x-forwarded-for", "forwarded"):
        for address in forwarded_for([(name, text(data))]):
            proxy_protocol.encode(proxy_protocol.V2, address, ("192.0.2.1", 443))


def _command(data: bytes) -> None:
    steps: Iterator[None] = api.parse(data)
    for _ in steps:
        pass


PARSERS: dict[str, Parser] = {
    "HTTP request": Parser(_request, (UPGRADE, ORDINARY), (MttError,)),
    "HTTP response": Parser(_response, (UPGRADED,), (MttError,)),
    "WebSocket": Parser(_frames, (FRAMES,), ()),
    "early data": Parser(
        _early_data, (early_data.encode(bytes(range(256))).encode(), b"graphql-transport-ws"), ()
    ),
    "Mux.Cool": Parser(_cool_streams, (COOL_STREAMS,), (mux_cool.MuxCoolError,)),
    "smux": Parser(_streams, (STREAMS,), (smux.SmuxError,)),
    "datagrams": Parser(
        _datagrams,
        (
            datagrams.HEAD,
            datagrams.encode(1, b"a query") + datagrams.encode(datagrams.MAX_FLOW, bytes(1200)),
        ),
        (datagrams.DatagramError,),
    ),
    "DNS answer": Parser(
        lambda data: dns.parse_response(QUERY, data),
        (
            _answer(_record(1, bytes(4)), _record(1, bytes(range(4)))),
            _answer(_record(5, b"\1a\xc0\x13"), _record(1, bytes(4), b"\1a\xc0\x13")),
        ),
        (dns.DnsError,),
    ),
    "host name": Parser(
        lambda data: dns.encode_name(text(data)),
        (b"server.example", "b\u00fccher.example".encode(), b"a.b.c.d."),
        (ValueError,),
    ),
    "command line": Parser(
        _words,
        (
            b"-b\n127.0.0.1:1080\n-s\n[::1]:443\n-wss\n-wss-path=/a?b\n-mux=true\n-timeout\n1h2m3.5s",
            b"-b=:443\n-d\n127.0.0.1:80\n-n\nserver.example\n-mux-max-stream=0x4\n-tls-min=1.3",
        ),
        (),
    ),
    "plugin options": Parser(
        _plugin_options,
        (b"wss,mux;wss-path=/a\\;b;n=server.example; timeout = 5m;__android_vpn", b"key=a=b\\\\"),
        (),
    ),
    "plugin environment": Parser(
        _environment, (b"127.0.0.1|::1\n1080\nserver.example\n443",), (MttError,)
    ),
    "address": Parser(
        lambda data: parse_endpoint("-s", text(data)),
        (b"127.0.0.1:443", b"[fe80::1%eth0]:1", b"a|b:65535"),
        (MttError,),
    ),
    "HTTP proxy": Parser(
        _proxy,
        (
            b"vpn.example:443\nhttp://user:p%40ss@proxy.example:3128/\n.example.com,10.0.0.0/8,[::1]:80",
            "b\u00fccher.example|[fe80::1%eth0]:443\nproxy:80\n*".encode(),
        ),
        (MttError,),
    ),
    "answer of an HTTP proxy": Parser(
        _proxy_answer,
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nVia: 1.1 proxy\r\n\r\n",),
        (MttError,),
    ),
    "answers of a SOCKS5 proxy": Parser(
        _socks_answers,
        (b"\5\2\1\0\5\0\0\1" + bytes(6), b"\5\0\5\0\0\3\1a\0\1rest"),
        (SocksClientError,),
    ),
    "PROXY header": Parser(
        _proxy_header,
        (
            proxy_protocol.encode("v1", ("2001:db8::7", 4711), ("2001:db8::1", 443)),
            proxy_protocol.encode("v2", ("192.0.2.7", 4711), ("192.0.2.1", 443)),
        ),
        (proxy_protocol.HeaderError,),
    ),
    "forwarded addresses": Parser(
        _forwarded,
        (
            b"203.0.113.7, [2001:db8::7]:4711,unknown",
            b'for="[2001:db8::7]:4711";proto=https, for=_hidden;by=192.0.2.1',
        ),
        (),
    ),
    "controller's command": Parser(
        _command,
        (
            json.dumps(
                {"opt": 1, "args_bunch": [{"path": "/a", "dst": "127.0.0.1:80", "rate": 10}]}
            ).encode(),
            b'{"opt":4,"offset":1,"limit":1000}',
        ),
        (Refused,),
    ),
} | ANYTLS_PARSERS | ANYPROXY_PARSERS
