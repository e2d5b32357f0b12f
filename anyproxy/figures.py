"""What a gateway and an agent count, for their metrics."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from mtt.layers.base import StreamTransport
from mtt.layers.counting import ByteCounts, CountingLayer
from mtt.observe.metrics import DOWN, UP, Histogram, Values, labels, metric
from mtt.outbound.groups import Group
from mtt.outcome import Outcome
from mtt.users.accounts import MAX_SHOWN

# Seconds: from a target beside the agent to one that is out of reach. An agent has 20 s.
DIAL_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0)

# Why a login of a user was refused.
PASSWORD, BLOCKED = "password", "blocked"
LOGIN_REASONS = (PASSWORD, BLOCKED)

_NO_BYTES = ByteCounts()

# Outcomes that no agent has answered.
_UNANSWERED = (Outcome.NO_AGENT, Outcome.OVERLOADED)


class GatewayFigures:
    """The counters of a gateway.

    Attributes:
        refused_logins: users' logins by reason, see LOGIN_REASONS.
        per_group: whether groups are counted one by one.
    """

    def __init__(self, *, per_group: bool) -> None:
        self.per_group = per_group
        self.refused_logins = dict.fromkeys(LOGIN_REASONS, 0)
        self._outcomes: Counter[Outcome] = Counter()
        self._times = Histogram(DIAL_BOUNDS)
        self._opened: Counter[str] = Counter()  # by the label of the group
        self._failed: Counter[str] = Counter()
        self._bytes: defaultdict[str, ByteCounts] = defaultdict(ByteCounts)
        # Groups with their own lines: the first ones seen. Agents may make new groups without end.
        self._shown: dict[str, str] = {}  # labels by name

    @property
    def requests(self) -> int:
        """Users' requests that have an outcome."""
        return self._outcomes.total()

    @property
    def failures(self) -> int:
        """Those that failed."""
        return self.requests - self._outcomes[Outcome.SUCCEEDED]

    def dialled(self, group: str, outcome: Outcome, seconds: float) -> None:
        """Count a user's request that has ended after this time."""
        self._outcomes[outcome] += 1
        if outcome not in _UNANSWERED:
            self._times.add(seconds)
        if self.per_group:
            counts = self._opened if outcome is Outcome.SUCCEEDED else self._failed
            counts[self._label(group)] += 1

    def counted(self, group: str, stream: StreamTransport) -> StreamTransport:
        """A parked stream of a group, whose bytes are counted if groups are counted one by one."""
        if not self.per_group:
            return stream
        layer = CountingLayer(self._bytes[self._label(group)])
        layer.start(stream)
        return layer

    def lines(self, groups: Iterable[Group], refused_agents: dict[str, int]) -> str:
        """The metrics. `refused_agents`: agents by the reason of their refusal."""
        groups = list(groups)
        agents = {
            labels(state="serving"): sum(len(group.agents) for group in groups),
            labels(state="leaving"): sum(len(group.leaving) for group in groups),
        }
        text = (
            metric("mtt_agents", "gauge", "Sessions of agents; leaving ones get no new streams.",
                   agents)
            + metric("mtt_groups", "gauge", "Groups with agents.", len(groups))
            + outcome_lines("mtt_agent_dials_total", "Requests of users, by outcome.",
                            self._outcomes)
            + self._times.lines("mtt_agent_dial_seconds", "Seconds from the request of a user to "
                                "the answer of the agent.")
            + metric("mtt_agents_refused_total", "counter", "Refused agents, by reason.",
                     by("reason", refused_agents))
            + metric("mtt_logins_refused_total", "counter", "Refused logins of users, by reason.",
                     by("reason", self.refused_logins))
        )  # fmt: skip
        return text + self._group_lines(groups) if self.per_group else text

    def _group_lines(self, groups: list[Group]) -> str:
        agents: Counter[str] = Counter()
        streams: Counter[str] = Counter()
        for group in groups:
            label = self._label(group.name)
            agents[label] += len(group.agents)
            streams[label] += group.open_streams
        # All exist from the first sight of a group, and none goes away.
        metrics: list[tuple[str, str, str, Counter[str]]] = [
            ("agents", "gauge", "Agents of a group.", agents),
            ("streams", "gauge", "Open streams of a group.", streams),
            ("streams_opened_total", "counter", "Opened streams of a group.", self._opened),
            ("dial_failures_total", "counter", "Requests of users of a group that failed.",
             self._failed),
        ]  # fmt: skip
        every = dict.fromkeys([*self._shown.values(), *self._opened, *self._failed, *agents])
        text = "".join(
            metric(f"mtt_group_{name}", kind, about, {label: values[label] for label in every})
            for name, kind, about, values in metrics
        )
        moved: dict[str, float] = {}
        for label in every:
            counts = self._bytes.get(label, _NO_BYTES)
            moved[f"{label},{UP}"] = counts.written
            moved[f"{label},{DOWN}"] = counts.received
        return text + metric(
            "mtt_group_transferred_bytes_total", "counter", "Bytes of a group's streams; up is "
            "towards the agents.", moved,
        )  # fmt: skip

    def _label(self, group: str) -> str:
        label = self._shown.get(group)
        if label is None:
            is_full = len(self._shown) >= MAX_SHOWN
            label = labels(group="" if is_full else group)  # no group has an empty name
            if not is_full:
                self._shown[group] = label
        return label


def agent_lines(sessions: dict[str, int], outcomes: Counter[Outcome], denied: int) -> str:
    """The metrics of an agent; `sessions` are those with each gateway."""
    return (
        metric("mtt_gateway_sessions", "gauge", "Sessions with a gateway.", by("gateway", sessions))
        + outcome_lines("mtt_targets_total", "Streams of gateways, by outcome.", outcomes)
        + metric("mtt_targets_denied_total", "counter", "Targets that the rules denied, those of "
                 "datagrams included.", denied)
    )  # fmt: skip


def outcome_lines(name: str, about: str, outcomes: Counter[Outcome]) -> str:
    """A counter by outcome; all outcomes are there from the start."""
    counts = {outcome.name.lower(): outcomes[outcome] for outcome in Outcome}
    return metric(name, "counter", about, by("outcome", counts))


def by(label: str, values: dict[str, int]) -> Values:
    """Values by one label."""
    return {labels(**{label: name}): value for name, value in values.items()}
