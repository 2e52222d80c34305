"""The closed chunk, byte by byte, and the short way of common events."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Struct

from eidproxy.inbound.chat import AssistantMessage
from eidproxy.relay.chunk import (
    TEXTS,
    THOUGHTS,
    Delta,
    Frames,
    Function,
    Message,
    ToolCall,
    _CommonDelta,
    chunk_head,
)
from eidproxy.relay.dialect import _KNOWN_FIELDS, RouterDelta, _LooseDelta, decode_event
from eidproxy.relay.sanitize import Sanitizer

HEAD = chunk_head("id-1", 1700000000, "daily")


def event(delta: Any = None, **fields: Any) -> bytes:
    """A chunk with one choice; `finish_reason` and `index` go into the choice, the rest beside it."""
    choice: dict[str, Any] = {"index": 0, "delta": {} if delta is None else delta}
    choice |= {name: fields.pop(name) for name in ("finish_reason", "index", "message") if name in fields}
    choice |= {"error": fields.pop("choice_error")} if "choice_error" in fields else {}
    return json.dumps({"id": "x", "choices": [choice], **fields}).encode()


def test_a_frame_byte_by_byte() -> None:
    assert Frames(HEAD).encode(Delta(role="assistant", content="일\n\u2028")) == (
        b'data: {"id":"chatcmpl-id-1","object":"chat.completion.chunk","created":1700000000,"model":"daily",'
        b'"choices":[{"index":0,"delta":{"role":"assistant","content":"' + "일\\n\u2028".encode() + b'"},'
        b'"finish_reason":null}]}\n\n'
    )


def test_the_last_frame_byte_by_byte() -> None:
    assert Frames(HEAD).encode(Delta(), "stop") == HEAD + b'{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'


def test_a_call_byte_by_byte() -> None:
    call = ToolCall(0, "c", "function", Function("f", ""))
    assert Frames(HEAD).encode(Delta(tool_calls=[call])) == (
        HEAD + b'{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c","type":"function",'
        b'"function":{"name":"f","arguments":""}}]},"finish_reason":null}]}\n\n'
    )


def test_a_progress_chunk_byte_by_byte() -> None:
    assert Frames(HEAD).progress({"state": "queued", "position": 2, "eta_seconds": None}) == (
        HEAD + b'],"eid":{"state":"queued","position":2,"eta_seconds":null}}\n\n'
    )


COMMON: dict[str, bytes] = {
    "content": event({"content": "일\n\u2028"}, model="m"),
    "with the role again": event({"role": "assistant", "content": "a"}, model="m"),
    "with another role": event({"role": ["canary"], "content": "a"}, model="m"),
    "reasoning": event({"reasoning_content": "a", "content": None}, model="m"),
    "reasoning by its other name": event({"reasoning": "a"}, model="m"),
    "reasoning by its other name, beside an empty text": event({"reasoning": "a", "content": ""}, model="m"),
    "both names": event({"reasoning": "canary", "reasoning_content": "b"}, model="m"),
    "with nulls": event({"content": "a", "tool_calls": None, "refusal": None}, finish_reason=None, model="m"),
    "with an empty end": event({"content": "a"}, finish_reason="", model="m"),
    "with null errors": event({"content": "a"}, model="m", error=None, detail=None, choice_error=None),
    "with a message beside it": event({"content": "a"}, model="m", message={"content": "canary"}),
    "with facts": event({"content": "a", "logprobs": "canary"}, model="m", system_fingerprint="canary", created=1),
    "without an index": b'{"model":"m","choices":[{"delta":{"content":"a"}}]}',
    "a delta twice": b'{"model":"m","choices":[{"delta":{"content":"canary"},"delta":{"content":"b"}}]}',
}

OTHERS: dict[str, bytes] = {
    "nothing": event({}, model="m"),
    "an empty text": event({"content": ""}, model="m"),
    "text and reasoning": event({"content": "a", "reasoning_content": "b"}, model="m"),
    "a refusal": event({"refusal": "a"}, model="m"),
    "without a model": event({"content": "a"}),
    "with usage": event({"content": "a"}, model="m", usage={"prompt_tokens": 1}),
    "with usage null": event({"content": "a"}, model="m", usage=None),
    "the end": event({"content": "a"}, model="m", finish_reason="stop"),
    "an error": event({"content": "a"}, model="m", error="canary"),
    "an error in the choice": event({"content": "a"}, model="m", choice_error="canary"),
    "a detail": event({"content": "a"}, model="m", detail=[]),
    "a call": event({"tool_calls": [{}]}, model="m"),
    "no calls": event({"content": "a", "tool_calls": []}, model="m"),
    "another index": event({"content": "a"}, model="m", index=1),
    "an index of null": event({"content": "a"}, model="m", index=None),
    "a delta of null": b'{"model":"m","choices":[{"index":0,"delta":null}]}',
    "no delta": b'{"model":"m","choices":[{"index":0}]}',
    "no choice": b'{"model":"m","choices":[]}',
    "choices of null": b'{"model":"m","choices":null}',
    "two choices": b'{"model":"m","choices":[{"delta":{"content":"a"}},{"delta":{}}]}',
    "a strange model": event({"content": "a"}, model=5),
    "content of a strange type": event({"content": 5}, model="m"),
    "done": b"[DONE]",
    "no bytes": b"",
    "no JSON": b"{",
    "no UTF-8": b'{"model":"m","choices":[{"delta":{"content":"\xff"}}]}',
    "deep": b'{"x":' + b"[" * 100_000,
}


@pytest.mark.parametrize("data", COMMON.values(), ids=COMMON.keys())
def test_a_common_event_is_rebuilt_to_the_same(data: bytes) -> None:
    sanitizer, frames = Sanitizer("id-1"), Frames(HEAD)
    sanitizer.read(event({"content": "first"}))
    delta = sanitizer.read(data)
    assert delta is not None
    frame = frames.rebuild(data)
    assert frame == frames.encode(delta)
    assert b"canary" not in frame
    assert (sanitizer.finish_reason, sanitizer.said_done, sanitizer.dropped, sanitizer.tokens) == (None, False, {}, {})
    assert sanitizer.stripped == {"model": 1, "usage": 0, "other": 0}  # what the stream counts for it


@pytest.mark.parametrize("data", OTHERS.values(), ids=OTHERS.keys())
def test_another_event_takes_the_long_way(data: bytes) -> None:
    assert Frames(HEAD).rebuild(data) is None


def test_the_first_text_after_thinking_takes_the_long_way() -> None:
    frames = Frames(HEAD)
    assert frames.rebuild(event({"content": "a"}, model="m"), is_thinking=True) is None
    assert frames.rebuild(event({"reasoning": "a"}, model="m"), is_thinking=True) is not None


def test_a_head_is_made_for_each_stream() -> None:
    head = json.loads(chunk_head("id-2", 1, "deep").removeprefix(b"data: ") + b"]}")
    assert head == {
        "id": "chatcmpl-id-2",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "deep",
        "choices": [],
    }


@pytest.mark.parametrize("kind", [RouterDelta, _LooseDelta, _CommonDelta, Message, AssistantMessage])
def test_a_field_of_the_delta_stands_wherever_it_must(kind: type[Struct]) -> None:
    """One that is read but not in `_CommonDelta` would be lost on the short way alone, and nobody would see it."""
    texts = set(Delta.__struct_fields__) - {"role"}
    assert texts <= set(kind.__struct_fields__)
    assert texts <= _KNOWN_FIELDS


def test_a_text_of_the_delta_is_joined_and_is_read() -> None:
    assert set(TEXTS) | {"role", "tool_calls"} == set(Delta.__struct_fields__)
    assert set(TEXTS) > THOUGHTS
    for name in TEXTS:
        came = RouterDelta()
        setattr(came, name, "said")
        assert came.texts() == {name: "said"}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_of_the_delta_is_read_loosely_too(name: str) -> None:
    """An event with a field of another type is read a second time, by types of its own."""
    (choice,) = (
        decode_event(json.dumps({"choices": [{"index": "0", "delta": {name: "said"}}]}).encode())[0].choices or []
    )
    assert choice.delta is not None
    assert choice.delta.texts() == {name: "said"}


# The template


def templated(frames: Frames, data: bytes, text: bytes) -> tuple[bytes, bytes]:
    """An event like `data` with another text, and what its template makes of it."""
    template = frames.template(data)
    assert template is not None
    return template.before + text + template.after, template.new_before + text + template.new_after


@pytest.mark.parametrize("field", ["content", "reasoning_content", "reasoning"])
@pytest.mark.parametrize("text", ['"', "가\n", "x", "content", "\u2028 \\"])
def test_a_template_makes_of_a_text_what_rebuild_makes(field: str, text: str) -> None:
    frames = Frames(HEAD)
    said = json.dumps(text, ensure_ascii=False)[1:-1].encode()
    came, made = templated(frames, event({field: "a b"}, model="m", more=[1, {"a": "b"}]), said)
    assert came.startswith(b"data: ")
    assert made == frames.rebuild(came[6:-2])


@pytest.mark.parametrize(
    "data",
    [
        event({"content": ""}, model="m"),
        event({"content": "a"}, model="m", usage={}),
        event({"content": "a"}),
        event({"content": "가"}, model="m"),  # as json.dumps spells it
        event({"content": "a/b"}, model="m").replace(b"/", b"\\/"),
        event({"content": "m"}, model="m").replace(b'{"id": "x", ', b'{"model": "m", "id": "x", '),
        b'{"other":"same","model":"m","choices":[{"delta":{"content":"same"}}]}',
        b'{"other":"\\"same\\\\","model":"m","choices":[{"delta":{"content":"same\\\\"}}]}'.replace(
            b'\\"same', b'"same', 1
        ),
        event({"content": "index"}, model="m"),
        event({"content": "a"}, model="m").replace(b", ", b",\n", 1),  # of two lines
        event({"content": ", "}, model="m").replace(b'"x", "', b'"x", "y": "z", "'),  # between two strings
        event({"content": "model"}, model="m").replace(b'"id": "x", ', b'"model": "m", '),
    ],
    ids=repr,
)
def test_no_template_of_what_is_not_proved(data: bytes) -> None:
    """No text, no common event, another spelling, a text that stands elsewhere first."""
    assert Frames(HEAD).template(data) is None


def test_a_text_that_stands_twice_is_proved_where_it_counts() -> None:
    """Of a name that stands twice the last value counts, so the place of the first one is not the text's."""
    data = b'{"model":"m","choices":[{"delta":{"content":"a","content":"a"}}]}'
    assert Frames(HEAD).template(data) is None
