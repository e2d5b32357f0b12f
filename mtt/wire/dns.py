"""DNS messages for a stub resolver of addresses (RFC 1035, RFC 3596).

A query asks one question for A or AAAA records of class IN. There is no EDNS: answers are short,
and an answer above 512 bytes is marked truncated and fetched over TCP.
"""

from __future__ import annotations

import ipaddress
import struct

from mtt.wire.errors import WireError

TYPE_A = 1
TYPE_AAAA = 28

_TYPE_CNAME = 5
_CLASS_IN = 1

_HEADER = struct.Struct("!6H")  # id, flags, record counts of the four sections
_QUESTION_END = struct.Struct("!HH")  # type, class
_RECORD = struct.Struct("!HHIH")  # type, class, TTL in seconds, length of the data

_RESPONSE = 0x8000
_OPCODE = 0x7800
_TRUNCATED = 0x0200
_RECURSION_DESIRED = 0x0100
_RCODE = 0x000F

_RCODES = {  # RFC 1035, 4.1.1
    1: "it calls the query malformed",
    2: "it failed to look up the name",
    3: "there is no such name",
    4: "it does not know this kind of query",
    5: "it refuses to answer",
}

MAX_LABEL = 63  # RFC 1035, 2.3.4
MAX_NAME = 255  # RFC 1035, 2.3.4: octets on the wire, including the final zero

# These limits bound the work that a hostile answer (64 KiB over TCP) can cause. Real answers have a
# handful of records, and a name needs no more pointers than it has labels.
MAX_POINTERS = 127
MAX_RECORDS = 256
MAX_ADDRESSES = 64
MAX_ALIASES = 16  # BIND and unbound stop following CNAMEs at about this depth, too

_Name = tuple[bytes, ...]
Answer = tuple[tuple[str, ...], int, bool]


class DnsError(WireError):
    """The message is not an answer to the query."""


class RcodeError(DnsError):
    """The server answered the query with an error code."""

    def __init__(self, rcode: int) -> None:
        super().__init__(_RCODES.get(rcode, f"it answers with error code {rcode}"))
        self.rcode = rcode


def encode_name(name: str) -> bytes:
    """A host name on the wire: length-prefixed labels, then a zero (RFC 1035, 3.1).

    Non-ASCII names are encoded with IDNA; one trailing dot is allowed.
    Raises ValueError if the name is empty or too long, or has an empty or overlong label.
    """
    text = name.removesuffix(".")
    # Check the length first: the idna codec takes quadratic time.
    if not text or len(text) > MAX_NAME - 2:
        raise ValueError(f"a host name has 1 to {MAX_NAME - 2} characters")
    try:
        labels = (text if text.isascii() else text.encode("idna").decode("ascii")).split(".")
    except UnicodeError:
        raise ValueError("IDNA cannot encode the host name") from None
    wire = bytearray()
    for label in labels:
        if not 1 <= len(label) <= MAX_LABEL:
            raise ValueError(f"a label of a host name has 1 to {MAX_LABEL} characters")
        if not label.isprintable() or " " in label:
            raise ValueError("a host name has no spaces and no control characters")
        wire.append(len(label))
        wire += label.encode("ascii")
    wire.append(0)
    if len(wire) > MAX_NAME:
        raise ValueError(f"a host name has 1 to {MAX_NAME - 2} characters")
    return bytes(wire)


def build_query(query_id: int, name: str, qtype: int) -> bytes:
    """A recursive query for the records of type `TYPE_A` or `TYPE_AAAA` of a host name.

    `query_id` has 16 bits and should be unpredictable (RFC 5452). Raises ValueError on a bad name.
    """
    header = _HEADER.pack(query_id, _RECURSION_DESIRED, 1, 0, 0, 0)
    return header + encode_name(name) + _QUESTION_END.pack(qtype, _CLASS_IN)


def parse_response(query: bytes, data: bytes) -> Answer:
    """Find the addresses that `data` gives as the answer to `query`, following its CNAMEs.

    Returns (addresses, ttl, truncated): IP literals in the order of the answer, the smallest TTL on
    the CNAME chain in seconds, and whether to ask again over TCP (then without addresses). No
    addresses otherwise means that the name has none of this type.

    Raises RcodeError if the server answers with an error, and DnsError if `data` is malformed or
    belongs to another query (RFC 5452, 9.1: ignore both over UDP).
    """
    try:
        return _parse_response(query, data)
    except (IndexError, struct.error):
        raise DnsError("the message ends too early") from None


def _parse_response(query: bytes, data: bytes) -> Answer:
    query_id, flags, questions, answers, _, _ = _HEADER.unpack_from(data)
    if query_id != _HEADER.unpack_from(query)[0] or not flags & _RESPONSE or flags & _OPCODE:
        raise DnsError("the message does not answer this query")
    # Names compare case-insensitively; lengths and the two types are not ASCII letters.
    question = query[_HEADER.size :]
    at = len(query)
    if questions != 1 or data[_HEADER.size : at].lower() != question.lower():
        raise DnsError("the message answers another question")
    if flags & _RCODE:
        raise RcodeError(flags & _RCODE)
    if flags & _TRUNCATED:
        return (), 0, True

    qtype, _ = _QUESTION_END.unpack_from(query, at - _QUESTION_END.size)
    address_size = 4 if qtype == TYPE_A else 16
    aliases: dict[_Name, tuple[_Name, int]] = {}
    found: dict[_Name, list[tuple[bytes, int]]] = {}
    for _ in range(min(answers, MAX_RECORDS)):
        owner, at = _read_name(data, at)
        rtype, rclass, ttl, size = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        end = at + size
        if end > len(data):
            raise DnsError("the message ends too early")
        if ttl >= 1 << 31:  # RFC 2181, 8
            ttl = 0
        if rclass == _CLASS_IN and rtype == qtype:
            if size != address_size:
                raise DnsError("an address has the wrong length")
            found.setdefault(owner, []).append((data[at:end], ttl))
        elif rclass == _CLASS_IN and rtype == _TYPE_CNAME:
            target, after = _read_name(data, at)
            if after != end:
                raise DnsError("a CNAME has the wrong length")
            aliases[owner] = target, ttl
        at = end
    return _follow(_read_name(query, _HEADER.size)[0], aliases, found)


def _follow(
    name: _Name,
    aliases: dict[_Name, tuple[_Name, int]],
    found: dict[_Name, list[tuple[bytes, int]]],
) -> Answer:
    """Follow the CNAMEs from the queried name to its addresses; ignore all other records."""
    ttls = []
    for _ in range(MAX_ALIASES + 1):
        if name in found:
            records = found[name][:MAX_ADDRESSES]
            ttls += [ttl for _, ttl in records]
            return tuple(str(ipaddress.ip_address(raw)) for raw, _ in records), min(ttls), False
        if name not in aliases:
            return (), 0, False
        name, ttl = aliases[name]
        ttls.append(ttl)
    raise DnsError("the chain of CNAMEs does not end")


def _read_name(data: bytes, at: int) -> tuple[_Name, int]:
    """The labels of the name at offset `at`, in lower case, and the offset after the name.

    A compression pointer (RFC 1035, 4.1.4) must point before the piece that it ends: encoders
    produce no other, and it makes loops impossible.
    """
    labels = []
    size = 1
    start = at
    behind = -1
    pointers = 0
    while length := data[at]:
        if length >= 0xC0:
            if behind < 0:
                behind = at + 2
            at = (length & 0x3F) << 8 | data[at + 1]
            pointers += 1
            if at >= start or pointers > MAX_POINTERS:
                raise DnsError("a compression pointer leads nowhere")
            start = at
            continue
        label = data[at + 1 : at + 1 + length]
        size += 1 + length
        if length > MAX_LABEL or len(label) != length or size > MAX_NAME:
            raise DnsError("a name is malformed")
        labels.append(label.lower())
        at += 1 + length
    return tuple(labels), behind if behind >= 0 else at + 1
