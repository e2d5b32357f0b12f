"""Limits of UDP flows, the same on both ends of a tunnel, and on forwarded ports."""

from __future__ import annotations

# Flows of one client process, and of one client at the server, which has a socket for each. One
# more ends the flow that has been idle longest.
MAX_FLOWS = 1024
# Idle timeout of a flow without an answer, seconds, as in Linux's connection tracking. Otherwise
# each datagram of DNS queries or scans, perhaps from a forged address, could keep a socket open.
UNANSWERED_TIME = 30.0
# Seconds between checks for idle flows.
SWEEP_TIME = 5.0
# Datagrams read in one turn of the event loop, in fairness to other connections.
BATCH = 64
# Flows that begin at the server in one turn, for the same reason. Each takes 0.1 ms, for its socket
# and for the flow that it replaces.
FLOWS_A_TURN = 16
# Bytes for the kernel's receive buffers, which have to hold what arrives while the event loop is
# busy: 400 datagrams of 1200 bytes with the kernel's overhead. The system may permit less
# (net.core.rmem_max on Linux, by default a quarter of this).
RECEIVE_BUFFER = 1024 * 1024


def idle_limit(idle_time: float, *, is_answered: bool) -> float:
    """Seconds without a datagram after which a flow ends."""
    return idle_time if is_answered else min(idle_time, UNANSWERED_TIME)
