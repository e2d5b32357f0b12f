"""curl reaches a web server behind an agent through the proxies of a gateway."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.real.destinations import MB, payload
from tests.real.gateways import PROXIES, Network

in_every_proxy = pytest.mark.parametrize("proxy", PROXIES)
# Those that take each request for itself.
in_http_proxies = pytest.mark.parametrize("proxy", ["http", "https"])


@in_every_proxy
def test_download(network: Network, tmp_path: Path, proxy: str) -> None:
    network.curl(proxy, "--output", tmp_path / "received", network.url("payload", "localhost"))
    assert (tmp_path / "received").read_bytes() == payload()


@in_every_proxy
@pytest.mark.parametrize(
    "how",
    [
        ("--header", "Expect:"),
        ("--header", "Expect: 100-continue", "--expect100-timeout", "20"),
        ("--header", "Transfer-Encoding: chunked", "--header", "Expect:"),
    ],
    ids=["plain", "expect", "chunked"],
)
def test_upload(network: Network, tmp_path: Path, proxy: str, how: tuple[str, ...]) -> None:
    sent, stored = tmp_path / "sent", network.site / "put" / "upload"
    sent.write_bytes(payload())
    stored.unlink(missing_ok=True)
    network.curl(proxy, *how, "--upload-file", sent, network.url("put/upload"))
    assert stored.read_bytes() == payload()


@in_every_proxy
def test_tls_from_curl_to_the_server(network: Network, tmp_path: Path, proxy: str) -> None:
    base = f"https://localhost:{network.tls_port}"
    sent, received = tmp_path / "sent", tmp_path / "received"
    version = ("--write-out", "%{http_version} %{ssl_verify_result}")
    assert network.curl(proxy, *version, "--output", received, f"{base}/payload") == b"2 0"
    assert received.read_bytes() == payload()
    sent.write_bytes(payload())
    network.curl(proxy, "--upload-file", sent, f"{base}/put/over-tls")
    assert (network.site / "put" / "over-tls").read_bytes() == payload()


@in_every_proxy
def test_answers_without_a_body_leave_the_connection_usable(network: Network, proxy: str) -> None:
    result = ("--write-out", "%{http_code} %{num_connects}\n")
    page = network.url("page")
    etag = re.search(rb"(?i)etag: (.*)\r\n", network.curl(proxy, "--head", page))
    assert etag is not None
    answers = network.curl_tries(
        proxy,
        (*result, "--head", network.url("payload")),
        (*result, network.url("empty")),
        (*result, "--header", f"If-None-Match: {etag[1].decode()}", page),
        (*result, page),
        (*result, "--head", network.url("missing")),
        (*result, page),
    )
    assert answers == "200 1\n204 0\n304 0\n200 0\n404 0\n200 0\n"


@in_http_proxies
@pytest.mark.parametrize("expect", ["Expect:", "Expect: 100-continue"])
def test_early_refusal_of_an_upload_is_delivered(
    network: Network, tmp_path: Path, proxy: str, expect: str
) -> None:
    (tmp_path / "sent").write_bytes(payload())
    upload = ("--upload-file", tmp_path / "sent", network.url("limited/x"))
    status = ("--header", expect, "--write-out", "%{http_code}")
    assert network.curl_tries(proxy, (*status, *upload)) == "413"


@pytest.mark.parametrize("proxy", ["http", "https", "http-connect", "socks5"])
def test_parallel_downloads(network: Network, tmp_path: Path, proxy: str) -> None:
    many = ("--parallel", "--parallel-immediate", "--parallel-max", "200")
    urls = f"{network.url('megabyte')}?[1-200]"
    network.curl(proxy, *many, "--output", tmp_path / "#1", urls)
    assert len(list(tmp_path.iterdir())) == 200
    assert all(file.read_bytes() == payload(MB) for file in tmp_path.iterdir())


@pytest.mark.parametrize(
    "proxy, login, url, expected",
    [
        ("http", "", "http://127.0.0.1:1/", "502 000"),
        ("https-connect", "", "http://127.0.0.1:1/", "000 502"),
        ("http", "home:wrong", "http://127.0.0.1:1/", "407 000"),
        ("http-connect", "home:wrong", "http://127.0.0.1:1/", "000 407"),
        ("https", "elsewhere:pw", "http://127.0.0.1:1/", "503 000"),
        ("socks5", "", "http://127.0.0.1:1/", "000 000 97"),
        ("socks5", "home:wrong", "http://127.0.0.1:1/", "000 000 97"),
    ],
)
def test_curl_gets_the_reason(
    network: Network, proxy: str, login: str, url: str, expected: str
) -> None:
    # 97 is a SOCKS proxy's no.
    status = "%{http_code} %{http_connect}" + (" %{exitcode}" if proxy == "socks5" else "")
    user = ("--proxy-user", login) if login else ()
    assert network.curl_tries(proxy, ("--write-out", status, *user, url)) == expected
