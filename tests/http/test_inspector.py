"""What of a visitor's bytes goes to the site, and what begins a tunnel."""

from __future__ import annotations

import pytest

from mtt.http.inspector import RequestInspector

HOST = b"Host: test.local\r\n"
SITE = b"GET /page HTTP/1.1\r\n" + HOST + b"\r\n"
TUNNEL = b"GET /tunnel HTTP/1.1\r\n" + HOST + b"\r\n"


def inspector() -> RequestInspector:
    return RequestInspector(lambda request, early: request.path == "/tunnel" and not early)


def test_tunnel_may_follow_requests_to_the_site() -> None:
    one = inspector()
    assert one.take(SITE, False) == (SITE, None)
    assert one.take(SITE + TUNNEL, False) == (SITE, TUNNEL)


@pytest.mark.parametrize(
    "last",
    [
        b"GET /page HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
        b"POST /page HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n",
        b"GET /page HTTP/1.1\r\n" + HOST + b"Upgrade: other\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n" + HOST + b"\r\n",
    ],
    ids=["malformed", "chunked", "upgrade", "connect"],
)
def test_nothing_behind_a_request_of_unknown_end_begins_a_tunnel(last: bytes) -> None:
    one = inspector()
    assert one.take(SITE + last, False) == (SITE + last, None)
    assert one.take(TUNNEL, False) == (TUNNEL, None)
