"""Streams that no honest router sends, and a check that nothing of them comes through but what may.

`Grammar` writes event streams in every spelling the standard allows, with a canary in every place whose content must
not reach a caller; `mutate` breaks them. `check` runs the parser and the sanitizer over one, whole and cut, and
compares with the slow reader of `tests/lab/reference.py`. See `__main__.py` for the command.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from eidproxy.relay.completion import Completion
from eidproxy.relay.sse import MAX_EVENT_BYTES
from eidproxy.relay.stream import Stage, Stream
from eidproxy.vocabulary import Stripped
from tests import corpus
from tests.corpus.expect import split
from tests.fuzz.mutation import broken
from tests.lab import reference

CANARY = "canary-5e1f"
REQUEST_ID = "fuzz"
CREATED = 1700000000
HEAD = b'data: {"id":"chatcmpl-fuzz","object":"chat.completion.chunk","created":1700000000,"model":"daily","choices":['


class Result(NamedTuple):
    """What came out of one stream."""

    output: bytes
    """All events for the caller, up to the last chunk."""
    chunks: int
    finish_reason: str | None
    continued_after_finish: bool
    done: bool
    failure: str | None
    dropped: dict[str, int]
    tokens: dict[str, int]
    models: int
    usages: int


def run(pieces: Iterable[bytes], limit: int = MAX_EVENT_BYTES, completion: Completion | None = None) -> Result:
    """What becomes of a stream that comes in these pieces, driven as the relay drives it."""
    stream = Stream(REQUEST_ID, CREATED, "daily", completion, limit)
    output = b""
    for piece in pieces:
        output += stream.feed(piece)
        if stream.stage is Stage.OVER:
            break
    sanitizer = stream.sanitizer
    if sanitizer.has_begun:
        output += stream.close()
    stripped = stream.stripped()
    return Result(
        output,
        stream.chunks,
        sanitizer.finish_reason,
        sanitizer.continued_after_finish,
        sanitizer.said_done,
        stream.failure,
        {str(kind): count for kind, count in sanitizer.dropped.items()},
        {str(kind): count for kind, count in sanitizer.tokens.items()},
        stripped[Stripped.MODEL],
        stripped[Stripped.USAGE],
    )


class Said(NamedTuple):
    """The message that a caller puts together."""

    content: str
    reasoning: str
    refusal: str
    calls: list[tuple[str, str, str]]
    """Id, name and arguments of each."""


_CHUNK_FIELDS = {"id", "object", "created", "model", "choices"}
_DELTA_FIELDS = {"role", "content", "reasoning_content", "refusal", "tool_calls"}


def said(output: bytes) -> Said:
    """Put together what a stream said, and assert that nothing stands in it but what may."""
    texts = {"content": "", "reasoning_content": "", "refusal": ""}
    calls: list[list[str]] = []
    *frames, rest = output.split(b"\n\n")
    assert rest == b"", rest
    for number, frame in enumerate(frames):
        assert frame.startswith(HEAD), frame
        assert not {b"\n", b"\r"} & {frame[at : at + 1] for at in range(len(frame))}, frame
        chunk = json.loads(frame[6:])
        assert set(chunk) == _CHUNK_FIELDS, frame
        (choice,) = chunk["choices"]
        assert list(choice) == ["index", "delta", "finish_reason"], frame
        delta = choice["delta"]
        assert (choice["index"], choice["finish_reason"]) == (0, None), frame
        assert delta, frame
        assert set(delta) <= _DELTA_FIELDS, frame
        assert delta.pop("role", None) == (None if number else "assistant"), frame
        for name in texts:
            texts[name] += delta.get(name, "")
        for call in delta.get("tool_calls", []):
            if "id" in call:
                assert (call["type"], call["index"]) == ("function", len(calls)), frame
                calls.append([call["id"], call["function"]["name"], ""])
            else:
                assert (set(call), set(call["function"])) == ({"index", "function"}, {"arguments"}), frame
            assert call["index"] < len(calls), frame
            calls[call["index"]][2] += call["function"]["arguments"]
    assert len({id for id, _, _ in calls}) == len(calls), calls
    told = [(id, name, arguments) for id, name, arguments in calls]
    return Said(texts["content"], texts["reasoning_content"], texts["refusal"], told)


def _even(text: str) -> str:
    """A text in which a run of U+FFFD is one, as in the slow reader's."""
    return re.sub("\ufffd+", "\ufffd", text)


def check(body: bytes, rng: random.Random, limit: int = MAX_EVENT_BYTES, *, mutated: bool = False) -> tuple[int, int]:
    """Assert that a stream gives the caller what it may have, and the same however it is cut.

    Returns how many code points of text the slow reader found in it and how many the caller got.
    """
    whole = run([body], limit)
    found = reference.read(body, limit)
    facts = (found.finish_reason, found.late, found.done, found.failure, found.dropped, found.tokens)
    assert whole[2:] == (*facts, found.models, found.usages), (whole, found, body)
    told = said(whole.output)
    came = got = 0
    if found.begun:
        for text, pieces in zip(told[:3], (found.content, found.reasoning, found.refusal), strict=True):
            assert _even(text) == reference.joined(pieces), (text, pieces, body)
            came += len(reference.joined(pieces))
            got += len(_even(text))
        assert len(told.calls) == len(found.calls), (told, found, body)
        for (given, name, arguments), call in zip(told.calls, found.calls, strict=True):
            assert call.id is None or given == reference.joined([call.id]), (given, call, body)
            assert _even(name) == reference.joined([call.name]), (name, call, body)
            assert _matches(_even(arguments), call.arguments), (arguments, call, body)
    else:
        assert whole.output == b"", whole
    # What a mutation moved into a place that may pass, passes: the reference says so too.
    passes = (found.content, found.reasoning, found.refusal, found.calls)
    if not mutated or CANARY not in repr(passes):
        assert CANARY.encode() not in whole.output, body
    check_completion(body, limit, whole, told)
    for pieces in cuts(body, rng):
        assert run(pieces, limit) == whole, (body, [len(piece) for piece in pieces])
    return came, got


def _matches(text: str, pieces: list[Any]) -> bool:
    """Whether arguments are those pieces; a piece `?` is the JSON text of some value."""
    if "?" not in pieces:
        return text == reference.joined(pieces)
    return re.fullmatch("".join(".+" if piece == "?" else re.escape(piece) for piece in pieces), text, re.S) is not None


def check_completion(body: bytes, limit: int, whole: Result, told: Said) -> None:
    """Assert that a caller that asks for no stream gets the same message."""
    completion = Completion(CREATED, "daily")
    gathered = run([body], limit, completion)
    assert gathered._replace(output=whole.output) == whole, (gathered, whole, body)
    message = json.loads(completion.encode(REQUEST_ID, "stop"))["choices"][0]["message"]
    calls = [(call["id"], *call["function"].values()) for call in message.get("tool_calls", [])]
    assert (message["content"] or "", message.get("reasoning_content", "")) == told[:2], (message, told, body)
    assert (message["refusal"] or "", calls) == told[2:], (message, told, body)


def cuts(body: bytes, rng: random.Random) -> Iterable[list[bytes]]:
    """Ways to cut a stream: between events, as routers do, at random places, sometimes everywhere, sometimes once."""
    *events, rest = body.split(b"\n\n")
    yield [*(event + b"\n\n" for event in events), rest]
    for _ in range(2):
        places = sorted(rng.randrange(len(body) + 1) for _ in range(rng.randrange(1, 12)))
        yield [body[a:b] for a, b in zip([0, *places], [*places, len(body)], strict=True)]
    if rng.random() < 0.2:
        yield [body[at : at + 1] for at in range(len(body))]
    if len(body) < 300:
        for at in range(len(body) + 1):
            yield [body[:at], body[at:]]


def recorded() -> list[dict[str, Any]]:
    """The chunks of the recorded streams."""
    found: list[dict[str, Any]] = []
    for name in corpus.STREAMS:
        _, _, body = split(corpus.raw(name))
        found += [json.loads(event.data) for event in reference.events(body) if event.data.startswith(b"{")]
    return found


def field() -> list[bytes]:
    """The bodies of the streams that routers were seen to send."""
    answers = [split(path.read_bytes()) for path in sorted((corpus.HERE / "field").glob("*.http"))]
    return [body for status, _, body in answers if status == 200]


_WORDS = [
    "",
    "a",
    "Hello",
    " world",
    "日상",
    "\u2028",
    "\u0085",
    "😀",
    '"',
    "\\",
    "\n",
    "\r\n",
    "\x00",
    "data: x",
    "\x7f",
    "[DONE]",
]
_FINISH = ["stop", "length", "tool_calls", "content_filter", "function_call", "eos", "STOP", "Length", "", "null"]
_FINISH += ["max_tokens", "MODEL_LENGTH", " stop ", "abort", "Error", "network_error", CANARY]
_COUNTS = [0, 1, 17, 2048, -1, 10**9, 10**9 + 1, 10**30, 1.0, 1.5, "5", None, True, [], 1e300]
_ODD: list[Any] = [None, True, False, 0, -1, 1.5, "", "x", [], {}, [[]], [None], {"a": 1}]


class Grammar:
    """Writes streams. `frames` counts the frames written: events, comments and what lies between."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.frames = 0
        self.early = 0.0
        """How often a chunk that is not the last has a finish reason, in the stream at hand."""
        self.calling = 0.0
        """How often a chunk has tool calls."""
        self.recorded = recorded()
        self.field = field()

    def stream(self) -> bytes:
        """One stream: a few frames, mostly good ones, an end of some kind; now and then one that was seen."""
        rng = self.rng
        if rng.random() < 0.05:
            body = rng.choice(self.field)
            self.frames += body.count(b"\n\n")
            return body
        self.early = rng.choice([0, 0, 0.05, 0.5, 1])
        self.calling = rng.choice([0.1, 0.1, 0.9])
        style = rng.choice([[b"\n"], [b"\n"], [b"\r\n"], [b"\r"], [b"\n", b"\r\n", b"\r"]])
        written = bytearray(b"\xef\xbb\xbf" if rng.random() < 0.1 else b"")
        for _ in range(rng.randrange(1, 25)):
            self.frames += 1
            for line in self._frame():
                written += line + rng.choice(style)
        if rng.random() < 0.7:
            for line in [*self._event(self._chunk(finish=rng.choice(_FINISH))), b"data: [DONE]", b""]:
                written += line + rng.choice(style)
        return bytes(written)

    def _canary(self, place: str) -> str:
        return f"{CANARY}/{place}"

    def _frame(self) -> list[bytes]:
        roll = self.rng.random()
        if roll < 0.55:
            return self._event(self._chunk())
        if roll < 0.66:
            return self._event(self._from_recorded())
        if roll < 0.67:
            return self._event({"choices": [{"delta": {"reasoning_content": self._canary("loading model")}}]})
        if roll < 0.77:
            return [b": " + self._canary("comment").encode() * self.rng.randrange(3)]
        if roll < 0.87:
            canary = self._canary("field").encode()
            return self.rng.choice(
                [
                    [b"id: " + canary],
                    [b"retry: 10", b"retry: " + canary],
                    [b"event: " + canary],
                    [b"event:error", b""],
                    [b"event: error", b"event: message"],
                    [canary],
                    [canary + b": " + canary, b""],
                    [b" data: {}", b"data : {}", b"Data: {}", b""],
                    [b"id", b"data", b""],
                    [b"", b"", b""],
                ]
            )
        if roll < 0.97:
            return self._event(self._odd())
        return self._error()

    def _event(self, value: Any) -> list[bytes]:
        """The lines of an event: one data line, or several where the JSON has blanks."""
        rng = self.rng
        if isinstance(value, bytes):
            text = value
        else:
            indent = 1 if rng.random() < 0.05 else None
            ascii_only = rng.random() < 0.3
            text = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()
        name = rng.choice([b"data: ", b"data: ", b"data: ", b"data:"])
        found = [name + line for line in text.split(b"\n")]
        if rng.random() < 0.1:
            found.insert(rng.randrange(len(found) + 1), b": " + self._canary("inner comment").encode())
        if rng.random() < 0.1:
            found.insert(rng.randrange(len(found) + 1), b"id: " + self._canary("inner id").encode())
        return [*found, b""]

    def _text(self) -> str:
        return "".join(self.rng.choice(_WORDS) for _ in range(self.rng.randrange(4)))

    def _chunk(self, finish: str | None = None) -> dict[str, Any]:
        rng = self.rng
        delta: dict[str, Any] = {}
        for name in ("content", "reasoning_content", "reasoning", "refusal"):
            if rng.random() < (0.8 if name == "content" else 0.1):
                delta[name] = rng.choice([self._text(), self._text(), None])
        if rng.random() < 0.2:
            delta["role"] = rng.choice(["assistant", self._canary("role"), "", None])
        if rng.random() < 0.1:
            delta[rng.choice(["content", "reasoning", "reasoning_content"])] = self._parts()
        if rng.random() < self.calling:
            delta["tool_calls"] = [self._call() for _ in range(rng.randrange(3))]
        if finish is None and rng.random() < self.early:
            finish = rng.choice(_FINISH)
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish}
        if rng.random() < 0.05:
            choice["message"] = choice.pop("delta")
        if rng.random() < 0.03:
            choice["error"] = rng.choice([None, False, "", {}, {"message": self._canary("choice error")}])
        if finish is None and rng.random() < 0.1:
            del choice["finish_reason"]
        if rng.random() < 0.05:
            choice["index"] = rng.choice([None, 1, -1, 0.0, 10**20, "0", True, []])
        if rng.random() < 0.03:
            choice["delta"] = None
        elif "delta" in choice and rng.random() < 0.03:
            choice["message"] = {"role": "assistant", "content": self._canary("message beside a delta")}
        chunk: dict[str, Any] = {
            "id": self._canary("id"),
            "object": self._canary("object"),
            "created": rng.choice([1, self._canary("created")]),
            "model": self._canary("/models/qwen"),
            "system_fingerprint": self._canary("fingerprint"),
            "choices": [choice],
        }
        if rng.random() < 0.1:
            chunk["choices"].insert(rng.randrange(2), {"index": 1, "delta": {"content": self._canary("choice 1")}})
        if rng.random() < 0.05:
            chunk["choices"] = rng.choice([[], None])
        if rng.random() < 0.2:
            chunk["usage"] = rng.choice(
                [
                    None,
                    self._canary("usage"),
                    {
                        "prompt_tokens": rng.choice(_COUNTS),
                        "completion_tokens": rng.choice(_COUNTS),
                        "prompt_tokens_details": {"cached_tokens": self._canary("cached")},
                    },
                ]
            )
        self._strew(chunk)
        items = list(chunk.items())
        rng.shuffle(items)
        return dict(items)

    def _parts(self) -> list[Any]:
        rng = self.rng
        parts: list[Any] = []
        for _ in range(rng.randrange(3)):
            text = {"type": "text", "text": self._text()}
            thought = {"type": "thinking", "thinking": rng.choice([self._text(), [text]])}
            other = {"type": "image_url", "image_url": self._canary("image"), "text": self._canary("part")}
            parts.append(rng.choice([text, text, thought, {"type": "reasoning", "text": self._text()}, other, "x", 5]))
        return parts

    def _call(self) -> dict[str, Any]:
        rng = self.rng
        call: dict[str, Any] = {}
        if rng.random() < 0.8:
            call["index"] = rng.choice([0, 0, 1, None, 7, "1", 1.0])
        if rng.random() < 0.6:
            call["id"] = rng.choice(["call_1", "call_2", "call_3", "", None])
        if rng.random() < 0.3:
            call["type"] = rng.choice(["function", self._canary("type"), None])
        if rng.random() < 0.9:
            arguments: Any = rng.choice(["", "{}", '{"a":', "1}", self._text(), None, {"a": [1, {"b": "x"}]}, []])
            call["function"] = rng.choice(
                [{"name": rng.choice(["f", "g"]), "arguments": arguments}, {"arguments": arguments}, {}, None]
            )
        return call

    def _strew(self, value: Any) -> None:
        """Unknown fields at each level."""
        rng = self.rng
        if isinstance(value, dict):
            for name, item in value.items():
                if name != "arguments":  # they are free-form, and pass
                    self._strew(item)
            if rng.random() < 0.15:
                value[f"x{rng.randrange(3)}"] = rng.choice([self._canary("unknown"), {"y": [self._canary("deep")]}])
            if rng.random() < 0.05:
                value[self._canary("name")] = rng.choice(_ODD)
            if rng.random() < 0.03:
                value["error"] = None
        elif isinstance(value, list):
            for item in value:
                self._strew(item)

    def _from_recorded(self) -> dict[str, Any]:
        chunk: dict[str, Any] = json.loads(json.dumps(self.rng.choice(self.recorded)))
        chunk["model"] = self._canary("model")
        chunk["system_fingerprint"] = self._canary("fingerprint")
        chunk["id"] = self._canary("id")
        self._strew(chunk)
        return chunk

    def _odd(self) -> Any:
        """An event that is no chunk, or a chunk with a value of another type in one place."""
        rng = self.rng
        roll = rng.random()
        if roll < 0.3:
            junk = [
                b"",
                b"{",
                b"nul",
                b"NaN",
                b"[DONE",
                b"[DONE] ",
                b" [DONE]",
                b"{}{}",
                b'{"choices":[{"delta":{"content":"',
            ]
            junk += [b'{"choices":[{"index":0,"delta":{"content":"\xff"}}]}', b'{"x":"\xff","choices":[]}', b"[" * 2000]
            junk += [b'{"choices":[{"delta":{"content":"\\ud800"}}]}', b'{"x":1e999,"choices":[{"index":1e999}]}']
            for part in (
                rb"\ud83d",
                rb"\ude00",
                b"\xec\x8b",
                b"\x9c",
                rb"x\ud83dy",
                b"\xf0\x9f",
                b"\x98\x80",
                rb"\\ud83d",
            ):
                junk.append(b'{"model":"m","choices":[{"index":0,"delta":{"content":"' + part + b'"}}]}')
            junk += [b'{"choices":[{"delta":{"content":"no name"}}]}']
            junk += [b'{"object":"error","message":"x"}', b'{"error_type":"x","choices":null}', b'{"error_message":""}']
            return rng.choice([*junk, self._canary("junk").encode(), f'{{"model":"{CANARY}"'.encode()])
        if roll < 0.4:
            return rng.choice([*_ODD, self._canary("value"), [self._canary("value")]])
        chunk = self._chunk()
        chunk["choices"] = [{"index": 0, "delta": {"content": "x", "tool_calls": [{"function": {}}]}}]
        target = rng.choice([chunk, chunk["choices"][0], chunk["choices"][0]["delta"]])
        name = rng.choice(
            [name for name in target if name not in ("id", "object")] + ["error", "detail", "finish_reason"]
        )
        target[name] = rng.choice(_ODD) if name != "finish_reason" else rng.choice([None, "", 5, []])
        return chunk

    def _error(self) -> list[bytes]:
        rng = self.rng
        said = self._canary("error text")
        word = rng.choice(["warming", "macbook_unavailable", "client_gone", "Internal Error", said, "", None, 5])
        error = rng.choice([said, {"message": said, "type": word}, {"message": said, "error_reason": word}, {}, ""])
        value = {"error": error, "error_reason": word} if rng.random() < 0.7 else {"detail": said}
        text = json.dumps(value).encode()
        return rng.choice(
            [
                [b"data: " + text, b""],
                [b"event: error", b"data: " + text, b""],
                [b"event: error", b"data: " + said.encode(), b""],
                [b"error: " + text],
                [b"error: " + said.encode()],
                [b"error"],
            ]
        )


_PIECES = [
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n",
    b":",
    b"data:",
    b"data: ",
    b"event: error",
    b"error:",
    b"[DONE]",
    b"\xef\xbb\xbf",
]
_PIECES += [
    b"\xff",
    b"\x00",
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"null",
    b'"error"',
    b'"choices":',
    b"1e999",
    b"\\ud83d",
]
_PIECES += [
    b'"finish_reason":"stop"',
    b'"index":0',
    b'"delta":{}',
    b"\xe2\x80\xa8",
    b"\xc2\x85",
    b" ",
    b"retry: 1\n",
    b"-",
]


def mutate(body: bytes, rng: random.Random) -> bytes:
    """Break a stream in one to six places."""
    return broken(body, rng, _PIECES, most=6)


class Checked(NamedTuple):
    """How much was checked."""

    frames: int
    code_points_in: int
    code_points_out: int


def fuzz(frames: int, seed: int) -> Checked:
    """Check streams of at least `frames` frames in all, half of them mutated."""
    rng = random.Random(seed)
    grammar = Grammar(rng)
    texts: list[tuple[int, int]] = []
    while 2 * grammar.frames < frames:
        body = grammar.stream()
        limit = MAX_EVENT_BYTES if rng.random() < 0.8 else rng.choice([60, 300, 800])
        texts.append(check(body, rng, limit))
        texts.append(check(mutate(body, rng), rng, limit, mutated=True))
    return Checked(2 * grammar.frames, sum(came for came, _ in texts), sum(got for _, got in texts))
