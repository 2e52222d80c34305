"""The wedge guard: whether the model server behind a mode hangs, and who may still ask it (contract, 6).

Evidence of life is a data event of any request. Evidence of a hang is a request that got none within its allowance
(`SilenceClock.is_silent_end`). Connect errors and error statuses are neither: they cost their callers no wait.

While the server is wedged only one real request at a time is let through, the trial. The guard makes no request of its
own: it would cost a slot, evict a one-slot server's cache, and leave a request in logs that no caller made.

    state \\ event | HEARD   SILENT    SILENT_AGAIN   ASKED_WHEN_DUE   TRIAL_SILENT   TRIAL_ENDED
    LIVE          | -       SUSPECT   WEDGED         -                -              -
    SUSPECT       | LIVE    -         WEDGED         -                -              -
    WEDGED        | LIVE    -         -              TRIAL            -              -
    TRIAL         | LIVE    -         -              -                WEDGED         WEDGED

SILENT is a silent end, SILENT_AGAIN the one that makes `wedge_after` of them in a row. A trial is due `retry_seconds`
after SILENT_AGAIN or TRIAL_SILENT. TRIAL_ENDED is a trial that ended without evidence: its caller left, it never got a
connection, or an error status came. It does not restart `retry_seconds`, so the next request is the trial.

*In a row* follows the order in which requests end, with no sign of life between. A request counts only when it was
sent after the last sign of life: an older one is slow, not unanswered.

Requests that were at the router when it became wedged continue; their events are signs of life like any other.

Each mode has its own guard, in each replica; guards share nothing. All times are arguments, in seconds of the caller's
clock.
"""

import math
from enum import Enum, auto
from typing import NamedTuple

from eidproxy.vocabulary import UpstreamState


class State(Enum):
    """The rows of the table. In WEDGED no trial is at the router."""

    LIVE = auto()
    SUSPECT = auto()
    WEDGED = auto()
    TRIAL = auto()


class Event(Enum):
    """The columns of the table."""

    HEARD = auto()
    SILENT = auto()
    SILENT_AGAIN = auto()
    ASKED_WHEN_DUE = auto()
    TRIAL_SILENT = auto()
    TRIAL_ENDED = auto()


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.LIVE: {Event.SILENT: State.SUSPECT, Event.SILENT_AGAIN: State.WEDGED},
    State.SUSPECT: {Event.HEARD: State.LIVE, Event.SILENT_AGAIN: State.WEDGED},
    State.WEDGED: {Event.HEARD: State.LIVE, Event.ASKED_WHEN_DUE: State.TRIAL},
    State.TRIAL: {Event.HEARD: State.LIVE, Event.TRIAL_SILENT: State.WEDGED, Event.TRIAL_ENDED: State.WEDGED},
}
"""The table above. An event that a state does not name changes nothing."""

_SHOWN_STATES = {
    State.LIVE: UpstreamState.LIVE,
    State.SUSPECT: UpstreamState.SUSPECT,
    State.WEDGED: UpstreamState.WEDGED,
    State.TRIAL: UpstreamState.WEDGED,
}


class GuardStatistics(NamedTuple):
    """The state and the counts of a guard, for `/status` and the metrics."""

    state: UpstreamState
    since_seconds: float
    silent_ends: int
    """Silent ends in a row."""
    next_trial_seconds: float | None
    """Seconds until a trial is due; 0: the next request is the trial. None: nothing is refused, or a trial runs."""
    silent_ends_total: int
    wedges_total: int


class Passage:
    """One request in the guard: `enter` returns it, and `leave` takes it back however the request ends."""

    __slots__ = ("left", "sent_at")

    def __init__(self) -> None:
        self.sent_at = math.inf
        """When the request was sent to the router; infinity before that."""
        self.left = False


class WedgeGuard:
    """The guard of one mode.

    A request calls `enter` before it asks for a slot, `try_send` right before it is written to the router, and `leave`
    when its connection to the router is closed, or when it ends without one. Each data event calls `note_event`, or,
    while `is_live`, may set `heard_at` instead.
    """

    def __init__(self, wedge_after: int, retry_seconds: float, now: float) -> None:
        """Begin as live. With `wedge_after` 0 the guard counts, but refuses no request."""
        self._wedge_after = wedge_after
        self._retry_seconds = retry_seconds
        self._state = State.LIVE
        self._since = now
        self.is_live = True
        """Whether the state is LIVE. While it is, `note_event` only sets `heard_at`."""
        self.heard_at = -math.inf
        """When the last data event came."""
        self._silent_ends = 0
        self._retry_at = math.inf
        self._trial: Passage | None = None
        self._silent_ends_total = 0
        self._wedges_total = 0

    @property
    def state(self) -> UpstreamState:
        """The state for callers and operators: WEDGED during a trial, since all other requests are still refused."""
        return _SHOWN_STATES[self._state]

    def enter(self, now: float) -> Passage | None:
        """Return the passage of a request, the trial's when one is due. None: refuse it with `upstream_wedged`."""
        if self._state in (State.LIVE, State.SUSPECT):
            return Passage()
        if self._state is State.TRIAL or now < self._retry_at:
            return None
        self._trial = Passage()
        self._apply(Event.ASKED_WHEN_DUE, now)
        return self._trial

    def try_send(self, passage: Passage, now: float) -> bool:
        """Note that a request is about to be written. Return False to refuse it after all, with `upstream_wedged`."""
        if not self.is_live and self.state is UpstreamState.WEDGED and passage is not self._trial:
            return False
        passage.sent_at = now
        return True

    def note_event(self, now: float) -> bool:
        """Note a data event of any request. Return whether `state` changed, to live."""
        self.heard_at = now
        if self.is_live:
            return False
        self._silent_ends = 0
        self._trial = None
        return self._apply(Event.HEARD, now)

    def leave(self, passage: Passage, now: float, *, silent: bool) -> bool:
        """Note the end of a request. Return whether `state` changed; leaving twice does nothing.

        `silent` is the result of `SilenceClock.is_silent_end`. When the state becomes wedged, the caller refuses all
        requests that entered and are not yet sent.
        """
        if passage.left:
            return False
        passage.left = True
        is_trial = passage is self._trial
        if is_trial:
            self._trial = None
        self._silent_ends_total += silent
        if not silent or not self._wedge_after or passage.sent_at < self.heard_at:
            return is_trial and self._apply(Event.TRIAL_ENDED, now)
        self._silent_ends += 1
        if is_trial:
            self._retry_at = now + self._retry_seconds
            return self._apply(Event.TRIAL_SILENT, now)
        if self._silent_ends == self._wedge_after:
            self._wedges_total += 1
            self._retry_at = now + self._retry_seconds
            return self._apply(Event.SILENT_AGAIN, now)
        return self._apply(Event.SILENT, now)

    def is_trial(self, passage: Passage) -> bool:
        """Return whether this request is the trial."""
        return passage is self._trial

    def retry_seconds(self, now: float) -> float:
        """Return the seconds to the next trial, for a refused caller. While a trial runs: as if it failed now."""
        return self._retry_seconds if self._state is State.TRIAL else max(self._retry_at - now, 0.0)

    def statistics(self, now: float) -> GuardStatistics:
        """Return the guard's state and counts."""
        return GuardStatistics(
            state=self.state,
            since_seconds=now - self._since,
            silent_ends=self._silent_ends,
            next_trial_seconds=self.retry_seconds(now) if self._state is State.WEDGED else None,
            silent_ends_total=self._silent_ends_total,
            wedges_total=self._wedges_total,
        )

    def _apply(self, event: Event, now: float) -> bool:
        before = self.state
        self._state = TRANSITIONS[self._state].get(event, self._state)
        self.is_live = self._state is State.LIVE
        if self.state is before:
            return False
        self._since = now
        return True
