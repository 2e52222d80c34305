"""Metrics: plain numbers, counted where things happen and read at scrape; prometheus-client writes the text.

Labels are from closed sets and every series exists at 0 from the start. A counter is an attribute and a histogram a
list: each request counts a dozen things, and the client's own classes take a lock and a loop for each. A scrape asks
the gate and the wedge guards for their states; the relays count requests in progress.
"""

import platform
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, product
from operator import add
from typing import Generic, NamedTuple, Protocol, TypeVar

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from eidproxy.errors import CLIENT_GONE, METRIC_REASONS
from eidproxy.monitoring.record import RequestRecord
from eidproxy.vocabulary import (
    NO_MODE,
    RESPONSE_CODES,
    Deadline,
    Dropped,
    Mode,
    Outcome,
    Phase,
    Priority,
    SettleEnd,
    StreamEnd,
    Stripped,
    Surface,
    TokenKind,
    UpstreamState,
    WaitOutcome,
)

_WAIT_BOUNDS = (0.005, 0.05, 0.25, 1, 2.5, 5, 10, 20, 40, 60, 120, 300)
_HOLD_BOUNDS = (0.1, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 300)
_MARGIN_BOUNDS = (0, 1, 5, 15, 30, 60, 120, 180, 240, 290)
_FIRST_EVENT_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 120)
INTERVAL_BOUNDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5, 15, 60)
_SHARE_BOUNDS = (0.1, 0.25, 0.5, 0.75, 0.9, 1)
_SAMPLED_AT_FIRST = 256
_SAMPLED_EVERY = 16
"""Counting unknown fields costs as much as reading three events, and a router sends the same ones in every stream. So
only the first 256 streams of a mode and then each 16th are counted."""
_LAG_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class QueueStates(Protocol):
    """The part of `gate.GateStatistics` that the scrape reads."""

    @property
    def slots(self) -> int: ...
    @property
    def in_use(self) -> int: ...
    @property
    def settling(self) -> int: ...
    @property
    def queue_limit(self) -> int: ...
    @property
    def depth(self) -> dict[Priority, int]: ...
    @property
    def oldest_wait_seconds(self) -> dict[Priority, float]: ...


class UpstreamStates(Protocol):
    """The part of `wedge.GuardStatistics` that the scrape reads."""

    @property
    def state(self) -> UpstreamState: ...
    @property
    def silent_ends_total(self) -> int: ...
    @property
    def wedges_total(self) -> int: ...


class Count:
    """One series of a counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, more: int = 1) -> None:
        """Add `more` to the counter."""
        self.value += more


class Distribution:
    """One series of a histogram: how many values fell between two bounds, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value, in the unit of the metric's name."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def add(self, counts: Sequence[int], total: float) -> None:
        """Count many values at once: how many fell between two bounds, and their sum."""
        self.counts = [*map(add, self.counts, counts)]
        self.sum += total

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, as they are exposed."""
        names = (*map(str, map(float, self.bounds)), "+Inf")
        return list(zip(names, accumulate(self.counts), strict=True))


class StreamCounters:
    """The counters of writes to callers for one mode: chunks, bytes, seconds since the write before."""

    __slots__ = ("_streams", "bytes", "chunks", "intervals")

    def __init__(self) -> None:
        self.chunks = 0
        self.bytes = 0
        self.intervals = Distribution(INTERVAL_BOUNDS)
        self._streams = 0

    def samples_unknown(self) -> bool:
        """Count a new stream and return whether its unknown fields are counted."""
        self._streams += 1
        return self._streams <= _SAMPLED_AT_FIRST or self._streams % _SAMPLED_EVERY == 0


_Series = TypeVar("_Series", Count, Distribution)


class _Family(NamedTuple, Generic[_Series]):
    """A metric: its name, its help, the names of its labels and its series by their values."""

    name: str
    text: str
    labels: tuple[str, ...]
    series: dict[tuple[str, ...], _Series]


class Metrics(Collector):
    """Every metric there is (contract, 8). Series are made here, once."""

    def __init__(self, version: str) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=False)
        self.streams = {mode: StreamCounters() for mode in Mode}
        self.in_progress = {(mode, phase): 0 for mode in Mode for phase in Phase}
        self.flush_shortcuts: Callable[[], None] | None = None
        """Called before a scrape, to count events that shortcuts passed on past the interpreter."""
        self.queue_states: Callable[[], QueueStates] | None = None
        self.upstream_states: Callable[[], Mapping[Mode, UpstreamStates]] | None = None
        self.draining = False
        self.gate_backend_up = True
        """Whether the gate's store answers; always true when the gate is in the process."""
        self._version = version
        self._started_at = time.time()
        self._counters: list[_Family[Count]] = []
        self._histograms: list[_Family[Distribution]] = []
        self._make_request_metrics()
        self._make_gate_metrics()
        self._make_stream_metrics()
        self._make_process_metrics()
        # Under prometheus-client's own names, which common dashboards and alerts expect.
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        registry.register(self)

    def _make_request_metrics(self) -> None:
        modes = (*Mode, NO_MODE)
        requests = self._counter(
            "requests", "Ended requests by outcome and reason.", ("surface", "mode", "outcome", "reason"),
            ((s, m, _outcome(r), r) for s in Surface for m in modes for r in METRIC_REASONS),
        )  # fmt: skip
        self.requests = {(s, m, r): requests[s, m, _outcome(r), r] for s, m, _, r in requests}
        self.request_duration = self._histogram(
            "request_duration_seconds", "Time from the request's first byte to its end.", _HOLD_BOUNDS,
            ("mode", "outcome"), product(modes, Outcome),
        )  # fmt: skip

    def _make_gate_metrics(self) -> None:
        self.gate_wait = self._histogram(
            "gate_wait_seconds",
            "Time that requests waited in the gate.",
            _WAIT_BOUNDS,
            ("priority", "outcome"),
            product(Priority, WaitOutcome),
        )
        self.gate_hold = self._histogram_by_label(
            "gate_hold_seconds", "Time that slots were held.", _HOLD_BOUNDS, "priority", Priority
        )
        self.gate_settle = self._histogram_by_label(
            "gate_settle_seconds", "Time that slots were kept for callers that had left, by what ended it.",
            _HOLD_BOUNDS, "end", SettleEnd,
        )  # fmt: skip
        self.forced_releases = self._counter(
            "gate_forced_releases", "Slots taken back from a holder that kept them too long. Must stay 0."
        )[()]
        self.lease_lost = self._counter("gate_lease_lost", "Leases of a shared gate that were lost while held.")[()]

    def _make_stream_metrics(self) -> None:
        self.deadline_exceeded = self._counter(
            "deadline_exceeded", "Deadlines that passed.", ("mode", "deadline"), product(Mode, Deadline)
        )
        self.deadline_margin = self._histogram_by_label(
            "deadline_margin_seconds", "Time left to the deadline at a request's end.", _MARGIN_BOUNDS, "mode", Mode
        )
        self.first_token = self._histogram_by_label(
            "time_to_first_token_seconds", "Time from the request's first byte to the first event for its caller.",
            _FIRST_EVENT_BOUNDS, "mode", Mode,
        )  # fmt: skip
        self.first_byte = self._histogram_by_label(
            "upstream_first_byte_seconds",
            "Time from the grant to the router's first byte.",
            _FIRST_EVENT_BOUNDS,
            "mode",
            Mode,
        )
        self.allowance_used = self._histogram_by_label(
            "first_event_allowance_used_ratio", "Wait for the first event as a fraction of the request's allowance.",
            _SHARE_BOUNDS, "mode", Mode,
        )  # fmt: skip
        self.stream_ends = self._counter(
            "stream_ends", "Ended upstream streams by how they ended.", ("mode", "end"), product(Mode, StreamEnd)
        )
        self.tokens = self._counter(
            "upstream_tokens", "Tokens that the router reported as usage.",
            ("mode", "kind"), product(Mode, TokenKind),
        )  # fmt: skip
        stripped = self._counter(
            "fields_stripped",
            "Upstream fields removed from events. `other` is a sample: each mode's first 256 streams, then every 16th.",
            ("field",),
            product(Stripped),
        )
        self.stripped = {field: stripped[field,] for field in Stripped}
        dropped = self._counter("events_dropped", "Upstream events that were dropped.", ("kind",), product(Dropped))
        self.dropped = {kind: dropped[kind,] for kind in Dropped}
        self.responses = self._counter(
            "upstream_responses", "Router responses by class of status.",
            ("mode", "code"), product(Mode, RESPONSE_CODES),
        )  # fmt: skip

    def _make_process_metrics(self) -> None:
        self.loop_lag = self._histogram(
            "event_loop_lag_seconds", "Delay of an event loop timer that is due every second.", _LAG_BOUNDS
        )[()]
        self.rules_missing = self._counter(
            "chat_rules_missing", "Chat requests refused for an unreadable rules or persona file."
        )[()]
        self.log_dropped = self._counter("log_lines_dropped", "Log lines dropped because the output was blocked.")[()]
        intervals: dict[tuple[str, ...], Distribution] = {(m,): self.streams[m].intervals for m in Mode}
        self._histograms.append(
            _Family("chunk_interval_seconds", "Time between two writes of a stream to a caller.", ("mode",), intervals)
        )

    def _counter(
        self, name: str, text: str, labels: tuple[str, ...] = (), values: Iterable[tuple[str, ...]] = ((),)
    ) -> dict[tuple[str, ...], Count]:
        series = {value: Count() for value in values}
        self._counters.append(_Family(name, text, labels, series))
        return series

    def _histogram(
        self,
        name: str,
        text: str,
        bounds: tuple[float, ...],
        labels: tuple[str, ...] = (),
        values: Iterable[tuple[str, ...]] = ((),),
    ) -> dict[tuple[str, ...], Distribution]:
        series = {value: Distribution(bounds) for value in values}
        self._histograms.append(_Family(name, text, labels, series))
        return series

    def _histogram_by_label(
        self, name: str, text: str, bounds: tuple[float, ...], label: str, values: Iterable[str]
    ) -> dict[str, Distribution]:
        """Return the series of a new histogram with one label, by the label's value."""
        series = self._histogram(name, text, bounds, (label,), product(values))
        return {value: distribution for (value,), distribution in series.items()}

    def count_request(self, record: RequestRecord) -> None:
        """Count one ended request."""
        label = record.label
        self.requests[record.surface, record.mode, label].inc()
        self.request_duration[record.mode, _outcome(label)].observe(record.seconds)

    def outcomes(self) -> dict[str, int]:
        """Return how many requests ended with each reason, without those at 0, for `/status`."""
        totals: dict[str, int] = {}
        for (_, _, reason), count in self.requests.items():
            if count.value:
                word = "ok" if reason == "none" else reason
                totals[word] = totals.get(word, 0) + count.value
        return totals

    def writer(self, accept: str) -> tuple[Callable[[], bytes], str]:
        """Return a function that writes the text of a scrape, and its content type: OpenMetrics when `accept` asks."""
        encoder, content_type = choose_encoder(accept)
        return lambda: encoder(self.registry), content_type

    def expose(self, accept: str) -> tuple[bytes, str]:
        """Return the text of a scrape and its content type."""
        write, content_type = self.writer(accept)
        return write(), content_type

    def collect(self) -> Iterator[Metric]:
        """Yield every metric family as prometheus-client's types."""
        if self.flush_shortcuts is not None:
            self.flush_shortcuts()
        for counters in self._counters:
            counter = CounterMetricFamily(f"eidproxy_{counters.name}", counters.text, labels=counters.labels)
            for values, count in counters.series.items():
                counter.add_metric(values, count.value)
            yield counter
        for histograms in self._histograms:
            histogram = HistogramMetricFamily(f"eidproxy_{histograms.name}", histograms.text, labels=histograms.labels)
            for values, distribution in histograms.series.items():
                histogram.add_metric(values, distribution.buckets(), distribution.sum)
            yield histogram
        chunks = CounterMetricFamily("eidproxy_stream_chunks", "Chunks sent to callers.", labels=("mode",))
        sizes = CounterMetricFamily("eidproxy_stream_bytes", "Bytes of chunks sent to callers.", labels=("mode",))
        for mode, stream in self.streams.items():
            chunks.add_metric((mode,), stream.chunks)
            sizes.add_metric((mode,), stream.bytes)
        yield from (chunks, sizes)
        running = self.in_progress.items()
        yield _gauge("requests_in_progress", "Requests of the main job in progress.", running, ("mode", "phase"))
        for name, text, value in (
            ("draining", "1 while the server drains.", self.draining),
            ("gate_backend_up", "1 while the gate's store answers; always 1 in the process.", self.gate_backend_up),
            ("start_time_seconds", "Start time of the process in seconds since the epoch.", self._started_at),
        ):
            yield _gauge(name, text, [((), value)])
        built = (self._version, platform.python_version())
        yield _gauge("build_info", "Always 1; the versions are labels.", [(built, 1)], ("version", "python"))
        if self.queue_states is not None:
            yield from _queue_families(self.queue_states())
        if self.upstream_states is not None:
            yield from _upstream_families(self.upstream_states())


def _gauge(
    name: str, text: str, series: Iterable[tuple[Sequence[str], float]], labels: Sequence[str] = ()
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"eidproxy_{name}", text, labels=labels)
    for values, value in series:
        family.add_metric(values, value)
    return family


def _queue_families(states: QueueStates) -> Iterator[Metric]:
    for name, text, value in (
        ("slots", "Maximum number of concurrent requests at the router.", states.slots),
        ("slots_in_use", "Slots in use.", states.in_use),
        ("settling", "Slots kept for callers that have left.", states.settling),
        ("queue_limit", "Maximum number of waiting requests.", states.queue_limit),
    ):
        yield _gauge(f"gate_{name}", text, [((), value)])
    depth, oldest = states.depth, states.oldest_wait_seconds
    yield _gauge("gate_queue_depth", "Requests in the wait queue.", [((p,), depth[p]) for p in Priority], ("priority",))
    yield _gauge(
        "gate_oldest_wait_seconds", "Wait of the oldest request in the queue.",
        [((p,), oldest[p]) for p in Priority], ("priority",),
    )  # fmt: skip


def _upstream_families(states: Mapping[Mode, UpstreamStates]) -> Iterator[Metric]:
    yield _gauge(
        "upstream_state", "1 for the current state of the model server: live, suspect (silent once) or wedged.",
        (((mode, state), float(found.state is state)) for mode, found in states.items() for state in UpstreamState),
        ("mode", "state"),
    )  # fmt: skip
    silent = CounterMetricFamily(
        "eidproxy_upstream_silent_ends", "Requests that got no first event in time.",
        labels=("mode",),
    )  # fmt: skip
    wedges = CounterMetricFamily("eidproxy_upstream_wedges", "Times the model server became wedged.", labels=("mode",))
    for mode, found in states.items():
        silent.add_metric((mode,), found.silent_ends_total)
        wedges.add_metric((mode,), found.wedges_total)
    yield from (silent, wedges)


def _outcome(reason: str) -> Outcome:
    if reason == "none":
        return Outcome.OK
    return Outcome.CLIENT_GONE if reason == CLIENT_GONE else Outcome.ERROR


def start_loop_lag_sampler(metrics: Metrics, call_later: Callable[..., object], clock: Callable[[], float]) -> None:
    """Measure each second how late a timer of the loop runs."""
    interval = 1.0

    def sample(due: float) -> None:
        now = clock()
        metrics.loop_lag.observe(max(now - due, 0.0))
        call_later(interval, sample, now + interval)

    call_later(interval, sample, clock() + interval)
