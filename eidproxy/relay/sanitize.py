"""The filter of one upstream stream: what of each event may pass, how far the stream has come, what is counted.

Liberal in spelling, closed in meaning (contract, 4): `dialect` reads an event in any spelling, and the output is built
from the types of `chunk`. The finish reason is kept back, since text may still come after it; of several the last one
counts.
"""

from msgspec import UNSET, Raw

from eidproxy.errors import reason_in_event
from eidproxy.relay.chunk import THOUGHTS, Delta, FinishReason, Function, ToolCall
from eidproxy.relay.dialect import (
    NotJson,
    NotObject,
    RouterCall,
    RouterChoice,
    RouterChunk,
    RouterDelta,
    TooManyItems,
    count_unknown_fields,
    decode_event,
    decode_usage,
    is_error,
    says_something,
)
from eidproxy.relay.repair import Seams
from eidproxy.relay.sse import ErrorData
from eidproxy.relay.tool_calls import ToolCalls
from eidproxy.vocabulary import Dropped, Stripped, TokenKind

_PROMPT, _COMPLETION = TokenKind.PROMPT, TokenKind.COMPLETION
_NO_DROPS: dict[Dropped, int] = {}
_NO_TOKENS: dict[TokenKind, int] = {}
"""Shared by all streams that have none, and never changed: thousands of streams are open at a time."""

_FINISH_REASONS: dict[str, FinishReason | None] = {
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
"""Our finish reason for a router's, in lower case; any other word is `stop` (contract, 4)."""

_FAILURE_REASONS = frozenset({"error", "abort", "aborted", "cancelled", "network_error"})
"""Finish reasons that are errors of the router (vllm-project/vllm#57082, OpenRouter, Zhipu)."""


class Sanitizer:
    """The filter of one upstream stream. After each `read` its attributes say how far the stream has come."""

    __slots__ = (
        "_calls",
        "_has_counted_finish",
        "_models",
        "_others",
        "_request_id",
        "_seams",
        "_usages",
        "continued_after_finish",
        "dropped",
        "failure",
        "finish_reason",
        "has_begun",
        "has_text",
        "said_done",
        "tokens",
    )

    def __init__(self, request_id: str, *, counts_unknown: bool = True) -> None:
        """`counts_unknown`: whether to count unknown fields, which costs more than reading an event."""
        self._request_id = request_id
        self._seams: Seams | None = None
        """None until an event may have marks."""
        self._calls: ToolCalls | None = None
        self._has_counted_finish = not counts_unknown
        self.has_begun = False
        """Whether a good event came: one with text, reasoning, a refusal, a call or a finish reason."""
        self.has_text = False
        """Whether text, a refusal or a call came, not reasoning alone."""
        self.finish_reason: FinishReason | None = None
        """The last finish reason that came."""
        self.continued_after_finish = False
        """Whether anything came after a finish reason: then only the router's own end makes the answer whole."""
        self.said_done = False
        self.failure: str | None = None
        """The reason for an error that the router sent. No event is read after it."""
        self.dropped = _NO_DROPS
        self.tokens = _NO_TOKENS
        self._models = self._usages = self._others = 0

    @property
    def stripped(self) -> dict[Stripped, int]:
        """How many fields of each kind were removed from the events that were read."""
        return {Stripped.MODEL: self._models, Stripped.USAGE: self._usages, Stripped.OTHER: self._others}

    @property
    def is_finished(self) -> bool:
        """Whether the answer is whole, whatever follows: no error, clock or cut turns it into an error."""
        return self.finish_reason is not None and not self.continued_after_finish

    @property
    def is_plain(self) -> bool:
        """Whether `Frames.rebuild` may replace `read`: in the middle of a stream, with no incomplete character."""
        return self.has_begun and self.finish_reason is None and not self._seams

    def read(self, data: bytes) -> Delta | None:
        """Read one event's data and return the part that may pass, or None.

        Sets `failure` for an error in any dialect, unless the answer is already whole.
        """
        if type(data) is ErrorData:
            self._fail(data)
            return None
        if data.strip() == b"[DONE]":
            self.said_done = True
            return None
        try:
            chunk, data, marked = decode_event(data)
            return self._read_chunk(chunk, data, marked)
        except TooManyItems:
            self.drop(Dropped.TOO_LARGE)
            if not self.is_finished:
                self.failure = "upstream_protocol_error"
            return None
        except NotObject:
            self.drop(Dropped.NOT_OBJECT)
            return None
        except NotJson:
            self.drop(Dropped.NOT_JSON if data else Dropped.EMPTY)
            return None

    def _read_chunk(self, chunk: RouterChunk, data: bytes, marked: bool) -> Delta | None:
        if _is_error_chunk(chunk):
            self._fail(data)
            return None
        self._count_stripped(chunk)
        choice = _first_choice(chunk.choices)
        if choice is None:
            self.drop(Dropped.EMPTY)
            return None
        word = choice.finish_reason.strip().lower() if choice.finish_reason else ""
        is_failing = word in _FAILURE_REASONS or (choice.error is not UNSET and says_something(choice.error))
        if is_failing and not self.has_begun:
            self._fail(data, in_choice=True)
            return None
        received = _choose_delta(chunk, choice)
        texts = received.texts()
        delta = self._filter_delta(texts, received.tool_calls, marked)
        has_content = delta is not None or bool(texts)
        if has_content and self.finish_reason is not None:
            self.continued_after_finish = True
        if is_failing:
            self._fail(data, in_choice=True)
            return delta
        reason = _FINISH_REASONS.get(word, "stop")
        if reason is not None:
            self._finish(reason, data)
        if not self.has_begun and (has_content or reason is not None):
            return self._begin(delta, data)
        return delta

    def _begin(self, delta: Delta | None, data: bytes) -> Delta:
        """Note the first good event and give it the role. No other has one, since SDKs join repeated strings."""
        self.has_begun = True
        if not self._has_counted_finish:
            self._count_unknown_fields(data)
        delta = delta or Delta(content="")
        delta.role = "assistant"
        return delta

    def _finish(self, reason: FinishReason, data: bytes) -> None:
        """Keep a finish reason; of several the last one counts."""
        self.finish_reason = reason
        if not self._has_counted_finish:
            self._has_counted_finish = True
            self._count_unknown_fields(data)

    def _filter_delta(self, texts: dict[str, str], pieces: list[RouterCall] | None, marked: bool) -> Delta | None:
        """Return the part of a delta that may pass now; None when it is empty, or only the beginning of a character."""
        if marked and self._seams is None:
            self._seams = Seams()
        seams = self._seams
        if seams is not None:
            joined = {name: seams.join(name, text, marked) for name, text in texts.items()}
            texts = {name: text for name, text in joined.items() if text}
        calls = None
        if pieces:
            if self._calls is None:
                self._calls = ToolCalls(self._request_id)
            calls = self._calls.read(pieces, seams, marked)
        if calls or not texts.keys() <= THOUGHTS:
            self.has_text = True
        elif not texts:
            return None
        delta = Delta(tool_calls=calls or None)
        for name, text in texts.items():
            setattr(delta, name, text)
        return delta

    def close(self) -> Delta | None:
        """Return the characters whose rest never came, as U+FFFD, at the end of the stream; None without any."""
        if not self._seams:
            return None
        rest = self._seams.close()
        delta = Delta()
        calls = []
        for key, text in rest.items():
            if isinstance(key, int):
                calls.append(ToolCall(key, function=Function(arguments=text)))
            else:
                setattr(delta, str(key), text)
        delta.tool_calls = calls or None
        return delta

    def _count_unknown_fields(self, data: bytes) -> None:
        """Count the unknown fields of the first event of a stream and of the first that has a finish reason."""
        self._others += count_unknown_fields(data)

    def _count_stripped(self, chunk: RouterChunk) -> None:
        """Count the fields that are removed from every event: the model's name and the usage."""
        if chunk.model is not UNSET:
            self._models += 1
        if chunk.usage is not UNSET:
            self._count_usage(chunk.usage)

    def _count_usage(self, raw: Raw) -> None:
        self._usages += 1
        counts = decode_usage(raw)
        if counts is not None:  # an invalid usage must not drop the text in the same event
            # The last usage of a stream is its total; servers that send one in every chunk count up.
            self.tokens = {_PROMPT: counts[0], _COMPLETION: counts[1]}

    def _fail(self, data: bytes, in_choice: bool = False) -> None:
        if not self.is_finished:
            self.failure = reason_in_event(data, begun=self.has_begun, in_choice=in_choice)

    def drop(self, kind: Dropped) -> None:
        """Count an event of which nothing passes."""
        self.dropped = {**self.dropped, kind: self.dropped.get(kind, 0) + 1}


def _is_error_chunk(chunk: RouterChunk) -> bool:
    """Return whether an event is an error in any dialect. An empty `error` or `detail` is none (contract, 4)."""
    return (
        (chunk.error is not UNSET and says_something(chunk.error))
        or (chunk.detail is not UNSET and says_something(chunk.detail))
        or (not chunk.choices and is_error(chunk))
    )


def _first_choice(choices: list[RouterChoice] | None) -> RouterChoice | None:
    """Return the choice with index 0, or None. A router that ignores `n: 1` may send others, in any order."""
    if not choices:
        return None
    if not choices[0].index:
        return choices[0]
    return next((choice for choice in choices if not choice.index), None)


def _choose_delta(chunk: RouterChunk, choice: RouterChoice) -> RouterDelta:
    received = choice.delta or choice.message
    return RouterDelta() if received is None or _is_loading(chunk, received) else received


def _is_loading(chunk: RouterChunk, received: RouterDelta) -> bool:
    """Return whether an event is llama-swap's loading message, which names the model (contract, 4).

    No model's own event has this shape.
    """
    return (
        chunk.id is chunk.object is chunk.created is chunk.model is UNSET
        and received.texts().keys() <= THOUGHTS
        and not received.tool_calls
    )
