"""The quick form of the fuzzers, and the proof that they can fail."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NoReturn

import msgspec
import pytest

from eidproxy.inbound import chat, http1
from eidproxy.relay import dialect, sanitize
from eidproxy.relay.chunk import Delta, FinishReason, Frames
from eidproxy.relay.repair import repair
from eidproxy.relay.sanitize import Sanitizer
from eidproxy.relay.sse import EventParser
from eidproxy.relay.tool_calls import ToolCalls
from tests import fuzz
from tests.fuzz import HEAD, bodies, requests
from tests.lab.tools import size


def test_streams(seed: int) -> None:
    found = fuzz.fuzz(size(10_000, 1_000_000), seed)
    assert found.frames >= 10_000
    assert 0 < found.code_points_in == found.code_points_out


def test_requests(seed: int) -> None:
    count = size(5_000, 100_000)
    sound = requests.fuzz(count, seed)
    assert 0 < sound < count


def test_bodies(seed: int) -> None:
    reasons = bodies.fuzz(size(5_000, 200_000), seed)
    wanted = {"accepted", "invalid_json", "invalid_request", "unsupported_field", "unsupported_content"}
    assert set(reasons) == wanted | {"model_not_found"}


def _forwards(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """A filter that lets one field of the router's chunk through."""

    def spoil(patch: pytest.MonkeyPatch) -> None:
        read = Sanitizer.read

        def spoilt(self: Sanitizer, data: bytes) -> Delta | None:
            delta = read(self, data)
            if delta is not None:
                value = msgspec.json.decode(data).get(name)
                if value is not None:
                    delta.content = str(value)
            return delta

        patch.setattr(Sanitizer, "read", spoilt)

    return spoil


def _splits_lines(patch: pytest.MonkeyPatch) -> None:
    """A parser without memory: what line readers on a decoded chunk are."""

    def feed(self: EventParser, chunk: bytes) -> list[bytes]:
        lines = chunk.decode("utf-8", "replace").splitlines()
        return [line[6:].encode() for line in lines if line.startswith("data: ")]

    patch.setattr(EventParser, "feed", feed)


def _repeats_the_role(patch: pytest.MonkeyPatch) -> None:
    encode = Frames.encode

    def spoilt(self: Frames, delta: Delta, finish_reason: FinishReason | None = None) -> bytes:
        delta.role = "assistant"
        return encode(self, delta, finish_reason)

    patch.setattr(Frames, "encode", spoilt)


def _copies_common_events(patch: pytest.MonkeyPatch) -> None:
    """A short way for common events that skips the rebuilding."""
    rebuild = Frames.rebuild

    def copy(self: Frames, data: bytes, is_thinking: bool = False) -> bytes | None:
        return rebuild(self, data, is_thinking) and HEAD + data + b"]}\n\n"

    patch.setattr(Frames, "rebuild", copy)


def _trusts_the_first_finish_reason(patch: pytest.MonkeyPatch) -> None:
    """0.1.0: nothing passes after a finish reason."""
    read = Sanitizer.read

    def spoilt(self: Sanitizer, data: bytes) -> Delta | None:
        whole = self.finish_reason is not None
        delta = read(self, data)
        return None if whole else delta

    patch.setattr(Sanitizer, "read", spoilt)


def _takes_any_word_for_an_end(patch: pytest.MonkeyPatch) -> None:
    """0.1.0: an empty finish reason is one."""
    patch.setitem(sanitize._FINISH_REASONS, "", "stop")


def _knows_no_failing_word(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sanitize, "_FAILURE_REASONS", frozenset())


def _tells_calls_apart_by_index(patch: pytest.MonkeyPatch) -> None:
    """0.1.0: calls of one index are one call."""
    begun = ToolCalls._find_call

    def spoilt(self: ToolCalls, index: int | None, given_id: str | None, name: str | None) -> int | None:
        number = begun(self, index, given_id, name)
        return self._by_index.get(index or 0) if number is None else number

    patch.setattr(ToolCalls, "_find_call", spoilt)


def _drops_odd_shapes(patch: pytest.MonkeyPatch) -> None:
    """0.1.0: content as parts, arguments as objects and the like lose the event."""

    def refuse(_: object) -> NoReturn:
        raise msgspec.ValidationError

    patch.setattr(dialect, "_read_loosely", refuse)


def _mends_nothing(patch: pytest.MonkeyPatch) -> None:
    """0.1.0: broken Unicode loses the event."""
    patch.setattr(dialect, "repair", lambda data: None)


def _joins_nothing(patch: pytest.MonkeyPatch) -> None:
    """Broken characters are mended where they are, and not joined over two events."""
    patch.setattr(dialect, "repair", lambda data: (found := repair(data)) and (found[0], False))


def _hears_the_loading_state(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sanitize, "_is_loading", lambda chunk, came: False)


CONTROLS = {
    "common events are copied": _copies_common_events,
    "model comes through": _forwards("model"),
    "fingerprint comes through": _forwards("system_fingerprint"),
    "id comes through": _forwards("id"),
    "lines are split by str.splitlines": _splits_lines,
    "the role stands in each chunk": _repeats_the_role,
    "the first finish reason ends the answer": _trusts_the_first_finish_reason,
    "an empty finish reason is one": _takes_any_word_for_an_end,
    "an abort is an end": _knows_no_failing_word,
    "calls are told apart by index": _tells_calls_apart_by_index,
    "odd shapes are dropped": _drops_odd_shapes,
    "broken Unicode is dropped": _mends_nothing,
    "cut characters are not joined": _joins_nothing,
    "the loading state comes through": _hears_the_loading_state,
}


@pytest.mark.parametrize("spoil", CONTROLS.values(), ids=CONTROLS.keys())
def test_a_fault_is_found(spoil: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch)
    with pytest.raises((AssertionError, ValueError)):
        fuzz.fuzz(4_000, seed=1)


BODY_CONTROLS: dict[str, tuple[str, Any]] = {
    "nulls are kept": ("_drop_nulls", lambda value: None),
    "every model will do": ("_decode_model", lambda body: None),
    "depth is not looked at": ("_within_limits", lambda body: True),
    "infinities pass": ("_decode", msgspec.json.Decoder(float_hook=float).decode),
    "systems are not joined whole": ("_join_text", lambda content: str(content)[:1]),
    "a type is looked at in the order of the fields": ("_has_other_type", lambda value, path: False),
    "the operator's limit is no bound": ("_token_limit", lambda asked, most: asked.max_tokens or most),
    "calls are passed on as they came": ("_rebuild_calls", lambda calls: calls),
}


@pytest.mark.parametrize(("name", "spoilt"), BODY_CONTROLS.values(), ids=BODY_CONTROLS.keys())
def test_a_fault_of_the_request_is_found(name: str, spoilt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, name, spoilt)
    with pytest.raises(AssertionError):
        bodies.fuzz(20_000, seed=1)


def test_a_lenient_edge_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(head: bytes) -> http1.RequestHead:
        return http1.parse_head(head.replace(b"\r\n ", b" ").replace(b" :", b":"))

    monkeypatch.setattr(requests, "parse_head", parse)
    with pytest.raises(AssertionError):
        requests.fuzz(5_000, seed=1)


def test_every_split_of_a_recording() -> None:
    rng = random.Random(1)
    for chunk in fuzz.recorded()[:3]:
        body = b"data: " + msgspec.json.encode(chunk) + b"\n\n"
        whole = fuzz.run([body])
        for at in range(len(body) + 1):
            assert fuzz.run([body[:at], body[at:]]) == whole
        fuzz.check(body, rng)
