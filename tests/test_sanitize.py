"""The closed chunk: what may pass of an event, what is counted, what ends the stream, and the whole answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from eidproxy.sanitize import (
    Choice,
    Completion,
    Delta,
    Sanitizer,
    UpstreamFailed,
    chunk_head,
    progress_chunk,
    rebuild,
)
from eidproxy.sse import ErrorData, EventParser
from eidproxy.vocabulary import FINISH_REASONS, Dropped, Stripped, TokenKind
from tests import corpus, fuzz
from tests.corpus.expect import split
from tests.cost import cost

HEAD = chunk_head("id-1", 1700000000, "daily")


def event(delta: Any = None, **fields: Any) -> bytes:
    """A chunk with one choice; `finish_reason` and `index` go into the choice, the rest beside it."""
    choice: dict[str, Any] = {"index": 0, "delta": {} if delta is None else delta}
    choice |= {name: fields.pop(name) for name in ("finish_reason", "index") if name in fields}
    return json.dumps({"id": "x", "choices": [choice], **fields}).encode()


NONE_STRIPPED = dict.fromkeys(Stripped, 0)


def passes(data: bytes, sanitizer: Sanitizer | None = None) -> dict[str, Any] | None:
    """The choice that the caller gets for an event."""
    sanitizer = sanitizer or Sanitizer(HEAD)
    choice = sanitizer.read(data)
    if choice is None:
        return None
    frame = sanitizer.encode(choice)
    assert frame.startswith(HEAD)
    assert frame.endswith(b"]}\n\n")
    (found,) = json.loads(frame.removeprefix(b"data: "))["choices"]
    assert isinstance(found, dict)
    return found


def choice(delta: Any, finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason}


# What a frame is made of


def test_a_frame_byte_by_byte() -> None:
    sanitizer = Sanitizer(HEAD)
    found = sanitizer.read(event({"role": "assistant", "content": "일\n\u2028"}))
    assert found is not None
    assert sanitizer.encode(found) == (
        b'data: {"id":"chatcmpl-id-1","object":"chat.completion.chunk","created":1700000000,"model":"daily",'
        b'"choices":[{"index":0,"delta":{"role":"assistant","content":"' + "일\\n\u2028".encode() + b'"},'
        b'"finish_reason":null}]}\n\n'
    )


def test_a_progress_chunk_byte_by_byte() -> None:
    assert progress_chunk(HEAD, {"state": "queued", "position": 2, "eta_seconds": None}) == (
        HEAD + b'],"eid":{"state":"queued","position":2,"eta_seconds":null}}\n\n'
    )


DELTAS: dict[str, tuple[Any, Any]] = {
    "empty": ({}, {}),
    "null": (None, {}),
    "content": ({"content": "a"}, {"content": "a"}),
    "empty content": ({"content": ""}, {"content": ""}),
    "content null": ({"content": None}, {}),
    "role": ({"role": "assistant"}, {"role": "assistant"}),
    "another role": ({"role": "/models/qwen"}, {"role": "assistant"}),
    "role null": ({"role": None, "content": "a"}, {"content": "a"}),
    "reasoning_content": ({"reasoning_content": "r"}, {"reasoning_content": "r"}),
    "reasoning": ({"reasoning": "r"}, {"reasoning_content": "r"}),
    "both": ({"reasoning": "a", "reasoning_content": "b"}, {"reasoning_content": "b"}),
    "both, one empty": ({"reasoning": "a", "reasoning_content": ""}, {"reasoning_content": ""}),
    "refusal": ({"refusal": "no"}, {"refusal": "no"}),
    "unknown": ({"x": "canary", "content": "a", "audio": {"data": "x"}}, {"content": "a"}),
    "no calls": ({"tool_calls": None}, {}),
    "calls of none": ({"tool_calls": []}, {"tool_calls": []}),
    "a call": (
        {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]},
    ),
    "a piece of a call": (
        {"tool_calls": [{"index": 1, "function": {"arguments": '{"x'}}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": '{"x'}}]},
    ),
    "calls without an index": (
        {"tool_calls": [{"function": {"name": "f"}}, {"index": None, "function": {"name": "g"}}]},
        {"tool_calls": [{"index": 0, "function": {"name": "f"}}, {"index": 1, "function": {"name": "g"}}]},
    ),
    "a call of another type": (
        {"tool_calls": [{"index": 0, "type": "mcp"}]},
        {"tool_calls": [{"index": 0, "type": "function"}]},
    ),
    "a call of nothing": (
        {"tool_calls": [{"function": None, "id": None, "type": None}]},
        {"tool_calls": [{"index": 0}]},
    ),
    "a call with more": (
        {"tool_calls": [{"index": 0, "x": "canary", "function": {"name": "f", "y": "canary"}}]},
        {"tool_calls": [{"index": 0, "function": {"name": "f"}}]},
    ),
}


@pytest.mark.parametrize(("delta", "wanted"), DELTAS.values(), ids=DELTAS.keys())
def test_what_may_pass_of_a_delta(delta: Any, wanted: Any) -> None:
    data = json.dumps({"choices": [{"delta": delta}]}).encode()
    assert passes(data) == choice(wanted)


@pytest.mark.parametrize(
    "data",
    [
        b'{"choices":[{}]}',
        b'{"choices":[{"index":null,"delta":null,"finish_reason":null}]}',
        b'{"choices":[{"message":{"content":"canary"},"text":"canary","logprobs":{"content":[]}}]}',
        b'{"choices":[{}],"model":"/models/canary","system_fingerprint":"canary","timings":{},"x":[[["canary"]]]}',
        b' {"choices" : [ { } ] , "error" : null , "detail":null}\n',
        b'{"choices":[{}],"x":"\xff"}',
        b'{"choices":[{}],"x":1e999}',
    ],
)
def test_an_empty_chunk_is_an_empty_chunk(data: bytes) -> None:
    assert passes(data) == choice({})


@pytest.mark.parametrize("reason", sorted(FINISH_REASONS))
def test_finish_reasons(reason: str) -> None:
    sanitizer = Sanitizer(HEAD)
    assert passes(event(finish_reason=reason), sanitizer) == choice({}, reason)
    assert sanitizer.finished
    assert sanitizer.finish_reason == reason


@pytest.mark.parametrize("reason", ["", "eos", "STOP", "stop ", "end_turn", "canary", "error", "null"])
def test_another_finish_reason_is_stop(reason: str) -> None:
    sanitizer = Sanitizer(HEAD)
    assert passes(event({"content": "a"}, finish_reason=reason), sanitizer) == choice({"content": "a"}, "stop")
    assert sanitizer.finish_reason == "stop"


def test_only_the_choice_of_index_0_is_read() -> None:
    other, ours = {"index": 1, "delta": {"content": "canary"}}, {"index": 0, "delta": {"content": "a"}}
    for choices in ([ours, other], [other, ours], [other, other, {"delta": {"content": "a"}}], [ours, ours]):
        assert passes(json.dumps({"choices": choices}).encode()) == choice({"content": "a"})
    sanitizer = Sanitizer(HEAD)
    done = {"index": 1, "delta": {}, "finish_reason": "stop"}
    assert passes(json.dumps({"choices": [other, done]}).encode(), sanitizer) is None
    assert not sanitizer.finished
    assert sanitizer.dropped == {Dropped.EMPTY: 1}


# What is dropped

DROPPED: dict[str, tuple[bytes, Dropped]] = {
    "nothing": (b"", Dropped.EMPTY),
    "no choices": (b"{}", Dropped.EMPTY),
    "choices null": (b'{"choices":null}', Dropped.EMPTY),
    "choices empty": (b'{"choices":[],"usage":{}}', Dropped.EMPTY),
    "text": (b"hello", Dropped.NOT_JSON),
    "cut": (b'{"choices":[{"delta":{"content":"a"', Dropped.NOT_JSON),
    "two objects": (b'{"choices":[]}{}', Dropped.NOT_JSON),
    "NaN": (b'{"x":NaN}', Dropped.NOT_JSON),
    "done in other letters": (b"[done]", Dropped.NOT_JSON),
    "done and a blank": (b"[DONE] ", Dropped.NOT_JSON),
    "not UTF-8": (b'{"choices":[{"delta":{"content":"\xff"}}]}', Dropped.NOT_JSON),
    "a lone surrogate": (b'{"choices":[{"delta":{"content":"\\ud800"}}]}', Dropped.NOT_JSON),
    "deep": (b'{"x":' + b"[" * 100_000, Dropped.NOT_JSON),
    "deep where a type is wrong": (b'{"choices":5,"x":' + b"[" * 100_000, Dropped.NOT_JSON),
    "wrong, then no JSON": (b'{"choices":5,', Dropped.NOT_JSON),
    "null": (b"null", Dropped.NOT_OBJECT),
    "number": (b"5", Dropped.NOT_OBJECT),
    "string": (b'"[DONE]"', Dropped.NOT_OBJECT),
    "true": (b"true", Dropped.NOT_OBJECT),
    "array": (b'[{"choices":[]}]', Dropped.NOT_OBJECT),
    "choices an object": (b'{"choices":{"0":{}}}', Dropped.NOT_OBJECT),
    "choices a string": (b'{"choices":"canary"}', Dropped.NOT_OBJECT),
    "a choice null": (b'{"choices":[null]}', Dropped.NOT_OBJECT),
    "delta a string": (event("canary"), Dropped.NOT_OBJECT),
    "delta a list": (event([]), Dropped.NOT_OBJECT),
    "content a number": (event({"content": 5}), Dropped.NOT_OBJECT),
    "content a list": (event({"content": [{"type": "text", "text": "canary"}]}), Dropped.NOT_OBJECT),
    "finish_reason a number": (event(finish_reason=5), Dropped.NOT_OBJECT),
    "finish_reason true": (event(finish_reason=True), Dropped.NOT_OBJECT),
    "index a string": (event(index="0"), Dropped.NOT_OBJECT),
    "index true": (event(index=True), Dropped.NOT_OBJECT),
    "a call null": (event({"tool_calls": [None]}), Dropped.NOT_OBJECT),
    "arguments an object": (event({"tool_calls": [{"function": {"arguments": {}}}]}), Dropped.NOT_OBJECT),
    "wrong, and error null": (b'{"choices":5,"error":null,"detail":null}', Dropped.NOT_OBJECT),
}


@pytest.mark.parametrize(("data", "kind"), DROPPED.values(), ids=DROPPED.keys())
def test_an_event_is_dropped_and_counted(data: bytes, kind: Dropped) -> None:
    sanitizer = Sanitizer(HEAD)
    assert passes(data, sanitizer) is None
    assert sanitizer.dropped == {kind: 1}
    assert not sanitizer.finished
    assert not sanitizer.said_done
    assert passes(data, sanitizer) is None
    assert sanitizer.dropped == {kind: 2}


# What ends a stream

FAILURES: dict[str, tuple[bytes, str]] = {
    "an object": (b'{"error":{"message":"canary","type":"warming"}}', "warming"),
    "an object without a word": (b'{"error":{"message":"canary","code":500}}', "upstream_error"),
    "an empty object": (b'{"error":{}}', "upstream_error"),
    "a string": (b'{"error":"canary"}', "upstream_error"),
    "an empty string": (b'{"error":""}', "upstream_error"),
    "a string and a reason": (b'{"error":"canary","error_reason":"editor_busy"}', "editor_busy"),
    "of OpenAI": (b'{"error":{"message":"x","type":"server_error","param":null,"code":null}}', "server_error"),
    "of a type outside the alphabet": (b'{"error":{"type":"Internal Error"}}', "upstream_error"),
    "beside choices": (b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"error":{"type":"a"}}', "a"),
    "beside a choice of error": (b'{"error":{"type":"a"},"choices":[{"finish_reason":"error"}]}', "a"),
    "beside strange choices": (b'{"choices":5,"error":{"type":"warming"}}', "warming"),
    "a string beside strange choices": (b'{"choices":"canary","error":"canary"}', "upstream_error"),
    "detail": (b'{"detail":"canary"}', "upstream_error"),
    "detail a list": (b'{"detail":[{"loc":["canary"]}]}', "upstream_error"),
    "detail beside strange choices": (b'{"choices":5,"detail":"canary"}', "upstream_error"),
    "message beside": (b'{"error":{"message":"x"},"message":"canary"}', "upstream_error"),
    "a word of ours": (b'{"error":{"type":"client_gone"}}', "client_gone"),
    "an error event": (ErrorData(b'{"error":{"type":"warming"}}'), "warming"),
    "an error event of a chunk": (ErrorData(event({"content": "a"})), "upstream_error"),
    "an error event of text": (ErrorData(b"canary"), "upstream_error"),
    "an error event of nothing": (ErrorData(b""), "upstream_error"),
    "an error event that says done": (ErrorData(b"[DONE]"), "upstream_error"),
}


@pytest.mark.parametrize(("data", "reason"), FAILURES.values(), ids=FAILURES.keys())
def test_an_error_in_any_dialect(data: bytes, reason: str) -> None:
    sanitizer = Sanitizer(HEAD)
    with pytest.raises(UpstreamFailed) as caught:
        sanitizer.read(data)
    assert caught.value.reason == reason
    assert str(caught.value) == reason
    assert not sanitizer.finished
    assert not sanitizer.said_done


@pytest.mark.parametrize(("data", "reason"), FAILURES.values(), ids=FAILURES.keys())
def test_an_error_after_the_finish_reason_changes_nothing(data: bytes, reason: str) -> None:
    sanitizer = Sanitizer(HEAD)
    sanitizer.read(event(finish_reason="length"))
    assert sanitizer.read(data) is None
    assert (sanitizer.finish_reason, sanitizer.said_done, sanitizer.dropped) == ("length", False, {})


def test_nothing_passes_after_the_finish_reason_but_counts() -> None:
    sanitizer = Sanitizer(HEAD)
    sanitizer.read(event(finish_reason="stop"))
    assert sanitizer.read(event({"content": "canary"}, finish_reason="length", model="m")) is None
    assert sanitizer.finish_reason == "stop"
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    assert sanitizer.read(event({}, usage=usage)) is None
    assert sanitizer.tokens == {TokenKind.PROMPT: 3, TokenKind.COMPLETION: 4}
    assert sanitizer.stripped[Stripped.MODEL] == 1
    assert sanitizer.read(b"[DONE]") is None
    assert sanitizer.said_done


# The usual event


USUAL: dict[str, bytes] = {
    "content": event({"content": "일\n\u2028"}, model="m"),
    "with the role again": event({"role": "assistant", "content": "a"}, model="m"),
    "nothing": event({}, model="m"),
    "reasoning": event({"reasoning_content": "a", "content": None}, model="m"),
    "a refusal": event({"refusal": "a"}, model="m"),
    "with nulls": event({"content": "a", "tool_calls": None, "reasoning": None}, finish_reason=None, model="m"),
    "with null errors": event({"content": "a"}, model="m", error=None, detail=None),
    "with facts": event({"content": "a", "logprobs": "canary"}, model="m", system_fingerprint="canary", created=1),
    "without an index": b'{"model":"m","choices":[{"delta":{"content":"a"}}]}',
    "a delta twice": b'{"model":"m","choices":[{"delta":{"content":"a"},"delta":{"content":"b"}}]}',
}

UNUSUAL: dict[str, bytes] = {
    "without a model": event({"content": "a"}),
    "with usage": event({"content": "a"}, model="m", usage={"prompt_tokens": 1}),
    "with usage null": event({"content": "a"}, model="m", usage=None),
    "the end": event({}, model="m", finish_reason="stop"),
    "an empty end": event({}, model="m", finish_reason=""),
    "an error": event({"content": "a"}, model="m", error="canary"),
    "a detail": event({"content": "a"}, model="m", detail=[]),
    "another role": event({"role": "user", "content": "a"}, model="m"),
    "reasoning by its other name": event({"reasoning": "a"}, model="m"),
    "a call": event({"tool_calls": [{}]}, model="m"),
    "no calls": event({"tool_calls": []}, model="m"),
    "another index": event({"content": "a"}, model="m", index=1),
    "an index of null": event({"content": "a"}, model="m", index=None),
    "a delta of null": b'{"model":"m","choices":[{"index":0,"delta":null}]}',
    "no delta": b'{"model":"m","choices":[{"index":0}]}',
    "no choice": b'{"model":"m","choices":[]}',
    "choices of null": b'{"model":"m","choices":null}',
    "two choices": b'{"model":"m","choices":[{"delta":{}},{"delta":{}}]}',
    "a strange model": event({"content": "a"}, model=5),
    "content of a strange type": event({"content": 5}, model="m"),
    "done": b"[DONE]",
    "nothing": b"",
    "no JSON": b"{",
    "no UTF-8": b'{"model":"m","choices":[{"delta":{"content":"\xff"}}]}',
    "deep": b'{"x":' + b"[" * 100_000,
}


@pytest.mark.parametrize("data", USUAL.values(), ids=USUAL.keys())
def test_a_usual_event_is_rebuilt_to_the_same(data: bytes) -> None:
    sanitizer = Sanitizer(HEAD)
    sanitizer.read(event({"role": "assistant"}))
    found = sanitizer.read(data)
    assert found is not None
    frame = rebuild(HEAD, data)
    assert frame == sanitizer.encode(found)
    assert b"canary" not in frame
    assert (sanitizer.finished, sanitizer.said_done, sanitizer.dropped, sanitizer.tokens) == (False, False, {}, {})
    assert sanitizer.stripped == {**NONE_STRIPPED, Stripped.MODEL: 1}  # what its caller counts for it


@pytest.mark.parametrize("data", UNUSUAL.values(), ids=UNUSUAL.keys())
def test_another_event_is_for_the_sanitizer(data: bytes) -> None:
    assert rebuild(HEAD, data) is None


# What is counted


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}, (3, 4)),
        ({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}}, (3, 0)),
        ({}, (0, 0)),
        ({"prompt_tokens": 10**9, "completion_tokens": 0}, (10**9, 0)),
        ({"prompt_tokens": 10**9 + 1, "completion_tokens": 1}, None),
        ({"prompt_tokens": 10**400, "completion_tokens": 1}, None),
        ({"prompt_tokens": -1, "completion_tokens": 1}, None),
        ({"prompt_tokens": 1.5, "completion_tokens": 1}, None),
        ({"prompt_tokens": "3", "completion_tokens": 1}, None),
        ({"prompt_tokens": None, "completion_tokens": 1}, None),
        ({"prompt_tokens": True, "completion_tokens": 1}, None),
        (None, None),
        ([], None),
        ("canary", None),
        (5, None),
    ],
)
def test_usage_is_counted_and_costs_nobody_the_text(usage: Any, tokens: tuple[int, int] | None) -> None:
    sanitizer = Sanitizer(HEAD)
    assert passes(event({"content": "a"}, usage=usage), sanitizer) == choice({"content": "a"})
    wanted = {} if tokens is None else dict(zip(TokenKind, tokens, strict=True))
    assert sanitizer.tokens == wanted
    assert sanitizer.stripped[Stripped.USAGE] == 1


def test_usage_in_a_chunk_of_its_own() -> None:
    sanitizer = Sanitizer(HEAD)
    assert sanitizer.read(b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}') is None
    assert sanitizer.read(b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":5}}') is None
    assert sanitizer.tokens == {TokenKind.PROMPT: 1, TokenKind.COMPLETION: 5}
    assert sanitizer.stripped == {**NONE_STRIPPED, Stripped.USAGE: 2}
    assert sanitizer.dropped == {Dropped.EMPTY: 2}


def test_deep_usage_is_no_fault() -> None:
    sanitizer = Sanitizer(HEAD)
    assert passes(b'{"choices":[{}],"usage":{"x":' + b"[" * 900 + b"]" * 900 + b"}}", sanitizer) == choice({})
    assert sanitizer.tokens == {TokenKind.PROMPT: 0, TokenKind.COMPLETION: 0}


def test_stripped_fields_are_counted_in_the_first_event_and_the_last() -> None:
    sanitizer = Sanitizer(HEAD)
    sanitizer.read(event({"content": "a"}, model="m"))
    assert sanitizer.stripped == {**NONE_STRIPPED, Stripped.MODEL: 1}
    sanitizer.read(event({"content": "a"}, model="m", timings={}))
    assert sanitizer.stripped == {**NONE_STRIPPED, Stripped.MODEL: 2}
    sanitizer.read(event({"x": 1, "y": 2}, model="m", timings={}, finish_reason="stop"))
    assert sanitizer.stripped == {**NONE_STRIPPED, Stripped.MODEL: 3, Stripped.OTHER: 3}
    sanitizer = Sanitizer(HEAD)
    sanitizer.read(b'{"x":1,"choices":[{"logprobs":null},{"index":1,"z":1,"delta":null}]}')
    assert sanitizer.stripped == {**NONE_STRIPPED, Stripped.OTHER: 3}


def spelled(*choices: dict[str, Any]) -> list[bytes]:
    """Frames of these choices."""
    return [HEAD + json.dumps(choice, separators=(",", ":")).encode() + b"]}\n\n" for choice in choices]


def test_the_events_of_one_read() -> None:
    sanitizer = Sanitizer(HEAD)
    assert sanitizer.frames([]) == []
    events = [
        event({"role": "assistant"}, model="m", a=1),
        event({"content": "a"}, model="m", a=1),  # usual from here
        event({"reasoning": "b"}, model="m", a=1),
        b"{}",
        event({"content": "c"}, model="m", a=1),
        event({}, finish_reason="stop", model="m", a=1),
        event({"content": "canary"}, model="m", a=1),
        b"[DONE]",
        event({"content": "canary"}, model="m", a=1),
    ]
    assert sanitizer.frames(events) == spelled(
        choice({"role": "assistant"}),
        choice({"content": "a"}),
        choice({"reasoning_content": "b"}),
        choice({"content": "c"}),
        choice({}, "stop"),
    )
    assert sanitizer.said_done
    assert sanitizer.stripped == {Stripped.MODEL: 6, Stripped.USAGE: 0, Stripped.OTHER: 2}  # the first's and the last's
    assert sanitizer.dropped == {Dropped.EMPTY: 1}


@pytest.mark.parametrize("error", [b'{"error":{"type":"warming"}}', ErrorData(event({"content": "a"}, model="m"))])
def test_what_comes_before_an_error_is_kept(error: bytes) -> None:
    sanitizer = Sanitizer(HEAD)
    with pytest.raises(UpstreamFailed) as caught:
        sanitizer.frames(
            [event({}), event({"content": "a"}, model="m"), error, event({"content": "canary"}, model="m")]
        )
    assert caught.value.frames == spelled(choice({}), choice({"content": "a"}))


def test_done() -> None:
    sanitizer = Sanitizer(HEAD)
    assert not sanitizer.said_done
    assert sanitizer.read(b"[DONE]") is None
    assert sanitizer.said_done
    assert not sanitizer.finished
    assert sanitizer.dropped == {}


def test_a_number_without_end_in_an_index_is_no_fault_of_ours() -> None:
    data = b'{"choices":[{"delta":{"tool_calls":[{"index":' + b"9" * 4000 + b"}]}}]}"
    found = passes(data)
    assert found is None or found["delta"]["tool_calls"][0]["index"] >= 0


# Recordings


@pytest.mark.parametrize("name", corpus.STREAMS)
def test_a_recording_tells_its_caller_what_it_told_its_reader(name: str) -> None:
    _, _, body = split(corpus.raw(name))
    sanitizer, completion, text = Sanitizer(HEAD), Completion(), b""
    frames = 0
    for data in EventParser().feed(body):
        found = sanitizer.read(data)
        if found is not None:
            frames += 1
            text += sanitizer.encode(found)
            completion.add(found)
    wanted = corpus.EXPECTED[name]
    whole = json.loads(completion.encode("id-1", 1, "daily", sanitizer.finish_reason))
    (only,) = whole["choices"]
    assert only["message"]["content"] == wanted["text"]
    assert only["message"].get("reasoning_content", "") == wanted["reasoning"]
    assert only["finish_reason"] == wanted["finish_reason"]
    assert sanitizer.said_done == wanted["done"]
    assert frames <= wanted["chunks"]
    chunks = [json.loads(data) for data in EventParser().feed(body) if data.startswith(b"{")]
    told = {chunk.get(name, "keepalive") for chunk in chunks for name in ("id", "model", "system_fingerprint")}
    for betrayed in ("fingerprint", "usage", "prompt_tokens", *told):
        assert betrayed.encode() not in text


# The whole answer


def whole(*choices: Choice, finish_reason: str | None = "stop") -> dict[str, Any]:
    completion = Completion()
    for one in choices:
        completion.add(one)
    found: dict[str, Any] = json.loads(completion.encode("id-1", 1700000000, "deep", finish_reason))
    return found


def read(*deltas: Any) -> list[Choice]:
    sanitizer = Sanitizer(HEAD)
    found = [sanitizer.read(event(delta)) for delta in deltas]
    return [one for one in found if one is not None]


def test_a_whole_answer() -> None:
    found = whole(*read({"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo"}), Choice())
    assert found == {
        "id": "chatcmpl-id-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "deep",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
    }


def message(*deltas: Any) -> dict[str, Any]:
    found = whole(*read(*deltas))["choices"][0]["message"]
    assert isinstance(found, dict)
    assert found.pop("role") == "assistant"
    return found


def test_nothing_said_is_an_empty_text() -> None:
    assert message() == {"content": ""}
    assert message({}) == {"content": ""}


def test_reasoning_and_refusal() -> None:
    deltas = [{"reasoning": "a"}, {"reasoning_content": "b", "content": "c"}, {"refusal": "d"}, {"refusal": "e"}]
    assert message(*deltas) == {"content": "c", "reasoning_content": "ab", "refusal": "de"}


def test_calls_are_put_together_by_their_index() -> None:
    deltas = [
        {"tool_calls": [{"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{"}}]},
        {"tool_calls": [{"index": 1, "id": "b", "function": {"name": "g", "arguments": "[]"}}, {"index": 0}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]},
    ]
    calls = [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "[]"}},
    ]
    assert message(*deltas) == {"content": None, "tool_calls": calls}
    assert message({"content": "c"}, *deltas) == {"content": "c", "tool_calls": calls}


def test_the_size_is_what_is_held() -> None:
    completion = Completion()
    for one in read(
        {"content": "일상", "reasoning": "ab", "refusal": "c", "role": "assistant"},
        {"tool_calls": [{"id": "x", "function": {"name": "f", "arguments": "{}"}}, {"function": {"name": "g"}}]},
    ):
        completion.add(one)
    completion.add(Choice(delta=Delta()))
    assert completion.size == 7


# Cost


@pytest.mark.parametrize("data", [b"data\n\n", b"data:1\n\n", b"data:x\n\n", b'data: {"choices":[{}]}\n\n'], ids=repr)
def test_no_read_of_small_events_holds_the_loop(data: bytes) -> None:
    piece = (data * (256_000 // len(data) + 1))[:256_000]

    assert cost(lambda: fuzz.run([piece])) < 0.08
