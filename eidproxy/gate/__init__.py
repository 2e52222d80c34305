"""The gate: at most `capacity` requests of `daily` at the router at once, in the order `admission` decides.

`Gate` is the interface: `local.LocalGate` keeps its state in the process, `shared.RedisGate` in a store that replicas
share. A relay calls `acquire`, waits on the permit, and calls `release` exactly where it closes its upstream
connection. `release` frees what the permit has at that moment, a slot or a place in the queue.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from eidproxy.vocabulary import Priority

_MEAN_WEIGHT = 0.2
"""Weight of the newest hold in the moving mean: about the last ten holds decide it."""


class GateTerms(NamedTuple):
    """The settings of a gate."""

    capacity: int
    max_waiting: int
    aging_seconds: float
    wait_timeout_seconds: float
    max_hold_seconds: float
    """How long a slot may be held before it is taken back."""
    url: str | None
    """The store of a shared gate; None for a gate in the process."""
    lease_seconds: float
    """How long a shared gate's slot lasts without being renewed."""


class Holder(NamedTuple):
    """One slot in use, for `/status`."""

    priority: Priority
    age_seconds: float
    settling: bool


class Waiter(NamedTuple):
    """One place in the queue, for `/status`."""

    priority: Priority
    position: int
    age_seconds: float


class GateStatistics(NamedTuple):
    """The state of a gate now. Cheap to compute however many requests wait: each scrape reads it."""

    slots: int
    in_use: int
    settling: int
    queue_limit: int
    depth: dict[Priority, int]
    oldest_wait_seconds: dict[Priority, float]
    mean_hold_seconds: float | None


class Permit(Protocol):
    """One request's permit: a slot that it holds or waits for."""

    on_revoked: Callable[[str], None] | None
    """Called with a reason when a granted slot is taken away; by then it is no longer held."""
    settling: bool
    """Whether the caller has left and the slot is still kept (see `settle`). For the operator's views."""

    @property
    def granted_at_once(self) -> bool:
        """Whether `acquire` granted the slot, so that there is nothing to wait for."""

    async def granted(self) -> None:
        """Wait for the slot. Raises Refusal (`gate_queue_full`, `gate_wait_timeout`, `draining`, …)."""

    def is_held(self) -> bool:
        """Return whether the slot is still held, by a clock read now. Called right before the request is written.

        If this call finds that the slot is lost, it calls `on_revoked` before it returns.
        """

    def queue_position(self) -> tuple[int, float | None]:
        """Return the position in the queue (1 is next, 0 has a slot) and the seconds until the slot, if known."""


class Gate(Protocol):
    """What a relay, the metrics and the operator's views need of a gate."""

    def acquire(self, priority: Priority, on_position_change: Callable[[], None] | None = None) -> Permit:
        """Ask for a slot. Raises Refusal `gate_queue_full` or `draining` when that is known at once.

        `on_position_change` is called, at most once a tick, when the position in the queue may have changed.
        """

    def release(self, permit: Permit) -> None:
        """Give back what the permit has, a slot or a place in the queue. Never waits; a second call does nothing."""

    def drain(self) -> None:
        """Refuse all waiters now, and every later `acquire`."""

    def statistics(self) -> GateStatistics:
        """Return how many requests hold a slot and how many wait."""

    def holders(self) -> list[Holder]:
        """Return the slots in use."""

    def waiters(self) -> list[Waiter]:
        """Return the places in the queue, the next one first."""

    async def available(self) -> bool:
        """Return, within half a second, whether slots can be granted at all."""

    async def aclose(self) -> None:
        """Drain, and give everything back."""


class HoldEstimate:
    """A moving mean of hold times, from which every estimate for a caller is computed."""

    def __init__(self) -> None:
        self.seconds: float | None = None

    def add(self, seconds: float) -> None:
        """Add the newest hold, in seconds."""
        self.seconds = seconds if self.seconds is None else self.seconds + _MEAN_WEIGHT * (seconds - self.seconds)

    def estimate_wait(self, position: int, slots: int) -> float | None:
        """Return the seconds until the waiter at `position` has a slot, or None before the first hold."""
        return None if self.seconds is None else self.seconds * position / slots
