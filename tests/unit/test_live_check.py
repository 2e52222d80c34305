"""check --live: a router that plays each fault. Its own line says so and no other does; a faultless one has none.

The tests judge by the lines of a real process, and by what reached the router's sockets: requests, tokens, and how many
inferences there were at once.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from eidproxy.commands.live_check import judge_unbuffered, proposed_for
from eidproxy.commands.look import Read, Response
from eidproxy.config import Settings
from tests.lab.proxy import Proxy
from tests.lab.router import Received, Router
from tests.lab.script import (
    DONE,
    LAST_CHUNK,
    Fin,
    Pause,
    Script,
    Send,
    Stall,
    Step,
    chunk,
    completion_chunk,
    event,
    status,
    stream_head,
)
from tests.lab.tools import ROOT, free_port

TOKEN_SECONDS = 0.02
ANSWER = "answer-canary-word "
KEY = "router-key-canary"
ALIASES: dict[str, Any] = {
    "EIDPROXY_MODELS_DAILY_ALIAS": "alias-canary-one",
    "EIDPROXY_MODELS_DEEP_ALIAS": "alias-canary-two",
}
PREFILL_SECONDS_PER_KIB = 0.15

LIVE = {"key", "daily", "deep", "sign of life", "unbuffered", "whole", "nothing told", "stop", "tools", "json"}
MEASURED = {"prompt speed", "leave in the prefill"}


@dataclasses.dataclass
class Model:
    """A router with both models that does everything right, but for what a test takes away."""

    fault: str = ""
    tokens: int = 0
    busy_until: float = 0.0
    router: Router | None = None

    def __call__(self, request: Received) -> Script:
        if request.method != "POST":
            return status(404, {"detail": "Not Found"})
        refused = self.refusal(request)
        return list(self.refusal(request) or []) if refused else self.answer(request)

    def refusal(self, request: Received) -> Script | None:
        if self.fault == "key" and request.header("Authorization") != f"Bearer {KEY}":
            return status(401, {"error": {"message": "no", "type": "invalid_request_error"}})
        if self.fault == "key of LiteLLM":
            return status(400, {"error": {"message": "No api key passed in.", "type": "auth_error"}})
        if self.fault == "alias" and request.model == "alias-canary-one":
            return status(404, {"error": {"message": "model alias-canary-one not found"}})
        if self.fault == "alias of deep" and request.model == "alias-canary-two":
            return status(400, {"error": {"message": "Invalid model name"}})
        if self.fault == "warming" and request.model == "alias-canary-two":
            return status(503, {"error": {"type": "warming", "message": "loading /Users/eid/x"}})
        if self.fault == "thread" and request.model == "alias-canary-one":
            return status(404, {"error": "generation thread died"})
        if self.fault == "tools" and "tools" in request.json:
            return status(500, {"error": {"message": "no template"}})
        if self.fault == "json refused" and "response_format" in request.json:
            return status(400, {"error": {"message": "no such option"}})
        if self.fault == "no stream":
            return status(200, {"choices": [{"message": {"content": ANSWER}, "finish_reason": "stop"}]})
        return None

    def answer(self, request: Received) -> Iterator[Step]:
        """Play a stream, token by token; a model server that goes on stays busy as long as it would have taken."""
        count = min(request.json["max_tokens"], 300)
        prefill = len(request.body) / 1024 * PREFILL_SECONDS_PER_KIB if len(request.body) > 4096 else 0.0
        busy = max(0.0, self.busy_until - time.monotonic())
        if self.fault == "goes on":
            self.busy_until = time.monotonic() + busy + prefill + count * TOKEN_SECONDS
        elif self.fault == "prefill runs on":
            self.busy_until = time.monotonic() + busy + prefill
        yield Send(stream_head())
        if busy + prefill:
            yield Pause(busy + prefill)
        if self.fault == "hang":
            yield Stall()
        for at in range(8):
            if self.fault == "pings":
                yield Send(chunk(b": ping\n\n"))
            elif self.fault == "counting":
                yield Send(chunk(b": keepalive %d/8\n\n" % at))
        if self.fault == "loading" and request.model == "alias-canary-two":
            thought = {"choices": [{"index": 0, "delta": {"reasoning_content": "llama-swap loading model: qwen"}}]}
            yield Send(chunk(event(thought)))
        if self.fault == "loading, named":
            yield self.told({"reasoning_content": "loading model: qwen"})
        yield from self.words(request, count)

    def words(self, request: Received, count: int) -> Iterator[Step]:
        """The text, its finish reason and its end."""
        finish = "length"
        if "tools" in request.json:
            call = {"id": "call-1", "type": "function", "function": {"name": "current_time", "arguments": "{}"}}
            yield self.told({"tool_calls": [{"index": 0, **call}]})
            count, finish = 0, "tool_calls"
        if "response_format" in request.json and self.fault != "json":
            for text in ('{"', "eid_check", '": "', "hello", '"}'):
                yield self.told({"content": text})
            count, finish = 0, "stop"
        held: list[bytes] = []
        for at in range(count):
            if self.fault == "cut" and at == 10:
                yield Fin()
                return
            if at:
                yield Pause(TOKEN_SECONDS)
            if self.fault == "buffer":
                self.tokens += 1
                held.append(event(completion_chunk({"content": ANSWER})))
            else:
                yield self.told({"content": ANSWER})
        if held:
            yield Send(chunk(b"".join(held)))
        if self.fault != "finish":
            yield Send(chunk(event(completion_chunk({}, finish))))
        if self.fault != "done":
            yield Send(chunk(DONE))
        yield Send(LAST_CHUNK)

    def told(self, delta: dict[str, Any]) -> Step:
        self.tokens += 1
        return Send(chunk(event(completion_chunk({"role": "assistant", **delta}))))


@dataclasses.dataclass
class Ran:
    """What a run printed and asked."""

    code: int
    lines: list[dict[str, Any]]
    proposals: dict[str, Any]
    requests: int
    tokens: int
    text: str

    def levels(self, *levels: str) -> set[str]:
        """The subjects of the lines of these levels."""
        return {line["subject"] for line in self.lines if line["level"] in levels}

    def line(self, subject: str) -> dict[str, Any]:
        (found,) = [line for line in self.lines if line["subject"] == subject]
        return found


def check(url: str, *arguments: str, **settings: object) -> Ran:
    """One run, as JSON."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "LLM_ROUTER_URL": url,
        "EIDPROXY_SERVER_PORT": str(free_port()),
        **ALIASES,
        **{name: str(value) for name, value in settings.items()},
    }
    command = [sys.executable, "-m", "eidproxy", "check", "--live", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, check=False)
    assert done.stderr == "", done.stderr
    told = json.loads(done.stdout)
    for canary in (ANSWER.strip(), "alias-canary", KEY, "qwen", "Users/eid", "Invalid model"):
        assert canary not in done.stdout
    return Ran(done.returncode, told["findings"], told["proposals"], told["requests"], told["tokens"], done.stdout)


def test_a_faultless_router_has_nothing_but_ok(router: Router) -> None:
    router.script = model = Model()
    ran = check(router.url)
    assert ran.code == 0
    assert ran.levels("note", "fail", "skip") == set(), ran.text
    assert ran.levels("ok") >= LIVE
    assert len(router.requests) == ran.requests == 7
    assert router.posts == 6
    assert model.tokens <= 100
    assert ran.tokens <= model.tokens
    assert max(router.max_concurrent_by_model.values()) == 1
    for request in router.requests:
        assert len(request.body) < 1024


FAULTS: dict[str, tuple[str, str, set[str]]] = {
    # fault: the line, how it is told, and the lines that cannot be known then
    "key": ("key", "fail", LIVE - {"key"}),
    "key of LiteLLM": ("key", "fail", LIVE - {"key"}),
    "alias": ("daily", "fail", LIVE - {"key", "daily", "deep", "nothing told"}),
    "alias of deep": ("deep", "fail", set()),
    "thread": ("daily", "fail", LIVE - {"key", "daily", "deep", "nothing told"}),
    "warming": ("deep", "note", set()),
    "hang": ("daily", "fail", LIVE - {"daily", "deep"}),
    "pings": ("sign of life", "note", set()),
    "buffer": ("unbuffered", "fail", set()),
    "cut": ("whole", "fail", {"stop", "tools", "json"}),
    "finish": ("whole", "fail", {"stop", "tools", "json"}),
    "done": ("whole", "note", set()),
    "loading": ("nothing told", "note", set()),
    "loading, named": ("nothing told", "fail", set()),
    "goes on": ("stop", "note", set()),
    "tools": ("tools", "fail", set()),
    "json": ("json", "note", set()),
    "json refused": ("json", "fail", set()),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_has_its_own_line_and_no_other(fault: str, router: Router) -> None:
    subject, level, unknown = FAULTS[fault]
    router.script = Model(fault)
    settings = {"EIDPROXY_STREAM_DEADLINE_SECONDS": 2, "EIDPROXY_ROUTER_READ_TIMEOUT_SECONDS": 2}
    settings["EIDPROXY_ROUTER_FIRST_EVENT_SECONDS"] = 2
    ran = check(router.url, **(settings if fault == "hang" else {}))
    told = ran.levels("note", "fail")
    if fault == "hang":
        told -= {"deep"}  # it hangs for both
    assert told == {subject}, ran.text
    assert ran.levels("skip") == unknown, ran.text
    assert ran.line(subject)["level"] == level
    assert ran.line(subject)["remedy"]
    assert ran.code == (1 if level == "fail" else 0)
    assert len(router.requests) <= 7
    if fault == "goes on":
        assert ran.proposals["gate.after_leave"] == "settle"
        assert ran.proposals["gate.settle_seconds"] >= 1


def test_the_right_key_is_taken(router: Router) -> None:
    """Control to `key`."""
    router.script = Model("key")
    assert check(router.url, EIDPROXY_ROUTER_API_KEY=KEY).levels("note", "fail", "skip") == set()


def test_comments_that_count_are_told_from_pings(router: Router) -> None:
    router.script = Model("counting")
    line = check(router.url).line("sign of life")
    assert (line["level"], "count" in line["text"]) == ("ok", True)


def test_a_router_that_does_not_stream(router: Router) -> None:
    router.script = Model("no stream")
    ran = check(router.url)
    assert ran.levels("fail") == {"daily", "deep"}
    assert "not an event stream" in ran.line("daily")["text"]


def test_a_loop_is_found_before_anything_is_asked(router: Router) -> None:
    router.script = Model()
    refusing: list[dict[str, Any]] = [{"EIDPROXY_SERVER_API_KEY": "k"}, {"EIDPROXY_SERVER_ALLOWED_HOSTS": "a.example"}]
    for settings in [{}, *refusing]:
        with Proxy(router, **settings) as other:
            ran = check(other.url)
            assert [line["text"] for line in ran.lines if line["level"] == "fail"] == [
                "is an eidproxy, so requests would wait in two queues or loop"
            ]
            assert ran.levels("skip") == LIVE
            assert ran.code == 1
    assert router.posts == 0


def test_a_running_eidproxy_is_asked_as_background(router: Router) -> None:
    """Nothing reaches the router beside its gate, and somebody who comes meanwhile would go first."""
    router.script = model = Model()
    port = free_port()
    keys: dict[str, Any] = {"EIDPROXY_SERVER_API_KEY": "key-canary-53", "EIDPROXY_SERVER_PORT": port}
    with Proxy(router, canaries=["key-canary-53"], **keys, **ALIASES) as proxy:
        ran = check(router.url, **keys)
        assert ran.levels("note", "fail") == set(), ran.text
        assert ran.levels("skip") == {"sign of life", "nothing told"}
        lines = [line for line in proxy.log() if line.get("mode") in ("daily", "deep")]
        assert len(lines) == 6
        assert {line["priority"] for line in lines} == {"background"}
        assert router.max_concurrent_by_model["alias-canary-one"] == 1
        assert len(router.requests) <= 7
        assert model.tokens <= 100
        refused = check(router.url, **{**keys, "EIDPROXY_SERVER_API_KEY": "another"})
        assert refused.levels("fail") == {"eidproxy"}
        assert refused.levels("skip") == LIVE


def measured(router: Router, fault: str) -> Ran:
    router.script = Model(fault)
    ran = check(router.url, "--measure")
    assert ran.levels("ok", "note", "fail", "skip") >= LIVE | MEASURED
    assert len(router.requests) == ran.requests == 10
    assert sum(len(request.body) > 1024 for request in router.requests) == 2, "two long prompts"
    return ran


def test_measure_proposes_what_follows_from_the_prefill(router: Router) -> None:
    ran = measured(router, "")
    assert ran.levels("note", "fail", "skip") == set(), ran.text
    assert ran.proposals["gate.after_leave"] == "release"
    # A busy machine makes it slower, never faster.
    assert ran.proposals["router.first_event_seconds_per_kib"] >= PREFILL_SECONDS_PER_KIB * 1.4
    assert 0 <= ran.proposals["models.max_prompt_bytes"] <= 0.8 * 300 / PREFILL_SECONDS_PER_KIB * 1024


def test_measure_finds_a_prefill_that_runs_on(router: Router) -> None:
    ran = measured(router, "prefill runs on")
    assert ran.levels("note", "fail", "skip") == {"leave in the prefill"}, ran.text
    assert ran.proposals["gate.after_leave"] == "first_event"
    assert ran.proposals["gate.settle_seconds"] >= 20


def test_what_follows_from_a_speed() -> None:
    """68 tokens a second, the slowest machine of SILENCE's table: 3.8 s for a KiB."""
    assert proposed_for(3.76, Settings()) == {
        "router.first_event_seconds_per_kib": 5.7,
        "models.max_prompt_bytes": 63 * 1024,
    }
    assert proposed_for(0.01, Settings())["models.max_prompt_bytes"] == 0, "no body is that large"


def looked(times: list[float], per_read: int = 1) -> Response:
    data = event(completion_chunk({"content": "x"})) * per_read
    return Response(200, None, [Read(seconds, data) for seconds in times], times[-1])


@pytest.mark.parametrize(
    ("look", "level"),
    [
        pytest.param(looked([at / 10 for at in range(20)]), "ok", id="one by one"),
        pytest.param(looked([1 + at / 1e4 for at in range(20)]), "ok", id="one by one, by a quick model"),
        pytest.param(looked([2.0], 20), "fail", id="all at once, late"),
        pytest.param(looked([1.0, 2.0], 10), "fail", id="by blocks"),
        pytest.param(looked([0.05], 20), "skip", id="all at once, and early"),
        pytest.param(looked([0.5], 3), "skip", id="three words"),
    ],
)
def test_unbuffered(look: Response, level: str) -> None:
    assert judge_unbuffered(look).level == level


def test_the_lines_a_person_reads(router: Router) -> None:
    router.script = Model("pings")
    environment = {"PATH": os.environ["PATH"], "LLM_ROUTER_URL": router.url, "EIDPROXY_SERVER_PORT": str(free_port())}
    command = [sys.executable, "-m", "eidproxy", "check", "--live"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.returncode == 0
    assert "ok    whole: a finish reason and [DONE] (" in done.stdout
    assert "note  sign of life: a constant ping" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("asked: 7 requests, about ")
    assert "mac-mini-default" not in done.stdout, "no settings are shown"
