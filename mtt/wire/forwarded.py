"""The addresses that HTTP proxies add to a request: X-Forwarded-For, and Forwarded (RFC 7239).

    X-Forwarded-For: 203.0.113.7, 192.0.2.1
    Forwarded: for="[2001:db8::7]:4711";proto=https, for=192.0.2.1

Each proxy appends the address from which it received the request. So the last addresses are as
reliable as the proxies that wrote them, and the client can forge the first ones.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator

from mtt.wire.addresses import unmapped_ip

Address = tuple[str, int]
Headers = Iterable[tuple[str, str]]  # names in lower case

# An address may have a port (RFC 7239, 6; some load balancers also write one in X-Forwarded-For).
_NODE = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]]*))(?::([0-9]{1,5}))?")
# One pair of Forwarded (RFC 7239, 4), or what separates pairs and elements.
_PAIR = re.compile(
    r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)=(\"(?:\\.|[^\"\\])*\"|[^\s\",;]*)\s*|\s*([;,])\s*"
)


def forwarded_for(headers: Headers) -> Iterator[Address | None]:
    """The addresses in the headers, the last one first; None for an invalid address.

    The port is 0 if it is unknown. Forwarded is read only without X-Forwarded-For: most proxies
    append to X-Forwarded-For, and pass on the client's Forwarded unchanged.

    Addresses are parsed on demand, because a client may send thousands that are not needed.
    """
    lists = [value for name, value in headers if name == "x-forwarded-for"]
    if lists:
        nodes = [node.strip(" \t") for text in lists for node in text.split(",")]
    else:
        lists = [value for name, value in headers if name == "forwarded"]
        nodes = [node for text in lists for node in _nodes(text)]
    return map(_address, reversed(nodes))


def _nodes(text: str) -> Iterator[str]:
    """The `for` of each element of Forwarded; empty where it is missing or cannot be read."""
    node = ""
    at = 0
    while at < len(text):
        match = _PAIR.match(text, at)
        if match is None or match.end() == at:
            yield ""  # what follows cannot be split reliably
            return
        at = match.end()
        if match[3] == ",":
            yield node
            node = ""
        elif match[1] and match[1].lower() == "for":
            node = match[2]
            if node.startswith('"'):
                node = re.sub(r"\\(.)", r"\1", node[1:-1])
    yield node


def _address(node: str) -> Address | None:
    """The address in `node`; None for "unknown", for obfuscated names, and for nonsense."""
    match = _NODE.fullmatch(node)
    host = node if match is None else match[2] if match[1] is None else match[1]
    try:
        address = ipaddress.ip_address(host)  # without brackets, IPv6 has no port
    except ValueError:
        return None
    port = int(match[3] or 0) if match is not None else 0
    if port > 0xFFFF or "%" in host:  # a zone has no meaning on another machine
        return None
    return str(unmapped_ip(address)), port
