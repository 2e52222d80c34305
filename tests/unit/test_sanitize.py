"""The filter of one stream (contract, P3): what may pass of an event, what is counted, how the stream stands."""

from __future__ import annotations

import json
from typing import Any, get_args

import msgspec
import pytest

from eidproxy.relay.chunk import Delta, FinishReason
from eidproxy.relay.sanitize import Sanitizer
from eidproxy.relay.sse import ErrorData
from eidproxy.vocabulary import Dropped, Stripped, TokenKind

NONE_STRIPPED = dict.fromkeys(Stripped, 0)


def event(delta: Any = None, **fields: Any) -> bytes:
    """A chunk of a model with one choice; `finish_reason` and `index` go into the choice, the rest beside it."""
    choice: dict[str, Any] = {"index": 0, "delta": {} if delta is None else delta}
    choice |= {name: fields.pop(name) for name in ("finish_reason", "index", "message") if name in fields}
    choice |= {"error": fields.pop("choice_error")} if "choice_error" in fields else {}
    return json.dumps({"id": "x", "choices": [choice], **fields}).encode()


def begun() -> Sanitizer:
    """One that has passed its first event on."""
    sanitizer = Sanitizer("r")
    assert sanitizer.read(event({"role": "assistant", "content": "first"})) is not None
    return sanitizer


def passes(data: bytes, sanitizer: Sanitizer | None = None) -> dict[str, Any] | None:
    """The delta that the caller gets for an event in the middle of a stream."""
    delta = (sanitizer or begun()).read(data)
    found: dict[str, Any] | None = None if delta is None else msgspec.to_builtins(delta)
    return found


# What may pass

DELTAS: dict[str, tuple[Any, Any]] = {
    "empty": ({}, None),
    "null": (None, None),
    "content": ({"content": "a"}, {"content": "a"}),
    "empty content": ({"content": ""}, None),
    "the role again": ({"role": "assistant"}, None),
    "another role": ({"role": "/models/qwen", "content": "a"}, {"content": "a"}),
    "reasoning": ({"reasoning": "r", "content": ""}, {"reasoning_content": "r"}),
    "refusal": ({"refusal": "no"}, {"refusal": "no"}),
    "unknown": ({"x": "canary", "content": "a", "audio": {"data": "x"}}, {"content": "a"}),
    "no calls": ({"tool_calls": []}, None),
    "parts": ({"content": [{"type": "text", "text": "a"}]}, {"content": "a"}),
    "a call": (
        {"tool_calls": [{"index": 3, "id": "c", "type": "mcp", "function": {"name": "f", "arguments": "{}"}, "x": 1}]},
        {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
    ),
    "a piece of no call": ({"tool_calls": [{"index": 1, "function": {"arguments": "canary"}}]}, None),
    "all at once": (
        {"content": "a", "reasoning": "b", "refusal": "c", "tool_calls": [{"id": "d", "function": {"name": "e"}}]},
        {
            "content": "a",
            "reasoning_content": "b",
            "refusal": "c",
            "tool_calls": [{"index": 0, "id": "d", "type": "function", "function": {"name": "e", "arguments": ""}}],
        },
    ),
}


@pytest.mark.parametrize(("delta", "wanted"), DELTAS.values(), ids=DELTAS.keys())
def test_what_may_pass_of_a_delta(delta: Any, wanted: Any) -> None:
    assert passes(json.dumps({"choices": [{"delta": delta}], "model": "m"}).encode()) == wanted


def test_a_message_is_read_where_no_delta_stands() -> None:
    assert passes(b'{"model":"m","choices":[{"message":{"content":"a"}}]}') == {"content": "a"}
    assert passes(event({"content": "a"}, message={"content": "canary"})) == {"content": "a"}


def test_only_the_choice_of_index_0_is_read() -> None:
    other, ours = {"index": 1, "delta": {"content": "canary"}}, {"index": 0, "delta": {"content": "a"}}
    for choices in ([ours, other], [other, ours], [other, other, {"delta": {"content": "a"}}], [ours, ours]):
        assert passes(json.dumps({"choices": choices}).encode()) == {"content": "a"}
    sanitizer = begun()
    done = {"index": 1, "delta": {}, "finish_reason": "stop"}
    assert sanitizer.read(json.dumps({"choices": [other, done]}).encode()) is None
    assert sanitizer.finish_reason is None
    assert sanitizer.dropped == {Dropped.EMPTY: 1}


# How a stream begins


def test_the_role_stands_in_the_first_chunk_and_in_no_other() -> None:
    sanitizer = Sanitizer("r")
    assert passes(event({"content": "a"}), sanitizer) == {"role": "assistant", "content": "a"}
    assert passes(event({"role": "assistant", "content": "b"}), sanitizer) == {"content": "b"}


@pytest.mark.parametrize(
    "data",
    [event({"role": "assistant"}), event({"content": ""}), event({"tool_calls": []}), event({"reasoning": ""}), b"{}"],
)
def test_an_event_that_says_nothing_is_no_first_event(data: bytes) -> None:
    sanitizer = Sanitizer("r")
    assert sanitizer.read(data) is None
    assert not sanitizer.has_begun
    assert passes(event({"reasoning": "a"}), sanitizer) == {"role": "assistant", "reasoning_content": "a"}
    assert sanitizer.has_begun


def test_a_finish_reason_is_a_first_event() -> None:
    sanitizer = Sanitizer("r")
    assert passes(event({"role": "assistant"}, finish_reason="stop"), sanitizer) == {"role": "assistant", "content": ""}
    assert sanitizer.has_begun


def test_the_beginning_of_a_character_is_a_first_event() -> None:
    sanitizer = Sanitizer("r")
    assert passes(b'{"id":1,"choices":[{"delta":{"content":"\xec"}}]}', sanitizer) == {
        "role": "assistant",
        "content": "",
    }
    assert passes(b'{"id":1,"choices":[{"delta":{"content":"\x8b\x9c."}}]}', sanitizer) == {"content": "시."}


@pytest.mark.parametrize(
    ("field", "passed"),
    [
        ("content", "content"),
        ("refusal", "refusal"),
        ("reasoning", "reasoning_content"),
        ("reasoning_content", "reasoning_content"),
    ],
)
def test_a_character_in_two_events_is_one_in_every_text(field: str, passed: str) -> None:
    spelled = b'{"id":1,"choices":[{"delta":{"%b":"%b"}}]}'
    sanitizer = Sanitizer("r")
    sanitizer.read(spelled % (field.encode(), b"\xec"))
    assert sanitizer.has_begun
    assert passes(spelled % (field.encode(), b"\x8b\x9c.\xec"), sanitizer) == {passed: "시."}
    assert msgspec.to_builtins(sanitizer.close()) == {passed: "\ufffd"}


def test_a_call_without_an_id_is_named_after_the_request() -> None:
    passed = passes(event({"tool_calls": [{"function": {"name": "f"}}]})) or {}
    assert passed["tool_calls"][0]["id"] == "call_r_0"


@pytest.mark.parametrize("begins", [False, True])
def test_an_error_in_the_choice_names_no_reason(begins: bool) -> None:
    """Whatever word stands beside it."""
    sanitizer = begun() if begins else Sanitizer("r")
    sanitizer.read(event({}, finish_reason="error", error_reason="warming"))
    assert sanitizer.failure == "upstream_error"


def test_thinking_is_told_from_speaking() -> None:
    sanitizer = Sanitizer("r")
    sanitizer.read(event({"reasoning": "a"}))
    assert not sanitizer.has_text
    sanitizer.read(event({"content": "a"}))
    assert sanitizer.has_text


LOADING = {"reasoning_content": "llama-swap loading model: canary"}


def test_the_loading_state_of_llama_swap_is_left_out() -> None:
    sanitizer = Sanitizer("r")
    loading = json.dumps({"choices": [{"delta": LOADING}]}).encode()
    assert sanitizer.read(loading) is None
    assert not sanitizer.has_begun
    assert passes(event({"content": "a"}), sanitizer) == {"role": "assistant", "content": "a"}
    assert sanitizer.read(loading) is None
    assert sanitizer.dropped == {}


@pytest.mark.parametrize(
    "data",
    [
        {"choices": [{"delta": LOADING}], "id": "x"},
        {"choices": [{"delta": LOADING}], "object": "x"},
        {"choices": [{"delta": LOADING}], "created": 1},
        {"choices": [{"delta": LOADING}], "model": "m"},
        {"choices": [{"delta": {**LOADING, "content": "a"}}]},
        {"choices": [{"delta": {**LOADING, "refusal": "a"}}]},
    ],
)
def test_what_a_model_thinks_is_no_loading_state(data: Any) -> None:
    assert (passes(json.dumps(data).encode()) or {})["reasoning_content"] == LOADING["reasoning_content"]


# How a stream ends


@pytest.mark.parametrize("word", get_args(FinishReason))
def test_finish_reasons_are_kept_back(word: str) -> None:
    sanitizer = begun()
    assert passes(event({"content": "a"}, finish_reason=word), sanitizer) == {"content": "a"}
    assert sanitizer.finish_reason == word
    assert sanitizer.is_finished


@pytest.mark.parametrize("word", [None, "", "null", "NULL", " ", 5, True, []])
def test_what_is_no_finish_reason(word: Any) -> None:
    sanitizer = begun()
    assert passes(event({"content": "a"}, finish_reason=word), sanitizer) == {"content": "a"}
    assert sanitizer.finish_reason is None
    assert not sanitizer.is_finished


@pytest.mark.parametrize(
    ("word", "meaning"),
    [
        *(("max_tokens", "length"), ("MAX_LENGTH", "length"), ("model_length", "length"), ("Length", "length")),
        *(("STOP", "stop"), (" stop ", "stop"), ("eos", "stop"), ("end_turn", "stop"), ("canary", "stop")),
        ("TOOL_CALLS", "tool_calls"),
    ],
)
def test_words_for_the_same(word: str, meaning: str) -> None:
    sanitizer = begun()
    sanitizer.read(event(finish_reason=word))
    assert sanitizer.finish_reason == meaning


@pytest.mark.parametrize("word", ["error", "abort", "Aborted", "CANCELLED", "network_error"])
def test_words_for_a_failure(word: str) -> None:
    sanitizer = begun()
    assert passes(event({"content": "a"}, finish_reason=word), sanitizer) == {"content": "a"}
    assert sanitizer.failure == "upstream_error"
    sanitizer = Sanitizer("r")
    assert sanitizer.read(event({"content": "canary"}, finish_reason=word)) is None  # so that it is a real status
    assert (sanitizer.failure, sanitizer.has_begun) == ("upstream_error", False)


def test_of_several_finish_reasons_the_last_one_counts() -> None:
    sanitizer = begun()
    for word in ("stop", "stop", "length"):
        assert passes(event({"content": "a"}, finish_reason=word), sanitizer) == {"content": "a"}
    assert sanitizer.finish_reason == "length"


def test_after_text_that_came_late_a_finish_reason_is_not_trusted() -> None:
    sanitizer = begun()
    sanitizer.read(event(finish_reason="stop"))
    assert passes(event({}, usage={}), sanitizer) is None
    assert sanitizer.is_finished
    assert passes(event({"content": "a"}), sanitizer) == {"content": "a"}
    assert sanitizer.continued_after_finish
    assert not sanitizer.is_finished
    sanitizer.read(event(finish_reason="stop"))
    assert not sanitizer.is_finished


@pytest.mark.parametrize("delta", [{"reasoning": "a"}, {"refusal": "a"}, {"tool_calls": [{"function": {"name": "f"}}]}])
def test_whatever_comes_late_counts(delta: Any) -> None:
    sanitizer = begun()
    sanitizer.read(event(finish_reason="stop"))
    assert sanitizer.read(event(delta)) is not None
    assert sanitizer.continued_after_finish


@pytest.mark.parametrize("data", [b"[DONE]", b"[DONE] ", b" [DONE]", b"\t[DONE]"])
def test_done(data: bytes) -> None:
    sanitizer = begun()
    assert sanitizer.read(data) is None
    assert sanitizer.said_done
    assert sanitizer.dropped == {}
    assert not sanitizer.is_finished


def test_what_waits_for_the_rest_of_a_character_is_told_at_the_end() -> None:
    sanitizer = begun()
    delta = b'"content":"a\xec","reasoning":"\\ud83d","refusal":"x"'
    call = b'"tool_calls":[{"id":"c","function":{"name":"f","arguments":"\xf0"}}]'
    assert sanitizer.read(b'{"id":1,"choices":[{"delta":{' + delta + b"," + call + b"}}]}") is not None
    assert not sanitizer.is_plain
    rest = sanitizer.close()
    assert msgspec.to_builtins(rest) == {
        "content": "\ufffd",
        "reasoning_content": "\ufffd",
        "tool_calls": [{"index": 0, "function": {"arguments": "\ufffd"}}],
    }
    assert sanitizer.is_plain
    assert sanitizer.close() is None


def test_a_second_event_of_calls() -> None:
    sanitizer = begun()
    for arguments in ("[", "]"):
        call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": arguments}}
        assert sanitizer.read(event({"tool_calls": [call]})) is not None


def test_only_texts_wait() -> None:
    sanitizer = begun()
    sanitizer.read(b'{"id":1,"choices":[{"delta":{"content":"a\xec"}}]}')
    assert sanitizer.close() == Delta(content="\ufffd")


# Errors

FAILURES: dict[str, tuple[bytes, str]] = {
    "an object": (b'{"error":{"message":"canary","type":"warming"}}', "warming"),
    "an object without a word": (b'{"error":{"message":"canary","code":500}}', "upstream_error"),
    "a string": (b'{"error":"canary"}', "upstream_error"),
    "a string and a reason": (b'{"error":"canary","error_reason":"editor_busy"}', "editor_busy"),
    "of a general word": (b'{"error":{"message":"x","type":"server_error"}}', "upstream_error"),
    "of a class": (b'{"error":{"type":"Internal Error"}}', "upstream_error"),
    "beside choices": (b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"error":{"type":"a"}}', "a"),
    "beside strange choices": (b'{"choices":5,"error":{"type":"warming"}}', "warming"),
    "detail": (b'{"detail":[{"loc":["canary"]}]}', "upstream_error"),
    "detail beside strange choices": (b'{"choices":5,"detail":"canary"}', "upstream_error"),
    "a word of ours": (b'{"error":{"type":"client_gone"}}', "client_gone"),
    "an error event": (ErrorData(b'{"error":{"type":"warming"}}'), "warming"),
    "an error event of a chunk": (ErrorData(event({"content": "a"})), "upstream_error"),
    "an error event of nothing": (ErrorData(b""), "upstream_error"),
    "an error event that says done": (ErrorData(b"[DONE]"), "upstream_error"),
    "an object named error (vllm-project/vllm#10463)": (b'{"object":"error","message":"x"}', "upstream_error"),
    "fields of an error": (b'{"choices":null,"error_type":"X","error_message":"y"}', "upstream_error"),
    "in the choice": (event({"content": ""}, choice_error={"message": "x", "type": "warming"}), "upstream_error"),
}


@pytest.mark.parametrize(("data", "reason"), FAILURES.values(), ids=FAILURES.keys())
def test_an_error_in_any_dialect(data: bytes, reason: str) -> None:
    for sanitizer in (Sanitizer("r"), begun()):
        assert sanitizer.read(data) is None
        assert sanitizer.failure == reason
        assert not sanitizer.said_done


@pytest.mark.parametrize(("data", "reason"), FAILURES.values(), ids=FAILURES.keys())
def test_an_error_after_the_finish_reason_changes_nothing(data: bytes, reason: str) -> None:
    sanitizer = begun()
    sanitizer.read(event(finish_reason="length"))
    assert sanitizer.read(data) is None
    assert (sanitizer.finish_reason, sanitizer.failure, sanitizer.dropped) == ("length", None, {})
    assert sanitizer.tokens == {}
    sanitizer.read(event({"content": "late"}))
    sanitizer.read(data)
    assert sanitizer.failure == reason


@pytest.mark.parametrize("nothing", [None, False, "", {}])
def test_an_error_that_says_nothing_is_none(nothing: Any) -> None:
    for where in ("error", "detail", "choice_error"):
        sanitizer = Sanitizer("r")
        data = event({"content": "a"}, **{where: nothing})
        assert passes(data, sanitizer) == {"role": "assistant", "content": "a"}
        assert passes(data, sanitizer) == {"content": "a"}
        assert sanitizer.failure is None


def test_an_error_before_the_first_event_may_be_about_the_context() -> None:
    data = b'{"error":{"type":"exceed_context_size_error"}}'
    for sanitizer, reason in ((Sanitizer("r"), "context_too_long"), (begun(), "exceed_context_size_error")):
        sanitizer.read(data)
        assert sanitizer.failure == reason


# What is dropped and counted


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", Dropped.EMPTY),
        (b"{}", Dropped.EMPTY),
        (b'{"choices":null}', Dropped.EMPTY),
        (b'{"choices":[],"usage":{}}', Dropped.EMPTY),
        (b"hello", Dropped.NOT_JSON),
        (b"[done]", Dropped.NOT_JSON),
        (b'"[DONE]"', Dropped.NOT_OBJECT),
        (b'{"choices":{"0":{}}}', Dropped.NOT_OBJECT),
        (event("canary"), Dropped.NOT_OBJECT),
    ],
)
def test_an_event_is_dropped_and_counted(data: bytes, kind: Dropped) -> None:
    sanitizer = begun()
    for count in (1, 2):
        assert sanitizer.read(data) is None
        assert sanitizer.dropped == {kind: count}
    assert sanitizer.finish_reason is None
    assert not sanitizer.said_done


def test_usage_is_counted_and_costs_nobody_the_text() -> None:
    sanitizer = begun()
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    assert passes(event({"content": "a"}, usage=usage), sanitizer) == {"content": "a"}
    assert sanitizer.tokens == {TokenKind.PROMPT: 3, TokenKind.COMPLETION: 4}
    assert passes(event({"content": "b"}, usage="canary"), sanitizer) == {"content": "b"}
    assert sanitizer.read(b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":5}}') is None
    assert sanitizer.tokens == {TokenKind.PROMPT: 1, TokenKind.COMPLETION: 5}
    assert sanitizer.stripped[Stripped.USAGE] == 3
    assert sanitizer.dropped == {Dropped.EMPTY: 1}


def test_stripped_fields_are_counted_in_the_first_event_and_the_first_that_ends() -> None:
    sanitizer = Sanitizer("r")
    sanitizer.read(event({"role": "assistant"}, model="m", timings={}))
    assert sanitizer.stripped == {**NONE_STRIPPED, Stripped.MODEL: 1}
    sanitizer.read(event({"content": "a"}, model="m", timings={}))
    assert sanitizer.stripped == {**NONE_STRIPPED, Stripped.MODEL: 2, Stripped.OTHER: 1}
    sanitizer.read(event({"content": "a"}, model="m", timings={}))
    for _ in range(2):
        sanitizer.read(event({"x": 1, "y": 2}, model="m", timings={}, finish_reason="stop"))
    assert sanitizer.stripped == {**NONE_STRIPPED, Stripped.MODEL: 5, Stripped.OTHER: 4}
    sanitizer = Sanitizer("r")
    sanitizer.read(event({"x": 1}, finish_reason="stop"))
    assert sanitizer.stripped == {**NONE_STRIPPED, Stripped.OTHER: 1}


@pytest.mark.parametrize("counts", [True, False])
def test_unknown_fields_are_counted_where_that_is_wanted(counts: bool) -> None:
    sanitizer = Sanitizer("r", counts_unknown=counts)
    sanitizer.read(event({"content": "a"}, model="m", timings={}))
    sanitizer.read(event({}, model="m", timings={}, finish_reason="stop"))
    assert sanitizer.stripped == {**NONE_STRIPPED, Stripped.MODEL: 2, Stripped.OTHER: 2 * counts}


# Lists without end

NESTED: Any = "a"
for _ in range(5):
    NESTED = [{"type": "thinking", "thinking": NESTED}]

SO_MANY: dict[str, Any] = {
    "choices": {"choices": [{"index": []}] * 2049},
    "parts": {"choices": [{"delta": {"content": [{"text": "a"}] * 2049}}]},
    "odd calls": {"choices": [{"delta": {"content": [], "tool_calls": [{"function": {}}] * 2049}}]},
    "parts in parts": {"choices": [{"delta": {"content": NESTED}}]},
    "calls": {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "a"}}] * 4097}}]},
}


@pytest.mark.parametrize("chunk", SO_MANY.values(), ids=SO_MANY.keys())
def test_an_event_with_a_list_without_end_ends_the_answer(chunk: Any) -> None:
    """It would take long to read, and so would lists in lists; to read a part would cut the answer without a word."""
    sanitizer = begun()
    assert passes(json.dumps(chunk).encode(), sanitizer) is None
    assert (sanitizer.failure, sanitizer.dropped) == ("upstream_protocol_error", {Dropped.TOO_LARGE: 1})


@pytest.mark.parametrize("chunk", SO_MANY.values(), ids=SO_MANY.keys())
def test_a_list_without_end_behind_the_end_is_no_business_of_ours(chunk: Any) -> None:
    sanitizer = begun()
    sanitizer.read(event(finish_reason="stop"))
    assert passes(json.dumps(chunk).encode(), sanitizer) is None
    assert (sanitizer.failure, sanitizer.dropped) == (None, {Dropped.TOO_LARGE: 1})


def test_long_lists_of_what_is_said_pass() -> None:
    parts = {"choices": [{"delta": {"content": [{"text": "a"}] * 2000}}]}
    assert passes(json.dumps(parts).encode()) == {"content": "a" * 2000}
