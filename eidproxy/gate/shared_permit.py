"""A permit of the shared gate: what the gate knows of one request."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from eidproxy.gate.store_client import Call
from eidproxy.vocabulary import Priority


class PermitGate(Protocol):
    """What a permit asks of its gate; `RedisGate` implements it."""

    def is_held(self, permit: "RedisPermit") -> bool:
        """See `Permit.is_held`."""

    def estimate_wait(self, position: int) -> float | None:
        """Return the seconds until the waiter at a position has a slot, or None."""


class RedisPermit:
    """A permit of `RedisGate`."""

    __slots__ = (
        "_gate",
        "answer_timer",
        "arrived_at",
        "enter_call",
        "grant_future",
        "granted_at",
        "id",
        "lease_lost_at",
        "lease_timer",
        "number",
        "on_position_change",
        "on_revoked",
        "position",
        "priority",
        "settling",
        "token",
        "wait_timer",
        "watchdog_timer",
    )

    def __init__(self, gate: PermitGate, number: str, priority: Priority, arrived_at: float) -> None:
        self._gate = gate
        self.id = number
        self.priority = priority
        self.arrived_at = arrived_at
        self.granted_at: float | None = None
        self.on_revoked: Callable[[str], None] | None = None
        self.settling = False
        self.on_position_change: Callable[[], None] | None = None
        self.number = 0
        """The server's order of arrival; 0 before its first answer."""
        self.token = 0
        """The fencing token; 0 before the grant."""
        self.position = 0
        self.enter_call: Call | None = None
        self.grant_future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.answer_timer: asyncio.TimerHandle | None = None
        self.wait_timer: asyncio.TimerHandle | None = None
        self.lease_timer: asyncio.TimerHandle | None = None
        self.lease_lost_at = 0.0  # stored here: uvloop's handle of a timer that is due at once has no time
        self.watchdog_timer: asyncio.TimerHandle | None = None

    granted_at_once = False

    async def granted(self) -> None:
        """See `Permit.granted`."""
        await self.grant_future

    def is_held(self) -> bool:
        """See `Permit.is_held`."""
        return self._gate.is_held(self)

    def queue_position(self) -> tuple[int, float | None]:
        """See `Permit.queue_position`. The position is 0 before the server's first answer."""
        position = 0 if self.granted_at is not None else self.position
        return position, self._gate.estimate_wait(position)
