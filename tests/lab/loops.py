"""Tests that run in a loop of their own."""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Awaitable, Callable
from typing import Any

import anyio


def played(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """A test on uvloop, as the product runs; the bound only guards against hanging."""

    async def bounded() -> None:
        with anyio.fail_after(30):
            await test()

    @functools.wraps(test)
    def run() -> None:
        anyio.run(bounded, backend_options={"use_uvloop": True})

    return run


class _Skipping(selectors.DefaultSelector):
    """Does not wait: the clock jumps to where the wait would have ended."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing is due, and something is awaited"
        self.now += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose seconds take no time."""

    def __init__(self) -> None:
        self._skipping = _Skipping()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.now


def played_virtually(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """A test in a virtual loop, where no exception may be left over."""

    def run() -> None:
        faults: list[dict[str, Any]] = []

        async def watched() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
            await test()

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(watched())
        assert not faults

    run.__name__ = test.__name__
    return run
