"""What a prober says to a server, and how it listens to the answer."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from collections.abc import Callable
from typing import NamedTuple

# Seconds. A connection of ours is kept open when nothing comes for so long, if nginx keeps it open.
QUIET = 0.4

GET = b"GET / HTTP/1.1\r\nHost: test.local\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: test.local\r\nConnection: close\r\n\r\n"
SECRET = "/a-secret-path"


class Heard(NamedTuple):
    """What a server says, and how it ends."""

    answer: bytes
    end: str


# Asks a port, and waits so many seconds for more; returns what was heard.
Probe = Callable[[int, float], Heard]


class End:
    """In what is sent: the end of TCP, with or without close_notify before it."""

    def __init__(self, *, notify: bool) -> None:
        self.notify = notify


NOTIFY, CUT = End(notify=True), End(notify=False)
Said = tuple[bytes | End, ...]

# Sent without TLS.
IN_CLEAR: dict[str, Said] = {
    "request": (GET,),
    "two requests": (GET + GET,),
    "HEAD": (GET.replace(b"GET", b"HEAD"),),
    "POST": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",),
    "CONNECT": (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",),
    "HTTP/1.0": (b"GET / HTTP/1.0\r\n\r\n",),
    "no host": (b"GET / HTTP/1.1\r\n\r\n",),
    "small letters": (b"get / http/1.1\r\n\r\n",),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",),
    "half a line": (b"GET / HT",),
    "half a head": (b"GET / HTTP/1.1\r\n",),
    "one letter": (b"G",),
    "one letter, and the end": (b"G", CUT),
    "request, and the end": (GET, CUT),
    "empty lines": (b"\r\n\r\n",),
    "ssh": (b"SSH-2.0-OpenSSH_9.2p1\r\n",),
    "zeros": (bytes(20),),
    "nothing, and the end": (CUT,),
    "first byte of TLS": (b"\x16",),
    "record of text": (b"\x16\x03\x01\x00\x05hello",),
    "SSLv2": (b"\x80\x2e\x01\x00\x02" + bytes(50),),
    "high bytes": (bytes(range(200, 256)),),
}

# Sent inside TLS.
INSIDE: dict[str, Said] = {
    "request": (GET,),
    "last request": (LAST,),
    "secret path": (LAST.replace(b"/ ", SECRET.encode() + b" "),),
    "request, close_notify, and the end": (GET, NOTIFY),
    "half a request, close_notify, and the end": (b"GET / HT", NOTIFY),
    "request, and the end": (GET, CUT),
    "half a request, and the end": (b"GET / HT", CUT),
    "nothing": (),
    "nothing, and the end": (CUT,),
    "nothing, close_notify, and the end": (NOTIFY,),
    "zeros": (bytes(10),),
    "one byte": (b"\x01",),
    "31 bytes": (bytes(range(31)),),
    "32 bytes": (bytes(range(32)),),
    "100 bytes": (bytes(range(100)),),
    "small letters": (b"get /",),
    "text": (b"hello world",),
    "empty lines": (b"\r\n\r\n",),
    "empty line and request": (b"\r\n" + LAST,),
    "control character": (b"GET /\x01",),
    "no HTTP": (b"GET / HTTX",),
    "HTTP/0.9": (b"GET /\r\n",),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\n\r\n",),
    "HTTP/3": (b"GET / HTTP/3",),
    "no host": (b"GET / HTTP/1.1\r\n\r\n",),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n",),
    "bad host": (b"GET / HTTP/1.1\r\nHost: a/b\r\n",),
    "bad header": (b"GET / HTTP/1.1\r\nHost: a\r\n:",),
    "NUL in a header": (b"GET / HTTP/1.1\r\nHost: a\r\nA: \0",),
    "half a head": (b"GET / HTTP/1.1\r\nHost: a\r\nAb",),
    "long line": (b"GET /" + b"a" * 9000,),
    "long header": (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 9000,),
    "large head": (b"GET / HTTP/1.1\r\nHost: a\r\n" + (b"X: " + b"a" * 40 + b"\r\n") * 1000,),
    "request and zeros": (GET, bytes(10)),
    "request and text": (GET, b"hello\r\n"),
    "request and bad request": (GET, b"GET / HTTP/1.1\r\nHost: a/b\r\n"),
    "request and half a request": (GET, b"GET / HT"),
    "no WebSocket": (GET.replace(b"\r\n\r\n", b"\r\nUpgrade: websocket\r\n\r\n"),),
    "upload": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n", b"hello"),
    "Expect": (b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",),
}


class Talk(NamedTuple):
    """A probe that says this, inside TLS if there is a context."""

    said: Said
    context: ssl.SSLContext | None
    name: str

    def __call__(self, port: int, quiet: float) -> Heard:
        with (
            connect(port, self.context, self.name)
            if self.context
            else socket.create_connection(("127.0.0.1", port))
        ) as connection:
            return heard_by(connection, self.said, quiet)


def connect(port: int, context: ssl.SSLContext, name: str) -> ssl.SSLSocket:
    connection = socket.create_connection(("127.0.0.1", port))
    try:
        return context.wrap_socket(
            connection, server_hostname=name, suppress_ragged_eofs=False
        )
    except BaseException:
        connection.close()
        raise


def heard_by(connection: socket.socket, said: Said, quiet: float) -> Heard:
    """What the server says to this: `said` in turn, each after the answer to the one before.

    The connection is open if nothing comes for `quiet` seconds after the last.
    """
    answer = b""
    end = "open"
    steps = said or (b"",)
    for number, each in enumerate(steps, 1):
        try:
            if isinstance(each, bytes):
                if each:
                    connection.sendall(each)
            else:
                finish(connection, each)
        except OSError:
            break  # it has ended the connection, which is read below
        more, end = read(connection, quiet if number == len(steps) else QUIET)
        answer += more
        if end != "open":
            break
    return Heard(re.sub(rb"Date: [^\r]*", b"Date:", answer), end)


def finish(connection: socket.socket, end: End) -> None:
    if isinstance(connection, ssl.SSLSocket) and end.notify:
        connection.setblocking(False)
        with contextlib.suppress(OSError):  # the server has not answered, or has ended already
            connection.unwrap()
        connection.setblocking(True)
    # Not that of SSLSocket, which forgets TLS.
    socket.socket.shutdown(connection, socket.SHUT_WR)


def read(connection: socket.socket, quiet: float) -> tuple[bytes, str]:
    """All that comes until the connection ends or is quiet."""
    answer = b""
    connection.settimeout(quiet)
    try:
        while data := connection.recv(65536):
            answer += data
    except TimeoutError:
        return answer, "open"
    except ssl.SSLEOFError:
        return answer, "cut"
    except ssl.SSLError as error:
        return answer, "cut" if "EOF" in str(error) else str(error.reason)
    except ConnectionError:
        return answer, "reset"
    return answer, "end"
