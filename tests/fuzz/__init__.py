"""Streams that no honest router sends, and a check that nothing of them comes through but what may.

`Grammar` writes event streams in every spelling the standard allows, with a canary in every place whose content must
not reach a caller; `mutate` breaks them. `check` runs the parser and the sanitizer over one, whole and cut, and
compares with the slow reader of `tests/reference.py`. See `__main__.py` for the command.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from eidproxy.sanitize import Sanitizer, UpstreamFailed, chunk_head, rebuild
from eidproxy.sse import MAX_EVENT_BYTES, EventParser, EventTooLarge, whole_event
from eidproxy.vocabulary import Stripped, TokenKind
from tests import corpus, reference
from tests.corpus.expect import split

CANARY = "canary-5e1f"
HEAD = chunk_head("fuzz", 1700000000, "daily")


class Result(NamedTuple):
    """What came out of one stream."""

    frames: tuple[bytes, ...]
    finish_reason: str | None
    done: bool
    failure: str | None
    dropped: dict[str, int]
    tokens: dict[str, int]
    models: int
    usages: int


def run(pieces: Iterable[bytes], limit: int = MAX_EVENT_BYTES, *, closely: bool = False) -> Result:
    """What parser and sanitizer make of a stream, driven as the relay drives them.

    `closely` as for an answer that is gathered: each event is read, and none takes a short way.
    """
    parser, sanitizer = EventParser(limit), Sanitizer(HEAD)
    frames: list[bytes] = []
    dropped: dict[str, int] = {}
    failure: str | None = None
    usual_events = 0
    for piece in pieces:
        usual = frames and parser.between_events and not sanitizer.finished and len(piece) <= limit and not closely
        if usual and (event := whole_event(piece)) is not None and (frame := rebuild(HEAD, event)) is not None:
            frames.append(frame)
            usual_events += 1
            continue
        too_large = False
        try:
            events = parser.feed(piece)
        except EventTooLarge as cut:
            events, too_large = cut.events, True
        try:
            if closely:
                frames += read(sanitizer, events)
            else:
                frames += sanitizer.frames(events)
        except UpstreamFailed as failed:
            frames += failed.frames
            failure = failed.reason
            break
        if sanitizer.said_done:
            break
        if too_large:
            failure = None if sanitizer.finished else "upstream_protocol_error"
            break
    dropped = {str(kind): count for kind, count in sanitizer.dropped.items()}
    names = {TokenKind.PROMPT: "prompt", TokenKind.COMPLETION: "completion"}
    return Result(
        tuple(frames),
        sanitizer.finish_reason,
        sanitizer.said_done,
        failure,
        dropped,
        {names[kind]: count for kind, count in sanitizer.tokens.items()},
        sanitizer.stripped[Stripped.MODEL] + usual_events,
        sanitizer.stripped[Stripped.USAGE],
    )


def read(sanitizer: Sanitizer, events: list[bytes]) -> Iterator[bytes]:
    """Read each event."""
    for data in events:
        choice = sanitizer.read(data)
        if choice is not None:
            yield sanitizer.encode(choice)
        if sanitizer.said_done:
            break


def expected(body: bytes, limit: int = MAX_EVENT_BYTES) -> tuple[Result, list[dict[str, Any]]]:
    """What the slow reader makes of it. Its frames are values, since they may be spelled in more than one way."""
    found = reference.read(body, limit)
    rest = (found.finish_reason, found.done, found.failure, found.dropped, found.tokens, found.models, found.usages)
    return Result((), *rest), found.choices


def check(body: bytes, rng: random.Random, limit: int = MAX_EVENT_BYTES, *, mutated: bool = False) -> None:
    """Assert that a stream gives the caller what it may have, and the same however it is cut."""
    whole = run([body], limit)
    rest, choices = expected(body, limit)
    assert whole._replace(frames=()) == rest, (whole._replace(frames=()), rest, body)
    assert len(whole.frames) == len(choices), (whole.frames, choices, body)
    for frame, choice in zip(whole.frames, choices, strict=True):
        assert frame.startswith(HEAD), frame
        assert frame.endswith(b"\n\n"), frame
        assert frame.count(b"\n") == 2, frame
        assert b"\r" not in frame, frame
        assert json.loads(frame[len(HEAD) : -4]) == choice, (frame, choice)
    # What a mutation moved into a place that may pass, passes: the reference says so too.
    if not mutated or CANARY not in json.dumps(choices):
        assert CANARY.encode() not in b"".join(whole.frames), body
    assert run([body], limit, closely=True) == whole
    for pieces in cuts(body, rng):
        assert run(pieces, limit) == whole, (body, [len(piece) for piece in pieces])


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
_FINISH = ["stop", "length", "tool_calls", "content_filter", "function_call", "eos", "STOP", "", CANARY]
_COUNTS = [0, 1, 17, 2048, -1, 10**9, 10**9 + 1, 10**30, 1.0, 1.5, "5", None, True, [], 1e300]
_ODD: list[Any] = [None, True, False, 0, -1, 1.5, "", "x", [], {}, [[]], [None], {"a": 1}]


class Grammar:
    """Writes streams. `frames` counts the frames written: events, comments and what lies between."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.frames = 0
        self.recorded = recorded()

    def stream(self) -> bytes:
        """One stream: a few frames, mostly good ones, an end of some kind."""
        rng = self.rng
        style = rng.choice([[b"\n"], [b"\n"], [b"\r\n"], [b"\r"], [b"\n", b"\r\n", b"\r"]])
        body = bytearray(b"\xef\xbb\xbf" if rng.random() < 0.1 else b"")
        for _ in range(rng.randrange(1, 25)):
            self.frames += 1
            for line in self._frame():
                body += line + rng.choice(style)
        if rng.random() < 0.7:
            for line in [*self._event(self._chunk(finish=rng.choice(_FINISH))), b"data: [DONE]", b""]:
                body += line + rng.choice(style)
        return bytes(body)

    def _canary(self, place: str) -> str:
        return f"{CANARY}/{place}"

    def _frame(self) -> list[bytes]:
        roll = self.rng.random()
        if roll < 0.55:
            return self._event(self._chunk())
        if roll < 0.67:
            return self._event(self._from_recorded())
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
        if rng.random() < 0.15:
            delta["tool_calls"] = [self._call() for _ in range(rng.randrange(3))]
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish}
        if finish is None and rng.random() < 0.1:
            del choice["finish_reason"]
        if rng.random() < 0.05:
            choice["index"] = rng.choice([None, 1, -1, 0.0, 10**20])
        if rng.random() < 0.03:
            choice["delta"] = None
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

    def _call(self) -> dict[str, Any]:
        rng = self.rng
        call: dict[str, Any] = {}
        if rng.random() < 0.8:
            call["index"] = rng.choice([0, 1, None, 7])
        if rng.random() < 0.5:
            call |= {"id": rng.choice(["call_1", None]), "type": rng.choice(["function", self._canary("type"), None])}
        if rng.random() < 0.9:
            call["function"] = rng.choice([{"name": "f", "arguments": ""}, {"arguments": self._text()}, {}, None])
        return call

    def _strew(self, value: Any) -> None:
        """Unknown fields at each level."""
        rng = self.rng
        if isinstance(value, dict):
            for item in value.values():
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
    broken = bytearray(body)
    for _ in range(rng.randrange(1, 7)):
        at = rng.randrange(len(broken) + 1)
        end = min(at + rng.choice([1, 1, 2, 5, 40]), len(broken))
        roll = rng.randrange(5)
        if roll == 0:
            del broken[at:end]
        elif roll == 1:
            broken[at:at] = rng.choice(_PIECES)
        elif roll == 2:
            broken[at:end] = rng.choice(_PIECES)
        elif roll == 3:
            broken[at:at] = broken[at:end]
        elif end > at:
            broken[at] ^= 1 << rng.randrange(8)
    return bytes(broken)


def fuzz(frames: int, seed: int) -> int:
    """Check streams of at least `frames` frames in all, half of them mutated; return the number of frames."""
    rng = random.Random(seed)
    grammar = Grammar(rng)
    while 2 * grammar.frames < frames:
        body = grammar.stream()
        limit = MAX_EVENT_BYTES if rng.random() < 0.8 else rng.choice([60, 300, 800])
        check(body, rng, limit)
        check(mutate(body, rng), rng, limit, mutated=True)
    return 2 * grammar.frames
