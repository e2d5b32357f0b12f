"""Options as the two programs read them from a command line."""

from __future__ import annotations

from anytls.options import CLIENT_FLAGS, SERVER_FLAGS, ClientOptions, ServerOptions
from anytls.options import client_options as checked_client
from anytls.options import server_options as checked_server
from mtt.options.flags import parse_args

PIN = "sha256/2ZVxVcFhUQvu9y9vcDVqlFsJkMwpbHUnQ+gpCVyHt5k="


def client(*argv: str) -> ClientOptions:
    return checked_client(parse_args(CLIENT_FLAGS, argv))


def server(*argv: str) -> ServerOptions:
    return checked_server(parse_args(SERVER_FLAGS, argv))


