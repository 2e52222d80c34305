"""The router's response, parsed as its bytes arrive: head, framing, and the bytes of the body."""

import httptools
import httpx
from msgspec import Struct

_MAX_HEAD_BYTES = 64 * 1024
"""Limit for a response head, and for a trailer. Four times a caller's limit, since routers add many headers.

What follows the head needs a limit too: the parser joins a field anew at each read that adds to it.
"""

_MAX_INTERIM_RESPONSES = 8
"""1xx responses before the final one. One is usual; without a limit a router could send them for ever."""
_LAST_CHUNK = b"0\r\n\r\n"
_CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
"""What a new parser is fed to be where chunks begin (see `ResponseParser.drop_parser`)."""


class ResponseHead(Struct, frozen=True, gc=False):
    """The head of the final response, as far as it matters."""

    status: int
    is_event_stream: bool
    """Whether the body is an event stream, without a content coding, which would not be decoded here."""
    retry_after: bytes
    """The value of `Retry-After`, unparsed."""


_STREAM_HEAD = ResponseHead(200, is_event_stream=True, retry_after=b"")
"""The usual head, once for all streams."""


class ResponseParser:
    """Parses one response. The methods `on_…` are called by httptools."""

    __slots__ = (
        "_bytes_without_body",
        "_content_type",
        "_field_bytes",
        "_has_length",
        "_interim_heads",
        "_is_encoded",
        "_parser",
        "_retry_after",
        "_transfer_coding",
        "body_parts",
        "has_chunk_ended",
        "has_head",
        "head",
        "is_whole",
        "keeps_alive",
    )

    def __init__(self) -> None:
        self._parser: httptools.HttpResponseParser | None = None
        self._bytes_without_body = 0
        """Bytes received since the last byte of body, or since the beginning."""
        self._field_bytes = 0
        self._interim_heads = 0
        self._content_type = self._retry_after = b""
        self._transfer_coding: bytes | None = None
        self._has_length = False
        self._is_encoded = False
        self.has_head = False
        self.head: ResponseHead | None = None
        """The final head, from the end of its fields until somebody takes it (`take_head`)."""
        self.body_parts: list[bytes] = []
        """The parts of the body that are not yet taken."""
        self.has_chunk_ended = False
        """Whether the end of a chunk came, and no size line after it."""
        self.is_whole = False
        """Whether the whole message came. Bytes after it belong to no request."""
        self.keeps_alive = False
        """Whether the connection may carry another request."""

    def feed(self, data: bytes) -> httpx.RemoteProtocolError | None:
        """Parse bytes. Return a fault where they are no response or too large; what came before it is parsed.

        The fault is not raised: a traceback would hold all frames up to the selector, and they it.
        """
        try:
            parser = self._parser or self._make_parser()
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.body_parts.clear()
            return httpx.RemoteProtocolError("the router switched protocols")
        except httptools.HttpParserError:
            self.keeps_alive = False
            return None if self.is_whole else httpx.RemoteProtocolError("the router's answer is not valid HTTP")
        self._bytes_without_body = 0 if self.body_parts else self._bytes_without_body + len(data)
        if self.is_whole:
            if data[-5:] != _LAST_CHUNK:
                self.keeps_alive = False  # bytes follow the message, if only a blank line
        elif self._bytes_without_body > _MAX_HEAD_BYTES:
            return httpx.RemoteProtocolError("the router's head or trailer is too large")
        return None

    def take_head(self) -> ResponseHead | None:
        """Return the final head, once."""
        head, self.head = self.head, None
        return head

    @property
    def is_chunked(self) -> bool:
        """Whether the body comes in chunks."""
        return self._transfer_coding is not None

    @property
    def is_within_body(self) -> bool:
        """Whether an end of the connection now would cut the body: before its length, or within a chunk.

        A missing last chunk is no cut: some servers leave it out.
        """
        return self._has_length or (self.is_chunked and not self.has_chunk_ended)

    def drop_parser(self) -> None:
        """Free httptools' parser, with which this makes a cycle. Between two chunks of a body, `feed` makes a new one.

        Thousands of streams may be open, each with a parser of 1 KiB that sees nothing but the end.
        """
        self._parser = None

    def _make_parser(self) -> httptools.HttpResponseParser:
        parser = self._parser = httptools.HttpResponseParser(self)
        if self.has_head:  # it was dropped between two chunks: bring the new one to this place
            known = self._transfer_coding, self.keeps_alive, self._field_bytes
            self.is_whole, self._field_bytes = True, 0  # so that the callbacks take this head for no response
            try:
                parser.feed_data(_CHUNKED_HEAD)
            finally:
                self.is_whole = False
                self._transfer_coding, self.keeps_alive, self._field_bytes = known
        return parser

    # httptools' callbacks

    def on_message_begin(self) -> None:
        """Reset what the last head said: a response begins, perhaps after an interim one."""
        self._content_type, self._transfer_coding, self._has_length, self._is_encoded = b"", None, False, False
        self.keeps_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one field of the head or of a trailer. Only framing, media type and `Retry-After` of the head matter.

        Raises httptools.HttpParserError when the fields are too large.
        """
        self._field_bytes += len(name) + len(value)
        if self._field_bytes > _MAX_HEAD_BYTES:
            raise httptools.HttpParserError("the response head is too large")
        if self.has_head:
            self.keeps_alive = False  # a trailer: its fields do not matter here, and no known router sends one
            return
        name = name.lower()
        if name == b"content-type":
            self._content_type = value
        elif name == b"content-encoding":
            self._is_encoded = self._is_encoded or value.strip().lower() not in (b"", b"identity")
        elif name == b"content-length":
            self._has_length = True
        elif name == b"retry-after":
            self._retry_after = value.strip()
        elif name == b"transfer-encoding":
            self._transfer_coding = value if self._transfer_coding is None else self._transfer_coding + b"," + value

    def on_headers_complete(self) -> None:
        """Note a whole head unless it is interim. Raises httptools.HttpParserError for an invalid one."""
        if self.is_whole:
            return
        assert self._parser is not None  # noqa: S101  # the parser makes this call
        status = self._parser.get_status_code()
        coding = self._transfer_coding
        if coding is not None and (self._has_length or coding.strip().lower() != b"chunked"):
            # A coding that is not decoded here, or two lengths: the body would be misread.
            raise httptools.HttpParserError("ambiguous framing")
        if 100 <= status < 200:
            self._interim_heads += 1
            if self._interim_heads > _MAX_INTERIM_RESPONSES or status == 101:
                raise httptools.HttpParserError("too many interim responses")
            return
        if status < 100 or status > 599:
            raise httptools.HttpParserError("no such status")
        self.has_head = True
        # Streams come in chunks: what has a length is an error, after which the connection is closed. With HTTP/1.0
        # chunks count as faulty framing (RFC 9112, 6.1).
        is_stream = coding is not None and self._parser.get_http_version() == "1.1"
        self.keeps_alive = is_stream and self._parser.should_keep_alive()
        media_type = self._content_type.partition(b";")[0].strip().lower()
        is_event_stream = media_type == b"text/event-stream" and not self._is_encoded
        head = ResponseHead(status, is_event_stream, self._retry_after)
        self.head = _STREAM_HEAD if head == _STREAM_HEAD else head
        self._content_type = self._retry_after = b""

    def on_body(self, body: bytes) -> None:
        """Collect bytes of the body."""
        if not self.is_whole:
            self.body_parts.append(body)

    def on_chunk_header(self) -> None:
        """Note a chunk's size line."""
        self.has_chunk_ended = False

    def on_chunk_complete(self) -> None:
        """Note the end of a chunk, with its CRLF."""
        self.has_chunk_ended = True

    def on_message_complete(self) -> None:
        """Note that the response is whole."""
        if self.has_head:
            self.is_whole = True
