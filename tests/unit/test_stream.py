"""One answer from bytes to bytes: cut anywhere, to its end, within its bounds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from eidproxy.relay import stream as module
from eidproxy.relay.completion import Completion
from eidproxy.relay.sse import EventParser
from eidproxy.relay.stream import DONE, Stage, Stream
from eidproxy.vocabulary import Dropped, Stripped
from tests import corpus, fuzz
from tests.corpus.expect import split
from tests.lab.cost import cost


def event(delta: Any = None, finish_reason: str | None = None, **fields: Any) -> bytes:
    """One event of a model's stream as it comes over the wire."""
    choice = {"index": 0, "delta": {} if delta is None else delta, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"model": "m", "choices": [choice], **fields}).encode() + b"\n\n"


def stream(completion: Completion | None = None) -> Stream:
    return Stream("id-1", 1700000000, "daily", completion)


def told(output: bytes) -> list[dict[str, Any]]:
    """The choices in what a caller got."""
    return [json.loads(data)["choices"][0] for data in EventParser().feed(output) if data != b"[DONE]"]


def text(output: bytes) -> str:
    return "".join(choice["delta"].get("content", "") for choice in told(output))


def test_an_answer() -> None:
    answer = stream()
    assert answer.feed(event({"role": "assistant"})) == b""
    stages = [answer.stage]
    first = answer.feed(event({"reasoning": "hm"}))
    assert told(first)[0]["delta"] == {"role": "assistant", "reasoning_content": "hm"}
    stages.append(answer.stage)
    assert text(answer.feed(event({"content": "a"}))) == "a"
    stages.append(answer.stage)
    assert text(answer.feed(event({"content": "b"}))) == "b"
    assert answer.feed(event({}, "stop")) == b""
    stages.append(answer.stage)
    assert text(answer.feed(event({"content": "c"}))) == "c"
    assert answer.feed(DONE) == b""
    stages.append(answer.stage)
    assert stages == [Stage.WAITING, Stage.THINKING, Stage.SPEAKING, Stage.FINISHED, Stage.OVER]
    assert answer.failure is None
    assert answer.close() == b""
    assert told(answer.finish()) == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    assert answer.chunks == 5
    assert answer.stripped() == {Stripped.MODEL: 6, Stripped.USAGE: 0, Stripped.OTHER: 0}


def test_its_chunks_and_calls_have_the_names_of_the_request() -> None:
    answer = stream()
    assert (answer.failure, answer.parsed_events) == (None, 0)
    output = answer.feed(event({"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}))
    chunk = json.loads(output.removeprefix(b"data: "))
    assert (chunk["id"], chunk["created"], chunk["model"]) == ("chatcmpl-id-1", 1700000000, "daily")
    assert chunk["choices"][0]["delta"]["tool_calls"][0]["id"] == "call_id-1_0"


def test_common_events_are_counted_where_they_take_the_short_way_too() -> None:
    """`parsed_events` is how many took the long way; each names a model, which is taken out."""
    answer, common = stream(), [event({"content": letter}) for letter in "abcdefg"]
    heard = []
    for read in (common[0], common[1], common[2], common[3] + common[4], common[5] + common[6]):
        answer.feed(read)
        heard.append(answer.parsed_events)
    assert heard == [1, 1, 1, 3, 5]
    assert answer.stripped()[Stripped.MODEL] == answer.chunks == 7


@pytest.mark.parametrize(("wanted", "count"), [({}, 1), ({"counts_unknown": True}, 1), ({"counts_unknown": False}, 0)])
def test_unknown_fields_are_counted_unless_that_is_not_wanted(wanted: dict[str, Any], count: int) -> None:
    answer = Stream("id-1", 1, "daily", **wanted)
    answer.feed(event({"content": "a"}, timings={}))
    assert answer.stripped() == {Stripped.MODEL: 1, Stripped.USAGE: 0, Stripped.OTHER: count}


def test_what_one_read_brings_is_one_write() -> None:
    answer = stream()
    output = answer.feed(event({"content": "a"}) * 3 + event({}, "stop") + DONE + event({"content": "canary"}))
    assert text(output) == "aaa"
    assert answer.chunks == 3
    assert answer.stage is Stage.OVER


def test_what_comes_before_an_error_passes() -> None:
    answer = stream()
    output = answer.feed(
        event({"content": "a"}) * 2 + b'data: {"error":{"type":"warming"}}\n\n' + event({"content": "x"})
    )
    assert text(output) == "aa"
    assert (answer.stage, answer.failure) == (Stage.OVER, "warming")


def test_an_answer_that_nobody_streams() -> None:
    completion = Completion(1, "daily")
    answer = stream(completion)
    assert answer.feed(event({"content": "a"}) + event({"content": "b"})) == b""
    assert answer.feed(event({"content": "c"})) == b""
    assert answer.feed(b'data: {"model":"m","choices":[{"delta":{"content":"\xff"}}]}\n\n') == b""
    assert answer.close() == b""
    assert answer.chunks == 4
    message = json.loads(completion.encode("id-1", "stop"))["choices"][0]["message"]
    assert message["content"] == "abc\ufffd"


def test_a_cut_character_at_the_end() -> None:
    answer = stream()
    answer.feed(event({"content": "a"}))
    assert answer.feed(b'data: {"model":"m","choices":[{"delta":{"content":"\xec"}}]}\n\n') == b""
    assert text(answer.close()) == "\ufffd"
    assert answer.chunks == 2


def test_comments() -> None:
    answer = stream()
    assert answer.comment == b""
    answer.feed(b": keepalive 1/2\n\n")
    assert answer.comment == b": keepalive 1/2"
    answer.feed(b": " + b"x" * 1000 + b"\n" + event({"content": "a"}))
    assert answer.comment == b": " + b"x" * 254


def test_progress() -> None:
    chunk = stream().progress_chunk({"state": "queued", "position": 1, "eta_seconds": None})
    assert json.loads(chunk[6:])["choices"] == []
    assert json.loads(chunk[6:])["eid"] == {"state": "queued", "position": 1, "eta_seconds": None}


# Bounds


def test_an_event_too_large() -> None:
    large = b"data: " + b"x" * 1_048_600 + b"\n\n"
    answer = stream()
    assert text(answer.feed(event({"content": "a"}) + large)) == "a"
    assert (answer.stage, answer.failure) == (Stage.OVER, "upstream_protocol_error")
    assert answer.sanitizer.dropped == {Dropped.TOO_LARGE: 1}


def test_an_event_too_large_behind_the_end_is_no_business_of_ours() -> None:
    large = b"data: " + b"x" * 1_048_600 + b"\n\n"
    answer = stream()
    answer.feed(event({"content": "a"}, "stop") + DONE + large)
    assert (answer.stage, answer.failure) == (Stage.OVER, None)
    assert answer.sanitizer.dropped == {}


def test_an_event_of_the_common_shape_has_the_same_bound() -> None:
    answer = Stream("id-1", 1, "daily", max_event_bytes=200)
    answer.feed(event({"content": "a"}))
    assert answer.feed(event({"content": "x" * 200})) == b""
    assert answer.failure == "upstream_protocol_error"


def test_all_that_is_too_large_behind_a_finish_reason_is_counted() -> None:
    answer = stream()
    answer.feed(event({"content": "a"}, "stop"))
    answer.feed(event({"content": ["a"] * 100_000}))
    assert answer.sanitizer.dropped == {Dropped.TOO_LARGE: 1}
    answer.feed(b"data: " + b"x" * 1_048_600 + b"\n\n")
    assert answer.sanitizer.dropped == {Dropped.TOO_LARGE: 2}


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("extra", [b"", b": x\n\n"])
def test_a_stream_may_be_as_long_as_its_bound(monkeypatch: pytest.MonkeyPatch, over: int, extra: bytes) -> None:
    """In the short way and in the long one, which a comment takes."""
    first, second = event({"content": "a"}), event({"content": "b"}) + extra
    monkeypatch.setattr(module, "_MAX_STREAM_BYTES", len(first) + len(second) - over)
    answer = stream()
    answer.feed(first)
    answer.feed(second)
    assert answer.failure == ("upstream_protocol_error" if over else None)


def test_a_stream_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_STREAM_BYTES", 1000)
    answer = stream()
    output = b""
    while answer.stage < Stage.OVER:
        output += answer.feed(event({"content": "abc"}) + b": x\n\n")
    assert answer.failure == "upstream_protocol_error"
    assert 0 < len(text(output)) < 1000


def test_a_stream_of_common_events_has_the_same_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_STREAM_BYTES", 1000)
    answer = stream()
    for _ in range(100):
        answer.feed(event({"content": "abc"}))
    assert (answer.stage, answer.failure) == (Stage.OVER, "upstream_protocol_error")


def test_an_answer_that_is_held_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_COMPLETION_CHARS", 3)
    answer = stream(Completion(1, "daily"))
    answer.feed(event({"content": "abc"}))
    assert answer.failure is None
    answer.feed(event({"content": "abc"}))
    assert answer.failure == "upstream_protocol_error"


# Past the interpreter


def test_a_template_is_there_between_usual_events_alone() -> None:
    answer = stream()
    usual = event({"content": "a"})
    assert answer.template(usual) is None, "nothing has come"
    answer.feed(usual)
    first = answer.template(usual)
    assert first is not None
    assert first.before == usual[: usual.index(b'"a"') + 1]
    answer.feed(usual + usual[:9])
    assert answer.template(usual) is None, "the next byte begins no event"
    answer.feed(usual[9:])
    assert answer.template(usual[9:]) == first, "by one that came with others"
    answer.feed(event({}, "stop"))
    assert answer.template(usual) is None, "the answer is over"


def test_no_template_where_events_are_bounded_otherwise() -> None:
    answer = Stream("id-1", 1700000000, "daily", None, 1000)
    answer.feed(event({"content": "a"}))
    assert answer.template(event({"content": "a"})) is None


def test_no_template_of_a_read_that_is_no_event() -> None:
    answer = stream()
    answer.feed(event({"content": "a"}))
    assert answer.template(b": ping\n\n") is None


def test_what_was_passed_on_counts() -> None:
    """With what came before, the long way and the short one."""
    answer = stream()
    for letter in "ab":
        answer.feed(event({"content": letter}))
    before = answer.budget
    answer.count_passed(3, 300)
    answer.count_passed(2, 200)
    assert (answer.chunks, before - answer.budget) == (7, 500)
    assert answer.stripped()[Stripped.MODEL] == 7


# Recordings


@pytest.mark.parametrize("name", corpus.STREAMS)
def test_a_recording_tells_its_caller_what_it_told_its_reader(name: str) -> None:
    _, _, body = split(corpus.raw(name))
    wanted = corpus.EXPECTED[name]
    completion = Completion(1, "daily")
    gathered = Stream("id-1", 1, "daily", completion)
    gathered.feed(body)
    answer = stream()
    output = answer.feed(body) + answer.close()
    sanitizer = answer.sanitizer
    reasoning = "".join(choice["delta"].get("reasoning_content", "") for choice in told(output))
    assert (text(output), reasoning) == (wanted["text"], wanted["reasoning"])
    assert (sanitizer.finish_reason, sanitizer.said_done) == (wanted["finish_reason"], wanted["done"])
    assert answer.chunks <= wanted["chunks"]
    message = json.loads(completion.encode("id-1", "stop"))["choices"][0]["message"]
    assert (message["content"], message.get("reasoning_content", "")) == (wanted["text"], wanted["reasoning"])
    chunks = [json.loads(data) for data in EventParser().feed(body) if data.startswith(b"{")]
    betrayals = {chunk.get(name, "keepalive") for chunk in chunks for name in ("id", "model", "system_fingerprint")}
    for betrayed in ("fingerprint", "usage", "prompt_tokens", *betrayals):
        assert betrayed.encode() not in output


# Cost


@pytest.mark.parametrize("data", [b"data\n\n", b"data:1\n\n", b"data:x\n\n", b'data: {"choices":[{}]}\n\n'], ids=repr)
def test_no_read_of_small_events_holds_the_loop(data: bytes) -> None:
    piece = (data * (64_000 // len(data) + 1))[:64_000]
    assert cost(lambda: fuzz.run([piece])) < 0.03
