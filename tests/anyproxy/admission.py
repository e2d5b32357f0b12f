"""Credentials of a gateway, and agents that ask for admission."""

from __future__ import annotations

from pathlib import Path

import pytest

from anyproxy.credentials import Credentials
from anyproxy.options import DATABASE, FILE, MEMORY, CredentialOptions, GroupOptions
from mtt.outbound.groups import Agent, Groups
from tests.outbound.test_groups import FakeSession

HOME, PASSWORD, WRONG = "home", "pässword".encode(), b"wrong"
NAT = "192.0.2.1"

in_every_store = pytest.mark.parametrize("kind", [MEMORY, FILE, DATABASE])
in_both_stores = pytest.mark.parametrize("kind", [FILE, DATABASE])


class Scene:
    """Credentials, and the groups of the agents that they admit."""

    def __init__(self, kind: str, folder: Path, *, open_groups: bool = False) -> None:
        self.path = folder / "credentials"
        self.options = CredentialOptions(
            kind=kind, path=str(self.path), allow_without_password=open_groups
        )
        self.group_options: dict[str, GroupOptions] = {}
        self.restart()

    def restart(self) -> None:
        self.groups = Groups()
        self.agents: dict[tuple[str, str], Agent] = {}
        self.credentials = Credentials(
            self.options,
            lambda name: self.group_options.get(name, GroupOptions()),
            self.groups,
        )

    async def __aenter__(self) -> Scene:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.credentials.close()

    async def asks(
        self, password: bytes = PASSWORD, group: str = HOME, agent: str = "a", address: str = NAT
    ) -> str:
        """An agent asks, and goes away."""
        return await self.credentials.admit_agent(group, agent, password, address)

    async def joins(
        self, password: bytes = PASSWORD, group: str = HOME, agent: str = "a", address: str = NAT
    ) -> None:
        assert await self.asks(password, group, agent, address) == ""
        self.agents[group, agent] = Agent(agent, address, FakeSession(), 0.0)
        self.groups.join(group, self.agents[group, agent])

    def leaves(self, group: str = HOME, agent: str = "a") -> None:
        self.groups.leave(group, self.agents.pop((group, agent)))

    def user(
        self, password: bytes = PASSWORD, group: str = HOME, address: str = NAT
    ) -> bool | None:
        return self.credentials.check_user(group, password, address)
