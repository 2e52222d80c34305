"""The quick form of the fuzzers, and the proof that they can fail."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import pytest

from eidproxy import http1, sanitize
from eidproxy.sanitize import rebuild
from eidproxy.sse import EventParser
from tests import fuzz
from tests.fuzz import requests
from tests.tools import size


def test_streams(seed: int) -> None:
    assert fuzz.fuzz(size(20_000, 1_000_000), seed) >= 20_000


def test_requests(seed: int) -> None:
    count = size(5_000, 100_000)
    sound = requests.fuzz(count, seed)
    assert 0 < sound < count


def _forwards(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """A sanitizer that lets one field of the router's chunk through."""

    def spoil(patch: pytest.MonkeyPatch) -> None:
        read = sanitize.Sanitizer.read

        def spoilt(self: sanitize.Sanitizer, data: bytes) -> sanitize.Choice | None:
            choice = read(self, data)
            if choice is not None and choice.delta is not None:
                value = msgspec.json.decode(data).get(name)
                if value is not None:
                    choice.delta.content = str(value)
            return choice

        patch.setattr(sanitize.Sanitizer, "read", spoilt)

    return spoil


def _splits_lines(patch: pytest.MonkeyPatch) -> None:
    """A parser without memory: what line readers on a decoded chunk are."""

    def feed(self: EventParser, chunk: bytes) -> list[bytes]:
        lines = chunk.decode("utf-8", "replace").splitlines()
        return [line[6:].encode() for line in lines if line.startswith("data: ")]

    patch.setattr(EventParser, "feed", feed)


def _keeps_role(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sanitize, "_close", lambda delta: None)


def _copies_usual_events(patch: pytest.MonkeyPatch) -> None:
    """A short cut for usual events that skips the rebuilding."""
    patch.setattr(fuzz, "rebuild", lambda head, data: rebuild(head, data) and head + data + b"]}\n\n")


CONTROLS = {
    "usual events are copied": _copies_usual_events,
    "model comes through": _forwards("model"),
    "fingerprint comes through": _forwards("system_fingerprint"),
    "id comes through": _forwards("id"),
    "lines are split by str.splitlines": _splits_lines,
    "closed sets are not closed": _keeps_role,
}


@pytest.mark.parametrize("spoil", CONTROLS.values(), ids=CONTROLS.keys())
def test_a_fault_is_found(spoil: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch)
    with pytest.raises((AssertionError, ValueError)):
        fuzz.fuzz(1_000, seed=1)


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
        assert len(whole.frames) == 1
        for at in range(len(body) + 1):
            assert fuzz.run([body[:at], body[at:]]) == whole
        fuzz.check(body, rng)
