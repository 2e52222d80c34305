"""Mend broken Unicode in the events of one stream, and join what was cut between two of them.

Model servers turn tokens into text one by one, and a token may end in the middle of a character. Some send the bytes
as they are (m5stack/StackFlow#7, unslothai/llama.cpp#202), some escape each half of a surrogate pair by itself
(elie222/rakazo#416). JSON decoders refuse both, so `repair` makes the event decodable first. Inside a string it
replaces broken parts by U+FFFD; at the edge of a string, where the next event may hold the rest, it writes them as
marks. `Seams` reads the marks and joins the pieces.

Marks are noncharacters (Unicode 23.7), which text for interchange does not contain: U+FDD0 plus a hexadecimal digit
for half a byte, U+FDE0 plus a digit for a quarter of a surrogate. An event that already has one gets no marks.
"""

import codecs
import re
from collections.abc import Hashable

_BYTE_MARKS, _SURROGATE_MARKS = 0xFDD0, 0xFDE0
_MARK = re.compile(r"[\ufdd0-\ufdef]|\\u[fF][dD][dDeE]")
_RUN = re.compile("[\ufdd0-\ufddf]+|[\ufde0-\ufdef]+")
_MAX_MARKS = 64
"""The most edges marked in one event. Every mark costs a call, and an honest event has one or two strings."""
_MAX_MARKED_BYTES = 128 * 1024
"""A longer event is no single token, so the next event does not continue it, and it gets no marks."""

# `surrogateescape` turns a byte that is not UTF-8 into U+DC80 to U+DCFF.
_BYTES_AT_EDGE = re.compile('[\udc80-\udcff]{1,3}(?=")|(?<=")[\udc80-\udcff]{1,3}')
_HIGH, _LOW = r"\\u[dD][89abAB][0-9a-fA-F]{2}", r"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_HALF_AT_EDGE = re.compile(rf'{_HIGH}(?=")|(?<="){_LOW}')
_LONE_HALF = re.compile(rf"{_HIGH}(?!{_LOW})|(?<!{_HIGH}){_LOW}")


def repair(data: bytes) -> tuple[bytes, bool] | None:
    """Return the data with valid UTF-8 and no lone half of a surrogate pair, and whether it may have marks.

    None when there is nothing to mend. Every step is one pass in C, so a megabyte takes milliseconds.
    """
    if b"\0" in data or (data.isascii() and b"\\u" not in data):
        return None
    text = data.decode("utf-8", "surrogateescape")
    marked = len(data) <= _MAX_MARKED_BYTES and not _MARK.search(text)
    if marked:
        text = _BYTES_AT_EDGE.sub(_mark_bytes, text, _MAX_MARKS)
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if "\\ud" in text or "\\uD" in text:
        text = text.replace("\\\\", "\0\0")  # an escaped backslash begins no other escape
        if marked:
            text = _HALF_AT_EDGE.sub(_mark_half, text, _MAX_MARKS)
        text = _LONE_HALF.sub(r"\\ufffd", text).replace("\0\0", "\\\\")
    return text.encode(), marked


def _mark_bytes(found: re.Match[str]) -> str:
    return "".join(chr(_BYTE_MARKS + int(digit, 16)) for digit in found[0].encode("utf-8", "surrogateescape").hex())


def _mark_half(found: re.Match[str]) -> str:
    return "".join(chr(_SURROGATE_MARKS + int(digit, 16)) for digit in found[0][2:])


class Seams:
    """The incomplete characters of one stream, each under the key of the string that it continues."""

    __slots__ = ("_incomplete",)

    def __init__(self) -> None:
        self._incomplete: dict[Hashable, str] = {}

    def __bool__(self) -> bool:
        """Return whether the beginning of a character waits for its rest."""
        return bool(self._incomplete)

    def join(self, key: Hashable, text: str, marked: bool) -> str:
        """Return the text without marks, preceded by what waited under its key.

        An incomplete character at its end is kept back for the next text with that key.
        """
        beginning = self._incomplete.pop(key, "")
        if not marked:
            return _unmark(beginning)[0] + text if beginning else text
        text, rest = _unmark(beginning + text, final=False)
        if rest:
            self._incomplete[key] = rest
        return text

    def close(self) -> dict[Hashable, str]:
        """Return the incomplete characters that still wait, as U+FFFD, by key."""
        rest = {key: _unmark(beginning)[0] for key, beginning in self._incomplete.items()}
        self._incomplete.clear()
        return rest


def unmark(text: str) -> str:
    """Return a text without marks; an incomplete character at its end becomes U+FFFD."""
    return _unmark(text)[0]


def _unmark(text: str, final: bool = True) -> tuple[str, str]:
    """Return the text with each run of marks turned back into its characters, and the marks that are left over.

    Left over are marks at the end of the text that are only the beginning of a character. When the text is `final`
    none are left: such a beginning becomes U+FFFD.
    """
    parts: list[str] = []
    at = 0
    rest = ""
    for run in _RUN.finditer(text):
        is_last = final or run.end() < len(text)
        digits = "".join(f"{ord(mark) & 15:x}" for mark in run[0])
        if ord(run[0][0]) < _SURROGATE_MARKS:
            read, taken = codecs.utf_8_decode(bytes.fromhex(digits), "replace", is_last)
        else:
            read, taken = codecs.utf_16_be_decode(bytes.fromhex(digits), "replace", is_last)
        parts += (text[at : run.start()], read)
        at = run.end()
        rest = run[0][2 * taken :]  # two marks for each byte; only the last run leaves any
    parts.append(text[at:])
    return "".join(parts), rest
