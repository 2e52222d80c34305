"""SilenceWatch: how much longer a silence may last after a standstill, or while bytes lie unread."""

from __future__ import annotations

from typing import Any, cast

import uvloop

from eidproxy.relay.silence import SilenceLimits
from eidproxy.relay.watch import SilenceTimers, SilenceWatch


class Socket:
    """The router's socket, as far as the watch looks at it."""

    def __init__(self, unread: bool) -> None:
        self.unread = unread

    def has_unread(self) -> bool:
        """Say what the test says."""
        return self.unread


def extensions(unread: bool, *checks: tuple[float, float]) -> list[float]:
    """The extensions of checks at (due, now), with a read timeout of ten seconds."""

    async def run() -> list[float]:
        timers = SilenceTimers(SilenceLimits(90.0, 4.0, 10.0, 300.0), 15.0)
        anything = cast(Any, None)
        watch = SilenceWatch(anything, timers, anything, anything, cast(Any, Socket(unread)))
        return [watch.extension(due, now) for due, now in checks]

    return uvloop.run(run())


def test_a_silence_is_extended_once_after_a_standstill() -> None:
    """What began in the turn that stood still began with an old time: it gets, once, as much as it is late."""
    assert extensions(False, (1.0, 3.0), (1.0, 5.0)) == [2.0, 0.0]


def test_another_silence_is_extended_too_by_at_most_its_length() -> None:
    assert extensions(False, (1.0, 3.0), (2.0, 22.0), (2.0, 32.0)) == [2.0, 10.0, 0.0]


def test_a_check_in_time_extends_nothing() -> None:
    assert extensions(False, (40.0, 40.0)) == [0.0]


def test_unread_bytes_are_read_first_but_not_for_ever() -> None:
    """A router that pings for ever may have a ping unread at each check."""
    *waits, of_another = extensions(True, *[(1.0, 1.0)] * 40, (2.0, 2.0))
    assert 1 <= len([wait for wait in waits if wait]) <= 20
    assert waits[-1] == 0.0
    assert of_another > 0


def test_a_stopped_watch_does_not_start() -> None:
    """The router may hang up while the request is written: the request ends before its watch starts."""

    async def run() -> tuple[int, int]:
        timers = SilenceTimers(SilenceLimits(90.0, 4.0, 10.0, 300.0), 15.0)
        anything = cast(Any, None)
        watch = SilenceWatch(cast(Any, object()), timers, anything, anything, anything)
        watch.start()
        started = len(timers.first)
        watch.stop()
        watch.start()
        watch.check()
        return started, len(timers.first)

    assert uvloop.run(run()) == (1, 0)
