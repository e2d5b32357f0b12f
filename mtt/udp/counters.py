"""The metrics of UDP through the tunnel."""

from __future__ import annotations

from mtt.observe.metrics import DOWN, UP, labels, metric


class UdpCounters:
    """Counts the flows of a service and what became of their datagrams."""

    __slots__ = (
        "dropped_full", "dropped_link", "dropped_send", "dropped_size", "flows", "received", "sent",
    )  # fmt: skip

    def __init__(self) -> None:
        self.flows = 0  # opened so far
        self.sent = 0  # datagrams towards the destination
        self.received = 0  # datagrams towards the application
        self.dropped_full = 0  # the stream was slower than the flow
        self.dropped_link = 0  # there was no stream, no socket, or no flow
        self.dropped_send = 0  # the system did not send them
        self.dropped_size = 0  # larger than MAX_DATAGRAM

    def page(self, open_flows: int) -> str:
        """The metrics in the Prometheus text format."""
        dropped = {
            labels(cause="queue_full"): self.dropped_full,
            labels(cause="no_connection"): self.dropped_link,
            labels(cause="not_sent"): self.dropped_send,
            labels(cause="too_large"): self.dropped_size,
        }
        return (
            metric("mtt_udp_flows", "gauge", "Open UDP flows.", open_flows)
            + metric("mtt_udp_flows_opened_total", "counter", "Opened UDP flows.", self.flows)
            + metric("mtt_udp_datagrams_total", "counter", "Datagrams received for forwarding; up "
                     "is towards the destination.", {UP: self.sent, DOWN: self.received})
            + metric("mtt_udp_dropped_total", "counter", "Datagrams dropped, by cause.", dropped)
        )  # fmt: skip
