"""The dialects of routers, read as one type: an event's data becomes a `RouterChunk`.

The structs have a field for each value that may pass and for the few that must be noticed (errors, usage, the model's
name). The decoder skips unknown fields, so they never exist as a value. An event that the typed decoder refuses is read
a second time, leaf by leaf (`_read_loosely`), and one that is no valid Unicode is mended first (`repair`). All readings
find the same few fields, and none builds a tree: an event may be a megabyte of anything.
"""

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from eidproxy.relay.repair import repair


class RouterFunction(Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class RouterCall(Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: RouterFunction | None = None


class RouterDelta(Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[RouterCall] | None = None

    def texts(self) -> dict[str, str]:
        """Return the texts that are not empty, each under the name that callers get it by."""
        reasoning = self.reasoning_content or self.reasoning
        named = {"content": self.content, "reasoning_content": reasoning, "refusal": self.refusal}
        return {name: text for name, text in named.items() if text}


class RouterChoice(Struct, gc=False):
    index: int | None = 0
    delta: RouterDelta | None = None
    message: RouterDelta | None = None
    finish_reason: str | None = None
    error: Raw | UnsetType = UNSET


class _Envelope(Struct, gc=False, kw_only=True):
    """The fields of a chunk beside its choices. Of `id` and `created` only the presence matters."""

    id: Raw | UnsetType = UNSET
    object: Raw | UnsetType = UNSET
    created: Raw | UnsetType = UNSET
    model: Raw | UnsetType = UNSET
    usage: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET
    detail: Raw | UnsetType = UNSET
    error_type: Raw | UnsetType = UNSET
    error_message: Raw | UnsetType = UNSET


class RouterChunk(_Envelope, gc=False, kw_only=True):
    choices: list[RouterChoice] | None = None


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


_decode_chunk = msgspec.json.Decoder(RouterChunk).decode
_decode_loose_chunk = msgspec.json.Decoder(_LooseChunk).decode
_decode_list = msgspec.json.Decoder(list[Raw]).decode
_decode_loose_choice = msgspec.json.Decoder(_LooseChoice).decode
_decode_loose_delta = msgspec.json.Decoder(_LooseDelta).decode
_decode_loose_call = msgspec.json.Decoder(_LooseCall).decode
_decode_loose_function = msgspec.json.Decoder(_LooseFunction).decode
_decode_part = msgspec.json.Decoder(_Part).decode
_decode_usage = msgspec.json.Decoder(_Usage).decode
_decode_members = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_raw = msgspec.json.Decoder(Raw).decode
_decode_str = msgspec.json.Decoder(str).decode
_decode_int = msgspec.json.Decoder(int).decode
_decode_index = msgspec.json.Decoder(int, strict=False).decode

_MAX_TOKENS = 1_000_000_000
"""The most tokens of one request. Without a limit one false answer could make the counter useless."""

_MAX_ITEMS = 2048
"""The most list items of one event in the second reading. Each costs some microseconds; no honest event has so many."""

_MAX_DEPTH = 4
"""The most levels of nested content. Each level reads its content again."""

_SILENT = frozenset({b"null", b"false", b'""', b"{}"})
"""The values of `error` and `detail` that say nothing (contract, 4)."""

_KNOWN_FIELDS = frozenset(
    {"id", "object", "created", "choices", "model", "usage", "index", "delta", "finish_reason"}
    | {"role", "content", "reasoning_content", "reasoning", "refusal", "tool_calls"}
)


def says_something(field: Raw | UnsetType) -> bool:
    return field is not UNSET and bytes(field).translate(None, b" \t\r\n") not in _SILENT


def is_error(chunk: RouterChunk) -> bool:
    """Return whether an event without choices is an error in a dialect that has no `error` field."""
    return (chunk.object is not UNSET and bytes(chunk.object) == b'"error"') or (
        says_something(chunk.error_type) or says_something(chunk.error_message)
    )


class NotObject(Exception):
    """The data is JSON, but no chunk in any dialect."""


class NotJson(Exception):
    """The data is not JSON, and `repair` cannot make it JSON."""


class TooManyItems(Exception):
    """A list is longer than in any honest answer. No part of it is read, since text must not be cut silently."""


def decode_event(data: bytes) -> tuple[RouterChunk, bytes, bool]:
    """Decode an event's data. Return the chunk, the data as decoded, and whether it may have marks of `repair`.

    Raises NotObject, NotJson or TooManyItems.
    """
    try:
        try:
            return _decode(data), data, False
        except msgspec.ValidationError:
            raise
        except ValueError:
            mended = repair(data)
            if mended is None:
                raise
            data, marked = mended
            return _decode(data), data, marked
    except msgspec.ValidationError:
        raise (NotObject if is_json(data) else NotJson) from None
    except (ValueError, RecursionError):  # not JSON, or nested too deeply
        raise NotJson from None


def is_json(data: bytes | str) -> bool:
    """Return whether this is one JSON value, without building a tree."""
    try:
        _decode_raw(data)
    except (ValueError, RecursionError):
        return False
    return True


def _decode(data: bytes) -> RouterChunk:
    try:
        return _decode_chunk(data)
    except msgspec.ValidationError:
        return _read_loosely(_decode_loose_chunk(data))


def decode_usage(raw: Raw) -> tuple[int, int] | None:
    """Return the tokens of prompt and completion, or None if this is no valid usage."""
    try:
        usage = _decode_usage(raw)
        return _token_count(usage.prompt_tokens), _token_count(usage.completion_tokens)
    except (ValueError, RecursionError):
        return None


def count_unknown_fields(data: bytes) -> int:
    """Return how many fields of an event are unknown here. Their values are not decoded."""
    try:
        value = _decode_members(data)
        unknown = len(value.keys() - _KNOWN_FIELDS)
        for raw in _decode_list(value.get("choices", _EMPTY_LIST))[:1]:
            choice = _decode_members(raw)
            unknown += len(choice.keys() - _KNOWN_FIELDS)
            unknown += len(_decode_members(choice.get("delta", _EMPTY_OBJECT)).keys() - _KNOWN_FIELDS)
    except (ValueError, RecursionError):
        return 0  # the typed decoder is less strict about values that it skips
    return unknown


_EMPTY_LIST, _EMPTY_OBJECT = Raw(b"[]"), Raw(b"{}")


# The second reading. Each function takes one leaf of any type and returns the part that counts.


def _read_loosely(loose: _LooseChunk) -> RouterChunk:
    chunk = RouterChunk(**{name: getattr(loose, name) for name in _Envelope.__struct_fields__})
    chunk.choices = _LooseReader().read_choices(loose.choices)
    if bytes(_raw_or_null(loose.choices)).translate(None, b" \t\r\n") in _NO_CHOICES:
        return chunk  # of two `choices` the last one counts, and the first made the typed decoder refuse
    if not chunk.choices and not (says_something(chunk.error) or says_something(chunk.detail) or is_error(chunk)):
        raise msgspec.ValidationError  # neither a choice nor an error in it
    return chunk


_NULL = Raw(b"null")
_NO_CHOICES = frozenset({b"null", b"[]"})


class _LooseReader:
    """The second reading of one event. Raises TooManyItems if its lists together exceed `_MAX_ITEMS`."""

    __slots__ = ("_items_left",)

    def __init__(self) -> None:
        self._items_left = _MAX_ITEMS

    def read_choices(self, field: Raw | UnsetType) -> list[RouterChoice]:
        choices = [self._read_choice(raw) for raw in self._objects(field)]
        return [choice for choice in choices if choice is not None]

    def _read_choice(self, raw: Raw) -> RouterChoice | None:
        loose = _decode_loose_choice(raw)
        index = 0 if bytes(_raw_or_null(loose.index)) == b"null" else _as_index(loose.index)
        delta, message = self._read_delta(loose.delta), self._read_delta(loose.message)
        reason = _as_string(loose.finish_reason)
        is_invalid_delta = delta is None and bytes(_raw_or_null(loose.delta)) != b"null"
        if index is None or (
            is_invalid_delta and message is None and reason is None and not says_something(loose.error)
        ):
            return None
        return RouterChoice(index, delta, message, reason, loose.error)

    def _read_delta(self, raw: Raw | UnsetType) -> RouterDelta | None:
        try:
            loose = _decode_loose_delta(_raw_or_null(raw))
        except msgspec.ValidationError:
            return None
        content, thought = self._read_text(loose.content)
        reasoning = "".join(self._read_text(loose.reasoning_content)) or "".join(self._read_text(loose.reasoning))
        calls = [_read_call(call) for call in self._objects(loose.tool_calls)]
        return RouterDelta(
            content=content,
            reasoning_content=thought + reasoning,
            refusal=_as_string(loose.refusal),
            tool_calls=[call for call in calls if call],
        )

    def _read_text(self, raw: Raw | UnsetType, depth: int = 1) -> tuple[str, str]:
        """Return text and reasoning of a content: a string or parts (BerriAI/litellm#16272, Mistral's `thinking`)."""
        text = _as_string(raw)
        if text is not None:
            return text, ""
        items = self._items(raw)
        if items and depth > _MAX_DEPTH:
            raise TooManyItems
        texts: list[str] = []
        thoughts: list[str] = []
        for item in items:
            if bytes(item)[:1] == b'"':
                texts.append(_as_string(item) or "")
                continue
            try:
                part = _decode_part(item)
            except msgspec.ValidationError:
                continue
            kind = _as_string(part.type)
            if kind in ("text", None):
                texts.append(_as_string(part.text) or "")
            elif kind in ("thinking", "reasoning"):
                for field in (part.thinking, part.reasoning, part.text):
                    thoughts += self._read_text(field, depth + 1)
        return "".join(texts), "".join(thoughts)

    def _objects(self, raw: Raw | UnsetType) -> list[Raw]:
        """Return the items of a list that are objects. A failed decode would cost an exception for each other item."""
        return [item for item in self._items(raw) if bytes(item)[:1] == b"{"]

    def _items(self, raw: Raw | UnsetType) -> list[Raw]:
        """Return the items of a list; for any other value, none."""
        try:
            items = _decode_list(_raw_or_null(raw))
        except msgspec.ValidationError:
            return []
        self._items_left -= len(items)
        if self._items_left < 0:
            raise TooManyItems
        return items


def _read_call(raw: Raw) -> RouterCall | None:
    try:
        loose = _decode_loose_call(raw)
        has_no_function = bytes(_raw_or_null(loose.function)) == b"null"
        function = _LooseFunction() if has_no_function else _decode_loose_function(_raw_or_null(loose.function))
    except msgspec.ValidationError:
        return None
    arguments = _as_string(function.arguments)
    if arguments is None and (text := bytes(_raw_or_null(function.arguments))) != b"null":
        arguments = text.decode()  # an object, as its JSON text (BerriAI/litellm#37792)
    return RouterCall(
        _as_index(loose.index),
        _as_string(loose.id),
        RouterFunction(_as_string(function.name), arguments),
    )


def _raw_or_null(field: Raw | UnsetType) -> Raw:
    return _NULL if field is UNSET else field


def _as_string(raw: Raw | UnsetType) -> str | None:
    try:
        return _decode_str(_raw_or_null(raw))
    except msgspec.ValidationError:
        return None


def _as_index(raw: Raw | UnsetType) -> int | None:
    """Read the index of a choice or of a call in any spelling (`0.0` and `"0"` are 0); None for anything else."""
    try:
        return _decode_index(_raw_or_null(raw))
    except msgspec.ValidationError:
        return None


def _token_count(raw: Raw | UnsetType) -> int:
    """Return a count of tokens. Raises ValueError for any other value."""
    count = 0 if raw is UNSET else _decode_int(raw)
    if not 0 <= count <= _MAX_TOKENS:
        raise ValueError
    return count
