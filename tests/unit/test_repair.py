"""Broken Unicode is mended, and what was cut over two events is joined."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from eidproxy.relay.repair import Seams, repair, unmark


def content(data: bytes) -> tuple[str, bool]:
    """The content of an event as the decoder finds it, mended if need be, and whether it has marks."""
    text, marked = repair(data) or (data, False)
    found = json.loads(text)["c"]
    assert isinstance(found, str)
    return found, marked


def event(content: bytes) -> bytes:
    return b'{"c":"' + content + b'"}'


def joined(*contents: bytes) -> str:
    """What a caller is told of contents that come in events of their own."""
    seams = Seams()
    texts = [seams.join("c", *content(event(each))) for each in contents]
    return "".join(texts) + seams.close().get("c", "")


@pytest.mark.parametrize("data", [b"", b"{}", b'{"c":"plain"}', b'{"c":"\\n"}', b"\0\xff", b'{"c":"\\uD83D\0"}'])
def test_nothing_to_mend(data: bytes) -> None:
    assert repair(data) is None


SOUND = {
    "letters": "일상 café".encode(),
    "a pair of escapes": rb"\ud83d\ude00",
    "an escaped backslash before something like a half": rb"\\ud83d",
    "an escaped quote": rb"\"\u00e9\"",
    "pairs and an escaped backslash": rb"\\\ud83d\ude00\\ude00",
}


@pytest.mark.parametrize("inside", SOUND.values(), ids=SOUND.keys())
def test_what_is_sound_stays_as_it_is(inside: bytes) -> None:
    mended = repair(event(inside))
    assert mended is None or mended[0] == event(inside)
    assert joined(inside) == json.loads(event(inside))["c"]


BROKEN = {
    "a byte": (b"a\xffb", "a\ufffdb"),
    "a byte at each edge": (b"\xffa\xff", "\ufffda\ufffd"),
    "a cut character inside": (b"a\xec\x8bb", "a\ufffdb"),
    "a high half inside": (rb"a\ud83db", "a\ufffdb"),
    "a low half inside": (rb"a\udc00b", "a\ufffdb"),
    "two high halves and a low one": (rb"a\uD83D\uD83D\uDE00b", "a\ufffd😀b"),
    "a high half and two low ones": (rb"a\ud83d\ude00\ude00b", "a😀\ufffdb"),
    "a half behind an escaped backslash": (rb"a\\\ud83db", "a\\\ufffdb"),
    "a half before an escaped quote": (rb"a\ud83d\"b", 'a\ufffd"b'),
    "a half at the end": (rb"a\ud83d", "a\ufffd"),
    "a half at the beginning": (rb"\ude00a", "\ufffda"),
    "bytes and halves": (b"\xe2\x82 \\ud83d", "\ufffd \ufffd"),
}


@pytest.mark.parametrize(("inside", "text"), BROKEN.values(), ids=BROKEN.keys())
def test_what_is_broken_is_mended_where_it_is(inside: bytes, text: str) -> None:
    assert joined(inside) == text
    assert joined(b"", inside, b"") == text  # and nothing is joined with an empty text


@pytest.mark.parametrize("character", ["é", "씨", "😀"])
def test_the_bytes_of_one_character_are_joined_wherever_they_are_cut(character: str) -> None:
    data = character.encode()
    for at in range(1, len(data)):
        assert joined(b"a" + data[:at], data[at:] + b"b") == f"a{character}b"
    assert joined(*(data[at : at + 1] for at in range(len(data)))) == character


def test_halves_are_joined() -> None:
    assert joined(rb"Nice \ud83d", rb"\ude00 day", b"!") == "Nice 😀 day!"
    assert joined(rb"\ud83d", rb"\ude00\ud83d", rb"\ude01") == "😀😁"


def test_what_does_not_fit_together_is_not_joined() -> None:
    assert joined(rb"a\ud83d", b"b") == "a\ufffdb"
    assert joined(rb"a\ud83d", rb"\ud83d\ude00b") == "a\ufffd😀b"
    assert joined(rb"a\ud83d", b"\x98\x80b") == "a\ufffd\ufffd\ufffdb"
    assert joined(b"a\xec\x8b", b"b\xff") == "a\ufffdb\ufffd"
    assert joined(b"a\xec", b"\xff") == "a\ufffd\ufffd"


def test_texts_of_their_own_keys() -> None:
    seams = Seams()
    assert not seams
    assert seams.join("content", *content(event(rb"a\ud83d"))) == "a"
    assert seams
    assert seams.join("reasoning", *content(event(rb"\ude00"))) == "\ufffd"
    assert seams.join("content", *content(event(rb"\ude00"))) == "😀"
    assert seams.join(0, *content(event(b"\xec"))) == ""
    assert seams.close() == {0: "\ufffd"}
    assert not seams


def test_a_text_with_the_same_characters_as_marks_is_a_text() -> None:
    for nonsense in ("\ufdd3".encode(), rb"\ufdD3", "\ufdef".encode()):
        text = json.loads(event(nonsense))["c"]
        assert joined(nonsense) == text
        assert joined(rb"\ud83d", nonsense + rb"\ud83d") == f"\ufffd{text}\ufffd"


def test_a_text_that_nothing_continues() -> None:
    text, marked = content(event(rb"call\ud83d"))
    assert marked
    assert unmark(text) == "call\ufffd"


def test_a_long_event_is_mended_without_marks() -> None:
    text, marked = content(event(b"a" * 200_000 + rb"\ud83d"))
    assert not marked
    assert text.endswith("a\ufffd")


@pytest.mark.parametrize("broken", [b"\xff", rb"\ud83d"])
def test_many_edges_are_bounded(broken: bytes) -> None:
    """Each mark costs a call of Python: the rest of an event that is full of them is mended in C."""
    data, marked = repair(b"[" + b",".join([b'"' + broken + b'"'] * 1000) + b"]") or (b"", False)
    assert marked
    texts = [unmark(text) for text in json.loads(data)]
    assert texts == ["\ufffd"] * 1000
    marks = [text for text in json.loads(data) if "\ufdd0" <= text[0] <= "\ufdef"]
    assert 0 < len(marks) <= 64


def test_every_cut_of_a_text() -> None:
    text = "é씨😀 a"
    data = text.encode()
    for first, second in pairwise([0, *range(len(data)), len(data)]):
        assert joined(data[:first], data[first:second], data[second:]) == text
