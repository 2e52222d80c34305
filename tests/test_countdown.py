"""countdown: who is called when, and who is not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from eidproxy.countdown import Countdown

SECONDS = 0.02


def played(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Run a test in a loop of its own, for no longer than five seconds."""

    def run() -> None:
        async def bounded() -> None:
            async with asyncio.timeout(5):
                await test()

        uvloop.run(bounded())

    return run


class Ended:
    """Who was called, in order."""

    def __init__(self, wanted: int) -> None:
        self.items: list[str] = []
        self.all = asyncio.Event()
        self._wanted = wanted

    def __call__(self, item: str) -> None:
        self.items.append(item)
        if len(self.items) == self._wanted:
            self.all.set()


@played
async def test_each_ends_in_time_and_in_order() -> None:
    loop = asyncio.get_running_loop()
    ended = Ended(3)
    countdown = Countdown(SECONDS, ended)
    began = loop.time()
    for item in "abc":
        countdown.start(item)
    assert countdown.first() == "a"
    await ended.all.wait()
    assert ended.items == ["a", "b", "c"]
    assert loop.time() - began >= SECONDS - 0.002  # the loop counts in milliseconds
    assert countdown.first() is None


@played
async def test_who_is_stopped_is_not_called_and_holds_nobody_up() -> None:
    ended = Ended(1)
    countdown = Countdown(SECONDS, ended)
    countdown.start("stopped")
    countdown.start("goes on")
    countdown.stop("stopped")
    countdown.stop("never began")
    await ended.all.wait()
    assert ended.items == ["goes on"]


@played
async def test_begun_anew_it_ends_anew() -> None:
    """A timer that is due for nobody looks who is next, and one that starts when it is called is called again."""
    ended = Ended(2)

    def again(item: str) -> None:
        ended(item)
        if not ended.all.is_set():
            countdown.start(item)

    countdown = Countdown(SECONDS, again)
    countdown.start("a")
    countdown.stop("a")
    countdown.start("a")
    await ended.all.wait()
    assert ended.items == ["a", "a"]


@played
async def test_one_that_fails_does_not_stop_the_clock_of_the_others() -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    ended = Ended(1)

    def expired(item: str) -> None:
        if item == "fails":
            raise ValueError
        ended(item)

    countdown = Countdown(SECONDS, expired)
    countdown.start("fails")
    countdown.start("goes on")
    await ended.all.wait()
    assert [type(context["exception"]) for context in told] == [ValueError]


def test_it_is_built_inside_a_loop() -> None:
    with pytest.raises(RuntimeError):
        Countdown(1, print)
