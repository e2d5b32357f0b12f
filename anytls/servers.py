"""The servers of a client: from the file of -config, from -s, from options that override both."""

from __future__ import annotations

from dataclasses import dataclass, field

from anytls.fields import checked_alpn
from anytls.uri import is_uri, parse_uri
from mtt.address import Endpoint, is_ip
from mtt.errors import UsageError
from mtt.options.anytls import given_password
from mtt.options.common import host_name, reachable
from mtt.options.flags import Values
from mtt.options.proxy import ProxyServer, given_proxy
from mtt.options.tls import given_client_tls
from mtt.trust.tls_options import ClientTls

# Options of a server; on the command line they apply to all servers.
_SERVER_OPTIONS = ("n", "sv", "ca", "pin", "cert", "key", "alpn", "tls-min", "proxy")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerChoice:
    """A server of a client, checked."""

    address: Endpoint
    password: str = field(repr=False)
    tls: ClientTls
    proxy: ProxyServer | None = None  # on the way there


def given_servers(
    given: Values, of_file: tuple[Values, ...], otherwise: Values
) -> tuple[ServerChoice, ...]:
    """The servers to try in order, at least one.

    Args:
        given: the options on the command line.
        of_file: the servers in the file of -config, see `singbox.outbound()`.
        otherwise: the options' defaults.

    Raises UsageError.
    """
    override: Values = {name: given[name] for name in _SERVER_OPTIONS if name in given}
    if password := given_password({"p": "", "password-file": ""} | given):
        override["p"] = password
    if given.get("sv") and (given.get("ca") or given.get("pin")):
        raise UsageError("-sv turns off the verification of -ca and -pin; remove one")
    specs = of_file
    if given.get("s"):
        if len(specs) > 1:
            raise UsageError(
                f"-s: {given['config']} (-config) has {len(specs)} servers; drop -s, or -config"
            )
        specs = ((specs[0] if specs else {}) | _given_server(given["s"], override),)
    if not specs:
        raise UsageError(
            "-s is missing: give the server's address, like -s example.com:443, or its URI, or "
            "-config"
        )
    return tuple(_choice(otherwise | {"no-sni": False} | spec, override) for spec in specs)


def alpn_names(values: Values) -> tuple[str, ...]:
    """The value of -alpn or of a file. Raises UsageError."""
    given = values["alpn"]
    if isinstance(given, tuple):  # from a file, already checked
        return given
    return checked_alpn("-alpn", [name.strip() for name in given.split(",")] if given else ())


def _given_server(text: str, override: Values) -> Values:
    """The value of -s, in the form of `singbox.outbound()`."""
    if not is_uri(text):
        if "@" in text:  # checked first: other errors show the text, here with a password
            raise UsageError("-s: an @ is only valid in a URI, like anytls://PASSWORD@example.com:443")
        return {"server": reachable("-s", text)}
    uri = parse_uri("-s", text)
    if uri.password and override.get("p", uri.password) != uri.password:
        raise UsageError("-s has another password than -p or -password-file; remove one")
    values: Values = {"server": uri.endpoint}
    if uri.password:
        values["p"] = uri.password
    if uri.sni:
        values["n"] = uri.sni
    if uri.insecure is not None:
        values["sv"] = uri.insecure
    if uri.insecure:
        values |= {"ca": "", "pin": ()}  # those of a file's server
    return values


def _choice(known: Values, override: Values) -> ServerChoice:
    values = known | override
    if override.get("sv"):
        values |= {"ca": "", "pin": ()}
    elif override.get("ca") or override.get("pin"):
        # The command line verifies the server, so `insecure` in the URI or file is obsolete.
        values["sv"] = False
    if not values["p"]:
        raise UsageError(
            "-p is missing: give the password in a file with -password-file, or in the URI of -s"
        )
    address: Endpoint = values["server"]
    return ServerChoice(
        address=address,
        password=values["p"],
        proxy=given_proxy(values, address),
        tls=given_client_tls(
            values,
            server_name=_server_name(values, address),
            alpn=alpn_names(values),  # none by default, like the reference
            skip_verify=values["sv"],
        ),
    )


def _server_name(values: Values, address: Endpoint) -> str:
    name = host_name("-n", values["n"]) if values["n"] else host_name("-s", address.host)
    if not values["no-sni"] or is_ip(name):
        return name
    if not values["sv"] and (values["ca"] or not values["pin"]):
        raise UsageError(
            "-config: disable_sni: a name that is not sent cannot be verified; give -pin, or "
            "remove disable_sni and give the IP address of the server as server_name"
        )
    return ""
