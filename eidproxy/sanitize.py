"""The closed chunk: what of an upstream event may pass, as types. Everything else vanishes by construction.

An upstream event is decoded into structs that have a field for each thing that may pass and for the few that must be
noticed (errors, usage, the model's name). Unknown fields are skipped by the decoder and never exist as a value. What
goes out is encoded from those structs behind a head that is the same for the whole stream.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from eidproxy.errors import reason_in_event
from eidproxy.sse import ErrorData
from eidproxy.vocabulary import FINISH_REASONS, Dropped, Stripped, TokenKind


class Function(Struct, omit_defaults=True, gc=False):
    """The call of a function, or a piece of it."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(Struct, omit_defaults=True, gc=False):
    """A tool call, or a piece of it. `type` is always `function`: no other kind can be asked for."""

    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: Function | None = None


class Delta(Struct, omit_defaults=True, gc=False):
    """What a chunk adds to the message. `reasoning` is read and leaves as `reasoning_content`."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(Struct, gc=False):
    """One choice, both as it is read and as it is sent: `finish_reason` stands in every chunk, null until the end."""

    index: int | None = 0
    delta: Delta | None = None
    finish_reason: str | None = None


_Count = Annotated[int, Meta(ge=0, le=1_000_000_000)]
"""Tokens of one request. A counter that took any number could be thrown out of use by one answer."""


class _Usage(Struct, gc=False):
    prompt_tokens: _Count = 0
    completion_tokens: _Count = 0


class _Chunk(Struct, gc=False):
    choices: list[Choice] | None = None
    model: Raw | UnsetType = UNSET
    usage: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET
    detail: Raw | UnsetType = UNSET


class _UsualDelta(Struct, omit_defaults=True, gc=False):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: None = None
    refusal: str | None = None
    tool_calls: None = None


class _UsualChoice(Struct, kw_only=True, gc=False):
    index: Literal[0] = 0
    delta: _UsualDelta
    finish_reason: None = None


class _UsualChunk(Struct, gc=False):
    """The event that streams consist of, as a type: one choice, text, no end, no error, a model and no usage."""

    choices: tuple[_UsualChoice]
    model: str
    usage: Raw | UnsetType = UNSET
    error: None = None
    detail: None = None


class UpstreamFailed(Exception):
    """The router reported an error inside the stream; `reason` is its word or `upstream_error`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.frames: list[bytes] = []
        """What `Sanitizer.frames` made of the events before it."""


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_usual = msgspec.json.Decoder(_UsualChunk).decode
_decode_usage = msgspec.json.Decoder(_Usage).decode
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_TAIL = b"]}\n\n"
"""What ends an event whose head is `chunk_head`."""

_MODEL, _USAGE = Stripped.MODEL, Stripped.USAGE
_NONE_STRIPPED = dict.fromkeys(Stripped, 0)

_KNOWN_FIELDS = frozenset(
    {"id", "object", "created", "choices", "model", "usage", "index", "delta", "finish_reason"}
    | {"role", "content", "reasoning_content", "reasoning", "refusal", "tool_calls"}
)


class Sanitizer:
    """Reads the events of one upstream stream and rebuilds what may pass of them.

    `head` is what stands before `choices` in each chunk (see `chunk_head`). The counts are for the metrics.
    """

    __slots__ = ("_counted", "dropped", "finish_reason", "finished", "head", "said_done", "stripped", "tokens")

    def __init__(self, head: bytes) -> None:
        self.head = head
        self.finish_reason: str | None = None
        self.finished = False  # the finish reason came: nothing changes the outcome any more
        self.said_done = False
        self.dropped: dict[Dropped, int] = {}
        self.stripped = _NONE_STRIPPED.copy()
        self.tokens: dict[TokenKind, int] = {}
        self._counted = False  # the unknown fields of the first event

    def read(self, data: bytes) -> Choice | None:
        """Read one event's data and return what may pass of it, its values brought into their closed sets, or None.

        Raises UpstreamFailed for an error in any dialect, unless the answer is already whole.
        """
        if type(data) is ErrorData:
            self._fail(data)
            return None
        if data == b"[DONE]":
            self.said_done = True
            return None
        try:
            chunk = _decode_chunk(data)
        except msgspec.ValidationError:
            self._misfit(data)
            return None
        except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested without end
            self._drop(Dropped.NOT_JSON if data else Dropped.EMPTY)
            return None
        if (chunk.error is not UNSET or chunk.detail is not UNSET) and (_says(chunk.error) or _says(chunk.detail)):
            self._fail(data)
            return None
        if chunk.model is not UNSET:
            self.stripped[_MODEL] += 1
        if chunk.usage is not UNSET:
            self._count_usage(chunk.usage)
        choices = chunk.choices
        if not choices:
            self._drop(Dropped.EMPTY)
            return None
        if self.finished:
            return None
        choice = choices[0]
        if choice.index != 0:
            # Only index 0 is read; a router that ignores n=1 may send others, and in any order.
            for choice in choices:
                if not choice.index:
                    choice.index = 0
                    break
            else:
                self._drop(Dropped.EMPTY)
                return None
        delta = choice.delta
        if delta is None:
            choice.delta = Delta()
        elif delta.role is not None or delta.reasoning is not None or delta.tool_calls is not None:
            _close(delta)
        if choice.finish_reason is not None:
            if choice.finish_reason not in FINISH_REASONS:
                choice.finish_reason = "stop"
            self.finish_reason = choice.finish_reason
            self.finished = True
        if self.finished or not self._counted:
            self._counted = True
            self._count_others(data)
        return choice

    def encode(self, choice: Choice) -> bytes:
        """A choice as an event of the stream."""
        return b"".join((self.head, _encode(choice), _TAIL))

    def frames(self, events: list[bytes]) -> list[bytes]:
        """What the caller gets for some events, up to the one that says that the stream is done.

        Raises UpstreamFailed as `read` does, with the frames before it.
        """
        frames: list[bytes] = []
        for data in events:
            if self._counted and not self.finished and type(data) is bytes:
                frame = rebuild(self.head, data)
                if frame is not None:
                    self.stripped[_MODEL] += 1
                    frames.append(frame)
                    continue
            try:
                choice = self.read(data)
            except UpstreamFailed as failed:
                failed.frames = frames
                raise
            if choice is not None:
                frames.append(self.encode(choice))
            elif self.said_done:
                break
        return frames

    def _count_others(self, data: bytes) -> None:
        """Count the unknown fields of an event. Done for the first event of a stream and for its last.

        The decoder skips unknown fields without a trace, which is what makes it safe and fast; a second, full decode of
        each event would double its cost only to count.
        """
        try:
            value: dict[str, Any] = _decode(data)
        except (ValueError, RecursionError):
            value = {}  # the typed decoder is less strict where it only skips
        unknown = len(value.keys() - _KNOWN_FIELDS)
        for choice in value.get("choices") or ():
            unknown += len(choice.keys() - _KNOWN_FIELDS)
            unknown += len((choice.get("delta") or {}).keys() - _KNOWN_FIELDS)
        self.stripped[Stripped.OTHER] += unknown

    def _count_usage(self, raw: Raw) -> None:
        self.stripped[_USAGE] += 1
        try:
            usage = _decode_usage(raw)
        except (ValueError, RecursionError):
            return  # usage is only for the metrics: a strange one costs nobody the text beside it
        # The last usage of a stream is its sum; servers that send one in every chunk count up.
        self.tokens = {
            TokenKind.PROMPT: usage.prompt_tokens,
            TokenKind.COMPLETION: usage.completion_tokens,
        }

    def _misfit(self, data: bytes) -> None:
        """An event that is no chunk: an error whose other fields have strange types, or nothing of use."""
        try:
            value = _decode(data)
        except (ValueError, RecursionError):
            self._drop(Dropped.NOT_JSON)
            return
        if isinstance(value, dict) and (value.get("error") is not None or value.get("detail") is not None):
            self._fail(data)
        else:
            self._drop(Dropped.NOT_OBJECT)

    def _fail(self, data: bytes) -> None:
        if not self.finished:
            raise UpstreamFailed(reason_in_event(data))

    def _drop(self, kind: Dropped) -> None:
        self.dropped[kind] = self.dropped.get(kind, 0) + 1


def _close(delta: Delta) -> None:
    """Bring the values of what passes into their closed sets."""
    if delta.role is not None:
        delta.role = "assistant"
    if delta.reasoning is not None:
        if delta.reasoning_content is None:
            delta.reasoning_content = delta.reasoning
        delta.reasoning = None
    for at, call in enumerate(delta.tool_calls or ()):
        if call.index is None:
            call.index = at
        if call.type is not None:
            call.type = "function"


def _says(field: Raw | UnsetType) -> bool:
    return field is not UNSET and bytes(field) != b"null"


def rebuild(head: bytes, data: bytes) -> bytes | None:
    """What a `Sanitizer` makes of a usual event's data, without one; None when the event is not usual.

    For those between the first event that passes and the finish reason. Each takes one `model` out.
    """
    try:
        chunk = _decode_usual(data)
    except (ValueError, RecursionError):
        return None
    if chunk.usage is not UNSET:
        return None
    return b"".join((head, _encode(chunk.choices[0]), _TAIL))


def chunk_head(request_id: str, created: int, model: str) -> bytes:
    """What each chunk of a stream begins with, up to the open bracket of `choices`."""
    head = {"id": f"chatcmpl-{request_id}", "object": "chat.completion.chunk", "created": created, "model": model}
    return b"data: " + _encode(head)[:-1] + b',"choices":['


def progress_chunk(head: bytes, eid: dict[str, str | int | None]) -> bytes:
    """A chunk without a choice that tells where the request stands."""
    return head + b'],"eid":' + _encode(eid) + b"}\n\n"


class _Call(Struct):
    id: str | None = None
    name: str | None = None
    arguments: list[str] = []


class Completion:
    """Gathers the choices of a stream into the one message of a caller that asked for no stream."""

    __slots__ = ("_calls", "_content", "_reasoning", "_refusal", "size")

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._refusal: list[str] = []
        self._calls: dict[int, _Call] = {}
        self.size = 0
        """Code points held so far: what the caller bounds."""

    def add(self, choice: Choice) -> None:
        """Take what one chunk adds."""
        delta = choice.delta or Delta()
        for text, texts in (
            (delta.content, self._content),
            (delta.reasoning_content, self._reasoning),
            (delta.refusal, self._refusal),
        ):
            if text is not None:
                texts.append(text)
                self.size += len(text)
        for piece in delta.tool_calls or ():
            function = piece.function or Function()
            call = self._calls.setdefault(piece.index or 0, _Call())
            # The first piece has the id and the name; some servers repeat them in each piece.
            call.id = call.id or piece.id
            call.name = call.name or function.name
            if function.arguments is not None:
                call.arguments.append(function.arguments)
                self.size += len(function.arguments)

    def encode(self, request_id: str, created: int, model: str, finish_reason: str | None) -> bytes:
        """The whole answer as a `chat.completion` object."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._content)}
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if self._refusal:
            message["refusal"] = "".join(self._refusal)
        if self._calls:
            if not self._content:
                message["content"] = None
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": "".join(call.arguments)},
                }
                for _, call in sorted(self._calls.items())
            ]
        choice = {"index": 0, "message": message, "finish_reason": finish_reason}
        return _encode(
            {
                "id": f"chatcmpl-{request_id}",
                "object": "chat.completion",
                "created": created,
                "model": model,
                "choices": [choice],
            }
        )
