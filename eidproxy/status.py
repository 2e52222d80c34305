"""The answer of `/status` (contract, 2): one type that the server encodes, `top` decodes and the live view reads.

Words are printable ASCII and short, so that a server which is not eidproxy cannot speak to a terminal through them.
"""

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

ROW_SECONDS = 5.0
ROWS = 60
"""The history: how much time one row is, and how many there are at most."""

# \Z and not $, which would let a line end pass.
Word = Annotated[str, Meta(pattern=r"^[ -~]{0,64}\Z")]


class HolderStatus(Struct):
    """One slot in use."""

    mode: Word
    priority: Word
    age_seconds: float


class WaiterStatus(Struct):
    """One place in the queue."""

    priority: Word
    position: int
    age_seconds: float


class GateStatus(Struct):
    """The gate."""

    slots: int
    in_use: int
    queue_limit: int
    holders: list[HolderStatus]
    waiting: list[WaiterStatus]
    mean_hold_seconds: float | None


class Deadlines(Struct):
    """How long a request may take and wait."""

    stream_seconds: float
    gate_wait_seconds: float


class RouterStatus(Struct):
    """The last look at the router."""

    reachable: bool | None
    checked_seconds_ago: float | None


class UpstreamStatus(Struct):
    """What a mode's model server did with the last requests: `live`, `suspect` or `wedged`."""

    state: Word
    since_seconds: float | None
    silent_ends: int
    next_trial_seconds: float | None


class Spread(Struct):
    """Times of one kind: those of one row, and their 95th percentile in the five minutes that end with it."""

    count: int
    mean_seconds: float | None
    p95_seconds: float


class HistoryRow(Struct, omit_defaults=True):
    """Five seconds. A class or a mode of which the five minutes that end with them have no time is left out."""

    waiting: int
    gate_wait: dict[Word, Spread] = {}
    """By priority, of requests that got a slot."""
    first_token: dict[Word, Spread] = {}
    """By mode."""


class Status(Struct):
    """The whole answer."""

    version: Word
    uptime_seconds: float
    draining: bool
    gate: GateStatus
    streams: dict[Word, int]
    outcomes: dict[Word, int]
    deadlines: Deadlines
    router: RouterStatus
    upstream: dict[Word, UpstreamStatus] | UnsetType = UNSET
    history: list[HistoryRow] = []
    """At most five minutes, the newest row last."""
