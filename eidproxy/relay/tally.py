"""What the router did in one request, counted for the metrics when the request ends."""

from eidproxy.errors import DEADLINES, STREAM_ENDS
from eidproxy.monitoring.metrics import Metrics
from eidproxy.relay.answer import Times
from eidproxy.relay.stream import Stream
from eidproxy.vocabulary import Mode, StreamEnd


def count_exchange(
    metrics: Metrics, mode: Mode, stream: Stream, times: Times, status: int | None, reason: str | None, now: float
) -> None:
    """Count what a request's stream dropped and stripped, its tokens, its deadline, and how the router's answer ended.

    `status` is the router's, None when no head came. `reason` is the reason of an error if it is a word of ours, empty
    if it is the router's, and None for a whole answer.
    """
    sanitizer = stream.sanitizer
    for kind, count in sanitizer.dropped.items():
        metrics.dropped[kind].inc(count)
    for field, count in stream.stripped().items():
        if count:
            metrics.stripped[field].inc(count)
    for token, count in sanitizer.tokens.items():
        metrics.tokens[mode, token].inc(count)
    if times.granted_at is not None:
        metrics.deadline_margin[mode].observe(max(times.deadline_at - now, 0))
        if status is None and reason != "egress_blocked":
            metrics.responses[mode, "none"].inc()
    if (clock := DEADLINES.get(reason or "")) is not None:
        metrics.deadline_exceeded[mode, clock].inc()
    if status == 200:
        if reason is None:
            end = StreamEnd.DONE if sanitizer.said_done else StreamEnd.NO_DONE
        else:
            end = STREAM_ENDS.get(reason, StreamEnd.UPSTREAM_ERROR)
        metrics.stream_ends[mode, end].inc()
