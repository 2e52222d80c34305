"""What an operator sees (contract, P10 and 8): every series from the start, no new one, no word of anybody."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.lab.callers import at_rest
from tests.lab.client import ANSWER_CANARY, CHAT, PROMPT_CANARY, RawClient, ask, chat, request_bytes
from tests.lab.proxy import Proxy, Sample, impatient, sample
from tests.lab.router import Router
from tests.lab.script import (
    FINGERPRINT,
    LAST_CHUNK,
    MODEL_PATH,
    Drained,
    Fin,
    Reset,
    Send,
    Stall,
    chunk,
    completion_chunk,
    event,
    status,
    stream,
    stream_head,
)
from tests.lab.tools import size as amount
from tests.lab.tools import until

MODES = ("daily", "deep")
PRIORITIES = ("foreground", "background")
OUTCOMES = ("ok", "error", "client_gone")

LABELS: dict[str, dict[str, tuple[str, ...]]] = {
    "requests_in_progress": {"mode": MODES, "phase": ("queued", "upstream", "streaming")},
    "request_duration_seconds": {"mode": (*MODES, "none"), "outcome": OUTCOMES},
    "gate_slots": {},
    "gate_slots_in_use": {},
    "gate_settling": {},
    "gate_settle_seconds": {"end": ("first_event", "elapsed", "deadline", "draining")},
    "upstream_state": {"mode": MODES, "state": ("live", "suspect", "wedged")},
    "upstream_silent_ends_total": {"mode": MODES},
    "upstream_wedges_total": {"mode": MODES},
    "first_event_allowance_used_ratio": {"mode": MODES},
    "gate_queue_limit": {},
    "gate_queue_depth": {"priority": PRIORITIES},
    "gate_oldest_wait_seconds": {"priority": PRIORITIES},
    "gate_wait_seconds": {
        "priority": PRIORITIES,
        "outcome": ("granted", "full", "expired", "cancelled", "draining"),
    },
    "gate_hold_seconds": {"priority": PRIORITIES},
    "gate_forced_releases_total": {},
    "deadline_exceeded_total": {"mode": MODES, "deadline": ("queue", "connect", "read", "write", "total")},
    "deadline_margin_seconds": {"mode": MODES},
    "time_to_first_token_seconds": {"mode": MODES},
    "upstream_first_byte_seconds": {"mode": MODES},
    "chunk_interval_seconds": {"mode": MODES},
    "stream_chunks_total": {"mode": MODES},
    "stream_bytes_total": {"mode": MODES},
    "stream_ends_total": {
        "mode": MODES,
        "end": ("done", "no_done", "truncated", "upstream_error", "deadline", "client_gone", "draining"),
    },
    "upstream_tokens_total": {"mode": MODES, "kind": ("prompt", "completion")},
    "fields_stripped_total": {"field": ("model", "usage", "other")},
    "events_dropped_total": {"kind": ("not_json", "not_object", "empty", "too_large")},
    "upstream_responses_total": {"mode": MODES, "code": ("2xx", "3xx", "4xx", "5xx", "none")},
    "event_loop_lag_seconds": {},
    "draining": {},
    "start_time_seconds": {},
}
"""Every metric of the contract but `requests_total` and `build_info`, with all its label values."""

HISTOGRAMS = {name for name in LABELS if name.endswith(("_seconds", "_ratio"))}
HISTOGRAMS -= {"gate_oldest_wait_seconds", "start_time_seconds"}

REASONS = [
    *("none", "client_gone", "invalid_json", "invalid_request", "unsupported_field", "unsupported_content"),
    *("invalid_priority", "unauthorized", "cross_site", "model_not_found", "not_found", "method_not_allowed"),
    *("request_timeout", "body_too_large", "unsupported_media_type", "host_not_allowed", "headers_too_large"),
    *("system_role_forbidden", "message_too_long", "too_many_turns", "conversation_too_long"),
    *("gate_queue_full", "gate_wait_timeout", "draining", "overloaded", "gate_unavailable", "macbook_unavailable"),
    *("warming", "context_too_long", "prompt_too_long"),
    *("editor_busy", "upstream_cold", "provider_not_configured", "upstream_502", "router_503", "router_http"),
    *("router_error", "router_ConnectError", "router_ConnectTimeout", "router_ReadError", "router_ReadTimeout"),
    *("router_WriteError", "router_WriteTimeout", "router_RemoteProtocolError", "upstream_truncated"),
    *("upstream_silent", "upstream_wedged"),
    *("upstream_error", "upstream_protocol_error", "stream_deadline_exceeded", "rules_missing"),
    *("router_rejected", "egress_blocked", "internal_error", "other"),
]


def expected_samples() -> set[Sample]:
    """The samples that must be there, buckets left out."""
    found: set[Sample] = set()
    for name, labels in LABELS.items():
        suffixes = ("_count", "_sum") if name in HISTOGRAMS else ("",)
        for values in itertools.product(*labels.values()):
            pairs = frozenset(zip(labels, values, strict=True))
            found |= {(f"eidproxy_{name}{suffix}", pairs) for suffix in suffixes}
    for surface, mode, reason in itertools.product(("proxy", "chat"), (*MODES, "none"), REASONS):
        outcome = {"none": "ok", "client_gone": "client_gone"}.get(reason, "error")
        pairs = frozenset({"surface": surface, "mode": mode, "outcome": outcome, "reason": reason}.items())
        found.add(("eidproxy_requests_total", pairs))
    return found


def hostile(choose: random.Random, number: int) -> str:
    """A value that would make a bad label and a bad log line."""
    word = choose.choice(["x", "{}", '"', "\\", "%0a", "é", "a=b", "../", "$(id)", "${jndi}", "level=info", "\t"])
    return f"hostile-{number}-{word * choose.randint(1, 5)}"


def storm(router: Router, proxy: Proxy, count: int, seed: int) -> None:
    """Hostile values in each place a caller and a router can put one."""
    choose = random.Random(seed)
    client = RawClient(proxy)
    for number in range(count):
        word = hostile(choose, number)
        headers: dict[str, str] = {}
        body: Any = chat(choose.choice(["daily", "deep"]), choose.random() < 0.5, say=f"{PROMPT_CANARY} {word}")
        path, router.script = CHAT, stream([ANSWER_CANARY])
        match choose.randrange(9):
            case 0:
                body["model"] = word
            case 1:
                body[word] = word
            case 2:
                headers["X-Eid-Priority"] = word.encode().decode("latin-1")
            case 3:
                headers["X-Request-Id"] = headers["traceparent"] = "/" + word.encode().decode("latin-1")
            case 4:
                path = "/" + "".join(letter for letter in word if letter.isalnum())
            case 5:
                router.script = status(choose.choice([429, 502, 503, 599]), {"error": {"type": f"hostile_{number}"}})
            case 6:
                router.script = [Send(stream_head() + chunk(event({"error": {"type": f"hostile_{number}"}})))]
            case 7:
                # A reason within the alphabet, in a stream that began.
                said = chunk(event(completion_chunk({"content": ANSWER_CANARY}, model=word)))
                router.script = [Send(stream_head() + said), Send(chunk(event({"error": {"type": f"h{number}"}})))]
            case _:
                router.script = [Send(stream_head() + chunk(event(completion_chunk({}, word)) + b": x\n\n")), Fin()]
        client.send(request_bytes("POST", path, body, headers))
        answer = client.read_head()
        client.read_body()
        if answer.get("Connection") == "close":
            client.close()
            client = RawClient(proxy)
    client.close()


FIELDS = {
    *("event", "request_id", "surface", "mode", "priority", "outcome", "reason", "status", "gate_wait_ms", "ttft_ms"),
    *("total_ms", "chunks", "bytes", "trace_id", "left_out", "level", "timestamp"),
}


def test_everything_an_operator_sees(router: Router, seed: int) -> None:
    """One life of a process: the start, a storm of hostile values, each kind of end; then all output is read."""
    count = amount(1000, 20_000)
    with Proxy(
        router,
        EIDPROXY_LOG_LEVEL="debug",
        PYTHONASYNCIODEBUG=1,
        EIDPROXY_ROUTER_ASK_USAGE="true",
        **impatient(0.3),
        EIDPROXY_SERVER_ALLOWED_HOSTS="localhost,127.0.0.1",
        canaries=["hostile", "Traceback"],
    ) as proxy:
        began = proxy.metrics()
        check_start(began)
        storm(router, proxy, count, seed)
        ends(router, proxy)
        at_rest(router, proxy)
        busy = proxy.cpu_seconds()
        ended = proxy.metrics()
        took = proxy.cpu_seconds() - busy
        text = proxy.get("/metrics").body
        print(f"EIDPROXY metrics: {len(ended)} samples, {len(ended) - len(began)} new after {count} hostile values, "
              f"scrape {took * 1e3:.1f} ms")  # fmt: skip
        check_no_new_series(began, ended)
        assert took < 0.1  # of a processor, so that no load counts
        assert max(value for (name, _), value in ended.items() if name == "eidproxy_gate_forced_releases_total") == 0
        everything = proxy.output() + text + proxy.get("/status").body + proxy.get("/v1/models").body
        for word in (PROMPT_CANARY, ANSWER_CANARY, MODEL_PATH, FINGERPRINT, "mac-mini", "qwen-macbook", "hostile"):
            assert word.encode() not in everything, word
        for line in proxy.log():
            check_line(line)
        assert not [line for line in proxy.log() if line["event"] == "fault"]
        total = sum(value for (name, _), value in proxy.metrics().items() if name == "eidproxy_requests_total")

        def told() -> int:
            return sum(1 + line.get("left_out", 0) for line in proxy.log() if line["event"] == "request")

        # Each was counted once and told once: in a line of its own, or in the count of refusals that have none.
        until(lambda: told() == total)


def check_no_new_series(before: dict[Sample, float], after: dict[Sample, float]) -> None:
    """Nothing anybody said has become a label."""
    assert set(after) == set(before)


BY_PATH = """
from prometheus_client import Counter
from eidproxy.endpoints import Endpoints
admit = Endpoints.admit
def counted(endpoints, head):
    if not hasattr(Endpoints, "paths"):
        registry = endpoints.services.metrics.registry
        Endpoints.paths = Counter("eidproxy_paths_total", "By path.", ("path",), registry=registry)
    Endpoints.paths.labels(head.path).inc()
    return admit(endpoints, head)
Endpoints.admit = counted
"""


def test_control_a_label_of_a_caller_is_noticed() -> None:
    """Control: with a counter by path, as one would write it, the same storm makes series."""
    with Router() as router, Proxy(router, planted=BY_PATH) as proxy:
        proxy.metrics()
        began = proxy.metrics()
        storm(router, proxy, 40, seed=1)
        with pytest.raises(AssertionError, match="hostile"):
            check_no_new_series(began, proxy.metrics())


def check_start(samples: dict[Sample, float]) -> None:
    """Every series of (contract, 8) is there, at 0, but those that say what is."""
    missing = expected_samples() - set(samples)
    assert not missing, sorted(missing)[:5]
    own = {key for key in samples if key[0].startswith("eidproxy_") and not key[0].endswith("_bucket")}
    extra = {name for name, _ in own - expected_samples()}
    assert extra <= {
        "eidproxy_build_info",
        "eidproxy_chat_rules_missing_total",
        "eidproxy_log_lines_dropped_total",
        "eidproxy_gate_backend_up",
        "eidproxy_gate_lease_lost_total",
    }, extra
    not_zero = {name for (name, _), value in samples.items() if value and name.startswith("eidproxy_")}
    assert not_zero <= {
        "eidproxy_gate_slots",
        "eidproxy_gate_queue_limit",
        "eidproxy_gate_backend_up",
        "eidproxy_upstream_state",
        "eidproxy_start_time_seconds",
        "eidproxy_build_info",
        # A second may have passed since the start.
        "eidproxy_event_loop_lag_seconds_count",
        "eidproxy_event_loop_lag_seconds_sum",
        "eidproxy_event_loop_lag_seconds_bucket",
    }, not_zero
    states = {labels: value for (name, labels), value in samples.items() if name == "eidproxy_upstream_state"}
    assert {dict(labels)["state"] for labels, value in states.items() if value} == {"live"}
    [info] = [dict(labels) for name, labels in samples if name == "eidproxy_build_info"]
    assert set(info) == {"version", "python"}
    started = next(value for (name, _), value in samples.items() if name == "eidproxy_start_time_seconds")
    assert abs(started - time.time()) < 60


def check_line(line: dict[str, Any]) -> None:
    """A log line of the closed schema: enumerations, numbers and our own ids."""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", line["timestamp"]), line
    assert line["level"] in ("debug", "info", "warning", "error")
    if line["event"] != "request":
        assert line["event"] in ("started", "draining", "stopped", "router_reachable", "router_unreachable"), line
        return
    assert set(line) <= FIELDS, line
    assert line["surface"] in ("proxy", "chat")
    assert line["mode"] in (*MODES, "none")
    assert line.get("priority", "foreground") in PRIORITIES
    assert line["outcome"] in OUTCOMES
    assert line["reason"] in REASONS or re.fullmatch(r"router_http_\d{3}", line["reason"]), line
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", line["request_id"])
    assert re.fullmatch(r"[0-9a-f]{32}", line.get("trace_id", "0" * 32))
    for name in ("status", "gate_wait_ms", "ttft_ms", "total_ms", "chunks", "bytes", "left_out"):
        assert isinstance(line.get(name, 0), int | float), line
    assert 100 <= line["status"] < 600


def ends(router: Router, proxy: Proxy) -> None:
    """Each way for a stream to end, and what each of them counts. Looked at once for each."""
    before = seen = proxy.metrics()

    def play(script: Any) -> None:
        router.script = stream()
        router.enqueue(script)
        ask(proxy, "POST", CHAT, chat())

    def look() -> None:
        nonlocal before, seen
        before, seen = seen, proxy.metrics()

    def grown(name: str, **labels: str) -> float:
        """By how much, between the last two looks."""
        key = sample(f"eidproxy_{name}", **labels)
        return seen[key] - before[key]

    def counted(name: str, **labels: str) -> float:
        look()
        return grown(name, **labels)

    said = chunk(event(completion_chunk({"content": "x"})))
    finish = chunk(event(completion_chunk({}, "stop")))
    rows: list[tuple[Any, str]] = [
        (stream(), "done"),
        ([Send(stream_head() + said + finish + LAST_CHUNK)], "no_done"),
        ([Send(stream_head() + said + LAST_CHUNK)], "truncated"),
        ([Send(stream_head() + said), Reset()], "truncated"),
        ([Send(stream_head() + said + chunk(event({"error": "x"})))], "upstream_error"),
        ([Send(stream_head() + said), Stall()], "deadline"),
    ]
    for script, end in rows:
        play(script)
        assert counted("stream_ends_total", mode="daily", end=end) == 1, end
    for code, label in ((200, "2xx"), (302, "3xx"), (429, "4xx"), (503, "5xx")):
        play(status(code))
        assert counted("upstream_responses_total", mode="daily", code=label) == 1
    play([Fin()])
    router.hang_up()
    ask(proxy, "POST", CHAT, chat())
    router.listen()
    assert counted("upstream_responses_total", mode="daily", code="none") == 2
    kinds = {"not_json": b"data: x\n\n", "not_object": b"data: [1]\n\n", "empty": b'data: {"choices":[]}\n\n'}
    for kind, data in kinds.items():
        play([Send(stream_head() + said + chunk(data) + finish + LAST_CHUNK)])
        assert counted("events_dropped_total", kind=kind) == 1, kind
    play([Send(stream_head() + said + chunk(b"data: " + b"x" * 1_048_600)), Fin()])
    assert counted("events_dropped_total", kind="too_large") == 1
    router.enqueue([Send(stream_head() + said), Stall()])
    with RawClient(proxy) as client:
        client.send(request_bytes("POST", CHAT, chat()))
        client.read_head()
        client.rst()
    until(lambda: counted("stream_ends_total", mode="daily", end="client_gone") == 1)
    play([step for one in stream(["a", "b", "c"]) for step in (one, Drained())])  # each is read by itself
    look()
    assert grown("upstream_tokens_total", mode="daily", kind="completion") == 3
    assert grown("stream_chunks_total", mode="daily") == 4  # three texts and the end; a role alone is none
    assert grown("chunk_interval_seconds_count", mode="daily") >= 2

    # What nobody is counted for or logged for: probes. What is refused at the edge is.
    def logged() -> int:
        return sum(line["event"] == "request" for line in proxy.log())

    lines = logged()
    for path in ("/healthz", "/readyz", "/metrics", "/status"):
        assert proxy.get(path).status == 200
    assert logged() == lines
    ask(proxy, "GET", "/nothing")
    until(lambda: logged() == lines + 1)


def test_gauges_follow(router: Router) -> None:
    router.script = stream(gate="go")
    with Proxy(router) as proxy, RawClient(proxy) as one, RawClient(proxy) as two:
        for client in (one, two):
            client.send(request_bytes("POST", CHAT, chat()))
        router.wait_for(lambda: router.waiting("go") == 1)
        until(lambda: len(proxy.status()["gate"]["waiting"]) == 1)
        seen = proxy.metrics()
        assert seen[sample("eidproxy_requests_in_progress", mode="daily", phase="queued")] == 1
        assert seen[sample("eidproxy_requests_in_progress", mode="daily", phase="streaming")] == 1
        assert seen[sample("eidproxy_gate_slots_in_use")] == 1
        assert seen[sample("eidproxy_gate_queue_depth", priority="foreground")] == 1
        until(lambda: proxy.metric("eidproxy_gate_oldest_wait_seconds", priority="foreground") > 0.05)
        router.release("go")
        for client in (one, two):
            client.read_head()
            client.read_body()
        at_rest(router, proxy)
        seen = proxy.metrics()
        assert seen[sample("eidproxy_gate_wait_seconds_count", priority="foreground", outcome="granted")] == 2
        assert seen[sample("eidproxy_gate_hold_seconds_count", priority="foreground")] == 2
        assert seen[sample("eidproxy_deadline_margin_seconds_count", mode="daily")] == 2
        assert seen[sample("eidproxy_time_to_first_token_seconds_count", mode="daily")] == 2


def test_prometheus_reads_both_forms(router: Router) -> None:
    from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
    from prometheus_client.parser import text_string_to_metric_families as plain

    with Proxy(router) as proxy:
        for parse, accept in ((plain, "text/plain"), (openmetrics, "application/openmetrics-text; version=1.0.0")):
            text = proxy.get("/metrics", {"Accept": accept}).body.decode()
            names = {family.name for family in parse(text)}
            assert {"eidproxy_requests", "eidproxy_gate_wait_seconds", "eidproxy_build_info"} <= names


CUSTOMARY = {
    *("process_cpu_seconds_total", "process_resident_memory_bytes", "process_virtual_memory_bytes"),
    *("process_open_fds", "process_max_fds", "process_start_time_seconds"),
    *("python_info", "python_gc_collections_total", "python_gc_objects_collected_total"),
    "python_gc_objects_uncollectable_total",
}
"""What everybody's dashboards ask of a Python process (Linux), by prometheus-client's own names."""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="prometheus-client reads /proc")
def test_figures_of_the_process_have_their_customary_names(proxy: Proxy) -> None:
    samples = proxy.metrics()
    assert {name for name, _ in samples if not name.startswith("eidproxy_")} == CUSTOMARY
    assert not [name for name, _ in samples if name.startswith(("eidproxy_process", "eidproxy_python"))]
    assert proxy.metric("process_resident_memory_bytes") == pytest.approx(proxy.rss(), rel=0.5)


def test_log_nobody_reads(router: Router, tmp_path: Path) -> None:
    """Output to a pipe that nobody empties: the proxy serves on and counts what it could not write."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with Proxy(router, prefix=["sh", "-c", f'exec "$@" >{fifo} 2>&1', "sh"]) as proxy:
        for _ in range(600):
            assert ask(proxy, "POST", CHAT, chat(stream=False)).status == 200
        assert proxy.metric("eidproxy_log_lines_dropped_total") > 0
        os.close(reader)
        assert ask(proxy, "POST", CHAT, chat(stream=False)).status == 200


@pytest.mark.parametrize("word", [PROMPT_CANARY, "mac-mini", "Traceback"])
def test_control_a_leak_is_noticed(word: str) -> None:
    """Control: a process whose output holds such a word fails the suite that started it."""
    prefix = ["sh", "-c", f'echo "{word}"; exec "$@"', "sh"]
    with Router() as router, pytest.raises(AssertionError, match=word), Proxy(router, prefix=prefix) as proxy:
        assert proxy.get("/healthz").status == 200


def test_console_format(router: Router) -> None:
    with Proxy(router, EIDPROXY_LOG_FORMAT="console") as proxy:
        ask(proxy, "POST", CHAT, chat())
        until(lambda: b" ok daily fg 200 " in proxy.output())
        with pytest.raises(json.JSONDecodeError):
            proxy.log()
