"""Which paths reach the tunnel: the rules of Go's `http.ServeMux`, before Go 1.22, for one pattern.

Users of the original know them by heart: `/` matches everything, `/ws` only itself, `/ws/` all
below it and redirects `/ws`. Web frameworks and proxies were configured around the redirects.
"""

from __future__ import annotations

import re

from mtt.wire.http1 import Reply, Request, text_reply

NOT_FOUND = text_reply(404, "404 page not found")

# What net/url leaves alone in a path; all else becomes %XX.
_ESCAPED = re.compile(rb"[^A-Za-z0-9$&+,/:;=@._~-]")
_NOT_ASCII = re.compile(rb"[\x80-\xff]")
# html.escape() writes the quotes differently.
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&#34;", "'": "&#39;"})


class ServeMux:
    """A multiplexer with one entry.

    `pattern`: a path, compared to percent-decoded request paths; with a slash at its end it
    stands for everything below as well. Raises ValueError if it has no slash at its start: Go
    would take it for a host name, which nobody has ever meant.
    """

    __slots__ = ("_pattern",)

    def __init__(self, pattern: str) -> None:
        if not pattern.startswith("/"):
            raise ValueError(f"{pattern!r} does not start with a slash")
        self._pattern = pattern

    def route(self, request: Request) -> Reply | None:
        """None if `request` reaches the entry, else the redirect or the error to answer."""
        if request.target == "*":
            if request.method == "OPTIONS":  # a ping for the server (RFC 9110, 9.3.7)
                return Reply(200)
            return Reply(400, (("Connection", "close"),))
        # CONNECT paths are not made canonical, but they get the redirect to the subtree.
        path = request.path if request.method == "CONNECT" else clean_path(request.path)
        if path and not path.endswith("/") and path + "/" == self._pattern:
            return _redirect(request, path + "/")
        if path != request.path:
            return _redirect(request, path)
        subtree = self._pattern.endswith("/") and path.startswith(self._pattern)
        return None if path == self._pattern or subtree else NOT_FOUND


def clean_path(path: str) -> str:
    """`path` without empty, `.` and `..` segments, rooted; a slash at its end stays.

    Not posixpath.normpath(): that one keeps two leading slashes, and some versions stop at NUL.
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
    """301 to `path`, relative to the same host, with the query of the request."""
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
