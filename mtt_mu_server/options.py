"""The options of mtt-mu-server: their table, and the checked result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mtt.address import Endpoint, is_loopback
from mtt.errors import UsageError
from mtt.options import common, tls
from mtt.options.flags import Flag, Group, Values, defaults, quoted
from mtt.options.process import CONFIG, process_flags
from mtt.trust.tls_options import ServerTls
from mtt.wire import alpn
from mtt_mu_server.inherited_sockets import NO_SOCKETS, InheritedSockets, assigned, control_hosts

if TYPE_CHECKING:
    from mtt.process.systemd import Inherited

DEFAULT_TIMEOUT = "1m"  # as the original; its tunnel commands have 5m

FLAGS = (
    common.BIND,
    common.BIND_UNIX,
    Flag("c", "str", "Address of the controller: a loopback address, or unix:/path for a socket "
         "for the current user only. Other addresses need -c-token-file, -c-cert and -c-key.",
         "HOST:PORT", may_be_empty=True, group=Group.ACCESS),
    Flag("c-token-file", "str", "File with the token that every request to the controller must "
         "carry as Authorization: Bearer TOKEN.", "FILE", group=Group.ACCESS),
    Flag("c-cert", "str", "PEM file with the controller's certificate; the controller then uses "
         "HTTPS.", "FILE", group=Group.ACCESS),
    Flag("c-key", "str", "PEM file with the private key of -c-cert.", "FILE", group=Group.ACCESS),
    Flag("db", "str", "SQLite file for the users and their counters. Without it the server "
         "forgets them when it stops.", "FILE", group=Group.ACCESS),
    common.METRICS,
    Flag("metrics-users", "bool", "Add metrics for each user to GET /metrics.",
         group=Group.OBSERVE),
    *tls.SERVER_TLS_FLAGS,
    common.FALLBACK,
    common.PROXY_PROTOCOL,
    common.FALLBACK_PROXY_PROTOCOL,
    common.TRUSTED_PROXIES._replace(
        help=common.TRUSTED_PROXIES.help.replace(" or with -wss", " or")),
    common.V2RAY._replace(help="Expect v2ray-plugin, V2Ray or Xray from clients without a "
                          "subprotocol, instead of detecting them. With -mux, expect their mux."),
    common.MUX._replace(help="Expect -mux from WebSocket clients that do not name a subprotocol."),
    common.UDP._replace(help="Carry UDP as well, for clients with -udp, to the user's "
                        "destination."),
    common.UDP_TIMEOUT,
    common.TIMEOUT._replace(default=DEFAULT_TIMEOUT),
    common.MAX_CONNS,
    common.FAST_OPEN,
    CONFIG,
    common.LINK,
    Flag("link-path", "str", "With -link: path of the user.", "PATH", secret=True,
         group=Group.LINK),
    common.LINK_SERVER,
    common.LINK_SS,
    common.QR,
    *process_flags(),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiUserOptions(common.ServiceOptions):
    """The checked options of mtt-mu-server."""

    inherited: InheritedSockets = NO_SOCKETS  # sockets to listen on instead
    controller: Endpoint | None  # IP literals or names; None with a socket
    controller_unix: str = ""  # a path
    controller_hosts: tuple[str, ...] = ()  # those of `controller`, or of the inherited sockets
    token_file: str = ""
    controller_tls: ServerTls | None = None  # None for plain HTTP
    db: str = ""  # a file; empty for none
    metrics_users: bool = False
    tls: ServerTls | None  # None without TLS
    mux: bool = False
    v2ray: bool = False

    @property
    def mode(self) -> str:
        """The name of the mode, see `mtt.modes`."""
        return common.mode_name(wss=True, v2ray=self.v2ray, mux=self.mux)


def options(given: Values, sockets: Sequence[Inherited] = ()) -> MultiUserOptions:
    """The options of mtt-mu-server, from those `given` of FLAGS.

    `sockets` named tunnel replace -b and -bind-unix, those named control replace -c. Raises
    UsageError.
    """
    values = defaults(FLAGS) | given
    inherited = assigned(sockets)
    bind, bind_unix = (None, "") if inherited.tunnel else common.bind_address(values)
    common.both_or_neither(values, "c-cert", "c-key")
    # What a controller needs to be reachable from other machines.
    lacking = [f"-{name}" for name in ("c-token-file", "c-cert", "c-key") if not values[name]]
    controller, controller_unix = None, ""
    if inherited.control:
        hosts = control_hosts(inherited.control, guarded=not lacking)
    else:
        text = common.required(values, "c", "the controller's address, like -c 127.0.0.1:8080")
        controller, controller_unix = common.own_address("-c", text)
        hosts = controller.hosts if controller is not None else ()
        if lacking and not all(map(is_loopback, hosts)):
            raise UsageError(
                f"-c: {quoted(text)} can be reached from other machines, so it needs "
                f"{', '.join(lacking)} too; or use 127.0.0.1 or unix:/path"
            )
    controller_tls = ServerTls(
        cert=values["c-cert"], key=values["c-key"], options=("-c-cert", "-c-key"),
        alpn=alpn.WEBSOCKET, tls_min=values["tls-min"],
    )  # fmt: skip
    return MultiUserOptions(
        inherited=inherited,
        bind=bind, bind_unix=bind_unix, sockets=inherited.tunnel,
        controller=controller, controller_unix=controller_unix, controller_hosts=hosts,
        token_file=values["c-token-file"],
        controller_tls=controller_tls if values["c-cert"] else None,
        db=values["db"],
        metrics_users=values["metrics-users"],
        tls=tls.given_server_tls(values, alpn.SITE),
        mux=values["mux"],
        v2ray=values["v2ray"],
        **common.service_values(values),
    )  # fmt: skip
