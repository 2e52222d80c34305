"""The connection to the router: resolve, decide on every address, dial the literal, check the peer.

A request is never sent twice, whatever happens to its connection (see `idle` for kept connections).
"""

import asyncio
import ssl
import sys
from collections.abc import Callable
from typing import Any

import httpx

from eidproxy.egress import Decision, EgressBlocked, EgressPolicy, Verdict, parse_literal
from eidproxy.router.exchange import Exchange
from eidproxy.router.hints import Hint, find_hint
from eidproxy.router.idle import IdleConnections
from eidproxy.router.resolver import Resolver, canonical
from eidproxy.router.tls import TlsTransport
from eidproxy.router.transport import Poller, ReadPoller, TcpTransport
from eidproxy.timeouts import patience


class Upstream:
    """The access to the router, and to nothing else. To be built inside a running loop."""

    def __init__(
        self,
        host: str,
        port: int,
        policy: EgressPolicy,
        *,
        api_key: str | None = None,
        tls: ssl.SSLContext | None = None,
        connect_timeout_seconds: float = 5.0,
        write_timeout_seconds: float = 30.0,
        keep_idle_seconds: float = 0.0,
        resolver: Resolver | None = None,
        poller: Callable[[], Poller] | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.policy = policy
        self.own_addresses: frozenset[tuple[str, int]] = frozenset()
        """Addresses on which eidproxy itself listens: a router there would be a loop."""
        self._loop = asyncio.get_running_loop()
        self._read_poller = ReadPoller(self._loop, poller)
        self.shortcuts = self._read_poller.shortcuts
        """The shortcuts of all connections; None where shortcuts are not available."""
        self._tls = tls
        self._connect_timeout_seconds = connect_timeout_seconds
        self._write_timeout_seconds = write_timeout_seconds
        self._literal_decisions = policy.decide_all([host]) if parse_literal(host) is not None else None
        # A name is judged at each request, since its addresses may change, so no connection to it is kept.
        self._idle = IdleConnections(keep_idle_seconds if self._literal_decisions is not None else 0.0)
        self._resolver = resolver or Resolver(patience_seconds=connect_timeout_seconds)
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines = [
            "POST /v1/chat/completions HTTP/1.1",
            f"Host: {authority}",
            "Content-Type: application/json",
            "Accept: text/event-stream",
            "Accept-Encoding: identity",
        ]
        if api_key is not None:
            lines.append(f"Authorization: Bearer {api_key}")
        heads = ("\r\n".join([*lines, f"Connection: {word}", "Content-Length: "]) for word in ("close", "keep-alive"))
        self._closing_head, self._keeping_head = (head.encode() for head in heads)
        self.reachable: bool | None = None
        self.checked_at: float | None = None
        self.attempts = 0
        """Connects, failed attempts to connect, and answers on kept connections."""
        self.hint: Hint | None = None
        """Why the router was not reachable at the last attempt, if that is known."""
        self._check_task: asyncio.Task[None] | None = None

    def request_bytes(self, body: bytes) -> bytes:
        """Return the request for a body: a constant head, the length and the body."""
        head = self._keeping_head if self._idle.seconds else self._closing_head
        return b"%b%d\r\n\r\n%b" % (head, len(body), body)

    async def addresses(self) -> list[str]:
        """Return the addresses that may be dialled. Raises EgressBlocked, httpx.ConnectError, httpx.ConnectTimeout."""
        if self._literal_decisions is not None:
            decisions = self._literal_decisions  # judged once: neither the address nor the policy can change
        else:
            decisions = self.policy.decide_all(await self._resolver.resolve(self.host, self.port))
        if not decisions[0].permitted:
            raise EgressBlocked(decisions[0])
        return [str(decision.address) for decision in decisions]

    def take_kept(self) -> Exchange | None:
        """Return an exchange on a connection kept from an earlier request, or None.

        The address was judged and the peer checked when the connection was made, and neither can change.
        """
        transport = self._idle.take()
        if transport is None:
            return None
        try:
            exchange = Exchange(self._loop, self._write_timeout_seconds)
            exchange.on_unanswered = self._idle.note_unanswered
            transport.set_protocol(exchange)
            exchange.connection_made(transport)
        except BaseException:
            transport.abort()
            raise
        return exchange

    def finish(self, exchange: Exchange) -> None:
        """End an exchange whose answer is whole: keep its connection if it can carry another request, else close it."""
        transport: TcpTransport | None = None
        try:
            if exchange.on_unanswered is not None:
                self._idle.note_answered()
                self._note_reachable(True)
            transport = exchange.release() if self._idle.seconds else None
            if transport is not None:
                self._idle.keep(transport)
                return
        except BaseException:
            (transport or exchange).abort()
            raise
        exchange.abort()

    def close(self) -> None:
        """Close all kept connections."""
        self._idle.close()

    def dial(self) -> Exchange | None:
        """Begin to connect without waiting; None when a look-up must come first.

        The exchange is connected at once when the router is on this machine and speaks no TLS; else `dialling` is set,
        and `connect` waits for it. Raises EgressBlocked, httpx.ConnectError, httpx.ConnectTimeout.
        """
        if self._literal_decisions is None:
            return None
        if not self._literal_decisions[0].permitted:
            raise EgressBlocked(self._literal_decisions[0])
        began_at = self._loop.time()
        try:
            exchange, transport = self._start_dialling(self.host)
            try:
                peer = transport.peer_address() if self._tls is None else None
                if peer is not None:  # it is connected already
                    self._check_peer(self.host, peer, transport.own_address())
                    self._open(exchange, transport)
            except BaseException:
                exchange.abort()  # and drop what makes a cycle of the two
                raise
        except (OSError, httpx.ConnectError) as error:
            raise self._note_connect_failure(error, began_at) from None
        return exchange

    async def connect(self, begun: Exchange | None = None) -> Exchange:
        """Return a connected exchange; `begun` is one that `dial` returned.

        Raises EgressBlocked, httpx.ConnectError, httpx.ConnectTimeout. No connection stays open after an exception.
        """
        began_at = self._loop.time()
        try:
            async with patience(self._connect_timeout_seconds):
                if begun is None:
                    return await self._connect_to_any()
                return await self._connect_to(self.host, begun)
        except (OSError, httpx.ConnectError) as error:
            raise self._note_connect_failure(error, began_at) from None

    def _note_connect_failure(self, error: OSError | httpx.ConnectError, began_at: float) -> httpx.TransportError:
        """Note a failed attempt to connect and return its error in the words of httpx."""
        self._note_reachable(False)
        if isinstance(error, TimeoutError):
            self.hint = None
            return httpx.ConnectTimeout("the router does not answer")
        if isinstance(error, OSError):
            self._note_hint(error, self.host, began_at)
            return httpx.ConnectError("the router refuses connections")
        return error

    async def check(self) -> None:
        """Connect and close. Raises as `connect` does. Concurrent calls share one attempt."""
        if self._check_task is None or self._check_task.done():
            self._check_task = asyncio.create_task(self._connect_and_close())
        await asyncio.shield(self._check_task)

    async def _connect_and_close(self) -> None:
        (await self.connect(self.dial())).abort()

    async def _connect_to_any(self) -> Exchange:
        for address in await self.addresses():
            began_at = self._loop.time()
            try:
                return await self._connect_to(address, self._start_dialling(address)[0])
            except OSError as error:  # refused, unreachable, reset, or TLS that does not check out
                self._note_hint(error, address, began_at)
        raise httpx.ConnectError("the router refuses connections")

    def _start_dialling(self, address: str) -> tuple[Exchange, TcpTransport]:
        exchange = Exchange(self._loop, self._write_timeout_seconds)
        if self._tls is None:
            transport = TcpTransport(self._read_poller, exchange, address, self.port)
        else:
            transport = TlsTransport(
                self._read_poller, exchange, address, self.port, context=self._tls, server_name=self.host
            )
        exchange.dialling = transport
        return exchange, transport

    async def _connect_to(self, address: str, exchange: Exchange) -> Exchange:
        transport = exchange.dialling
        if transport is not None:
            try:
                await transport.wait_connected()
                self._check_peer(address, transport.peer_address(), transport.own_address())
                await transport.handshake()
                self._open(exchange, transport)
            except BaseException:
                exchange.abort()  # and drop what makes a cycle of the two
                raise
        return exchange

    def _open(self, exchange: Exchange, transport: TcpTransport) -> None:
        """Open a connection whose peer was checked."""
        self._note_reachable(True)
        transport.open()
        exchange.dialling = None  # last, so that `abort` finds the transport if opening fails

    def _check_peer(self, address: str, peer: Any, local: Any) -> None:
        """Raise EgressBlocked unless the peer has the judged address and is not eidproxy itself.

        Raises httpx.ConnectError when there is no peer.
        """
        if peer is None or peer == local:
            # The peer is gone; or no process listens and the kernel joined the socket to itself (simultaneous open).
            raise httpx.ConnectError("the router hung up")
        if peer[0] != address and canonical(peer[0]) != address:
            raise EgressBlocked(Decision(Verdict.OUTSIDE))
        if self.own_addresses and self._is_own(address, local):
            raise EgressBlocked(Decision(Verdict.LOOP))

    def _is_own(self, address: str, local: Any) -> bool:
        for host, port in self.own_addresses:
            if port != self.port:
                continue
            if canonical(host) == address:
                return True
            if host in ("0.0.0.0", "::"):  # noqa: S104  # a listener on every address of this machine
                return local is not None and canonical(local[0]) == address
        return False

    def _note_reachable(self, reachable: bool) -> None:
        self.reachable, self.checked_at = reachable, self._loop.time()
        self.attempts += 1
        if reachable:
            self.hint = None

    def _note_hint(self, error: OSError, address: str, began_at: float) -> None:
        self.hint = find_hint(sys.platform, error.errno, self._loop.time() - began_at, address)
