"""Where nginx answers what is no request at once, instead of reading on."""

from __future__ import annotations

import pytest

from mtt.http.nginx import has_begun
from mtt.wire.heads import HeadBuffer
from mtt.wire.http1 import HttpError


def buffer(data: bytes) -> HeadBuffer:
    made = HeadBuffer()
    made += data
    return made


@pytest.mark.parametrize(
    "data",
    [b"G", b"GET", b"GET ", b"GET /", b"GET / HT", b"\r\n\nGET /a", b"X-Y_Z /", b"GET http",
     b"GET http:", b"GET http:/", b"GET http://a/"],
)  # fmt: skip
def test_possible_beginning_of_a_request_is_awaited(data: bytes) -> None:
    assert has_begun(buffer(data))


@pytest.mark.parametrize("data", [b"", b"\r", b"\r\n\n"])
def test_empty_lines_begin_nothing(data: bytes) -> None:
    assert not has_begun(buffer(data))


@pytest.mark.parametrize(
    "data",
    [b"get", b"\x00", b"GET\t", b"GET *", b"GET 1", b"GET http;", b"GET http:a", b"GET http:/a",
     b"\r\nGET ?", b"SSH-2.0\r\n"],
)  # fmt: skip
def test_impossible_beginning_is_refused_at_once(data: bytes) -> None:
    with pytest.raises(HttpError) as raised:
        has_begun(buffer(data))
    assert raised.value.status == 400
