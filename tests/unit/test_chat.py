"""The closed request (contract, P1 and 3): what is accepted, what the router gets of it, what is refused and how."""

from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eidproxy.errors import Refusal
from eidproxy.inbound.chat import (
    MAX_DEPTH,
    MAX_VALUES,
    REQUEST_FIELDS,
    ChatRequest,
    Model,
    parse_chat_request,
    parse_object,
)
from eidproxy.vocabulary import Mode
from tests.lab.cost import cost
from tests.lab.tools import size

HELLO = [{"role": "user", "content": "Hello"}]


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "daily", "messages": HELLO, **fields}


def parse(value: Any, **settings: Any) -> ChatRequest:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return parse_chat_request(body, {mode: Model(f"alias-of-{mode}", **settings) for mode in Mode})


def sent(value: Any, **settings: Any) -> dict[str, Any]:
    """What the router gets, without what it always gets."""
    request = parse(value, **settings)
    found: dict[str, Any] = json.loads(request.body)
    assert found.pop("model") == f"alias-of-{request.mode}"
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
    request = parse(chat())
    assert (request.mode, request.stream, request.generates_unseen) == (Mode.DAILY, False, False)
    assert sent(chat()) == {"messages": HELLO, "max_tokens": 2048, "temperature": 0.4}


def test_the_router_is_always_asked_for_a_stream() -> None:
    for stream in (True, False, None):
        request = parse(chat(stream=stream))
        assert request.stream is bool(stream)
        assert json.loads(request.body)["stream"] is True


def test_usage_is_asked_for_when_it_is_wanted() -> None:
    body = chat(stream_options={"include_usage": False})
    assert "stream_options" not in sent(body)
    assert sent(body, ask_usage=True)["stream_options"] == {"include_usage": True}


def test_servers_are_silent_before_tools_and_json() -> None:
    """What the allowance for the first event depends on (contract, 6)."""
    for fields, expected in (
        ({"tools": [TOOL]}, True),
        ({"tools": []}, False),
        ({"response_format": {"type": "text"}}, False),
        ({"response_format": {"type": "json_object"}}, True),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}, True),
    ):
        assert parse(chat(**fields)).generates_unseen is expected, fields


@pytest.mark.parametrize("model", ["daily", "deep"])
def test_models(model: str) -> None:
    request = parse(chat(model=model))
    assert request.mode == model
    assert json.loads(request.body)["model"] == f"alias-of-{model}"


def test_each_mode_has_its_own_settings() -> None:
    own = {"top_k": 20, "chat_template_kwargs": {"enable_thinking": False, "x": None}}
    models = {Mode.DAILY: Model("a"), Mode.DEEP: Model("b", 7, 1.5, own)}
    deep = json.loads(parse_chat_request(json.dumps(chat(model="deep")).encode(), models).body)
    assert (deep["max_tokens"], deep["temperature"], deep["top_k"]) == (7, 1.5, 20)
    assert deep["chat_template_kwargs"] == own["chat_template_kwargs"]
    daily = json.loads(parse_chat_request(json.dumps(chat()).encode(), models).body)
    assert daily.keys() == {"model", "messages", "stream", "max_tokens", "temperature"}


def test_no_constant_changes_what_was_checked() -> None:
    params = dict.fromkeys(("model", "messages", "stream", "max_tokens", "temperature", "stop"), "x")
    found = sent(chat(stop="y"), params=params)
    assert found == sent(chat(stop="y"))


def test_a_prompt_may_be_bounded() -> None:
    """By the bytes that the router would get: escapes of the caller's spelling do not count."""
    body = parse(chat()).body
    assert parse(chat(), max_prompt_bytes=len(body)).body == body
    assert parse(chat(metadata={"a": "b" * 1000}), max_prompt_bytes=len(body)).body == body
    for bound in (len(body) - 1, 1):
        with pytest.raises(Refusal, match="prompt_too_long") as caught:
            parse(chat(), max_prompt_bytes=bound)
        assert caught.value.status == 413


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
        ({"max_tokens": -1}, 2048),
        ({"max_tokens": -1.0, "max_completion_tokens": 9}, 9),
        ({"max_tokens": None, "max_completion_tokens": 9}, 9),
        ({"max_tokens": 100.0}, 100),
        ({"max_tokens": 1e300}, 2048),
        ({"max_tokens": 1.0}, 1),
    ],
)
def test_the_smallest_limit_counts(fields: dict[str, Any], wanted: int) -> None:
    found = sent(chat(**fields))
    assert found["max_tokens"] == wanted
    assert isinstance(found["max_tokens"], int)
    assert "max_completion_tokens" not in found


def test_settings_are_the_defaults() -> None:
    found = sent(chat(), max_tokens=7, temperature=1.5)
    assert (found["max_tokens"], found["temperature"]) == (7, 1.5)
    assert sent(chat(max_tokens=8), max_tokens=7)["max_tokens"] == 7
    assert sent(chat(temperature=0), temperature=1.5)["temperature"] == 0


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
    "tools": {"tools": [TOOL, {"type": "function", "function": {"name": "g"}}]},
    "tool_choice none": {"tools": [TOOL], "tool_choice": "none"},
    "tool_choice auto": {"tools": [TOOL], "tool_choice": "auto"},
    "tool_choice required": {"tools": [TOOL], "tool_choice": "required"},
    "tool_choice function": {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
    "nulls in free-form parts": {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"default": None, "enum": [None, {}]}}}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {"a": None, "messages": [{"b": None}]}},
        },
    },
    "empty free-form parts": {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}, "description": ""}}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
    },
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
    "n": [1, 1.0],
    "store": [False],
    "logprobs": [False],
    "tools": [[]],
    "stop": [[]],
    "functions": [[]],
    "logit_bias": [{}],
    "extra_body": [{}],
    "tool_choice": ["none", "auto", "required", {"type": "function", "function": {"name": "f"}}],
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


def test_null_is_absent() -> None:
    """For every field that there is, and for one that there is not."""
    for name in [*sorted(REQUEST_FIELDS - {"model", "messages"}), "top_k", "x" * 65, "한"]:
        assert sent(chat(**{name: None})) == sent(chat()), name
    wanted = chat(
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": "b", "tool_calls": [CALL]},
        ],
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "f"}},
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"a": None}}},
    )

    def with_nulls(value: Any) -> Any:
        if isinstance(value, list):
            return [with_nulls(item) for item in value]
        if isinstance(value, dict) and value is not SCHEMA and value != {"a": None}:
            return {"zed": None, **{name: with_nulls(item) for name, item in value.items()}, "name_": None}
        return value

    assert sent(with_nulls(wanted)) == sent(wanted)
    nulls = {"description": None, "parameters": None, "strict": None}
    bare = {"type": "function", "function": {"name": "g"}}
    assert sent(chat(tools=[{**bare, "function": {**bare["function"], **nulls}}]))["tools"] == [bare]  # type: ignore[dict-item]
    bare_format = {"type": "json_schema", "json_schema": {"name": "n"}}
    null_format = {
        "type": "json_schema",
        "json_schema": {"name": "n", "description": None, "schema": None, "strict": None},
    }
    assert sent(chat(response_format=null_format))["response_format"] == bare_format


ECHOES = [
    *("reasoning_content", "reasoning", "reasoning_details", "thinking_blocks", "refusal", "annotations", "audio"),
    *("function_call", "parsed", "provider_specific_fields", "cache_control", "copilot_cache_control", "name"),
]


@pytest.mark.parametrize("name", ECHOES)
def test_an_answer_comes_back_as_it_was_given(name: str) -> None:
    values: list[Any] = ["a"] if name == "name" else ["a", [], {}, [{"type": "thinking"}], {"a": {"b": 1}}, 5, True]
    for value in values:
        message = {"role": "assistant", "content": "a", name: value}
        assert sent(chat(messages=[message]))["messages"] == [{"role": "assistant", "content": "a"}]
        message["tool_calls"] = [CALL]
        assert sent(chat(messages=[message]))["messages"] == [
            {"role": "assistant", "content": "a", "tool_calls": [CALL]}
        ]


def test_marks_and_indexes_are_left_out() -> None:
    for name in ("cache_control", "copilot_cache_control"):
        mark = {name: {"type": "ephemeral"}}
        parts = [{"type": "text", "text": "a", **mark}]
        messages = [
            {"role": "system", "content": parts, **mark},
            {"role": "user", "content": parts, **mark},
            {"role": "tool", "content": parts, "tool_call_id": "x", **mark},
        ]
        found = sent(chat(messages=messages, tools=[{**TOOL, **mark}]))
        assert name not in json.dumps(found)
        assert found == sent(
            json.loads(
                json.dumps(chat(messages=messages, tools=[TOOL]))
                .replace(name, "zed")
                .replace('{"type": "ephemeral"}', "null")
            )
        )
    called = {"name": "any name at all, 일", "arguments": "no JSON"}
    echoed = {**CALL, "index": 3, "function": {**called, "parsed_arguments": {"x": 1}}}
    found = sent(chat(messages=[{"role": "assistant", "tool_calls": [echoed]}]))
    assert found["messages"][0]["tool_calls"] == [{**CALL, "function": called}]


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}

CONVERSATIONS: dict[str, tuple[list[Any], list[Any] | None]] = {
    "one": (HELLO, None),
    "system first": ([{"role": "system", "content": "s"}, *HELLO], None),
    "two systems first": (
        [{"role": "system", "content": "s"}, {"role": "system", "content": "t"}, *HELLO],
        [{"role": "system", "content": "s\n\nt"}, *HELLO],
    ),
    "systems anywhere": (
        [*HELLO, {"role": "developer", "content": "s"}, *HELLO, {"role": "system", "content": "t", "name": "n"}],
        [{"role": "system", "content": "s\n\nt"}, *HELLO, *HELLO],
    ),
    "a system of parts": (
        [{"role": "system", "content": [{"type": "text", "text": "s"}, {"type": "text", "text": "t"}]}, *HELLO],
        None,
    ),
    "systems of parts": (
        [
            {"role": "system", "content": [{"type": "text", "text": "s"}, {"type": "text", "text": "t"}]},
            {"role": "system", "content": "u"},
        ],
        [{"role": "system", "content": "st\n\nu"}],
    ),
    "developer": ([{"role": "developer", "content": "s"}, *HELLO], [{"role": "system", "content": "s"}, *HELLO]),
    "system late": ([*HELLO, {"role": "system", "content": "s"}], [{"role": "system", "content": "s"}, *HELLO]),
    "system alone": ([{"role": "system", "content": "s"}], None),
    "assistant bare": ([{"role": "assistant"}], [{"role": "assistant", "content": ""}]),
    "assistant null": ([{"role": "assistant", "content": None}], [{"role": "assistant", "content": ""}]),
    "assistant of no parts": ([{"role": "assistant", "content": []}], [{"role": "assistant", "content": ""}]),
    "tool bare": (
        [{"role": "tool", "tool_call_id": "x"}],
        [{"role": "tool", "content": "", "tool_call_id": "x"}],
    ),
    "tool null": (
        [{"role": "tool", "content": None, "tool_call_id": "x"}],
        [{"role": "tool", "content": "", "tool_call_id": "x"}],
    ),
    "tool of no parts": (
        [{"role": "tool", "content": [], "tool_call_id": "x"}],
        [{"role": "tool", "content": "", "tool_call_id": "x"}],
    ),
    "no tool calls": (
        [{"role": "assistant", "content": "a", "tool_calls": []}],
        [{"role": "assistant", "content": "a"}],
    ),
    "tool calls null": ([{"role": "assistant", "tool_calls": None}], [{"role": "assistant", "content": ""}]),
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
    "tool calls alone": (
        [{"role": "assistant", "tool_calls": [CALL]}],
        [{"role": "assistant", "content": None, "tool_calls": [CALL]}],
    ),
    "tool calls and null": ([{"role": "assistant", "content": None, "tool_calls": [CALL]}], None),
    "tool calls and no parts": (
        [{"role": "assistant", "content": [], "tool_calls": [CALL]}],
        [{"role": "assistant", "content": None, "tool_calls": [CALL]}],
    ),
    "tool calls and empty text": ([{"role": "assistant", "content": "", "tool_calls": [CALL]}], None),
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
    "stream a string": ({"stream": "true"}, INVALID, "stream"),
    "max_tokens 0": ({"max_tokens": 0}, INVALID, "max_tokens"),
    "max_tokens -2": ({"max_tokens": -2}, INVALID, "max_tokens"),
    "max_tokens -1.5": ({"max_tokens": -1.5}, INVALID, "max_tokens"),
    "max_tokens a half": ({"max_tokens": 0.5}, INVALID, "max_tokens"),
    "max_completion_tokens a fraction": (
        {"max_tokens": 5, "max_completion_tokens": 5.5},
        INVALID,
        "max_completion_tokens",
    ),
    "temperature of 300 digits": ({"temperature": 10**300}, INVALID, "temperature"),
    "n 1.5": ({"n": 1.5}, INVALID, "n"),
    "functions": ({"functions": [{"name": "f"}]}, UNSUPPORTED, "functions"),
    "functions a string": ({"functions": "f"}, UNSUPPORTED, "functions"),
    "functions an object": ({"functions": {}}, UNSUPPORTED, "functions"),
    "logit_bias": ({"logit_bias": {"5": 1}}, UNSUPPORTED, "logit_bias"),
    "extra_body": ({"extra_body": {"api_base": "http://x"}}, UNSUPPORTED, "extra_body"),
    "extra_body a list": ({"extra_body": []}, UNSUPPORTED, "extra_body"),
    "stop of a null": ({"stop": [None]}, INVALID, "stop"),
    "a null and an unknown field": ({"zed": None, "api_base": "x"}, UNSUPPORTED, "api_base"),
    "a name like an error": ({"a` - at `$.messages[0]": 1}, UNSUPPORTED, None),
    "max_tokens a fraction": ({"max_tokens": 1.5}, INVALID, "max_tokens"),
    "max_tokens true": ({"max_tokens": True}, INVALID, "max_tokens"),
    "max_tokens a string": ({"max_tokens": "5"}, INVALID, "max_tokens"),
    "max_completion_tokens 0": ({"max_completion_tokens": 0}, INVALID, "max_completion_tokens"),
    "temperature over 2": ({"temperature": 2.0000001}, INVALID, "temperature"),
    "temperature negative": ({"temperature": -1e-9}, INVALID, "temperature"),
    "temperature true": ({"temperature": True}, INVALID, "temperature"),
    "temperature a string": ({"temperature": "1"}, INVALID, "temperature"),
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
    "store": ({"store": True}, INVALID, "store"),
    "store 0": ({"store": 0}, INVALID, "store"),
    "logprobs": ({"logprobs": True}, INVALID, "logprobs"),
    "stream_options a list": ({"stream_options": []}, INVALID, "stream_options"),
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
    "role function": ({"messages": [{"role": "function", "content": "a", "name": "f"}]}, INVALID, f"{M0}.role"),
    "role in capitals": ({"messages": [{"role": "User", "content": "a"}]}, INVALID, f"{M0}.role"),
    "no content": ({"messages": [{"role": "user"}]}, INVALID, f"{M0}.content"),
    "content null": (user(None), INVALID, f"{M0}.content"),
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
    "an unknown key of a message": ({"messages": [{**HELLO[0], "audio": {}}]}, UNSUPPORTED, "audio"),
    "tool_calls of a user": ({"messages": [{**HELLO[0], "tool_calls": [CALL]}]}, UNSUPPORTED, "tool_calls"),
    "tool_call_id of a user": ({"messages": [{**HELLO[0], "tool_call_id": "x"}]}, UNSUPPORTED, "tool_call_id"),
    "name a number": ({"messages": [{**HELLO[0], "name": 5}]}, INVALID, f"{M0}.name"),
    "a tool without an id": ({"messages": [{"role": "tool", "content": "t"}]}, INVALID, f"{M0}.tool_call_id"),
    "a tool of id null": (
        {"messages": [{"role": "tool", "content": "t", "tool_call_id": None}]},
        INVALID,
        f"{M0}.tool_call_id",
    ),
    "a call a string": ({"messages": [{"role": "assistant", "tool_calls": ["f"]}]}, INVALID, f"{M0}.tool_calls[0]"),
    "a call of another type": (call(type="custom"), CONTENT, f"{M0}.tool_calls[1].type"),
    "a call of no type": (call(type=5), INVALID, f"{M0}.tool_calls[1].type"),
    "a call of id null": (call(id=None), INVALID, f"{M0}.tool_calls[1].id"),
    "a call of no function": (call(function=None), INVALID, f"{M0}.tool_calls[1].function"),
    "a call without a name": (call(function={"arguments": ""}), INVALID, f"{M0}.tool_calls[1].function.name"),
    "a call without arguments": (call(function={"name": "f"}), INVALID, f"{M0}.tool_calls[1].function.arguments"),
    "a call of an object": (
        call(function={"name": "f", "arguments": {}}),
        INVALID,
        f"{M0}.tool_calls[1].function.arguments",
    ),
    "a call of more": (call(function={"name": "f", "arguments": "", "x": 1}), UNSUPPORTED, "x"),
    "a call of cache_control": (call(cache_control={}), UNSUPPORTED, "cache_control"),
    "an echo in a user's": ({"messages": [{**HELLO[0], "reasoning_content": "a"}]}, UNSUPPORTED, "reasoning_content"),
    "an image behind its address": (
        user([{"image_url": {"url": "http://x"}, "type": "image_url"}]),
        CONTENT,
        f"{C0}.type",
    ),
    "an image and a null": (user([{"image_url": "x", "zed": None, "type": "image_url"}]), CONTENT, f"{C0}.type"),
    "an unknown key of an odd name": ({"messages": [{**HELLO[0], "a b": {}}]}, UNSUPPORTED, None),
    "an unknown key that lies": ({"messages": [{**HELLO[0], "a` - at `$.tools[0]": {}}]}, UNSUPPORTED, None),
    "a message with a type": ({"messages": [{**HELLO[0], "type": "message"}]}, UNSUPPORTED, "type"),
    "a role that lies": ({"messages": [{"role": "a' - at `$.tools[0].type`"}]}, INVALID, f"{M0}.role"),
    "a type that lies": (user([{"type": "a' - at `$.model`"}]), CONTENT, f"{C0}.type"),
    # tools
    "a tool a string": ({"tools": ["f"]}, INVALID, "tools[0]"),
    "an mcp tool the wrong way round": (
        {"tools": [{"server_url": "http://x", "type": "mcp"}]},
        CONTENT,
        "tools[0].type",
    ),
    "a choice the wrong way round": ({"tool_choice": {"x": 1, "type": "mcp"}}, CONTENT, "tool_choice.type"),
    "a call the wrong way round": (
        {"messages": [{"role": "assistant", "tool_calls": [{"x": 1, "type": "mcp"}]}]},
        CONTENT,
        f"{M0}.tool_calls[0].type",
    ),
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
    api_base base_url fallbacks extra_headers image_url api_key custom_llm_provider function_call
    top_logprobs modalities audio prediction web_search_options top_k min_p adapters draft_model guided_json
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


def test_what_stands_twice_is_sent_once() -> None:
    body = b'{"model":"daily","messages":[],"messages":[{"role":"user","content":"a","content":"b"}],"n":2,"n":1}'
    assert sent(body)["messages"] == [{"role": "user", "content": "b"}]


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
    "641 digits": b'{"seed":' + b"9" * 641 + b"}",
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


MEBIBYTE = 1 << 20


def filled(before: bytes, item: bytes, after: bytes, values: int = 1, last: bytes = b"") -> bytes:
    """As many items as fit in one MiB and in the number of values that a body may have."""
    many = min((MAX_VALUES - 20) // values, (MEBIBYTE - len(before) - len(after) - len(last)) // (len(item) + 1))
    return before + b",".join([item] * many + [last or item]) + after


FREE = b'"tools":[{"type":"function","function":{"name":"f","parameters":{"x":['
PARTS = b'{"model":"daily","zed":null,"messages":[{"role":"user","content":['
CALLS = b'{"model":"daily","messages":[{"role":"assistant","tool_calls":['
TOOLS = b'{"zed":null,' + GOOD[1:-1] + b',"tools":['

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
    "many unknown nulls": GOOD[:-1] + b"".join(b',"%d":null' % n for n in range(80_000)) + b"}",
    "one key, often": b"{" + b'"model":"daily",' * 60_000 + GOOD[1:],
    "a number, often": filled(GOOD[:-1] + b",", b'"temperature":1e-300', b"}"),
    "digits": b'{"seed":' + b"1" * 1_000_000 + b"}",
    "long numbers": filled(b'{"x":[', b"9" * 4299, b"]}"),
    "long enough numbers": filled(GOOD[:-1] + b"," + FREE, b"9" * 640, b"]}}}]}"),
    "one long string": b'{"user":"' + b"a" * 1_000_000 + b'"}',
    "one long string of escapes": b'{"user":"' + b"\\u0001" * 170_000 + b'"}',
    "parts": filled(PARTS, b'{"type":"text","text":""}', b"]}]}", values=3),
    "parts with nulls": filled(PARTS, b'{"type":"text","text":"","z":null}', b"]}]}", values=4),
    "parts, the last wrong": filled(PARTS, b'{"type":"text","text":""}', b"]}]}", values=3, last=b'{"type":"x","z":1}'),
    "parts of nothing": filled(PARTS, b"{}", b"]}]}"),
    "calls": filled(CALLS, b'{"id":"","type":"function","function":{"name":"f","arguments":""}}', b"]}]}", values=6),
    "tools": filled(TOOLS, b'{"type":"function","function":{"name":"f"}}', b"]}", values=4),
    "tools with nulls": filled(TOOLS, b'{"type":"function","function":{"name":"f","z":null}}', b"]}", values=5),
    "messages": filled(b'{"model":"daily","zed":null,"messages":[', b'{"role":"user","content":""}', b"]}", values=3),
}
ITEMS = [
    b"1e300",
    b"5e-324",
    b"9.5e-308",
    b"9007199254740993e-300",
    b"1.5",
    b"9" * 20,
    b"{}",
    b"[]",
    b'"["',
    b'"\\u1234"',
]
for hostile in ITEMS:
    place = hostile.decode()[:20]
    HOSTILE[f"free-form {place}"] = filled(GOOD[:-1] + b"," + FREE, hostile, b"]}}}]}")
    HOSTILE[f"for nobody {place}"] = filled(GOOD[:-1] + b',"metadata":[', hostile, b"]}")
    HOSTILE[f"refused {place}"] = filled(GOOD[:-1] + b',"zed":[', hostile, b"]}")
    HOSTILE[f"too many {place}"] = b"[" + hostile + (b"," + hostile) * (MEBIBYTE // (len(hostile) + 1)) + b"]"


@pytest.fixture(scope="module")
def plainest() -> float:
    """What it costs to read as many values as there may be, where each is an empty object."""
    body = b"[" + b",".join([b"{}"] * (MAX_VALUES - 1)) + b"]"
    return cost(lambda: msgspec.json.decode(body), times=5)


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_body_of_one_mebibyte_holds_the_loop(body: bytes, plainest: float) -> None:
    """At most 8 times as much on a quiet machine. msgspec's own way with numbers would take 200 times."""

    def refused_or_not() -> None:
        with contextlib.suppress(Refusal):
            parse(body)

    assert cost(refused_or_not) < 25 * plainest


@pytest.mark.parametrize(
    ("item", "values"),
    [
        ("1", 1),
        ('"a"', 1),
        ('",[]{}"', 1),
        ("[]", 1),
        ("[ ]", 1),
        ("{ \n }", 1),
        ('{"a":1}', 2),
        ("[[1,2],{}]", 5),
        ('"\\",["', 1),
    ],
)
def test_100_000_values_are_the_limit(item: str, values: int) -> None:
    """Each value counts, in whatever it stands; a key is none."""
    others = 7  # the body, model, the list of messages, the message, role, content, metadata
    many, ones = divmod(MAX_VALUES - others, values)
    body = b'{"metadata":[' + b", ".join([item.encode()] * many + [b"1"] * ones) + b"]," + GOOD[1:]
    assert parse(body).mode is Mode.DAILY
    assert refusal(body.replace(b"[", b"[1,", 1)) == ("invalid_json", None)


def test_a_waiting_request_is_held_as_bytes() -> None:
    """A tree of empty lists takes 20 times what it takes on the wire."""
    request = parse(filled(GOOD[:-1] + b"," + FREE, b"[]", b"]}}}]}"))
    assert all(isinstance(getattr(request, name), (str, bytes, bool)) for name in request.__struct_fields__)


# Generated

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
        found = json.loads(request.body)
        assert set(found) <= SENT
        assert found["model"] == f"alias-of-{request.mode}"
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
