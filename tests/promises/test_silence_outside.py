"""A router that says nothing, from outside (contract, P11 and 6): who waits, who is told. Times are scaled down.

The controls are the settings that switch a rule off, or the router that keeps to the other side of it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.callers import check_error_event, check_refusal
from tests.lab.client import CHAT, Answer, RawClient, ask, chat, request_bytes
from tests.lab.proxy import Proxy
from tests.lab.router import Received, Router
from tests.lab.script import (
    LAST_CHUNK,
    Fin,
    Pause,
    Send,
    Stall,
    Step,
    Wait,
    chunk,
    completion_chunk,
    event,
    status,
    stream,
    stream_head,
)
from tests.lab.tools import until

GO, END = "go", "end"
FIRST = 0.5
"""Seconds that a first event may take here."""

SETTINGS: dict[str, Any] = {
    "EIDPROXY_ROUTER_FIRST_EVENT_SECONDS": FIRST,
    "EIDPROXY_ROUTER_FIRST_EVENT_SECONDS_PER_KIB": 0,
    "EIDPROXY_ROUTER_READ_TIMEOUT_SECONDS": FIRST,
    "EIDPROXY_STREAM_DEADLINE_SECONDS": 12,
    "EIDPROXY_ROUTER_WEDGE_RETRY_SECONDS": 60,
}
SILENT: list[Step] = [Stall()]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
BIG = "x" * 60 * 1024


def proxied(router: Router, **settings: object) -> Proxy:
    """eidproxy with scaled clocks."""
    return Proxy(router, **{**SETTINGS, **{f"EIDPROXY_{name}": value for name, value in settings.items()}})


def posted(proxy: Proxy, model: str = "daily", headers: dict[str, str] | None = None, **fields: Any) -> RawClient:
    """A request that was sent, its answer unread."""
    client = RawClient(proxy, timeout=120)
    client.send(request_bytes("POST", CHAT, chat(model, **fields), headers or {}))
    return client


def answer(client: RawClient) -> Answer:
    """Its whole answer."""
    with client:
        code, headers = client.read_head()
        return Answer(code, headers, client.read_body(), client.clean)


def upstream(proxy: Proxy, model: str = "daily") -> Any:
    """What /status says of the model server."""
    return proxy.status()["upstream"][model]


def wedge(router: Router, proxy: Proxy, model: str = "daily") -> None:
    """Two callers in vain."""
    script, router.script = router.script, SILENT
    for _ in range(2):
        check_refusal(ask(proxy, "POST", CHAT, chat(model)), 503, "upstream_silent")
    assert upstream(proxy, model)["state"] == "wedged"
    router.script = script


def comments(texts: Iterator[str], interval: float) -> Iterator[Step]:
    """A head and then comments for ever."""
    yield Send(stream_head())
    for text in texts:
        yield Send(chunk(f": {text}\n\n".encode()))
        yield Pause(interval)


def counting(seconds: float, interval: float) -> list[Step]:
    """A prefill that counts itself up for so long, as mlx_lm.server does it, and then the answer."""
    told = [f": keepalive {n}/99\n\n".encode() for n in range(int(seconds / interval))]
    steps: list[Step] = [Send(stream_head())]
    for one in told:
        steps += [Send(chunk(one)), Pause(interval)]
    return [*steps, *stream()[1:]]


# --- The allowance -----------------------------------------------------------------------------------------------


def test_a_first_event_that_does_not_come(router: Router) -> None:
    with proxied(router) as proxy:
        # Some servers send a lone role before the model begins.
        role = chunk(event(completion_chunk({"role": "assistant", "content": ""})))
        scripts: list[list[Step]] = [SILENT, [Send(stream_head()), Stall()], [Send(stream_head() + role), Stall()]]
        for script in scripts:
            router.script = script
            refused = ask(proxy, "POST", CHAT, chat("deep"))
            check_refusal(refused, 503, "upstream_silent")
            assert refused.get("retry-after")
            # A sign of life, so that the next is not refused as wedged.
            router.script = stream()
            assert ask(proxy, "POST", CHAT, chat("deep")).status == 200
        assert proxy.metric("eidproxy_upstream_silent_ends_total", mode="deep") == 3
        assert proxy.metric("eidproxy_first_event_allowance_used_ratio_bucket", mode="deep", le="1.0") == 3
        assert proxy.metric("eidproxy_first_event_allowance_used_ratio_count", mode="deep") == 6


@pytest.mark.parametrize("per_kib", [0.1, 0])
def test_a_long_prompt_has_longer(router: Router, per_kib: float) -> None:
    """60 KiB and 1.5 s of prefill. The control is a limit that does not know the prompt."""
    router.script = [Pause(3 * FIRST), *stream()]
    with proxied(router, ROUTER_FIRST_EVENT_SECONDS_PER_KIB=per_kib) as proxy:
        found = ask(proxy, "POST", CHAT, chat(say=BIG))
        assert (found.status, found.reason) == ((200, None) if per_kib else (503, "upstream_silent"))


@pytest.mark.parametrize(
    ("fields", "served"),
    [
        ({"tools": TOOLS}, True),
        ({"response_format": {"type": "json_object"}}, True),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}}}, True),
        ({"response_format": {"type": "text"}}, False),
        ({}, False),
    ],
    ids=["tools", "json_object", "json_schema", "text", "plain"],
)
def test_tools_and_json_are_generated_unseen(router: Router, fields: dict[str, Any], served: bool) -> None:
    """Silence of three read timeouts before and after the first event. The control is a plain request."""
    with proxied(router) as proxy:
        router.script = [Pause(3 * FIRST), *stream()]
        found = ask(proxy, "POST", CHAT, chat(**fields))
        assert (found.status, found.reason) == ((200, None) if served else (503, "upstream_silent"))
        router.script = stream(["a", "b"], interval=3 * FIRST)
        found = ask(proxy, "POST", CHAT, chat(**fields))
        assert (found.told().text, found.reason) == (("ab", None) if served else ("a", "router_ReadTimeout"))


def test_a_prefill_that_counts_itself_up_is_not_cut(router: Router) -> None:
    router.script = counting(4 * FIRST, FIRST / 5)
    with proxied(router) as proxy:
        found = ask(proxy, "POST", CHAT, chat())
        assert (found.status, found.told().text) == (200, "Hello world")
        assert proxy.metric("eidproxy_first_event_allowance_used_ratio_bucket", mode="daily", le="1.0") == 0


# --- The guard ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wedge_after", [2, 0])
@pytest.mark.parametrize("pings", [False, True])
def test_six_callers_of_a_router_that_hangs(router: Router, wedge_after: int, pings: bool) -> None:
    """Two wait, the others are told at once; whoever comes later costs the router nothing. The control is no guard."""
    router.script = (lambda _: comments(itertools.repeat("ping"), FIRST / 10)) if pings else SILENT
    with proxied(router, ROUTER_WEDGE_AFTER=wedge_after, STREAM_DEADLINE_SECONDS=120) as proxy:
        clients = [
            posted(proxy, headers={"X-Eid-Priority": "background" if number % 2 else "foreground"})
            for number in range(6)
        ]
        reasons = [answer(client) for client in clients]
        found = sorted(str(one.reason) for one in reasons)
        if not wedge_after:
            assert found == ["upstream_silent"] * 6
            assert (router.posts, router.max_concurrent) == (6, 1)
            assert upstream(proxy)["state"] == "live"
            return
        assert found == ["upstream_silent"] * 2 + ["upstream_wedged"] * 4
        for one in reasons:
            check_refusal(one, 503, str(one.reason))
        assert all(55 <= int(one.get("retry-after") or 0) <= 60 for one in reasons if one.reason == "upstream_wedged")
        for _ in range(3):
            check_refusal(ask(proxy, "POST", CHAT, chat()), 503, "upstream_wedged")
        assert router.posts == 2
        told = proxy.status()
        assert told["upstream"]["daily"]["state"] == "wedged"
        assert told["upstream"]["daily"]["silent_ends"] == 2
        assert 0 < told["upstream"]["daily"]["next_trial_seconds"] <= 60
        assert told["upstream"]["deep"]["state"] == "live"
        assert told["gate"]["in_use"] == 0
        assert told["gate"]["waiting"] == []
        assert proxy.metric("eidproxy_upstream_state", mode="daily", state="wedged") == 1
        assert proxy.metric("eidproxy_upstream_wedges_total", mode="daily") == 1
        assert proxy.get("/readyz").status == 200
        changes = [line["state"] for line in proxy.log() if line["event"] == "upstream_state"]
        assert changes == ["suspect", "wedged"]


def test_who_waits_with_progress_is_told_by_an_event(router: Router) -> None:
    router.script = SILENT
    with proxied(router) as proxy:
        clients = [posted(proxy, headers={"X-Eid-Progress": "1"}) for _ in range(3)]
        found = sorted((answer(client) for client in clients), key=lambda one: str(one.reason))
        for one, reason in zip(found, ["upstream_silent", "upstream_silent", "upstream_wedged"], strict=True):
            check_error_event(one, 503, reason)


def test_deep_has_a_guard_of_its_own(router: Router) -> None:
    with proxied(router) as proxy:
        wedge(router, proxy, "deep")
        check_refusal(ask(proxy, "POST", CHAT, chat("deep")), 503, "upstream_wedged")
        assert ask(proxy, "POST", CHAT, chat("daily")).status == 200
        assert router.posts == 3


def test_two_silent_ends_with_an_event_between(router: Router) -> None:
    with proxied(router) as proxy:
        for _ in range(3):
            router.enqueue(SILENT, stream())
            check_refusal(ask(proxy, "POST", CHAT, chat()), 503, "upstream_silent")
            assert upstream(proxy)["state"] == "suspect"
            assert ask(proxy, "POST", CHAT, chat()).status == 200
            assert upstream(proxy)["state"] == "live"


def test_a_router_that_begins_and_hangs_is_no_evidence(router: Router) -> None:
    router.script = [Send(stream_head() + chunk(event(completion_chunk({"content": "a"})))), Stall()]
    with proxied(router) as proxy:
        for _ in range(3):
            check_error_event(ask(proxy, "POST", CHAT, chat()), 503, "router_ReadTimeout")
        assert upstream(proxy)["state"] == "live"
        assert proxy.metric("eidproxy_upstream_silent_ends_total", mode="daily") == 0


def test_the_wall_clock_is_evidence_too(router: Router) -> None:
    router.script = SILENT
    with proxied(router, ROUTER_FIRST_EVENT_SECONDS=60, STREAM_DEADLINE_SECONDS=FIRST) as proxy:
        for _ in range(2):
            check_refusal(ask(proxy, "POST", CHAT, chat()), 503, "stream_deadline_exceeded")
        check_refusal(ask(proxy, "POST", CHAT, chat()), 503, "upstream_wedged")


@pytest.mark.parametrize("model", ["daily", "deep"])
def test_while_the_trial_runs_the_others_are_refused(router: Router, model: str) -> None:
    with proxied(router, ROUTER_WEDGE_RETRY_SECONDS=0.5, ROUTER_FIRST_EVENT_SECONDS=FIRST) as proxy:
        wedge(router, proxy, model)
        posts = router.posts
        router.script = [Wait(GO), *stream()]
        until(lambda: upstream(proxy, model)["next_trial_seconds"] == 0)
        # Tools, so that the trial may be silent while the others come.
        trial = posted(proxy, model, tools=TOOLS)
        router.wait_for(lambda: router.waiting(GO) == 1)
        assert upstream(proxy, model)["next_trial_seconds"] is None
        for one in [posted(proxy, model) for _ in range(8)]:
            check_refusal(answer(one), 503, "upstream_wedged")
        assert router.posts == posts + 1
        router.release(GO)
        assert answer(trial).told().done
        assert upstream(proxy, model)["state"] == "live"
        router.script = stream()
        clients = [posted(proxy, model) for _ in range(4)]
        assert [answer(client).status for client in clients] == [200] * 4


def test_a_trial_whose_caller_leaves_hands_on(router: Router) -> None:
    with proxied(router, ROUTER_WEDGE_RETRY_SECONDS=0.5) as proxy:
        wedge(router, proxy)
        router.script = SILENT
        until(lambda: upstream(proxy)["next_trial_seconds"] == 0)
        posts = router.posts
        for number in range(3):
            trial = posted(proxy, tools=TOOLS)
            router.wait_for(lambda number=number: router.posts == posts + number + 1)  # type: ignore[misc]
            trial.close()
            until(lambda: upstream(proxy)["next_trial_seconds"] == 0)
        router.script = stream()
        assert ask(proxy, "POST", CHAT, chat()).status == 200
        assert upstream(proxy)["state"] == "live"


def test_a_trial_in_vain_and_one_that_is_answered(router: Router) -> None:
    """The model server was restarted: it goes on by itself."""
    with proxied(router, ROUTER_WEDGE_RETRY_SECONDS=0.5) as proxy:
        wedge(router, proxy)
        router.script = SILENT
        until(lambda: upstream(proxy)["next_trial_seconds"] == 0)
        check_refusal(ask(proxy, "POST", CHAT, chat()), 503, "upstream_silent")
        assert (upstream(proxy)["state"], upstream(proxy)["silent_ends"]) == ("wedged", 3)
        router.script = stream()
        until(lambda: ask(proxy, "POST", CHAT, chat()).status == 200)
        assert upstream(proxy)["state"] == "live"
        assert proxy.metric("eidproxy_upstream_wedges_total", mode="daily") == 1


def test_trials_that_get_garbage_leave_nobody_stuck(router: Router) -> None:
    with proxied(router, ROUTER_WEDGE_RETRY_SECONDS=0.5) as proxy:
        wedge(router, proxy)
        until(lambda: upstream(proxy)["next_trial_seconds"] == 0)
        for script in (
            status(503),
            status(200, b"<html>"),
            [Send(b"garbage\r\n\r\n")],
            [Send(stream_head() + LAST_CHUNK)],
        ):
            router.script = script
            posts = router.posts
            assert ask(proxy, "POST", CHAT, chat()).reason != "upstream_wedged"
            assert router.posts == posts + 1
            assert (upstream(proxy)["state"], upstream(proxy)["next_trial_seconds"]) == ("wedged", 0)
        router.script = stream()
        assert ask(proxy, "POST", CHAT, chat()).status == 200
        assert upstream(proxy)["state"] == "live"


def test_a_drain_while_it_is_wedged(router: Router) -> None:
    with proxied(router, ROUTER_WEDGE_RETRY_SECONDS=0.5, SERVER_DRAIN_SECONDS=0) as proxy:
        wedge(router, proxy)
        until(lambda: upstream(proxy)["next_trial_seconds"] == 0)
        router.script = SILENT
        trial = posted(proxy, tools=TOOLS)
        router.wait_for(lambda: router.concurrent == 1)
        proxy.terminate()
        check_refusal(answer(trial), 503, "draining")
        assert proxy.wait() == 0


def test_a_wedge_costs_each_caller_once(router: Router) -> None:
    """Ten callers, one after the other, as apps do it. How much of their time is lost, with and without the guard."""
    lost = {}
    for wedge_after in (0, 2):
        router.script = SILENT
        router.reset()
        with proxied(router, ROUTER_WEDGE_AFTER=wedge_after) as proxy:
            posts = router.posts
            for _ in range(10):
                assert ask(proxy, "POST", CHAT, chat()).status == 503
            lost[wedge_after] = router.posts - posts
    print(f"requests that waited in vain: {lost[0]} without, {lost[2]} with the guard")
    assert lost == {0: 10, 2: 2}


# --- After a leave -----------------------------------------------------------------------------------------------


def prefill(request: Received) -> list[Step]:
    """Compute until the test says so for the one whose caller leaves, and answer any other at once."""
    scripts: dict[str, list[Step]] = {"leaves": [Wait(GO), *stream()], "ends": [Wait(END), Fin()]}
    return scripts.get(request.json["messages"][0]["content"], stream())


@contextlib.contextmanager
def left_in_the_prefill(router: Router, says: str = "leaves", **settings: object) -> Iterator[tuple[Proxy, RawClient]]:
    """A caller left between its request and the first event, and another one waits."""
    with proxied(router, ROUTER_FIRST_EVENT_SECONDS=10, **settings) as proxy:
        router.script = prefill
        first = posted(proxy, say=says)
        router.wait_for(lambda: router.concurrent == 1)
        second = posted(proxy, say="waits")
        until(lambda: len(proxy.status()["gate"]["waiting"]) == 1)
        first.close()
        yield proxy, second


def test_control_release(router: Router) -> None:
    with left_in_the_prefill(router) as (proxy, waiter):
        assert answer(waiter).status == 200
        assert router.posts == 2
        assert proxy.metric("eidproxy_gate_settling") == 0


def test_settle(router: Router) -> None:
    with left_in_the_prefill(router, GATE_AFTER_LEAVE="settle", GATE_SETTLE_SECONDS=1.5) as (proxy, waiter):
        router.wait_for(lambda: router.open_sockets == 0)  # closed at once
        holder = until(lambda: [one for one in proxy.status()["gate"]["holders"] if one.get("settling")])[0]
        assert (holder["mode"], holder["settling"]) == ("daily", True)
        assert proxy.metric("eidproxy_gate_settling") == 1
        assert router.posts == 1
        assert answer(waiter).status == 200
        assert router.requests[1].at - router.closes[0].at > 1.4
        assert proxy.metric("eidproxy_gate_settle_seconds_count", end="elapsed") == 1
        assert proxy.metric("eidproxy_gate_settling") == 0
        assert proxy.metric("eidproxy_gate_forced_releases_total") == 0


def test_first_event(router: Router) -> None:
    with left_in_the_prefill(router, GATE_AFTER_LEAVE="first_event", GATE_SETTLE_SECONDS=10) as (proxy, waiter):
        until(lambda: proxy.metric("eidproxy_gate_settling") == 1)
        assert (router.open_sockets, router.posts) == (1, 1)
        router.release(GO)
        assert answer(waiter).status == 200
        assert proxy.metric("eidproxy_gate_settle_seconds_count", end="first_event") == 1
        assert router.max_concurrent == 1


def test_first_event_of_a_router_that_ends_without_one(router: Router) -> None:
    """It closes the connection: nothing is computed any more."""
    with left_in_the_prefill(router, says="ends", GATE_AFTER_LEAVE="first_event", GATE_SETTLE_SECONDS=60) as (
        proxy,
        waiter,
    ):
        until(lambda: proxy.metric("eidproxy_gate_settling") == 1)
        router.release(END)
        assert answer(waiter).status == 200
        assert proxy.metric("eidproxy_gate_settle_seconds_count", end="first_event") == 1


def test_first_event_is_bounded(router: Router) -> None:
    with left_in_the_prefill(router, GATE_AFTER_LEAVE="first_event", GATE_SETTLE_SECONDS=0.5) as (proxy, waiter):
        assert answer(waiter).status == 200
        assert proxy.metric("eidproxy_gate_settle_seconds_count", end="elapsed") == 1


@pytest.mark.parametrize("after_leave", ["settle", "first_event"])
def test_a_drain_ends_what_settles(router: Router, after_leave: str) -> None:
    with left_in_the_prefill(router, GATE_AFTER_LEAVE=after_leave, GATE_SETTLE_SECONDS=60) as (proxy, waiter):
        until(lambda: proxy.metric("eidproxy_gate_settling") == 1)
        proxy.terminate()
        check_refusal(answer(waiter), 503, "draining")
        assert proxy.wait(5) == 0
        router.wait_for(lambda: router.open_sockets == 0)


@pytest.mark.parametrize("after_leave", ["settle", "first_event"])
def test_a_leave_after_the_first_event_releases_at_once(router: Router, after_leave: str) -> None:
    router.script = stream(gate=GO)
    with proxied(router, GATE_AFTER_LEAVE=after_leave, GATE_SETTLE_SECONDS=60, ROUTER_READ_TIMEOUT_SECONDS=10) as proxy:
        first = posted(proxy)
        router.wait_for(lambda: router.waiting(GO) == 1)
        assert first.read_head().status == 200
        router.script = stream()
        first.close()
        assert ask(proxy, "POST", CHAT, chat()).status == 200
        assert sum(v for (name, _), v in proxy.metrics().items() if name == "eidproxy_gate_settle_seconds_count") == 0


# Once an answer has begun

END_OF_ANSWER = [Send(chunk(event(completion_chunk({}, "stop")))), Send(chunk(event("[DONE]"))), Send(LAST_CHUNK)]


def total_ms(proxy: Proxy) -> float:
    """How long the one request of this proxy took."""
    (line,) = until(lambda: [line for line in proxy.log() if line["event"] == "request"])
    return float(line["total_ms"])


def said(text: str) -> Send:
    """One event with text."""
    return Send(chunk(event(completion_chunk({"content": text}))))


@pytest.mark.parametrize("unseen", [{"tools": TOOLS}, {"say": BIG}], ids=["tools", "a long prompt"])
def test_keepalives_come_where_the_wall_clock_alone_counts(unseen: dict[str, Any]) -> None:
    """The first look at the silence was before the first event, and had nothing to wait for."""
    settings = {"ROUTER_FIRST_EVENT_SECONDS_PER_KIB": 1, "ROUTER_READ_TIMEOUT_SECONDS": 30}
    with Router() as router, proxied(router, STREAM_KEEPALIVE_SECONDS=0.2, **settings) as proxy:
        router.script = [Send(stream_head()), Pause(0.6), said("a"), Pause(1.2), said("b"), *END_OF_ANSWER]
        whole = answer(posted(proxy, "deep", **unseen))
        assert whole.body.count(b": keepalive") >= 3
        assert whole.body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("allowance", [10, 60])
def test_the_read_timeout_counts_from_the_first_event(streaming: bool, allowance: int) -> None:
    """And not from the clock that was set for the first event, be it before or after the wall clock."""
    with (
        Router() as router,
        proxied(router, ROUTER_FIRST_EVENT_SECONDS=allowance, STREAM_KEEPALIVE_SECONDS=0.2) as proxy,
    ):
        router.script = [Send(stream_head()), Pause(0.8), said("a"), Stall()]
        ended = answer(posted(proxy, "deep", stream=streaming))
        assert b"router_ReadTimeout" in ended.body
        assert total_ms(proxy) < 9000, "the allowance or the wall clock ended it"


SIGNS: dict[str, Any] = {
    "comments that count": lambda at: chunk(b": ping %d\n\n" % at),
    "events that say nothing": lambda _: chunk(event(completion_chunk({}))),
    "usage": lambda _: chunk(event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})),
}


@pytest.mark.parametrize("sign", SIGNS.values(), ids=SIGNS.keys())
def test_signs_of_life_hold_the_read_timeout_off(sign: Any) -> None:
    with Router() as router, proxied(router, ROUTER_READ_TIMEOUT_SECONDS=1.2) as proxy:
        signs: list[Step] = [step for at in range(6) for step in (Pause(0.5), Send(sign(at)))]
        router.script = [Send(stream_head()), said("a"), said("a"), *signs, said("b"), *END_OF_ANSWER]
        assert answer(posted(proxy, "deep")).body.endswith(b"data: [DONE]\n\n")


def test_a_constant_ping_between_events_is_no_life() -> None:
    """Nor the first one after an event that took the long way: it was read long ago."""
    with Router() as router, proxied(router, ROUTER_READ_TIMEOUT_SECONDS=3) as proxy:
        ping = Send(chunk(b": ping\n\n"))
        both = Send(chunk(2 * event(completion_chunk({"content": "b"}))))
        router.script = [Send(stream_head()), said("a"), Pause(0.2), both, Pause(2), ping, Stall()]
        ended = answer(posted(proxy, "deep"))
        assert b"router_ReadTimeout" in ended.body
        assert total_ms(proxy) < 4500, "the ping put the end off"


def test_a_constant_ping_after_the_finish_reason_holds_nothing_up() -> None:
    """Control: one that counts does, up to the wall clock."""
    ended = {}
    for name, form in (("constant", b": ping\n\n"), ("counting", b": ping %d\n\n")):
        with Router() as router, proxied(router, STREAM_DEADLINE_SECONDS=11) as proxy:

            def pings(form: bytes = form) -> Iterator[Step]:
                yield from (Send(stream_head()), said("a"), END_OF_ANSWER[0])
                for at in itertools.count():
                    yield Pause(0.5)
                    yield Send(chunk(form % at if b"%" in form else form))

            router.script = lambda _, pings=pings: pings()
            assert answer(posted(proxy, "deep")).body.endswith(b"data: [DONE]\n\n")
            ended[name] = total_ms(proxy)
    assert ended["constant"] + 2000 < ended["counting"]


def test_a_router_that_refuses_does_not_hang() -> None:
    refusal = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{"
    with Router() as router, proxied(router, STREAM_DEADLINE_SECONDS=1) as proxy:
        router.script = [Send(refusal), Stall()]
        for _ in range(2):
            assert ask(proxy, "POST", CHAT, chat("daily")).status == 503
        assert upstream(proxy)["state"] == "live"


def test_text_after_the_end_and_a_cut_within_a_chunk_is_no_whole_answer() -> None:
    late = [Send(stream_head()), said("a"), END_OF_ANSWER[0], said("b")]
    with Router() as router, proxied(router) as proxy:
        router.script = [*late, Send(b"ff\r\n: "), Fin()]
        assert b"upstream_truncated" in answer(posted(proxy)).body
        router.script = [*late, Send(LAST_CHUNK)]
        assert answer(posted(proxy)).body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("after_leave", ["release", "settle", "first_event"])
def test_after_a_trial_whose_caller_left_the_next_request_is_the_trial(after_leave: str) -> None:
    """Whatever is kept of it: with `settle` and `first_event` the next waits for the slot."""
    settings = {"GATE_AFTER_LEAVE": after_leave, "GATE_SETTLE_SECONDS": 1.5, "ROUTER_WEDGE_RETRY_SECONDS": 1}
    with Router() as router, proxied(router, **settings) as proxy:
        wedge(router, proxy)
        until(lambda: upstream(proxy)["next_trial_seconds"] == 0)
        router.script = SILENT
        posts = router.posts
        trial = posted(proxy)
        router.wait_for(lambda: router.posts > posts)
        trial.rst()
        until(lambda: upstream(proxy)["next_trial_seconds"] == 0)
        router.script = stream()
        assert answer(posted(proxy)).status == 200
        assert upstream(proxy)["state"] == "live"
