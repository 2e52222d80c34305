"""Progress chunks for callers that opted in (contract, 4): place in the queue, at the router, or reasoning."""

import asyncio
from collections.abc import Callable

from eidproxy.relay.stream import Stage

_REPEAT_SECONDS = 10.0
"""The interval for repeating a progress chunk: LangChain's and pi's limits of 120 s count chunks, not comments."""

News = dict[str, str | int | None]


class Progress:
    """The progress of one request, sent at each change and every 10 s. Position and estimate only fall."""

    __slots__ = ("_eta", "_loop", "_position", "_queue_position", "_send", "_since", "_state", "_timer", "_told_at")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        send: Callable[[News], None],
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
        self._since = 0.0
        self._told_at = 0.0

    def queued(self) -> None:
        """Send the place in the queue if it improved, or if a repetition is due."""
        position, wait_seconds = self._queue_position()
        if position == 0:
            return
        # A new request of a higher class can push the place back, and a long request can raise the estimate.
        if self._position is None or position < self._position:
            self._position = position
        elif self._loop.time() - self._told_at < _REPEAT_SECONDS - 0.5:
            return
        if wait_seconds is not None:
            eta = max(round(wait_seconds * self._position / position), 0)
            self._eta = eta if self._eta is None else min(eta, self._eta)
        self._tell({"state": "queued", "position": self._position, "eta_seconds": self._eta})

    def upstream(self, now: float) -> None:
        """Report that the request is on its way to the router."""
        self._enter("upstream", now)

    def stage(self, stage: Stage, now: float) -> None:
        """Report that the model reasons; stop at any later stage."""
        if stage is Stage.THINKING:
            self._enter("thinking", now)
        elif stage is not Stage.WAITING:
            self.stop()

    def stop(self) -> None:
        """Send no more progress chunks."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _enter(self, state: str, now: float) -> None:
        if state != self._state:
            self._state, self._since = state, now
            self._tell_elapsed()

    def _tell_elapsed(self) -> None:
        elapsed = max(int(self._loop.time() - self._since), 0)
        self._tell({"state": self._state, "elapsed_seconds": elapsed})

    def _tell_again(self) -> None:
        if self._state == "queued":
            self.queued()
        else:
            self._tell_elapsed()

    def _tell(self, news: News) -> None:
        self._told_at = self._loop.time()
        self._send(news)
        self.stop()
        self._timer = self._loop.call_later(_REPEAT_SECONDS, self._tell_again)
