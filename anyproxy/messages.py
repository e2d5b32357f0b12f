"""The values in the messages of the control stream: ports that an agent asks for, and results.

    port      {"port": 2222, "protocol": "tcp", "host": "127.0.0.1", "target_port": 22,
               "proxy_protocol": "v1", "allow_from": ["10.0.0.0/8"]}        the last two optional
    result    {"port": 2222, "protocol": "tcp", "ok": true, "address": "127.0.0.1:2222"}
              {"port": 2222, "protocol": "tcp", "ok": false, "error": "..."}

A result with "standby": true is of a port that another agent of the group serves at present. Values
have exactly these types; unknown keys are ignored.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from anyproxy.options import ANYWHERE, MAX_OPEN_PORTS, PROTOCOLS, Network, OpenPort
from anyproxy.ports import PortResult
from mtt.errors import PeerError
from mtt.wire import addresses, proxy_protocol

# Networks in the list of users of one port.
MAX_NETWORKS = 1000
# Characters of an error, and of an address, that a gateway tells. With them, the results of
# MAX_OPEN_PORTS ports fit in a message.
MAX_TEXT = 150

Message = dict[str, Any]
_Value = TypeVar("_Value")


def format_ports(ports: Iterable[OpenPort]) -> list[Message]:
    """The value of an agent's "ports"."""
    entries = []
    for port in ports:
        entry: Message = {
            "port": port.remote_port,
            "protocol": port.protocol,
            "host": port.local_host,
            "target_port": port.local_port,
        }
        if port.proxy_protocol:
            entry["proxy_protocol"] = port.proxy_protocol
        if port.allow_from != ANYWHERE:
            entry["allow_from"] = list(map(str, port.allow_from))
        entries.append(entry)
    return entries


def parse_ports(value: object) -> tuple[OpenPort, ...]:
    """The ports in an agent's "ports". Raises PeerError."""
    return tuple(_parse_port(entry) for entry in _entries(value))


def format_results(results: Iterable[PortResult]) -> list[Message]:
    """The value of a gateway's "ports"."""
    entries = []
    for result in results:
        port = result.port
        entry: Message = {"port": port.remote_port, "protocol": port.protocol}
        if result.error:
            entry |= {"ok": False, "error": _shortened(result.error)}
        else:
            entry |= {"ok": True, "address": _shortened(result.address)}
            if result.is_standby:
                entry["standby"] = True
        entries.append(entry)
    return entries


def parse_results(value: object, ports: Sequence[OpenPort]) -> list[PortResult]:
    """The results in a gateway's "ports", for what the agent asked for last. Raises PeerError."""
    results = []
    for entry, port in zip(_entries(value), ports, strict=False):
        number, protocol = item(entry, "port", int), item(entry, "protocol", str)
        if (number, protocol) != (port.remote_port, port.protocol):
            return []  # the answer to an earlier message
        error = ""
        if not item(entry, "ok", bool):
            error = item(entry, "error", str, "")[:MAX_TEXT] or "no reason given"
        address = item(entry, "address", str, "")[:MAX_TEXT]
        results.append(PortResult(port, address, error, item(entry, "standby", bool, False)))
    return results


def _shortened(text: str) -> str:
    return text[:MAX_TEXT].encode("ascii", "replace").decode()  # others take more bytes in JSON


def _entries(value: object) -> list[Message]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise PeerError("ports is not a list of objects")
    if len(value) > MAX_OPEN_PORTS:
        raise PeerError(f"{len(value)} ports; {MAX_OPEN_PORTS} at most")
    return value


def _parse_port(entry: Message) -> OpenPort:
    number, target = item(entry, "port", int), item(entry, "target_port", int)
    protocol, version = item(entry, "protocol", str), item(entry, "proxy_protocol", str, "")
    if not (0 <= number <= 65535 and 1 <= target <= 65535):
        raise PeerError("a port number is out of range")
    if protocol not in PROTOCOLS:
        raise PeerError("the protocol of a port is neither tcp nor udp")
    if version and version not in proxy_protocol.VERSIONS:
        raise PeerError("the proxy_protocol of a port is neither v1 nor v2")
    try:
        encoded = addresses.encode(item(entry, "host", str), target)
    except ValueError as error:
        raise PeerError(f"the host of a port: {error}") from None
    decoded = addresses.decode(encoded)  # the canonical form
    assert decoded is not None
    networks: tuple[Network, ...] = ANYWHERE
    if "allow_from" in entry:
        networks = _networks(item(entry, "allow_from", list))
    return OpenPort(
        remote_port=number,
        local_host=decoded[0],
        local_port=target,
        protocol=protocol,
        proxy_protocol=version,
        allow_from=networks,
    )


def _networks(names: list[object]) -> tuple[Network, ...]:
    if len(names) > MAX_NETWORKS or not all(isinstance(name, str) for name in names):
        raise PeerError(f"allow_from is not a list of up to {MAX_NETWORKS} networks")
    try:
        return tuple(ipaddress.ip_network(str(name)) for name in names)
    except ValueError as error:
        raise PeerError(f"allow_from: {str(error)[:MAX_TEXT]}") from None


def item(entry: Message, key: str, kind: type[_Value], default: _Value | None = None) -> _Value:
    """The value of a key, of exactly this type. Raises PeerError."""
    value = entry.get(key, default)
    if type(value) is not kind:  # a bool is an int otherwise
        raise PeerError(f"{key} is missing, or has the wrong type")
    return value
