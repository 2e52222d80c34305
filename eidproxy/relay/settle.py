"""The slot of a request whose caller left during the prefill, and with `first_event` its connection to the router too.

A model server continues a prefill after its caller left, so the next request would run beside it, or wait behind it
while its own deadline runs. The operator chooses which cost to accept (contract, 6, `gate.after_leave`).
"""

import asyncio
from collections.abc import Callable

from eidproxy.gate import Gate, Permit
from eidproxy.monitoring.metrics import Metrics
from eidproxy.vocabulary import AfterLeave, SettleEnd


class Settlement:
    """One kept slot or connection, or both, until `finish`."""

    __slots__ = ("_began_at", "_close", "_permit", "_settlements", "_timer")

    def __init__(self, settlements: "Settlements", permit: Permit | None, close: Callable[[], None]) -> None:
        self._settlements = settlements
        self._permit = permit
        self._close = close
        self._timer: asyncio.TimerHandle | None = None
        self._began_at = settlements.loop.time()

    def finish(self, end: SettleEnd) -> None:
        """Close the router's connection and give back the slot, in this order. Only the first call counts."""
        if self not in self._settlements.running:
            return
        self._settlements.running.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        try:
            self._close()
        finally:  # whatever fails, the slot must be given back
            if self._permit is not None:
                self._permit.on_revoked = None
                self._settlements.gate.release(self._permit)
            self._settlements.metrics.gate_settle[end].observe(self._settlements.loop.time() - self._began_at)

    def _start(self, seconds: float, end: SettleEnd) -> None:
        self._timer = self._settlements.loop.call_later(seconds, self.finish, end)
        if self._permit is not None:
            self._permit.settling = True
            self._permit.on_revoked = self._on_slot_lost

    def _on_slot_lost(self, _reason: str) -> None:
        """Finish at once: the slot was taken away, by a lease that ran out or the watchdog."""
        self.finish(SettleEnd.ELAPSED)


class Settlements:
    """All settlements of one process."""

    def __init__(self, gate: Gate, metrics: Metrics, after_leave: AfterLeave, settle_seconds: float) -> None:
        self.gate = gate
        self.metrics = metrics
        self.loop = asyncio.get_running_loop()
        self.running: set[Settlement] = set()
        self._after_leave = after_leave
        self._settle_seconds = settle_seconds
        self._draining = False

    def keep(self, permit: Permit | None, close: Callable[[], None], seconds_left: float) -> Settlement | None:
        """Keep the slot or the connection of a departed caller. None: keep nothing; close and release both at once.

        To be called when a caller left after its request was written and before the first event. `close` resets the
        router's connection: it is called here with `settle`, else before the slot is given back. `seconds_left` is the
        time until the wall clock. With `first_event` the connection stays open, and its owner calls `finish` with
        FIRST_EVENT when the first data event came or the router ended the answer. A `deep` request has no permit, so
        only `first_event` has an effect for it.
        """
        if self._after_leave is AfterLeave.RELEASE or self._draining or seconds_left <= 0:
            return None
        closes_now = self._after_leave is AfterLeave.SETTLE
        if closes_now and permit is None:
            return None
        settlement = Settlement(self, permit, _do_nothing if closes_now else close)
        self.running.add(settlement)
        if self._settle_seconds <= seconds_left:
            settlement._start(self._settle_seconds, SettleEnd.ELAPSED)
        else:
            settlement._start(seconds_left, SettleEnd.DEADLINE)
        if closes_now:
            close()
        return settlement

    def drain(self) -> None:
        """Finish all settlements, and keep nothing from now on."""
        self._draining = True
        for settlement in list(self.running):
            settlement.finish(SettleEnd.DRAINING)


def _do_nothing() -> None:
    """Do nothing, in place of `close`: the connection is already closed."""
