"""-proxy and the variables of the environment: what they mean, and what errors do not show."""

from __future__ import annotations

import pytest

from mtt.address import Endpoint, parse_endpoint
from mtt.errors import UsageError
from mtt.options.proxy import (
    HTTP,
    HTTPS,
    SOCKS5,
    ProxyServer,
    given_proxy,
    parse_proxy,
    with_environment,
)
from mtt.options.tunnel import CLIENT_FLAGS, client_options
from plugin.options import parse_options

SERVER = Endpoint(("vpn.example.com",), 443)
PROXY = Endpoint(("proxy",), 3128)


@pytest.mark.parametrize(
    ("text", "address", "login"),
    [
        ("http://proxy:3128", "proxy:3128", None),
        ("HTTP://proxy:3128/", "proxy:3128", None),
        ("proxy:3128", "proxy:3128", None),
        ("http://[::1]:3128", "[::1]:3128", None),
        ("http://a|b:3128", "a|b:3128", None),
        ("http://user:p%40%3a%2F@proxy:3128", "proxy:3128", ("user", "p@:/")),
        ("http://user:a:b@c@proxy:3128", "proxy:3128", ("user", "a:b@c")),
        ("http://user@proxy:3128", "proxy:3128", ("user", "")),
        ("user:@proxy:3128", "proxy:3128", ("user", "")),
        ("http://u%FC:%ff@proxy:3128", "proxy:3128", ("u\udcfc", "\udcff")),
    ],
)
def test_address_and_login(text: str, address: str, login: tuple[str, str] | None) -> None:
    proxy = parse_proxy("-proxy", text)
    assert (str(proxy), proxy.login, proxy.option) == (address, login, "-proxy")
    assert login is None or login[1] not in repr(proxy) or not login[1]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("socks4://user:secret@a:1", "only HTTP and SOCKS5 proxies are supported; write http://"),
        ("ftp://secret:secret@a:1", "only HTTP and SOCKS5 proxies are supported; write http://"),
        ("socks5://user:secret", "not like socks5://host:3128 or "),
        ("https://user:secret@host", "not like https://host:3128 or "),
        ("https://a%3Ab:secret@host:3128", "the user's name has a colon"),
        ("socks5://user:secret" + 250 * "x" + "@a:1", "a user or password of more than 255 bytes"),
        ("socks5://" + 256 * "x" + ":secret@a:1", "a user or password of more than 255 bytes"),
        ("http://user:secret", "not like http://host:3128 or "),
        ("http://user:secret@", "not like http://host:3128 or "),
        ("http://user:secret@host", "not like http://host:3128 or "),
        ("http://user:secret@host:0", "not like http://host:3128 or "),
        ("http://user:secret@host:3128/path", "not like http://host:3128 or "),
        ("http://host:3128@secret", "not like http://host:3128 or "),
        ("http://:secret@host:3128", "the user has no name"),
        ("http://a%3Ab:secret@host:3128", "the user's name has a colon"),
    ],
)
def test_errors_show_no_secret(text: str, error: str) -> None:
    with pytest.raises(UsageError) as caught:
        client_options({"b": "a:1", "s": "b:1", "proxy": text})
    assert str(caught.value).startswith(f"-proxy: {error}")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "scheme", "login"),
    [
        ("proxy:3128", HTTP, None),
        ("https://proxy:3128", HTTPS, None),
        ("socks5://proxy:3128", SOCKS5, None),
        ("SOCKS5H://user:p%40@proxy:3128", SOCKS5, ("user", "p@")),
        ("socks://a%3Ab:@proxy:3128", SOCKS5, ("a:b", "")),
    ],
)
def test_schemes(text: str, scheme: str, login: tuple[str, str] | None) -> None:
    assert parse_proxy("-proxy", text) == ProxyServer(PROXY, login, "-proxy", scheme)


def test_plugin_option() -> None:
    given = parse_options(CLIENT_FLAGS, r"wss;proxy=http://user:a\;b@proxy:3128")
    options = client_options({"b": "a:1", "s": "b:1"} | given)
    assert options.proxy == ProxyServer(PROXY, ("user", "a;b"))
    assert "a;b" not in repr(options)


def test_without_the_option_there_is_no_proxy() -> None:
    assert client_options({"b": "a:1", "s": "b:1"}).proxy is None
    assert with_environment({"s": "b:1"}, {"HTTPS_PROXY": "http://proxy:3128"}) == {"s": "b:1"}
    given = {"proxy": "http://a:1"}
    assert with_environment(given, {"HTTPS_PROXY": "http://proxy:3128"}) == given


def test_env_needs_an_environment() -> None:
    with pytest.raises(UsageError, match=r"^-proxy: env is for the commands; give an address$"):
        client_options({"b": "a:1", "s": "b:1", "proxy": "env"})


def from_environment(server: Endpoint, **environ: str) -> ProxyServer | None:
    return given_proxy(with_environment({"proxy": "env"}, environ), server)


@pytest.mark.parametrize(
    ("environ", "option"),
    [
        ({}, None),
        ({"HTTPS_PROXY": ""}, None),
        ({"HTTP_PROXY": "http://proxy:3128"}, None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "HTTPS_PROXY"),
        ({"https_proxy": "proxy:3128"}, "https_proxy"),
        ({"HTTPS_PROXY": "", "https_proxy": "proxy:3128"}, "https_proxy"),
        ({"HTTPS_PROXY": "proxy:3128", "https_proxy": "other:1"}, "HTTPS_PROXY"),
    ],
)
def test_proxy_of_the_environment(environ: dict[str, str], option: str | None) -> None:
    expected = ProxyServer(PROXY, None, option) if option else None
    assert from_environment(SERVER, **environ) == expected


def test_errors_about_the_environment_name_the_variable() -> None:
    with pytest.raises(UsageError, match=r"^https_proxy: only HTTP and SOCKS5"):
        from_environment(SERVER, https_proxy="socks4://user:secret@a:1")


@pytest.mark.parametrize(
    ("server", "exceptions", "direct"),
    [
        ("vpn.example.com:443", "", False),
        ("vpn.example.com:443", "*", True),
        ("vpn.example.com:443", "vpn.example.com", True),
        ("VPN.example.com:443", "other.org, Vpn.Example.COM", True),
        ("vpn.example.com:443", "example.com", True),
        ("vpn.example.com:443", ".example.com", True),
        ("vpn.example.com:443", "*.example.com", True),
        ("vpn.example.com:443", "example.com.", True),
        ("example.com:443", ".example.com", False),
        ("example.com:443", "example.com", True),
        ("notexample.com:443", "example.com", False),
        ("vpn.example.com:443", "com,", True),
        ("vpn.example.com:443", ",.,*.", False),
        ("vpn.example.com:443", "example.com:443", True),
        ("vpn.example.com:443", "example.com:80", False),
        ("b\u00fccher.example:443", "xn--bcher-kva.example", True),
        ("192.0.2.1:443", "192.0.2.1", True),
        ("192.0.2.1:443", "192.0.2.0/24", True),
        ("192.0.2.1:443", "192.0.2.1:80", False),
        ("192.0.2.1:443", "192.0.2.1:443", True),
        ("192.0.2.1:443", "2001:db8::/32", False),
        ("192.0.2.1:443", "2.1", False),
        ("[2001:db8::1]:443", "2001:db8::1", True),
        ("[2001:db8::1]:443", "[2001:db8::1]:443", True),
        ("[2001:db8::1]:443", "[2001:db8::1]:444", False),
        ("[2001:db8::1]:443", "2001:db8::/32", True),
        ("localhost:443", "", True),
        ("127.0.0.2:443", "", True),
        ("[::1]:443", "", True),
        ("a.example|b.example:443", "a.example", False),  # one needs the proxy, so all use it
        ("a.example|b.example:443", "example", True),
    ],
)
def test_no_proxy(server: str, exceptions: str, direct: bool) -> None:
    endpoint = parse_endpoint("-s", server)
    for name in ("NO_PROXY", "no_proxy"):
        environ = {"HTTPS_PROXY": "http://proxy:3128", name: exceptions}
        assert (from_environment(endpoint, **environ) is None) is direct
