"""The answer of `/status` (contract, 2): one type that the server encodes, `top` decodes and the live view reads.

Words are short and printable ASCII, so that a server which is not eidproxy cannot send control codes to a terminal.
"""

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

ROW_SECONDS = 5.0
ROWS = 60
"""The history: the length of one row, and the maximum number of rows."""

# \Z and not $, which would let a line end pass.
Word = Annotated[str, Meta(pattern=r"^[ -~]{0,64}\Z")]


class HolderStatus(Struct):
    """One slot in use."""

    mode: Word
    priority: Word
    age_seconds: float
    settling: bool | UnsetType = UNSET
    """Whether the caller left and the slot waits for the model server to notice (contract, 6)."""


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
    """The time limits of a request: after its grant, and in the queue."""

    stream_seconds: float
    gate_wait_seconds: float


class RouterStatus(Struct):
    """What the last connect to the router showed."""

    reachable: bool | None
    checked_seconds_ago: float | None
    hint: Word | UnsetType = UNSET
    """What an operator can do about a router that is not reachable, if more than the reason is known."""


class UpstreamStatus(Struct):
    """The wedge guard's view of a mode's model server: `live`, `suspect` or `wedged` (contract, 6)."""

    state: Word
    since_seconds: float
    silent_ends: int
    next_trial_seconds: float | None


class Spread(Struct):
    """Durations of one kind: those of one row, and the 95th percentile of the five minutes that end with it."""

    count: int
    mean_seconds: float | None
    p95_seconds: float


class HistoryRow(Struct, omit_defaults=True):
    """Five seconds. A class or mode without a duration in the five minutes that end with the row is left out."""

    waiting: int
    gate_wait: dict[Word, Spread] = {}
    """By priority, of requests that got a slot."""
    first_token: dict[Word, Spread] = {}
    """By mode."""


class Status(Struct):
    """The answer of `/status`."""

    version: Word
    uptime_seconds: float
    draining: bool
    gate: GateStatus
    streams: dict[Word, int]
    outcomes: dict[Word, int]
    deadlines: Deadlines
    router: RouterStatus
    upstream: dict[Word, UpstreamStatus]
    """By mode."""
    history: list[HistoryRow] = []
    """At most five minutes, the newest row last."""
