"""Validation of chat requests: a JSON body becomes a `ChatRequest`, or a `Refusal` with the reason.

The values of a body are counted, then it is parsed once and converted to the types below. The types are the schema:
a field that they lack is refused, and the router's request is rebuilt from their values. `null` counts as absent.
The work for each byte is bounded: a body of 1 MiB is judged in some 35 ms, whatever it holds.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct, ValidationError

from eidproxy.errors import Refusal
from eidproxy.vocabulary import Mode

MAX_DEPTH = 32
"""How deep a body may nest (contract, 3). Schemas of tools nest deepest, and stay far below this."""
MAX_VALUES = 100_000
"""How many values a body may have (contract, 3). A parsed value costs more memory and time than its bytes."""
MAX_MESSAGES = 200
"""How many messages a request may have (contract, 3)."""

Object = dict[str, Any]

# The request as types. A field of type `Any` is accepted with any value, since clients send it, and never passed on.

FunctionName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$(?!\n)")]  # `$` also matches before a line feed
Penalty: TypeAlias = Annotated[int, Meta(ge=-2, le=2)] | Annotated[float, Meta(ge=-2, le=2)]
TokenLimit: TypeAlias = Annotated[int, Meta(ge=-1)] | Annotated[float, Meta(ge=-1)]


class Closed(Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """An object with these fields and no other."""


class Marked(Closed):
    """Base of messages, parts and tools, in which clients mark what a cache should keep."""

    cache_control: Any = None
    copilot_cache_control: Any = None


class TextPart(Marked, kw_only=True):
    """A text part of a message."""

    type: Literal["text"]
    text: str


Content: TypeAlias = str | Annotated[list[TextPart], Meta(min_length=1)]
ContentOrNone: TypeAlias = str | list[TextPart] | None


class CalledFunction(Closed):
    """The function that the model called, and its arguments, both as the model wrote them."""

    name: str
    arguments: str
    parsed_arguments: Any = None


class AssistantCall(Closed):
    """A tool call in an assistant message."""

    id: str
    type: Literal["function"]
    function: CalledFunction
    index: Any = None


class Message(Marked, tag_field="role"):
    """Base of messages: the fields that each role may have."""

    name: str | None = None


class SystemMessage(Message, tag="system", kw_only=True):
    """A system message."""

    content: Content


class DeveloperMessage(SystemMessage, tag="developer"):
    """A system message under its newer role name, which chat templates do not know."""


class UserMessage(Message, tag="user", kw_only=True):
    """A message of the user."""

    content: Content


class AssistantMessage(Message, tag="assistant"):
    """An earlier answer. Fields after `tool_calls` are accepted, since clients send them back, and not passed on."""

    content: ContentOrNone = None
    tool_calls: list[AssistantCall] | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    reasoning_details: Any = None
    thinking_blocks: Any = None
    refusal: Any = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None
    parsed: Any = None
    provider_specific_fields: Any = None


class ToolMessage(Message, tag="tool", kw_only=True):
    """The result of a tool call."""

    tool_call_id: str
    content: ContentOrNone = None


AnyMessage: TypeAlias = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class FunctionDefinition(Closed):
    """A function that the model may call. `parameters` is a JSON Schema, passed on unchanged."""

    name: FunctionName
    description: str | None = None
    parameters: Object | None = None
    strict: bool | None = None


class Tool(Marked, kw_only=True):
    """A tool; only functions are supported."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionChoice(Closed):
    """The name of a function."""

    name: FunctionName


class ToolChoice(Closed):
    """The one function that the model must call."""

    type: Literal["function"]
    function: FunctionChoice


class TextFormat(Closed, tag_field="type", tag="text"):
    """Plain text."""


class JsonFormat(Closed, tag_field="type", tag="json_object"):
    """Any JSON object."""


class JsonSchema(Closed):
    """A JSON Schema for the answer, passed on unchanged."""

    name: FunctionName
    description: str | None = None
    schema: Object | None = None
    strict: bool | None = None


class SchemaFormat(Closed, tag_field="type", tag="json_schema"):
    """JSON that matches a schema."""

    json_schema: JsonSchema


class CompletionRequest(Closed):
    """The body of `POST /v1/chat/completions`."""

    model: Literal["daily", "deep"]
    messages: Annotated[list[AnyMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    stream: bool | None = None
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    temperature: Annotated[int, Meta(ge=0, le=2)] | Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[int, Meta(ge=0, le=1)] | Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    stop: str | Annotated[list[str], Meta(max_length=4)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    response_format: TextFormat | JsonFormat | SchemaFormat | None = None
    # Accepted and not passed on.
    stream_options: Object | None = None
    n: Annotated[int, Meta(ge=1, le=1)] | Annotated[float, Meta(ge=1, le=1)] | None = None
    store: bool | None = None
    logprobs: bool | None = None
    user: Any = None
    parallel_tool_calls: Any = None
    seed: Any = None
    metadata: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    # Not supported, and sent by clients that have nothing to say in it.
    functions: Annotated[list[Any], Meta(max_length=0)] | None = None
    logit_bias: Annotated[Object, Meta(max_length=0)] | None = None
    extra_body: Annotated[Object, Meta(max_length=0)] | None = None


REQUEST_FIELDS = frozenset(CompletionRequest.__struct_fields__)
"""The names of all top-level fields of a request."""

_EMPTY_ONLY_FIELDS = ("functions", "logit_bias", "extra_body")


class Model(NamedTuple):
    """A mode's model at the router, and the defaults of its requests.

    `alias` is the router's name of the model. `max_tokens` is also the most that a caller gets. `params` are the
    operator's constants, added to each request. A rebuilt request of more than `max_prompt_bytes` is refused; 0 is no
    bound.
    """

    alias: str
    max_tokens: int = 2048
    temperature: float = 0.4
    params: Object = {}  # noqa: RUF012  # nobody writes to it
    ask_usage: bool = False
    max_prompt_bytes: int = 0


class ChatRequest(Struct, frozen=True, gc=False):
    """A valid request, as the bytes for the router: a waiting request must not keep a parsed tree in memory."""

    mode: Mode
    stream: bool
    body: bytes
    generates_unseen: bool = False
    """Whether the request has `tools` or a JSON format: servers generate both without an event until they are whole."""


class _ModelOnly(Struct):
    model: Literal["daily", "deep"]


def _parse_finite(text: str) -> float:
    """Return a finite number; raise ValueError for an infinite one.

    msgspec's own parser takes up to 18 µs for `1e300` and the like, `float` less than 0.3 µs.
    """
    number = float(text)
    if number - number == 0:
        return number
    raise ValueError


_MODES = {mode.value: mode for mode in Mode}
_decode = msgspec.json.Decoder(float_hook=_parse_finite).decode
_decode_model = msgspec.json.Decoder(_ModelOnly).decode
_encode = msgspec.json.Encoder().encode

T = TypeVar("T", bound=Struct)


def parse_object(body: bytes) -> Object:
    """Parse a body that is one JSON object (RFC 8259, UTF-8, no NaN). Raises Refusal `invalid_json` otherwise."""
    if not _within_limits(body):
        raise Refusal("invalid_json")
    try:
        value = _decode(body)
    except ValueError:  # from None: the cause holds bytes of the body
        raise Refusal("invalid_json") from None
    if not isinstance(value, dict):
        raise Refusal("invalid_json")
    return value


def parse_chat_request(body: bytes, models: Mapping[Mode, Model]) -> ChatRequest:
    """Check a body of `POST /v1/chat/completions` and rebuild it from known fields alone (contract, P3).

    Raises Refusal with the reason and, where safe, the field.
    """
    value = parse_object(body)
    try:
        _decode_model(body)  # a parser keeps the last of two equal keys, but each `model` must be valid
    except ValidationError as error:
        raise _refusal_for(error, value) from None
    try:
        request = msgspec.convert(value, CompletionRequest)
    except ValidationError:
        request = None
    if request is None:
        # Null counts as absent in every field. Few bodies have any, so they are dropped only after a failed conversion.
        _drop_nulls(value)
        request = convert(value, CompletionRequest)
    if request.store or request.logprobs:
        raise Refusal("invalid_request", "store" if request.store else "logprobs")
    mode = _MODES[request.model]
    model = models[mode]
    fields: Object = {}
    if request.max_tokens is not None or request.max_completion_tokens is not None:
        fields["max_tokens"] = _token_limit(request, model.max_tokens)
    for name, given in (
        ("temperature", request.temperature),
        ("top_p", request.top_p),
        ("presence_penalty", request.presence_penalty),
        ("frequency_penalty", request.frequency_penalty),
        ("response_format", request.response_format),
    ):
        if given is not None:
            fields[name] = given
    if request.stop is not None and request.stop != []:
        fields["stop"] = request.stop
    if request.tools:
        fields["tools"] = [{"type": "function", "function": tool.function} for tool in request.tools]
        if request.tool_choice is not None:
            fields["tool_choice"] = request.tool_choice
    generates_unseen = bool(request.tools) or isinstance(request.response_format, (JsonFormat, SchemaFormat))
    return ChatRequest(
        mode, bool(request.stream), upstream_body(model, _rebuild_messages(request.messages), fields), generates_unseen
    )


def upstream_body(model: Model, messages: list[Object], fields: Object) -> bytes:
    """Return the body for the router. It always asks for a stream: only that lets the router notice a departure.

    Raises Refusal `prompt_too_long` by the size of this body, since this is what the model server has to read.
    """
    body = {
        **model.params,
        "model": model.alias,
        "messages": messages,
        "stream": True,
        "max_tokens": model.max_tokens,
        "temperature": model.temperature,
        **fields,
    }
    if model.ask_usage:
        body["stream_options"] = {"include_usage": True}
    encoded = _encode(body)
    if 0 < model.max_prompt_bytes < len(encoded):
        raise Refusal("prompt_too_long")
    return encoded


def convert(value: Object, kind: type[T]) -> T:
    """Convert a JSON object to the type `kind`. Raises Refusal with the reason and, where safe, the field."""
    known = kind.__struct_fields__
    for name in value:
        if name not in known:
            raise Refusal("unsupported_field", name if re.fullmatch(_IDENTIFIER, name) else None)
    try:
        return msgspec.convert(value, kind)
    except ValidationError as error:  # from None: its text may hold a word of the body
        raise _refusal_for(error, value) from None


_BLANKS = b" \t\r\n"
_EMPTY_CONTAINER = b"\x00"
_NO_STRUCTURE = bytes(set(range(256)) - set(_EMPTY_CONTAINER + b'"[]{}:,'))
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def _within_limits(body: bytes) -> bool:
    """Return whether valid JSON has at most 100,000 values and at most 32 levels. Each step is one pass in C.

    A value is the outermost one, the first in its container, or the one after a comma. Removing each empty pair of
    brackets removes one level. For invalid JSON the result does not matter: the parser refuses it anyway.
    """
    containers = body.count(b"[") + body.count(b"{")
    # These counts are upper bounds: they include bytes inside strings. A value and its comma take two bytes.
    is_counted = len(body) >= 2 * MAX_VALUES and containers + body.count(b",") >= MAX_VALUES
    if containers <= MAX_DEPTH and not is_counted:
        return True
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if is_counted:
        body = body.translate(None, _BLANKS).replace(b"[]", _EMPTY_CONTAINER).replace(b"{}", _EMPTY_CONTAINER)
    # Two strings never touch, so two adjacent quotes are one string that held no structure.
    structure = body.translate(None, _NO_STRUCTURE).replace(b'""', b"")
    outside = b"".join(structure.split(b'"')[::2])
    if is_counted and 1 + outside.count(b",") + outside.count(b"[") + outside.count(b"{") > MAX_VALUES:
        return False
    brackets = outside.replace(_EMPTY_CONTAINER, b"[]").translate(_BRACKETS, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        if not brackets:
            return True
        brackets = brackets.replace(b"[]", b"")
    return not brackets


_NESTED_FIELDS = frozenset(
    {"messages", "content", "tool_calls", "function", "tools", "tool_choice", "response_format", "json_schema"}
)


def _drop_nulls(value: Object) -> None:
    """Remove every null field, in place. Free-form values (`parameters`, `schema`) are not entered."""
    has_null = False
    for name, given in value.items():
        if given is None:
            has_null = True
        elif name in _NESTED_FIELDS:
            for item in given if isinstance(given, list) else (given,):
                if isinstance(item, dict):
                    _drop_nulls(item)
    if has_null:
        for name in [name for name, given in value.items() if given is None]:
            del value[name]


_IDENTIFIER = "[A-Za-z_][A-Za-z0-9_]{0,63}"
_UNKNOWN_FIELD = re.compile(f"Object contains unknown field `({_IDENTIFIER})`")
_MISSING_FIELD = re.compile(f"Object missing required field `({_IDENTIFIER})`")
_PATH_STEP = re.compile("[a-z_]+|[0-9]+")
_EXPECTED_TYPES = {"content": "text", "tools": "function", "tool_calls": "function", "tool_choice": "function"}


def _refusal_for(error: ValidationError, value: Object) -> Refusal:
    """Return the refusal for an error of msgspec: a reason, and the path of the field.

    The path consists of our own names and of numbers. The error's text is not passed on: it may quote the caller.
    """
    text, _, path = str(error).rpartition(" - at `$")  # "Expected `str`, got `int` - at `$.messages[0].role`"
    text, path = (text, path[:-1].removeprefix(".")) if text else (path, "")  # no path at the top level
    if text.startswith("Object contains unknown field"):
        if _has_other_type(value, path):
            return Refusal("unsupported_content", f"{path}.type")
        name = _UNKNOWN_FIELD.fullmatch(text)
        return Refusal("unsupported_field", name[1] if name else None)
    if missing := _MISSING_FIELD.fullmatch(text):
        return Refusal("invalid_request", f"{path}.{missing[1]}".removeprefix("."))
    if path in _EMPTY_ONLY_FIELDS:
        return Refusal("unsupported_field", path)
    if text.startswith("Invalid enum value"):
        if path in ("model", "mode"):
            return Refusal("model_not_found", path)
        if path.endswith(".type"):
            return Refusal("unsupported_content", path)
    return Refusal("invalid_request", "stop" if path.startswith("stop[") else path)


def _has_other_type(value: Any, path: str) -> bool:
    """Return whether the value at a path is a part, tool or call of another type, which is reported first."""
    field = ""
    for step in _PATH_STEP.findall(path):
        if step.isdecimal():
            value = value[int(step)]
        else:
            field, value = step, value[step]
    kind = value.get("type")
    return field in _EXPECTED_TYPES and isinstance(kind, str) and kind != _EXPECTED_TYPES[field]


def _token_limit(request: CompletionRequest, limit: int) -> int:
    """Return the smallest of the limits. A number without a fraction is a whole number; -1 counts as absent.

    Raises Refusal `invalid_request`.
    """
    for name in ("max_tokens", "max_completion_tokens"):
        given = getattr(request, name)
        if given is None or given == -1:
            continue
        if given < 1 or given % 1:
            raise Refusal("invalid_request", name)
        limit = min(limit, int(given))
    return limit


def _rebuild_messages(messages: Iterable[AnyMessage]) -> list[Object]:
    """Return the messages for the router.

    All instructions become one system message at the head: chat templates refuse a second or a late one.
    """
    instructions: list[Content] = []
    rebuilt: list[Object] = []
    content: str | list[Object] | None
    for message in messages:
        if isinstance(message, SystemMessage):
            instructions.append(message.content)
        elif isinstance(message, UserMessage):
            rebuilt.append({"role": "user", "content": _rebuild_content(message.content)})
        elif isinstance(message, ToolMessage):
            content = _rebuild_content(message.content) if message.content else ""
            rebuilt.append({"role": "tool", "content": content, "tool_call_id": message.tool_call_id})
        elif message.tool_calls:
            content = None if message.content in (None, []) else _rebuild_content(message.content)
            rebuilt.append({"role": "assistant", "content": content, "tool_calls": _rebuild_calls(message.tool_calls)})
        else:
            rebuilt.append(
                {"role": "assistant", "content": _rebuild_content(message.content) if message.content else ""}
            )
    if len(instructions) == 1:
        rebuilt.insert(0, {"role": "system", "content": _rebuild_content(instructions[0])})
    elif instructions:
        rebuilt.insert(0, {"role": "system", "content": "\n\n".join(map(_join_text, instructions))})
    return rebuilt


def _rebuild_content(content: str | list[TextPart]) -> str | list[Object]:
    return content if isinstance(content, str) else [{"type": "text", "text": part.text} for part in content]


def _join_text(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _rebuild_calls(calls: Iterable[AssistantCall]) -> list[Object]:
    return [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.function.name, "arguments": call.function.arguments},
        }
        for call in calls
    ]
