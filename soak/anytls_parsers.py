"""The parsers of AnyTLS and of its proxies, with samples; see `parsers`."""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

from anytls.config import read_client, read_server
from anytls.options import CLIENT_FLAGS, SERVER_FLAGS, client_options, server_options
from anytls.uri import parse_uri
from mtt.errors import MttError, UsageError
from mtt.options.flags import parse_args
from mtt.proxy.rules import parse_policy
from mtt.users.file import read_users
from mtt.wire import addresses, anytls, http1, httpproxy, padding, socks, uot
from soak.mutation import Parser, text

PASSWORD = "a password of the soak"
PREAMBLE = anytls.preamble(anytls.password_hash(PASSWORD), 30)
_MD5 = padding.DEFAULT.md5
DESTINATION = addresses.encode("127.0.0.1", 9)


def client_frames(destination: bytes, data: bytes) -> bytes:
    """What a client says after its preamble: one stream."""
    return b"".join(
        (
            anytls.frame(anytls.SETTINGS, 0, anytls.client_settings("soak/1", _MD5)),
            anytls.frame(anytls.SYN, 1),
            anytls.frame(anytls.PSH, 1, destination + data),
        )
    )


# Frames of both sides: each side must also cope with frames that only the other may send.
ANYTLS_FRAMES = b"".join(
    (
        anytls.frame(anytls.SERVER_SETTINGS, 0, anytls.server_settings()),
        anytls.frame(anytls.UPDATE_PADDING, 0, padding.DEFAULT.raw),
        anytls.frame(anytls.SYNACK, 1),
        anytls.frame(anytls.WASTE, 0, bytes(50)),
        anytls.frame(anytls.HEART_REQUEST, 0),
        anytls.frame(anytls.PSH, 1, b"some data"),
        anytls.frame(anytls.SYN, 2),
        anytls.frame(anytls.SYNACK, 2, b"connection refused"),
        anytls.data_frames(1, bytes(range(256)) * 10),
        anytls.frame(anytls.FIN, 2),
        anytls.frame(anytls.HEART_RESPONSE, 0),
        anytls.frame(anytls.PSH, 1),
        anytls.frame(anytls.FIN, 1),
        anytls.frame(anytls.ALERT, 0, b"enough"),
    )
)
DATAGRAMS = b"".join(
    (
        uot.encode_datagram(b"a datagram", "127.0.0.1", 9),
        uot.encode_datagram(b"", "::1", 53),
        uot.encode_datagram(bytes(300), "localhost", 9),
    )
)
ASSOCIATED = uot.encode_request("127.0.0.1", 9, connect=False) + DATAGRAMS
CONNECTED = uot.encode_request("127.0.0.1", 9, connect=True) + 3 * uot.encode_connected(b"data")


def proxy_openings(port: int) -> tuple[bytes, ...]:
    """What applications ask of a proxy port: in all protocols, to a port of this machine.

    With addresses rather than names: a resolver need not hear of what becomes of them.
    """
    host = f"127.0.0.1:{port}".encode()
    address = addresses.encode("127.0.0.1", port)
    return (
        b"\5\1\0" + b"\5\1\0" + address,
        b"\5\2\0\2" + b"\1\4user\6secret" + b"\5\1\0" + address,
        b"\5\1\0" + b"\5\3\0" + addresses.encode("0.0.0.0", 0),
        b"\4\1" + port.to_bytes(2, "big") + b"\x7f\0\0\1me\0",
        b"\4\1" + port.to_bytes(2, "big") + b"\0\0\0\1me\0" + b"127.0.0.1\0",
        b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n" % (host, host)
        + b"Proxy-Authorization: Basic dTpw\r\n\r\n",
        b"POST http://%b/a?b HTTP/1.1\r\nHost: %b\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5;x=y\r\n12345\r\n0\r\nTrailer: z\r\n\r\n" % (host, host),
        b"PUT http://%b HTTP/1.0\r\nContent-Length: 5\r\n\r\n12345" % host,
    )


def _frames(data: bytes) -> None:
    decoder = anytls.Decoder()
    for at in range(0, len(data), 11):
        for command, _, payload in decoder.feed(data[at : at + 11]):
            if command in (anytls.SETTINGS, anytls.SERVER_SETTINGS):
                anytls.version_of(anytls.parse_settings(bytes(payload)))
            elif command in (anytls.ALERT, anytls.SYNACK):
                anytls.outcome_from_text(anytls.shown(bytes(payload)))


def _preamble(data: bytes) -> None:
    http1.may_be_request(data)
    reader = anytls.PreambleReader()
    for at in range(0, len(data), 9):
        reader.feed(data[at : at + 9])
        assert reader.hash or reader.rest is None
    assert reader.received == data


def _settings(data: bytes) -> None:
    anytls.version_of(anytls.parse_settings(data))


def _scheme(data: bytes) -> None:
    with contextlib.suppress(padding.SchemeError):
        padding.Scheme.parse(data, strict=True)
    scheme = padding.Scheme.parse(data)
    rng = random.Random(1)
    anytls.preamble(bytes(32), scheme.padding0(rng.randrange))
    padder = padding.Padder(scheme, rng.randrange)
    packet = anytls.frame(anytls.PSH, 1, bytes(700))
    for _ in range(10):
        decoder = anytls.Decoder()
        got = [event for record in padder.write(packet) for event in decoder.feed(record)]
        # Padding may not change what is said.
        if not decoder.at_boundary or sum(len(payload) for _, _, payload in got) != 700:
            raise AssertionError("a padded packet is another one")


def _address(data: bytes) -> None:
    for types in (addresses.SOCKS, addresses.UOT):
        for allow_empty in (False, True):
            with contextlib.suppress(addresses.AddressError):
                found = addresses.decode(data, types=types, allow_empty=allow_empty)
                if found is not None and found[0]:
                    encoded = addresses.encode(*found[:2], types)
                    assert addresses.decode(encoded, types=types) == (*found[:2], len(encoded))


def _datagrams(data: bytes) -> None:
    for decoder in (
        uot.Decoder(), uot.Decoder(request=True), uot.Decoder(peer=("127.0.0.1", 9)),
    ):  # fmt: skip
        with contextlib.suppress(uot.UotError):
            for at in range(0, len(data), 13):
                decoder.feed(data[at : at + 13])


def _socks(data: bytes) -> None:
    found = socks.parse_methods(data)
    rest = data[found[1] :] if found else data
    for parse in (
        socks.parse_request, socks.parse_login, socks.parse_request4, socks.parse_datagram,
    ):  # fmt: skip
        for piece in (data, rest):
            with contextlib.suppress(socks.SocksError):
                parse(piece)


def _proxy_request(data: bytes) -> None:
    end = http1.find_head_end(data)
    if end < 0:
        return
    asked = httpproxy.parse(data[:end])
    httpproxy.login(asked.request)
    if asked.body is not None:
        http1.parse_request(asked.head)  # what we send must be right
        rest = data[end:]
        for at in range(0, len(rest), 5):
            asked.body.take(rest[at : at + 5])


@contextlib.contextmanager
def _file_of(data: bytes) -> Iterator[str]:
    """A file with `data` in it."""
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        path = Path(name) / "file"
        path.write_bytes(data)
        yield str(path)


def _configuration(data: bytes) -> None:
    with _file_of(data) as path:
        for read in (read_client, read_server):
            with contextlib.suppress(UsageError):
                read(path)


def _users(data: bytes) -> None:
    with _file_of(data) as path:
        read_users("-users", path)


def _rules(data: bytes) -> None:
    allow, _, deny = text(data).partition("\n")
    policy = parse_policy(allow.split(), deny.split())
    policy.allows("10.1.2.3", 53)


def _words(data: bytes) -> None:
    words = text(data).split("\n")
    with contextlib.suppress(MttError):
        client_options(parse_args(CLIENT_FLAGS, words))
    with contextlib.suppress(MttError):
        server_options(parse_args(SERVER_FLAGS, words))


_TLS = {"enabled": True, "server_name": "server.example", "alpn": ["h2"]}
_CLIENT = {
    "inbounds": [{"type": "mixed", "listen": "127.0.0.1", "listen_port": 1080}],
    "outbounds": [
        {"type": "anytls", "tag": "a", "server": "server.example", "server_port": 443,
         "password": "secret", "idle_session_timeout": "30s", "min_idle_session": 5, "tls": _TLS},
        {"type": "direct"},
    ],
}  # fmt: skip
_SERVER = {
    "type": "anytls", "listen": "::", "listen_port": 443, "padding_scheme": ["stop=2", "0=30-30"],
    "users": [{"name": "a", "password": "b"}],
    "tls": {"enabled": True, "certificate_path": "a.pem", "key_path": "b.pem"},
}  # fmt: skip
_XRAY = {
    "outbounds": [
        {"protocol": "anytls",
         "settings": {"servers": [{"address": "a.example", "port": 443, "password": "b"}]},
         "streamSettings": {"security": "tls", "tlsSettings": {"serverName": "a.example"}}},
    ],
}  # fmt: skip

ANYTLS_PARSERS: dict[str, Parser] = {
    "AnyTLS frames": Parser(_frames, (ANYTLS_FRAMES, client_frames(DESTINATION, b"data")), ()),
    "AnyTLS preamble": Parser(_preamble, (PREAMBLE + ANYTLS_FRAMES, b"GET / HTTP/1.1\r\n\r\n"), ()),
    "AnyTLS settings": Parser(_settings, (anytls.client_settings("soak/1", _MD5),), ()),
    "padding scheme": Parser(
        _scheme,
        (padding.DEFAULT.raw, b"stop=3\n0=100-200\n1=c,1-9,c\n2=40-50,c,100-100"),
        (padding.SchemeError,),
    ),
    "binary address": Parser(
        _address,
        (DESTINATION, addresses.encode("::1", 80), addresses.encode("b\u00fccher.example", 443)),
        (),
    ),
    "UDP over TCP": Parser(_datagrams, (ASSOCIATED, CONNECTED, DATAGRAMS), ()),
    "SOCKS": Parser(
        _socks, (*proxy_openings(9)[:5], socks.datagram_header("127.0.0.1", 9) + b"data"), ()
    ),
    "HTTP proxy": Parser(_proxy_request, proxy_openings(9)[5:], (http1.HttpError,)),
    "AnyTLS URI": Parser(
        lambda data: parse_uri("-s", text(data)),
        (b"anytls://pass%20word@server.example:8443/?sni=a.example&insecure=1#name",
         b"anytls://p@[::1]"),
        (UsageError,),
    ),
    "AnyTLS configuration": Parser(
        _configuration, tuple(json.dumps(each).encode() for each in (_CLIENT, _SERVER, _XRAY)), ()
    ),
    "users": Parser(
        _users,
        (b"# who may\na:b\n c : d \n", b'[{"name": "a", "password": " b "}]'),
        (UsageError,),
    ),
    "rules": Parser(
        _rules, (b"10.1.0.0/16 [fd00::1]:53 :25\n127.0.0.0/8:80-90 ::/0",), (UsageError,)
    ),
    "AnyTLS command line": Parser(
        _words,
        (b"-s\nserver.example:443\n-p\nsecret\n-sni=a.example\n-m=3\n-idle-check\n30s\n-dr",
         b"-l=:443\n-p\nsecret\n-allow\n10.0.0.0/8\n-deny=:25\n-udp-timeout=5m\n-alpn=h2"),
        (),
    ),
}  # fmt: skip
