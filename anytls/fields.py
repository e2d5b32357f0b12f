"""Settings that sing-box and Xray spell differently but define alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from anytls.json_file import Section
from mtt.address import Endpoint
from mtt.errors import UsageError
from mtt.options.anytls import checked_password
from mtt.options.common import host_name
from mtt.options.flags import Values, quoted
from mtt.trust.identity import PIN_PREFIX, parse_pin
from mtt.trust.pem import InlinePem
from mtt.trust.tls_options import TLS_VERSIONS
from mtt.users.file import checked_user, unique
from mtt.users.user import User

# Reasons why a client refuses a setting of the file, with the fix.
NO_REALITY = "REALITY is not supported; use a server with its own certificate"
NO_ECH = "Python's TLS has no Encrypted Client Hello yet; remove it"
NO_CHOICE = "OpenSSL chooses ciphers and curves; remove it"
NO_MUX = "AnyTLS reuses sessions and has no other multiplexing; remove it"
NO_CLIENT_FAST_OPEN = (
    "AnyTLS cannot use TCP fast open: it keeps connections for later instead; remove it"
)

# The option, and the equivalent key in a TLS object or at the top of a file.
IGNORE_FINGERPRINT = "ignore-fingerprint"

# The length of an ALPN name is one byte (RFC 7301, 3.1); all names in use are ASCII.
_MAX_ALPN = 255


def server(section: Section, port_key: str, host_key: str) -> Values:
    """The address ("server", an Endpoint) and password ("p") of a server."""
    host = section.required(host_key, "the server's name or address")
    name = host_name(section.label(host_key), host)
    password = section.required("password", "the password that the server knows")
    return {
        "server": Endpoint((name,), section.port(port_key)),
        "p": checked_password(section.label("password"), password),
    }


def users(
    sections: list[Section], name_key: str, password_key: str, *, unnamed: str = ""
) -> tuple[User, ...]:
    """The users in a list of objects; those without a name get `unnamed` and their number."""
    found: list[User] = []
    for number, each in enumerate(sections, 1):
        name = each.text(name_key) or (unnamed and f"{unnamed}{number}")
        found.append(checked_user(each.label(), name, each.text(password_key)))
        each.done()
    return unique(found, [each.label() for each in sections])


def negotiated(section: Section, alpn: Iterable[str], least: str, most: str) -> Values:
    """Values of -alpn and -tls-min, as far as given.

    Args:
        alpn: the value of the key "alpn".
        least, most: the keys of the lowest and highest TLS version.
    """
    values: Values = {}
    if names := checked_alpn(section.label("alpn"), alpn):
        values["alpn"] = names
    version = section.text(least)
    if version and version not in TLS_VERSIONS:
        section.fail(least, f"{quoted(version)} is not {' or '.join(TLS_VERSIONS)}; older ones "
                            "are broken")  # fmt: skip
    newest = section.text(most)
    if newest and newest != TLS_VERSIONS[-1]:
        section.fail(most, f"{quoted(newest)} is not {TLS_VERSIONS[-1]}; remove it; "
                           "it cannot be turned off")  # fmt: skip
    if version:
        values["tls-min"] = version
    return values


def idle_times(section: Section, keys: Mapping[str, str]) -> Values:
    """Values of the options in `keys`, by key, as far as given."""
    found = {option: section.seconds(key) for key, option in keys.items()}
    return {option: seconds for option, seconds in found.items() if seconds is not None}


def fingerprint(section: Section, key: str) -> None:
    """Refuse `key`, which asks for a browser's TLS handshake, unless the user opted out of it."""
    if not section.flag(IGNORE_FINGERPRINT) and not section.file.ignore_fingerprint:
        section.fail(
            key,
            "the TLS handshake of a browser cannot be imitated; if one that looks like OpenSSL's "
            f"will do, add -{IGNORE_FINGERPRINT}, or here \"{IGNORE_FINGERPRINT}\": true",
        )
    section.file.fingerprints.append(section.where(key))


def pins(section: Section, key: str) -> tuple[str, ...]:
    """Pins from SHA-256 hashes of public keys in Base64."""
    found = []
    for text in section.texts(key):
        try:
            found.append(parse_pin(PIN_PREFIX + text))
        except UsageError:
            section.fail(key, f"{quoted(text)} is not the SHA-256 of a public key in Base64")
    return tuple(found)


def inline_pem(section: Section, key: str) -> InlinePem | None:
    """The PEM text in the file itself: a list of lines, or one string."""
    text = "\n".join(section.texts(key))
    return InlinePem(section.label(key), text + "\n") if text.strip() else None


def checked_alpn(option: str, names: Iterable[str]) -> tuple[str, ...]:
    """`names` if they are valid ALPN names. Raises UsageError."""
    found = tuple(names)
    for name in found:
        if not (name.isascii() and name.isprintable() and 0 < len(name) <= _MAX_ALPN):
            raise UsageError(f"{option}: {quoted(name)} is not an ALPN name; write h2 or http/1.1")
    return found
