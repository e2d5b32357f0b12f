"""A new configuration of a running agent."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from anyproxy.agent import Agent
from anyproxy.options import AgentOptions
from mtt.log import logger
from mtt.process.configuration import Changes


async def apply(agent: Agent, options: AgentOptions) -> Changes:
    """Put new options into effect; open connections continue.

    Sessions that the new options do not have end with their last stream; those that they change,
    after their successor has begun. Raises MttError before anything has changed.
    """
    before, changes = agent.options, Changes()
    if before.web is None or not before.web.differs_in_login(options.web):
        changes.refuse("client.web", before.web, options.web)
        options = replace(options, web=before.web)
    old, new = before.gateways, options.gateways
    added = [gateway for gateway in new if gateway not in old]
    has_new_way = changes.add(
        "TLS and proxy of gateways",
        (before.tls, before.proxy),
        (options.tls, options.proxy),
    )
    made = await asyncio.to_thread(
        agent.make_connectors, options, new if has_new_way else added
    )

    if changes.add("rules", (before.rules, before.protocols), (options.rules, options.protocols)):
        for line in options.rules.warnings:
            logger.warning("%s", line)
    changes.add("UDP timeout", before.udp_timeout, options.udp_timeout)
    changes.count(len(added), "gateway", "gateways", "added")
    changes.count(len(set(old) - set(new)), "gateway", "gateways", "removed")
    changes.add("replicas", before.replicas, options.replicas)
    has_new_names = changes.add("names", (before.id, before.group), (options.id, options.group))
    has_new_passwords = changes.add(
        "passwords", (before.password, before.login), (options.password, options.login)
    )
    has_new_ports = changes.add("open ports", before.open_ports, options.open_ports)

    has_new_web = changes.add("login of web", before.web, options.web)
    if has_new_web and agent.web is not None and options.web is not None:
        agent.web.use_login(options.web.login)
    agent.use_options(options)
    if has_new_ports:
        agent.announce_ports()
    former = agent.connectors
    agent.use_connectors({gateway: made.get(gateway) or former[gateway] for gateway in new})
    for connector in made.values():
        connector.start()
    await agent.names.look_up()
    await agent.relink(renew=has_new_way or has_new_names or has_new_passwords)
    for gateway, connector in former.items():
        if agent.connectors.get(gateway) is not connector:
            for files in connector.files:
                await files.close()
    return changes
