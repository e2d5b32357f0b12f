"""The output of -link of anytls-client and anytls-server: command line, URI, sing-box outbound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anytls.options import CLIENT_FLAGS, ServerOptions, client_options, server_options
from anytls.servers import ServerChoice
from anytls.uri import format_uri
from mtt.address import Endpoint
from mtt.errors import UsageError
from mtt.options import links
from mtt.options.flags import Values, quoted
from mtt.options.links import Link
from mtt.trust.identity import PIN_PREFIX
from mtt.trust.pem import InlinePem, read_pem
from mtt.trust.tls_options import DEFAULT_TLS_MIN, ClientTls

_NO_PIN = (
    "a URI cannot carry the pin of a self-signed certificate; use a certificate of a CA, or give "
    "clients the command line or the sing-box outbound"
)


def of_client(values: Values) -> Sequence[Link]:
    """The links of -link, from the options given to anytls-client. Raises MttError."""
    choice, *others = client_options(values).servers
    if others:
        raise UsageError(f"-config has {len(others) + 1} servers; give one with -s")
    tls = choice.tls
    server: Values = {
        "s": str(choice.address), "p": choice.password, "sv": tls.skip_verify, "pin": tls.pins,
        "n": tls.server_name if tls.server_name != choice.address.host else "",
        "alpn": ",".join(tls.alpn), "tls-min": tls.tls_min,
    }  # fmt: skip
    # Text in a file of -config has no option.
    server |= {name: each for name, each in (("ca", tls.ca), ("cert", tls.cert), ("key", tls.key))
               if isinstance(each, str)}  # fmt: skip
    handed = links.own_values(CLIENT_FLAGS, values)
    own = ("password-file", "user", "user-password-file")
    return _links(choice, {k: v for k, v in handed.items() if k not in own} | server)


def of_server(values: Values) -> Sequence[Link]:
    """The links of -link, from the options given to anytls-server. Raises MttError."""
    options = server_options(values)
    trust = links.trust_of(options.tls)
    address = links.server_address(values.get("link-server", ""), trust, options.bind)
    verify = links.trust_values(trust, address)
    password = _password(options, values.get("link-user", ""))
    name = verify.get("n", address.host)
    ca: Any = ""
    if trust is not None and trust.pin:
        # sing-box also verifies the name. Older versions have no pins, so include the certificate.
        name = trust.names[0] if trust.names else name
        ca = InlinePem("-cert", trust.certificate)
    tls = ClientTls(server_name=name, ca=ca, pins=verify.get("pin", ()))
    choice = ServerChoice(address=address, password=password, tls=tls)
    return _links(choice, {"s": str(address), "p": password, **verify})


def _password(options: ServerOptions, name: str) -> str:
    if not name and len(options.users) > 1:
        raise UsageError(f"-link: there are {len(options.users)} users; add -link-user NAME")
    for user in options.users:
        if user.name == name or not name:
            return user.password
    raise UsageError(f"-link-user: there is no user {quoted(name)}")


def _links(choice: ServerChoice, values: Values) -> list[Link]:
    tls = choice.tls
    uri = Link("uri", "URI", _uri(choice))
    if (tls.pins or tls.ca) and not tls.skip_verify:
        uri = Link("uri", "", missing=_NO_PIN)
    return [
        Link("command", "Command line", links.command_line("anytls-client", CLIENT_FLAGS, values)),
        Link("sing-box", "sing-box outbound", _outbound(choice)),
        uri,
    ]


def _uri(choice: ServerChoice) -> str:
    address = choice.address
    name = choice.tls.server_name
    return format_uri(
        Endpoint(address.hosts[:1], address.port),
        choice.password,
        sni=name if name != address.host else "",
        insecure=choice.tls.skip_verify,
    )


def _outbound(choice: ServerChoice) -> str:
    """The AnyTLS outbound of sing-box for a server, as JSON."""
    import json

    given = choice.tls
    tls: dict[str, Any] = {"enabled": True}
    if given.server_name:
        tls["server_name"] = given.server_name
    if given.skip_verify:
        tls["insecure"] = True
    if given.ca:
        text = read_pem(given.ca_option, given.ca).decode("ascii", "replace")
        tls["certificate"] = text.splitlines()
    elif given.pins:
        tls["certificate_public_key_sha256"] = [pin.removeprefix(PIN_PREFIX) for pin in given.pins]
    if given.alpn:
        tls["alpn"] = list(given.alpn)
    if given.tls_min != DEFAULT_TLS_MIN:
        tls["min_version"] = given.tls_min
    return json.dumps(
        {
            "type": "anytls",
            "tag": choice.address.host,
            "server": choice.address.host,
            "server_port": choice.address.port,
            "password": choice.password,
            "tls": tls,
        },
        indent=2,
        ensure_ascii=False,
    )
