"""How long a router may be silent: the first-event allowance and the pause between events (contract, 6).

A long prefill, a cold load, a tool call that is sent whole and a hang look the same from outside. Only the size of the
prompt, a comment that changes, and time tell them apart.

All times are arguments, in seconds of the caller's clock; nothing here waits.
"""

import math
from typing import NamedTuple

from eidproxy.errors import CLIENT_GONE, SILENT_ENDS

_MAX_COMMENT_BYTES = 256
"""How much of a comment is kept, to compare the next one with. It goes to no caller and no log."""

_DEPARTURE_SECONDS = 60.0
"""A caller that leaves earlier than this is no evidence about the router: people have little patience."""


class SilenceLimits(NamedTuple):
    """The settings that bound silence, in seconds."""

    first_event_seconds: float
    first_event_seconds_per_kib: float
    read_timeout_seconds: float
    deadline_seconds: float
    """The wall clock of a request, from its grant."""

    def allowance(self, request_bytes: int, *, generates_unseen: bool) -> float:
        """Return the allowance: seconds from the last byte of the request written to its first event.

        `generates_unseen`: the request has `tools` or a JSON `response_format`. Servers write nothing while they
        generate those (mlx_lm.server a tool call, vllm-mlx a JSON answer), so the wall clock alone counts.
        """
        if generates_unseen:
            return self.deadline_seconds
        return min(
            self.first_event_seconds + self.first_event_seconds_per_kib * request_bytes / 1024, self.deadline_seconds
        )


class SilenceClock:
    """The silence limits of one request at the router, from the last byte of the request written."""

    __slots__ = (
        "_comment",
        "_deadline_at",
        "_is_paused",
        "_read_timeout",
        "_sent_at",
        "_silence_began_at",
        "_was_paused_before_first_event",
        "allowance",
        "first_event_at",
    )

    def __init__(
        self, limits: SilenceLimits, request_bytes: int, *, generates_unseen: bool, sent_at: float, deadline_at: float
    ) -> None:
        self.allowance = limits.allowance(request_bytes, generates_unseen=generates_unseen)
        """Seconds that the first event may take, from the last byte of the request written."""
        self.first_event_at: float | None = None
        self._read_timeout = math.inf if generates_unseen else limits.read_timeout_seconds
        self._sent_at = sent_at
        self._deadline_at = deadline_at
        self._silence_began_at = -math.inf
        self._comment: bytes | None = None
        self._is_paused = False
        self._was_paused_before_first_event = False

    def note_event(self, now: float) -> None:
        """Note a data event. A lone role before the first event does not count (contract, 4)."""
        if self.first_event_at is None:
            self.first_event_at = now
        # An event may be reported after a later comment or pause.
        self._silence_began_at = max(self._silence_began_at, now)

    def note_comment(self, text: bytes, now: float) -> bool:
        """Note a comment and return whether it is a sign of life, that is, differs from the one before it.

        mlx_lm.server counts its prefill up in comments; a router sends a constant ping even while the model hangs.
        """
        beginning = bytes(text[:_MAX_COMMENT_BYTES])
        has_changed = self._comment is not None and beginning != self._comment
        self._comment = beginning
        if has_changed:
            self._silence_began_at = now
        return has_changed

    def pause(self) -> None:
        """Stop the clock: the caller reads too slowly, so the router is not read and cannot be heard."""
        self._is_paused = True
        self._was_paused_before_first_event = self._was_paused_before_first_event or self.first_event_at is None

    def resume(self, now: float) -> None:
        """Start the clock anew. The pause does not count as silence of the router."""
        self._is_paused = False
        self._silence_began_at = now

    @property
    def due_at(self) -> float:
        """When the router's silence exceeds its limit; infinity if paused, or if the wall clock runs out first."""
        if self._is_paused:
            return math.inf
        due_at = self._silence_began_at + self._read_timeout
        if self.first_event_at is None:
            due_at = max(due_at, self._sent_at + self.allowance)
        return due_at if due_at < self._deadline_at else math.inf

    def reason(self, now: float) -> str | None:
        """Return the reason to end the request now, or None while the silence is within its limit."""
        if now < self.due_at:
            return None
        return "upstream_silent" if self.first_event_at is None else "router_ReadTimeout"

    def used_ratio(self, now: float) -> float:
        """Return the share of the allowance used up to now: over 1 when a changing comment extended it."""
        return (now - self._sent_at) / self.allowance

    def is_silent_end(self, reason: str, now: float) -> bool:
        """Return whether a request that ends now for this reason is evidence that the router hangs (contract, 6).

        Comments, even changing ones, do not disprove a hang: sse-starlette's pings hold the time of day.
        """
        if self.first_event_at is not None or self._was_paused_before_first_event:
            return False
        if reason == CLIENT_GONE:
            return now - self._sent_at >= max(self.allowance / 2, _DEPARTURE_SECONDS)
        return reason in SILENT_ENDS
