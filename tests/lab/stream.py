"""A slow and obvious reader of event streams, and what an answer told."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

# --- Event streams -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    """One event that was dispatched."""

    event: str
    data: str

    def json(self) -> Any:
        """The data as JSON."""
        return json.loads(self.data)


def sse_lines(body: bytes) -> list[str]:
    """The lines of an event stream: BOM removed, ended by CR, LF or CRLF; a last line without an end is left out."""
    text = body.decode("utf-8").removeprefix("\ufeff")
    return re.split("\r\n|\r|\n", text)[:-1]


def parse_sse(body: bytes) -> list[Event]:
    """The events of a stream, word for word after the WHATWG text. Slow and obvious, to be judged by eye."""
    events: list[Event] = []
    kind, data = "", ""
    for line in sse_lines(body):
        if line == "":
            if data:
                events.append(Event(kind or "message", data.removesuffix("\n")))
            kind, data = "", ""
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            kind = value
        elif name == "data":
            data += value + "\n"
    return events


def comments(body: bytes) -> list[str]:
    """The comment lines of a stream, without the colon and one blank."""
    return [line[1:].removeprefix(" ") for line in sse_lines(body) if line.startswith(":")]


@dataclass(slots=True)
class Told:
    """What a whole chat stream told its reader."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    chunks: int = 0
    """Events whose `choices` are not empty."""
    done: bool = False
    errors: list[Any] = field(default_factory=list)
    """The error events, as JSON."""
    progress: list[Any] = field(default_factory=list)
    """The `eid` objects of progress chunks."""


def told(body: bytes) -> Told:
    """Read a chat stream. Only the choice with index 0 counts; both names of reasoning are one."""
    found = Told()
    for item in parse_sse(body):
        if item.data == "[DONE]":
            found.done = True
            continue
        value = item.json()
        if "error" in value:
            found.errors.append(value)
            continue
        if "eid" in value:
            found.progress.append(value["eid"])
        if value.get("choices"):
            found.chunks += 1
        for choice in value.get("choices") or []:
            if choice["index"] != 0:
                continue
            delta = choice.get("delta") or {}
            found.text += delta.get("content") or ""
            found.reasoning += delta.get("reasoning_content") or delta.get("reasoning") or ""
            found.finish_reason = choice.get("finish_reason") or found.finish_reason
    return found
