"""The closed request: a body becomes a `ChatRequest`, or a `Refusal` that says why not.

The body is parsed once. What the router gets is encoded from the values that were checked here, field by field, so
nothing that this module does not name can reach it.
"""

import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, NoReturn, TypeAlias

import msgspec

from eidproxy.errors import Refusal
from eidproxy.vocabulary import Mode

MAX_DEPTH = 32
MAX_MESSAGES = 200

Object = dict[str, Any]
Place: TypeAlias = "str | tuple[Place, int | str]"
"""Where in a request something stands: a field, or a step from a place. It is spelled only when it is told."""


class ChatRequest(NamedTuple):
    """A request of the main job. `fields` is what the router gets beside model, stream and stream options."""

    mode: Mode
    stream: bool
    fields: Object


class Defaults(NamedTuple):
    """The settings a request falls back on: the cap and default of `max_tokens`, the default of `temperature`."""

    max_tokens: int = 2048
    temperature: float = 0.4


class _ModelOnly(msgspec.Struct):
    model: Literal["daily", "deep"]


_MODES = {mode.value: mode for mode in Mode}
_decode_model = msgspec.json.Decoder(_ModelOnly).decode
_encode = msgspec.json.Encoder().encode

_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_FUNCTION_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def parse_object(body: bytes) -> Object:
    """The one JSON object a body is. Raises Refusal `invalid_json` for anything else (RFC 8259, UTF-8, no NaN)."""
    try:
        value = msgspec.json.decode(body)  # a thousand levels deep it gives up by itself
    except (ValueError, RecursionError):  # from None: the cause holds bytes of the body
        raise Refusal("invalid_json") from None
    if not isinstance(value, dict) or _depth_exceeds(body, MAX_DEPTH):
        raise Refusal("invalid_json")
    return value


def parse_chat_request(body: bytes, defaults: Defaults) -> ChatRequest:
    """Check a body of `POST /v1/chat/completions`. Raises Refusal with the reason and, where safe, the field."""
    value = parse_object(body)
    mode = parse_mode(value, body)
    refuse_unknown(value, _NAMES)
    fields: Object = {}
    if "messages" not in value:
        _invalid("messages")
    for name, given in value.items():
        if name != "model":
            checked = _FIELDS[name](given, name)
            if name in _PASSED_ON:
                fields[name] = checked
    limits = [value[name] for name in ("max_tokens", "max_completion_tokens") if name in value]
    fields["max_tokens"] = min([*limits, defaults.max_tokens])
    fields.setdefault("temperature", defaults.temperature)
    return ChatRequest(mode, value.get("stream", False), fields)


def parse_mode(value: Object, body: bytes, name: str = "model") -> Mode:
    """The mode a request asks for. A parser keeps the last of two equal keys, so each `model` is looked at."""
    word = value.get(name)
    if not isinstance(word, str):
        _invalid(name)
    if word not in _MODES:
        raise Refusal("model_not_found", name)
    if name == "model":
        try:
            _decode_model(body)
        except msgspec.ValidationError as error:
            reason = "model_not_found" if str(error).startswith("Invalid enum value") else "invalid_request"
            raise Refusal(reason, name) from None
    return _MODES[word]


def upstream_body(request: ChatRequest, alias: str, ask_usage: bool) -> bytes:
    """The body for the router. It is always asked for a stream: only a stream lets it notice that a caller left."""
    body: Object = {"model": alias, "messages": request.fields["messages"], "stream": True, **request.fields}
    if ask_usage:
        body["stream_options"] = {"include_usage": True}
    return _encode(body)


def refuse_unknown(value: Object, known: frozenset[str]) -> None:
    """Raise Refusal `unsupported_field` for the first key that is not known."""
    if not value.keys() <= known:
        _unsupported(next(name for name in value if name not in known))


def _depth_exceeds(body: bytes, limit: int) -> bool:
    """Whether the brackets of valid JSON nest deeper than `limit`.

    Outside of strings, what is left when all but the brackets is dropped is balanced, and taking out each empty pair
    takes one level off. Each pass is in C: whatever the body is, nobody waits for it.
    """
    if body.count(b"{") + body.count(b"[") <= limit:
        return False
    outside = b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    brackets = outside.translate(_BRACKETS, _NO_BRACKETS)
    for _ in range(limit):
        brackets = brackets.replace(b"[]", b"")
        if not brackets:
            return False
    return True


def _spell(place: Place) -> str:
    if isinstance(place, str):
        return place
    parent, step = place
    return f"{_spell(parent)}.{step}" if isinstance(step, str) else f"{_spell(parent)}[{step}]"


def _invalid(param: Place) -> NoReturn:
    raise Refusal("invalid_request", _spell(param))


def _unsupported(name: str) -> NoReturn:
    raise Refusal("unsupported_field", name if _IDENTIFIER.fullmatch(name) else None)


def _object(value: Any, param: Place, known: frozenset[str] | None = None) -> Object:
    if not isinstance(value, dict):
        _invalid(param)
    if known is not None:
        refuse_unknown(value, known)
    return value


def _string(value: Any, param: Place) -> str:
    if not isinstance(value, str):
        _invalid(param)
    return value


def _boolean(value: Any, param: Place) -> bool:
    if not isinstance(value, bool):
        _invalid(param)
    return value


def _false(value: Any, param: Place) -> bool:
    if value is not False:
        _invalid(param)
    return value


def _one(value: Any, param: Place) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value != 1:
        _invalid(param)
    return value


def _positive(value: Any, param: Place) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        _invalid(param)
    return value


def _number(low: float, high: float) -> Callable[[Any, Place], float]:
    def check(value: Any, param: Place) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            _invalid(param)
        return value

    return check


def _anything(value: Any, param: Place) -> Any:
    """Accepted because clients send it, whatever it is: it goes nowhere."""


def _stop(value: Any, param: Place) -> str | list[str]:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or len(value) > 4:
        _invalid(param)
    return [_string(word, param) for word in value]


_PART = frozenset({"type", "text"})


def _content(value: Any, param: Place) -> str | list[Object]:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        _invalid(param)
    parts = []
    for at, part in enumerate(value):
        here = (param, at)
        _typed(part, here, "text")
        refuse_unknown(part, _PART)
        parts.append({"type": "text", "text": _string(part.get("text"), (here, "text"))})
    return parts


def _typed(value: Any, param: Place, kind: str) -> None:
    """A part, tool or call must say its type, and it must be the one that is supported."""
    word = _object(value, param).get("type")
    if not isinstance(word, str):
        _invalid((param, "type"))
    if word != kind:
        raise Refusal("unsupported_content", _spell((param, "type")))


_CALL = frozenset({"id", "type", "function"})
_CALL_FUNCTION = frozenset({"name", "arguments"})


def _tool_calls(value: Any, param: Place) -> list[Object]:
    if not isinstance(value, list) or not value:
        _invalid(param)
    calls = []
    for at, call in enumerate(value):
        here = (param, at)
        _typed(call, here, "function")
        refuse_unknown(call, _CALL)
        function = _object(call.get("function"), (here, "function"), _CALL_FUNCTION)
        calls.append(
            {
                "id": _string(call.get("id"), (here, "id")),
                "type": "function",
                "function": {
                    "name": _function_name(function.get("name"), ((here, "function"), "name")),
                    "arguments": _string(function.get("arguments"), ((here, "function"), "arguments")),
                },
            }
        )
    return calls


def _function_name(value: Any, param: Place) -> str:
    if not isinstance(value, str) or not _FUNCTION_NAME.fullmatch(value):
        _invalid(param)
    return value


_MESSAGE_FIELDS = {
    "system": frozenset({"role", "content", "name"}),
    "user": frozenset({"role", "content", "name"}),
    "assistant": frozenset({"role", "content", "name", "tool_calls"}),
    "tool": frozenset({"role", "content", "name", "tool_call_id"}),
}


def _messages(value: Any, param: Place) -> list[Object]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
        _invalid(param)
    messages: list[Object] = []
    at_head = True
    for at, message in enumerate(value):
        here = (param, at)
        role = _object(message, here).get("role")
        if not isinstance(role, str) or role not in _MESSAGE_FIELDS or (role == "system" and not at_head):
            _invalid((here, "role"))
        at_head = role == "system"
        refuse_unknown(message, _MESSAGE_FIELDS[role])
        rebuilt: Object = {"role": role}
        if "name" in message:
            _string(message["name"], (here, "name"))
        if "tool_calls" in message:
            rebuilt["tool_calls"] = _tool_calls(message["tool_calls"], (here, "tool_calls"))
        # An assistant that only calls tools says nothing: clients echo its null content back.
        if message.get("content") is not None or "tool_calls" not in rebuilt:
            rebuilt["content"] = _content(message.get("content"), (here, "content"))
        if role == "tool":
            rebuilt["tool_call_id"] = _string(message.get("tool_call_id"), (here, "tool_call_id"))
        messages.append(rebuilt)
    return messages


_TOOL = frozenset({"type", "function"})
_TOOL_FUNCTION = frozenset({"name", "description", "parameters", "strict"})


def _tools(value: Any, param: Place) -> list[Object]:
    if not isinstance(value, list) or not value:
        _invalid(param)
    tools = []
    for at, tool in enumerate(value):
        here = (param, at)
        _typed(tool, here, "function")
        refuse_unknown(tool, _TOOL)
        function = _object(tool.get("function"), (here, "function"), _TOOL_FUNCTION)
        rebuilt = {"name": _function_name(function.get("name"), ((here, "function"), "name"))}
        rebuilt |= _optional(function, (here, "function"), "parameters")
        tools.append({"type": "function", "function": rebuilt})
    return tools


def _optional(value: Object, param: Place, schema: str) -> Object:
    """`description`, `strict` and the one free-form part of a function or of a JSON schema, where they stand."""
    checks: dict[str, Callable[[Any, Place], Any]] = {"description": _string, schema: _object, "strict": _boolean}
    return {name: check(value[name], (param, name)) for name, check in checks.items() if name in value}


_CHOSEN_FUNCTION = frozenset({"name"})


def _tool_choice(value: Any, param: Place) -> str | Object:
    if isinstance(value, str):
        if value not in ("none", "auto", "required"):
            _invalid(param)
        return value
    _typed(value, param, "function")
    refuse_unknown(value, _TOOL)
    function = _object(value.get("function"), (param, "function"), _CHOSEN_FUNCTION)
    return {
        "type": "function",
        "function": {"name": _function_name(function.get("name"), ((param, "function"), "name"))},
    }


_FORMAT = frozenset({"type"})
_SCHEMA_FORMAT = frozenset({"type", "json_schema"})
_JSON_SCHEMA = frozenset({"name", "description", "schema", "strict"})


def _response_format(value: Any, param: Place) -> Object:
    kind = _object(value, param).get("type")
    if kind in ("text", "json_object"):
        refuse_unknown(value, _FORMAT)
        return {"type": kind}
    if kind != "json_schema":
        _invalid((param, "type"))
    refuse_unknown(value, _SCHEMA_FORMAT)
    here = (param, "json_schema")
    schema = _object(value.get("json_schema"), here, _JSON_SCHEMA)
    rebuilt: Object = {"name": _function_name(schema.get("name"), (here, "name"))}
    return {"type": "json_schema", "json_schema": rebuilt | _optional(schema, here, "schema")}


_FIELDS: dict[str, Callable[[Any, Place], Any]] = {
    "messages": _messages,
    "stream": _boolean,
    "max_tokens": _positive,
    "max_completion_tokens": _positive,
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "stop": _stop,
    "tools": _tools,
    "tool_choice": _tool_choice,
    "response_format": _response_format,
    "stream_options": _object,
    "n": _one,
    "store": _false,
    "logprobs": _false,
    "user": _anything,
    "parallel_tool_calls": _anything,
    "seed": _anything,
    "metadata": _anything,
    "service_tier": _anything,
    "safety_identifier": _anything,
    "prompt_cache_key": _anything,
    "reasoning_effort": _anything,
    "verbosity": _anything,
}
"""Every field but `model`, with the check that returns its rebuilt value."""

_NAMES = frozenset({"model", *_FIELDS})

_PASSED_ON = frozenset(
    {"messages", "temperature", "top_p", "presence_penalty", "frequency_penalty", "stop"}
    | {"tools", "tool_choice", "response_format"}
)
