"""The proxies in front of a server whose information about the user's address is trusted."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from mtt.address import unmapped
from mtt.errors import UsageError
from mtt.wire.forwarded import Headers, forwarded_for

# Entries of -trusted-proxies; each connection searches them one by one. CDNs publish some 30.
MAX_ENTRIES = 1000

# Proxies on one request's way. A head has room for thousands of addresses, and each is searched in
# the list.
MAX_HOPS = 32

# The entry that stands for clients of the server's unix socket.
UNIX = "unix"

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class TrustedProxies:
    """The value of -trusted-proxies."""

    networks: tuple[_Network, ...] = ()
    unix: bool = False

    def trusts(self, peer: Any) -> bool:
        """Whether the peer is in the list. `peer`: its address, as sockets report it."""
        if not isinstance(peer, tuple):
            return self.unix
        address = ipaddress.ip_address(unmapped(peer[0].partition("%")[0]))
        return any(address in network for network in self.networks)

    def user(self, peer: Any, headers: Headers) -> tuple[str, int] | None:
        """The user's address according to the headers of a request from `peer`.

        This is the last address that is not a trusted proxy's, or the first one if all are, of the
        last MAX_HOPS. None if `peer` is not trusted, or sends no address.
        """
        if not self.trusts(peer):
            return None
        found = None
        for address in islice(forwarded_for(headers), MAX_HOPS):
            if address is None:  # earlier entries are not reliable
                break
            found = address
            if not self.trusts(address):
                break
        return found


def parse_trusted_proxies(option: str, text: str) -> TrustedProxies:
    """The proxies in `CIDR,...`, single addresses and the word unix included.

    Raises UsageError.
    """
    networks = []
    unix = False
    entries = text.split(",")
    if len(entries) > MAX_ENTRIES:
        raise UsageError(f"{option}: {len(entries)} entries are too many; {MAX_ENTRIES} at most")
    for entry in entries:
        entry = entry.strip()
        if entry == UNIX:
            unix = True
            continue
        try:
            network = ipaddress.ip_network(entry, strict=False)
        except ValueError:
            raise UsageError(
                f"{option}: {entry[:60]!r} is not a range of IP addresses; write it like "
                f"10.0.0.0/8, 192.0.2.7, 2001:db8::/32, or {UNIX} for a unix socket"
            ) from None
        if "/" in entry and str(network.network_address) != entry.partition("/")[0]:
            # The operator may have meant only the address; trusting the range would be unsafe.
            raise UsageError(f"{option}: {entry[:60]!r} is an address within {network}; write "
                             "the range, or the address alone")  # fmt: skip
        networks.append(network)
    return TrustedProxies(tuple(networks), unix)
