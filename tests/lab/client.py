"""A caller: requests, and a raw client that can leave in every way there is."""

from __future__ import annotations

import json
import re
import socket
import ssl
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

from tests.lab.stream import Event, Told, parse_sse, told

CHAT = "/v1/chat/completions"

# Words a test puts where nobody may repeat them. `Proxy` fails the test when one stands in the log.
PROMPT_CANARY = "canary-prompt-7f3a"
ANSWER_CANARY = "canary-answer-c41d"

# --- Requests ----------------------------------------------------------------------------------------------------

Headers = Mapping[str, str] | Sequence[tuple[str, str]]


def chat(model: str = "daily", stream: bool = True, *, say: str = PROMPT_CANARY, **fields: Any) -> dict[str, Any]:
    """The body of a chat request with one user message. A field given as None is left out."""
    body = {"model": model, "messages": [{"role": "user", "content": say}], "stream": stream, **fields}
    return {name: value for name, value in body.items() if value is not None}


def request_bytes(method: str, path: str, body: object = None, headers: Headers = ()) -> bytes:
    """One HTTP/1.1 request. A body that is not bytes is sent as JSON.

    Host, Content-Type and Content-Length are added unless `headers` has them.
    """
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    given = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
    usual = [("Host", "localhost")]
    if body is not None:
        usual += [("Content-Type", "application/json"), ("Content-Length", str(len(data)))]
    named = {name.lower() for name, _ in given}
    if "transfer-encoding" in named:
        named.add("content-length")
    pairs = [*(pair for pair in usual if pair[0].lower() not in named), *given]
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in pairs)]
    return "".join(line + "\r\n" for line in [*lines, ""]).encode("latin-1") + data


# --- The client --------------------------------------------------------------------------------------------------


class Dialled(Protocol):
    """Anything that says where it listens: a `Router`, a `Proxy`."""

    @property
    def address(self) -> tuple[str, int] | str: ...


class Head(NamedTuple):
    """Status and headers of an answer."""

    status: int
    headers: list[tuple[str, str]]

    def get(self, name: str) -> str | None:
        """The value of the only header of that name."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) <= 1, f"{name} stands {len(values)} times"
        return values[0] if values else None


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    clean: bool
    """False when the connection ended before the framing said so."""

    def get(self, name: str) -> str | None:
        """The value of the only header of that name."""
        return Head(self.status, self.headers).get(name)

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    def events(self) -> list[Event]:
        """The body as an event stream."""
        return parse_sse(self.body)

    def told(self) -> Told:
        """The body as a chat stream."""
        return told(self.body)

    @property
    def reason(self) -> str | None:
        """The `error_reason` of an error body, or of the error event that ends a stream; None without an error."""
        if (self.get("content-type") or "").startswith("text/event-stream"):
            errors = self.told().errors
            return errors[-1]["error_reason"] if errors else None
        value = self.json() if self.body else None
        return value.get("error_reason") if isinstance(value, dict) else None


class RawClient:
    """A blocking client on a raw socket that can leave in every way there is.

    Each call waits at most `timeout` seconds for bytes and then raises TimeoutError. `receive_buffer` shrinks
    SO_RCVBUF (for a caller that reads slowly). A string as address is a Unix socket.
    """

    def __init__(
        self,
        where: Dialled | tuple[str, int] | str,
        *,
        timeout: float = 10.0,
        receive_buffer: int | None = None,
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
    ) -> None:
        address = where if isinstance(where, (tuple, str)) else where.address
        family = (
            socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        )
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            if receive_buffer is not None:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self.sock.settimeout(timeout)
            self.sock.connect(address)
            if family != socket.AF_UNIX:
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                self.sock = tls.wrap_socket(self.sock, server_hostname=server_name)
        except BaseException:
            self.sock.close()
            raise
        self.clean = False
        """True once a body was read to the end its framing set."""
        self._buffer = b""
        self._ended = False
        self._head: Head | None = None
        self._method = "GET"

    def send(self, data: bytes) -> None:
        """Send all of it."""
        word = data.split(b" ", 1)[0]
        if word in (b"GET", b"POST", b"HEAD"):
            self._method = word.decode()
        self.sock.sendall(data)

    def recv_until(self, mark: bytes) -> bytes:
        """All bytes up to and with the mark. EOFError when the peer closes before it, with what came as argument."""
        while mark not in self._buffer:
            if not self._more():
                raise EOFError(self._buffer)
        found, _, self._buffer = self._buffer.partition(mark)
        return found + mark

    @property
    def rest(self) -> bytes:
        """What came in and was not taken yet: after an error, all that was there before it."""
        return self._buffer

    def recv_all(self) -> bytes:
        """Everything to the end of the connection, a clean one. ConnectionResetError when it was reset."""
        while self._more():
            pass
        found, self._buffer = self._buffer, b""
        return found

    def read_head(self) -> Head:
        """The next response head, 1xx too. EOFError when the peer closes before it is whole."""
        raw = self.recv_until(b"\r\n\r\n").decode("latin-1")
        first, *lines = raw[:-4].split("\r\n")
        match = re.fullmatch(r"HTTP/1\.[01] ([1-5]\d\d) [^\r\n]*", first)
        assert match, f"bad status line: {first!r}"
        headers = []
        for line in lines:
            name, colon, value = line.partition(":")
            assert re.fullmatch(r"[!#-'*+.0-9A-Z^-z|~-]+:", name + colon), f"bad header line: {line!r}"
            headers.append((name, value.strip(" \t")))
        self._head = Head(int(match[1]), headers)
        self.clean = False
        return self._head

    def read_body(self) -> bytes:
        """The body after `read_head`, whole or as far as it came; `clean` tells which."""
        return b"".join(self.pieces())

    def events(self) -> Iterator[bytes]:
        r"""The events of a streamed answer as they come, raw, each with its blank line (`\n\n`).

        A rest without a blank line comes last, so that joined together they are the body.
        """
        rest = b""
        for piece in self.pieces():
            rest += piece
            while (end := rest.find(b"\n\n")) >= 0:
                yield rest[: end + 2]
                rest = rest[end + 2 :]
        if rest:
            yield rest

    def pieces(self) -> Iterator[bytes]:
        """The body as it comes, without its framing. A framing that breaks the rules is an AssertionError."""
        head = self._head
        assert head is not None, "read_head comes first"
        length, coding = head.get("content-length"), head.get("transfer-encoding")
        assert length is None or coding is None, "two framings"
        if head.status in (204, 304) or head.status < 200 or self._method == "HEAD":
            self.clean = True
        elif coding is not None:
            assert coding == "chunked", coding
            yield from self._chunks()
        elif length is not None:
            assert re.fullmatch("[0-9]+", length), length
            yield from self._exactly(int(length))
        else:
            while True:
                if self._buffer:
                    found, self._buffer = self._buffer, b""
                    yield found
                if not self._more():
                    # A reset would have raised. The end of the connection is the end of the body.
                    self.clean = True
                    return

    def fin(self) -> None:
        """Say that nothing more will be sent (SHUT_WR); reading goes on."""
        self.sock.shutdown(socket.SHUT_WR)

    def rst(self) -> None:
        """Leave with a TCP reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """Leave. The kernel sends FIN, or RST when something was left unread."""
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _more(self) -> bool:
        if not self._ended:
            data = self.sock.recv(65536)
            self._buffer += data
            self._ended = not data
        return not self._ended

    def _chunks(self) -> Iterator[bytes]:
        try:
            while True:
                line = self.recv_until(b"\r\n")[:-2]
                assert re.fullmatch(rb"[0-9A-Fa-f]{1,8}", line), f"bad chunk size: {line!r}"
                size = int(line, 16)
                if size:
                    while len(self._buffer) < size:
                        if not self._more():
                            found, self._buffer = self._buffer, b""
                            yield found
                            return
                    yield self._buffer[:size]
                    self._buffer = self._buffer[size:]
                end = self.recv_until(b"\r\n")
                assert end == b"\r\n", f"bad chunk end: {end!r}"
                if not size:
                    self.clean = True
                    return
        except (EOFError, ConnectionResetError):
            return

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            if not self._buffer:
                try:
                    if not self._more():
                        return
                except ConnectionResetError:
                    return
            found, self._buffer = self._buffer[:size], self._buffer[size:]
            size -= len(found)
            yield found
        self.clean = True


def ask(
    where: Dialled | tuple[str, int] | str,
    method: str,
    path: str,
    body: object = None,
    headers: Headers = (),
    *,
    timeout: float = 10.0,
) -> Answer:
    """One request on a connection of its own, and its whole answer."""
    with RawClient(where, timeout=timeout) as client:
        client.send(request_bytes(method, path, body, headers))
        status, pairs = client.read_head()
        content = client.read_body()
        return Answer(status, pairs, content, client.clean)
