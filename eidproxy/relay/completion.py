"""The whole answer to a caller that did not ask for a stream, gathered from the deltas of the upstream stream."""

from typing import Literal

import msgspec

from eidproxy.relay.chunk import Delta, FinishReason, Function

_encode = msgspec.json.Encoder().encode


class Call(msgspec.Struct, kw_only=True):
    """A whole tool call."""

    id: str
    type: Literal["function"] = "function"
    function: Function


class Message(msgspec.Struct, omit_defaults=True):
    """What the assistant said. `refusal` is null where there is none; `content` is null beside calls alone."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None


class WholeChoice(msgspec.Struct, kw_only=True):
    """The one choice of a whole answer."""

    index: Literal[0] = 0
    message: Message
    logprobs: None = None
    finish_reason: FinishReason


class Usage(msgspec.Struct, frozen=True):
    """Always zeros: clients read it unasked (smolagents, the llm CLI), and token counts are told to nobody."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class Answer(msgspec.Struct, kw_only=True):
    """A `chat.completion` object."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: tuple[WholeChoice]
    usage: Usage = Usage()


class Completion:
    """The message gathered from the deltas of one stream."""

    __slots__ = ("_calls", "_content", "_reasoning", "_refusal", "size")

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._refusal: list[str] = []
        self._calls: list[tuple[str, str, list[str]]] = []
        self.size = 0
        """Code points held so far; `Stream` limits them."""

    def add(self, delta: Delta) -> None:
        """Add the delta of one chunk."""
        for text, texts in (
            (delta.content, self._content),
            (delta.reasoning_content, self._reasoning),
            (delta.refusal, self._refusal),
        ):
            if text:
                texts.append(text)
                self.size += len(text)
        for piece in delta.tool_calls or ():
            function = piece.function or Function()
            if piece.id is not None:  # the first piece of a call has its id and its name
                name = function.name or ""
                self._calls.append((piece.id, name, []))
                self.size += len(piece.id) + len(name)
            arguments = function.arguments or ""
            self._calls[piece.index][2].append(arguments)
            self.size += len(arguments)

    def encode(self, request_id: str, created: int, model: str, finish_reason: FinishReason) -> bytes:
        """Return the answer as JSON."""
        calls = [Call(id=id, function=Function(name, "".join(pieces))) for id, name, pieces in self._calls]
        message = Message(
            role="assistant",
            content=None if calls and not self._content else "".join(self._content),
            refusal="".join(self._refusal) or None,
            reasoning_content="".join(self._reasoning) or None,
            tool_calls=calls or None,
        )
        choice = WholeChoice(message=message, finish_reason=finish_reason)
        return _encode(Answer(id=f"chatcmpl-{request_id}", created=created, model=model, choices=(choice,)))
