"""eidproxy in front of real model servers and routers with a toy model whose every answer is known (see toy.py)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab.callers import check_error_event, check_refusal
from tests.lab.client import CHAT, Answer, RawClient, ask, chat, request_bytes
from tests.lab.proxy import Proxy
from tests.routers.servers import KEY, Server, litellm, llama_server, mlx_lm_server, proxied, started

TEXT = "The answer is 안녕 🦊 done."
TOOL = {
    "type": "function",
    "function": {
        "name": "temperature",
        "description": "Tell how warm it is.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "degrees": {"type": "integer"}},
    "required": ["city", "degrees"],
    "additionalProperties": False,
}

pytestmark = pytest.mark.timeout(240)


@dataclass
class Zoo:
    """One router, the model servers behind it, and eidproxy before it."""

    kind: str
    router: Server
    daily: Server
    proxy: Proxy
    canaries: list[str]

    def ask(self, body: dict[str, Any], proxy: Proxy | None = None) -> Answer:
        """One request; its answer is looked through for what nobody may be told."""
        return self.sound(ask(proxy or self.proxy, "POST", CHAT, body, timeout=60))

    def sound(self, answer: Answer) -> Answer:
        """The answer, when it is built from the closed schema and tells nothing of what stands behind it."""
        names = {name.lower() for name, _ in answer.headers}
        assert names <= HEADERS, names - HEADERS
        whole = f"{answer.headers}\n{answer.body.decode()}"
        assert [canary for canary in self.canaries if stands_in(canary, whole)] == []
        if (answer.get("content-type") or "").startswith("text/event-stream"):
            for event in answer.events():
                if event.event == "message" and event.data != "[DONE]":
                    closed(event.json(), {"choices": [{"index": 0, "delta": DELTA, "finish_reason": 0}]})
        elif answer.status == 200:
            message = {**DELTA, "refusal": 0}
            choice = {"index": 0, "message": message, "logprobs": 0, "finish_reason": 0}
            usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
            closed(answer.json(), {"choices": [choice], "usage": usage})
            assert answer.json()["usage"] == usage
        return answer


def stands_in(canary: str, text: str) -> bool:
    """Whether a text has it, in any case; a port or `mlx` as a word, since a random id has those letters at times."""
    is_short = canary.isdigit() or (canary.isalnum() and len(canary) < 5)
    pattern = rf"(?<![0-9a-z]){canary}(?![0-9a-z])" if is_short else re.escape(canary)
    return re.search(pattern, text, re.IGNORECASE) is not None


HEADERS = {
    *("x-request-id", "cache-control", "date", "content-type", "content-length", "transfer-encoding", "connection"),
    *("x-accel-buffering", "server-timing", "x-eid-error-reason", "retry-after", "x-should-retry"),
}
CALL = {"index": 0, "id": 0, "type": 0, "function": {"name": 0, "arguments": 0}}
DELTA = {"role": 0, "content": 0, "reasoning_content": 0, "refusal": 0, "tool_calls": [CALL]}


def closed(value: Any, shape: Any) -> None:
    """No name stands in the value that is not in the shape; at the top, also those of every answer."""
    top = {"id": 0, "object": 0, "created": 0, "model": 0} if "choices" in shape else {}
    assert value.keys() <= {**shape, **top}.keys(), value
    for name, inner in shape.items():
        found = value.get(name)
        for each in found if isinstance(found, list) else [found]:
            form = inner[0] if isinstance(inner, list) else inner
            if isinstance(each, dict):
                closed(each, form)


@pytest.fixture(scope="module", params=["llama-server", "mlx_lm.server", "LiteLLM"])
def zoo(request: pytest.FixtureRequest, place: Path) -> Iterator[Zoo]:
    """Each of the routers in turn. LiteLLM has llama-server behind `daily` and mlx behind `deep`."""
    kind = str(request.param)
    with contextlib.ExitStack() as stack:
        if kind == "mlx_lm.server":
            router = daily = stack.enter_context(started(mlx_lm_server(place)))
        else:
            router = daily = stack.enter_context(started(llama_server(place)))
        if kind == "LiteLLM":
            deep = stack.enter_context(started(mlx_lm_server(place)))
            router = stack.enter_context(started(litellm(place, daily, deep)))
        proxy = stack.enter_context(proxied(router, EIDPROXY_MODELS_MAX_TOKENS=30000))
        yield Zoo(kind, router, daily, proxy, [*told_directly(router), str(place), str(daily.port), str(router.port)])


def told_directly(router: Server) -> list[str]:
    """What the router itself tells of its kind, so that it is known what to look for: the control of `Zoo.sound`."""
    key = {"Authorization": f"Bearer {KEY}"}
    answer = ask(("127.0.0.1", router.port), "POST", CHAT, chat("mac-mini-default"), key, timeout=60)
    first = answer.events()[0].json()
    told = ["mac-mini", "qwen-macbook", first["model"], first["system_fingerprint"], first["id"].split("-")[-1]]
    return [*told, KEY, "litellm", "llama", "mlx", "timings", "system_fingerprint", "cached_tokens"]


@pytest.mark.parametrize("stream", [True, False])
def test_the_router_itself_tells(zoo: Zoo, stream: bool) -> None:
    """Control: an answer that did not come through eidproxy does not pass."""
    key = {"Authorization": f"Bearer {KEY}"}
    answer = ask(("127.0.0.1", zoo.router.port), "POST", CHAT, chat("mac-mini-default", stream), key, timeout=60)
    assert answer.status == 200
    unnamed = Answer(200, [], answer.body, clean=True)
    for told in (answer, unnamed):
        with pytest.raises(AssertionError):
            zoo.sound(told)


@pytest.mark.parametrize("mode", ["daily", "deep"])
def test_text(zoo: Zoo, mode: str) -> None:
    """Letters that are cut over tokens arrive whole, in a stream and without one."""
    streamed = zoo.ask(chat(mode)).told()
    assert (streamed.text, streamed.finish_reason, streamed.done) == (TEXT, "stop", True)
    (choice,) = zoo.ask(chat(mode, stream=False)).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (TEXT, "stop")


@pytest.mark.parametrize("mode", ["daily", "deep"])
def test_length(zoo: Zoo, mode: str) -> None:
    told = zoo.ask(chat(mode, say="count", max_tokens=6)).told()
    assert (told.text.strip(), told.finish_reason) == ("one two three one two three", "length")


@pytest.mark.parametrize("mode", ["daily", "deep"])
@pytest.mark.parametrize("stream", [True, False])
def test_tools(zoo: Zoo, mode: str, stream: bool) -> None:
    """A call that the server's own parser found, and the answer to its result."""
    answer = zoo.ask(chat(mode, stream, tools=[TOOL]))
    if stream:
        deltas = [choice["delta"] for event in answer.events()[:-1] for choice in event.json()["choices"]]
        pieces = [piece for delta in deltas for piece in delta.get("tool_calls") or ()]
        assert {piece["index"] for piece in pieces} == {0}
        (name,) = [piece["function"]["name"] for piece in pieces if piece["function"].get("name")]
        arguments = "".join(piece["function"].get("arguments") or "" for piece in pieces)
        call = {"id": pieces[0]["id"], "type": "function", "function": {"name": name, "arguments": arguments}}
        message: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [call]}
        assert answer.told().finish_reason == "tool_calls"
    else:
        (choice,) = answer.json()["choices"]
        message = choice["message"]
        (call,) = message["tool_calls"]
        assert choice["finish_reason"] == "tool_calls"
    assert call["function"]["name"] == "temperature"
    assert json.loads(call["function"]["arguments"]) == {"city": "Seoul"}
    result = {"role": "tool", "tool_call_id": call["id"], "content": "21 degrees"}
    messages = [*chat()["messages"], message, result]
    assert zoo.ask(chat(mode, stream=True, tools=[TOOL], messages=messages)).told().text == TEXT


@pytest.mark.parametrize("mode", ["daily", "deep"])
@pytest.mark.parametrize("form", ["json_object", "json_schema"])
def test_json(zoo: Zoo, mode: str, form: str) -> None:
    wanted: dict[str, Any] = {"type": form}
    if form == "json_schema":
        wanted["json_schema"] = {"name": "weather", "schema": SCHEMA, "strict": True}
    told = zoo.ask(chat(mode, say="JSON please", response_format=wanted)).told()
    assert json.loads(told.text) == {"city": "Busan", "degrees": 24}
    assert told.finish_reason == "stop"


@pytest.mark.parametrize("stream", [True, False])
def test_long_prompt(zoo: Zoo, stream: bool) -> None:
    """One over the context is the caller's fault. mlx_lm.server checks nothing: there it is only a long prefill."""
    if zoo.kind != "mlx_lm.server":
        check_refusal(zoo.ask(chat("daily", stream, say="word " * 8000)), 400, "context_too_long")
    answer = zoo.ask(chat("daily", stream, say="word " * 1000))
    text = answer.told().text if stream else answer.json()["choices"][0]["message"]["content"]
    assert text == TEXT


def test_wrong_alias(zoo: Zoo) -> None:
    """What the operator must mend is not asked for again. llama-server takes any alias."""
    with proxied(zoo.router, EIDPROXY_MODELS_DAILY_ALIAS="nobody-knows") as proxy:
        for stream in (True, False):
            answer = zoo.ask(chat("daily", stream), proxy)
            assert "nobody-knows" not in answer.body.decode()
            match zoo.kind:
                case "llama-server":
                    assert answer.status == 200
                case "mlx_lm.server":
                    told = (answer.status, answer.reason, answer.get("x-should-retry"))
                    assert told == (503, "router_http_404", "false")
                case _:
                    check_refusal(answer, 500, "router_rejected")


def test_wrong_key(zoo: Zoo) -> None:
    """LiteLLM looks for an unknown key in a database it does not have, and says 400."""
    if zoo.kind == "mlx_lm.server":
        pytest.skip("mlx_lm.server has no keys")
    with proxied(zoo.router, "sk-wrong") as proxy:
        answer = zoo.ask(chat("daily"), proxy)
        if zoo.kind == "LiteLLM":
            check_refusal(answer, 500, "router_rejected")
        else:
            told = (answer.status, answer.reason, answer.get("x-should-retry"))
            assert told == (503, "router_http_401", "false")


def test_twenty_at_once(zoo: Zoo) -> None:
    """All are whole, whatever their mode."""
    bodies = [chat("daily" if number % 4 else "deep", number % 2 == 0) for number in range(20)]
    texts: list[str] = []

    def one(body: dict[str, Any]) -> None:
        answer = zoo.ask(body)
        texts.append(answer.told().text if body["stream"] else answer.json()["choices"][0]["message"]["content"])

    threads = [threading.Thread(target=one, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [TEXT] * 20


def test_killed_in_mid_stream(zoo: Zoo) -> None:
    """One error event and no `[DONE]`; a refusal while it is down; the first request after its return is served."""
    with RawClient(zoo.proxy, timeout=60) as client:
        client.send(request_bytes("POST", CHAT, chat("daily", say="count")))
        status, headers = client.read_head()
        assert status == 200
        events = client.events()
        body = next(events)
        assert zoo.daily.process is not None
        # Stopped first, so that what was on the way does not decide where the stream is cut.
        os.kill(zoo.daily.process.pid, signal.SIGSTOP)
        zoo.daily.kill()
        body += b"".join(events)
        answer = zoo.sound(Answer(status, headers, body, client.clean))
    reason = {"LiteLLM": "upstream_error"}.get(zoo.kind, "upstream_truncated")
    check_error_event(answer, 503, reason)
    assert ("one two three " * 30000).startswith(answer.told().text)
    down = zoo.ask(chat("daily"))
    check_refusal(down, 503, "router_http_500" if zoo.kind == "LiteLLM" else "router_ConnectError")
    zoo.daily.start()
    assert zoo.ask(chat("daily")).told().text == TEXT


@pytest.mark.parametrize(
    ("canary", "text", "stands"),
    [
        ("mlx", '"system_fingerprint":"0.31-MLX"', True),
        ("mlx", "served by mlx_lm.server", True),
        ("mlx", '"id":"callAmLx0xQ"', False),
        ("13237", "http://127.0.0.1:13237/v1", True),
        ("13237", '"id":"a132370b"', False),
        ("llama", "ggml-llama3", True),
    ],
)
def test_what_a_name_that_stands_in_an_answer_is(canary: str, text: str, stands: bool) -> None:
    assert stands_in(canary, text) is stands


def test_nothing_is_left(zoo: Zoo) -> None:
    """The last of each router: no slot and no stream is held."""
    status = zoo.proxy.status()
    assert (status["gate"]["in_use"], status["gate"]["waiting"], status["streams"]) == (0, [], {"daily": 0, "deep": 0})
    assert zoo.proxy.metric("eidproxy_gate_forced_releases_total") == 0
