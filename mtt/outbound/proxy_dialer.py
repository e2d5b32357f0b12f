"""Connections to servers through an HTTP or SOCKS5 proxy."""

from __future__ import annotations

import asyncio
import ssl
from functools import cached_property

from mtt.address import Endpoint
from mtt.errors import Cause, NetworkError, PeerError, RefusedError, again
from mtt.layers.base import StreamProtocol, StreamTransport
from mtt.layers.connect import ConnectClient, ProxyClient, SocksConnect
from mtt.layers.parked import hand_over
from mtt.net.dial import Dialer, ProtocolFactory
from mtt.options.proxy import HTTPS, SOCKS5, ProxyServer
from mtt.outcome import Outcome
from mtt.trust.tls_options import ClientTls
from mtt.wire import alpn
from mtt.wire.http1 import Response
from mtt.wire.httpproxy import connect_request, sendable_host
from mtt.wire.socks_client import LoginRefused, RequestRefused, SocksClient

# Seconds for the proxy's answer, all hosts of an endpoint together: less than a client has for the
# whole connection, so that the error names the proxy.
ANSWER_TIME = 8.0


class ProxyDialer:
    """Connects to endpoints as `Dialer` does, but through `proxy`.

    The proxy looks up the names of the endpoint, whose hosts are tried in order. `dialer` connects
    to the proxy.
    """

    def __init__(self, dialer: Dialer, proxy: ProxyServer) -> None:
        self._dialer = dialer
        self._proxy = proxy

    async def connect(
        self, endpoint: Endpoint, protocol_factory: ProtocolFactory
    ) -> StreamTransport:
        """Connect to the first host of the endpoint that the proxy reaches.

        Creates the protocol once the proxy has connected. Raises NetworkError or PeerError, naming
        the endpoint and the proxy.
        """
        failures: list[_HostFailed | _HostRefused] = []
        share = ANSWER_TIME / len(endpoint.hosts)
        for host in endpoint.hosts:
            try:
                return await self._connect(host, endpoint.port, share, protocol_factory)
            except (_HostFailed, _HostRefused) as error:
                failures.append(again(error))
        why = "; ".join(dict.fromkeys(map(str, failures)))
        text = f"cannot connect to {endpoint} through the proxy {self._proxy}: {why}"
        last = failures[-1]
        if isinstance(last, NetworkError):
            raise NetworkError(text, cause=last.cause, outcome=last.outcome)
        raise PeerError(text, cause=last.cause)

    def forget(self, endpoint: Endpoint) -> None:
        """Look the proxy's name up again next time. No name of `endpoint` was looked up here."""
        self._dialer.forget(self._proxy.address)

    async def _connect(
        self, host: str, port: int, seconds: float, protocol_factory: ProtocolFactory
    ) -> StreamTransport:
        proxy = self._proxy
        client = self._client(host, port)
        try:
            socket = await self._dialer.connect(proxy.address, lambda: self._secured(client))
        except NetworkError as error:
            raise NetworkError(f"the proxy: {error}", outcome=error.outcome) from None
        try:
            await self._check_answer(client, seconds)
            protocol = protocol_factory()
        except BaseException:
            socket.abort()
            raise
        transport = client.transport
        assert transport is not None
        hand_over(transport, protocol)
        return transport

    def _client(self, host: str, port: int) -> ProxyClient:
        login = self._proxy.login
        if self._proxy.scheme != SOCKS5:
            return ConnectClient(connect_request(host, port, login))
        raw = None
        if login is not None:
            user, password = (part.encode("utf-8", "surrogateescape") for part in login)
            raw = (user, password)
        return SocksConnect(SocksClient(sendable_host(host), port, raw))

    def _secured(self, client: ProxyClient) -> StreamProtocol:
        """`client`, over TLS for an https proxy."""
        if self._proxy.scheme != HTTPS:
            return client
        from mtt.layers.tls import TlsLayer

        name = self._proxy.address.host
        # `_check_answer` limits the time.
        return TlsLayer(
            client, self._context, server_side=False, server_name=name, handshake_time=None
        )

    @cached_property
    def _context(self) -> ssl.SSLContext:
        from mtt.trust.certificates import client_context, finish_client_context

        tls = ClientTls(server_name=self._proxy.address.host, alpn=alpn.WEBSOCKET)
        context = client_context(tls)
        finish_client_context(context, pins=())
        return context

    async def _check_answer(self, client: ProxyClient, seconds: float) -> None:
        """Wait until the proxy has connected. Raises an error if it does not."""
        try:
            async with asyncio.timeout(seconds):
                await client.wait()
        except TimeoutError:
            text = f"no answer within {seconds:g} s"
            raise _HostFailed(text, cause=Cause.TIMEOUT, outcome=Outcome.TIMED_OUT) from None
        except LoginRefused:
            raise RefusedError(self._login_error(""), cause=Cause.HTTP) from None
        except RequestRefused as error:
            raise _HostRefused(str(error), cause=error.cause) from None
        except NetworkError as error:
            raise _HostFailed(str(error), cause=error.cause) from None
        except PeerError as error:
            raise _HostRefused(str(error), cause=error.cause) from None
        if isinstance(client, ConnectClient):
            self._check_response(await client.answer())
        if client.transport is None:
            raise _HostFailed("it closed the connection after its answer", cause=Cause.EOF)
        # Every protocol of a tunnel begins with the client (RFC 8446, 2; RFC 6455, 4.1).
        if client.early:
            raise _HostRefused("it sent data behind its answer", cause=Cause.HTTP)

    def _check_response(self, response: Response) -> None:
        if response.status == 407:
            raise RefusedError(self._login_error(" (407)"), cause=Cause.HTTP)
        if not 200 <= response.status < 300:
            raise _HostRefused(response.answer, cause=Cause.HTTP)

    def _login_error(self, code: str) -> str:
        proxy = self._proxy
        if proxy.login is None:
            return (
                f"the proxy {proxy} wants a user and a password{code}; give them in {proxy.option}"
            )
        return (
            f"the proxy {proxy} does not accept the user and the password of {proxy.option}{code}"
        )


class _HostFailed(NetworkError):
    """The proxy did not answer; another host of the endpoint may be reachable."""


class _HostRefused(PeerError):
    """The proxy refused the connection; it may allow another host of the endpoint."""
