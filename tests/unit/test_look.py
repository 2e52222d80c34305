"""look: what came back for a question, read in whatever dialect (see test_live_check for the lines that follow)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from eidproxy.commands.look import EventContent, Read, Response, StreamItem, read_event, split_stream

STREAM = (
    b'\xef\xbb\xbf: ping\n\ndata: {"a":1}\r\n\r\nevent: message\ndata: {"b":\ndata: 2}\n\n'
    b"event: error\ndata: x\n\nerror: boom\r\r: pong\ndata: [DONE]\n\ndata: cut"
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(STREAM)])
def test_a_stream_is_the_same_however_it_is_cut(size: int) -> None:
    reads = [Read(float(at), STREAM[at : at + size]) for at in range(0, len(STREAM), size)]
    said = split_stream(reads)
    assert [(each.value, each.is_comment) for each in said] == [
        (b"ping", True),
        (b'{"a":1}', False),
        (b'{"b":\n2}', False),
        (b'{"error":1}', False),
        (b'{"error":1}', False),
        (b"pong", True),
        (b"[DONE]", False),
    ]
    assert [each.seconds for each in said] == sorted(each.seconds for each in said)


def chunk(delta: Any, **choice: Any) -> bytes:
    return json.dumps({"choices": [{"delta": delta, **choice}]}).encode()


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (b"no json", EventContent(1.0)),
        (b"[]", EventContent(1.0)),
        (b"[" * 100_000, EventContent(1.0)),
        (b'{"choices":5}', EventContent(1.0)),
        (b'{"choices":[]}', EventContent(1.0)),
        (b'{"error":{"message":"x"}}', EventContent(1.0, is_error=True)),
        (b'{"object":"error"}', EventContent(1.0, is_error=True)),
        (b'{"error":null,"id":"x"}', EventContent(1.0, has_model_fields=True)),
        (chunk({"role": "assistant"}), EventContent(1.0)),
        (chunk({"content": "a"}), EventContent(1.0, text="a")),
        (chunk({"content": [{"text": "a"}, {"text": "b"}, 5]}), EventContent(1.0, text="ab")),
        (chunk({"reasoning": "r"}), EventContent(1.0, reasoning="r")),
        (chunk({"reasoning_content": "r", "reasoning": "other"}), EventContent(1.0, reasoning="r")),
        (chunk({"refusal": "No."}), EventContent(1.0, text="No.")),  # a refusal is an answer
        (chunk(None, message={"content": "a"}), EventContent(1.0, text="a")),
        (chunk({"tool_calls": [{}, {}]}), EventContent(1.0, calls=2)),
        (chunk({}, finish_reason="stop"), EventContent(1.0, finish_reason="stop")),
        (chunk({}, finish_reason=""), EventContent(1.0)),
        (chunk({}, finish_reason="null"), EventContent(1.0)),
    ],
)
def test_what_an_event_says(value: bytes, part: EventContent) -> None:
    assert read_event(StreamItem(1.0, value)) == part


def test_a_lone_role_is_no_first_event() -> None:
    reads = [
        Read(0.1, b"data: " + chunk({"role": "assistant"}) + b"\n\n"),
        Read(0.2, b"data: " + chunk({"content": "a"}) + b"\n\n"),
        Read(0.3, b"data: " + chunk({}, finish_reason="stop") + b"\n\ndata: [DONE]\n\n"),
    ]
    look = Response(200, None, reads, 0.4)
    assert look.first_event_seconds == 0.2
    assert look.tokens == 1
    assert len(look.events) == 3
    assert look.body == b"".join(read.data for read in reads)
    assert look._replace(upstream_seconds=0.05).first_event_seconds == 0.05, "an eidproxy knows its queue"
    assert look._replace(reads=[]).first_event_seconds is None
