"""A real mlx_lm.server that says nothing: a long prefill, one that nobody waits for any more, a hang (contract, 6).

It reads a prompt in steps of 2048 tokens and tells after each how far it is, in a comment and in its log. With the toy
model a byte is a token, and a step takes some tenths of a second.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.lab.callers import check_refusal
from tests.lab.client import CHAT, RawClient, ask, chat, request_bytes
from tests.lab.proxy import Proxy
from tests.lab.tools import size, until
from tests.routers.servers import Server, mlx_lm_server, proxied, started
from tests.routers.test_routers import TEXT, TOOL

pytestmark = pytest.mark.timeout(240)

STEP = re.compile(r"^(\S+ \S+),(\d{3}) - INFO - Prompt processing progress: \d+/(\d+)$", re.MULTILINE)
NUMBER = itertools.count(1)


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Server]:
    with started(mlx_lm_server(place)) as server:
        yield server


def long_prompt() -> str:
    """Some twelve steps, and none of them of a prompt that the server has read before."""
    return f"{next(NUMBER)} " + "word " * 4800


def steps(server: Server) -> list[float]:
    """When the server had read each step of the long prompts so far."""
    found = [(moment, int(ms)) for moment, ms, tokens in STEP.findall(server.said()) if int(tokens) > 20_000]
    return [datetime.strptime(moment, "%Y-%m-%d %H:%M:%S").timestamp() + ms / 1000 for moment, ms in found]


@pytest.fixture(scope="module")
def three_steps(server: Server) -> float:
    """How many seconds this machine, as busy as it is now, takes for the first three steps of a long prompt."""
    had, began = len(steps(server)), time.monotonic()
    with Proxy(server.url, EIDPROXY_ROUTER_FIRST_EVENT_SECONDS=300) as proxy, RawClient(proxy) as client:
        client.send(request_bytes("POST", CHAT, chat(say=long_prompt())))
        until(lambda: len(steps(server)) >= had + 3, timeout=120)
        client.rst()
    return time.monotonic() - began


IMPATIENT: dict[str, Any] = {
    "EIDPROXY_ROUTER_FIRST_EVENT_SECONDS": 3,
    "EIDPROXY_ROUTER_FIRST_EVENT_SECONDS_PER_KIB": 0,
    "EIDPROXY_ROUTER_READ_TIMEOUT_SECONDS": 3,
    "EIDPROXY_ROUTER_WEDGE_RETRY_SECONDS": 1,
}


def hang(server: Server) -> None:
    """The server stands still, and the kernel goes on taking connections for it."""
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGSTOP)


def go_on(server: Server) -> None:
    """The server goes on where it stood."""
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGCONT)


HEARS_NO_COMMENT = """
from eidproxy.relay.silence import SilenceClock
SilenceClock.note_comment = lambda self, text, now: False
"""


@pytest.mark.parametrize("planted", [None, HEARS_NO_COMMENT], ids=["", "control: comments are no sign of life"])
def test_a_prefill_that_counts_itself_up_is_no_silence(server: Server, three_steps: float, planted: str | None) -> None:
    """Three steps, then a long one: the server stands still in it for longer than it may be silent from the start."""
    allowed = max(8.0, 3 * three_steps)
    had = len(steps(server))
    settings = {**IMPATIENT, "EIDPROXY_ROUTER_FIRST_EVENT_SECONDS": allowed}
    settings["EIDPROXY_ROUTER_READ_TIMEOUT_SECONDS"] = 15 * allowed
    with Proxy(server.url, planted=planted, **settings) as proxy, RawClient(proxy, timeout=120) as client:
        client.send(request_bytes("POST", CHAT, chat(say=long_prompt())))
        until(lambda: len(steps(server)) >= had + 3)
        hang(server)
        try:
            if planted is not None:
                assert client.read_head().get("X-Eid-Error-Reason") == "upstream_silent"
                return
            until(lambda: proxy.status()["gate"]["holders"][0]["age_seconds"] > allowed + 1, timeout=10 * allowed)
        finally:
            go_on(server)
        assert client.read_head().status == 200
        assert client.read_body().endswith(b"data: [DONE]\n\n")


CLOSES = """
from eidproxy.router import transport
transport.reset_on_close = lambda sock: None
"""


@pytest.mark.parametrize(("planted", "for_nobody"), [(None, 1), (CLOSES, 2)], ids=["reset", "control: close"])
def test_what_is_computed_for_a_caller_that_left(server: Server, planted: str | None, for_nobody: int) -> None:
    """A reset is told to the server by its next comment, a close by the one after: a step more for nobody."""
    with Proxy(server.url, planted=planted, EIDPROXY_ROUTER_FIRST_EVENT_SECONDS=300) as proxy:
        for _ in range(size(1, 3)):
            had = len(steps(server))
            with RawClient(proxy, timeout=60) as leaver, RawClient(proxy, timeout=60) as waiter:
                leaver.send(request_bytes("POST", CHAT, chat(say=long_prompt())))
                until(lambda had=had: len(steps(server)) >= had + 3)  # type: ignore[misc]
                waiter.send(request_bytes("POST", CHAT, chat()))
                until(lambda: len(proxy.status()["gate"]["waiting"]) == 1)
                left_at = time.time()
                leaver.rst()
                assert waiter.read_head().status == 200
                print(
                    f"EIDPROXY leave: the next caller's first event came after {(time.time() - left_at) * 1e3:.0f} ms"
                )
                assert waiter.read_body().endswith(b"data: [DONE]\n\n")
            assert sum(moment > left_at for moment in steps(server)) == for_nobody


def test_a_server_that_hangs_costs_two_callers_and_is_found_again(server: Server) -> None:
    with proxied(server, **IMPATIENT) as proxy:
        assert ask(proxy, "POST", CHAT, chat(), timeout=60).told().text == TEXT
        hang(server)
        try:
            for reason in ("upstream_silent", "upstream_silent", "upstream_wedged"):
                check_refusal(ask(proxy, "POST", CHAT, chat(), timeout=60), 503, reason)
            assert ask(proxy, "GET", "/readyz").status == 200
        finally:
            go_on(server)
        until(lambda: proxy.status()["upstream"]["daily"]["next_trial_seconds"] == 0)
        assert ask(proxy, "POST", CHAT, chat(), timeout=60).told().text == TEXT
        assert proxy.status()["upstream"]["daily"]["state"] == "live"


def test_a_call_that_is_generated_unseen_is_waited_for(server: Server) -> None:
    """The server writes a call when it is whole. Here that takes three times the allowance."""
    with proxied(server, **IMPATIENT) as proxy, RawClient(proxy, timeout=60) as client:
        hang(server)
        try:
            client.send(request_bytes("POST", CHAT, chat(tools=[TOOL])))
            until(lambda: any(holder["age_seconds"] >= 9 for holder in proxy.status()["gate"]["holders"]))
        finally:
            go_on(server)
        assert client.read_head().status == 200
        body = client.read_body()
        assert body.count(b'"name":"temperature"') == 1
        assert body.endswith(b"data: [DONE]\n\n")
