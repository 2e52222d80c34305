"""Requests that servers and proxies are known to read differently, each with the one reading eidproxy may give it.

`VARIANTS` maps a name to the bytes of a connection and to what must come of them: a `Reading`, or the reason of the
refusal, or `INCOMPLETE` when more must be waited for. `read` drives eidproxy's functions as its server drives them;
the tests of the server send the same bytes through a socket.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import NamedTuple

from eidproxy.errors import Refusal
from eidproxy.inbound.http1 import MAX_HEAD_BYTES, ChunkedBody, RequestHead, check_partial_head, parse_head
from tests.fuzz.mutation import broken
from tests.lab import reference

MAX_BODY_BYTES = 4096

INCOMPLETE = "incomplete"
BAD = "invalid_request"
LARGE = "headers_too_large"
BODY = "body_too_large"


class Reading(NamedTuple):
    """A request that is accepted, and whether bytes follow it, which end the connection."""

    method: str
    path: str
    body: bytes = b""
    surplus: bool = False


def read(pieces: Iterable[bytes], max_body_bytes: int = MAX_BODY_BYTES) -> Reading | str:
    """What the server makes of the bytes of a connection, piece by piece."""
    buffer = bytearray()
    head: RequestHead | None = None
    chunked = ChunkedBody(max_body_bytes)
    try:
        for piece in pieces:
            seen = len(buffer)
            buffer += piece
            if head is None:
                end = buffer.find(b"\r\n\r\n", max(seen - 3, 0), MAX_HEAD_BYTES)
                if end < 0:
                    check_partial_head(buffer, seen)
                    continue
                head = parse_head(bytes(buffer[: end + 4]))
                if head.content_length > max_body_bytes:
                    return BODY
                piece = bytes(buffer[end + 4 :])
                buffer = bytearray(piece)
            if head.chunked:
                chunked.feed(piece)
                if chunked.is_complete:
                    return Reading(head.method, head.path, bytes(chunked.body), chunked.has_surplus)
            elif len(buffer) >= head.content_length:
                body = bytes(buffer[: head.content_length])
                return Reading(head.method, head.path, body, len(buffer) > len(body))
    except Refusal as refusal:
        assert 400 <= refusal.status < 500  # noqa: PT017  # a caller's fault is never a fault of ours
        return refusal.reason
    return INCOMPLETE


def slow(data: bytes, max_body_bytes: int = MAX_BODY_BYTES) -> Reading | str:
    """What the slow reader makes of them: a `Reading`, BAD for any refusal, or INCOMPLETE."""
    try:
        found = reference.request(data, max_body_bytes)
    except reference.Refused:
        return BAD
    except reference.Incomplete:
        return INCOMPLETE
    path = found.target.partition(b"?")[0].decode()
    return Reading(found.method.decode(), path, found.body, found.surplus)


def _post(
    *fields: bytes, body: bytes = b"", host: bytes = b"Host: localhost", line: bytes = b"POST /x HTTP/1.1"
) -> bytes:
    lines = [line, host, *fields] if host else [line, *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _chunked(body: bytes) -> bytes:
    return _post(b"Transfer-Encoding: chunked", body=body)


def _get(*fields: bytes, line: bytes = b"GET /x HTTP/1.1", host: bytes = b"Host: localhost") -> bytes:
    return _post(*fields, host=host, line=line)


_GOOD = b"5\r\nhello\r\n0\r\n\r\n"
_HELLO = Reading("POST", "/x", b"hello")
_NONE = Reading("POST", "/x")
_SMUGGLED = b"GET /y HTTP/1.1\r\nHost: localhost\r\n\r\n"

VARIANTS: dict[str, tuple[bytes, Reading | str]] = {
    # What is sound
    "get": (_get(), Reading("GET", "/x")),
    "post without a body": (_post(), _NONE),
    "content-length": (_post(b"Content-Length: 5", body=b"hello"), _HELLO),
    "content-length with leading zeros": (_post(b"Content-Length: 0005", body=b"hello"), _HELLO),
    "content-length with many zeros": (_post(b"Content-Length: " + b"0" * 40 + b"5", body=b"hello"), _HELLO),
    "content-length in blanks": (_post(b"Content-Length: \t 5 \t", body=b"hello"), _HELLO),
    "content-length without a blank": (_post(b"Content-Length:5", body=b"hello"), _HELLO),
    "content-length 0": (_post(b"Content-Length: 0"), _NONE),
    "chunked": (_chunked(_GOOD), _HELLO),
    "chunked in capitals": (_post(b"TRANSFER-ENCODING: Chunked", body=_GOOD), _HELLO),
    "chunked in blanks": (_post(b"Transfer-Encoding: \tchunked ", body=_GOOD), _HELLO),
    "chunk sizes in hex": (
        _chunked(b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n"),
        Reading("POST", "/x", b"0123456789" * 2),
    ),
    "chunk size with leading zeros": (_chunked(b"0000000000000005\r\nhello\r\n000\r\n\r\n"), _HELLO),
    "chunk extension": (_chunked(b"5;a=b;c\r\nhello\r\n0;_x\r\n\r\n"), _HELLO),
    "chunk extension in quotes": (_chunked(b'5;a="\\"b; c"\r\nhello\r\n0\r\n\r\n'), _HELLO),
    "chunk extension of 256 bytes": (_chunked(b"5;" + b"a" * 255 + b"\r\nhello\r\n0\r\n\r\n"), _HELLO),
    "chunk of CRLF": (_chunked(b"4\r\n\r\n\r\n\r\n0\r\n\r\n"), Reading("POST", "/x", b"\r\n\r\n")),
    "obs-text in a value": (_get(b"X: \xe9\xff"), Reading("GET", "/x")),
    "tab in a value": (_get(b"X: a\tb"), Reading("GET", "/x")),
    "empty value": (_get(b"X:"), Reading("GET", "/x")),
    "colons in a value": (_get(b"X: a:b::"), Reading("GET", "/x")),
    "name of odd token characters": (_get(b"!#$%&'*+.^`|~-9: x"), Reading("GET", "/x")),
    "64 fields": (_get(*[b"X: 1"] * 63), Reading("GET", "/x")),
    "head of 16 KiB": (_get(b"X: " + b"a" * (16384 - 41)), Reading("GET", "/x")),
    "query on GET": (_get(line=b"GET /x?a=b HTTP/1.1"), Reading("GET", "/x")),
    "percent-encoding in the path": (_get(line=b"GET /%78 HTTP/1.1"), Reading("GET", "/%78")),
    "dot segments": (_get(line=b"GET /../x HTTP/1.1"), Reading("GET", "/../x")),
    "two slashes": (_get(line=b"GET //localhost/x HTTP/1.1"), Reading("GET", "//localhost/x")),
    "unknown method": (_get(line=b"BREW_IT /x HTTP/1.1"), Reading("BREW_IT", "/x")),
    "expect 100-continue": (_post(b"Expect: 100-Continue", b"Content-Length: 5", body=b"hello"), _HELLO),
    "te trailers": (_get(b"TE: trailers"), Reading("GET", "/x")),
    "host with a port": (_get(host=b"Host: localhost:8790"), Reading("GET", "/x")),
    "host of an IPv6 address": (_get(host=b"Host: [::1]:8790"), Reading("GET", "/x")),
    "host empty": (_get(host=b"Host:"), Reading("GET", "/x")),
    # Nothing decided yet
    "nothing": (b"", INCOMPLETE),
    "half a request line": (b"GET /x HT", INCOMPLETE),
    "head without its end": (_get()[:-2], INCOMPLETE),
    "head that ends in CR": (_get()[:-1], INCOMPLETE),
    "body that is short": (_post(b"Content-Length: 6", body=b"hello"), INCOMPLETE),
    "chunks without the last": (_chunked(b"5\r\nhello\r\n"), INCOMPLETE),
    "last chunk without its line end": (_chunked(b"5\r\nhello\r\n0\r\n"), INCOMPLETE),
    "chunk size without its line end": (_chunked(b"5"), INCOMPLETE),
    # Two requests in one
    "pipelined request": (_get() + _SMUGGLED, Reading("GET", "/x", surplus=True)),
    "bytes behind the body": (_post(b"Content-Length: 5", body=b"hello" + _SMUGGLED), _HELLO._replace(surplus=True)),
    "bytes behind the last chunk": (_chunked(_GOOD + _SMUGGLED), _HELLO._replace(surplus=True)),
    "one stray byte": (_get() + b"\n", Reading("GET", "/x", surplus=True)),
    "content-length and chunked": (_post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=_GOOD), BAD),
    "chunked and content-length": (_post(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=_GOOD), BAD),
    "chunked and content-length 0": (_post(b"Content-Length: 0", b"Transfer-Encoding: chunked", body=_SMUGGLED), BAD),
    "two lengths": (_post(b"Content-Length: 5", b"Content-Length: 6", body=b"hello!"), BAD),
    "two equal lengths": (_post(b"Content-Length: 5", b"Content-Length: 5", body=b"hello"), BAD),
    "lengths in a list": (_post(b"Content-Length: 5, 5", body=b"hello"), BAD),
    "length negative": (_post(b"Content-Length: -5"), BAD),
    "length with a plus": (_post(b"Content-Length: +5", body=b"hello"), BAD),
    "length in hex": (_post(b"Content-Length: 0x5", body=b"hello"), BAD),
    "length with a point": (_post(b"Content-Length: 5.0", body=b"hello"), BAD),
    "length with an exponent": (_post(b"Content-Length: 5e0", body=b"hello"), BAD),
    "length with an underscore": (_post(b"Content-Length: 1_0", body=b"hellohello"), BAD),
    "length with a blank inside": (_post(b"Content-Length: 1 0", body=b"hellohello"), BAD),
    "length empty": (_post(b"Content-Length:"), BAD),
    "length of 20 digits": (_post(b"Content-Length: 18446744073709551621", body=b"hello"), BODY),
    "length of 5000 digits": (_post(b"Content-Length: " + b"9" * 5000), BODY),
    "length over the cap": (_post(b"Content-Length: 4097"), BODY),
    "length in other digits": (_post(b"Content-Length: \xd9\xa5", body=b"hello"), BAD),
    "length in superscript": (_post(b"Content-Length: \xb2", body=b"he"), BAD),
    # Codings
    "two codings": (_post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=_GOOD), BAD),
    "chunked then identity": (_post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", body=_GOOD), BAD),
    "chunked twice in a list": (_post(b"Transfer-Encoding: chunked, chunked", body=_GOOD), BAD),
    "gzip, chunked": (_post(b"Transfer-Encoding: gzip, chunked", body=_GOOD), BAD),
    "identity": (_post(b"Transfer-Encoding: identity", body=b""), BAD),
    "chunked with a comma": (_post(b"Transfer-Encoding: chunked,", body=_GOOD), BAD),
    "comma, chunked": (_post(b"Transfer-Encoding: ,chunked", body=_GOOD), BAD),
    "chunked with a parameter": (_post(b"Transfer-Encoding: chunked;q=1", body=_GOOD), BAD),
    "chunked in quotes": (_post(b'Transfer-Encoding: "chunked"', body=_GOOD), BAD),
    "xchunked": (_post(b"Transfer-Encoding: xchunked", body=_GOOD), BAD),
    "coding empty": (_post(b"Transfer-Encoding:", body=_GOOD), BAD),
    "chunked after a vertical tab": (_post(b"Transfer-Encoding: \x0bchunked", body=_GOOD), BAD),
    "chunked after NUL": (_post(b"Transfer-Encoding: \x00chunked", body=_GOOD), BAD),
    "chunked with obs-text": (_post(b"Transfer-Encoding: chunked\xa0", body=_GOOD), BAD),
    "coding with a blank before the colon": (_post(b"Transfer-Encoding : chunked", body=_GOOD), BAD),
    "coding with a tab before the colon": (_post(b"Transfer-Encoding\t: chunked", body=_GOOD), BAD),
    "coding with a blank before the name": (_post(b" Transfer-Encoding: chunked", body=_GOOD), BAD),
    "coding folded": (_post(b"Transfer-Encoding:\r\n chunked", body=_GOOD), BAD),
    "coding folded with a tab": (_post(b"Transfer-Encoding:\r\n\tchunked", body=_GOOD), BAD),
    "coding with an underscore": (_post(b"Transfer_Encoding: chunked", b"Content-Length: 0", body=_GOOD), BAD),
    "length with an underscore in its name": (_post(b"Content_Length: 5", body=b"hello"), BAD),
    "coding behind a bare CR": (_post(b"X: a\rTransfer-Encoding: chunked", body=_GOOD), BAD),
    "coding behind a bare LF": (_post(b"X: a\nTransfer-Encoding: chunked", body=_GOOD), BAD),
    "length behind a bare LF": (_post(b"X: a\nContent-Length: 5", body=b"hello"), BAD),
    "length behind NUL": (_post(b"X: a\x00Content-Length: 5", body=b"hello"), BAD),
    # Chunks
    "chunk size empty": (_chunked(b"\r\nhello\r\n0\r\n\r\n"), BAD),
    "chunk size negative": (_chunked(b"-5\r\nhello\r\n0\r\n\r\n"), BAD),
    "chunk size with a plus": (_chunked(b"+5\r\nhello\r\n0\r\n\r\n"), BAD),
    "chunk size with 0x": (_chunked(b"0x5\r\nhello\r\n0\r\n\r\n"), BAD),
    "chunk size with an underscore": (_chunked(b"0_5\r\nhello\r\n0\r\n\r\n"), BAD),
    "chunk size of 17 digits": (_chunked(b"00000000000000005\r\nhello\r\n0\r\n\r\n"), BAD),
    "chunk size that wraps": (_chunked(b"10000000000000005\r\nhello\r\n0\r\n\r\n"), BAD),
    "chunk size of 16 digits": (_chunked(b"FFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n"), BODY),
    "chunk size with a blank": (_chunked(b"5 \r\nhello\r\n0\r\n\r\n"), BAD),
    "chunk size after a blank": (_chunked(b" 5\r\nhello\r\n0\r\n\r\n"), BAD),
    "chunk size with a tab": (_chunked(b"5\t\r\nhello\r\n0\r\n\r\n"), BAD),
    "chunk size no hex": (_chunked(b"g\r\nhello\r\n0\r\n\r\n"), BAD),
    "chunk size that ends in LF": (_chunked(b"5\nhello\r\n0\r\n\r\n"), BAD),
    "chunk size that ends in CR": (_chunked(b"5\rhello\r\n0\r\n\r\n"), BAD),
    "chunk size that ends in CR CR LF": (_chunked(b"5\r\r\nhello\r\n0\r\n\r\n"), BAD),
    "chunk data that ends in LF": (_chunked(b"5\r\nhello\n0\r\n\r\n"), BAD),
    "chunk data without an end": (_chunked(b"5\r\nhello0\r\n\r\n"), BAD),
    "chunk data too long": (_chunked(b"5\r\nhello!\r\n0\r\n\r\n"), BAD),
    "chunk data too short": (_chunked(b"6\r\nhello\r\n0\r\n\r\n"), BAD),
    "chunk extension of 257 bytes": (_chunked(b"5;" + b"a" * 256 + b"\r\nhello\r\n0\r\n\r\n"), BAD),
    "chunk extension without an end": (_chunked(b"5;" + b"a" * 5000), BAD),
    "chunk extension without a name": (_chunked(b"5;\r\nhello\r\n0\r\n\r\n"), BAD),
    "chunk extension with a blank": (_chunked(b"5; a\r\nhello\r\n0\r\n\r\n"), BAD),
    "chunk extension with LF": (_chunked(b"5;a\n5\r\nhello\r\n0\r\n\r\n"), BAD),
    "chunk extension with CR": (_chunked(b"5;a\rb\r\nhello\r\n0\r\n\r\n"), BAD),
    "chunk extension with NUL": (_chunked(b"5;a=\x00\r\nhello\r\n0\r\n\r\n"), BAD),
    "chunk extension with an open quote": (_chunked(b'5;a="\r\nhello\r\n0\r\n\r\n'), BAD),
    "trailer": (_chunked(b"5\r\nhello\r\n0\r\nX: 1\r\n\r\n"), BAD),
    "trailer that is a length": (_chunked(b"5\r\nhello\r\n0\r\nContent-Length: 9\r\n\r\n"), BAD),
    "last chunk that ends in LF": (_chunked(b"5\r\nhello\r\n0\r\n\n"), BAD),
    "chunks over the cap": (_chunked(b"800\r\n" + b"x" * 2048 + b"\r\n801\r\n"), BODY),
    # Lines
    "bare LF": (b"GET /x HTTP/1.1\nHost: localhost\n\n", BAD),
    "request line that ends in LF": (b"GET /x HTTP/1.1\nHost: localhost\r\n\r\n", BAD),
    "field that ends in LF": (b"GET /x HTTP/1.1\r\nHost: localhost\n\r\n", BAD),
    "head that ends in LF LF": (b"GET /x HTTP/1.1\r\nHost: localhost\r\n\n", BAD),
    "bare CR": (b"GET /x HTTP/1.1\rHost: localhost\r\r", BAD),
    "CR CR LF": (b"GET /x HTTP/1.1\r\r\nHost: localhost\r\n\r\n", BAD),
    "leading CRLF": (b"\r\n" + _get(), BAD),
    "leading LF": (b"\n" + _get(), BAD),
    "leading blank": (b" " + _get(), BAD),
    "byte order mark": (b"\xef\xbb\xbf" + _get(), BAD),
    "blank before the first field": (_get(host=b" Host: localhost"), BAD),
    "folded field": (_get(b"X: a\r\n b"), BAD),
    "field without a colon": (_get(b"X"), BAD),
    "field without a name": (_get(b": x"), BAD),
    "name with a blank": (_get(b"X Y: 1"), BAD),
    "name with a bracket": (_get(b"X[1]: 1"), BAD),
    "name with NUL": (_get(b"X\x00: 1"), BAD),
    "name in UTF-8": (_get("É: 1".encode()), BAD),
    "value with NUL": (_get(b"X: a\x00b"), BAD),
    "value with DEL": (_get(b"X: a\x7fb"), BAD),
    "value with escape": (_get(b"X: \x1b[31m"), BAD),
    "65 fields": (_get(*[b"X: 1"] * 64), LARGE),
    "head one byte over 16 KiB": (_get(b"X: " + b"a" * (16384 - 40)), LARGE),
    "endless line": (b"GET /" + b"a" * 20000, LARGE),
    # Request line
    "HTTP/0.9": (b"GET /x\r\n\r\n", BAD),
    "HTTP/1.0": (_get(line=b"GET /x HTTP/1.0"), BAD),
    "HTTP/1.2": (_get(line=b"GET /x HTTP/1.2"), BAD),
    "HTTP/2.0": (_get(line=b"GET /x HTTP/2.0"), BAD),
    "HTTP/1.10": (_get(line=b"GET /x HTTP/1.10"), BAD),
    "HTTP/01.1": (_get(line=b"GET /x HTTP/01.1"), BAD),
    "http in small letters": (_get(line=b"GET /x http/1.1"), BAD),
    "another protocol": (_get(line=b"GET /x ICAP/1.0"), BAD),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", BAD),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", BAD),
    "no version": (_get(line=b"GET /x"), BAD),
    "no target": (_get(line=b"GET  HTTP/1.1"), BAD),
    "no method": (_get(line=b" /x HTTP/1.1"), BAD),
    "two blanks": (_get(line=b"GET  /x HTTP/1.1"), BAD),
    "tabs": (_get(line=b"GET\t/x\tHTTP/1.1"), BAD),
    "blank at the end of the line": (_get(line=b"GET /x HTTP/1.1 "), BAD),
    "blank in the target": (_get(line=b"GET /x y HTTP/1.1"), BAD),
    "method with a brace": (_get(line=b"G{T /x HTTP/1.1"), BAD),
    "absolute-form": (_get(line=b"GET http://localhost/x HTTP/1.1"), BAD),
    "absolute-form elsewhere": (_get(line=b"GET http://example.com/ HTTP/1.1"), BAD),
    "authority-form": (_get(line=b"CONNECT localhost:443 HTTP/1.1"), BAD),
    "CONNECT in origin-form": (_get(line=b"CONNECT /x HTTP/1.1"), BAD),
    "asterisk-form": (_get(line=b"OPTIONS * HTTP/1.1"), BAD),
    "target without a slash": (_get(line=b"GET x HTTP/1.1"), BAD),
    "fragment": (_get(line=b"GET /x#y HTTP/1.1"), BAD),
    "backslash": (_get(line=b"GET /x\\y HTTP/1.1"), BAD),
    "target in UTF-8": (_get(line="GET /é HTTP/1.1".encode()), BAD),
    "percent without digits": (_get(line=b"GET /%zz HTTP/1.1"), BAD),
    "percent at the end": (_get(line=b"GET /% HTTP/1.1"), BAD),
    "target with NUL": (_get(line=b"GET /x\x00 HTTP/1.1"), BAD),
    "quote in the target": (_get(line=b'GET /" HTTP/1.1'), BAD),
    "query on POST": (_post(line=b"POST /x?a HTTP/1.1"), BAD),
    "empty query on POST": (_post(line=b"POST /x? HTTP/1.1"), BAD),
    # Host
    "no host": (_get(host=b""), BAD),
    "two hosts": (_get(b"Host: localhost"), BAD),
    "two hosts in another case": (_get(b"HOST: example.com"), BAD),
    "host with a blank before the colon": (_get(host=b"Host : localhost"), BAD),
    "host list": (_get(host=b"Host: localhost, example.com"), BAD),
    "host with userinfo": (_get(host=b"Host: a@localhost"), BAD),
    "host with a path": (_get(host=b"Host: localhost/x"), BAD),
    "host with a scheme": (_get(host=b"Host: http://localhost"), BAD),
    "host with a word for a port": (_get(host=b"Host: localhost:http"), BAD),
    "host with a negative port": (_get(host=b"Host: localhost:-1"), BAD),
    "host with two ports": (_get(host=b"Host: localhost:1:2"), BAD),
    "host of an open bracket": (_get(host=b"Host: [::1"), BAD),
    "host of empty brackets": (_get(host=b"Host: []"), BAD),
    "host with a zone": (_get(host=b"Host: [fe80::1%25lo]"), BAD),
    "host with bytes behind the bracket": (_get(host=b"Host: [::1]x"), BAD),
    "host in UTF-8": (_get(host="Host: löcalhost".encode()), BAD),
    # Upgrades and expectations
    "upgrade to websocket": (_get(b"Connection: Upgrade", b"Upgrade: websocket"), BAD),
    "upgrade to h2c": (_get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"), BAD),
    "empty upgrade": (_get(b"Upgrade:"), BAD),
    "another expectation": (_post(b"Expect: 200-ok"), BAD),
    "empty expectation": (_post(b"Expect:"), BAD),
    "two expectations": (_post(b"Expect: 100-continue", b"Expect: 100-continue"), BAD),
    "two content types": (_post(b"Content-Type: application/json", b"Content-Type: text/plain"), BAD),
}

_PIECES = [
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b"\x00",
    b"\x0b",
    b"\x7f",
    b"\x80",
    b"_",
    b":",
    b",",
    b";",
    b"0",
    b"5",
]
_PIECES += [
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: localhost\r\n",
    b"X: y\r\n",
    b"chunked",
    b"%",
    b"?",
]
_PIECES += [
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"Expect: 100-continue\r\n",
    b"Upgrade: x\r\n",
    b"f",
    b"-",
    b"+",
    b"[",
    b"]",
    b'"',
    b"\\",
    b"=",
]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Break a request in one to three places, or join it to another."""
    if rng.random() < 0.1:
        data += rng.choice(list(VARIANTS.values()))[0][:400]
    return broken(data, rng, _PIECES, most=3, within=600, lengths=(1, 1, 2, 8))


def agree(data: bytes, rng: random.Random) -> bool:
    """Assert that a request is read as the slow reader reads it, however it is cut; whether it is accepted.

    What no continuation can mend may be refused before it is whole.
    """
    wanted = slow(data)
    places = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(1, 6)))
    cut = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
    bytewise = [data[at : at + 1] for at in range(len(data))]
    for pieces in ([data], cut, bytewise):
        got = read(pieces)
        if isinstance(wanted, Reading):
            # Cut behind its end, a request is answered before the bytes that follow it have come.
            assert isinstance(got, Reading), (data, got, wanted)
            assert got[:3] == wanted[:3], (data, got, wanted)
            assert got.surplus == wanted.surplus or pieces != [data], (data, got, wanted)
        elif wanted == INCOMPLETE:
            assert not isinstance(got, Reading), (data, got)
        else:
            assert isinstance(got, str), (data, got)
            assert got != INCOMPLETE or pieces != [data] or b"\r\n\r\n" not in data[:16384], (data, got)
    return isinstance(wanted, Reading)


def fuzz(count: int, seed: int) -> int:
    """Check that many mutated requests; the number of those that were still sound."""
    rng = random.Random(seed)
    sound = [data for data, _ in VARIANTS.values() if len(data) < 2000]
    return sum(agree(mutate(rng.choice(sound), rng), rng) for _ in range(count))
