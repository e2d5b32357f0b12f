"""TLS options: their table entries, and their values as one object."""

from __future__ import annotations

import os

from mtt.errors import UsageError
from mtt.options.common import both_or_neither, host_name
from mtt.options.flags import Flag, Group, Values, quoted
from mtt.trust.tls_options import DEFAULT_TLS_MIN, TLS_VERSIONS, ClientTls, ServerTls

CERT = Flag("cert", "str", "PEM file with the server's certificate and its chain. Without -cert "
            "and -key the server generates a self-signed certificate.", "FILE", group=Group.TRUST)
KEY = Flag("key", "str", "PEM file with the private key of -cert.", "FILE", group=Group.TRUST)
CERT_DIR = Flag("cert-dir", "str", "Directory that keeps the generated certificate and its key, "
                "so that the pin survives restarts.", "DIR", group=Group.TRUST)
CLIENT_CA = Flag("client-ca", "str", "PEM file with CA certificates, or with the clients' own; "
                 "clients without a certificate issued by, or equal to, one of these are refused.",
                 "FILE", group=Group.TRUST)
TLS_MIN = Flag("tls-min", "str", "Lowest TLS version.", "|".join(TLS_VERSIONS), DEFAULT_TLS_MIN,
               choices=TLS_VERSIONS, group=Group.TRUST)
CA = Flag("ca", "str", "PEM file with the certificates to trust instead of the system's.", "FILE",
          group=Group.TRUST)
PIN = Flag("pin", "str", "Trust the server whose public key has this hash, which it prints at "
           "start.", "sha256/BASE64", repeatable=True, group=Group.TRUST)
SKIP_VERIFY = Flag("sv", "bool", "Skip verification: accept any certificate, and so any attacker. "
                   "Use -pin or -ca to trust a self-signed certificate.", weakens=True,
                   group=Group.TRUST)
DISABLE_TLS = Flag("disable-tls", "bool", "Expect plain TCP, from a proxy in front that does TLS.",
                   weakens=True, group=Group.TRUST)
CERT_NAME = Flag("n", "str", "Host name in the generated certificate; random if not given.", "NAME",
                 may_be_empty=True, group=Group.TRUST)

_CLIENT_CERT = CERT._replace(help="PEM file with the client's certificate and its chain, for "
                             "servers with -client-ca.")
CLIENT_TLS_FLAGS = (CA, PIN, _CLIENT_CERT, KEY, TLS_MIN)
SERVER_TLS_FLAGS = (CERT, KEY, CERT_DIR, CLIENT_CA, TLS_MIN, DISABLE_TLS, CERT_NAME)


def given_client_tls(
    values: Values, *, server_name: str, skip_verify: bool, alpn: tuple[str, ...] = ()
) -> ClientTls:
    """The value of CLIENT_TLS_FLAGS. Raises UsageError."""
    neither = " to go without a client certificate (-ca is for trusting the server)"
    both_or_neither(values, "cert", "key", neither)
    pins = values["pin"]
    if pins:
        from mtt.trust.identity import parse_pin

        pins = tuple(map(parse_pin, pins))
    return ClientTls(
        server_name=server_name,
        ca=values["ca"],
        pins=pins,
        skip_verify=skip_verify,
        cert=values["cert"],
        key=values["key"],
        alpn=alpn,
        tls_min=_tls_min(values),
    )


def given_server_tls(values: Values, alpn: tuple[str, ...] = ()) -> ServerTls | None:
    """The value of SERVER_TLS_FLAGS; None without TLS. Raises UsageError."""
    _check_server_certificates(values)
    tls = ServerTls(
        cert=values["cert"],
        key=values["key"],
        cert_dir=_cert_dir(values),
        name=host_name("-n", values["n"]) if values["n"] else "",
        client_ca=values["client-ca"],
        alpn=alpn,
        tls_min=_tls_min(values),
    )
    return None if values["disable-tls"] else tls


def _cert_dir(values: Values) -> str:
    """The value of -cert-dir."""
    directory: str = values["cert-dir"]
    # A check creates no files: they would belong to the user that runs the check.
    is_new = directory and not os.path.exists(os.path.join(directory, "cert.pem"))
    return "" if is_new and values.get("check") else directory


def _check_server_certificates(values: Values) -> None:
    """Raise UsageError if a server's certificate options contradict each other."""
    both_or_neither(values, "cert", "key", " to get a self-signed certificate")
    if values["cert-dir"] and values["cert"]:
        raise UsageError("-cert-dir is for a self-signed certificate; drop it, or -cert and -key")
    if not values["disable-tls"]:
        return
    # This matters most for -client-ca: a server that should require certificates must not run open.
    for flag in (CLIENT_CA, CERT_DIR, TLS_MIN):
        if values[flag.name] != flag.default:
            raise UsageError(f"-{flag.name} needs TLS, which -disable-tls turns off; remove one")
    if values["cert"]:  # accepted, because the original accepts it
        from mtt.log import logger  # only if needed: plugins must start fast

        logger.warning("-cert, -key: not used, because -disable-tls turns TLS off")


def _tls_min(values: Values) -> str:
    """The value of -tls-min, one of TLS_VERSIONS. Raises UsageError."""
    version: str = values["tls-min"]
    if version not in TLS_VERSIONS:
        raise UsageError(f"-tls-min: {quoted(version)} is not {' or '.join(TLS_VERSIONS)}")
    return version
