"""Tests that run in a loop of their own."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable

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
