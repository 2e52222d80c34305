"""The record of one ended request, from which the metrics count it and the log writes its line."""

from msgspec import Struct

from eidproxy.errors import CLIENT_GONE, RouterReason, metric_reason
from eidproxy.vocabulary import Outcome, Priority, Surface


class RequestRecord(Struct, kw_only=True, gc=False):
    """One ended request, of the main job or any other. Times are seconds."""

    request_id: str
    surface: Surface
    mode: str
    reason: str | None = None
    """The reason of an error; None for a whole answer. A router's own word is a `RouterReason`."""
    status: int
    seconds: float
    """From the request's first byte to its end."""
    priority: Priority | None = None
    gate_wait: float | None = None
    first_event: float | None = None
    """From the request's first byte to the first event for its caller."""
    chunks: int | None = None
    bytes: int | None = None
    trace_id: str | None = None
    must_be_mended: bool = False
    """Whether an operator must mend the cause."""

    @property
    def label(self) -> str:
        """The reason as a metric label: a member of `METRIC_REASONS`."""
        return "none" if self.reason is None else metric_reason(self.reason)

    @property
    def own_reason(self) -> str:
        """The reason if it is one of ours, else empty: a router's word may be spelled like ours."""
        return "" if self.reason is None or isinstance(self.reason, RouterReason) else self.reason

    @property
    def outcome(self) -> Outcome:
        """How the request ended, seen from its caller."""
        if self.reason is None:
            return Outcome.OK
        return Outcome.CLIENT_GONE if self.own_reason == CLIENT_GONE else Outcome.ERROR
