"""The request's edge: the named variants of `tests/fuzz/requests.py`, and what they leave open."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, ClassVar

import pytest

from eidproxy.errors import Refusal
from eidproxy.inbound import http1
from eidproxy.inbound.http1 import MAX_HEAD_BYTES, ChunkedBody, RequestHead, check_partial_head, parse_head
from tests.fuzz import requests
from tests.fuzz.requests import INCOMPLETE, VARIANTS, Reading, read
from tests.lab.cost import cost


def test_there_are_many_variants() -> None:
    assert len(VARIANTS) >= 200


@pytest.mark.parametrize(("data", "verdict"), VARIANTS.values(), ids=VARIANTS.keys())
def test_a_variant_has_one_reading(data: bytes, verdict: Reading | str) -> None:
    assert read([data]) == verdict


@pytest.mark.parametrize(("data", "verdict"), VARIANTS.values(), ids=VARIANTS.keys())
def test_a_variant_has_the_same_reading_byte_by_byte(data: bytes, verdict: Reading | str) -> None:
    got = read([data[at : at + 1] for at in range(len(data))])
    if isinstance(verdict, Reading):
        # Answered before the bytes behind it have come.
        assert got == verdict._replace(surplus=False)
    else:
        assert got == verdict


@pytest.mark.parametrize(("data", "verdict"), VARIANTS.values(), ids=VARIANTS.keys())
def test_the_slow_reader_accepts_the_same(data: bytes, verdict: Reading | str) -> None:
    slow = requests.slow(data)
    if isinstance(verdict, Reading):
        assert slow == verdict
    else:
        assert isinstance(slow, str)
        assert verdict != INCOMPLETE or slow == INCOMPLETE


# The head


def head(*fields: bytes, line: bytes = b"GET /x HTTP/1.1", host: bytes = b"Host: localhost") -> RequestHead:
    return parse_head(b"\r\n".join([line, host, *fields, b"", b""]))


def test_what_a_head_says() -> None:
    found = head(
        b"X-Request-Id:  a b\t",
        b"Content-Length: 7",
        b"expect: 100-CONTINUE",
        line=b"PUT /a/%2F?b=c&d HTTP/1.1",
        host=b"hOST: LocalHost:80",
    )
    assert found.method == "PUT"
    assert found.path == "/a/%2F"
    assert found.query == "b=c&d"
    assert found.host == "localhost"
    assert found.headers[b"x-request-id"] == b"a b"
    assert found.repeated == frozenset()
    assert (found.content_length, found.chunked, found.expects_continue) == (7, False, True)


def test_a_plain_head() -> None:
    found = head()
    assert (found.content_length, found.chunked, found.expects_continue, found.keep_alive) == (0, False, False, True)
    assert found.query == ""
    assert head(b"Transfer-Encoding: chunked").chunked


def test_fields_given_more_than_once_are_one_list() -> None:
    found = head(b"Accept: a", b"ACCEPT: b", b"X: 1", b"accept:")
    assert found.headers[b"accept"] == b"a, b, "
    assert found.repeated == {b"accept"}


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ([], True),
        ([b"Connection: keep-alive"], True),
        ([b"Connection: close"], False),
        ([b"Connection: CLOSE"], False),
        ([b"Connection: keep-alive, close"], False),
        ([b"Connection: close,keep-alive"], False),
        ([b"Connection: close", b"Connection: keep-alive"], False),
        ([b"Connection:", b"Connection:\tclose"], False),
        ([b"Connection: not-close"], True),
        ([b"Connection: closed"], True),
    ],
)
def test_close_is_a_word_of_the_list(fields: list[bytes], kept: bool) -> None:
    assert head(*fields).keep_alive is kept


@pytest.mark.parametrize(
    ("value", "host"),
    [
        (b"localhost", "localhost"),
        (b"LOCALHOST:1", "localhost"),
        (b"localhost:", "localhost"),
        (b"localhost:999999999", "localhost"),
        (b"localhost.", "localhost."),
        (b"[::1]", "[::1]"),
        (b"[FD00::1]:80", "[fd00::1]"),
        (b"127.0.0.1:8790", "127.0.0.1"),
        (b"my_service", "my_service"),
        (b"%6cocalhost", "%6cocalhost"),
        (b"a,b", "a,b"),
        (b"", ""),
        (b":80", ""),
    ],
)
def test_a_host_is_taken_as_it_stands(value: bytes, host: str) -> None:
    assert head(host=b"Host: " + value).host == host


def test_values_keep_their_letters_and_a_chunked_body_has_no_length() -> None:
    found = head(b"X-Name: XaX", b"Transfer-Encoding: chunked", line=b"POST /x HTTP/1.1")
    assert found.headers[b"x-name"] == b"XaX"
    assert (found.content_length, found.chunked) == (0, True)


def test_a_host_is_percent_encoded_or_refused() -> None:
    with pytest.raises(Refusal, match="invalid_request"):
        head(host=b"Host: a%zz")


def test_a_length_of_18_digits_is_a_number() -> None:
    assert head(b"Content-Length: 0" + b"9" * 18).content_length == 10**18 - 1


def test_a_head_over_the_limit_is_refused_whole_too() -> None:
    with pytest.raises(Refusal, match=r"\Aheaders_too_large\Z"):
        head(b"X: " + b"a" * MAX_HEAD_BYTES)


def test_the_cause_of_a_refusal_holds_no_bytes() -> None:
    for data in (b"GET / HTTP/1.1\r\nHost: canary @\r\n\r\n", b"GET /\xff HTTP/1.1\r\n\r\n", b"canary\r\n\r\n"):
        with pytest.raises(Refusal) as caught:
            parse_head(data)
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None
        assert caught.value.args == ("invalid_request",)


# A head that is not whole


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"\n",
        b"\x16\x03\x01",
        b"GET / HTTP/1.0\r\n",
        b"GET http://x/ HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\n",
        b"GET / HTTP/1.1\n",
        b"GET / HTTP/1.1\r\nX: a\nY",
        b"GET / HTTP/1.1\r\nX: a\rY",
        b"GET / HTTP/1.1\r\nX: a\x00",
    ],
)
def test_a_hopeless_head_is_refused_at_its_last_byte(data: bytes) -> None:
    with pytest.raises(Refusal, match="invalid_request"):
        check_partial_head(data, 0)
    buffer = bytearray()
    with pytest.raises(Refusal, match="invalid_request"):  # noqa: PT012
        for byte in data:
            seen = len(buffer)
            buffer.append(byte)
            check_partial_head(buffer, seen)
    assert len(buffer) <= len(data)


def test_a_sound_head_is_waited_for_at_every_byte() -> None:
    data = b"GET /x?y HTTP/1.1\r\nHost: localhost\r\nX: \xff\t\r\n\r"
    for seen in range(len(data)):
        for length in range(seen, len(data) + 1):
            check_partial_head(data[:length], seen)


def test_a_head_is_waited_for_up_to_16_kib() -> None:
    check_partial_head(b"GET /" + b"a" * (MAX_HEAD_BYTES - 6), 0)
    with pytest.raises(Refusal, match="headers_too_large"):
        check_partial_head(b"GET /" + b"a" * (MAX_HEAD_BYTES - 5), 0)


@pytest.mark.parametrize("data", [b"GET /" + b"a" * 16_000, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 2_700])
def test_a_head_byte_by_byte_costs_the_same_for_each(data: bytes) -> None:
    def check() -> None:
        buffer = bytearray()
        for byte in data:
            seen = len(buffer)
            buffer.append(byte)
            check_partial_head(buffer, seen)

    assert cost(check) < 0.2


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"%41" * 5400,
        b"GET /" + b"%4" * 8000,
        b"a" * 16_000,
        b"GET / HTTP/1.1\r\n" + b"a:" * 8000,
        b"GET / HTTP/1.1\r\nHost: " + b"%41" * 5000 + b"\x00",
        b"GET / HTTP/1.1\r\nHost: " + b"a-." * 5000 + b"@\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 4000,
        b"GET / HTTP/1.1\r\nHost: [" + b":" * 16_000 + b"\r\n\r\n",
    ],
)
def test_no_head_is_expensive(data: bytes) -> None:
    def parse() -> None:
        with pytest.raises(Refusal):
            parse_head(data)

    assert cost(parse) < 0.01


_ONE_PASS = {"count", "decode", "find", "isdigit", "lower", "lstrip", "partition", "removeprefix", "removesuffix"}
_ONE_PASS |= {"split", "startswith", "strip", "translate"}


class Counted(bytes):
    """Bytes that count how many bytes are passed over: each operation on them, or on a piece of them, costs its length.

    Only operations that pass once over their bytes are there; any other fails the test.
    """

    passed: ClassVar[int] = 0

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if name.startswith("__"):
            return found
        assert name in _ONE_PASS, name

        def counted(*arguments: Any) -> Any:
            Counted.passed += len(self) + 1
            result = found(*arguments)
            if isinstance(result, list | tuple):
                return type(result)(map(Counted, result))
            return Counted(result) if isinstance(result, bytes) else result

        return counted

    def __add__(self, other: Any) -> Any:
        Counted.passed += len(self) + 1
        return Counted(super().__add__(other))

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        if isinstance(key, slice):
            Counted.passed += len(found) + 1
            return Counted(found)
        return found


HEADS = {
    "a sound one": b"GET /" + b"%41" * 4000 + b"?a HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 60 + b"\r\n",
    "percent signs": b"GET /" + b"%" * 16_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "percent signs of a host": b"GET / HTTP/1.1\r\nHost: " + b"%4" * 8000 + b"\r\n\r\n",
    "a method": b"a" * 16_000 + b"\r\n\r\n",
    "blanks": b" " * 16_000 + b"\r\n\r\n",
    "line ends": b"\r\n" * 8000,
    "halves of line ends": b"GET / HTTP/1.1\r\n" + b"\r\n\r" * 5000 + b"\r\n\r\n",
    "short fields": b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 4000 + b"\r\n",
    "colons": b"GET / HTTP/1.1\r\n" + b"a:" * 8000 + b"\r\n\r\n",
    "a bracket": b"GET / HTTP/1.1\r\nHost: [" + b":" * 16_000 + b"\r\n\r\n",
    "ports": b"GET / HTTP/1.1\r\nHost: a" + b":1" * 8000 + b"\r\n\r\n",
    "blanks in a value": b"GET / HTTP/1.1\r\nHost: a\r\nX:" + b" " * 16_000 + b"\r\n\r\n",
    "one list": b"GET / HTTP/1.1\r\nHost: a\r\n" + (b"connection: " + b"," * 240 + b"\r\n") * 63 + b"\r\n",
    "a length": b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"0" * 16_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("data", HEADS.values(), ids=HEADS.keys())
def test_a_head_is_passed_over_a_fixed_number_of_times(data: bytes) -> None:
    Counted.passed = 0
    assert len(data) <= MAX_HEAD_BYTES
    with contextlib.suppress(Refusal):
        parse_head(Counted(data))
    assert len(data) <= Counted.passed <= 12 * MAX_HEAD_BYTES
    Counted.passed = 0
    with contextlib.suppress(Refusal):
        check_partial_head(Counted(data), 0)
    assert len(data) <= Counted.passed <= 12 * MAX_HEAD_BYTES


# Chunks


def _lines_run(call: Callable[[], object]) -> int:
    """How many lines of the module a call runs: each of them passes over its bytes at most once."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename != http1.__file__:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(
    "unit",
    [
        b"1\r\nx\r\n",
        b"1;a\r\nx\r\n",
        b'1;a="' + b"\\\\" * 100 + b'"\r\nx\r\n',
        b"1;" + b"a;" * 127 + b"a\r\nx\r\n",
        b'1;a="' + b"x" * 250,
        b"1;" + b"a=" * 120,
        b"0" * 16 + b";" + b"a" * 255,
    ],
)
def test_a_chunk_line_is_walked_a_fixed_number_of_times(unit: bytes) -> None:
    def feed(pieces: Iterable[bytes]) -> None:
        chunked = ChunkedBody(1024 * 1024)
        with contextlib.suppress(Refusal):
            for piece in pieces:
                chunked.feed(piece)

    data = unit * (4000 // len(unit) + 1)
    assert _lines_run(lambda: feed([data])) <= 4 * len(data) + 100
    # Byte by byte, each feed runs a fixed number of lines, and an extension is walked once, when its line is whole.
    assert _lines_run(lambda: feed(data[at : at + 1] for at in range(len(data)))) <= 24 * len(data)


def test_a_body_may_be_as_large_as_the_limit() -> None:
    for body, reason in ((b"a\r\n0123456789\r\n0\r\n\r\n", ""), (b"5\r\n01234\r\n6\r\n", "body_too_large")):
        chunked = ChunkedBody(10)
        if reason:
            with pytest.raises(Refusal, match=reason):
                chunked.feed(body)
        else:
            chunked.feed(body)
            assert chunked.is_complete
            assert not chunked.has_surplus
            assert bytes(chunked.body) == b"0123456789"


@pytest.mark.parametrize("reads", [(b"6\r\n012345\r\n6\r\n012345\r\n",), (b"6\r\n012345\r\n",) * 2])
def test_chunks_are_over_the_limit_together(reads: tuple[bytes, ...]) -> None:
    chunked = ChunkedBody(10)
    for piece in reads[:-1]:
        chunked.feed(piece)
    with pytest.raises(Refusal, match="body_too_large"):
        chunked.feed(reads[-1])


def test_a_size_line_is_cut_behind_a_large_chunk() -> None:
    chunked = ChunkedBody(10_000)
    assert (chunked.is_complete, chunked.has_surplus) == (False, False)
    chunked.feed(b"1388\r\n" + b"x" * 5000 + b"\r\n5")
    chunked.feed(b"\r\nhello\r\n0\r\n\r\n")
    assert chunked.is_complete
    assert len(chunked.body) == 5005


@pytest.mark.parametrize("data", [b"5\r\nhello\rx", b"5;" + b"a" * 272])
def test_a_hopeless_chunk_is_refused_at_its_last_byte(data: bytes) -> None:
    chunked = ChunkedBody(10)
    chunked.feed(data[:-1])
    with pytest.raises(Refusal, match="invalid_request"):
        chunked.feed(data[-1:])


def test_a_size_over_the_limit_is_refused_before_its_data() -> None:
    with pytest.raises(Refusal, match="body_too_large"):
        ChunkedBody(10).feed(b"b\r\n")


@pytest.mark.parametrize(
    "body",
    [
        b"5\r\nhello\r\n6;a\r\n world\r\n0;b\r\n\r\n",
        b"1\r\nh\r\n1\r\ne\r\n9\r\nllo world\r\n0\r\n\r\n",
        b'b;a="b\\"";c=d\r\nhello world\r\n000\r\n\r\n',
    ],
)
def test_chunks_cut_anywhere(body: bytes) -> None:
    for first in range(len(body) + 1):
        for second in range(first, len(body) + 1):
            chunked = ChunkedBody(11)
            for piece in (body[:first], body[first:second], body[second:]):
                chunked.feed(piece)
            assert chunked.is_complete
            assert not chunked.has_surplus
            assert bytes(chunked.body) == b"hello world"


def test_bytes_behind_the_end_are_noticed_later_too() -> None:
    chunked = ChunkedBody(10)
    chunked.feed(b"0\r\n\r\n")
    assert not chunked.has_surplus
    chunked.feed(b"x")
    assert chunked.has_surplus


@pytest.mark.parametrize(
    "unit", [b"1\r\nx\r\n", b"01\r\nx\r\n", b"1;a\r\nx\r\n", b'1;a="b"\r\nx\r\n', b"5\r\nhello\r\n"]
)
def test_no_read_of_small_chunks_holds_the_loop(unit: bytes) -> None:
    # One read brings at most 256 000 bytes; others wait for so long.
    piece = (unit * (256_000 // len(unit) + 1))[:256_000]
    assert cost(lambda: ChunkedBody(1024 * 1024).feed(piece)) < 0.08


def test_a_body_byte_by_byte_costs_the_same_for_each() -> None:
    data = b"40000\r\n" + b"x" * 0x40000 + b"\r\n0\r\n\r\n"

    def feed() -> None:
        chunked = ChunkedBody(1024 * 1024)
        for at in range(len(data)):
            chunked.feed(data[at : at + 1])
        assert chunked.is_complete

    assert cost(feed, times=1) < 1
