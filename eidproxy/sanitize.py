"""The closed chunk: what of an upstream event may pass, as types. Everything else vanishes by construction.

An upstream event is decoded into structs that have a field for each thing that may pass and for the few that must be
noticed (errors, usage, the model's name). The decoder skips unknown fields, so they never exist as a value. What goes
out is built anew from the structs without an underscore.

Liberal in spelling, closed in meaning: an event that the typed decoder refuses is read a second time, leaf by leaf
(`_read_loosely`), and one that is no valid Unicode is mended first (`repair`). Both find the same few fields.
"""

from typing import Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from eidproxy.errors import reason_in_event
from eidproxy.repair import Seams, repair, unmark
from eidproxy.sse import ErrorData
from eidproxy.vocabulary import Dropped, Stripped, TokenKind

# What goes out.


class Function(Struct, omit_defaults=True, gc=False):
    """The call of a function, or a piece of it: the name stands in the first piece alone."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(Struct, omit_defaults=True, gc=False):
    """A tool call, or a piece of it: `id` and `type` stand in the first piece alone, since SDKs join what repeats."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: Function | None = None


class Delta(Struct, omit_defaults=True, gc=False):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None


FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


class Choice(Struct, gc=False):
    """The one choice of a chunk. `finish_reason` stands in every chunk, null until the last."""

    index: Literal[0] = 0
    delta: Delta = msgspec.field(default_factory=Delta)
    finish_reason: FinishReason | None = None


# What comes in.


class _Function(Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _Call(Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(Struct, gc=False):
    index: int | None = 0
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None
    error: Raw | UnsetType = UNSET


class _Envelope(Struct, gc=False, kw_only=True):
    """What stands round the choices. Of `id`, `object` and `created` it only counts whether they are there."""

    id: Raw | UnsetType = UNSET
    object: Raw | UnsetType = UNSET
    created: Raw | UnsetType = UNSET
    model: Raw | UnsetType = UNSET
    usage: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET
    detail: Raw | UnsetType = UNSET
    error_type: Raw | UnsetType = UNSET
    error_message: Raw | UnsetType = UNSET


class _Chunk(_Envelope, gc=False, kw_only=True):
    choices: list[_Choice] | None = None


class _LooseChunk(_Envelope, gc=False, kw_only=True):
    choices: Raw | UnsetType = UNSET


class _LooseChoice(Struct, gc=False):
    index: Raw | UnsetType = UNSET
    delta: Raw | UnsetType = UNSET
    message: Raw | UnsetType = UNSET
    finish_reason: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


class _LooseDelta(Struct, gc=False):
    content: Raw | UnsetType = UNSET
    reasoning_content: Raw | UnsetType = UNSET
    reasoning: Raw | UnsetType = UNSET
    refusal: Raw | UnsetType = UNSET
    tool_calls: Raw | UnsetType = UNSET


class _LooseCall(Struct, gc=False):
    index: Raw | UnsetType = UNSET
    id: Raw | UnsetType = UNSET
    function: Raw | UnsetType = UNSET


class _LooseFunction(Struct, gc=False):
    name: Raw | UnsetType = UNSET
    arguments: Raw | UnsetType = UNSET


class _Part(Struct, gc=False):
    type: Raw | UnsetType = UNSET
    text: Raw | UnsetType = UNSET
    thinking: Raw | UnsetType = UNSET
    reasoning: Raw | UnsetType = UNSET


class _Usage(Struct, gc=False):
    prompt_tokens: Raw | UnsetType = UNSET
    completion_tokens: Raw | UnsetType = UNSET


# The event that streams consist of, as a type: one choice with text, no end, no error, a model and no usage.


class _CommonDelta(Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: None = None
    tool_calls: None = None


class _CommonChoice(Struct, kw_only=True, gc=False):
    index: Literal[0] = 0
    delta: _CommonDelta
    finish_reason: Literal[""] | None = None  # Ollama and SGLang say "" until the end (ollama/ollama#4357)
    error: None = None


class _CommonChunk(Struct, gc=False):
    choices: tuple[_CommonChoice]
    model: str
    usage: Raw | UnsetType = UNSET
    error: None = None
    detail: None = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_common = msgspec.json.Decoder(_CommonChunk).decode
_decode_usage = msgspec.json.Decoder(_Usage).decode
_decode_loose_chunk = msgspec.json.Decoder(_LooseChunk).decode
_decode_list = msgspec.json.Decoder(list[Raw]).decode
_decode_loose_choice = msgspec.json.Decoder(_LooseChoice).decode
_decode_loose_delta = msgspec.json.Decoder(_LooseDelta).decode
_decode_loose_call = msgspec.json.Decoder(_LooseCall).decode
_decode_loose_function = msgspec.json.Decoder(_LooseFunction).decode
_decode_part = msgspec.json.Decoder(_Part).decode
_decode_str = msgspec.json.Decoder(str).decode
_decode_int = msgspec.json.Decoder(int).decode
_decode_members = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode

_MOST_TOKENS = 1_000_000_000
"""Tokens of one request. A counter that took any number could be thrown out of use by one answer."""

_MODEL, _USAGE = Stripped.MODEL, Stripped.USAGE
_NONE_STRIPPED = dict.fromkeys(Stripped, 0)
_SILENT = frozenset({b"null", b"false", b'""', b"{}"})
"""An `error` or `detail` that says nothing (contract, 4)."""

_KNOWN_FIELDS = frozenset(
    {"id", "object", "created", "choices", "model", "usage", "index", "delta", "finish_reason"}
    | {"role", "content", "reasoning_content", "reasoning", "refusal", "tool_calls"}
)

_WORDS: dict[str, FinishReason | None] = {
    "": None,
    "null": None,
    "stop": "stop",
    "length": "length",
    "max_tokens": "length",
    "max_length": "length",
    "model_length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    "function_call": "function_call",
}
"""What a finish reason means, in lower case; any other word is `stop` (contract, 4)."""

_FAILURES = frozenset({"error", "abort", "aborted", "cancelled", "network_error"})
"""Finish reasons that are errors of the router (vllm-project/vllm#57082, OpenRouter, Zhipu)."""


class Sanitizer:
    """Reads the events of one upstream stream: what may pass of each, how the stream stands, what is to be counted."""

    __slots__ = (
        "_calls",
        "_counted_end",
        "_request_id",
        "_seams",
        "begun",
        "dropped",
        "failure",
        "finish_reason",
        "has_text",
        "is_late",
        "said_done",
        "stripped",
        "tokens",
    )

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._seams = Seams()
        self._calls: _Calls | None = None
        self._counted_end = False
        self.begun = False
        """A good event came: one with text, reasoning, a refusal, a call or a finish reason."""
        self.has_text = False
        """Something besides reasoning came."""
        self.finish_reason: FinishReason | None = None
        """The last finish reason that came."""
        self.is_late = False
        """Text or calls came after a finish reason, so that only the router's own end makes the answer whole."""
        self.said_done = False
        self.failure: str | None = None
        """The reason of an error that the router told. Nothing is read after it."""
        self.dropped: dict[Dropped, int] = {}
        self.stripped = _NONE_STRIPPED.copy()
        self.tokens: dict[TokenKind, int] = {}

    @property
    def is_trusted(self) -> bool:
        """Whether the answer is whole, whatever follows: no error, clock or cut makes an error of it."""
        return self.finish_reason is not None and not self.is_late

    @property
    def is_plain(self) -> bool:
        """Whether `rebuild` may stand in for `read`: in the middle of a stream, with no character begun."""
        return self.begun and self.finish_reason is None and not self._seams

    def read(self, data: bytes) -> Delta | None:
        """Read one event's data and return what may pass of it, or None.

        Sets `failure` for an error in any dialect, unless the answer is already whole.
        """
        if type(data) is ErrorData:
            self._fail(data)
            return None
        if data.strip() == b"[DONE]":
            self.said_done = True
            return None
        marked = False
        try:
            try:
                chunk = _decode_event(data)
            except msgspec.ValidationError:
                raise
            except ValueError:
                mended = repair(data)
                if mended is None:
                    raise
                data, marked = mended
                chunk = _decode_event(data)
        except msgspec.ValidationError:
            self._drop(Dropped.NOT_OBJECT)
            return None
        except (ValueError, RecursionError):  # no JSON, or nested without end
            self._drop(Dropped.NOT_JSON if data else Dropped.EMPTY)
            return None
        return self._read_chunk(chunk, data, marked)

    def _read_chunk(self, chunk: _Chunk, data: bytes, marked: bool) -> Delta | None:
        choices = chunk.choices
        if _says(chunk.error) or _says(chunk.detail) or (not choices and _is_error(chunk)):
            self._fail(data)
            return None
        if chunk.model is not UNSET:
            self.stripped[_MODEL] += 1
        if chunk.usage is not UNSET:
            self._count_usage(chunk.usage)
        # Only index 0 is read; a router that ignores n=1 may send others, in any order.
        choice = next((each for each in choices or () if not each.index), None)
        if choice is None:
            self._drop(Dropped.EMPTY)
            return None
        word = (choice.finish_reason or "").strip().lower()
        failing = word in _FAILURES or _says(choice.error)
        if failing and not self.begun:
            self._fail(data, in_choice=True)
            return None
        came = choice.delta if choice.delta is not None else choice.message
        delta = self._pass(came or _Delta(), marked)
        if delta is not None:
            if _is_loading(chunk, delta):
                delta = None
            elif self.finish_reason is not None:
                self.is_late = True
        if failing:
            self._fail(data, in_choice=True)
            return delta
        reason = _WORDS.get(word, "stop")
        if reason is not None:
            self.finish_reason = reason
        if reason is not None and not self._counted_end:
            self._counted_end = True
            self._count_others(data)
        if self.begun or (delta is None and reason is None):
            return delta
        if not self._counted_end:
            self._count_others(data)
        self.begun = True
        delta = delta or Delta(content="")
        delta.role = "assistant"  # in the first chunk and in no other: SDKs join what repeats
        return delta

    def _pass(self, came: _Delta, marked: bool) -> Delta | None:
        """What may pass of a delta, or None when it holds nothing."""
        content, reasoning, refusal = came.content, came.reasoning_content or came.reasoning, came.refusal
        if marked or self._seams:
            join = self._seams.join
            content = content and join("content", content, marked)
            reasoning = reasoning and join("reasoning_content", reasoning, marked)
            refusal = refusal and join("refusal", refusal, marked)
        calls = None
        if came.tool_calls:
            if self._calls is None:
                self._calls = _Calls(self._request_id)
            calls = self._calls.read(came.tool_calls, self._seams, marked)
        if content or refusal or calls:
            self.has_text = True
        elif not reasoning:
            return None
        return Delta(None, content or None, reasoning or None, refusal or None, calls or None)

    def close(self) -> Delta | None:
        """What still waits for the rest of a character when the stream is over, as U+FFFD."""
        rest = self._seams.close()
        if not rest:
            return None
        delta = Delta()
        calls = []
        for key, text in rest.items():
            if isinstance(key, int):
                calls.append(ToolCall(key, function=Function(arguments=text)))
            else:
                setattr(delta, str(key), text)
        delta.tool_calls = calls or None
        return delta

    def _count_others(self, data: bytes) -> None:
        """Count the unknown fields of an event. Done for the first event of a stream and for the first that ends it.

        The decoder skips unknown fields without a trace, which is what makes it safe and fast.
        """
        try:
            value = _decode_members(data)
            unknown = len(value.keys() - _KNOWN_FIELDS)
            for raw in _decode_list(value.get("choices", b"[]"))[:1]:
                choice = _decode_members(raw)
                unknown += len(choice.keys() - _KNOWN_FIELDS)
                unknown += len(_decode_members(choice.get("delta", b"{}")).keys() - _KNOWN_FIELDS)
        except (ValueError, RecursionError):
            return  # the typed decoder is less strict where it only skips
        self.stripped[Stripped.OTHER] += unknown

    def _count_usage(self, raw: Raw) -> None:
        self.stripped[_USAGE] += 1
        try:
            usage = _decode_usage(raw)
            # The last usage of a stream is its sum; servers that send one in every chunk count up.
            self.tokens = {
                TokenKind.PROMPT: _tokens(usage.prompt_tokens),
                TokenKind.COMPLETION: _tokens(usage.completion_tokens),
            }
        except (ValueError, RecursionError):
            pass  # usage is only for the metrics: a strange one costs nobody the text beside it

    def _fail(self, data: bytes, in_choice: bool = False) -> None:
        if not self.is_trusted:
            self.failure = reason_in_event(data, begun=self.begun, in_choice=in_choice)

    def _drop(self, kind: Dropped) -> None:
        self.dropped[kind] = self.dropped.get(kind, 0) + 1


class _Calls:
    """Tells the tool calls of one answer apart, and numbers them in the order in which they begin (contract, 4).

    Servers give parallel calls one index (ollama/ollama#15457), none (ollama/ollama#7881), or repeat id and name in
    each piece. A name begins a call, unless the call with that id has begun already.
    """

    __slots__ = ("_by_id", "_by_index", "_names", "_request_id", "_unnamed")

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._names: list[str] = []
        self._by_id: dict[str, int] = {}
        self._by_index: dict[int, int] = {}
        self._unnamed: dict[int, str] = {}
        """The arguments so far of calls that came without an id."""

    def read(self, pieces: list[_Call], seams: Seams, marked: bool) -> list[ToolCall]:
        """The pieces as they pass."""
        passed = []
        for piece in pieces:
            function = piece.function or _Function()
            given_id, name = piece.id, function.name
            if marked:
                given_id, name = given_id and unmark(given_id), name and unmark(name)
            number = self._begun(piece.index, given_id, name)
            arguments = function.arguments or ""
            if number is None:
                if not name:
                    continue  # a piece of a call that never began
                call = self._begin(piece.index, given_id, name)
            else:
                call = ToolCall(number)
                if piece.index is not None:
                    self._by_index[piece.index] = number
            if arguments and (marked or seams):
                arguments = seams.join(call.index, arguments, marked)
            if call.index in self._unnamed:
                self._unnamed[call.index] += arguments
            if call.id is not None:
                call.function = Function(name, arguments)
                passed.append(call)
            elif arguments:
                call.function = Function(arguments=arguments)
                passed.append(call)
        return passed

    def _begun(self, index: int | None, given_id: str | None, name: str | None) -> int | None:
        """The number of the call that a piece continues, or None when it begins one."""
        number = self._by_id.get(given_id) if given_id else None
        if name:
            if given_id:
                return number if number is not None and self._names[number] == name else None
            number = self._by_index.get(index) if index is not None else None
            # A server that gives no ids and repeats the name; or one whose next call has the same name.
            if number is None or self._names[number] != name or _is_json(self._unnamed.get(number, "")):
                return None
            return number
        if index is not None and index in self._by_index:
            return self._by_index[index]
        if number is not None:
            return number
        return len(self._names) - 1 if self._names else None

    def _begin(self, index: int | None, given_id: str | None, name: str) -> ToolCall:
        number = len(self._names)
        self._names.append(name)
        if index is not None:
            self._by_index[index] = number
        if not given_id:
            self._unnamed[number] = ""
        if not given_id or given_id in self._by_id:
            given_id = f"call_{self._request_id}_{number}"
        self._by_id[given_id] = number
        return ToolCall(number, given_id, "function")


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text, type=Raw)
    except (ValueError, RecursionError):
        return False
    return True


def _says(field: Raw | UnsetType) -> bool:
    return field is not UNSET and bytes(field).translate(None, b" \t\r\n") not in _SILENT


def _is_error(chunk: _Chunk) -> bool:
    """Whether an event without choices is an error in one of the dialects that have no `error`."""
    return (chunk.object is not UNSET and bytes(chunk.object) == b'"error"') or (
        _says(chunk.error_type) or _says(chunk.error_message)
    )


def _is_loading(chunk: _Chunk, delta: Delta) -> bool:
    """Whether an event tells that llama-swap loads a model, whose name is in the text: no model's event looks so."""
    return (
        delta.reasoning_content is not None
        and not (delta.content or delta.refusal or delta.tool_calls)
        and chunk.id is chunk.object is chunk.created is chunk.model is UNSET
    )


def _decode_event(data: bytes) -> _Chunk:
    """Raises msgspec.ValidationError for JSON that is no object, ValueError and RecursionError for no JSON."""
    try:
        return _decode_chunk(data)
    except msgspec.ValidationError:
        return _read_loosely(_decode_loose_chunk(data))


# The second reading. Each function takes one leaf of any type and returns what of it counts.


def _read_loosely(loose: _LooseChunk) -> _Chunk:
    chunk = _Chunk(**{name: getattr(loose, name) for name in _Envelope.__struct_fields__})
    choices = [_loose_choice(raw) for raw in _list(loose.choices) or ()]
    chunk.choices = [choice for choice in choices if choice is not None]
    if not chunk.choices and not (_says(chunk.error) or _says(chunk.detail) or _is_error(chunk)):
        raise msgspec.ValidationError  # a chunk in name alone
    return chunk


def _loose_choice(raw: Raw) -> _Choice | None:
    try:
        loose = _decode_loose_choice(raw)
    except msgspec.ValidationError:
        return None
    index = 0 if bytes(_raw(loose.index)) in _ZERO else _int(loose.index)
    delta, message = _loose_delta(loose.delta), _loose_delta(loose.message)
    reason = _string(loose.finish_reason)
    is_empty = delta is None and message is None and reason is None and not _says(loose.error)
    if index is None or is_empty:
        return None
    return _Choice(index, delta, message, reason, loose.error)


_NULL = Raw(b"null")
_ZERO = frozenset({b"null", b"0.0", b'"0"'})


def _loose_delta(raw: Raw | UnsetType) -> _Delta | None:
    try:
        loose = _decode_loose_delta(_raw(raw))
    except msgspec.ValidationError:
        return None
    content, thought = _text(loose.content)
    reasoning = "".join(_text(loose.reasoning_content)) or "".join(_text(loose.reasoning))
    calls = [_loose_call(call) for call in _list(loose.tool_calls) or ()]
    return _Delta(content, thought + reasoning, None, _string(loose.refusal), [call for call in calls if call])


def _loose_call(raw: Raw) -> _Call | None:
    try:
        loose = _decode_loose_call(raw)
        is_bare = bytes(_raw(loose.function)) == b"null"
        function = _LooseFunction() if is_bare else _decode_loose_function(_raw(loose.function))
    except msgspec.ValidationError:
        return None
    arguments = _string(function.arguments)
    if arguments is None and (text := bytes(_raw(function.arguments))) != b"null":
        arguments = text.decode()  # their JSON text (BerriAI/litellm#37792)
    return _Call(_int(loose.index), _string(loose.id), _Function(_string(function.name), arguments))


def _text(raw: Raw | UnsetType) -> tuple[str, str]:
    """Text and reasoning of a content: a string, or a list of parts (BerriAI/litellm#16272, Mistral's `thinking`)."""
    text = _string(raw)
    if text is not None:
        return text, ""
    texts: list[str] = []
    thoughts: list[str] = []
    for item in _list(raw) or ():
        text = _string(item)
        if text is not None:
            texts.append(text)
            continue
        try:
            part = _decode_part(item)
        except msgspec.ValidationError:
            continue
        kind = _string(part.type)
        if kind in ("text", None):
            texts.append(_string(part.text) or "")
        elif kind in ("thinking", "reasoning"):
            for field in (part.thinking, part.reasoning, part.text):
                thoughts += _text(field)
    return "".join(texts), "".join(thoughts)


def _raw(field: Raw | UnsetType) -> Raw:
    return _NULL if field is UNSET else field


def _string(raw: Raw | UnsetType) -> str | None:
    try:
        return _decode_str(_raw(raw))
    except msgspec.ValidationError:
        return None


def _int(raw: Raw | UnsetType) -> int | None:
    try:
        return _decode_int(_raw(raw))
    except msgspec.ValidationError:
        return None


def _list(raw: Raw | UnsetType) -> list[Raw] | None:
    try:
        return _decode_list(_raw(raw))
    except msgspec.ValidationError:
        return None


def _tokens(raw: Raw | UnsetType) -> int:
    """A count of tokens. Raises ValueError for anything else."""
    count = 0 if raw is UNSET else _decode_int(raw)
    if not 0 <= count <= _MOST_TOKENS:
        raise ValueError
    return count


class Frames:
    """Writes the events of one stream to its caller."""

    __slots__ = ("_common", "_head", "_thought")

    def __init__(self, head: bytes) -> None:
        """`head` is what stands before the choice in each chunk (see `chunk_head`)."""
        self._head = head
        self._common = head + b'{"index":0,"delta":{"content":'
        self._thought = head + b'{"index":0,"delta":{"reasoning_content":'

    def rebuild(self, data: bytes) -> bytes | None:
        """The frame of an event of the common shape, which `Sanitizer.read` would give too; None for any other.

        For those between the first event that passes and the finish reason. Each takes one `model` out.
        """
        try:
            chunk = _decode_common(data)
        except (ValueError, RecursionError):
            return None
        delta = chunk.choices[0].delta
        thought = delta.reasoning_content or delta.reasoning
        if chunk.usage is not UNSET or bool(delta.content) is bool(thought):
            return None
        if thought:
            return b"".join((self._thought, _encode(thought), _FRAME_END))
        return b"".join((self._common, _encode(delta.content), _FRAME_END))

    def encode(self, delta: Delta, finish_reason: FinishReason | None = None) -> bytes:
        """A delta as an event of the stream."""
        return b"".join((self._head, _encode(Choice(0, delta, finish_reason)), _TAIL))


_TAIL = b"]}\n\n"
"""What ends an event whose head is `chunk_head`."""

_FRAME_END = b'},"finish_reason":null}' + _TAIL


def chunk_head(request_id: str, created: int, model: str) -> bytes:
    """What each chunk of a stream begins with, up to the open bracket of `choices`."""
    head = {"id": f"chatcmpl-{request_id}", "object": "chat.completion.chunk", "created": created, "model": model}
    return b"data: " + _encode(head)[:-1] + b',"choices":['


def progress_chunk(head: bytes, eid: dict[str, str | int | None]) -> bytes:
    """A chunk without a choice that tells where the request stands."""
    return head + b'],"eid":' + _encode(eid) + b"}\n\n"
