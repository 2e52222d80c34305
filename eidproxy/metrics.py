"""Metrics: one registry of our own, labels from closed sets, every series there at 0 from the start.

What happens once a request goes through prometheus-client. What happens once an event is counted in plain attributes
(`StreamCounters`) that are read at scrape, and what is a state (the gate, requests in progress) is asked for at scrape.
"""

import platform
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from eidproxy.errors import CLIENT_GONE, METRIC_REASONS
from eidproxy.vocabulary import (
    NO_MODE,
    RESPONSE_CODES,
    Deadline,
    Dropped,
    Mode,
    Outcome,
    Phase,
    Priority,
    StreamEnd,
    Stripped,
    Surface,
    TokenKind,
    WaitOutcome,
)

_WAIT = (0.005, 0.05, 0.25, 1, 2.5, 5, 10, 20, 40, 60, 120, 300)
_HOLD = (0.1, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 300)
_MARGIN = (0, 1, 5, 15, 30, 60, 120, 180, 240, 290)
_FIRST = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 120)
_INTERVAL = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5, 15, 60)
_LAG = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class QueueStates(Protocol):
    """The part of `gate.GateStatistics` that the scrape reads."""

    @property
    def slots(self) -> int: ...
    @property
    def in_use(self) -> int: ...
    @property
    def queue_limit(self) -> int: ...
    @property
    def depth(self) -> dict[Priority, int]: ...
    @property
    def oldest_wait_seconds(self) -> dict[Priority, float]: ...


class StreamCounters:
    """What is counted for each event of one mode: plain attributes, since this is the hot path."""

    __slots__ = ("bytes", "chunks", "interval_counts", "interval_seconds", "streaming")

    def __init__(self) -> None:
        self.chunks = 0
        self.bytes = 0
        self.interval_counts = [0] * (len(_INTERVAL) + 1)
        self.interval_seconds = 0.0
        self.streaming = 0

    def delivered(self, chunks: int, size: int, interval: float | None) -> None:
        """Count one write to a caller: its chunks, its bytes and the seconds since the write before it."""
        self.chunks += chunks
        self.bytes += size
        if interval is not None:
            self.interval_counts[bisect_left(_INTERVAL, interval)] += 1
            self.interval_seconds += interval


class Metrics(Collector):
    """Every metric of the contract's section 8. Children are made here, once."""

    def __init__(self, version: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry(auto_describe=False)
        self.streams = {mode: StreamCounters() for mode in Mode}
        self.in_progress = {(mode, phase): 0 for mode in Mode for phase in Phase}
        self.queue_states: Callable[[], QueueStates] | None = None
        self.draining = False

        def counter(name: str, text: str, labels: Iterable[str] = ()) -> Counter:
            return Counter(f"eidproxy_{name}", text, tuple(labels), registry=registry)

        def histogram(name: str, text: str, labels: Iterable[str], buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"eidproxy_{name}", text, tuple(labels), registry=registry, buckets=buckets)

        requests = counter("requests_total", "Requests by how they ended.", ("surface", "mode", "outcome", "reason"))
        modes = (*Mode, NO_MODE)
        self.requests = {
            (surface, mode, reason): requests.labels(surface, mode, _outcome(reason), reason)
            for surface in Surface
            for mode in modes
            for reason in METRIC_REASONS
        }
        duration = histogram(
            "request_duration_seconds", "From the request's first byte to its end.", ("mode", "outcome"), _HOLD
        )
        self.request_duration = {(m, o): duration.labels(m, o) for m in modes for o in Outcome}
        wait = histogram("gate_wait_seconds", "Waits in the gate.", ("priority", "outcome"), _WAIT)
        self.gate_wait = {(p, o): wait.labels(p, o) for p in Priority for o in WaitOutcome}
        hold = histogram("gate_hold_seconds", "How long slots were held.", ("priority",), _HOLD)
        self.gate_hold = {p: hold.labels(p) for p in Priority}
        self.forced_releases = counter(
            "gate_forced_releases_total", "Slots taken back from a holder that kept them too long. Must stay 0."
        )
        self.lease_lost = counter("gate_lease_lost_total", "Leases of a shared gate that were lost while held.")
        self.gate_backend_up = Gauge(
            "eidproxy_gate_backend_up", "1 while the gate's store answers; always 1 in the process.", registry=registry
        )
        self.gate_backend_up.set(1)
        exceeded = counter("deadline_exceeded_total", "Clocks that ran out.", ("mode", "deadline"))
        self.deadline_exceeded = {(m, d): exceeded.labels(m, d) for m in Mode for d in Deadline}

        def by_mode(name: str, text: str, buckets: tuple[float, ...]) -> dict[Mode, Histogram]:
            family = histogram(name, text, ("mode",), buckets)
            return {mode: family.labels(mode) for mode in Mode}

        self.deadline_margin = by_mode("deadline_margin_seconds", "Wall clock left at the end of a request.", _MARGIN)
        self.first_token = by_mode(
            "time_to_first_token_seconds", "From the request's first byte to the first event for its caller.", _FIRST
        )
        self.first_byte = by_mode("upstream_first_byte_seconds", "From the grant to the router's first byte.", _FIRST)
        ends = counter("stream_ends_total", "How upstream streams ended.", ("mode", "end"))
        self.stream_ends = {(m, e): ends.labels(m, e) for m in Mode for e in StreamEnd}
        tokens = counter(
            "upstream_tokens_total", "Tokens by the router's usage, which no caller sees.", ("mode", "kind")
        )
        self.tokens = {(m, k): tokens.labels(m, k) for m in Mode for k in TokenKind}
        stripped = counter("fields_stripped_total", "Upstream fields taken out of events.", ("field",))
        self.stripped = {field: stripped.labels(field) for field in Stripped}
        dropped = counter("events_dropped_total", "Upstream events not passed on.", ("kind",))
        self.dropped = {kind: dropped.labels(kind) for kind in Dropped}
        responses = counter("upstream_responses_total", "Answers of the router by class of status.", ("mode", "code"))
        self.responses = {(m, c): responses.labels(m, c) for m in Mode for c in RESPONSE_CODES}
        self.loop_lag = Histogram(
            "eidproxy_event_loop_lag_seconds",
            "How late a timer of the event loop ran.",
            registry=registry,
            buckets=_LAG,
        )
        self.rules_missing = counter("chat_rules_missing_total", "Chat requests refused for want of a rules file.")
        self.log_dropped = counter("log_lines_dropped_total", "Log lines dropped since nobody read the output.")
        start = Gauge(
            "eidproxy_start_time_seconds", "When the process started, in seconds of the epoch.", registry=registry
        )
        start.set(time.time())
        info = Gauge("eidproxy_build_info", "1; what runs.", ("version", "python"), registry=registry)
        info.labels(version, platform.python_version()).set(1)
        ProcessCollector(namespace="eidproxy", registry=registry)
        registry.register(self)

    def count_request(self, surface: Surface, mode: str, reason: str, seconds: float) -> None:
        """Count one ended request. `reason` is a member of METRIC_REASONS."""
        self.requests[surface, mode, reason].inc()
        self.request_duration[mode, _outcome(reason)].observe(seconds)

    def outcomes(self) -> dict[str, int]:
        """How many requests ended with each reason so far, those that ever happened, for `/status`."""
        totals: dict[str, int] = {}
        for (_, _, reason), child in self.requests.items():
            if count := int(child._value.get()):  # the only way to read a child without a scrape
                word = "ok" if reason == "none" else reason
                totals[word] = totals.get(word, 0) + count
        return totals

    def expose(self, accept: str) -> tuple[bytes, str]:
        """The text of a scrape and its content type: OpenMetrics when it is asked for."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self.registry), content_type

    def collect(self) -> Iterator[Metric]:
        """What is read at scrape instead of being counted."""
        family = GaugeMetricFamily(
            "eidproxy_requests_in_progress", "Requests of the main job that run.", labels=("mode", "phase")
        )
        for (mode, phase), count in self.in_progress.items():
            family.add_metric((mode, phase), count)
        yield family
        chunks = CounterMetricFamily("eidproxy_stream_chunks", "Chunks sent to callers.", labels=("mode",))
        sizes = CounterMetricFamily("eidproxy_stream_bytes", "Bytes of chunks sent to callers.", labels=("mode",))
        intervals = HistogramMetricFamily(
            "eidproxy_chunk_interval_seconds", "Between two writes of a stream to its caller.", labels=("mode",)
        )
        for mode, counters in self.streams.items():
            chunks.add_metric((mode,), counters.chunks)
            sizes.add_metric((mode,), counters.bytes)
            total, buckets = 0, []
            for bound, count in zip((*map(str, map(float, _INTERVAL)), "+Inf"), counters.interval_counts, strict=True):
                total += count
                buckets.append((bound, total))
            intervals.add_metric((mode,), buckets, counters.interval_seconds)
        yield from (chunks, sizes, intervals)
        draining = GaugeMetricFamily("eidproxy_draining", "1 while the server drains.")
        draining.add_metric((), self.draining)
        yield draining
        if self.queue_states is not None:
            yield from _queue_families(self.queue_states())


def _queue_families(states: QueueStates) -> Iterator[Metric]:
    for name, text, value in (
        ("slots", "Requests that may be at the router at once.", states.slots),
        ("slots_in_use", "Slots that are held.", states.in_use),
        ("queue_limit", "Requests that may wait.", states.queue_limit),
    ):
        single = GaugeMetricFamily(f"eidproxy_gate_{name}", text)
        single.add_metric((), value)
        yield single
    depth = GaugeMetricFamily("eidproxy_gate_queue_depth", "Requests that wait.", labels=("priority",))
    oldest = GaugeMetricFamily(
        "eidproxy_gate_oldest_wait_seconds", "The longest wait of those who wait.", labels=("priority",)
    )
    for priority in Priority:
        depth.add_metric((priority,), states.depth[priority])
        oldest.add_metric((priority,), states.oldest_wait_seconds[priority])
    yield from (depth, oldest)


def _outcome(reason: str) -> Outcome:
    if reason == "none":
        return Outcome.OK
    return Outcome.CLIENT_GONE if reason == CLIENT_GONE else Outcome.ERROR


def loop_lag_sampler(metrics: Metrics, call_later: Callable[..., object], clock: Callable[[], float]) -> None:
    """Measure, each second, how late a timer runs."""
    interval = 1.0

    def sample(due: float) -> None:
        now = clock()
        metrics.loop_lag.observe(max(now - due, 0.0))
        call_later(interval, sample, now + interval)

    call_later(interval, sample, clock() + interval)
