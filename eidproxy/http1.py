"""The request's edge: RFC 9112 read strictly, as functions on bytes.

Servers and proxies that read a doubtful request differently can be played against each other (request smuggling), so
what is not exactly the grammar is refused: bare CR or LF, folded lines, blanks around names or sizes, control bytes,
names with an underscore (CGI-style gateways read them as a hyphen), two lengths, two codings, any upgrade.
"""

import re
from typing import NamedTuple

from eidproxy.errors import Refusal

MAX_HEAD_BYTES = 16 * 1024
MAX_FIELDS = 64
MAX_CHUNK_EXTENSION_BYTES = 256

_TOKEN = rb"[A-Za-z0-9!#$%&'*+.^_`|~-]"
_NAME = rb"[A-Za-z0-9!#$%&'*+.^`|~-]"
_TARGET = rb"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*+"
_REQUEST_LINE = rb"(" + _TOKEN + rb"++) (" + _TARGET + rb") HTTP/1\.1\r\n"
_FIELD = rb"(?:" + _NAME + rb"++:[\t\x20-\x7e\x80-\xff]*+\r\n)"
_HEAD = re.compile(_REQUEST_LINE + rb"(" + _FIELD + rb"*+)\r\n")
_FIRST_LINE = re.compile(_REQUEST_LINE)
# What no continuation can mend: a control byte, a CR that no LF follows, an LF that no CR precedes.
_HOPELESS = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n|\Z)|(?<!\r)\n")
# RFC 3986, 3.2.2: an address in brackets or a name, which may be empty. Whether it is served is another question.
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]++\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*+)(?::[0-9]*+)?")
_MAX_LENGTH_DIGITS = 18
_QUOTED = rb'"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*+"'
_CHUNK_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,16})((?:;" + _TOKEN + rb"++(?:=(?:" + _TOKEN + rb"++|" + _QUOTED + rb"))?)*+)\r\n"
)
_MAX_CHUNK_LINE_BYTES = 16 + MAX_CHUNK_EXTENSION_BYTES + 2


class RequestHead(NamedTuple):
    """A request head that is strictly valid.

    Names in `headers` are in lower case; `repeated` are those given more than once, their values joined by commas.
    """

    method: str
    path: str
    query: str
    host: str
    headers: dict[bytes, bytes]
    repeated: frozenset[bytes]
    content_length: int
    chunked: bool
    expects_continue: bool
    keep_alive: bool


def check_partial_head(data: bytes | bytearray, seen: int) -> None:
    """Look at a head that is not yet whole; the first `seen` bytes were looked at before.

    Raises Refusal as soon as no continuation could make it valid, so that nobody waits for a hopeless one.
    """
    if len(data) >= MAX_HEAD_BYTES:
        raise Refusal("headers_too_large")
    if _HOPELESS.search(data, max(seen - 2, 0)):
        raise Refusal("invalid_request")
    # The first line is looked at once, when the line feed that ends it has come.
    if data.find(b"\n", seen) >= 0 and data.find(b"\n", 0, seen) < 0 and not _FIRST_LINE.match(data):
        raise Refusal("invalid_request")


def parse_head(head: bytes) -> RequestHead:
    """Parse a head with its last blank line. Raises Refusal `invalid_request` or `headers_too_large`."""
    if len(head) > MAX_HEAD_BYTES:
        raise Refusal("headers_too_large")
    match = _HEAD.fullmatch(head)
    if match is None:
        raise Refusal("invalid_request")
    method, target, block = match.groups()
    lines = block.split(b"\r\n")
    if len(lines) > MAX_FIELDS + 1:
        raise Refusal("headers_too_large")
    headers: dict[bytes, bytes] = {}
    repeated = set()
    for line in lines[:-1]:
        name, _, value = line.partition(b":")
        name = name.lower()
        value = value.strip(b" \t")
        if name in headers:
            repeated.add(name)
            value = headers[name] + b", " + value  # one list in several lines (RFC 9110, 5.3)
        headers[name] = value
    if b"host" not in headers or repeated & _SINGLE or b"upgrade" in headers:
        raise Refusal("invalid_request")
    host = _HOST.fullmatch(headers[b"host"])
    if host is None or method == b"CONNECT" or (method == b"POST" and b"?" in target):
        raise Refusal("invalid_request")
    path, _, query = target.decode("ascii").partition("?")
    content_length, chunked = _framing(headers)
    expect, connection = headers.get(b"expect"), headers.get(b"connection")
    if expect is not None and expect.lower() != b"100-continue":
        raise Refusal("invalid_request")
    return RequestHead(
        method=method.decode("ascii"),
        path=path,
        query=query,
        host=host[1].decode("ascii").lower(),
        headers=headers,
        repeated=frozenset(repeated),
        content_length=content_length,
        chunked=chunked,
        expects_continue=expect is not None,
        keep_alive=connection is None or b"close" not in map(bytes.strip, connection.lower().split(b",")),
    )


_SINGLE = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect", b"content-type"})


def _framing(headers: dict[bytes, bytes]) -> tuple[int, bool]:
    """The declared length and whether the body is chunked (RFC 9112, 6.3, without the lenient cases)."""
    length, coding = headers.get(b"content-length"), headers.get(b"transfer-encoding")
    if coding is not None:
        if length is not None or coding.lower() != b"chunked":
            raise Refusal("invalid_request")
        return 0, True
    if length is None:
        return 0, False
    if not length.isdigit():
        raise Refusal("invalid_request")
    length = length.lstrip(b"0")
    if len(length) > _MAX_LENGTH_DIGITS:  # any number of digits is valid, but these are over every cap
        raise Refusal("body_too_large")
    return int(length or b"0"), False


class ChunkedBody:
    """Decodes a chunked body (RFC 9112, 7.1) of at most `limit` bytes."""

    __slots__ = ("_left", "_rest", "_state", "body", "complete", "limit", "surplus")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.body = bytearray()
        self.complete = False
        self.surplus = False
        """Whether bytes came after the end."""
        self._rest = bytearray()
        self._left = 0  # bytes of the chunk that are still to come
        self._state = self._size_line

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises Refusal `invalid_request` or `body_too_large`."""
        rest = self._rest
        rest += data
        at = 0
        while not self.complete and (after := self._state(rest, at)) >= 0:
            at = after
        del rest[:at]
        self.surplus = self.complete and bool(rest)

    # Each state takes what it needs from `rest` at `at` and returns the place after it, or -1 when too little is there.

    def _size_line(self, rest: bytearray, at: int) -> int:
        after = self._whole_chunks(rest, at)
        if after > at:
            return after
        end = rest.find(b"\n", at, at + _MAX_CHUNK_LINE_BYTES)
        if end < 0:
            if len(rest) - at >= _MAX_CHUNK_LINE_BYTES or _HOPELESS.search(rest, at):
                raise Refusal("invalid_request")
            return -1
        self._left = self._chunk_size(bytes(rest[at : end + 1]))
        self._state = self._data if self._left else self._last_line_end
        return end + 1

    def _whole_chunks(self, rest: bytearray, at: int) -> int:
        """Take the chunks that are whole in one loop: a body may come in chunks of one byte, and others wait."""
        size_line, body = _CHUNK_LINE.match, self.body
        room = self.limit - len(body)
        while line := size_line(rest, at):
            start = line.end()
            size = int(line[1], 16)
            end = start + size
            extension_bytes = line.end(2) - line.start(2)
            if not 0 < size <= room or extension_bytes > MAX_CHUNK_EXTENSION_BYTES or rest[end : end + 2] != b"\r\n":
                break
            body += rest[start:end]
            room -= size
            at = end + 2
        return at

    def _data(self, rest: bytearray, at: int) -> int:
        piece = rest[at : at + self._left]
        if not piece:
            return -1
        self.body += piece
        self._left -= len(piece)
        if not self._left:
            self._state = self._data_line_end
        return at + len(piece)

    def _data_line_end(self, rest: bytearray, at: int) -> int:
        after = self._line_end(rest, at)
        if after >= 0:
            self._state = self._size_line
        return after

    def _last_line_end(self, rest: bytearray, at: int) -> int:
        after = self._line_end(rest, at)
        self.complete = after >= 0
        return after

    def _chunk_size(self, line: bytes) -> int:
        match = _CHUNK_LINE.fullmatch(line)
        if match is None or len(match[2]) > MAX_CHUNK_EXTENSION_BYTES:
            raise Refusal("invalid_request")
        size = int(match[1], 16)
        if len(self.body) + size > self.limit:
            raise Refusal("body_too_large")
        return size

    @staticmethod
    def _line_end(rest: bytearray, at: int) -> int:
        """The place after a CRLF that must stand here, or -1 when it has not come yet."""
        if rest[at : at + 2] == b"\r\n":
            return at + 2
        if len(rest) - at >= 2 or (len(rest) > at and rest[at] != 0x0D):
            raise Refusal("invalid_request")
        return -1
