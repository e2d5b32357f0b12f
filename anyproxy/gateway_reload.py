"""Applies a new configuration to a running gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from anyproxy.gateway import Gateway, Proxy
from anyproxy.options import GatewayOptions, ProxyOptions
from mtt.address import Endpoint
from mtt.log import logger
from mtt.net.listen import Listener, bind
from mtt.net.relisten import Occupant, listen_instead
from mtt.process.configuration import Changes
from mtt.trust.reload import TlsFiles, server_tls

# Owner of the certificate that agents see; the others are the names of proxies.
_AGENTS = ""


async def apply(gateway: Gateway, options: GatewayOptions) -> Changes:
    """Put new options into effect; open connections continue.

    Agents with an outdated login or password get no new streams. Raises MttError before anything
    has changed.
    """
    before, changes = gateway.options, Changes()
    changes.refuse("gateway.listen_addr", before.bind, options.bind)
    if changes.refuse("gateway.tls_cert", before.tls is None, options.tls is None):
        options = replace(options, tls=before.tls)
    changes.refuse("gateway.credential", before.credentials, options.credentials)
    changes.refuse("gateway.udp_timeout", before.udp_timeout, options.udp_timeout)
    if before.web is None or not before.web.differs_in_login(options.web):
        changes.refuse("gateway.web", before.web, options.web)
        options = replace(options, web=before.web)
    options = replace(
        options,
        bind=before.bind,
        credentials=before.credentials,
        udp_timeout=before.udp_timeout,
    )
    certificates = await asyncio.to_thread(_changed_certificates, before, options)
    listeners = await _listen(gateway, options.proxies)
    if gateway.is_over:
        _close(listeners)
        return Changes()

    if changes.add("certificate", before.tls, options.tls):
        gateway.use_certificate(certificates[_AGENTS])
    _replace_proxies(gateway, options.proxies, listeners, certificates, changes)
    gateway.use_options(options)
    has_new_web = changes.add("login of web", before.web, options.web)
    if has_new_web and gateway.web is not None and options.web is not None:
        gateway.web.use_login(options.web.login)
    changes.add("login of agents", before.login, options.login)
    before_groups, groups = (
        (each.default_group, dict(each.groups)) for each in (before, options)
    )  # fmt: skip
    if changes.add("groups", before_groups, groups):
        gateway.ports.recheck()
    _retire_agents(gateway)
    changes.add("trusted proxies", before.trusted_proxies, options.trusted_proxies)
    changes.add("metrics per group", before.metrics_per_group, options.metrics_per_group)
    await _follow_certificates(gateway)
    return changes


# Certificates.


def _changed_certificates(before: GatewayOptions, options: GatewayOptions) -> dict[str, TlsFiles]:
    """Load the certificates that other options name than before. Raises UsageError."""
    old, new = (
        {_AGENTS: each.tls} | {name: proxy.tls for name, proxy in each.proxies.items()}
        for each in (before, options)
    )
    return {
        owner: server_tls(tls)
        for owner, tls in new.items()
        if tls is not None and tls != old.get(owner)
    }


async def _follow_certificates(gateway: Gateway) -> None:
    """Watch the files that are in use, and no others."""
    before, now = gateway.certificates, gateway.used_certificates()
    gateway.certificates = now
    for files in now:
        if files not in before:
            files.follow()
    for files in before:
        if files not in now:
            await files.close()


# Proxies.


async def _listen(gateway: Gateway, wanted: Mapping[str, ProxyOptions]) -> dict[str, Listener]:
    """Listen for the proxies with new addresses. Raises StartError; then the old ones listen."""
    current = {proxy.name: proxy for proxy in gateway.proxies}
    new = {
        name: options.bind
        for name, options in wanted.items()
        if name not in current or current[name].options.bind != options.bind
    }
    leaving = [
        Occupant(f"the {name} proxy", proxy.cleanup, partial(proxy.listen, gateway.resolver))
        for name, proxy in current.items()
        if name in new or name not in wanted
    ]
    return await listen_instead(partial(_bind, gateway, new), leaving)


async def _bind(gateway: Gateway, addresses: Mapping[str, Endpoint]) -> dict[str, Listener]:
    listeners: dict[str, Listener] = {}
    try:
        for name, address in addresses.items():
            listeners[name] = await bind(address, "", resolver=gateway.resolver)
    except BaseException:
        _close(listeners)
        raise
    return listeners


def _close(listeners: Mapping[str, Listener]) -> None:
    for listener in listeners.values():
        listener.close()


def _replace_proxies(
    gateway: Gateway,
    wanted: Mapping[str, ProxyOptions],
    listeners: Mapping[str, Listener],
    certificates: Mapping[str, TlsFiles],
    changes: Changes,
) -> None:
    current = {proxy.name: proxy for proxy in gateway.proxies}
    added = moved = changed = 0
    proxies = []
    for name, options in wanted.items():
        proxy = current.pop(name, None)
        if proxy is None:
            proxy = Proxy(name, options, gateway, certificates.get(name))
            added += 1
        else:
            moved += name in listeners
            changed += replace(options, bind=proxy.options.bind) != proxy.options
            tls = None if options.tls is None else certificates.get(name, proxy.tls)
            proxy.use_options(options, tls)
        if name in listeners:
            proxy.serve(listeners[name])
            logger.info("%s proxy on %s", name, ", ".join(proxy.addresses))
        proxies.append(proxy)
    for proxy in current.values():
        proxy.cleanup()
        proxy.port.drain()
    gateway.proxies = proxies
    former = [each for each in gateway.former_proxies if each.port.pending]
    gateway.former_proxies = [*former, *current.values()]
    changes.count(added, "proxy", "proxies", "added")
    changes.count(len(current), "proxy", "proxies", "removed")
    changes.count(moved, "proxy", "proxies", "moved")
    changes.count(changed, "proxy", "proxies", "changed")


# Agents.


def _retire_agents(gateway: Gateway) -> None:
    """Open no new streams to agents that joined with an outdated login or password."""
    for group in list(gateway.groups):
        password = gateway.group_options(group.name).password
        for agent in list(group.agents.values()):
            if not gateway.agents.is_current(agent, password):
                gateway.ports.release(agent)
                gateway.groups.retire(group.name, agent)
