"""The caller's side of the tests: eidproxy as a real process, a raw client, a slow and obvious reader of event streams.

with Router() as router, Proxy(router, EIDPROXY_GATE_MAX_WAITING=2) as proxy:
    answer = ask(proxy, "POST", CHAT, chat("daily"))
    assert answer.status == 200 and answer.told().text == "Hello world"

client = RawClient(proxy)                    # the same by hand, to leave at a chosen moment
client.send(request_bytes("POST", CHAT, chat("deep")))
status, headers = client.read_head()
for raw in client.events(): ...
client.rst()
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, TypeVar

from tests.tools import without
from tests.upstream import FINGERPRINT, MODEL_PATH, Router

T = TypeVar("T")

ROOT = Path(__file__).parent.parent

CHAT = "/v1/chat/completions"

# Words a test puts where nobody may repeat them. `Proxy` fails the test when one stands in the log.
PROMPT_CANARY = "canary-prompt-7f3a"
ANSWER_CANARY = "canary-answer-c41d"
CANARIES: list[str] = [
    PROMPT_CANARY,
    ANSWER_CANARY,
    MODEL_PATH,
    FINGERPRINT,
    "mac-mini",  # the alias and the host of the machine
    "qwen-macbook",
]


def until(predicate: Callable[[], T], timeout: float = 30.0, what: str = "") -> T:
    """Ask every 5 ms until the answer is true and return it; fail after `timeout` seconds.

    The default guards against hanging and says nothing of how fast anything is: a busy machine takes its time.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout} s: {what or predicate}"
        time.sleep(0.005)


def free_port() -> int:
    """A port nobody listens on, outside the range from which the kernel takes ports for outgoing connections.

    Nobody is given it twice: between the choice and the use others choose, in this process and, side by side, in
    others, which choose among different ones.
    """
    while True:
        port = _ports.pop()
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
            return port


def _shuffled_ports() -> list[int]:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ports = list(range(10000 + worker, 32000, workers))
    random.shuffle(ports)
    return ports


_ports = _shuffled_ports()


def impatient(seconds: float) -> dict[str, Any]:
    """Settings for `Proxy`: a router may be silent for so long, before the first event and after it, and none hangs."""
    return {
        "EIDPROXY_ROUTER_FIRST_EVENT_SECONDS": seconds,
        "EIDPROXY_ROUTER_FIRST_EVENT_SECONDS_PER_KIB": 0,
        "EIDPROXY_ROUTER_READ_TIMEOUT_SECONDS": seconds,
        "EIDPROXY_ROUTER_WEDGE_AFTER": 0,
    }


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


# --- Event streams -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    """One event that was dispatched."""

    event: str
    data: str

    def json(self) -> Any:
        """The data as JSON."""
        return json.loads(self.data)


def sse_lines(body: bytes) -> list[str]:
    """The lines of an event stream: BOM removed, ended by CR, LF or CRLF; a last line without an end is left out."""
    text = body.decode("utf-8").removeprefix("\ufeff")
    return re.split("\r\n|\r|\n", text)[:-1]


def parse_sse(body: bytes) -> list[Event]:
    """The events of a stream, word for word after the WHATWG text. Slow and obvious, to be judged by eye."""
    events: list[Event] = []
    kind, data = "", ""
    for line in sse_lines(body):
        if line == "":
            if data:
                events.append(Event(kind or "message", data.removesuffix("\n")))
            kind, data = "", ""
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            kind = value
        elif name == "data":
            data += value + "\n"
    return events


def comments(body: bytes) -> list[str]:
    """The comment lines of a stream, without the colon and one blank."""
    return [line[1:].removeprefix(" ") for line in sse_lines(body) if line.startswith(":")]


@dataclass(slots=True)
class Told:
    """What a whole chat stream told its reader."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    chunks: int = 0
    """Events whose `choices` are not empty."""
    done: bool = False
    errors: list[Any] = field(default_factory=list)
    """The error events, as JSON."""
    progress: list[Any] = field(default_factory=list)
    """The `eid` objects of progress chunks."""


def told(body: bytes) -> Told:
    """Read a chat stream. Only the choice with index 0 counts; both names of reasoning are one."""
    found = Told()
    for item in parse_sse(body):
        if item.data == "[DONE]":
            found.done = True
            continue
        value = item.json()
        if "error" in value:
            found.errors.append(value)
            continue
        if "eid" in value:
            found.progress.append(value["eid"])
        if value.get("choices"):
            found.chunks += 1
        for choice in value.get("choices") or []:
            if choice["index"] != 0:
                continue
            delta = choice.get("delta") or {}
            found.text += delta.get("content") or ""
            found.reasoning += delta.get("reasoning_content") or delta.get("reasoning") or ""
            found.finish_reason = choice.get("finish_reason") or found.finish_reason
    return found


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


# --- The proxy ---------------------------------------------------------------------------------------------------

Sample = tuple[str, frozenset[tuple[str, str]]]


def parse_metrics(text: str) -> dict[Sample, float]:
    """The samples of a Prometheus text page."""
    found: dict[Sample, float] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)(?: \S+)?", line)
        assert match, f"bad sample: {line!r}"
        labels = re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or "")
        key = (match[1], frozenset(labels))
        assert key not in found, f"twice: {line!r}"
        found[key] = float(match[3])
    return found


def sample(name: str, **labels: str) -> Sample:
    """The key of one sample, by its full name (`eidproxy_…`) and all its labels."""
    return name, frozenset(labels.items())


class Proxy:
    """`eidproxy serve` as a process of its own, with these settings and nothing else in its environment.

        with Proxy(router, EIDPROXY_STREAM_DEADLINE_SECONDS=2) as proxy: ...

    Settings are environment variables by their full names (any name: HTTP_PROXY too); a value of None unsets one.
    `arguments` follow `serve`; `prefix` is a program that starts it (strace -D, faketime, ip netns exec). `planted` is
    Python that runs in the process before its main: the fault that a control must find.
    With `ready=False` it is not waited for. The port is free unless EIDPROXY_SERVER_PORT is set.

    On exit it gets SIGTERM, then a second one, and must end with status 0; its output must hold no traceback and no
    canary. A process that the test ended itself is judged by the test, but its output is judged all the same.
    """

    def __init__(
        self,
        router: Router | str | None = None,
        *,
        arguments: Sequence[str] = (),
        prefix: Sequence[str] = (),
        planted: str | None = None,
        ready: bool = True,
        ready_timeout: float = 60.0,
        canaries: Iterable[str] = (),
        **settings: object,
    ) -> None:
        self.settings = {name: str(value) for name, value in settings.items() if value is not None}
        if router is not None:
            self.settings.setdefault("LLM_ROUTER_URL", router if isinstance(router, str) else router.url)
        if "EIDPROXY_SERVER_UDS" not in self.settings and settings.get("EIDPROXY_SERVER_PORT", "") is not None:
            self.settings.setdefault("EIDPROXY_SERVER_PORT", str(free_port()))
        self.host = self.settings.get("EIDPROXY_SERVER_HOST", "127.0.0.1")
        self.port = int(self.settings.get("EIDPROXY_SERVER_PORT", "0"))
        self.patience = (20.0, 20.0)
        """Seconds after the first and after the second SIGTERM."""
        self.canaries = [*CANARIES, *canaries]
        program = [*_coverage(), "-m", "eidproxy"] if planted is None else ["-c", planted + _MAIN]
        self._command = [*prefix, sys.executable, *program, "serve", *arguments]
        self._ready = ready
        self._ready_timeout = ready_timeout
        self._signalled = False
        self._metrics_at = -1.02
        self._process: subprocess.Popen[bytes] | None = None
        self._output: Path | None = None

    # Where it is

    @property
    def address(self) -> tuple[str, int] | str:
        """Where to dial it."""
        return self.settings.get("EIDPROXY_SERVER_UDS") or (self.host, self.port)

    @property
    def url(self) -> str:
        """Its base URL, without a slash at the end."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process."""
        assert self._process is not None, "not started"
        return self._process

    @property
    def pid(self) -> int:
        """Its number."""
        return self.process.pid

    # What it does

    def output(self) -> bytes:
        """Everything it has written to stdout and stderr so far."""
        assert self._output is not None, "not started"
        return self._output.read_bytes()

    def log(self) -> list[dict[str, Any]]:
        """Its log lines. A line that is not a JSON object fails; one that is being written is none yet."""
        text = self.output()
        lines = [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]
        assert all(isinstance(line, dict) for line in lines)
        return lines

    def get(self, path: str, headers: Headers = ()) -> Answer:
        """GET, with the API key when one is set."""
        key = self.settings.get("EIDPROXY_SERVER_API_KEY")
        pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
        if key is not None:
            pairs.append(("Authorization", f"Bearer {key}"))
        return ask(self, "GET", path, headers=pairs)

    def metrics(self) -> dict[Sample, float]:
        """Its metrics, as they are now: {(name, frozenset of label pairs): value}.

        The text may be up to 1 s old (contract, 2), so that who looked a moment ago waits until it is written anew.
        """
        time.sleep(max(self._metrics_at + 1.02 - time.monotonic(), 0))
        answer = self.get("/metrics")
        self._metrics_at = time.monotonic()
        assert answer.status == 200, answer
        return parse_metrics(answer.body.decode())

    def metric(self, name: str, **labels: str) -> float:
        """One sample, as it is now; for several of one moment take `metrics`. KeyError when there is none."""
        return self.metrics()[sample(name, **labels)]

    def status(self) -> dict[str, Any]:
        """Its /status."""
        answer = self.get("/status")
        assert answer.status == 200, answer
        value = answer.json()
        assert isinstance(value, dict)
        return value

    def fds(self) -> int:
        """How many descriptors it has open."""
        return len(os.listdir(self._proc("fd")))

    def holds(self, client: RawClient) -> bool:
        """Whether it still has its end of this connection open: the kernel names no owner of one that was closed."""
        near = f":{client.sock.getsockname()[1]:04X}"
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        ours = [row for row in rows if row[1].endswith(f":{self.port:04X}") and row[2].endswith(near)]
        return any(row[9] != "0" for row in ours)

    def rss(self) -> int:
        """Its resident memory in bytes."""
        pages = int(self._proc("statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self) -> float:
        """How long it has had a processor so far: what it took to do a thing, whatever else the machine does."""
        return int(self._proc("schedstat").read_text().split()[0]) / 1e9

    def _proc(self, name: str) -> Path:
        path = Path(f"/proc/{self.pid}/{name}")
        if not Path("/proc/self/fd").exists():
            without("no /proc on this machine")
        return path

    # How it ends

    def signal(self, number: int) -> None:
        """Send it a signal. From then on the test answers for how it ends."""
        self._signalled = True
        self.process.send_signal(number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.signal(signal.SIGKILL)

    def wait(self, timeout: float = 30.0) -> int:
        """Its exit status, once it has ended."""
        return self.process.wait(timeout)

    def wait_ready(self, timeout: float | None = None) -> None:
        """Until /healthz answers 200. Fails at once, with the output, when the process ends instead."""
        deadline = time.monotonic() + (self._ready_timeout if timeout is None else timeout)
        while True:
            with contextlib.suppress(OSError, EOFError):
                if ask(self, "GET", "/healthz", timeout=2.0).status == 200:
                    return
            code = self.process.poll()
            assert code is None, f"eidproxy ended with {code}:\n{self.output().decode(errors='replace')}"
            assert time.monotonic() < deadline, f"not ready:\n{self.output().decode(errors='replace')}"
            time.sleep(0.005)

    def __enter__(self) -> Self:
        handle, name = tempfile.mkstemp(prefix="eidproxy-", suffix=".log")
        self._output = Path(name)
        with os.fdopen(handle, "wb") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                cwd=ROOT,
            )
        if self._ready:
            try:
                self.wait_ready()
            except BaseException:
                self._stop()
                self._output.unlink()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._output is not None
        ended = self.process.poll()
        verdict = self._stop()
        if ended is not None and not self._signalled and self._ready:
            verdict = f"ended by itself with {ended}"
        text = self.output().decode(errors="replace")
        self._output.unlink()
        if error is not None:
            error.add_note(f"eidproxy's output ({verdict or 'ended well'}):\n{text[-8000:]}")
            return
        assert verdict is None, f"{verdict}:\n{text}"
        assert "Traceback" not in text, text
        for canary in self.canaries:
            assert canary not in text, f"{canary!r} stands in the output:\n{text}"

    def _stop(self) -> str | None:
        """End the process; the reason why that was not well, or None."""
        process = self.process
        if process.poll() is not None:
            return None
        # A test that stopped it with SIGSTOP would otherwise wait for ever.
        process.send_signal(signal.SIGCONT)
        for patience in self.patience:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(patience)
                return None if code == 0 or self._signalled else f"ended with {code} after SIGTERM"
        process.kill()
        process.wait()
        return "had to be killed"

    def _environment(self) -> dict[str, str]:
        coverage = ("COVERAGE_FILE", "COVERAGE_PROCESS_START")
        # The suite runs with the accelerator and without it.
        kept = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "EIDPROXY_ACCELERATOR", *coverage)
        base = {name: os.environ[name] for name in kept if name in os.environ}
        return {**base, "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT), **self.settings}


_MAIN = """
import sys
from eidproxy.__main__ import main
sys.argv[0] = "eidproxy"
main()
"""


def _coverage() -> list[str]:
    return ["-m", "coverage", "run", "--parallel-mode"] if os.environ.get("EIDPROXY_COVERAGE") else []
