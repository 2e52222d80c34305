"""What the suites from outside share: how many cases, what a refusal must look like, when nothing is left over."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tests.lab.client import Answer, Dialled, ask
from tests.lab.proxy import Proxy, sample
from tests.lab.router import Router
from tests.lab.tools import until

TYPES = {
    **dict.fromkeys((400, 404, 405, 413, 415, 421, 422, 431), "invalid_request_error"),
    401: "authentication_error",
    403: "permission_error",
    408: "timeout_error",
    500: "server_error",
    503: "service_unavailable",
}
NO_RETRY = {
    "provider_not_configured",
    "stream_deadline_exceeded",
    "rules_missing",
    "router_rejected",
    "egress_blocked",
    "internal_error",
}


def check_error(value: Any, status: int, reason: str, param: str | None = None) -> None:
    """The error object, the same in a body and in the last event of a stream: exactly this and nothing else."""
    assert set(value) == {"error", "error_reason", "request_id"}, value
    assert set(value["error"]) == {"message", "type", "param", "code"}, value
    assert value["error_reason"] == value["error"]["code"] == reason, value
    assert value["error"]["type"] == TYPES[status], value
    assert value["error"]["param"] == param, value
    assert re.fullmatch(r"[A-Z][A-Za-z0-9 ,.'/_\[\]-]+\.", value["error"]["message"]), value
    assert param is None or param in value["error"]["message"], value  # most clients show the sentence alone


def check_refusal(answer: Answer, status: int, reason: str, param: str | None = None, *, final: bool = False) -> None:
    """A refusal before the first byte, with every header it must have and none that it must not.

    `final` is one of the router that would be refused again.
    """
    assert (answer.status, answer.reason) == (status, reason), answer
    check_error(answer.json(), status, reason, param)
    assert answer.clean
    assert answer.get("Content-Type") == "application/json"
    assert answer.get("X-Eid-Error-Reason") == reason
    assert answer.get("X-Request-Id") == answer.json()["request_id"]
    assert answer.get("Cache-Control") == "no-store"
    assert answer.get("Server") is None
    assert answer.get("Server-Timing") is None
    retry_after, should_retry = answer.get("Retry-After"), answer.get("x-should-retry")
    if status < 500:
        assert (retry_after, should_retry) == (None, None), answer
        assert answer.get("Connection") == "close", answer
    elif final or reason in NO_RETRY:
        assert (retry_after, should_retry) == (None, "false"), answer
    else:
        assert retry_after is not None, answer
        assert 1 <= int(retry_after) <= 60
        assert should_retry is None, answer


def check_error_event(answer: Answer, status: int, reason: str) -> None:
    """A failure after the first byte: one error event, the last, a clean end, no `[DONE]`."""
    assert answer.status == 200, answer
    assert answer.clean, answer
    said = answer.told()
    assert not said.done, answer
    assert len(said.errors) == 1, answer
    last = answer.events()[-1]
    assert last.event == "error"
    check_error(last.json(), status, reason)
    assert last.json()["request_id"] == answer.get("X-Request-Id")


def at_rest(router: Router, proxy: Proxy, timeout: float = 30.0) -> None:
    """Nothing is left over: no busy socket at the router, no slot, no place in the queue, no running request."""
    router.wait_for(lambda: router.busy_sockets == 0 and router.concurrent == 0, timeout)

    def empty() -> bool:
        status = proxy.status()
        gate = status["gate"]
        return not (gate["in_use"] or gate["holders"] or gate["waiting"] or any(status["streams"].values()))

    until(empty, timeout, "the proxy at rest")


AT_ONCE = 300
"""So many rounds may go by until each process and thread has seen it: a tenth of a second of a quiet machine."""


def rounds(where: Dialled, over: Callable[[], object], most: int = 1000) -> int:
    """How often one asks for another thing, one after the other, until it is over: at once is a few times.

    A count of turns instead of seconds: on a busy machine each of them takes longer, and there are no more of them.
    """
    for number in range(most):
        if over():
            return number
        assert ask(where, "GET", "/healthz", timeout=60).status == 200
    raise AssertionError(f"not over after {most} rounds")


def nothing_left(router: Router, proxy: Proxy, files: int) -> None:
    """At rest, and besides: no second `daily` at any time, no slot taken back, no descriptor more than `files`."""
    at_rest(router, proxy)
    assert router.max_concurrent_by_model["mac-mini-default"] == 1
    samples = proxy.metrics()
    assert samples[sample("eidproxy_gate_forced_releases_total")] == 0
    for mode in ("daily", "deep"):
        for phase in ("queued", "upstream", "streaming"):
            assert samples[sample("eidproxy_requests_in_progress", mode=mode, phase=phase)] == 0
    until(lambda: proxy.fds() <= files, what="descriptors given back")
    assert [line for line in proxy.log() if line["event"] == "fault"] == []
