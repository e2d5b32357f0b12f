"""HTTP without TLS on a port for TLS: what the fallback site gets, and what becomes of its page."""

from __future__ import annotations

import pytest

from mtt.http.plain import PlainVisit, _PlainInspector, https_page
from mtt.layers.parked import park
from tests.support.transports import FakeTransport, Recorder, turns

GET = b"GET /a HTTP/1.1\r\nHost: test.local\r\n"
BAD = b"Host: a/b\r\n\r\n"

PAGE = (
    b"HTTP/1.1 400 Bad Request\r\nServer: nginx/1.22.1\r\nContent-Type: text/html\r\n"
    b"Content-Length: 157\r\nConnection: close\r\n\r\n"
)
BODY = (
    b"<html>\r\n<head><title>400 Bad Request</title></head>\r\n<body>\r\n"
    b"<center><h1>400 Bad Request</h1></center>\r\n<hr><center>nginx/1.22.1</center>\r\n"
    b"</body>\r\n</html>\r\n"
)
assert len(BODY) == 157


@pytest.mark.parametrize(
    ("said", "given", "is_valid"),
    [
        (GET + b"\r\n", GET + BAD, True),
        (GET.replace(b"\r", b"") + b"\n", GET.replace(b"\r", b"") + BAD, True),
        (b"\r\n\n" + GET + b"\r\n", b"\r\n\n" + GET + BAD, True),
        (GET + b"\r\n" + GET + b"\r\n", GET + BAD, True),
        (GET, GET, False),
        (b"\0\1\2", b"\0\1\2", False),
        (b"GET /a HTTP/1.1\r\n\r\n", b"GET /a HTTP/1.1\r\n" + BAD, False),
        (b"CONNECT a:1 HTTP/1.0\r\n\r\n", b"CONNECT a:1 HTTP/1.0\r\n" + BAD, False),
        (b"GET /a\r\n", b"GET /a HTTP/1.1\r\n" + BAD, False),
        (b"\r\n\r\n", b"\r\n\r\n", False),
    ],
)  # fmt: skip
def test_no_request_reaches_the_site_whole(said: bytes, given: bytes, is_valid: bool) -> None:
    inspector = _PlainInspector()
    assert inspector.take(said, False) == (given, None)
    assert inspector.is_valid == is_valid
    # In pieces at most the empty line differs, which is bad in itself.
    inspector = _PlainInspector()
    passed = b"".join(inspector.take(said[at : at + 1], False)[0] for at in range(len(said)))
    assert passed.replace(b"\r" + BAD, BAD).replace(b"\r HTTP", b" HTTP") == given
    assert inspector.is_valid == is_valid


def test_page_of_nginx_becomes_the_one_about_https() -> None:
    head, _, body = https_page(PAGE + BODY).partition(b"\r\n\r\n")
    assert body == (
        b"<html>\r\n"
        b"<head><title>400 The plain HTTP request was sent to HTTPS port</title></head>\r\n"
        b"<body>\r\n<center><h1>400 Bad Request</h1></center>\r\n"
        b"<center>The plain HTTP request was sent to HTTPS port</center>\r\n"
        b"<hr><center>nginx/1.22.1</center>\r\n</body>\r\n</html>\r\n"
    )
    assert head + b"\r\n\r\n" == PAGE.replace(b"157", b"%d" % len(body))
    assert https_page(PAGE, head_only=True) == head + b"\r\n\r\n"


@pytest.mark.parametrize(
    "page",
    [
        b"",
        PAGE.replace(b"157", b"x") + BODY,
        PAGE.replace(b" 400 ", b" 200 ") + BODY,
        PAGE + b"<title>400 Bad Request</title> of somebody else",
        b"HTTP/1.1 400 Bad Request\r\nServer: Apache\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_other_pages_stay_as_they_are(page: bytes) -> None:
    assert https_page(page) == page
    assert https_page(page.partition(b"\r\n\r\n")[0] + b"\r\n\r\n", head_only=True).startswith(
        page.partition(b"Content-Length")[0]
    )


HEAD = GET.replace(b"GET", b"HEAD") + b"\r\n"


@pytest.mark.parametrize(
    ("said", "page", "is_changed"),
    [
        (GET + b"\r\n", PAGE + BODY, True),
        (HEAD, PAGE, True),
        # nginx refuses these for what they are, with TLS as well.
        (b"GET /a HTTP/1.1\r\n\r\n", PAGE + BODY, False),
        (b"TRACE /a HTTP/1.1\r\nHost: test.local\r\n\r\n", PAGE + BODY, False),
        (b"\0\1\2", PAGE + BODY, False),
    ],
)
async def test_visitor_hears_of_https_for_good_requests_only(
    said: bytes, page: bytes, is_changed: bool
) -> None:
    transport = FakeTransport()
    visit = PlainVisit(Recorder(), on_settled=lambda _: None)
    park(transport, said)
    visit.start(transport)
    visit.write(page)
    visit.close()
    changed = https_page(page, head_only=page == PAGE)
    assert changed != page
    assert transport.sent == (changed if is_changed else page)
    transport.lose(None)
    await turns()
