"""The closed request: what is accepted and what the router gets of it, what is refused and how that is said."""

from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eidproxy.chat import (
    MAX_DEPTH,
    ChatRequest,
    Defaults,
    parse_chat_request,
    parse_mode,
    parse_object,
    refuse_unknown,
    upstream_body,
)
from eidproxy.errors import Refusal
from eidproxy.vocabulary import Mode
from tests.cost import cost
from tests.tools import size

HELLO = [{"role": "user", "content": "Hello"}]


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "daily", "messages": HELLO, **fields}


def parse(value: Any, defaults: Defaults | None = None) -> ChatRequest:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return parse_chat_request(body, defaults or Defaults())


def sent(value: Any, defaults: Defaults | None = None) -> dict[str, Any]:
    """What the router gets, without what it always gets."""
    found: dict[str, Any] = json.loads(upstream_body(parse(value, defaults), "alias", ask_usage=False))
    assert found.pop("model") == "alias"
    assert found.pop("stream") is True
    return found


def refusal(value: Any) -> tuple[str, str | None]:
    """The reason and the param of a refusal, which holds nothing of the body."""
    with pytest.raises(Refusal) as caught:
        parse(value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value.reason, caught.value.param


# What is accepted


def test_the_least() -> None:
    assert parse(chat()) == ChatRequest(Mode.DAILY, False, {"messages": HELLO, "max_tokens": 2048, "temperature": 0.4})
    assert sent(chat()) == {"messages": HELLO, "max_tokens": 2048, "temperature": 0.4}


def test_the_router_is_always_asked_for_a_stream() -> None:
    for stream in (True, False):
        request = parse(chat(stream=stream))
        assert request.stream is stream
        assert json.loads(upstream_body(request, "a", ask_usage=False))["stream"] is True


def test_usage_is_asked_for_when_it_is_wanted() -> None:
    request = parse(chat(stream_options={"include_usage": False}))
    assert "stream_options" not in json.loads(upstream_body(request, "a", ask_usage=False))
    assert json.loads(upstream_body(request, "a", ask_usage=True))["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("model", ["daily", "deep"])
def test_models(model: str) -> None:
    request = parse(chat(model=model))
    assert request.mode == model
    assert json.loads(upstream_body(request, "mac-mini-default", ask_usage=False))["model"] == "mac-mini-default"


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, 2048),
        ({"max_tokens": 1}, 1),
        ({"max_tokens": 2047}, 2047),
        ({"max_tokens": 2049}, 2048),
        ({"max_tokens": 10**30}, 2048),
        ({"max_completion_tokens": 5}, 5),
        ({"max_completion_tokens": 5, "max_tokens": 6}, 5),
        ({"max_completion_tokens": 6, "max_tokens": 5}, 5),
    ],
)
def test_the_smallest_limit_counts(fields: dict[str, Any], wanted: int) -> None:
    found = sent(chat(**fields))
    assert found["max_tokens"] == wanted
    assert "max_completion_tokens" not in found


def test_settings_are_the_defaults() -> None:
    found = sent(chat(), Defaults(max_tokens=7, temperature=1.5))
    assert (found["max_tokens"], found["temperature"]) == (7, 1.5)
    assert sent(chat(max_tokens=8), Defaults(max_tokens=7))["max_tokens"] == 7
    assert sent(chat(temperature=0), Defaults(temperature=1.5))["temperature"] == 0


SCHEMA = {"type": "object", "properties": {"x": {"$ref": "#/y", "anything": [None, 1.5, {"deep": True}]}}}
TOOL = {
    "type": "function",
    "function": {"name": "f.g-h_1", "description": "", "parameters": SCHEMA, "strict": True},
}

PASSED_ON: dict[str, Any] = {
    "temperature 0": {"temperature": 0},
    "temperature 2": {"temperature": 2},
    "temperature 1e-3": {"temperature": 0.001},
    "top_p 0": {"top_p": 0},
    "top_p 1": {"top_p": 1.0},
    "presence_penalty -2": {"presence_penalty": -2},
    "presence_penalty 2": {"presence_penalty": 2},
    "frequency_penalty": {"frequency_penalty": -0.5},
    "stop": {"stop": "\n"},
    "stop of one": {"stop": ["a"]},
    "stop of four": {"stop": ["a", "b", "", "일"]},
    "stop of none": {"stop": []},
    "tools": {"tools": [TOOL, {"type": "function", "function": {"name": "g"}}]},
    "tool_choice none": {"tool_choice": "none"},
    "tool_choice auto": {"tool_choice": "auto"},
    "tool_choice required": {"tool_choice": "required"},
    "tool_choice function": {"tool_choice": {"type": "function", "function": {"name": "f"}}},
    "response_format text": {"response_format": {"type": "text"}},
    "response_format json_object": {"response_format": {"type": "json_object"}},
    "response_format json_schema": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "description": "d", "schema": SCHEMA, "strict": False},
        }
    },
    "response_format of a name": {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
    "a number of 25 digits in a schema": {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"maximum": 10**25}}}]
    },
}


@pytest.mark.parametrize("fields", PASSED_ON.values(), ids=PASSED_ON.keys())
def test_a_field_is_passed_on(fields: dict[str, Any]) -> None:
    assert sent(chat(**fields)) == {"messages": HELLO, "max_tokens": 2048, "temperature": 0.4} | fields


NOT_PASSED_ON: dict[str, list[Any]] = {
    "stream_options": [{}, {"include_usage": True, "x": 1}],
    "n": [1],
    "store": [False],
    "logprobs": [False],
    "user": ["u", None, 5],
    "parallel_tool_calls": [True, False, None],
    "seed": [1, None, -(10**20)],
    "metadata": [{}, {"a": "b"}, None],
    "service_tier": ["auto"],
    "safety_identifier": ["x"],
    "prompt_cache_key": ["x"],
    "reasoning_effort": ["low", "none"],
    "verbosity": ["low"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, vs in NOT_PASSED_ON.items() for value in vs])
def test_a_field_is_accepted_and_not_passed_on(name: str, value: Any) -> None:
    assert sent(chat(**{name: value})) == sent(chat())


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}

CONVERSATIONS: dict[str, tuple[list[Any], list[Any] | None]] = {
    "one": (HELLO, None),
    "system first": ([{"role": "system", "content": "s"}, *HELLO], None),
    "two systems first": ([{"role": "system", "content": "s"}] * 2 + HELLO, None),
    "system alone": ([{"role": "system", "content": "s"}], None),
    "assistant": ([*HELLO, {"role": "assistant", "content": "a"}, *HELLO], None),
    "assistant first": ([{"role": "assistant", "content": "a"}], None),
    "empty content": ([{"role": "user", "content": ""}], None),
    "parts": (
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": ""}]}],
        None,
    ),
    "names": (
        [{"role": "user", "content": "a", "name": "n"}, {"role": "assistant", "content": "a", "name": ""}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}],
    ),
    "tool calls": (
        [
            *HELLO,
            {"role": "assistant", "content": "a", "tool_calls": [CALL, CALL]},
            {"role": "tool", "content": "t", "tool_call_id": "call_1"},
            {"role": "tool", "content": [{"type": "text", "text": "t"}], "tool_call_id": ""},
        ],
        None,
    ),
    "tool calls alone": ([{"role": "assistant", "tool_calls": [CALL]}], None),
    "tool calls and null": (
        [{"role": "assistant", "content": None, "tool_calls": [CALL]}],
        [{"role": "assistant", "tool_calls": [CALL]}],
    ),
    "200 messages": (HELLO * 200, None),
    "text that mentions addresses": (
        [{"role": "user", "content": 'api_base=http://169.254.169.254/ image_url {"model":"gpt-4o"} [[[['}],
        None,
    ),
    "all of Unicode": ([{"role": "user", "content": '\u0000\u2028\ud7ff\ue000\uffff\U0010ffff 일상 😀 \\ " /'}], None),
}


@pytest.mark.parametrize(("messages", "wanted"), CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
def test_a_conversation_is_rebuilt(messages: list[Any], wanted: list[Any] | None) -> None:
    assert sent(chat(messages=messages))["messages"] == (wanted or messages)


# What is refused

INVALID, UNSUPPORTED, CONTENT = "invalid_request", "unsupported_field", "unsupported_content"


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


def tool(**function: Any) -> dict[str, Any]:
    return {"tools": [TOOL, {"type": "function", "function": {"name": "f", **function}}]}


def call(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "assistant", "tool_calls": [CALL, {**CALL, **fields}]}]}


def schema(**fields: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", **fields}}}


IMAGE = {"type": "image_url", "image_url": {"url": "http://x"}}
M0, C0 = "messages[0]", "messages[0].content[0]"

REFUSED: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "stream a number": ({"stream": 1}, INVALID, "stream"),
    "stream null": ({"stream": None}, INVALID, "stream"),
    "stream a string": ({"stream": "true"}, INVALID, "stream"),
    "max_tokens 0": ({"max_tokens": 0}, INVALID, "max_tokens"),
    "max_tokens negative": ({"max_tokens": -1}, INVALID, "max_tokens"),
    "max_tokens a fraction": ({"max_tokens": 1.5}, INVALID, "max_tokens"),
    "max_tokens a float": ({"max_tokens": 5.0}, INVALID, "max_tokens"),
    "max_tokens true": ({"max_tokens": True}, INVALID, "max_tokens"),
    "max_tokens null": ({"max_tokens": None}, INVALID, "max_tokens"),
    "max_tokens a string": ({"max_tokens": "5"}, INVALID, "max_tokens"),
    "max_completion_tokens 0": ({"max_completion_tokens": 0}, INVALID, "max_completion_tokens"),
    "temperature over 2": ({"temperature": 2.0000001}, INVALID, "temperature"),
    "temperature negative": ({"temperature": -1e-9}, INVALID, "temperature"),
    "temperature true": ({"temperature": True}, INVALID, "temperature"),
    "temperature a string": ({"temperature": "1"}, INVALID, "temperature"),
    "temperature null": ({"temperature": None}, INVALID, "temperature"),
    "top_p over 1": ({"top_p": 1.1}, INVALID, "top_p"),
    "top_p negative": ({"top_p": -0.1}, INVALID, "top_p"),
    "presence_penalty": ({"presence_penalty": 2.1}, INVALID, "presence_penalty"),
    "frequency_penalty": ({"frequency_penalty": -2.1}, INVALID, "frequency_penalty"),
    "stop of five": ({"stop": ["a"] * 5}, INVALID, "stop"),
    "stop of numbers": ({"stop": [1]}, INVALID, "stop"),
    "stop an object": ({"stop": {}}, INVALID, "stop"),
    "n 2": ({"n": 2}, INVALID, "n"),
    "n 0": ({"n": 0}, INVALID, "n"),
    "n true": ({"n": True}, INVALID, "n"),
    "n 1.0": ({"n": 1.0}, INVALID, "n"),
    "store": ({"store": True}, INVALID, "store"),
    "store null": ({"store": None}, INVALID, "store"),
    "store 0": ({"store": 0}, INVALID, "store"),
    "logprobs": ({"logprobs": True}, INVALID, "logprobs"),
    "stream_options a list": ({"stream_options": []}, INVALID, "stream_options"),
    "stream_options null": ({"stream_options": None}, INVALID, "stream_options"),
    # messages
    "messages null": ({"messages": None}, INVALID, "messages"),
    "messages a string": ({"messages": "Hello"}, INVALID, "messages"),
    "messages an object": ({"messages": {"0": HELLO[0]}}, INVALID, "messages"),
    "messages empty": ({"messages": []}, INVALID, "messages"),
    "201 messages": ({"messages": HELLO * 201}, INVALID, "messages"),
    "a message null": ({"messages": [None]}, INVALID, M0),
    "a message a string": ({"messages": ["Hello"]}, INVALID, M0),
    "no role": ({"messages": [{"content": "a"}]}, INVALID, f"{M0}.role"),
    "role null": ({"messages": [{"role": None, "content": "a"}]}, INVALID, f"{M0}.role"),
    "role a list": ({"messages": [{"role": ["user"], "content": "a"}]}, INVALID, f"{M0}.role"),
    "role developer": ({"messages": [{"role": "developer", "content": "a"}]}, INVALID, f"{M0}.role"),
    "role function": ({"messages": [{"role": "function", "content": "a", "name": "f"}]}, INVALID, f"{M0}.role"),
    "role in capitals": ({"messages": [{"role": "User", "content": "a"}]}, INVALID, f"{M0}.role"),
    "system later": ({"messages": [*HELLO, {"role": "system", "content": "s"}]}, INVALID, "messages[1].role"),
    "system after the head": (
        {"messages": [{"role": "system", "content": "s"}, *HELLO, {"role": "system", "content": "s"}]},
        INVALID,
        "messages[2].role",
    ),
    "no content": ({"messages": [{"role": "user"}]}, INVALID, f"{M0}.content"),
    "content null": (user(None), INVALID, f"{M0}.content"),
    "content null of an assistant": ({"messages": [{"role": "assistant", "content": None}]}, INVALID, f"{M0}.content"),
    "content a number": (user(5), INVALID, f"{M0}.content"),
    "content an object": (user({"type": "text", "text": "a"}), INVALID, f"{M0}.content"),
    "content of no parts": (user([]), INVALID, f"{M0}.content"),
    "a part a string": (user(["a"]), INVALID, C0),
    "a part without a type": (user([{"text": "a"}]), INVALID, f"{C0}.type"),
    "a part of no type": (user([{"type": None, "text": "a"}]), INVALID, f"{C0}.type"),
    "a part without text": (user([{"type": "text"}]), INVALID, f"{C0}.text"),
    "a part of text null": (user([{"type": "text", "text": None}]), INVALID, f"{C0}.text"),
    "an image": (user([IMAGE]), CONTENT, f"{C0}.type"),
    "an image later": (user([{"type": "text", "text": "a"}, IMAGE]), CONTENT, "messages[0].content[1].type"),
    "audio": (user([{"type": "input_audio", "input_audio": {}}]), CONTENT, f"{C0}.type"),
    "a file": (user([{"type": "file", "file": {"file_id": "x"}}]), CONTENT, f"{C0}.type"),
    "a text part with an image": (user([{"type": "text", "text": "a", "image_url": "x"}]), UNSUPPORTED, "image_url"),
    "a part with cache_control": (
        user([{"type": "text", "text": "a", "cache_control": {}}]),
        UNSUPPORTED,
        "cache_control",
    ),
    "an unknown key of a message": ({"messages": [{**HELLO[0], "audio": {}}]}, UNSUPPORTED, "audio"),
    "tool_calls of a user": ({"messages": [{**HELLO[0], "tool_calls": [CALL]}]}, UNSUPPORTED, "tool_calls"),
    "tool_call_id of a user": ({"messages": [{**HELLO[0], "tool_call_id": "x"}]}, UNSUPPORTED, "tool_call_id"),
    "function_call": (
        {"messages": [{"role": "assistant", "content": "", "function_call": {}}]},
        UNSUPPORTED,
        "function_call",
    ),
    "name a number": ({"messages": [{**HELLO[0], "name": 5}]}, INVALID, f"{M0}.name"),
    "a tool without an id": ({"messages": [{"role": "tool", "content": "t"}]}, INVALID, f"{M0}.tool_call_id"),
    "a tool of id null": (
        {"messages": [{"role": "tool", "content": "t", "tool_call_id": None}]},
        INVALID,
        f"{M0}.tool_call_id",
    ),
    "a tool without content": ({"messages": [{"role": "tool", "tool_call_id": "x"}]}, INVALID, f"{M0}.content"),
    "tool_calls null": (
        {"messages": [{"role": "assistant", "content": "a", "tool_calls": None}]},
        INVALID,
        f"{M0}.tool_calls",
    ),
    "tool_calls empty": ({"messages": [{"role": "assistant", "tool_calls": []}]}, INVALID, f"{M0}.tool_calls"),
    "a call a string": ({"messages": [{"role": "assistant", "tool_calls": ["f"]}]}, INVALID, f"{M0}.tool_calls[0]"),
    "a call of another type": (call(type="custom"), CONTENT, f"{M0}.tool_calls[1].type"),
    "a call of no type": (call(type=5), INVALID, f"{M0}.tool_calls[1].type"),
    "a call of id null": (call(id=None), INVALID, f"{M0}.tool_calls[1].id"),
    "a call with an index": (call(index=0), UNSUPPORTED, "index"),
    "a call of no function": (call(function=None), INVALID, f"{M0}.tool_calls[1].function"),
    "a call without a name": (call(function={"arguments": ""}), INVALID, f"{M0}.tool_calls[1].function.name"),
    "a call without arguments": (call(function={"name": "f"}), INVALID, f"{M0}.tool_calls[1].function.arguments"),
    "a call of an object": (
        call(function={"name": "f", "arguments": {}}),
        INVALID,
        f"{M0}.tool_calls[1].function.arguments",
    ),
    "a call of more": (call(function={"name": "f", "arguments": "", "x": 1}), UNSUPPORTED, "x"),
    # tools
    "tools null": ({"tools": None}, INVALID, "tools"),
    "tools empty": ({"tools": []}, INVALID, "tools"),
    "a tool a string": ({"tools": ["f"]}, INVALID, "tools[0]"),
    "a tool without a type": ({"tools": [{"function": {"name": "f"}}]}, INVALID, "tools[0].type"),
    "an mcp tool": ({"tools": [TOOL, {"type": "mcp", "server_url": "http://x"}]}, CONTENT, "tools[1].type"),
    "a web search": ({"tools": [{"type": "web_search"}]}, CONTENT, "tools[0].type"),
    "a custom tool": ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, CONTENT, "tools[0].type"),
    "a tool with more": ({"tools": [{**TOOL, "server_url": "http://x"}]}, UNSUPPORTED, "server_url"),
    "a tool without a function": ({"tools": [{"type": "function"}]}, INVALID, "tools[0].function"),
    "a function without a name": ({"tools": [{"type": "function", "function": {}}]}, INVALID, "tools[0].function.name"),
    "a function of a long name": (tool(name="f" * 65), INVALID, "tools[1].function.name"),
    "a function of no name": (tool(name=""), INVALID, "tools[1].function.name"),
    "a function of an odd name": (tool(name="f g"), INVALID, "tools[1].function.name"),
    "a function of a foreign name": (tool(name="일"), INVALID, "tools[1].function.name"),
    "a function with more": (tool(url="http://x"), UNSUPPORTED, "url"),
    "parameters a list": (tool(parameters=[]), INVALID, "tools[1].function.parameters"),
    "description a number": (tool(description=5), INVALID, "tools[1].function.description"),
    "strict a string": (tool(strict="yes"), INVALID, "tools[1].function.strict"),
    "tool_choice another word": ({"tool_choice": "any"}, INVALID, "tool_choice"),
    "tool_choice null": ({"tool_choice": None}, INVALID, "tool_choice"),
    "tool_choice of another type": ({"tool_choice": {"type": "mcp"}}, CONTENT, "tool_choice.type"),
    "tool_choice without a type": ({"tool_choice": {}}, INVALID, "tool_choice.type"),
    "tool_choice without a function": ({"tool_choice": {"type": "function"}}, INVALID, "tool_choice.function"),
    "tool_choice with more": ({"tool_choice": {"type": "function", "mode": "x"}}, UNSUPPORTED, "mode"),
    "tool_choice with more inside": (
        {"tool_choice": {"type": "function", "function": {"name": "f", "url": 1}}},
        UNSUPPORTED,
        "url",
    ),
    # response_format
    "response_format a string": ({"response_format": "text"}, INVALID, "response_format"),
    "response_format of no type": ({"response_format": {}}, INVALID, "response_format.type"),
    "response_format of a list": ({"response_format": {"type": ["text"]}}, INVALID, "response_format.type"),
    "response_format grammar": ({"response_format": {"type": "grammar"}}, INVALID, "response_format.type"),
    "text with more": ({"response_format": {"type": "text", "schema": {}}}, UNSUPPORTED, "schema"),
    "json_schema without one": ({"response_format": {"type": "json_schema"}}, INVALID, "response_format.json_schema"),
    "json_schema with more": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}, "x": 1}},
        UNSUPPORTED,
        "x",
    ),
    "json_schema without a name": (
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        INVALID,
        "response_format.json_schema.name",
    ),
    "a schema with more": (schema(url="http://x"), UNSUPPORTED, "url"),
    "a schema of a string": (schema(schema="x"), INVALID, "response_format.json_schema.schema"),
    "a schema of an odd strict": (schema(strict=1), INVALID, "response_format.json_schema.strict"),
}
FOREIGN = """
    api_base base_url fallbacks extra_body extra_headers image_url api_key custom_llm_provider functions function_call
    logit_bias top_logprobs modalities audio prediction web_search_options top_k min_p adapters draft_model guided_json
    id_slot model_ Model MESSAGES _x
"""
REFUSED |= {f"field {name}": ({name: "http://x"}, UNSUPPORTED, name) for name in [*FOREIGN.split(), "a" * 64]}
REFUSED |= {
    f"field {name!r}": ({name: 1}, UNSUPPORTED, None)
    for name in ("", " ", "a" * 65, "a b", "a-b", "a.b", "1a", "a\n", "일", "é", "<script>", "a\x00", "model ", "a[0]")
}


@pytest.mark.parametrize(("fields", "reason", "param"), REFUSED.values(), ids=REFUSED.keys())
def test_a_request_is_refused(fields: dict[str, Any], reason: str, param: str | None) -> None:
    assert refusal(chat(**fields)) == (reason, param)


def test_messages_are_required() -> None:
    assert refusal({"model": "daily"}) == (INVALID, "messages")


MODELS: dict[str, tuple[bytes, str]] = {
    "absent": (b"{%b}", INVALID),
    "null": (b'{"model":null,%b}', INVALID),
    "a number": (b'{"model":5,%b}', INVALID),
    "a list": (b'{"model":["daily"],%b}', INVALID),
    "an object": (b'{"model":{"a":"daily"},%b}', INVALID),
    "another": (b'{"model":"gpt-4o",%b}', "model_not_found"),
    "empty": (b'{"model":"",%b}', "model_not_found"),
    "in capitals": (b'{"model":"Daily",%b}', "model_not_found"),
    "with a blank": (b'{"model":"daily ",%b}', "model_not_found"),
    "an alias": (b'{"model":"mac-mini-default",%b}', "model_not_found"),
    "a wildcard": (b'{"model":"*",%b}', "model_not_found"),
    "a path": (b'{"model":"openai/daily",%b}', "model_not_found"),
    "twice, the first bad": (b'{"model":"gpt-4o","model":"daily",%b}', "model_not_found"),
    "twice, the last bad": (b'{"model":"daily","model":"gpt-4o",%b}', "model_not_found"),
    "twice, the first a number": (b'{"model":5,"model":"daily",%b}', INVALID),
    "twice, the first null": (b'{"model":null,"model":"daily",%b}', INVALID),
    "twice, the last a number": (b'{"model":"daily","model":5,%b}', INVALID),
    "thrice, the middle bad": (b'{"model":"daily","model":"x","model":"daily",%b}', "model_not_found"),
    "twice, the bad one escaped": (b'{"\\u006dodel":"gpt-4o","model":"daily",%b}', "model_not_found"),
    "twice, the last escaped": (b'{"model":"daily","mod\\u0065l":"gpt-4o",%b}', "model_not_found"),
    "twice, one at the end": (b'{"model":"gpt-4o",%b,"model":"daily"}', "model_not_found"),
    "another, escaped": (b'{"model":"dail\\u0079s",%b}', "model_not_found"),
}


@pytest.mark.parametrize(("body", "reason"), MODELS.values(), ids=MODELS.keys())
def test_a_model_is_refused(body: bytes, reason: str) -> None:
    assert refusal(body % b'"messages":[{"role":"user","content":"a"}]') == (reason, "model")


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"daily","model":"daily",%b}',
        b'{"model":"deep","model":"daily",%b}',
        b'{"mod\\u0065l":"d\\u0061ily",%b}',
        b'{%b,"model":"daily"}',
    ],
)
def test_a_model_in_another_spelling(body: bytes) -> None:
    assert parse(body % b'"messages":[{"role":"user","content":"a"}]').mode is Mode.DAILY


def test_a_mode_of_another_name_is_judged_by_the_object() -> None:
    assert parse_mode({"mode": "deep"}, b"", "mode") is Mode.DEEP
    with pytest.raises(Refusal, match="model_not_found"):
        parse_mode({"mode": "x"}, b"", "mode")
    with pytest.raises(Refusal, match="invalid_request"):
        parse_mode({"model": "deep"}, b"", "mode")


def test_what_stands_twice_is_sent_once() -> None:
    body = b'{"model":"daily","messages":[],"messages":[{"role":"user","content":"a","content":"b"}],"n":2,"n":1}'
    assert sent(body)["messages"] == [{"role": "user", "content": "b"}]


def test_unknown_keys() -> None:
    refuse_unknown({"a": 1}, frozenset({"a", "b"}))
    with pytest.raises(Refusal, match="unsupported_field") as caught:
        refuse_unknown({"a": 1, "c": 1}, frozenset({"a", "b"}))
    assert caught.value.param == "c"


# JSON

GOOD = b'{"model":"daily","messages":[{"role":"user","content":"a"}]}'

NOT_JSON: dict[str, bytes] = {
    "nothing": b"",
    "blanks": b" \n",
    "null": b"null",
    "true": b"true",
    "number": b"5",
    "string": b'"daily"',
    "array": b"[" + GOOD + b"]",
    "empty array": b"[]",
    "cut": GOOD[:-1],
    "cut string": b'{"model":"da',
    "two objects": GOOD + GOOD,
    "two lines": GOOD + b"\n" + GOOD,
    "bytes behind": GOOD + b"x",
    "NUL behind": GOOD + b"\x00",
    "comment": b"/**/" + GOOD,
    "trailing comma": GOOD[:-1] + b",}",
    "single quotes": GOOD.replace(b'"', b"'"),
    "no quotes": b"{model:daily}",
    "byte order mark": b"\xef\xbb\xbf" + GOOD,
    "UTF-16": GOOD.decode().encode("utf-16"),
    "UTF-16 without a mark": GOOD.decode().encode("utf-16-le"),
    "UTF-32": GOOD.decode().encode("utf-32"),
    "Latin-1": '{"model":"daily","messages":[{"role":"user","content":"é"}]}'.encode("latin-1"),
    "invalid UTF-8 in a value": b'{"user":"\xff"}',
    "invalid UTF-8 in a key": b'{"\xff":1}',
    "overlong UTF-8": b'{"user":"\xc0\xaf"}',
    "surrogates in UTF-8": b'{"user":"\xed\xa0\x80\xed\xb0\x80"}',
    "lone surrogate": b'{"user":"\\ud800"}',
    "lone low surrogate": b'{"user":"\\udc00"}',
    "surrogates the wrong way round": b'{"user":"\\udc00\\ud800"}',
    "surrogate before text": b'{"user":"\\ud800abcdef"}',
    "NaN": b'{"temperature":NaN}',
    "Infinity": b'{"temperature":Infinity}',
    "-Infinity": b'{"temperature":-Infinity}',
    "1e999": b'{"temperature":1e999}',
    "-1e999": b'{"user":-1e999}',
    "5000 digits": b'{"seed":' + b"9" * 5000 + b"}",
    "5000 digits and a fraction": b'{"seed":' + b"9" * 5000 + b".5}",
    "leading zero": b'{"seed":01}',
    "plus": b'{"seed":+1}',
    "hex": b'{"seed":0x1}',
    "half a fraction": b'{"seed":1.}',
    "control byte in a string": b'{"user":"\x01"}',
    "line feed in a string": b'{"user":"\n"}',
    "unknown escape": b'{"user":"\\x41"}',
    "half an escape": b'{"user":"\\u12"}',
    "vertical tab": b'{\x0b"user":1}',
    "no-break space": b'{\xc2\xa0"user":1}',
    "deep arrays": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep and closed": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "closed too often": GOOD + b"}" * 100,
    "crossed": b'{"user":[}]' + b"[]" * 40,
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_no_json(body: bytes) -> None:
    assert refusal(body) == ("invalid_json", None)


def test_blanks_around_are_json() -> None:
    assert parse(b" \t\r\n" + GOOD + b"\n\n").mode is Mode.DAILY


def nested(depth: int, opening: bytes, closing: bytes) -> bytes:
    """An object that is `depth` containers deep, itself counted."""
    return b'{"metadata":' + opening * (depth - 1) + b"1" + closing * (depth - 1) + b"," + GOOD[1:]


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"]":', b"}]")])
def test_32_levels_are_the_limit(opening: bytes, closing: bytes) -> None:
    step = opening.count(b"[") + opening.count(b"{")
    inside = (MAX_DEPTH - 1) // step + 1
    assert parse(nested(inside, opening, closing)).mode is Mode.DAILY
    assert refusal(nested(inside + 1, opening, closing)) == ("invalid_json", None)


@pytest.mark.parametrize("depth", [1, 2, 31, 32, 33, 34, 64])
def test_depth_is_that_of_the_deepest_part(depth: int) -> None:
    deep = b"[" * (depth - 1) + b"]" * (depth - 1) if depth > 1 else b"1"
    body = b'{"a":{},"b":[[],[{}],[[]]],"c":' + deep + b',"d":[[],[],[]]}' + b" "
    wide = b'{"x":' + b"[" + b"[]," * 100 + b"[]]," + body.strip()[1:]
    for text in (body, wide):
        if depth <= 32:
            assert set(parse_object(text)) >= {"a", "b", "c", "d"}
        else:
            with pytest.raises(Refusal, match="invalid_json"):
                parse_object(text)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "{[" * 50 + '"',
        '\\"[' * 500,
        "\\" * 501 + "[" * 100,
        '\\\\"' * 33 + "{" * 50,
        '"[' * 100,
        "]" * 100 + "[" * 100,
    ],
)
def test_brackets_in_a_string_are_no_depth(text: str) -> None:
    value: Any = {"model": "daily", "messages": [{"role": "user", "content": text}], "metadata": {text: [[text]] * 40}}
    assert sent(value)["messages"] == value["messages"]
    value["metadata"] = {"a": [[[[[text] * 40]]]]}
    assert sent(value)["messages"] == value["messages"]


def test_a_key_that_stands_twice_hides_no_depth() -> None:
    body = b'{"metadata":' + b"[" * 40 + b"]" * 40 + b',"metadata":1,' + GOOD[1:]
    assert refusal(body) == ("invalid_json", None)


HOSTILE: dict[str, bytes] = {
    "escaped quotes without an end": b"[" * 33 + b'"' + b'\\"' * 500_000,
    "backslashes without an end": b"[" * 33 + b'"' + b"\\" * 1_000_000,
    "many arrays": b'{"a":[' + b"[]," * 340_000 + b"[]]}",
    "many strings": b'{"a":[' + b'"",' * 340_000 + b"[]" + b",[]" * 40 + b"]}",
    "many brackets in strings": b'{"a":[' + b'"[",' * 250_000 + b"[]" + b",[]" * 40 + b"]}",
    "only open": b"[" * 1_000_000,
    "open and closed": b"[" * 500_000 + b"]" * 500_000,
    "as deep as it may be, often": b"[" + b",".join([b"[" * 31 + b"]" * 31] * 16_000) + b"]",
    "many keys": b"{" + b",".join(b'"%d":1' % n for n in range(90_000)) + b"}",
    "one key, often": b"{" + b'"model":"daily",' * 60_000 + GOOD[1:],
    "digits": b'{"seed":' + b"1" * 1_000_000 + b"}",
    "one long string": b'{"user":"' + b"a" * 1_000_000 + b'"}',
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_body_of_one_mebibyte_holds_the_loop(body: bytes) -> None:
    def refused_or_not() -> None:
        with contextlib.suppress(Refusal):
            parse(body)

    assert cost(refused_or_not) < 0.15


# Generated (test plan, C15)

VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    1.5,
    2,
    "",
    "a",
    "daily",
    [],
    {},
    [1],
    {"a": 1},
    [[]],
    "http://x",
    HELLO,
]
KEYS = [*chat(), "stream", "max_tokens", "temperature", "stop", "tools", "tool_choice", "response_format", "n", "seed"]
KEYS += [
    "role",
    "content",
    "type",
    "text",
    "function",
    "name",
    "arguments",
    "tool_calls",
    "id",
    "parameters",
    "x",
    "api_base",
]


def garbled(value: Any, rng: random.Random) -> Any:
    """The same value with something wrong in a place or two."""
    if rng.random() < 0.06:
        return rng.choice(VALUES)
    if isinstance(value, list):
        items = [garbled(item, rng) for item in value]
        return items + items[:1] if rng.random() < 0.03 else items
    if isinstance(value, dict):
        found = {key: garbled(item, rng) for key, item in value.items() if rng.random() > 0.02}
        if rng.random() < 0.06:
            found[rng.choice(KEYS)] = rng.choice(VALUES)
        return found
    return value


SENT = {"model", "messages", "stream", "max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty"}
SENT |= {"stop", "tools", "tool_choice", "response_format"}


def test_generated_requests_are_refused_or_closed(seed: int) -> None:
    rng = random.Random(seed)
    sound = [chat(**fields) for fields in PASSED_ON.values()]
    sound += [chat(messages=messages) for messages, _ in CONVERSATIONS.values() if len(messages) < 100]
    reasons: dict[str, int] = {}
    for _ in range(size(5_000, 200_000)):
        value: Any = garbled(rng.choice(sound), rng)
        body = json.dumps(value).encode()
        if rng.random() < 0.2:
            broken = bytearray(body)
            broken[rng.randrange(len(broken))] = rng.randrange(256)
            body = bytes(broken)
        try:
            request = parse(body)
        except Refusal as refused:
            reasons[refused.reason] = reasons.get(refused.reason, 0) + 1
            continue
        reasons["accepted"] = reasons.get("accepted", 0) + 1
        found = json.loads(upstream_body(request, "alias", ask_usage=False))
        assert set(found) <= SENT
        assert found["model"] == "alias"
        # What was sent would be accepted again, and sends the same.
        assert sent({**found, "model": "daily"}) == {key: found[key] for key in found.keys() - {"model", "stream"}}
    assert set(reasons) == {"accepted", "invalid_json", INVALID, UNSUPPORTED, CONTENT, "model_not_found"}


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20))
def test_any_json_is_parsed_or_refused(value: Any) -> None:
    body = json.dumps(value).encode()
    if isinstance(value, dict):
        assert set(parse_object(body)) == set(value)
    else:
        with pytest.raises(Refusal, match="invalid_json"):
            parse_object(body)
