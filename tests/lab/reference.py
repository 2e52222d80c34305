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
class Call:
    """One tool call, put together."""

    id: str | None
    """The router's, unless another call has it already."""
    name: str
    is_told_apart: bool
    """It came with an id and an index."""
    arguments: list[Any] = field(default_factory=list)


@dataclass
class Reading:
    """What the caller of a stream gets, put together, and what is counted."""

    content: list[Any] = field(default_factory=list)
    reasoning: list[Any] = field(default_factory=list)
    refusal: list[Any] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    begun: bool = False
    finish_reason: str | None = None
    late: bool = False
    """Text or calls came after a finish reason."""
    done: bool = False
    failure: str | None = None
    """The reason of the error that ended the stream, unless it was whole before."""
    dropped: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    models: int = 0
    usages: int = 0

    @property
    def whole(self) -> bool:
        """Whether no error makes an error of the answer any more."""
        return self.finish_reason is not None and not self.late


class NotJson(Exception):
    """No JSON at all."""


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


_BYTES = 0x10FF00
"""From here on stand bytes that are not UTF-8, while JSON is read. The fuzzer writes no such character."""


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
    text = "".join(chr(_BYTES + ord(c) - 0xDC00) if "\udc80" <= c <= "\udcff" else c for c in text)
    if text.strip(" \t\r\n") != text.strip():
        raise NotJson
    try:
        return json.loads(
            text,
            object_pairs_hook=_Object,
            parse_constant=_refuse_constant,
            parse_float=_number,
            parse_int=_integer,
        )
    except (ValueError, RecursionError):
        raise NotJson from None


def joined(pieces: list[Any]) -> str:
    """The text of pieces that follow one another: bytes and halves that meet are joined, others are U+FFFD.

    How many U+FFFD stand for some broken bytes is nobody's business: a run of them is one.
    """
    found = b""
    text = ""
    for c in "".join(pieces):
        if ord(c) >= _BYTES:
            found += bytes([ord(c) - _BYTES])
            continue
        text += found.decode("utf-8", "replace") + c
        found = b""
    text += found.decode("utf-8", "replace")
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    while "\ufffd\ufffd" in text:
        text = text.replace("\ufffd\ufffd", "\ufffd")
    return text


def _silent(value: Any) -> bool:
    """An `error` that says nothing."""
    return value is None or value is False or value == "" or (isinstance(value, _Object) and not value)


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _texts(value: Any) -> tuple[str, str]:
    """What a content says: its text and what was thought."""
    if isinstance(value, str):
        return value, ""
    text = thought = ""
    if type(value) is list:
        for part in value:
            if isinstance(part, str):
                text += part
            elif isinstance(part, _Object):
                kind = _string(part.last("type"))
                if kind is None or kind == "text":
                    text += _string(part.last("text")) or ""
                elif kind in ("thinking", "reasoning"):
                    for name in ("thinking", "reasoning", "text"):
                        thought += "".join(_texts(part.last(name)))
    return text, thought


def _arguments(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return "?"  # the JSON text of whatever it is


@dataclass
class _Delta:
    content: str
    reasoning: str
    refusal: str
    calls: list[_Object]

    def says(self) -> bool:
        """Whether there is anything in it but calls."""
        return bool(self.content or self.reasoning or self.refusal)


def _delta(value: Any) -> _Delta | None:
    if not isinstance(value, _Object):
        return None
    content, thought = _texts(value.last("content"))
    reasoning = "".join(_texts(value.last("reasoning_content"))) or "".join(_texts(value.last("reasoning")))
    calls = value.last("tool_calls")
    found = [call for call in calls if isinstance(call, _Object)] if type(calls) is list else []
    found = [call for call in found if isinstance(call.last("function"), _Object | None)]
    return _Delta(content, thought + reasoning, _string(value.last("refusal")) or "", found)


def _index(value: Any) -> int | None:
    """A whole number in whatever spelling; one with a point or an exponent up to what a double holds exactly."""
    if isinstance(value, str):
        try:
            value = parse(value.encode()) if value == value.strip() else None
        except NotJson:
            return None
        if not isinstance(value, int | float):
            return None
    if isinstance(value, float) and abs(value) <= 2**53 and value == int(value):
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _choices(value: Any) -> list[_Object] | None:
    """The choices that are any, of whatever index; None where none stand."""
    if value is None or (type(value) is list and not value):
        return None
    found = []
    for choice in value if type(value) is list else []:
        if isinstance(choice, _Object):
            if choice.last("index") is not None and _index(choice.last("index")) is None:
                continue
            delta = choice.last("delta")
            says = isinstance(choice.last("message"), _Object) or _string(choice.last("finish_reason")) is not None
            if delta is None or isinstance(delta, _Object) or says or not _silent(choice.last("error")):
                found.append(choice)
    return found


_GENERAL = {"invalid_request_error", "authentication_error", "permission_error", "not_found_error", "rate_limit_error"}
_GENERAL |= {"server_error", "api_error", "stream_error", "internal_error", "internal_server_error", "timeout_error"}
_GENERAL |= {"service_unavailable", "overloaded_error", "error", "dict", "none"}


def reason(data: bytes, begun: bool, in_choice: bool = False) -> str:
    """What an error says is its reason (contract, 5), inside a stream."""
    try:
        value = parse(data.decode("utf-8", "replace").encode())
    except NotJson:
        return "upstream_error"
    if not isinstance(value, _Object):
        return "upstream_error"
    error = value.last("error")
    inner = error if isinstance(error, _Object) else _Object()
    if not begun:
        codes = [box.last(name) for box in (inner, value) for name in ("type", "code")]
        messages = [inner.last("message"), error, value.last("message"), value.last("detail")]
        for word in ("exceed_context_size_error", "context_length_exceeded"):
            if word in codes:
                return "context_too_long"
        for message in messages:
            if isinstance(message, str) and (
                "ContextWindowExceededError" in message
                or "exceed_context_size_error" in message
                or "context_length_exceeded" in message
                or "maximum context length" in message.lower()
            ):
                return "context_too_long"
    if in_choice:
        return "upstream_error"
    for word in (inner.last("type"), inner.last("error_reason"), value.last("error_reason")):
        if isinstance(word, str) and word and word not in _GENERAL and word == word.lower():
            alphabet = set("abcdefghijklmnopqrstuvwxyz0123456789_")
            return word if len(word) <= 64 and set(word) <= alphabet else "upstream_error"
    return "upstream_error"


def _take_calls(pieces: list[_Object], found: Reading, begun_under: dict[int, int], ids: dict[str, int]) -> bool:
    """Give each piece to its call. Whether any of them counts."""
    counts = False
    for piece in pieces:
        function = piece.last("function") or _Object()
        name, given, index = _string(function.last("name")), _string(piece.last("id")), _index(piece.last("index"))
        arguments = _arguments(function.last("arguments")) or ""
        known = ids.get(given) if given else None
        at: int | None
        if name:
            if given:
                at = known if known is not None and found.calls[known].name == name else None
            else:
                last = len(found.calls) - 1 if found.calls else None
                at = last if index is None else begun_under.get(index)
                if at is not None and (found.calls[at].name != name or _closed(found.calls[at])):
                    at = None
            if at is None:
                is_told_apart = bool(given) and index is not None
                found.calls.append(Call(given if given and given not in ids else None, name, is_told_apart))
                at = len(found.calls) - 1
                if given and given not in ids:
                    ids[given] = at
                counts = True
        elif index is not None and index in begun_under:
            at = begun_under[index]
        elif known is not None:
            at = known
        elif found.calls:
            at = len(found.calls) - 1
        else:
            continue
        if index is not None and (name or arguments or known is not None):
            begun_under[index] = at
        if arguments:
            found.calls[at].arguments.append(arguments)
            counts = True
    return counts


def _closed(call: Call) -> bool:
    """Whether the arguments of a call are complete, so that the next is another, where only this can tell."""
    if call.is_told_apart:
        return False
    try:
        parse("".join("{}" if piece == "?" else joined([piece]) for piece in call.arguments).encode())
    except NotJson:
        return False
    return True


_CUT = ("max_tokens", "max_length", "model_length")
_FAILED = ("error", "abort", "aborted", "cancelled", "network_error")


def read(body: bytes, limit: int = MIB) -> Reading:
    """Everything a caller may learn from a router's stream."""
    found = Reading()
    begun_under: dict[int, int] = {}
    ids: dict[str, int] = {}

    def drop(kind: str) -> None:
        found.dropped[kind] = found.dropped.get(kind, 0) + 1

    def fail(data: bytes, in_choice: bool = False) -> bool:
        if not found.whole:
            found.failure = reason(data, found.begun, in_choice)
        return found.failure is not None

    for event in events(body, limit):
        if event.too_large:
            drop("too_large")
            found.failure = "upstream_protocol_error"
            break
        if event.error:
            if fail(event.data):
                break
            continue
        if event.data.strip() == b"[DONE]":
            found.done = True
            break
        if event.data == b"":
            drop("empty")
            continue
        try:
            value = parse(event.data)
        except NotJson:
            drop("not_json")
            continue
        if not isinstance(value, _Object):
            drop("not_object")
            continue
        choices = _choices(value.last("choices"))
        says_error = not _silent(value.last("error")) or not _silent(value.last("detail"))
        if not choices:
            says_error = says_error or value.last("object") == "error"
            says_error = says_error or not (_silent(value.last("error_type")) and _silent(value.last("error_message")))
        if says_error:
            if fail(event.data):
                break
            continue
        if choices == []:
            drop("not_object")
            continue
        found.models += value.has("model")
        found.usages += value.has("usage")
        _count(value.last("usage"), found)
        ours = [choice for choice in choices or [] if not _index(choice.last("index"))]
        if not ours:
            drop("empty")
            continue
        choice = ours[0]
        word = (_string(choice.last("finish_reason")) or "").strip().lower()
        fails = word in _FAILED or not _silent(choice.last("error"))
        if fails and not found.begun:
            if fail(event.data, in_choice=True):
                break
            continue
        delta = _delta(choice.last("delta"))
        if delta is None:
            delta = _delta(choice.last("message")) or _Delta("", "", "", [])
        is_bare = not any(value.has(name) for name in ("id", "object", "created", "model"))
        has_calls = _take_calls(delta.calls, found, begun_under, ids)
        if is_bare and delta.reasoning and not (delta.content or delta.refusal or has_calls):
            delta.reasoning = ""  # llama-swap loads a model
        if delta.says() or has_calls:
            found.content.append(delta.content)
            found.reasoning.append(delta.reasoning)
            found.refusal.append(delta.refusal)
            found.late = found.late or found.finish_reason is not None
        if fails:
            if fail(event.data, in_choice=True):
                break
            continue
        if word not in ("", "null"):
            found.finish_reason = "length" if word in _CUT else word if word in FINISH_REASONS else "stop"
        found.begun = found.begun or delta.says() or has_calls or found.finish_reason is not None
    return found


def _count(usage: Any, found: Reading) -> None:
    if not isinstance(usage, _Object):
        return
    counts = {}
    for kind in ("prompt", "completion"):
        number = usage.last(f"{kind}_tokens", 0)
        if not isinstance(number, int) or isinstance(number, bool):
            return
        if not 0 <= number <= 1_000_000_000:
            return
        counts[kind] = int(number)
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
