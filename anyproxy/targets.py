"""The agent's side of streams: checks the rules, connects to targets, answers, relays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from anyproxy.options import TCP, UDP
from mtt.address import host_port
from mtt.errors import DestinationError, NetworkError, describe
from mtt.layers.base import StreamProtocol, StreamTransport
from mtt.layers.stream_head import StreamHead
from mtt.log import Throttle, logger
from mtt.net.resolve import Resolver
from mtt.net.sockets import source_address
from mtt.outbound.direct import DirectDialer
from mtt.outcome import Outcome
from mtt.proxy.host_rules import HostRules
from mtt.proxy.uot_relay import DatagramRelay, UotRelay
from mtt.tunnels.open_tunnels import OpenTunnels
from mtt.wire import agent
from mtt.wire.agent import Answer, Head, parse_head

# Seconds from the beginning of a stream until its head is complete; the gateway sends both at once.
HEAD_TIME = 10.0
# Seconds to connect to a target. With the name lookup (5 s) it is less than the gateway waits.
CONNECT_TIME = 10.0
# Log lines about denied targets per interval of the throttle: enough for one web page, but not for
# a scan of the network.
DENIALS_SHOWN = 5

# Tells the gateway how an attempt ended, with the address that was reached.
Tell = Callable[[Outcome, tuple[str, int] | None], object]

_NETWORKS = {TCP: agent.TCP, UDP: agent.UDP}


class Targets:
    """Connects streams to their targets.

    Args:
        rules: decide which targets are allowed.
        protocols: allowed ones, of `anyproxy.options.PROTOCOLS`.
        tunnels: owns the relays.
        udp_timeout: idle timeout of UDP streams, seconds.

    Attributes:
        rules, protocols, udp_timeout: replaced when the configuration changes.
        is_draining: whether new streams are declined.
        outcomes: number of attempts by outcome.
        denied: number of targets that the rules denied, those of datagrams included.
    """

    def __init__(
        self,
        rules: HostRules,
        protocols: frozenset[str],
        resolver: Resolver,
        tunnels: OpenTunnels,
        *,
        udp_timeout: float,
    ) -> None:
        self.rules = rules
        self.protocols = protocols
        self.is_draining = False
        self.outcomes: Counter[Outcome] = Counter()
        self.denied = 0
        self._resolver = resolver
        self._tunnels = tunnels
        self.udp_timeout = udp_timeout
        self._dialer = DirectDialer(resolver, self._allows, connect_time=CONNECT_TIME)
        self._denials = Throttle(DENIALS_SHOWN)

    def accept(self) -> StreamProtocol:
        """The protocol of a stream that the gateway opens."""
        return StreamHead(
            parse_head, self._head_received, _log_failure, what="head", seconds=HEAD_TIME
        )

    def _head_received(self, stream: StreamTransport, head: Head) -> None:
        def tell(outcome: Outcome, reached: tuple[str, int] | None = None) -> None:
            if not stream.is_closing():
                stream.write(Answer(outcome, reached).encode())

        self.serve(stream, head, tell)

    def serve(
        self, stream: StreamTransport, head: Head, tell: Tell, *, is_go: bool = False
    ) -> None:
        """Serve a parked stream whose head is known.

        Args:
            tell: sends the answer.
            is_go: the stream is the Go program's: it carries UDP as datagrams of one target.
        """
        outcome = Outcome.SUCCEEDED
        if self.is_draining:
            outcome = Outcome.NO_AGENT
        elif not self._tunnels.admission.has_room():
            outcome = Outcome.OVERLOADED
        elif head.network not in map(_NETWORKS.__getitem__, self.protocols):
            outcome = Outcome.NOT_ALLOWED
        if outcome is not Outcome.SUCCEEDED:
            self._decline(stream, outcome, tell)
        elif head.network == agent.UDP and is_go:
            self._tunnels.spawn(stream, self._carry_datagrams(stream, head, tell))
        elif head.network == agent.UDP:
            self._serve_datagrams(stream, tell)
        elif (far := self._dialer.connect_at_once(head.host, head.port)) is not None:
            self._relay(stream, far, tell)
        else:
            self._tunnels.spawn(stream, self._carry(stream, head, tell))

    def _relay(self, stream: StreamTransport, far: StreamTransport, tell: Tell) -> None:
        self.outcomes[Outcome.SUCCEEDED] += 1
        peer = far.get_extra_info("peername")
        tell(Outcome.SUCCEEDED, (peer[0], peer[1]) if isinstance(peer, tuple) else None)
        self._tunnels.relay(stream, far)

    def _decline(self, stream: StreamTransport, outcome: Outcome, tell: Tell) -> None:
        self.outcomes[outcome] += 1
        tell(outcome, None)
        stream.close()

    async def _carry(self, stream: StreamTransport, head: Head, tell: Tell) -> None:
        try:
            far = await self._dialer.connect(head.host, head.port)
        except DestinationError as error:
            self._failed(stream, head, error, tell)
        else:
            self._relay(stream, far, tell)

    def _failed(
        self, stream: StreamTransport, head: Head, error: DestinationError, tell: Tell
    ) -> None:
        if error.outcome is Outcome.NOT_ALLOWED:
            self._log_denied(head.host, head.port)
        logger.debug("%s", error)
        self._decline(stream, error.outcome, tell)

    async def _carry_datagrams(self, stream: StreamTransport, head: Head, tell: Tell) -> None:
        try:
            addresses = await self._dialer.resolve(head.host, head.port)
        except DestinationError as error:
            self._failed(stream, head, error, tell)
            return
        address = next(filter(_has_route, addresses), addresses[0])

        def make(done: Callable[[UotRelay], None]) -> UotRelay:
            return DatagramRelay(
                stream,
                (address, head.port),
                acknowledge=lambda outcome: tell(outcome, None),
                resolver=self._resolver,
                # The rules allow it under its name, perhaps under that alone.
                allows=lambda host, literal, port: True,
                denied=self._log_denied,
                idle_time=self.udp_timeout,
                done=done,
            )

        relay = self._tunnels.track(stream, make)
        self.outcomes[Outcome.SUCCEEDED] += 1
        relay.start()

    def _serve_datagrams(self, stream: StreamTransport, tell: Tell) -> None:
        try:
            relay = self._tunnels.track(
                stream,
                lambda done: UotRelay(
                    stream,
                    1,  # datagrams with addresses from the beginning
                    acknowledge=lambda outcome: tell(outcome, None),
                    resolver=self._resolver,
                    allows=self._allows,
                    denied=self._log_denied,
                    idle_time=self.udp_timeout,
                    answer_time=0.0,
                    done=done,
                ),
            )
        except NetworkError as error:
            self._tunnels.failed(stream, error)
            self._decline(stream, Outcome.GENERAL_FAILURE, tell)
            return
        self.outcomes[Outcome.SUCCEEDED] += 1
        relay.start()

    def _allows(self, host: str, address: str, port: int) -> bool:
        return self.rules.allows(host, address, port)

    def _log_denied(self, host: str, port: int) -> None:
        self.denied += 1
        self._denials.info(
            "target denied (allowed_hosts, forbidden_hosts): %s", host_port(host, port)
        )


def _has_route(address: str) -> bool:
    peer = (address, 9, 0, 0) if ":" in address else (address, 9)
    return source_address(peer) is not None


def _log_failure(stream: StreamTransport, error: Exception) -> None:
    logger.debug("a stream of the gateway was closed: %s", describe(error))
