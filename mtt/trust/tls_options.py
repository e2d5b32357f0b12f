"""The TLS settings of a client or server, passed as one value from the options to the contexts.

Does not import `ssl`: options are read before a plugin listens.
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
    """The TLS settings of a client: the servers it trusts, and its own identity."""

    # SNI and the name to verify: an ASCII host name, or an IP literal without brackets, which is
    # only verified. Empty for neither, which requires `skip_verify`, or `pins` without `ca`.
    server_name: str = ""
    ca: PemSource = ""  # empty for the system's roots
    # "sha256/BASE64" of public keys. With pins, the certificate's chain and name are checked only
    # if `ca` is given as well.
    pins: tuple[str, ...] = ()
    skip_verify: bool = False
    cert: PemSource = ""  # the client's own, followed by its chain; with `key` or neither
    key: PemSource = ""
    alpn: tuple[str, ...] = ()  # preferred one first; empty to offer none
    tls_min: str = DEFAULT_TLS_MIN  # one of TLS_VERSIONS
    # The options that set `cert`, `key` and `ca`, for errors.
    options: tuple[str, str] = ("-cert", "-key")
    ca_option: str = "-ca"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """The TLS settings of a server: its identity, and the clients it trusts."""

    cert: PemSource = ""  # followed by its chain; both empty for a self-signed certificate
    key: PemSource = ""
    cert_dir: str = ""  # directory of the self-signed one; empty for a new one at each start
    name: str = ""  # in the self-signed certificate; empty for a random one
    client_ca: PemSource = ""  # empty to admit every client
    # To select from, preferred one first. A client that offers none of them is still served,
    # without ALPN.
    alpn: tuple[str, ...] = ()
    tls_min: str = DEFAULT_TLS_MIN  # one of TLS_VERSIONS
    # The options that set `cert`, `key` and `client_ca`, for errors.
    options: tuple[str, str] = ("-cert", "-key")
    ca_option: str = "-client-ca"
