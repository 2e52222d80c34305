"""Slow, obvious readers to compare eidproxy's with: of event streams, of what may pass of them, of requests.

They share no code with eidproxy. Where a rule can be read off the contract or the standard it is written down here in
its plainest form: a byte at a time, a field at a time, no state that could be cut in the wrong place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MIB = 1024 * 1024

FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter", "function_call")


# Event streams (HTML Standard, 9.2.5 and 9.2.6)


@dataclass
class Event:
    """What one event says. `error` is an event of that type, or a bare `error:` line."""

    data: bytes
    error: bool = False
    too_large: bool = False


def lines(body: bytes) -> tuple[list[bytes], bytes]:
    """The lines of a body that are ended, by CR, LF or CRLF, and what stands behind the last."""
    found: list[bytes] = []
    line = b""
    at = 3 if body.startswith(b"\xef\xbb\xbf") else 0
    begun = at
    while at < len(body):
        if body[at] in b"\r\n":
            line = body[begun:at]
            found.append(line)
            if body[at : at + 2] == b"\r\n":
                at += 1
            begun = at + 1
        at += 1
    return found, body[begun:]


def events(body: bytes, limit: int = MIB) -> Iterator[Event]:
    """The events of a stream, in order. One that is `too_large` is the last."""
    whole, rest = lines(body)
    data: list[bytes] = []
    kind = b""
    size = 0
    for line in whole:
        if line == b"":
            if data:
                yield Event(b"\n".join(data), error=kind == b"error")
            data, kind, size = [], b"", 0
            continue
        if size + len(line) > limit:
            yield Event(b"", too_large=True)
            return
        name, colon, value = line.partition(b":")
        if colon and not name:
            continue
        size += len(line) + 1
        if value.startswith(b" "):
            value = value[1:]
        if name == b"data":
            data.append(value)
        elif name == b"event":
            kind = value
        elif name == b"error":
            yield Event(value, error=True)
    if rest and size + len(rest) > limit:
        yield Event(b"", too_large=True)


# What may pass (contract, 4)


@dataclass
class Reading:
    """What the caller of a stream gets, and what is counted."""

    choices: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    done: bool = False
    failure: str | None = None
    """The reason of the error that ended the stream, unless it was finished before."""
    dropped: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    models: int = 0
    usages: int = 0


class NotJson(Exception):
    """No JSON at all."""


class Misfit(Exception):
    """JSON, but of no known shape."""


class _Object(list[tuple[str, Any]]):
    """A JSON object as the list of its members: a key may stand twice."""

    def last(self, name: str, default: Any = None) -> Any:
        """The value of a key, the last one where there are several."""
        for key, value in reversed(self):
            if key == name:
                return value
        return default

    def has(self, name: str) -> bool:
        """Whether the key stands there."""
        return any(key == name for key, _ in self)


class _BadNumber:
    """A number that no double holds. It is harmless where nobody reads it."""


_BAD_BYTE = "\U0010ffff"
"""Stands for a byte that is not UTF-8. It is harmless where nobody reads it, like a number out of range."""


def _refuse_constant(word: str) -> Any:
    raise ValueError(word)


def _number(text: str) -> Any:
    value = float(text)
    return _BadNumber() if value in (float("inf"), float("-inf")) else value


def _integer(text: str) -> Any:
    return int(text) if len(text) <= 4000 else _BadNumber()


def parse(data: bytes) -> Any:
    """A JSON value; objects are `_Object`. Raises NotJson."""
    text = data.decode("utf-8", "surrogateescape")
    text = "".join(_BAD_BYTE if "\udc80" <= c <= "\udcff" else c for c in text)
    if text.strip(" \t\r\n") != text.strip():
        raise NotJson
    try:
        value = json.loads(
            text,
            object_pairs_hook=_Object,
            parse_constant=_refuse_constant,
            parse_float=_number,
            parse_int=_integer,
        )
    except (ValueError, RecursionError):
        raise NotJson from None
    if any("\ud800" <= c <= "\udfff" for c in _all_text(value)):
        raise NotJson
    return value


def _all_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, _Object):
        return "".join(key + _all_text(item) for key, item in value)
    if isinstance(value, list):
        return "".join(map(_all_text, value))
    return ""


def is_sound(value: Any) -> bool:
    """Whether every part of a value is valid, read or not."""
    if isinstance(value, _BadNumber):
        return False
    if isinstance(value, _Object):
        return all(_BAD_BYTE not in key and is_sound(item) for key, item in value)
    if isinstance(value, list):
        return all(map(is_sound, value))
    return not isinstance(value, str) or _BAD_BYTE not in value


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise Misfit
    if _BAD_BYTE in value:
        raise NotJson
    return value


def _int(value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise Misfit
    return value


def _members(value: Any, shape: dict[str, Any]) -> dict[str, Any]:
    """The known members of an object, each checked, also where a key stands twice; the last one counts."""
    if not isinstance(value, _Object):
        raise Misfit
    found: dict[str, Any] = {}
    for key, item in value:
        if key in shape:
            found[key] = shape[key](item)
    return found


def _function(value: Any) -> dict[str, Any] | None:
    return None if value is None else _members(value, {"name": _text, "arguments": _text})


def _call(value: Any) -> dict[str, Any]:
    return _members(value, {"index": _int, "id": _text, "type": _text, "function": _function})


def _calls(value: Any) -> list[dict[str, Any]] | None:
    if value is None:
        return None
    if type(value) is not list:
        raise Misfit
    return [_call(item) for item in value]


_DELTA = {
    "role": _text,
    "content": _text,
    "reasoning_content": _text,
    "reasoning": _text,
    "refusal": _text,
    "tool_calls": _calls,
}


def _delta(value: Any) -> dict[str, Any]:
    return {} if value is None else _members(value, _DELTA)


def _choice(value: Any) -> dict[str, Any]:
    return _members(value, {"index": _int, "delta": _delta, "finish_reason": _text})


def _choices(value: Any) -> list[dict[str, Any]]:
    if value is None:
        return []
    if type(value) is not list:
        raise Misfit
    return [_choice(item) for item in value]


def reason(data: bytes) -> str:
    """What an error says is its reason (contract, 5), inside a stream."""
    try:
        value = parse(data)
    except NotJson:
        return "upstream_error"
    if not isinstance(value, _Object) or not is_sound(value):
        return "upstream_error"
    error = value.last("error")
    inner = error if isinstance(error, _Object) else _Object()
    for word in (inner.last("type"), inner.last("error_reason"), value.last("error_reason")):
        if isinstance(word, str) and word:
            alphabet = set("abcdefghijklmnopqrstuvwxyz0123456789_")
            return word if len(word) <= 64 and set(word) <= alphabet else "upstream_error"
    return "upstream_error"


def _passes(choice: dict[str, Any]) -> dict[str, Any]:
    """The choice that the caller gets for one of the router's."""
    delta = {name: value for name, value in choice.get("delta", {}).items() if value is not None}
    if "role" in delta:
        delta["role"] = "assistant"
    reasoning = delta.pop("reasoning", None)
    if reasoning is not None:
        delta.setdefault("reasoning_content", reasoning)
    calls = []
    for at, call in enumerate(delta.pop("tool_calls", None) or []):
        call = {name: value for name, value in call.items() if value is not None}
        call.setdefault("index", at)
        if "type" in call:
            call["type"] = "function"
        if "function" in call:
            call["function"] = {name: value for name, value in call["function"].items() if value is not None}
        calls.append(call)
    if choice.get("delta", {}).get("tool_calls") is not None:
        delta["tool_calls"] = calls
    said = choice.get("finish_reason")
    if said is not None and said not in FINISH_REASONS:
        said = "stop"
    return {"index": 0, "delta": delta, "finish_reason": said}


def read(body: bytes, limit: int = MIB) -> Reading:
    """Everything a caller may learn from a router's stream."""
    found = Reading()

    def drop(kind: str) -> None:
        found.dropped[kind] = found.dropped.get(kind, 0) + 1

    for event in events(body, limit):
        whole = found.finish_reason is not None
        if event.too_large:
            if not whole:
                found.failure = "upstream_protocol_error"
            break
        if event.error:
            if whole:
                continue
            found.failure = reason(event.data)
            break
        if event.data == b"[DONE]":
            found.done = True
            break
        if event.data == b"":
            drop("empty")
            continue
        try:
            value = parse(event.data)
            if not isinstance(value, _Object):
                if not is_sound(value):
                    raise NotJson
                raise Misfit
            choices: list[dict[str, Any]] = []
            for key, item in value:
                if key == "choices":
                    choices = _choices(item)
        except NotJson:
            drop("not_json")
            continue
        except Misfit:
            if not is_sound(value):
                drop("not_json")
            elif isinstance(value, _Object) and (value.last("error") is not None or value.last("detail") is not None):
                if not whole:
                    found.failure = reason(event.data)
                    break
            else:
                drop("not_object")
            continue
        if value.last("error") is not None or value.last("detail") is not None:
            if whole:
                continue
            found.failure = reason(event.data)
            break
        found.models += value.has("model")
        found.usages += value.has("usage")
        _count(value.last("usage"), found)
        ours = [choice for choice in choices if not choice.get("index")]
        if not choices or (not ours and not whole):
            drop("empty")
        elif not whole:
            found.choices.append(_passes(ours[0]))
            found.finish_reason = found.choices[-1]["finish_reason"]
    return found


def _count(usage: Any, found: Reading) -> None:
    if not isinstance(usage, _Object):
        return
    counts = {}
    for kind in ("prompt", "completion"):
        for key, value in usage:
            if key == f"{kind}_tokens":
                try:
                    number = _int(value)
                except Misfit:
                    return
                if number is None or not 0 <= number <= 1_000_000_000:
                    return
        value = usage.last(f"{kind}_tokens", 0)
        counts[kind] = int(value)
    found.tokens = counts


# Requests (RFC 9112, without the lenient cases)


TOKEN = set(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
UNRESERVED = set(b"-._~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
SUB_DELIMS = set(b"!$&'()*+,;=")
HEX = set(b"0123456789abcdefABCDEF")
TEXT = {0x09, *range(0x20, 0x7F), *range(0x80, 0x100)}


@dataclass
class Request:
    """A request that is whole and strictly valid."""

    method: bytes
    target: bytes
    host: bytes
    body: bytes
    surplus: bool = False
    """Whether bytes follow it."""


class Refused(Exception):
    """Not a request that may be answered with anything but 4xx."""


class Incomplete(Exception):
    """So far so good, or at least not decided."""


def _pieces_valid(text: bytes, allowed: set[int]) -> bool:
    at = 0
    while at < len(text):
        if text[at] == 0x25:
            if len(text) < at + 3 or text[at + 1] not in HEX or text[at + 2] not in HEX:
                return False
            at += 3
        elif text[at] in allowed:
            at += 1
        else:
            return False
    return True


def _ensure(condition: bool) -> None:
    if not condition:
        raise Refused


def _host(value: bytes) -> bytes:
    if value.startswith(b"["):
        address, closed, rest = value[1:].partition(b"]")
        _ensure(bool(closed) and address != b"" and set(address) <= HEX | set(b":."))
        host = b"[" + address + b"]"
    else:
        host, colon, port = value.partition(b":")
        rest = colon + port
        _ensure(_pieces_valid(host, UNRESERVED | SUB_DELIMS))
    _ensure(rest == b"" or (rest[:1] == b":" and set(rest[1:]) <= set(b"0123456789")))
    return host


def request(data: bytes, max_body_bytes: int = MIB) -> Request:
    """The request at the beginning of some bytes. Raises Refused or Incomplete."""
    head, end, rest = data.partition(b"\r\n\r\n")
    _ensure(len(head) + len(end) <= 16384)
    if not end:
        raise Incomplete
    first, *fields = head.split(b"\r\n")
    parts = first.split(b" ")
    _ensure(len(parts) == 3)
    method, target, version = parts
    _ensure(version == b"HTTP/1.1" and method != b"" and set(method) <= TOKEN and method != b"CONNECT")
    _ensure(target.startswith(b"/") and _pieces_valid(target, UNRESERVED | SUB_DELIMS | set(b":@/?")))
    _ensure(not (method == b"POST" and b"?" in target))
    _ensure(len(fields) <= 64)
    named: dict[bytes, list[bytes]] = {}
    for line in fields:
        name, colon, value = line.partition(b":")
        _ensure(colon == b":" and name != b"" and set(name) <= TOKEN and b"_" not in name and set(value) <= TEXT)
        named.setdefault(name.lower(), []).append(value.strip(b" \t"))
    for name in (b"content-length", b"transfer-encoding", b"expect", b"content-type"):
        _ensure(len(named.get(name, [])) <= 1)
    _ensure(len(named.get(b"host", [])) == 1 and b"upgrade" not in named)
    host = _host(named[b"host"][0])
    _ensure(named.get(b"expect", [b"100-continue"])[0].lower() == b"100-continue")
    length, coding = named.get(b"content-length"), named.get(b"transfer-encoding")
    if coding is not None:
        _ensure(length is None and coding[0].lower() == b"chunked")
        body, rest = _chunked(rest, max_body_bytes)
        return Request(method, target, host, body, bool(rest))
    size = 0
    if length is not None:
        _ensure(length[0] != b"" and set(length[0]) <= set(b"0123456789"))
        significant = length[0].lstrip(b"0") or b"0"
        _ensure(len(significant) < 20 and int(significant) <= max_body_bytes)
        size = int(significant)
    if len(rest) < size:
        raise Incomplete
    return Request(method, target, host, rest[:size], len(rest) > size)


def _chunked(rest: bytes, max_body_bytes: int) -> tuple[bytes, bytes]:
    body = b""
    while True:
        line, end, rest = rest.partition(b"\r\n")
        if not end:
            raise Incomplete
        digits = bytes(c for at, c in enumerate(line) if set(line[: at + 1]) <= HEX)
        _ensure(0 < len(digits) <= 16)
        _extensions(line[len(digits) :])
        size = int(digits, 16)
        _ensure(len(body) + size <= max_body_bytes)
        if len(rest) < size + 2:
            _ensure(rest[size:] in (b"", b"\r"))
            raise Incomplete
        _ensure(rest[size : size + 2] == b"\r\n")
        body += rest[:size]
        rest = rest[size + 2 :]
        if size == 0:
            return body, rest


def _extensions(text: bytes) -> None:
    _ensure(len(text) <= 256)
    at = 0

    def token(at: int) -> int:
        begun = at
        while at < len(text) and text[at] in TOKEN:
            at += 1
        _ensure(at > begun)
        return at

    while at < len(text):
        _ensure(text[at] == 0x3B)
        at = token(at + 1)
        if text[at : at + 1] != b"=":
            continue
        if text[at + 1 : at + 2] != b'"':
            at = token(at + 1)
            continue
        at += 2
        while text[at : at + 1] != b'"':
            if text[at : at + 1] == b"\\":
                at += 1
            _ensure(at < len(text) and text[at] in TEXT)
            at += 1
        at += 1
