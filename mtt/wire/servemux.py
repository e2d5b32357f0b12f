"""Which paths reach the tunnel: the rules of Go's `http.ServeMux` before Go 1.22, for one pattern.

Users of the original rely on them: `/` matches everything, `/ws` only itself, and `/ws/` everything
below it, with a redirect from `/ws`. Web frameworks and proxies depend on the redirects.
"""

from __future__ import annotations

import re

from mtt.wire.http1 import Reply, Request, text_reply

NOT_FOUND = text_reply(404, "404 page not found")

# net/url percent-encodes these bytes in a path.
_ESCAPED = re.compile(rb"[^A-Za-z0-9$&+,/:;=@._~-]")
_NOT_ASCII = re.compile(rb"[\x80-\xff]")
# html.escape() encodes the quotes differently.
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&#34;", "'": "&#39;"})


class ServeMux:
    """A multiplexer with one entry.

    `pattern`: a path, compared to percent-decoded request paths; with a trailing slash it also
    matches everything below it. Raises ValueError without a leading slash: Go would take the
    pattern for a host name, which is never what the operator means.
    """

    __slots__ = ("_pattern",)

    def __init__(self, pattern: str) -> None:
        if not pattern.startswith("/"):
            raise ValueError(f"{pattern!r} does not start with a slash")
        self._pattern = pattern

    def route(self, request: Request) -> Reply | None:
        """None if `request` matches the pattern, otherwise the redirect or error to answer with."""
        if request.target == "*":
            if request.method == "OPTIONS":  # a ping of the server itself (RFC 9110, 9.3.7)
                return Reply(200)
            return Reply(400, (("Connection", "close"),))
        # Go does not clean CONNECT paths, but redirects them to the subtree.
        path = request.path if request.method == "CONNECT" else clean_path(request.path)
        if path and not path.endswith("/") and path + "/" == self._pattern:
            return _redirect(request, path + "/")
        if path != request.path:
            return _redirect(request, path)
        subtree = self._pattern.endswith("/") and path.startswith(self._pattern)
        return None if path == self._pattern or subtree else NOT_FOUND


def clean_path(path: str) -> str:
    """`path` without empty, `.` and `..` segments, rooted; a trailing slash is kept.

    posixpath.normpath() keeps two leading slashes, and some versions stop at NUL.
    """
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(segment)
    slash = "/" if kept and path.endswith("/") else ""
    return "/" + "/".join(kept) + slash


def _redirect(request: Request, path: str) -> Reply:
    """A 301 to `path` on the same host, with the query of the request."""
    url = _percent(_ESCAPED, path, b"%%%02X")
    if request.query:
        url += "?" + request.query
    location = ("Location", _percent(_NOT_ASCII, url, b"%%%02x"))
    if request.method not in ("GET", "HEAD"):
        return Reply(301, (location,))
    body = b""
    if request.method == "GET":
        page = f'<a href="{url.translate(_HTML)}">Moved Permanently</a>.\n\n'
        body = page.encode("utf-8", "surrogateescape")
    return Reply(301, (("Content-Type", "text/html; charset=utf-8"), location), body)


def _percent(unsafe: re.Pattern[bytes], text: str, form: bytes) -> str:
    raw = text.encode("utf-8", "surrogateescape")
    return unsafe.sub(lambda found: form % found[0][0], raw).decode("utf-8", "surrogateescape")
