"""What the TLS of a client or a server is made of: one value, from the options to the contexts.

Loads nothing of TLS: options are read before a plugin listens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtt.trust.pem import PemSource

DEFAULT_TLS_MIN = "1.2"
TLS_VERSIONS = (DEFAULT_TLS_MIN, "1.3")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """The TLS of a client: which server it believes, and who it is itself."""

    # SNI and the name to verify: a host name in ASCII, or an IP literal without brackets, which is
    # verified only. Empty for neither, which takes `skip_verify`, or `pins` without `ca`.
    server_name: str = ""
    ca: PemSource = ""  # empty for the system's roots
    # "sha256/BASE64", each of a public key. The certificate's chain and name are then checked only
    # if `ca` is given too.
    pins: tuple[str, ...] = ()
    skip_verify: bool = False
    cert: PemSource = ""  # of the client itself, followed by its chain; both or none
    key: PemSource = ""
    alpn: tuple[str, ...] = ()  # preferred one first; empty to offer none
    tls_min: str = DEFAULT_TLS_MIN  # one of TLS_VERSIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """The TLS of a server: who it is, and which clients it believes."""

    cert: PemSource = ""  # followed by its chain; both empty for a self-signed certificate
    key: PemSource = ""
    cert_dir: str = ""  # where a self-signed one is kept; empty for a new one at each start
    name: str = ""  # in the self-signed certificate; empty for a random one
    client_ca: PemSource = ""  # empty to let every client in
    # To select from, preferred one first. A client that offers none of them is served all the same,
    # without ALPN.
    alpn: tuple[str, ...] = ()
    tls_min: str = DEFAULT_TLS_MIN  # one of TLS_VERSIONS
    options: tuple[str, str] = ("-cert", "-key")  # what the user knows `cert` and `key` by
