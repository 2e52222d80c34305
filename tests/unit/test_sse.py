"""The event stream grammar, case by case, each fed whole, byte by byte and cut once at every place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eidproxy.relay.sse import MAX_EVENT_BYTES, ErrorData, EventParser, EventTooLarge, whole_event
from tests import corpus
from tests.corpus.expect import split
from tests.lab import reference
from tests.lab.cost import cost

Said = list[tuple[str, bytes]]


def parse(*pieces: bytes, limit: int = MAX_EVENT_BYTES) -> Said:
    """What comes out of a stream: `data` and `error` with their bytes, and `too large` as the last."""
    parser, said = EventParser(limit), []
    try:
        for piece in pieces:
            event = whole_event(piece) if parser.is_between_events and len(piece) <= limit else None
            events = parser.feed(piece)
            assert event is None or [(type(event), event)] == [(type(event), event) for event in events]
            said += events
    except EventTooLarge as cut:
        said += cut.events
        return [*map(_kind, said), ("too large", b"")]
    return [_kind(event) for event in said]


def _kind(event: bytes) -> tuple[str, bytes]:
    return ("error" if isinstance(event, ErrorData) else "data"), bytes(event)


def parse_in_every_way(body: bytes, limit: int = MAX_EVENT_BYTES) -> Said:
    """The result, which must be the same however the bytes are cut, and the reference's."""
    whole = parse(body, limit=limit)
    assert parse(*(body[at : at + 1] for at in range(len(body))), limit=limit) == whole
    for at in range(len(body) + 1):
        assert parse(body[:at], body[at:], limit=limit) == whole
        assert parse(body[:at], b"", body[at : at + 1], body[at + 1 :], limit=limit) == whole
    slow = [
        ("too large" if event.too_large else "error" if event.error else "data", event.data)
        for event in reference.events(body, limit)
    ]
    assert slow == whole
    return whole


A = ("data", b"a")
B = ("data", b"b")

CASES: dict[str, tuple[bytes, Said]] = {
    "nothing": (b"", []),
    "LF": (b"data: a\n\n", [A]),
    "CR": (b"data: a\r\r", [A]),
    "CRLF": (b"data: a\r\n\r\n", [A]),
    "mixed line ends": (b"data: a\r\n\rdata: b\n\r\n", [A, B]),
    "LF CR is two line ends": (b"data: a\n\rdata: b\n\n", [A, B]),
    "two in a row": (b"data: a\n\ndata: b\n\n", [A, B]),
    "many blank lines": (b"\n\n\ndata: a\n\n\n\n\ndata: b\n\n\n", [A, B]),
    "without the last blank line": (b"data: a\n\ndata: b\n", [A]),
    "without any line end": (b"data: a", []),
    "no blank after the colon": (b"data:a\n\n", [A]),
    "two blanks after the colon": (b"data:  a\n\n", [("data", b" a")]),
    "a tab is no blank": (b"data:\ta\n\n", [("data", b"\ta")]),
    "colons in the value": (b"data: a:b: c\n\n", [("data", b"a:b: c")]),
    "two lines": (b"data: a\ndata: b\n\n", [("data", b"a\nb")]),
    "two lines of two styles": (b"data: a\rdata:b\r\n\n", [("data", b"a\nb")]),
    "an empty line of data between": (b"data: a\ndata\ndata: b\n\n", [("data", b"a\n\nb")]),
    "empty data": (b"data\n\n", [("data", b"")]),
    "empty data with a colon": (b"data:\n\n", [("data", b"")]),
    "empty data with a blank": (b"data: \n\n", [("data", b"")]),
    "two empty lines of data": (b"data\ndata\n\n", [("data", b"\n")]),
    "byte order mark": (b"\xef\xbb\xbfdata: a\n\n", [A]),
    "two byte order marks": (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", [B]),
    "byte order mark later": (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [A]),
    "part of a byte order mark": (b"\xef\xbbdata: a\n\ndata: b\n\n", [B]),
    "a byte order mark alone": (b"\xef\xbb\xbf", []),
    "two thirds of a byte order mark": (b"\xef\xbb", []),
    "byte order mark and CRLF": (b"\xef\xbb\xbf\r\ndata: a\r\n\r\n", [A]),
    "comment": (b": x\n\ndata: a\n\n", [A]),
    "bare colon": (b":\n:\n\ndata: a\n\n", [A]),
    "comment inside": (b"data: a\n: x\ndata: b\n\n", [("data", b"a\nb")]),
    "comment that looks like data": (b":data: x\n\n", []),
    "id": (b"id: x\ndata: a\nid\n\n", [A]),
    "retry": (b"retry: 1\n\ndata: a\nretry: x\n\n", [A]),
    "unknown field": (b"x: y\ndata: a\nz\n\n", [A]),
    "field with a blank before": (b" data: a\n\n", []),
    "field with a blank before the colon": (b"data : a\n\n", []),
    "field in capitals": (b"DATA: a\n\n", []),
    "longer field": (b"datax: a\n\ndata2: a\n\n", []),
    "event of a type": (b"event: message\ndata: a\n\n", [A]),
    "event without data": (b"event: x\n\ndata: a\n\n", [A]),
    "error event": (b"event: error\ndata: a\n\n", [("error", b"a")]),
    "error event, the type last": (b"data: a\nevent:error\n\n", [("error", b"a")]),
    "error event without data": (b"event: error\n\ndata: a\n\n", [A]),
    "error type taken back": (b"event: error\nevent: x\ndata: a\n\n", [A]),
    "error type taken back by nothing": (b"event: error\nevent\ndata: a\n\n", [A]),
    "error type of one event only": (b"event: error\ndata: a\n\ndata: b\n\n", [("error", b"a"), B]),
    "another error type": (b"event: errors\ndata: a\n\nevent:  error\ndata: b\n\n", [A, B]),
    "error event of two lines": (b"event: error\ndata: a\ndata: b\n\n", [("error", b"a\nb")]),
    "bare error line": (b"error: a\n", [("error", b"a")]),
    "bare error line in an event": (b"data: b\nerror: a\n\n", [("error", b"a"), B]),
    "bare error without a value": (b"error\n", [("error", b"")]),
    "bare error that is not ended": (b"error: a", []),
    "separators of other standards": (
        "data: a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\x1dh\x1ei\n\n".encode(),
        [("data", "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\x1dh\x1ei".encode())],
    ),
    "bytes that are not UTF-8": (b"data: \xff\x00\xc3\n\n", [("data", b"\xff\x00\xc3")]),
    "done": (b"data: [DONE]\n\n", [("data", b"[DONE]")]),
}


@pytest.mark.parametrize(("body", "said"), CASES.values(), ids=CASES.keys())
def test_grammar(body: bytes, said: Said) -> None:
    assert parse_in_every_way(body) == said


@pytest.mark.parametrize("name", corpus.STREAMS)
def test_recordings(name: str) -> None:
    _, _, body = split(corpus.raw(name))
    whole = parse(body)
    assert whole
    assert parse(*(body[at : at + 1] for at in range(len(body)))) == whole
    assert parse(body.replace(b"\n", b"\r\n")) == whole
    assert parse(body.replace(b"\n", b"\r")) == whole
    assert [event.data for event in reference.events(body)] == [data for _, data in whole]


LINES = [b"data: a", b"data:b", b"data", b": c", b"event: error", b"event: x", b"error: e", b"id: i", b"\xef\xbb\xbf"]
ENDS = [b"\n", b"\r", b"\r\n", b"\n\n", b""]


@given(st.lists(st.sampled_from([*LINES, *ENDS]), max_size=14), st.lists(st.integers(0, 80), max_size=5))
def test_any_stream_cut_anywhere(pieces: list[bytes], places: list[int]) -> None:
    body = b"".join(pieces)
    places = sorted(min(place, len(body)) for place in places)
    cut = [body[a:b] for a, b in zip([0, *places], [*places, len(body)], strict=True)]
    whole = parse(body)
    assert parse(*cut) == whole
    assert [(event.error, event.data) for event in reference.events(body)] == [
        (k == "error", data) for k, data in whole
    ]


def test_each_event_comes_as_soon_as_it_is_whole() -> None:
    parser = EventParser()
    for end in (b"\n", b"\r\n", b"\r"):
        assert parser.feed(b"data: a" + end) == []
        assert parser.feed(end[:1]) == [b"a"]
        assert parser.feed(end[1:]) == []


# Sizes

LIMIT = 32
BIG = b"data: " + b"a" * 26  # 32 bytes


SIZES: dict[str, tuple[bytes, Said]] = {
    "at the limit": (BIG + b"\n\n", [("data", b"a" * 26)]),
    "at the limit in CRLF": (BIG + b"\r\n\r\n", [("data", b"a" * 26)]),
    "at the limit, twice": ((BIG + b"\n\n") * 2, [("data", b"a" * 26)] * 2),
    "one over": (BIG + b"a\n\n", [("too large", b"")]),
    "one over without an end": (BIG + b"a", [("too large", b"")]),
    "what was whole before it is kept": (
        b"data: a\n\nevent: error\ndata: b\n\n" + BIG + b"a\n\n",
        [A, ("error", b"b"), ("too large", b"")],
    ),
    "what was whole before it is kept, plainly": (b"data: a\n\ndata: b\n\n" + BIG + b"a", [A, B, ("too large", b"")]),
    "an error line before it is kept": (b"error: a\n" + BIG + b"\n\n", [("error", b"a"), ("too large", b"")]),
    "several lines together": (b"data: aaaaaaaaa\ndata: bbbbbbbbb\ndata\n\n", [("too large", b"")]),
    "several lines at the limit": (b"data: aaaaaaaaa\ndata: bbbbbbbbbb\n\n", [("data", b"aaaaaaaaa\nbbbbbbbbbb")]),
    "lines of no use count": (b"id: aaaaaaaaaaaa\nid: bbbbbbbbbbbbb\n", [("too large", b"")]),
    "comments do not": (b": aaaaaaaaaaaaaaaaaaaaaaaa\n" * 9 + b"data: a\n\n", [A]),
    "comments inside an event do not": (b"data: a\n" + b": aaaaaaaaaaaaaa\n" * 9 + b"\n", [A]),
    "a long comment": (b":" + b"a" * 32 + b"\n", [("too large", b"")]),
    "blank lines do not": (b"\n" * 99 + b"data: a\n\n", [A]),
}


@pytest.mark.parametrize(("body", "said"), SIZES.values(), ids=SIZES.keys())
def test_sizes(body: bytes, said: Said) -> None:
    assert parse_in_every_way(body, LIMIT) == said


def test_one_mebibyte_is_the_limit() -> None:
    body = b"data: " + b"a" * (MAX_EVENT_BYTES - 6)
    assert parse(body + b"\n\n") == [("data", body[6:])]
    assert parse(body, b"\n", b"\n") == [("data", body[6:])]
    assert parse(body + b"a\n\n") == [("too large", b"")]
    assert parse(body, b"a") == [("too large", b"")]


def _cost(*pieces: bytes, times: int = 3) -> float:
    def feed() -> None:
        parser = EventParser()
        for piece in pieces:
            parser.feed(piece)

    return cost(feed, times)


def test_a_line_in_a_million_pieces_costs_the_same_for_each() -> None:
    # Joining anew would move 2^39 bytes.
    assert _cost(*[b"a"] * (MAX_EVENT_BYTES - 1), times=1) < 3


@pytest.mark.parametrize(
    "unit",
    [b"\n", b"\r", b"\r\n", b":\n", b":\r", b"id\n", b"data\n\n", b"error\n", b"data:{}\n\n", b"data: {}\r\n\r\n"],
    ids=repr,
)
def test_no_read_of_small_lines_holds_the_loop(unit: bytes) -> None:
    # One read brings at most 256 000 bytes; others wait for so long.
    assert _cost((unit * (256_000 // len(unit) + 1))[:256_000]) < 0.05


# The usual read


@pytest.mark.parametrize("data", [b"", b"a", b" a", b": a", '{"a":"\u2028"}'.encode(), b"x" * 1000])
def test_the_usual_read_is_one_event(data: bytes) -> None:
    assert whole_event(b"data: " + data + b"\n\n") == data


@pytest.mark.parametrize(
    "read",
    [
        b"",
        b"\n",
        b"\n\n",
        b"data: ",
        b"data: a",
        b"data: a\n",
        b"data: a\n\n\n",
        b"data: a\nb",
        b"data: a\n\ndata: b\n\n",
        b"data: a\ndata: b\n\n",
        b"data: a\r\n\r\n",
        b"data: a\rdata: b\n\n",
        b"data:a\n\n",
        b"error: a\n\n",
        b": a\n\n",
        b"data: " + b"x" * MAX_EVENT_BYTES + b"\n\n",
    ],
    ids=lambda read: repr(read[:20]),
)
def test_another_read_is_for_the_parser(read: bytes) -> None:
    assert whole_event(read) is None


def test_only_between_events_it_may_be_asked() -> None:
    parser = EventParser()
    assert not parser.is_between_events  # a byte order mark may come
    for piece, between in [
        (b"data: a\n\n", True),
        (b"data: a", False),
        (b"\n", False),
        (b"\n", True),
        (b"data: a\r\r", False),  # an LF that comes next belongs to the CR
        (b"\n", True),
        (b"event: error\n", False),
        (b"data: a\n\n", True),
    ]:
        parser.feed(piece)
        assert parser.is_between_events is between, piece
