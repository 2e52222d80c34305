"""The client of a shared gate's store: egress checks, one connection, the Lua library, a time limit for each call.

The client sends calls in the order in which they were made, and those made together in one write. Each call carries the
run id of the server it reaches, so the library notices a server that has restarted. Every call may be repeated without
harm, so the client sends a call once more if a connection that it used before breaks.
"""

import asyncio
import contextlib
import hashlib
import socket
import struct
from collections import deque
from collections.abc import Callable
from importlib.resources import files
from ssl import SSLContext
from typing import Any, NamedTuple

from redis.asyncio.connection import Connection
from redis.exceptions import ConnectionError as StoreUnreachable
from redis.exceptions import ResponseError

from eidproxy.egress import Decision, EgressBlocked, EgressPolicy, Verdict, parse_literal
from eidproxy.gate.address import GateAddress
from eidproxy.keepalive import enable_keepalive
from eidproxy.router.resolver import Resolver, canonical

_KEYS = tuple(
    f"eidproxy:{{gate}}:{name}" for name in ("state", "holders", "leases", "foreground", "background", "tickets")
)

_MAX_BATCH = 64
"""Maximum number of calls in one write: they share one time limit."""


class Reply(NamedTuple):
    """The library's answer, and the loop's time right before the call was sent: the answer is not older."""

    sent_at: float
    values: list[Any]


class Call:
    """One call of a library function; `sent` is set when it is written."""

    __slots__ = ("arguments", "function", "reply", "sent")

    def __init__(self, function: str, arguments: tuple[str | int, ...], reply: "asyncio.Future[Reply]") -> None:
        self.function = function
        self.arguments = arguments
        self.reply = reply
        self.sent = False


class GuardedConnection(Connection):
    """A redis-py connection that resolves the name, decides on every address, dials the literal and checks the peer."""

    run_id = ""

    def __init__(self, address: GateAddress, policy: EgressPolicy, resolver: Resolver, tls: SSLContext | None) -> None:
        super().__init__(
            host="gate",  # a placeholder: error texts contain it, and must not contain the real one
            db=address.database,
            username=address.username,
            password=address.password,
            socket_timeout=None,  # the users of a connection limit its waits themselves
            socket_connect_timeout=None,
            protocol=2,
        )
        self._address = address
        self._policy = policy
        self._resolver = resolver
        self._tls = tls

    async def addresses(self) -> list[str]:
        """Return the addresses that may be dialled now. Raises EgressBlocked, httpx.ConnectError."""
        host, port = self._address.host, self._address.port
        found = [host] if parse_literal(host) is not None else await self._resolver.resolve(host, port)
        decisions = self._policy.decide_all(found)
        if not decisions[0].permitted:
            raise EgressBlocked(decisions[0])
        return [str(decision.address) for decision in decisions]

    async def connect(self) -> None:
        """Connect, log in and read the server's run id. Every error is raised unchanged."""
        await self._connect()
        try:
            await self.on_connect()
            await self._read_run_id()
        except BaseException:
            await self.disconnect(nowait=True)
            raise

    async def _connect(self) -> None:
        if self._address.path is not None:
            self._reader, self._writer = await asyncio.open_unix_connection(self._address.path)
            return
        for address in await self.addresses():
            try:
                reader, writer = await asyncio.open_connection(
                    address,
                    self._address.port,
                    ssl=self._tls,
                    server_hostname=self._address.host if self._tls is not None else None,
                )
            except OSError:
                continue
            peer = writer.get_extra_info("peername")
            if peer is None or peer == writer.get_extra_info("sockname"):
                writer.close()  # closed already, or the kernel connected the socket to itself
                continue
            if canonical(peer[0]) != address:
                writer.close()
                raise EgressBlocked(Decision(Verdict.OUTSIDE))
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A subscription may be silent for hours.
            enable_keepalive(sock, idle=5, interval=2, count=3)
            # Closing then discards unsent bytes: a call that was given up must not take a slot later.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._reader, self._writer = reader, writer
            return
        raise ConnectionRefusedError

    async def _read_run_id(self) -> None:
        await self.send_command("INFO", "server")
        text = await self.read_response()
        for line in text.decode().splitlines():
            name, _, value = line.partition(":")
            if name == "run_id":
                self.run_id = value
                return
        raise StoreUnreachable("the server has no run id")


def _read_library() -> tuple[str, str]:
    """Return the library's text and its name, which carries a digest of the text.

    So replicas of two versions can share a server while one replaces the other.
    """
    text = files("eidproxy.gate").joinpath("gate.lua").read_text("utf-8")
    name = f"eidproxy_gate_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return text.replace("eidproxy_gate", name), name


class StoreClient:
    """The client through which a gate calls its store."""

    def __init__(
        self,
        address: GateAddress,
        policy: EgressPolicy,
        settings: tuple[int, ...],
        *,
        call_seconds: float,
        on_call_end: Callable[[str, Exception | None], None],
        tls: SSLContext | None = None,
        resolver: Resolver | None = None,
    ) -> None:
        """`settings` are sent with every call; `on_call_end` is called when one ends: function, error or None."""
        self._address = address
        self._policy = policy
        self._settings = settings
        self._call_seconds = call_seconds
        self._on_call_end = on_call_end
        self._tls = tls
        self._resolver = resolver or Resolver()
        self._library_text, self._library_name = _read_library()
        self._loop = asyncio.get_running_loop()
        self._calls: deque[Call] = deque()
        self._has_calls = asyncio.Event()
        self._connection: GuardedConnection | None = None
        self._send_task = self._loop.create_task(self._send_calls())

    def call(self, function: str, *arguments: str | int) -> Call:
        """Queue a call of a library function. It is not sent if its reply is cancelled before."""
        call = Call(function, arguments, self._loop.create_future())
        self._calls.append(call)
        self._has_calls.set()
        return call

    def connection(self) -> GuardedConnection:
        """Return a connection that is not yet open."""
        return GuardedConnection(self._address, self._policy, self._resolver, self._tls)

    async def aclose(self) -> None:
        """Cancel all calls and close the connection."""
        self._send_task.cancel()
        await asyncio.wait([self._send_task])
        for call in self._calls:
            call.reply.cancel()
        await self._close_connection()

    async def _send_calls(self) -> None:
        while True:
            await self._has_calls.wait()
            self._has_calls.clear()
            while self._calls:
                batch = [self._calls.popleft() for _ in range(min(len(self._calls), _MAX_BATCH))]
                try:
                    await self._send_batch([call for call in batch if not call.reply.done()])
                except BaseException:
                    for call in batch:
                        call.reply.cancel()
                    raise

    async def _send_batch(self, batch: list[Call]) -> None:
        """Answer each call of a batch; send it a second time if a connection that was reused breaks."""
        if not batch:
            return
        try:
            async with asyncio.timeout(self._call_seconds):
                reused = self._connection is not None
                try:
                    await self._complete_batch(batch)
                except (OSError, EOFError, StoreUnreachable):
                    if not reused:
                        raise
                    await self._close_connection()
                    await self._complete_batch([call for call in batch if not call.reply.done()])
        except Exception as error:  # noqa: BLE001  # any error means that the gate is unavailable
            await self._close_connection()
            for call in batch:
                self._end_call(call, error)

    async def _complete_batch(self, batch: list[Call]) -> None:
        """Send these calls and read their replies. Raises what breaks the connection."""
        connection = self._connection
        if connection is None:
            connection = self._connection = self.connection()
            await connection.connect()
            # A caller that left during the connect has sent no release, so its call must not take a slot now.
            batch = [call for call in batch if not call.reply.done()]
            if not batch:
                return
        sent_at = self._loop.time()
        results = await self._round_trip(connection, batch)
        if any(_is_unknown_function(result) for result in results):
            # The server does not have the library, or lost it. No call of the batch ran, since all are calls of it.
            await self._load_library(connection)
            sent_at = self._loop.time()
            results = await self._round_trip(connection, batch)
        is_broken = False
        for call, result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                is_broken = True
                self._end_call(call, result)
            else:
                self._end_call(call, None, Reply(sent_at, result))
        if is_broken:
            # Read-only, no permission, loading: the next connection may reach another server.
            await self._close_connection()

    async def _round_trip(self, connection: GuardedConnection, batch: list[Call]) -> list[Any]:
        commands = []
        for call in batch:
            call.sent = True
            commands.append(
                (
                    "FCALL",
                    f"{self._library_name}_{call.function}",
                    len(_KEYS),
                    *_KEYS,
                    connection.run_id,
                    *self._settings,
                    *call.arguments,
                )
            )
        await connection.send_packed_command(connection.pack_commands(commands))
        results: list[Any] = []
        for _ in batch:
            try:
                results.append(await connection.read_response())
            except ResponseError as error:
                results.append(error)
        return results

    async def _load_library(self, connection: GuardedConnection) -> None:
        await connection.send_command("FUNCTION", "LOAD", self._library_text)
        try:
            await connection.read_response()
        except ResponseError as error:
            if "already exists" not in str(error):  # if it exists, another replica was faster
                raise

    def _end_call(self, call: Call, error: Exception | None, reply: Reply | None = None) -> None:
        self._on_call_end(call.function, error)
        if call.reply.done():
            return
        if reply is not None:
            call.reply.set_result(reply)
        else:
            call.reply.set_exception(error or StoreUnreachable())
            call.reply.exception()  # marks it as retrieved: the caller may have left

    async def _close_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                await connection.disconnect(nowait=True)


def _is_unknown_function(result: object) -> bool:
    return isinstance(result, ResponseError) and "Function not found" in str(result)


async def addresses(address: GateAddress) -> list[str]:
    """Return what a gate at this address would dial. For `check`. Raises EgressBlocked, httpx.ConnectError."""
    return await GuardedConnection(address, address.egress, Resolver(), None).addresses()
