"""The closed schema of what callers get, as types: a field that they do not name cannot be sent.

`Frames` writes the events of one stream. Most events of a stream have one shape, which `rebuild` decodes and encodes by
types of its own, with the same result as the long way through `dialect` and `sanitize`.
"""

from typing import Literal, NamedTuple

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType


class Function(Struct, omit_defaults=True, gc=False):
    """A function call, or a piece of one; only the first piece has the name."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(Struct, omit_defaults=True, gc=False):
    """A tool call, or a piece of one; only the first piece has `id` and `type`, since SDKs join repeated strings."""

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


TEXTS = ("content", "reasoning_content", "refusal")
"""The fields of a `Delta` that hold text, which the whole message joins."""

THOUGHTS = frozenset({"reasoning_content"})
"""Those of them that are no part of the answer proper."""

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]
"""The values of `finish_reason`; any other word of a router becomes one of them or an error (contract, 4)."""


class Choice(Struct, gc=False):
    """The only choice of a chunk. `finish_reason` is in every chunk and null until the last."""

    index: Literal[0] = 0
    delta: Delta = msgspec.field(default_factory=Delta)
    finish_reason: FinishReason | None = None


class Call(Struct, kw_only=True):
    """A complete tool call."""

    id: str
    type: Literal["function"] = "function"
    function: Function


class Message(Struct, omit_defaults=True):
    """The assistant's message. `refusal` is null if there is none; `content` is null if there are only calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None


# The common event of a stream, as a type: one choice with text, no finish reason, no error, a model and no usage.
# A field that may pass and takes the long way is named here as None: without it, the short way would lose the field.


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


_decode_common = msgspec.json.Decoder(_CommonChunk).decode
_encode = msgspec.json.Encoder().encode


class Template(NamedTuple):
    """The bytes before and after the text in the events of one stream, and those that replace them for the caller.

    The text between them is one or more characters of a JSON string, escaped as our encoder escapes them.
    """

    before: bytes
    after: bytes
    new_before: bytes
    new_after: bytes


_TRIALS = ((b"Z\\n", "Z\n"), ("가".encode(), "가"))
"""Two texts for the trial decodes of a template: as JSON in an event, and decoded."""


class Frames:
    """The encoder of one stream's events."""

    __slots__ = ("_head",)

    def __init__(self, head: bytes) -> None:
        """`head` is the part of each chunk before the choice (see `chunk_head`)."""
        self._head = head

    def rebuild(self, data: bytes, is_thinking: bool = False) -> bytes | None:
        """Return the event for the caller from one of the common shape, as `Sanitizer.read` would give it, else None.

        For events between the first that passes and the finish reason. Each removes one `model`. While the model
        `is_thinking`, the first text must take the long way, since it starts another stage of the answer.
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
            return b"".join((self._head, _BEFORE_THOUGHT, _encode(thought), _FRAME_END))
        if is_thinking:
            return None
        return b"".join((self._head, _BEFORE_CONTENT, _encode(delta.content), _FRAME_END))

    def template(self, data: bytes) -> Template | None:
        """Return the template of the events that differ from this one only in their text; None if it cannot be proved.

        The proof is two trial decodes: with another text between the same bytes, only the text changes. So the text
        is not found in the event twice, nor in a field that is not read.
        """
        if b"\n" in data or self.rebuild(data) is None:  # with a line end the same bytes could be another event
            return None
        chunk = _decode_common(data)
        delta = chunk.choices[0].delta
        name = "content" if delta.content else "reasoning_content" if delta.reasoning_content else "reasoning"
        text = getattr(delta, name)
        literal = _encode(text)
        at = data.find(literal)
        if at < 0:  # the router escapes the text in another way
            return None
        before, after = data[: at + 1], data[at + len(literal) - 1 :]
        for encoded, decoded in _TRIALS:
            try:
                other = _decode_common(before + encoded + after)
            except ValueError:  # the text was found inside another string
                return None
            setattr(delta, name, decoded)
            if other != chunk:
                return None
        new_before = self._head + (_BEFORE_CONTENT if name == "content" else _BEFORE_THOUGHT) + b'"'
        return Template(b"data: " + before, after + b"\n\n", new_before, _AFTER_TEXT)

    def encode(self, delta: Delta, finish_reason: FinishReason | None = None) -> bytes:
        """Return a delta as an event of the stream."""
        return b"".join((self._head, _encode(Choice(0, delta, finish_reason)), _TAIL))

    def progress(self, eid: dict[str, str | int | None]) -> bytes:
        """Return a chunk without a choice that says how far the request has come."""
        return b"".join((self._head, b'],"eid":', _encode(eid), b"}\n\n"))


_TAIL = b"]}\n\n"
"""The end of an event that begins with `chunk_head`."""

_BEFORE_CONTENT = b'{"index":0,"delta":{"content":'
_BEFORE_THOUGHT = b'{"index":0,"delta":{"reasoning_content":'
_FRAME_END = b'},"finish_reason":null}' + _TAIL
_AFTER_TEXT = b'"' + _FRAME_END
"""The parts of a rebuilt event round its text: `head`, one of the first two, the text in quotes, and the end."""


def chunk_head(request_id: str, created: int, model: str) -> bytes:
    """Return the beginning of each chunk of a stream, up to the open bracket of `choices`."""
    head = {"id": f"chatcmpl-{request_id}", "object": "chat.completion.chunk", "created": created, "model": model}
    return b"data: " + _encode(head)[:-1] + b',"choices":['
