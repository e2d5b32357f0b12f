"""The forwarded ports of an agent whose gateway is the Go program."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from anyproxy.options import ANYWHERE, OpenPort
from mtt.layers.anyproxy import GoSession
from mtt.log import logger
from mtt.wire.anyproxy import ForwardedPort, PortForwardResponse

# Characters of the gateway's answer in the log.
_MAX_ERROR = 500
# Maximum number of ports in one log line.
_MAX_NAMES = 20


def ports_for_go(wanted: Iterable[OpenPort]) -> tuple[ForwardedPort, ...]:
    """The ports that the gateway can forward as the operator wants; a warning names the others."""
    ports = []
    for port in wanted:
        if port.proxy_protocol or port.allow_from != ANYWHERE:
            logger.warning(
                "open_ports: port %d is not forwarded: the gateway is the Go program, which "
                "has no proxy_protocol and no allow_from", port.remote_port,
            )  # fmt: skip
        else:
            ports.append(
                ForwardedPort(port.remote_port, port.local_port, port.local_host, port.protocol)
            )
    return tuple(ports)


def log_answer(
    ports: Sequence[ForwardedPort], session: GoSession, answer: PortForwardResponse
) -> None:
    """Log that the gateway forwards `ports`, or why some are not forwarded."""
    if answer.ok:
        names = [f"{port.remote_port} ({port.protocol})" for port in ports[:_MAX_NAMES]]
        names += ["..."] * (len(ports) > _MAX_NAMES)
        logger.info("open_ports: the gateway forwards %s", ", ".join(names))
    else:
        logger.warning("open_ports: the gateway answered: %r", answer.error[:_MAX_ERROR])
