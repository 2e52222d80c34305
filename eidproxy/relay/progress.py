"""Progress chunks for callers that opted in (contract, 4): place in the queue, at the router, or reasoning."""

import asyncio
from collections.abc import Callable

from eidproxy.relay.stream import Stage

_REPEAT_SECONDS = 10.0
"""The interval for repeating a progress chunk: LangChain's and pi's limits of 120 s count chunks, not comments."""

ProgressFields = dict[str, str | int | None]


class Progress:
    """The progress of one request, sent at each change and every 10 s. Position and estimate only fall."""

    __slots__ = (
        "_eta",
        "_loop",
        "_position",
        "_queue_position",
        "_send",
        "_sent_at",
        "_state",
        "_state_since",
        "_timer",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        send: Callable[[ProgressFields], None],
        queue_position: Callable[[], tuple[int, float | None]],
    ) -> None:
        """`queue_position` returns the position (1 is next, 0 has a slot) and the estimated seconds to the slot."""
        self._loop = loop
        self._send = send
        self._queue_position = queue_position
        self._timer: asyncio.TimerHandle | None = None
        self._position: int | None = None
        self._eta: int | None = None
        self._state = "queued"
        self._state_since = 0.0
        self._sent_at = 0.0

    def report_position(self) -> None:
        """Send the place in the queue if it improved, or if a repetition is due."""
        position, wait_seconds = self._queue_position()
        if position == 0:
            return
        # A new request of a higher class can push the place back, and a long request can raise the estimate.
        if self._position is None or position < self._position:
            self._position = position
        elif self._loop.time() - self._sent_at < _REPEAT_SECONDS - 0.5:
            return
        if wait_seconds is not None:
            eta = max(round(wait_seconds * self._position / position), 0)
            self._eta = eta if self._eta is None else min(eta, self._eta)
        self._send_and_repeat({"state": "queued", "position": self._position, "eta_seconds": self._eta})

    def report_upstream(self, now: float) -> None:
        """Report that the request is on its way to the router."""
        self._enter_state("upstream", now)

    def report_stage(self, stage: Stage, now: float) -> None:
        """Report that the model reasons; stop at any later stage."""
        if stage is Stage.THINKING:
            self._enter_state("thinking", now)
        elif stage is not Stage.WAITING:
            self.stop()

    def stop(self) -> None:
        """Send no more progress chunks."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _enter_state(self, state: str, now: float) -> None:
        if state != self._state:
            self._state, self._state_since = state, now
            self._send_elapsed()

    def _send_elapsed(self) -> None:
        elapsed = max(int(self._loop.time() - self._state_since), 0)
        self._send_and_repeat({"state": self._state, "elapsed_seconds": elapsed})

    def _repeat(self) -> None:
        if self._state == "queued":
            self.report_position()
        else:
            self._send_elapsed()

    def _send_and_repeat(self, fields: ProgressFields) -> None:
        self._sent_at = self._loop.time()
        self._send(fields)
        self.stop()
        self._timer = self._loop.call_later(_REPEAT_SECONDS, self._repeat)
