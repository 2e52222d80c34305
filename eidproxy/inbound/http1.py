"""A strict parser of HTTP/1.1 requests (RFC 9112), as functions on bytes.

A request that two servers read differently allows request smuggling, so everything outside the exact grammar is
refused: bare CR or LF, folded lines, blanks around names or sizes, control bytes, names with an underscore (CGI-style
gateways read them as a hyphen), two lengths, two codings, any upgrade.

No regular expressions are used: possessive groups match what they must not before Python 3.11.5 (cpython#106052), and
plain ones backtrack. `split`, `partition`, `translate` and comparisons judge a head; each makes one pass, and no byte
is passed over more than a dozen times: in the head, in its line, in its field. A table walks a chunk extension, one
step for each byte. So the work is linear for any bytes and does not depend on the version of anything;
`tests/unit/test_http1.py` counts it.
"""

from msgspec import Struct

from eidproxy.errors import Refusal

MAX_HEAD_BYTES = 16 * 1024
"""A bound of the contract (2), and that of h11."""
MAX_FIELDS = 64
"""A bound of the contract (2)."""
MAX_CHUNK_EXTENSION_BYTES = 256
"""A bound of the contract (2). Clients need no extension, and none may make us read without end (RFC 9112, 7.1.1)."""

_ALNUM = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_HEX = b"0123456789ABCDEFabcdef"
_NAME = _ALNUM + b"!#$%&'*+.^`|~-"
_TOKEN = _NAME + b"_"
_TARGET = _ALNUM + b"._~!$&'()*+,;=:@/?-%"
_LINE = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])
"""Bytes allowed inside a line: blanks, visible ASCII and obs-text (RFC 9110, 5.5). All others but CR LF are refused."""
# RFC 3986, 3.2.2: an address in brackets or a name, which may be empty. `Endpoints` checks whether it is served.
_HOST_ADDRESS = _HEX + b":."
_HOST_NAME = _ALNUM + b"._~!$&'()*+,;=-%"
_MAX_LENGTH_DIGITS = 18
"""A longer Content-Length is over every cap, and parsing a number of any length takes time."""
_MAX_SIZE_DIGITS = 16
"""64 bits: the largest chunk size that other parsers can hold."""
_MAX_CHUNK_LINE_BYTES = _MAX_SIZE_DIGITS + MAX_CHUNK_EXTENSION_BYTES + 2
"""A size, an extension and the end of the line."""


def _transitions(*ways: tuple[bytes, int]) -> bytes:
    """Return a row of the table: the next state for each of 256 bytes, `_NOWHERE` for a byte in none of the `ways`."""
    row = bytearray(256)
    for found, state in ways:
        for byte in found:
            row[byte] = state
    return bytes(row)


# The extensions of a chunk (RFC 9112, 7.1.1): ( ";" token [ "=" ( token / quoted-string ) ] )*
_NOWHERE, _NAME_BEGINS, _NAME_GOES_ON, _VALUE_BEGINS, _VALUE_GOES_ON, _QUOTED, _ESCAPED, _ENDED = range(8)
_EXTENSION_STEPS = (
    _transitions(),
    _transitions((_TOKEN, _NAME_GOES_ON)),
    _transitions((_TOKEN, _NAME_GOES_ON), (b"=", _VALUE_BEGINS), (b";", _NAME_BEGINS)),
    _transitions((_TOKEN, _VALUE_GOES_ON), (b'"', _QUOTED)),
    _transitions((_TOKEN, _VALUE_GOES_ON), (b";", _NAME_BEGINS)),
    _transitions((_LINE, _QUOTED), (b"\\", _ESCAPED), (b'"', _ENDED)),
    _transitions((_LINE, _QUOTED)),
    _transitions((b";", _NAME_BEGINS)),
)
_EXTENSION_MAY_END = frozenset({_NAME_GOES_ON, _VALUE_GOES_ON, _ENDED})


class RequestHead(Struct, frozen=True, gc=False):
    """A strictly valid request head.

    Names in `headers` are in lower case. `repeated` holds the names given more than once; their values are joined by
    commas.
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
    """Check an incomplete head, of which an earlier call has checked the first `seen` bytes.

    Raises Refusal as soon as its size, its request line or a byte of it is invalid, so that nobody waits for the rest.
    """
    if len(data) >= MAX_HEAD_BYTES:
        raise Refusal("headers_too_large")
    # LF is judged together with the byte before it, CR with the byte after it, which may not have arrived.
    piece = data[max(seen - 1, 0) :].removesuffix(b"\r")
    if seen:
        piece = piece.removeprefix(b"\n")  # judged by the earlier call
    if not _is_lines(piece):
        raise Refusal("invalid_request")
    # The request line is checked once: in the call that brings its line feed.
    end = data.find(b"\n", seen)
    if end >= 0 and data.find(b"\n", 0, seen) < 0:
        _parse_request_line(bytes(data[: end - 1]))


def _is_lines(data: bytes | bytearray) -> bool:
    """Return whether CR and LF stand only as CR LF, and there is no other control byte."""
    return data.translate(None, _LINE) == b"\r\n" * data.count(b"\r\n")


def _parse_request_line(line: bytes) -> tuple[bytes, bytes]:
    """Return method and target of a request line without its CR LF. Raises Refusal `invalid_request`."""
    words = line.split(b" ", 3)
    if len(words) != 3:
        raise Refusal("invalid_request")
    method, target, version = words
    if not (
        method
        and not method.translate(None, _TOKEN)
        and target.startswith(b"/")
        and not target.translate(None, _TARGET)
        and (b"%" not in target or _is_percent_encoded(target))
        and version == b"HTTP/1.1"
    ):
        raise Refusal("invalid_request")
    return method, target


def _is_percent_encoded(text: bytes) -> bool:
    """Return whether two hexadecimal digits follow each percent sign (RFC 3986, 2.1)."""
    return all(len(piece) >= 2 and not piece[:2].translate(None, _HEX) for piece in text.split(b"%")[1:])


def parse_head(head: bytes) -> RequestHead:
    """Parse a complete head, including its final blank line.

    Raises Refusal `invalid_request`, `headers_too_large`, or `body_too_large` for a Content-Length over every cap.
    """
    if len(head) > MAX_HEAD_BYTES:
        raise Refusal("headers_too_large")
    line, *fields = head.split(b"\r\n")
    if not _is_lines(head) or fields[-2:] != [b"", b""]:
        raise Refusal("invalid_request")
    method, target = _parse_request_line(line)
    if len(fields) > MAX_FIELDS + 2:
        raise Refusal("headers_too_large")
    headers: dict[bytes, bytes] = {}
    repeated: dict[bytes, list[bytes]] = {}
    for field in fields[:-2]:
        name, colon, value = field.partition(b":")
        if not colon:
            raise Refusal("invalid_request")
        name = name.lower()
        value = value.strip(b" \t")
        if name in headers:
            repeated.setdefault(name, [headers[name]]).append(value)
        else:
            headers[name] = value
    if b"" in headers or b"".join(headers).translate(None, _NAME):
        raise Refusal("invalid_request")
    for name, values in repeated.items():
        headers[name] = b", ".join(values)  # one list in several lines (RFC 9110, 5.3)
    if b"host" not in headers or not _SINGLE_FIELDS.isdisjoint(repeated) or b"upgrade" in headers:
        raise Refusal("invalid_request")
    host = _parse_host(headers[b"host"])
    if method == b"CONNECT" or (method == b"POST" and b"?" in target):
        raise Refusal("invalid_request")
    path, _, query = target.decode("ascii").partition("?")
    content_length, chunked = _parse_framing(headers)
    expect, connection = headers.get(b"expect"), headers.get(b"connection")
    if expect is not None and expect.lower() != b"100-continue":
        raise Refusal("invalid_request")
    return RequestHead(
        method=method.decode("ascii"),
        path=path,
        query=query,
        host=host.decode("ascii").lower(),
        headers=headers,
        repeated=frozenset(repeated),
        content_length=content_length,
        chunked=chunked,
        expects_continue=expect is not None,
        keep_alive=connection is None or b"close" not in map(bytes.strip, connection.lower().split(b",")),
    )


_SINGLE_FIELDS = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect", b"content-type"})


def _parse_host(value: bytes) -> bytes:
    """Return the host of a `Host` field without its port. Raises Refusal `invalid_request`."""
    if value.startswith(b"["):
        address, bracket, rest = value[1:].partition(b"]")
        _, colon, port = rest.partition(b":")
        host = b"[" + address + b"]"
        is_valid = bracket and address and not address.translate(None, _HOST_ADDRESS) and rest == colon + port
    else:
        host, _, port = value.partition(b":")
        is_valid = not host.translate(None, _HOST_NAME) and (b"%" not in host or _is_percent_encoded(host))
    if not is_valid or (port and not port.isdigit()):
        raise Refusal("invalid_request")
    return host


def _parse_framing(headers: dict[bytes, bytes]) -> tuple[int, bool]:
    """Return the declared length and whether the body is chunked (RFC 9112, 6.3, without the lenient cases).

    Raises Refusal `invalid_request` or `body_too_large`.
    """
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


def _parse_chunk_size(line: bytes | bytearray) -> int:
    """Return the size in a chunk's first line, given without its CR LF. Raises Refusal `invalid_request`."""
    digits, semicolon, extensions = line.partition(b";")
    if not 0 < len(digits) <= _MAX_SIZE_DIGITS or digits.translate(None, _HEX):
        raise Refusal("invalid_request")
    if semicolon:
        if len(extensions) >= MAX_CHUNK_EXTENSION_BYTES:
            raise Refusal("invalid_request")
        state = _NAME_BEGINS
        for byte in extensions:
            state = _EXTENSION_STEPS[state][byte]
        if state not in _EXTENSION_MAY_END:
            raise Refusal("invalid_request")
    return int(digits, 16)


class ChunkedBody:
    """A decoder of a chunked body (RFC 9112, 7.1) of at most `limit` bytes."""

    __slots__ = ("_chunk_bytes_left", "_state", "_unparsed", "body", "has_surplus", "is_complete", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.body = bytearray()
        self.is_complete = False
        self.has_surplus = False
        """Whether bytes came after the end."""
        self._unparsed = bytearray()
        self._chunk_bytes_left = 0  # bytes of the chunk that are still to come
        self._state = self._read_size_line

    def feed(self, data: bytes) -> None:
        """Decode the next bytes. Raises Refusal `invalid_request` or `body_too_large`."""
        rest = self._unparsed
        rest += data
        at = 0
        while not self.is_complete and (after := self._state(rest, at)) >= 0:
            at = after
        del rest[:at]
        self.has_surplus = self.is_complete and bool(rest)

    # Each state consumes bytes of `rest` from offset `at` and returns the offset after them, or -1 when it needs more.

    def _read_size_line(self, rest: bytearray, at: int) -> int:
        after = self._read_whole_chunks(rest, at)
        if after > at:
            return after
        end = rest.find(b"\n", at, at + _MAX_CHUNK_LINE_BYTES)
        if end < 0:
            if len(rest) - at >= _MAX_CHUNK_LINE_BYTES or not _is_lines(rest[at:].removesuffix(b"\r")):
                raise Refusal("invalid_request")
            return -1
        if rest[end - 1 : end] != b"\r":
            raise Refusal("invalid_request")
        size = _parse_chunk_size(rest[at : end - 1])
        if size > self.limit - len(self.body):
            raise Refusal("body_too_large")
        self._chunk_bytes_left = size
        self._state = self._read_data if self._chunk_bytes_left else self._read_last_line_end
        return end + 1

    def _read_whole_chunks(self, rest: bytearray, at: int) -> int:
        """Consume all complete chunks and return the offset after them.

        One loop does it, since a body may come in chunks of one byte while other callers wait.
        """
        body = self.body
        room = self.limit - len(body)
        while (line_end := rest.find(b"\r\n", at, at + _MAX_CHUNK_LINE_BYTES)) >= 0:
            size = _parse_chunk_size(rest[at:line_end])
            start = line_end + 2
            end = start + size
            if not 0 < size <= room or rest[end : end + 2] != b"\r\n":
                break
            body += rest[start:end]
            room -= size
            at = end + 2
        return at

    def _read_data(self, rest: bytearray, at: int) -> int:
        piece = rest[at : at + self._chunk_bytes_left]
        if not piece:
            return -1
        self.body += piece
        self._chunk_bytes_left -= len(piece)
        if not self._chunk_bytes_left:
            self._state = self._read_data_line_end
        return at + len(piece)

    def _read_data_line_end(self, rest: bytearray, at: int) -> int:
        after = self._read_line_end(rest, at)
        if after >= 0:
            self._state = self._read_size_line
        return after

    def _read_last_line_end(self, rest: bytearray, at: int) -> int:
        after = self._read_line_end(rest, at)
        self.is_complete = after >= 0
        return after

    @staticmethod
    def _read_line_end(rest: bytearray, at: int) -> int:
        """Return the offset after the CR LF at `at`, or -1 until it arrives. Raises Refusal `invalid_request`."""
        if rest[at : at + 2] == b"\r\n":
            return at + 2
        if len(rest) - at >= 2 or (len(rest) > at and rest[at] != 0x0D):
            raise Refusal("invalid_request")
        return -1
