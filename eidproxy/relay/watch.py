"""The watch over a router's silence: it sends keep-alive comments, and ends a request whose router is silent too long.

`SilenceClock` knows how long a silence may last; the watch looks at the router's socket and at the time.
"""

from typing import Protocol

from eidproxy.relay.answer import Answer
from eidproxy.relay.silence import SilenceClock, SilenceLimits
from eidproxy.router.exchange import Exchange
from eidproxy.timeouts import TimeoutQueue, TimerHeap, standstill_extension

_RECHECK_SECONDS = 0.05
"""Delay before the next check when the kernel still has unread bytes."""
_MAX_UNREAD_CHECKS = 20
"""Such checks in one silence: a second in all, enough for a loop to read what 200 streams left unread."""


class Watched(Protocol):
    """The request at the router, as its watch calls it."""

    @property
    def awaits_router(self) -> bool:
        """Whether silence of the router counts now."""

    def on_silence(self, reason: str | None) -> None:
        """End the request: the router was silent for too long."""


class SilenceTimers:
    """The timers of all watches: one timer of the loop for the first checks, and one for all later ones."""

    def __init__(self, limits: SilenceLimits, keepalive_seconds: float) -> None:
        """To be built inside a running loop."""
        self.limits = limits
        self.keepalive_seconds = keepalive_seconds
        first_check = min(keepalive_seconds, limits.read_timeout_seconds, limits.first_event_seconds)
        self.first = TimeoutQueue(first_check, SilenceWatch.check)
        self.later = TimerHeap(SilenceWatch.check)


class SilenceWatch:
    """The watch of one request, from the last byte of the request written to the end."""

    __slots__ = (
        "_answer",
        "_checked_due",
        "_exchange",
        "_extended_due",
        "_next_check",
        "_request",
        "_timers",
        "_unread_checks",
        "clock",
    )

    def __init__(
        self, request: Watched, timers: SilenceTimers, clock: SilenceClock, answer: Answer, exchange: Exchange
    ) -> None:
        self._request: Watched | None = request
        self._timers = timers
        self.clock = clock
        self._answer = answer
        self._exchange = exchange
        self._next_check: int | None = None
        """The key of the next check's timer; None before the first check."""
        # When a silence ran out stands for the silence itself: another one runs out at another time.
        self._checked_due: float | None = None
        """The silence that `_unread_checks` counts for."""
        self._unread_checks = 0
        self._extended_due: float | None = None
        """The silence that was extended last."""

    def start(self) -> None:
        """Schedule the first check. After `stop` this does nothing."""
        if self._request is not None:
            self._timers.first.start(self)

    def stop(self) -> None:
        """Check no more. What `clock` knows stays."""
        self._request = None
        self._timers.first.stop(self)
        self._stop_next_check()

    def on_first_event(self) -> None:
        """Check now if a check has scheduled the next one by the first-event allowance: it is due sooner now."""
        if self._next_check is not None:
            self.check()

    def check(self) -> None:
        """Enforce the read timeout, send a keep-alive comment if one is due, and schedule the next check."""
        self._stop_next_check()
        if self._request is None or not self._request.awaits_router:
            return
        self._exchange.end_shortcut()
        answer, clock, splice = self._answer, self.clock, self._answer.splice
        now = answer.connection.loop.time()
        if splice.heard_at:
            clock.note_event(splice.heard_at)
        due = clock.due_at
        if now >= due:
            extension = self.extension(due, now)
            if extension:
                self._next_check = self._timers.later.start(self, now + extension)
            else:
                self._request.on_silence(clock.reason(now))
            return
        keepalive_seconds = self._timers.keepalive_seconds
        if splice.is_open:
            if now >= splice.last_sent_at + keepalive_seconds:
                answer.keep_alive(now)
            due = min(due, splice.last_sent_at + keepalive_seconds)
        due = min(due, answer.times.deadline_at)  # finite, so that a timer is always set: see `on_first_event`
        if due > now:
            self._next_check = self._timers.later.start(self, due)

    def extension(self, due: float, now: float) -> float:
        """Return how many seconds more to wait before a silence that ran out at `due` ends the request; 0 for none.

        After a standstill timers run before reads, so the router may have sent something: unread bytes are read first,
        but not without end, since they may be pings that are no sign of life. If the loop stood still when a silence
        began, its beginning was noted too early, so each silence is extended once, by as much as this check is late
        (DESIGN, 39).
        """
        if self._checked_due != due:
            self._checked_due, self._unread_checks = due, 0
        self._unread_checks += 1
        if self._unread_checks <= _MAX_UNREAD_CHECKS and self._exchange.has_unread():
            return _RECHECK_SECONDS
        if self._extended_due == due:
            return 0.0
        self._extended_due = due
        return standstill_extension(now - due, self._timers.limits.read_timeout_seconds)

    def _stop_next_check(self) -> None:
        if self._next_check is not None:
            self._timers.later.stop(self._next_check)
            self._next_check = None
