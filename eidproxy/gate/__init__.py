"""The gate: at most `capacity` requests of `daily` at the router at once, in the order `admission` decides.

`Gate` is what a relay needs of any gate: `local.LocalGate` keeps it in the process, `shared.RedisGate` in a store that
replicas share. A relay asks with `acquire`, waits on the permit it gets, and calls `release` exactly where it closes
its upstream connection: that frees a slot or a place in the queue, whatever the permit has at that instant.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from eidproxy.vocabulary import Priority

_MEAN_WEIGHT = 0.2
"""How much the newest hold counts in the mean: about the last ten decide."""


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
    """What a gate holds right now. Cheap however many wait: it is read at each scrape."""

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
    """Called with a reason when a slot that was granted is taken away; it is no longer held then."""
    settling: bool
    """Whether the caller has left and the slot is kept all the same (see `settle`). For the operator's views."""

    @property
    def granted_at_once(self) -> bool:
        """Whether the slot came with the request, so that there is nothing to wait for."""

    async def granted(self) -> None:
        """Wait for the slot. Raises Refusal (`gate_queue_full`, `gate_wait_timeout`, `draining`, …)."""

    def is_held(self) -> bool:
        """Whether the slot is still held, by a clock read now: asked right before the request goes to the router.

        When it was held until now and is not any more, `on_revoked` is called before this returns.
        """

    def queue_position(self) -> tuple[int, float | None]:
        """The position in the queue (1 is the next, 0 has a slot) and the seconds until the slot, if known."""


class Gate(Protocol):
    """What a relay, the metrics and the operator's views need of a gate."""

    def acquire(self, priority: Priority, on_position_change: Callable[[], None] | None = None) -> Permit:
        """Ask for a slot. Raises Refusal `gate_queue_full` or `draining` when that is known at once.

        `on_position_change` is called, at most once a tick, when the place in the queue may have changed.
        """

    def release(self, permit: Permit) -> None:
        """Give back what the permit has, a slot or a place in the queue. Never waits; a second call does nothing."""

    def drain(self) -> None:
        """Turn away all who wait and all who come."""

    def statistics(self) -> GateStatistics:
        """How many hold and wait."""

    def holders(self) -> list[Holder]:
        """Who holds a slot."""

    def waiters(self) -> list[Waiter]:
        """Who waits, the next first."""

    async def available(self) -> bool:
        """Whether slots can be given out at all. Bounded: the answer comes within half a second."""

    async def aclose(self) -> None:
        """Give everything back."""


class HoldEstimate:
    """A moving mean of how long slots were held: the ground of every estimate that a caller is told."""

    def __init__(self) -> None:
        self.seconds: float | None = None

    def add(self, seconds: float) -> None:
        """Take the newest hold."""
        self.seconds = seconds if self.seconds is None else self.seconds + _MEAN_WEIGHT * (seconds - self.seconds)

    def wait(self, position: int, slots: int) -> float | None:
        """Seconds until the waiter at `position` has a slot, or None before the first measurement."""
        return None if self.seconds is None else self.seconds * position / slots
