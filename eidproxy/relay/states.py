"""The states of a request, the causes that end it, and the result of each cause in each state."""

from enum import IntEnum, auto

from eidproxy.errors import CLIENT_GONE
from eidproxy.vocabulary import Phase


class State(IntEnum):
    """The state of a request. An `IntEnum`, since the hash of an `Enum` is computed in Python."""

    QUEUED = auto()
    CONNECTING = auto()
    ASKED = auto()
    """The request is written to the router; no good event has come."""
    REFUSED = auto()
    """The router answered with an error status; its body is read."""
    STREAMING = auto()
    """The first good event came."""
    FINISHED = auto()
    """A finish reason came: the answer is whole, whatever follows."""
    CONCLUDED = auto()


class Cause(IntEnum):
    """A cause that ends a request."""

    REFUSAL = auto()
    """eidproxy refused the request or took back its slot; the reason comes with it."""
    DIAL_FAILED = auto()
    SILENCE = auto()
    WALL_CLOCK = auto()
    ROUTER_BROKE = auto()
    """The connection failed; the reason comes with it."""
    ROUTER_CLOSED = auto()
    ROUTER_DONE = auto()
    """The router sent `[DONE]`, or ended its answer after a finish reason."""
    ROUTER_ERROR = auto()
    """The router's answer is an error or no answer; the reason comes with it."""
    CALLER_LEFT = auto()
    DRAIN = auto()
    FAULT = auto()


GIVEN = "given"
"""The reason comes with the cause."""

BY_STATUS = "status"
"""The reason follows from the router's status and body."""

WHOLE = "whole"
"""No error: the answer is complete."""

_BEFORE_THE_ROUTER = {
    Cause.REFUSAL: GIVEN,
    Cause.CALLER_LEFT: CLIENT_GONE,
    Cause.DRAIN: "draining",
    Cause.FAULT: "internal_error",
}
_AT_THE_ROUTER = {
    **_BEFORE_THE_ROUTER,
    Cause.DIAL_FAILED: GIVEN,
    Cause.SILENCE: GIVEN,
    Cause.WALL_CLOCK: "stream_deadline_exceeded",
    Cause.ROUTER_BROKE: GIVEN,
    Cause.ROUTER_CLOSED: "upstream_truncated",
    Cause.ROUTER_DONE: "upstream_truncated",
    Cause.ROUTER_ERROR: GIVEN,
}

ENDS: dict[State, dict[Cause, str]] = {
    State.QUEUED: _BEFORE_THE_ROUTER,
    State.CONNECTING: _AT_THE_ROUTER,
    State.ASKED: _AT_THE_ROUTER,
    State.REFUSED: {
        **_AT_THE_ROUTER,
        Cause.SILENCE: BY_STATUS,
        Cause.ROUTER_BROKE: BY_STATUS,
        Cause.ROUTER_CLOSED: BY_STATUS,
    },
    State.STREAMING: _AT_THE_ROUTER,
    State.FINISHED: {
        **dict.fromkeys(Cause, WHOLE),
        Cause.CALLER_LEFT: CLIENT_GONE,
        Cause.FAULT: "internal_error",
    },
}
"""The result of each cause in each state: a reason of `errors`, or one of the three words above.

No clock, cut, drain or error of the router turns an answer whose finish reason has come into an error (contract, 4).
"""

PHASES = {
    State.QUEUED: Phase.QUEUED,
    State.CONNECTING: Phase.UPSTREAM,
    State.ASKED: Phase.UPSTREAM,
    State.REFUSED: Phase.UPSTREAM,
    State.STREAMING: Phase.STREAMING,
    State.FINISHED: Phase.STREAMING,
}
"""The phase of each state, for the metrics."""
