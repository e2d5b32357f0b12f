from __future__ import annotations

import base64
import dataclasses
import hashlib

import pytest

from mtt.address import Endpoint
from mtt.errors import UsageError
from mtt.options.flags import parse_args
from mtt.options.tunnel import (
    CLIENT_FLAGS,
    SERVER_FLAGS,
    ClientOptions,
    ServerOptions,
    client_options,
    server_options,
)
from mtt.trust.tls_options import ClientTls, ServerTls

CLIENT = {"-b": "127.0.0.1:1080", "-s": "example.com:443"}
SERVER = {"-b": ":443", "-d": "127.0.0.1:8388"}
PIN = "sha256/" + base64.b64encode(bytes(range(32))).decode()


def words(addresses: dict[str, str], *argv: str) -> list[str]:
    """A command line with these addresses, unless it has others."""
    given = {word.partition("=")[0] for word in argv}
    missing = {name: value for name, value in addresses.items() if name not in given}
    return [word for pair in missing.items() for word in pair] + list(argv)


def client(*argv: str) -> ClientOptions:
    return client_options(parse_args(CLIENT_FLAGS, words(CLIENT, *argv)))


def server(*argv: str) -> ServerOptions:
    return server_options(parse_args(SERVER_FLAGS, words(SERVER, *argv)))


def test_client_defaults() -> None:
    assert client() == ClientOptions(
        bind=Endpoint(("127.0.0.1",), 1080),
        server=Endpoint(("example.com",), 443),
        tls=ClientTls(server_name="example.com", skip_verify=False, ca="", pins=()),
        wss=False,
        wss_path="/",
        mux=False,
        mux_max_stream=4,
        timeout=300.0,
        fast_open=False,
        fallback_dns=None,
        plugin=False,
    )


def test_server_defaults() -> None:
    assert server() == ServerOptions(
        bind=Endpoint(("",), 443),
        bind_unix="",
        destination=Endpoint(("127.0.0.1",), 8388),
        tls=ServerTls(cert="", key="", name=""),
        wss=False,
        wss_path="/",
        mux=False,
        timeout=300.0,
        fast_open=False,
        plugin=False,
    )


def test_dataclass_defaults_match_the_flags() -> None:
    assert client() == ClientOptions(
        bind=Endpoint(("127.0.0.1",), 1080),
        server=Endpoint(("example.com",), 443),
        tls=ClientTls(server_name="example.com"),
    )
    assert server() == ServerOptions(
        bind=Endpoint(("",), 443), destination=Endpoint(("127.0.0.1",), 8388)
    )


def test_all_client_options() -> None:
    argv = (
        "-wss -wss-path /p -n Name.Example -mux -mux-max-stream 0x10 -timeout 1.5s -fast-open "
        f"-fallback-dns 192.0.2.53:5353 -ca roots.pem -pin {PIN} -pin {PIN} -V -verbose"
    )
    given = parse_args(CLIENT_FLAGS, words(CLIENT, *argv.split()))
    options = client_options(given, plugin=True)
    assert options == ClientOptions(
        bind=Endpoint(("127.0.0.1",), 1080),
        server=Endpoint(("example.com",), 443),
        tls=ClientTls(server_name="Name.Example", ca="roots.pem", pins=(PIN, PIN)),
        wss=True,
        wss_path="/p",
        mux=True,
        mux_max_stream=16,
        timeout=1.5,
        fast_open=True,
        fallback_dns=("192.0.2.53", 5353),
        plugin=True,
    )
    assert client("-sv").tls.skip_verify


def test_all_server_options() -> None:
    argv = (
        "-cert c.pem -key k.pem -n example.org -wss -wss-path /p -mux -timeout 1h "
        "-fast-open -verbose"
    )
    given = parse_args(SERVER_FLAGS, words(SERVER, *argv.split()))
    options = server_options(given, plugin=True)
    assert options == ServerOptions(
        bind=Endpoint(("",), 443),
        destination=Endpoint(("127.0.0.1",), 8388),
        tls=ServerTls(cert="c.pem", key="k.pem", name="example.org"),
        wss=True,
        wss_path="/p",
        mux=True,
        timeout=3600.0,
        fast_open=True,
        plugin=True,
    )


def test_udp() -> None:
    for end in (client, server):
        assert end().udp_time == 0
        assert end("-udp").udp_time == 300
        assert end("-udp", "-udp-timeout", "90s").udp_time == 90
        assert end("-udp-timeout", "5m").udp_time == 0  # the default may be given
    assert server("-udp", "-disable-tls", "-wss").udp_time == 300


@pytest.mark.parametrize("path", ["/run/mtt.sock", "mtt.sock", "@mtt"])
def test_bind_unix(path: str) -> None:
    options = server_options({"bind-unix": path, "d": "localhost:1"})
    assert (options.bind, options.bind_unix) == (None, path)


def test_options_cannot_be_changed_or_invented() -> None:
    options = client()
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.wss = True  # type: ignore[misc]
    assert not hasattr(options, "__dict__")


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        ((), "example.com"),
        (("-s", "first.example|second.example:443"), "first.example"),
        (("-s", "[2001:db8::1]:443"), "2001:db8::1"),
        (("-s", "[fe80::1%eth0]:443"), "fe80::1"),
        (("-s", "192.0.2.1:443"), "192.0.2.1"),
        (("-s", "example.com.:443"), "example.com"),
        (("-s", "b\u00fccher.example:443"), "xn--bcher-kva.example"),
        (("-n", "other.example"), "other.example"),
        (("-n", "other.example."), "other.example"),
        (("-n", "[2001:db8::1]"), "2001:db8::1"),
        (("-n", "2001:db8::1"), "2001:db8::1"),
        (("-n", "b\u00fccher.example"), "xn--bcher-kva.example"),
        (("-n", "under_score.example"), "under_score.example"),
        (("-n", ""), "example.com"),
    ],
)
def test_server_name(argv: tuple[str, ...], name: str) -> None:
    assert client(*argv).tls.server_name == name


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("", "/"),
        ("/", "/"),
        ("ws", "/ws"),
        ("/ws/", "/ws/"),
        ("/ws?ed=2048&a=b", "/ws?ed=2048&a=b"),
        ("/ws#part", "/ws"),
        ("/ws?q#part", "/ws?q"),
        ("#part", "/"),
        ("?q", "/?q"),
        ("/a%20b", "/a%20b"),
        ("/caf\u00e9", "/caf%C3%A9"),
        ("/\udcff", "/%FF"),
        ("/ws?100%", "/ws?100%"),
    ],
)
def test_client_path(given: str, path: str) -> None:
    assert client("-wss", "-wss-path", given).wss_path == path


@pytest.mark.parametrize(
    ("given", "path"), [("", "/"), ("ws", "/ws"), ("/ws/", "/ws/"), ("/a b", "/a b")]
)
def test_server_path(given: str, path: str) -> None:
    assert server("-wss", "-wss-path", given).wss_path == path


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        ("", None),
        ("192.0.2.53", ("192.0.2.53", 53)),
        ("192.0.2.53:5353", ("192.0.2.53", 5353)),
        ("2001:db8::53", ("2001:db8::53", 53)),
        ("[2001:db8::53]", ("2001:db8::53", 53)),
        ("[2001:db8::53]:5353", ("2001:db8::53", 5353)),
    ],
)
def test_fallback_dns(given: str, parsed: tuple[str, int] | None) -> None:
    assert client("-fallback-dns", given).fallback_dns == parsed


def test_any_key_hash_is_a_pin() -> None:
    # Base64 has the slash in its alphabet, also as the first character.
    for number in range(256):
        digest = hashlib.sha256(bytes([number])).digest()
        pin = "sha256/" + base64.b64encode(digest).decode()
        assert client("-pin", pin).tls.pins == (pin,)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["-b="], ["-b is missing", "-b 127.0.0.1:1080"]),
        (["-s="], ["-s is missing", "-s example.com:443"]),
        (["-b", "1080"], ["-b: '1080' has no host; write it like 127.0.0.1:1080"]),
        (["-b", "localhost:http"], ["-b", "port"]),
        (["-b", "::1:1080"], ["-b", "brackets"]),
        (["-b", "127.0.0.1:65536"], ["-b", "65536"]),
        (["-s", "example.com"], ["-s: 'example.com' has no port; write it like example.com:443"]),
        (["-s", "example.com:"], ["-s: 'example.com:' has no port; write it like example.com:443"]),
        (["-s", "-pin"], ["-s: '-pin' looks like an option; give an address, like "]),
        (["-s", "[2001:db8::1]"], ["has no port; write it like [2001:db8::1]:443"]),
        (["-s", "https://host"], ["-s: not a URL, but an address; write it like host:443"]),
        (["-s", "https://u:s3cret@a.b:8443/s3cret?s3cret"], ["write it like a.b:8443"]),
        (["-s", "http://[::1]/s3cret"], ["write it like [::1]:80"]),
        (["-s", "wss://s3cret s3cret/"], ["write it like example.com:443"]),
        (["-s", "me:s3cret@example.com:443"], ["-s: an address has no @ in it"]),
        (["-s", "2001:db8::1:443"], ["-s", "brackets"]),
        (["-s", ":443"], ["-s", "lacks a host"]),
        (["-s", "a.example|:443"], ["-s", "lacks a host"]),
        (["-s", "example.com:0"], ["-s", "port 0"]),
        (["-s", "exa\nmple.com:443"], ["-s", "host name"]),
        (["-s", "a..example:443"], ["-s", "host name"]),
        (["-n", "a b"], ["-n", "'a b'"]),
        (["-n", "name\r\nX-Injected: 1"], ["-n", "host name"]),
        (["-n", "x" * 64], ["-n", "host name"]),
        (["-n", ".".join(["x" * 60] * 5)], ["-n", "host name"]),
        (["-n", "\u00fc" * 64], ["-n", "host name"]),
        (["-n", "example.com:443"], ["-n", "host name"]),
        (["-timeout", "0"], ["-timeout", "positive"]),
        (["-timeout", "-1s"], ["-timeout", "-1s is not positive"]),
        (["-mux-max-stream", "0"], ["-mux-max-stream", "1 to 16"]),
        (["-mux-max-stream", "17"], ["-mux-max-stream", "1 to 16"]),
        (["-wss", "-wss-path", "/a b"], ["-wss-path", "%20"]),
        (["-wss", "-wss-path", "/a\r\nX: 1"], ["-wss-path", "control"]),
        (["-wss", "-wss-path", "/a\x7f"], ["-wss-path", "control"]),
        (["-wss", "-wss-path", "/100%"], ["-wss-path", "%25"]),
        (["-wss", "-wss-path", "/%2x"], ["-wss-path", "%25"]),
        (["-fallback-dns", "::1", "-fallback-dns", "::2"], ["-fallback-dns is given twice"]),
        (["-fallback-dns", "dns.example"], ["-fallback-dns", "'dns.example'", "192.0.2.53"]),
        (["-fallback-dns", "192.0.2.53:0"], ["-fallback-dns"]),
        (["-fallback-dns", "192.0.2.53:"], ["-fallback-dns"]),
        (["-fallback-dns", "192.0.2.53:dns"], ["-fallback-dns"]),
        (["-fallback-dns", "[2001:db8::53]5353"], ["-fallback-dns"]),
        (["-fallback-dns", "[2001:db8::53"], ["-fallback-dns"]),
        (["-pin", "sha256/AAAA"], ["-pin"]),
        (["-pin", PIN.removeprefix("sha256/")], ["-pin"]),
        (["-pin", PIN.replace("sha256", "sha1")], ["-pin"]),
        (["-pin", PIN + "\n"], ["-pin"]),
        (["-pin", "\u00e9"], ["-pin"]),
        (["-pin", ""], ["-pin"]),
        (["-sv", "-ca", "roots.pem"], ["-sv", "-ca"]),
        (["-sv", "-pin", PIN], ["-sv", "-pin"]),
        (["-cert", "c.pem"], ["-cert needs -key", "-ca is for trusting the server"]),
        (["-wss-path", "/s3cret"], ["-wss-path: only meaningful with -wss; add -wss or remove it"]),
        (["-wss-mask"], ["-wss-mask: only meaningful with -wss; add -wss or remove it"]),
        (["-mux-max-stream", "8"], ["-mux-max-stream: only meaningful with -mux; add -mux or"]),
        (["-mux-warm", "0"], ["-mux-warm: only meaningful with -mux"]),
        (["-mux-idle", "1m"], ["-mux-idle: only meaningful with -mux"]),
        (["-wss", "-mux-idle", "1m"], ["-mux-idle: only meaningful with -mux"]),
        (["-p", "s3cret"], ["-p: only meaningful with -anytls; add -anytls or remove it"]),
        (["-anytls", "-p", "x", "-wss-path", "/a"], ["-wss-path: only meaningful with -wss"]),
        (["-anytls", "-p", "x", "-mux-warm", "2"], ["-mux-warm: only meaningful with -mux"]),
        (["-anytls", "-p", "x", "-dr", "-idle-check", "9s"], ["-idle-check", "-dr disables"]),
        (["-udp-timeout", "1m"], ["-udp-timeout: only meaningful with -udp; add -udp or remove"]),
        (["-udp", "-udp-timeout", "0"], ["-udp-timeout: 0s is not positive; the default is 5m"]),
    ],
)
def test_invalid_client_options(argv: list[str], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        client(*argv)
    for word in words:
        assert word in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_certificate_without_tls_causes_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert server("-disable-tls", "-cert", "c", "-key", "k").tls is None
    (record,) = caplog.records
    assert record.getMessage() == "-cert, -key: not used, because -disable-tls turns TLS off"


def test_defaults_may_be_given_in_every_mode() -> None:
    """As scripts do that give all options."""
    plain = "-wss=false -wss-path / -wss-mask=0 -mux=0 -mux-max-stream 4 -mux-warm 1 -mux-idle 30s"
    assert client(*plain.split()) == client()
    assert client("-wss-path", "") == client()
    assert server("-wss-path", "/", "-tls-min", "1.2", "-disable-tls").tls is None
    # Plugin options are often the same on both sides.
    assert server("-wss", "-mux", "-n", "a.example", "-cert", "c", "-key", "k").mux
    assert server("-disable-tls", "-n", "a.example").tls is None


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["-b="], ["-b is missing", "-bind-unix"]),
        (["-d="], ["-d is missing", "-d 127.0.0.1:8388"]),
        (["-d", "127.0.0.1:0"], ["-d", "port 0"]),
        (["-d", ":80"], ["-d", "lacks a host"]),
        (["-bind-unix", "/run/x"], ["-b and -bind-unix"]),
        (["-b=", "-bind-unix", "@"], ["-bind-unix"]),
        (["-b=", "-bind-unix", "a\0b"], ["-bind-unix"]),
        (["-cert", "c.pem"], ["-cert needs -key"]),
        (["-key", "k.pem"], ["-key needs -cert"]),
        (["-n", "not a name"], ["-n", "'not a name'"]),
        (["-timeout", "-5m"], ["-timeout"]),
        (["-udp-timeout", "1m"], ["-udp-timeout: only meaningful with -udp"]),
        (["-udp", "-disable-tls"], ["-udp and -disable-tls exclude each other without -wss"]),
        (["-udp", "-disable-tls", "-mux"], ["-udp and -disable-tls exclude each other"]),
        (["-wss", "-wss-path", "/ws?ed=2048"], ["-wss-path", "only the path"]),
        (["-wss", "-wss-path", "/ws#x"], ["-wss-path", "only the path"]),
        (["-wss", "-wss-path", "/a\nb"], ["-wss-path", "control"]),
        (["-wss-path", "/x"], ["-wss-path: only meaningful with -wss; add -wss or remove it"]),
        (["-disable-tls", "-cert-dir", "d"], ["-cert-dir needs TLS, which -disable-tls turns off"]),
        (["-disable-tls", "-client-ca", "c"], ["-client-ca needs TLS"]),
        (["-disable-tls", "-tls-min", "1.3"], ["-tls-min needs TLS"]),
        (["-bind-unix", "/a", "-bind-unix", "/b"], ["-bind-unix is given twice; remove one"]),
        (["-d", "a:1", "-d", "b:1"], ["-d is given twice; remove one, or join hosts: HOST|HOST"]),
        (["-padding-scheme", "f"], ["-padding-scheme: only meaningful with -anytls; add -anytls"]),
    ],
)
def test_invalid_server_options(argv: list[str], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        server(*argv)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "endpoint", "path"),
    [
        ("9100", Endpoint(("127.0.0.1",), 9100), ""),
        (":9100", Endpoint(("127.0.0.1",), 9100), ""),
        ("localhost:9100", Endpoint(("127.0.0.1",), 9100), ""),
        ("[::1]:0", Endpoint(("::1",), 0), ""),
        ("|[::1]:9100", Endpoint(("127.0.0.1", "::1"), 9100), ""),
        ("0.0.0.0:9100", Endpoint(("0.0.0.0",), 9100), ""),
        ("metrics.example:9100", Endpoint(("metrics.example",), 9100), ""),
        ("unix:/run/m.sock", None, "/run/m.sock"),
        ("unix:m.sock", None, "m.sock"),
    ],
)
def test_metrics(text: str, endpoint: Endpoint | None, path: str) -> None:
    for options in (client("-metrics", text), server("-metrics", text)):
        assert (options.metrics, options.metrics_unix) == (endpoint, path)


@pytest.mark.parametrize("text", ["x", "65536", "unix:", "unix:@x", "::1:9100", "/run/m.sock"])
def test_invalid_metrics_addresses(text: str) -> None:
    for options in (client, server):
        with pytest.raises(UsageError, match=r"^-metrics: "):
            options("-metrics", text)


def test_the_path_is_not_repeated_in_errors() -> None:
    # Often it is all that keeps strangers out.
    for argv in (["-wss", "-wss-path", "/hidden path"], ["-wss", "-wss-path", "/hidden\0"]):
        with pytest.raises(UsageError) as caught:
            client(*argv)
        assert "hidden" not in str(caught.value)


def test_preconnect() -> None:
    assert client().preconnect == 0
    assert client("-preconnect", "100").preconnect == 100
    assert client("-mux", "-preconnect", "0").mux
    with pytest.raises(UsageError, match=r"-preconnect and -mux .*-mux-warm"):
        client("-mux", "-preconnect", "1")
    for count in ("-1", "101"):
        with pytest.raises(UsageError, match=f"-preconnect: {count} is not from 0 to 100; .*idle"):
            client("-preconnect", count)
