"""Tool calls are told apart, numbered in the order in which they begin, and nothing of them is merged or lost."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from eidproxy.relay.dialect import RouterCall, TooManyItems
from eidproxy.relay.repair import Seams, repair
from eidproxy.relay.tool_calls import ToolCalls

Piece = dict[str, Any]


def piece(name: str | None = None, arguments: str | None = None, **rest: Any) -> Piece:
    return {**rest, "function": {"name": name, "arguments": arguments}}


def passed(*events: list[Piece]) -> list[dict[str, Any]]:
    """The pieces that the caller gets for these events."""
    calls, seams, found = ToolCalls("r"), Seams(), []
    for event in events:
        found += calls.read(msgspec.convert(event, list[RouterCall]), seams, marked=False)
    told: list[dict[str, Any]] = msgspec.to_builtins(found)
    return told


def whole(*events: list[Piece]) -> list[tuple[str, str, str]]:
    """Id, name and arguments of each call, put together by number as SDKs do."""
    calls: dict[int, list[str]] = {}
    for told in passed(*events):
        function = told["function"]
        if "id" in told:
            assert told["type"] == "function"
            assert told["index"] == len(calls), "numbered from 0 in the order in which they begin"
            calls[told["index"]] = [told["id"], function["name"], ""]
        else:
            assert (set(told), set(function)) == ({"index", "function"}, {"arguments"}), "SDKs join what repeats"
        calls[told["index"]][2] += function["arguments"]
    return [(id, name, arguments) for id, name, arguments in calls.values()]


A, B = ("a", "f", "{}"), ("b", "g", "[]")

APART: dict[str, tuple[list[list[Piece]], list[tuple[str, str, str]]]] = {
    "as OpenAI sends them": (
        [
            [piece("f", "", index=0, id="a")],
            [piece(None, "{", index=0)],
            [piece(None, "}", index=0)],
            [piece("g", "", index=1, id="b")],
            [piece(None, "[]", index=1)],
        ],
        [A, B],
    ),
    "both in one event": ([[piece("f", "{}", index=0, id="a"), piece("g", "[]", index=1, id="b")]], [A, B]),
    "one index (ollama/ollama#15457)": (
        [[piece("f", "{}", index=0, id="a")], [piece("g", "[", index=0, id="b")], [piece(None, "]", index=0)]],
        [A, B],
    ),
    "no index (ollama/ollama#7881)": (
        [[piece("f", "{", id="a")], [piece(None, "}")], [piece("g", "[", id="b")], [piece(None, "]")]],
        [A, B],
    ),
    "an index that begins at 1": ([[piece("f", "{}", index=1, id="a")], [piece("g", "[]", index=5, id="b")]], [A, B]),
    "in turns": (
        [
            [piece("f", "{", index=0, id="a"), piece("g", "[", index=1, id="b")],
            [piece(None, "}", index=0), piece(None, "]", index=1)],
        ],
        [A, B],
    ),
    "in turns, by id alone": (
        [[piece("f", "{", id="a"), piece("g", "[", id="b")], [piece(None, "}", id="a"), piece(None, "]", id="b")]],
        [A, B],
    ),
    "id and name in each piece": (
        [[piece("f", "{", index=0, id="a")], [piece("f", "}", index=0, id="a")]],
        [A],
    ),
    "a new id in each piece, the name in the first (cubist38/mlx-openai-server#216)": (
        [[piece("f", "{", index=0, id="a")], [piece(None, "}", index=0, id="z")]],
        [A],
    ),
    "without an id": ([[piece("f", "{", index=0)], [piece(None, "}", index=0)]], [("call_r_0", "f", "{}")]),
    "with an empty id": ([[piece("f", "{}", index=0, id="")]], [("call_r_0", "f", "{}")]),
    "the name in each piece, no id": (
        [[piece("f", "{", index=0)], [piece("f", "}", index=0)]],
        [("call_r_0", "f", "{}")],
    ),
    "two of one name and index, no ids, each whole": (
        [[piece("f", "{}", index=0)], [piece("f", "{}", index=0)]],
        [("call_r_0", "f", "{}"), ("call_r_1", "f", "{}")],
    ),
    "two names under one index, no ids": (
        [[piece("f", "{}", index=0)], [piece("g", "[]", index=0)]],
        [("call_r_0", "f", "{}"), ("call_r_1", "g", "[]")],
    ),
    "two names, no ids, no index": (
        [[piece("f", "{}")], [piece("f", "{}")]],
        [("call_r_0", "f", "{}"), ("call_r_1", "f", "{}")],
    ),
    "the name in each piece, no id, no index": (
        [[piece("f", "{")], [piece("f", "}")], [piece("g", "[")], [piece("g", "]")]],
        [("call_r_0", "f", "{}"), ("call_r_1", "g", "[]")],
    ),
    "the name in each piece, an id in the first, no index": (
        [[piece("f", "{", id="a")], [piece("f", "}")], [piece("f", "[]")]],
        [A, ("call_r_1", "f", "[]")],
    ),
    "an id before its name": (
        [[piece("f", "{}", index=0, id="a")], [piece(None, "", index=1, id="b")], [piece("f", "[]", index=1)]],
        [A, ("call_r_1", "f", "[]")],
    ),
    "the name again without its id": ([[piece("f", "{", index=0, id="a")], [piece("f", "}", index=0)]], [A]),
    "one id for two names": (
        [[piece("f", "{}", index=0, id="a")], [piece("g", "[]", index=1, id="a")]],
        [A, ("call_r_1", "g", "[]")],
    ),
    "a piece of an index that never began": ([[piece("f", "{", index=0, id="a")], [piece(None, "}", index=3)]], [A]),
    "an index that comes later": (
        [
            [piece("f", "{", id="a"), piece("g", "[]", id="b")],
            [piece(None, "", index=3, id="a")],
            [piece(None, "}", index=3)],
        ],
        [A, B],
    ),
    "an index that comes with the arguments": (
        [
            [piece("f", "", id="a")],
            [piece(None, "{", index=0)],
            [piece("g", "[]", id="b")],
            [piece(None, "}", index=0)],
        ],
        [A, B],
    ),
    "a piece of no call before one": ([[piece(None, "{}", index=0), piece("f", "{}", index=0, id="a")]], [A]),
    "a name alone": ([[piece("f", None, index=0, id="a")]], [("a", "f", "")]),
}


@pytest.mark.parametrize(("events", "wanted"), APART.values(), ids=APART.keys())
def test_calls_are_told_apart(events: list[list[Piece]], wanted: list[tuple[str, str, str]]) -> None:
    assert whole(*events) == wanted


def test_a_piece_that_belongs_to_no_call_is_left_out() -> None:
    assert passed([piece(None, "{}", index=0)], [{"index": 0}], [{"id": "a"}]) == []


def test_a_piece_that_says_nothing_is_left_out() -> None:
    assert len(passed([piece("f", "{}", index=0, id="a")], [piece(None, "", index=0)], [{"index": 0}])) == 1


def test_characters_that_were_cut_are_joined_for_each_call() -> None:
    calls, seams, found = ToolCalls("r"), Seams(), ""
    for name, arguments in (("f", rb"\ud83d"), (None, rb"\ude00!")):
        said = b"null" if name is None else b'"f"'
        data, marked = repair(b'[{"id":"a","function":{"name":' + said + b',"arguments":"' + arguments + b'"}}]') or (
            b"",
            0,
        )
        for call in calls.read(msgspec.json.decode(data, type=list[RouterCall]), seams, bool(marked)):
            assert call.function is not None
            found += call.function.arguments or ""
    assert found == "😀!"


def test_a_half_of_a_character_waits_behind_a_piece_that_says_nothing() -> None:
    calls, seams = ToolCalls("r"), Seams()
    data, marked = repair(rb'[{"id":"a","function":{"name":"f","arguments":"\ud83d"}}]') or (b"", False)
    calls.read(msgspec.json.decode(data, type=list[RouterCall]), seams, marked)
    assert calls.read([RouterCall(None, "a")], seams, marked=False) == []
    data, marked = repair(rb'[{"id":"a","function":{"arguments":"\ude00"}}]') or (b"", False)
    (rest,) = calls.read(msgspec.json.decode(data, type=list[RouterCall]), seams, marked)
    assert rest.function is not None
    assert rest.function.arguments == "😀"


def test_a_broken_id_or_name_is_mended_and_no_mark_comes_through() -> None:
    data, marked = repair(rb'[{"id":"a\ud83d","function":{"name":"f\ud83d"}}]') or (b"", False)
    (call,) = ToolCalls("r").read(msgspec.json.decode(data, type=list[RouterCall]), Seams(), marked)
    assert call.function is not None
    assert (call.id, call.function.name) == ("a\ufffd", "f\ufffd")


def test_one_event_has_no_more_pieces_than_any_answer() -> None:
    with pytest.raises(TooManyItems):
        passed([piece("f", "{}", index=0, id="a")] * 4097)


def test_long_arguments_pass_whole() -> None:
    """Those of a call without id or index are kept to see whether they are complete, but not without end."""
    text = "a" * 30_000
    pieces = [[piece("f", '{"x":"')], *[[piece(None, text)] for _ in range(9)], [piece(None, '"}')]]
    assert whole(*pieces) == [("call_r_0", "f", '{"x":"' + 9 * text + '"}')]


def test_an_answer_has_no_more_calls_than_any_answer() -> None:
    calls, seams = ToolCalls("r"), Seams()
    begin = msgspec.convert([piece("f", "{}")], list[RouterCall])
    for _ in range(1024):
        calls.read(begin, seams, marked=False)
    with pytest.raises(TooManyItems):
        calls.read(begin, seams, marked=False)


def test_arguments_are_not_looked_through_without_end() -> None:
    """A name that is repeated without an id asks each time whether the call is complete."""
    began = piece("f", "[" + "1," * 30_000, index=0)
    assert len(whole([began], *[[piece("f", index=0)] * 4096] * 20)) == 1
