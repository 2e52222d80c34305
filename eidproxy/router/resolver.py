"""Look-ups of names in threads of our own, since `getaddrinfo` cannot be cancelled."""

import asyncio
import socket
import threading
from collections.abc import Callable

import httpx

from eidproxy.egress import Address

_MAX_ABANDONED_LOOKUPS = 64
"""The most threads that wait for a silent name server. With so many waiting, another would get no answer either."""


class Resolver:
    """A resolver with threads of its own: one look-up at a time, shared by all concurrent calls.

    `getaddrinfo` cannot be cancelled and the default executor has few threads, so a silent name server would stall
    everything that uses the executor, and the exit of the process. A look-up that takes longer than `patience_seconds`
    is abandoned; at most 64 threads run. A cancelled call does not end the look-up, so the next call shares it.
    """

    def __init__(self, lookup: Callable[[str, int], list[str]] | None = None, patience_seconds: float = 5.0) -> None:
        self._patience_seconds = patience_seconds
        self._lookup = lookup or _lookup
        self._current_lookup: asyncio.Future[list[str]] | None = None
        self._began_at = 0.0
        self._running_threads = 0

    async def resolve(self, host: str, port: int) -> list[str]:
        """Return the addresses of a name. Raises httpx.ConnectError, httpx.ConnectTimeout.

        The caller sets the deadline.
        """
        loop = asyncio.get_running_loop()
        if self._current_lookup is not None and loop.time() - self._began_at >= self._patience_seconds:
            self._current_lookup = None  # a new call must not wait for a look-up that took too long
        if self._current_lookup is None:
            if self._running_threads >= _MAX_ABANDONED_LOOKUPS:
                raise httpx.ConnectTimeout("the name server does not answer")
            self._current_lookup = loop.create_future()
            self._began_at = loop.time()
            self._running_threads += 1
            arguments = (loop, self._current_lookup, host, port)
            threading.Thread(target=self._look_up_in_thread, args=arguments, name="resolver", daemon=True).start()
        return await asyncio.shield(self._current_lookup)

    def _look_up_in_thread(
        self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[list[str]], host: str, port: int
    ) -> None:
        addresses: list[str] | None
        try:
            addresses = self._lookup(host, port)
        except (OSError, UnicodeError):
            addresses = None
        try:
            loop.call_soon_threadsafe(self._end_lookup, future, addresses)
        except RuntimeError:
            return  # the loop is closed: no call waits any more

    def _end_lookup(self, future: asyncio.Future[list[str]], addresses: list[str] | None) -> None:
        self._running_threads -= 1
        if self._current_lookup is future:
            self._current_lookup = None
        if addresses is None:
            future.set_exception(httpx.ConnectError("the router's name is not known"))
            future.exception()  # marks it as retrieved: all calls may have been cancelled
        else:
            future.set_result(addresses)


def _lookup(host: str, port: int) -> list[str]:
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(canonical(str(answer[4][0])) for answer in answers))


def canonical(text: str) -> str:
    """Return our spelling of an address that this machine's C library spelled: libraries differ (DESIGN, 34).

    Text that the library cannot read back, or that has a zone, is returned unchanged; no policy permits it.
    """
    if "%" not in text:
        for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
            try:
                packed = socket.inet_pton(family, text)
            except (OSError, ValueError):
                continue
            return str(Address(version, int.from_bytes(packed, "big")))
    return text
