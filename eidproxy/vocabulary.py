"""The closed sets: every word that eidproxy accepts, sends, logs or counts is a member of one of these.

A `StrEnum` member is its own spelling on the wire, in a log line and as a metric label.
"""

from enum import StrEnum


class Mode(StrEnum):
    """The models that a caller may ask for, and there are no others (contract, P1)."""

    DAILY = "daily"
    DEEP = "deep"


class Priority(StrEnum):
    """A waiter's class in the gate."""

    FOREGROUND = "foreground"
    BACKGROUND = "background"


class Surface(StrEnum):
    """Where a request came in."""

    PROXY = "proxy"
    CHAT = "chat"


class Outcome(StrEnum):
    """How a request ended, seen from its caller."""

    OK = "ok"
    ERROR = "error"
    CLIENT_GONE = "client_gone"


class Phase(StrEnum):
    """The phase of a running request of the main job."""

    QUEUED = "queued"
    UPSTREAM = "upstream"
    STREAMING = "streaming"


class WaitOutcome(StrEnum):
    """How a wait in the gate ended."""

    GRANTED = "granted"
    FULL = "full"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    DRAINING = "draining"


class Deadline(StrEnum):
    """Which clock ran out."""

    QUEUE = "queue"
    CONNECT = "connect"
    READ = "read"
    WRITE = "write"
    TOTAL = "total"


class StreamEnd(StrEnum):
    """How an upstream stream ended, once it had begun."""

    DONE = "done"
    NO_DONE = "no_done"
    TRUNCATED = "truncated"
    UPSTREAM_ERROR = "upstream_error"
    DEADLINE = "deadline"
    CLIENT_GONE = "client_gone"
    DRAINING = "draining"


class Dropped(StrEnum):
    """Why an upstream event was not passed on."""

    NOT_JSON = "not_json"
    NOT_OBJECT = "not_object"
    EMPTY = "empty"
    TOO_LARGE = "too_large"


class Stripped(StrEnum):
    """Which upstream field was taken out."""

    MODEL = "model"
    USAGE = "usage"
    OTHER = "other"


class TokenKind(StrEnum):
    """Which side of an inference a token count belongs to."""

    PROMPT = "prompt"
    COMPLETION = "completion"


class UpstreamState(StrEnum):
    """The wedge guard's view of the model server behind a mode (contract, 6)."""

    LIVE = "live"
    SUSPECT = "suspect"
    WEDGED = "wedged"


class AfterLeave(StrEnum):
    """What happens to a slot whose caller left between the request and its first event (contract, 6)."""

    RELEASE = "release"
    SETTLE = "settle"
    FIRST_EVENT = "first_event"


class SettleEnd(StrEnum):
    """What ended a settlement."""

    FIRST_EVENT = "first_event"
    ELAPSED = "elapsed"
    DEADLINE = "deadline"
    DRAINING = "draining"


NO_MODE = "none"
"""The mode label of a request that asked for no valid model."""

RESPONSE_CODES = ("2xx", "3xx", "4xx", "5xx", "none")
"""Labels of `upstream_responses_total`; `none` is a request that got no status from the router."""
