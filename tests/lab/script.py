"""The words of a script for the router: its steps, and answers made of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parents[1] / "corpus"

# What a real router tells about its machine. None of it may be told on.
MODEL_PATH = "/Users/eid/mlx-models/Qwen3.6-27B-8bit"
FINGERPRINT = "0.32.2-0.32.4-macOS-26.0-arm64-arm-64bit-applegpu_g16s"

# --- Steps of a script -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Write these bytes, in one call when the socket takes them. A plain `bytes` in a script means the same."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Trickle:
    """Write `data` in pieces of `piece` bytes, `interval` seconds apart."""

    data: bytes
    piece: int = 1
    interval: float = 0.0


@dataclass(frozen=True, slots=True)
class Pause:
    """Be silent for so long, then go on."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Be silent until the test calls `router.release(barrier)`."""

    barrier: str


@dataclass(frozen=True, slots=True)
class Drained:
    """Go on once the peer has read all that was sent, so that the next bytes cannot join the last ones.

    It looks at the peer's socket in the kernel (Linux, same network namespace). Elsewhere it waits two milliseconds.
    """


@dataclass(frozen=True, slots=True)
class Fin:
    """Close cleanly. The socket stays counted in `open_sockets` until the peer closes too."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Close with a TCP reset."""


@dataclass(frozen=True, slots=True)
class Stall:
    """Be silent until the peer leaves."""


Step = bytes | Send | Trickle | Pause | Wait | Drained | Fin | Reset | Stall
# Any iterable will do: an endless generator makes a flooding router.
Script = Iterable[Step]

# --- Words for scripts -------------------------------------------------------------------------------------------

LAST_CHUNK = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"

Headers = Sequence[tuple[str, str]]


def head(status: int = 200, headers: Headers = (), *, reason: str = "X", version: str = "HTTP/1.1") -> bytes:
    """A response head: status line, headers as given, blank line."""
    lines = [f"{version} {status} {reason}", *(f"{name}: {value}" for name, value in headers)]
    return "".join(line + "\r\n" for line in [*lines, ""]).encode("latin-1")


def stream_head(*, chunked: bool = True) -> bytes:
    """The head of an event stream, with the headers by which a router gives itself away."""
    framing = ("Transfer-Encoding", "chunked") if chunked else ("Connection", "close")
    told = [("Server", "uvicorn"), ("x-litellm-model-api-base", "http://mac-mini.local:8080/v1")]
    return head(200, [("Content-Type", "text/event-stream; charset=utf-8"), *told, framing], reason="OK")


def chunk(data: bytes) -> bytes:
    """The bytes as one chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(payload: object) -> bytes:
    """One `data:` event: a str as it stands, anything else as JSON."""
    text = payload if isinstance(payload, str) else json.dumps(payload)
    return f"data: {text}\n\n".encode()


def completion_chunk(
    delta: dict[str, Any] | None = None,
    finish: str | None = None,
    *,
    model: str = MODEL_PATH,
    fingerprint: str = FINGERPRINT,
    **extra: Any,
) -> dict[str, Any]:
    """One `chat.completion.chunk` as a router writes it."""
    return {
        "id": "chatcmpl-1520292f-9b09-491b-84d6-4ac568df69fa",
        "system_fingerprint": fingerprint,
        "object": "chat.completion.chunk",
        "model": model,
        "created": 1795339760,
        "choices": [{"index": 0, "finish_reason": finish, "delta": delta or {}}],
        **extra,
    }


def stream(
    texts: Iterable[str] = ("Hello", " world"),
    *,
    finish: str | None = "stop",
    usage: bool = True,
    done: bool = True,
    chunked: bool = True,
    model: str = MODEL_PATH,
    fingerprint: str = FINGERPRINT,
    interval: float = 0.0,
    gate: str | None = None,
) -> list[Step]:
    """A whole streamed answer, one event a step.

    `finish=None` leaves the finish reason out, `done=False` the `[DONE]`. With `chunked=False` the end of the
    connection ends the body, as mlx does it. `interval` is a pause before each text but the first. `gate` names a
    barrier at which the stream waits once its first text is out.
    """
    texts = list(texts)

    def framed(data: bytes) -> Send:
        return Send(chunk(data) if chunked else data)

    def told(delta: dict[str, Any], reason: str | None = None, **extra: Any) -> Send:
        return framed(event(completion_chunk(delta, reason, model=model, fingerprint=fingerprint, **extra)))

    steps: list[Step] = [Send(stream_head(chunked=chunked)), told({"role": "assistant", "content": ""})]
    for number, text in enumerate(texts):
        if number and interval:
            steps.append(Pause(interval))
        steps.append(told({"content": text}))
        if gate is not None and number == 0:
            steps.append(Wait(gate))
    if gate is not None and not texts:
        steps.append(Wait(gate))
    if finish is not None:
        steps.append(told({}, finish))
    if usage:
        counts = {"prompt_tokens": 11, "completion_tokens": len(texts), "total_tokens": 11 + len(texts)}
        steps.append(told({}, choices=[], usage=counts))
    if done:
        steps.append(framed(DONE))
    steps.append(Send(LAST_CHUNK) if chunked else Fin())
    return steps


def status(code: int, body: object = b"", headers: Headers = ()) -> list[Step]:
    """A whole answer with a Content-Length; a body that is not bytes is sent as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.lower() for name, _ in headers}
    usual = [("Content-Type", "application/json"), ("Content-Length", str(len(data)))]
    return [Send(head(code, [*headers, *(pair for pair in usual if pair[0].lower() not in named)]) + data)]


def recording(
    name: str | Path, *, cuts: Iterable[int] = (), bytewise: bool = False, then: Step | None = None
) -> list[Step]:
    """A recorded answer from the corpus (or any file), byte for byte, then a clean close or `then`.

    `cuts` are offsets: the peer reads what lies before each before it gets what lies after. `bytewise` writes single
    bytes without waiting for the peer; the kernel may hand several over at once.
    """
    path = Path(name)
    if not path.is_absolute():
        path = CORPUS / (path.name if path.suffix else f"{path.name}.http")
    data = path.read_bytes()
    end = Fin() if then is None else then
    if bytewise:
        return [Trickle(data), end]
    return [*pieces(data, cuts), end]


def pieces(data: bytes, cuts: Iterable[int]) -> list[Step]:
    """The bytes cut at these offsets; each piece is read by the peer before the next is sent."""
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
    steps: list[Step] = []
    for start, end in itertools.pairwise(edges):
        steps += [Send(data[start:end]), Drained()]
    return steps


def wire(script: Script) -> bytes:
    """All the bytes a finite script writes, as one string: to cut them anew or to compare."""
    out = b""
    for step in script:
        match step:
            case bytes():
                out += step
            case Send(data) | Trickle(data):
                out += data
            case _:
                pass
    return out
