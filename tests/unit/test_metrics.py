"""metrics: numbers that are counted, and the text that is written of them at scrape."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from eidproxy.errors import METRIC_REASONS
from eidproxy.monitoring.metrics import Distribution, Metrics, StreamCounters, start_loop_lag_sampler
from eidproxy.monitoring.record import RequestRecord
from eidproxy.vocabulary import NO_MODE, Mode, Outcome, Phase, Priority, Surface, WaitOutcome
from tests.lab.proxy import Sample, parse_metrics


def scraped(metrics: Metrics) -> dict[Sample, float]:
    return parse_metrics(metrics.expose("text/plain")[0].decode())


def sample(metrics: Metrics, name: str, **labels: str) -> float:
    return scraped(metrics)[f"eidproxy_{name}", frozenset(labels.items())]


def test_a_value_on_a_bound_is_below_it() -> None:
    distribution = Distribution((1.0, 2.5))
    for value in (0.5, 1.0, 1.1, 2.5, 9.0):
        distribution.observe(value)
    assert distribution.buckets() == [("1.0", 2), ("2.5", 4), ("+Inf", 5)]
    assert distribution.sum == pytest.approx(14.1)


def test_every_series_is_there_from_the_start_at_0() -> None:
    metrics = Metrics("1.2.3")
    samples = {key: value for key, value in scraped(metrics).items() if key[0].startswith("eidproxy_")}
    told = {"eidproxy_build_info": 1.0, "eidproxy_gate_backend_up": 1.0}
    nonzero = {name: value for (name, _), value in samples.items() if value and "start_time" not in name}
    assert nonzero == told
    reasons = {dict(labels)["reason"] for name, labels in samples if name == "eidproxy_requests_total"}
    assert reasons == set(METRIC_REASONS)
    waits = [labels for name, labels in samples if name == "eidproxy_gate_wait_seconds_count"]
    assert len(waits) == len(Priority) * len(WaitOutcome)
    assert sample(metrics, "build_info", version="1.2.3", python=dict(next(iter(_of(samples, "build_info"))))["python"])


def _of(samples: dict[Sample, float], name: str) -> list[frozenset[tuple[str, str]]]:
    return [labels for each, labels in samples if each == f"eidproxy_{name}"]


def test_an_ended_request_is_counted_by_its_reason_and_told_to_the_status() -> None:
    metrics = Metrics("0")
    for surface, mode, reason in (
        (Surface.PROXY, Mode.DAILY, None),
        (Surface.CHAT, Mode.DEEP, None),
        (Surface.PROXY, NO_MODE, "client_gone"),
        (Surface.PROXY, Mode.DEEP, "warming"),
    ):
        record = RequestRecord(request_id="r", surface=surface, mode=mode, reason=reason, status=200, seconds=0.3)
        metrics.count_request(record)
    assert metrics.outcomes() == {"ok": 2, "client_gone": 1, "warming": 1}
    for mode, outcome, reason in (
        (Mode.DAILY, Outcome.OK, "none"),
        (NO_MODE, Outcome.CLIENT_GONE, "client_gone"),
        (Mode.DEEP, Outcome.ERROR, "warming"),
    ):
        assert sample(metrics, "requests_total", surface="proxy", mode=mode, outcome=outcome, reason=reason) == 1
        assert sample(metrics, "request_duration_seconds_count", mode=mode, outcome=outcome) == 1


def test_what_runs_is_shown_as_it_is_now() -> None:
    metrics = Metrics("0")
    metrics.in_progress[Mode.DEEP, Phase.STREAMING] += 2
    metrics.draining, metrics.gate_backend_up = True, False
    assert sample(metrics, "requests_in_progress", mode="deep", phase="streaming") == 2
    assert (sample(metrics, "draining"), sample(metrics, "gate_backend_up")) == (1, 0)


def test_a_stream_is_counted_as_it_is_sent() -> None:
    metrics = Metrics("0")
    stream = metrics.streams[Mode.DAILY]
    stream.chunks, stream.bytes = 3, 400
    stream.intervals.observe(0.02)
    assert sample(metrics, "stream_chunks_total", mode="daily") == 3
    assert sample(metrics, "stream_bytes_total", mode="daily") == 400
    assert sample(metrics, "chunk_interval_seconds_count", mode="daily") == 1


def test_the_first_streams_are_sampled_and_then_each_sixteenth() -> None:
    counters = StreamCounters()
    sampled = [counters.samples_unknown() for _ in range(512)]
    assert all(sampled[:256])
    assert sampled[256:] == ([False] * 15 + [True]) * 16


@pytest.mark.parametrize(
    ("accept", "kind"),
    [("", "text/plain"), ("*/*", "text/plain"), ("application/openmetrics-text", "application/openmetrics-text")],
)
def test_a_scrape_is_written_as_it_is_asked_for(accept: str, kind: str) -> None:
    text, content_type = Metrics("0").expose(accept)
    assert content_type.partition(";")[0] == kind
    assert text.endswith(b"# EOF\n") is ("openmetrics" in kind)


def test_the_lag_is_how_late_a_timer_runs() -> None:
    metrics, now, due = Metrics("0"), 10.0, list[tuple[float, Callable[..., None], float]]()
    start_loop_lag_sampler(metrics, lambda *timer: due.append(timer), lambda: now)
    for late in (0.0, 0.25, -0.001):
        ((seconds, sample_lag, at),) = due
        assert (seconds, at) == (1.0, now + 1.0)
        due.clear()
        now = at + late
        sample_lag(at)
    assert metrics.loop_lag.sum == pytest.approx(0.25)
    assert sum(metrics.loop_lag.counts) == 3
