"""The whole answer to a caller that did not ask for a stream, gathered from the deltas of the upstream stream."""

from typing import Literal

import msgspec

from eidproxy.relay.chunk import TEXTS, Call, Delta, FinishReason, Function, Message

_encode = msgspec.json.Encoder().encode


class WholeChoice(msgspec.Struct, kw_only=True):
    """The only choice of a complete answer."""

    index: Literal[0] = 0
    message: Message
    logprobs: None = None
    finish_reason: FinishReason


class Usage(msgspec.Struct, frozen=True):
    """Always zeros: some clients read it unasked (smolagents, the llm CLI), and callers get no token counts."""

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

    __slots__ = ("_calls", "_created", "_model", "_texts", "size")

    def __init__(self, created: int, model: str) -> None:
        """`created` is in seconds since the epoch."""
        self._created = created
        self._model = model
        self._texts: dict[str, list[str]] = {name: [] for name in TEXTS}
        self._calls: list[tuple[str, str, list[str]]] = []
        self.size = 0
        """Code points held so far; `Stream` limits them."""

    def add(self, delta: Delta) -> None:
        """Add the delta of one chunk."""
        for name, pieces in self._texts.items():
            text = getattr(delta, name)
            if text:
                pieces.append(text)
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

    def encode(self, request_id: str, finish_reason: FinishReason) -> bytes:
        """Return the answer as JSON."""
        calls = [Call(id=id, function=Function(name, "".join(pieces))) for id, name, pieces in self._calls]
        texts = {name: "".join(pieces) or None for name, pieces in self._texts.items()}
        if not calls:
            texts["content"] = texts["content"] or ""
        message = Message(role="assistant", tool_calls=calls or None, **texts)
        choice = WholeChoice(message=message, finish_reason=finish_reason)
        return _encode(Answer(id=f"chatcmpl-{request_id}", created=self._created, model=self._model, choices=(choice,)))
