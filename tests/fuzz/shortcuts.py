"""python -m tests.fuzz.shortcuts [--frames N] [--seed N] [--sanitized]

One answer of a router, read by read, past the interpreter and through it: the caller must get the same bytes, and the
same must be counted. What the router sends are events of one shape with anything else between them, cut anywhere; the
caller takes all, or a part, or has something unsent. `--sanitized` builds the extension anew with ASan and UBSan.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import select
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import httpx

from eidproxy.monitoring.metrics import INTERVAL_BOUNDS, StreamCounters
from eidproxy.relay.splice import Splice
from eidproxy.relay.stream import Stage, Stream
from eidproxy.relay.wedge import WedgeGuard
from eidproxy.router.exchange import Exchange
from eidproxy.router.response import ResponseHead
from eidproxy.router.shortcut import Passed
from eidproxy.router.transport import EpollPoller, Poller, ReadPoller, SplicePoller, TcpTransport
from tests.fuzz.mutation import broken

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_SHAPES = (
    b'{"id":"c1","object":"chat.completion.chunk","created":17,"model":"m","choices":'
    b'[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}',
    b'{"choices":[{"delta":{"content":"%b"},"finish_reason":""}],"model":"q","timings":{"a":[1e3,null]}}',
    b'{"id":"c1","model":"m","choices":[{"index":0,"delta":{"role":"assistant","reasoning_content":"%b"}}]}',
    b'{"id":"c1","model":"m","choices":[{"index":0,"delta":{"content":"","reasoning":"%b"}}],"x":"%b"}',
    b'{"id":"c1","model":"m","content":"%b","choices":[{"index":0,"delta":{"content":"%b"}}]}',
    b'{"id":"c1","model":"m",\ndata: "choices":[{"index":0,"delta":{"content":"%b"}}]}',
    b'{"id":"c1","model":"m",\n"choices":[{"index":0,"delta":{"content":"%b"}}]}',
    b'{ "model" : "m" , "choices" : [ { "index" : 0 , "delta" : { "content" : "%b" , "content" : "%b" } } ] }',
)
_TEXTS = (
    *(
        b"a",
        b" the",
        "가".encode(),
        " 나라".encode(),
        "😀".encode(),
        b'\\"',
        b"\\\\",
        b"\\n",
        b"\\t\\r\\b\\f",
        b"x" * 300,
    ),
    *(b"\x7f", "\u2028".encode(), "\ufdd0\uffff".encode(), b'{\\"index\\":0}', b"content", b"data: "),
)
_ODD_TEXTS = (
    *(
        b"\\/",
        b"\\u00e9",
        b"\\ud83d",
        b"\\ude00",
        b"\xea\xb0",
        b"\x80",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xc0\xaf",
    ),
    *(b"\\x", b"\x01", b"\t", b'"', b"\\", b"\n", b"\r", b"", b"\xf0\x9f\x98", b"\\u0000", b"\xe0\x80\x80", b"\xff"),
)
_ODD_EVENTS = (
    *(b": ping\n\n", b"data: [DONE]\n\n", b"\n", b"data:\n\n", b"data: {}\n\n", b"event: error\ndata: no\n\n"),
    b'data: {"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
    b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"z"},"finish_reason":"length"}]}\n\n',
    b'data: {"model":"m","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n',
    b'data: {"error":{"message":"x"}}\n\n',
    b'data: {"model":"m","choices":[{"delta":{"tool_calls":[{"index":0,"id":"a","function":{"name":"f"}}]}}]}\n\n',
)
_PIECES = (b"\r\n", b"\n\n", b'"', b"data: ", b"0\r\n\r\n", b"}", b"\\", b"5\r\n", b"\xff", b'"content":"')


class Outcome(NamedTuple):
    """What became of one answer."""

    text: bytes
    """The events that the caller got."""
    counts: tuple[Any, ...]
    passed: int
    """How many events went past the interpreter."""


class _Loop:
    """A loop that nothing runs in, and a clock that is set."""

    def __init__(self) -> None:
        self.now = 100.0
        self.soon: list[Callable[[], object]] = []
        self.faults: list[BaseException] = []

    def time(self) -> float:
        """See asyncio."""
        return self.now

    def call_soon(self, call: Callable[[], object]) -> None:
        """See asyncio."""
        self.soon.append(call)

    def turn(self) -> None:
        """Do what is to be done soon."""
        soon, self.soon = self.soon, []
        for call in soon:
            call()

    def add_reader(self, *_: object) -> None:
        """Who reads is called by hand."""

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """A protocol failed."""
        self.faults.append(context["exception"])


class _Caller(asyncio.Transport):
    """The caller's transport and its connection: what it is given, and what the kernel or it has unsent."""

    def __init__(self, rng: random.Random) -> None:
        self.sock, self._far = socket.socketpair()
        self.sock.setblocking(False)
        self._far.setblocking(False)
        self._rng = rng
        self._unsent = b""
        self.got = b""
        self.paused: Callable[[], None] | None = None

    def write(self, data: Any) -> None:
        """As a loop does: what the kernel does not take waits, and may pause the router."""
        self._unsent += bytes(data)
        if self.paused is not None and self._rng.random() < 0.1:
            self.paused()

    def get_write_buffer_size(self) -> int:
        """See asyncio."""
        return len(self._unsent)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See asyncio."""
        return self.sock if name == "socket" else default

    def write_chunk(self, data: bytes) -> None:
        """As `Connection` does."""
        self.write(b"%x\r\n%b\r\n" % (len(data), data))

    def free_transport(self) -> _Caller | None:
        """As `Connection` does."""
        return None if self._unsent else self

    def turn(self, patient: bool = True) -> None:
        """The end of a turn of the loop: what is unsent goes out, if the caller takes it."""
        self._take()
        if patient:
            self.got += self._unsent  # the kernel's buffer is empty, so it would be taken now
            self._unsent = b""

    def _take(self) -> None:
        try:
            while data := self._far.recv(1 << 20):
                self.got += data
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Give the sockets back."""
        self.sock.close()
        self._far.close()


class _Relay:
    """Does what the relay does with an answer, as far as it matters here, and takes every shortcut that there is."""

    def __init__(self, loop: _Loop, caller: _Caller, exchange: Exchange) -> None:
        self.counters = StreamCounters()
        self.stream = Stream("fuzz", 1700000000, "daily")
        guard = WedgeGuard(2, 30.0, 0.0)
        self.splice = Splice(cast(Any, caller), self.stream, self.counters, guard)
        self.splice.listener = self
        self.splice.attempts = cast(Any, self)
        self.exchange = exchange
        self.over: str | None = None
        self.passed = 0
        self._caller = caller
        self._loop = loop

    at_chunks = 0
    """See `ShortcutAttempts`: here each chunk is followed by an attempt."""

    def on_head(self, head: ResponseHead) -> None:
        """See `splice.Listener`."""

    def on_stage(self, events: bytes, now: float) -> None:
        """See `splice.Listener`."""
        self.splice.stage = stage = self.stream.stage
        if events:
            self.splice.count(events, now)
            self._caller.write_chunk(events)
        if stage is Stage.OVER:
            self.end(self.stream.failure or "done")

    def on_quiet_read(self, now: float) -> None:
        """See `splice.Listener`."""

    def make(self, splice: Splice, data: bytes, now: float) -> None:
        """See `ShortcutAttempts`."""
        shortcut, caller = self.exchange.shortcut(aligns=True), self._caller.free_transport()
        template = None if shortcut is None or caller is None else self.stream.template(data)
        if shortcut is not None and caller is not None and template is not None:
            shortcut.begin(caller, template, now, self.stream.budget, self)

    def count_passed(self, passed: Passed) -> None:
        """See `shortcut.Counter`."""
        self.passed += passed.events
        self.splice.count_passed(passed)

    def on_sign_of_life(self, now: float) -> None:
        """See `splice.Listener`."""

    def on_end(self, error: httpx.TransportError | None) -> None:
        """See `splice.Listener`."""
        self.end("end" if error is None else type(error).__name__)

    def fail(self, where: str, error: BaseException) -> None:
        """See `splice.Listener`."""
        raise error

    def end(self, word: str) -> None:
        """The answer is over."""
        if self.over is None:
            self.over = word
            self.exchange.abort()


_CHUNK = re.compile(rb"([0-9a-f]+)\r\n")


def _unchunked(data: bytes) -> bytes:
    """What stands in chunks, one after the other."""
    parts, at = [], 0
    while at < len(data):
        line = _CHUNK.match(data, at)
        assert line is not None, data[at : at + 80]
        end = line.end() + int(line[1], 16)
        parts.append(data[line.end() : end])
        assert data[end : end + 2] == b"\r\n"
        at = end + 2
    return b"".join(parts)


class Line:
    """A router, and a caller, and what stands between them. The test sends on `far`."""

    def __init__(self, read_poller: ReadPoller, rng: random.Random) -> None:
        self.loop = cast(_Loop, read_poller.loop)
        self.caller = _Caller(rng)
        self.exchange = Exchange(read_poller.loop, 1.0)
        self.relay = _Relay(self.loop, self.caller, self.exchange)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.transport = TcpTransport(read_poller, self.exchange, *listener.getsockname())
            self.far, _ = listener.accept()
        self.far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.transport.open()
        self.exchange.start(b"", self.relay.splice)
        self._read_ready = cast(Any, read_poller)._read_ready
        self._poll = select.poll()
        self._poll.register(cast(Any, self.transport)._descriptor, select.POLLIN)

    @property
    def paused(self) -> bool:
        """Whether the router is read no further."""
        return bool(cast(Any, self.exchange)._is_paused)

    def until_read(self, patient: bool = True) -> None:
        """Turns of the loop, until nothing lies unread."""
        while True:
            self.loop.turn()
            if self.transport.is_closing() or self.paused:
                return
            if self._poll.poll(0):
                self._read_ready()
            elif not self.loop.soon:
                return
            self.caller.turn(patient)

    def until_resumed(self) -> None:
        """The caller catches up, as often as it falls behind."""
        while self.paused and self.relay.over is None:
            self.caller.turn()
            self.exchange.resume()
            self.until_read()

    def close(self) -> None:
        """Give all of it back."""
        self.exchange.abort()
        self.far.close()
        self.caller.turn()
        self.caller.close()


def read_poller_of(poller: Callable[[], Poller], clock: Callable[[], float] = time.monotonic) -> ReadPoller:
    """ReadPoller of a loop that nothing runs in."""
    return ReadPoller(cast(Any, _Loop()), poller, clock)


def run(reads: Sequence[bytes], poller: Callable[[], Poller], seed: int, moods: bool) -> Outcome:
    """What becomes of an answer that comes in these reads. `moods`: the caller takes its time, and somebody looks."""
    rng = random.Random(seed)
    read_poller = read_poller_of(poller)
    line = Line(read_poller, rng)
    relay, exchange = line.relay, line.exchange
    try:
        if moods:
            line.caller.paused = exchange.pause
        for data in reads:
            line.far.sendall(data)
            line.loop.now += 0.001 * rng.randrange(3)
            mood = rng.random() if moods else 1.0
            line.until_read(mood > 0.1)
            if mood < 0.05:
                exchange.end_shortcut()
            elif mood < 0.1 and read_poller.shortcuts is not None:
                read_poller.shortcuts.flush_counts()
            line.until_resumed()
            if relay.over is not None:
                break
        line.far.close()
        line.caller.turn()
        line.until_read()
        line.until_resumed()
        exchange.end_shortcut()
    finally:
        line.close()
        cast(Any, read_poller)._poller._epoll.close()
    assert line.loop.faults == []
    stream, counters = relay.stream, relay.counters
    counts = (relay.over, stream.chunks, counters.chunks, counters.bytes, relay.splice.sent_bytes)
    more: tuple[Any, ...] = (stream.stripped(), stream.sanitizer.dropped, stream.stage, stream.failure, stream.close())
    if stream.stage is not Stage.OVER:  # what came after the end is read or not, as the reads fall
        more += (stream.budget,)
    return Outcome(_unchunked(line.caller.got), (*counts, *more), relay.passed)


def answer(rng: random.Random) -> tuple[list[bytes], int]:
    """The reads of one answer, and how many events are in it."""
    shape = rng.choice((*_SHAPES[:3] * 2, *_SHAPES))
    odd = rng.choice((0.0, 0.002, 0.01, 0.05, 0.3))
    events = []
    for _ in range(rng.choice((10, 50, 200, 1000))):
        if rng.random() < odd:
            events.append(rng.choice(_ODD_EVENTS))
            continue
        text = b"".join(rng.choice(_TEXTS) for _ in range(rng.choice((1, 1, 2, 5))))
        if rng.random() < odd:
            text += rng.choice(_ODD_TEXTS)
        shaped = shape if rng.random() >= odd / 4 else rng.choice(_SHAPES)
        event = b"data: " + shaped.replace(b"%b", text) + (b"\n\n" if rng.random() >= odd / 4 else b"\r\n\r\n")
        events.append(broken(event, rng, _PIECES, most=2) if rng.random() < odd / 3 else event)
    body, at = b"", 0
    style = rng.randrange(4)
    while at < len(events):
        size = 1 if style < 2 else rng.choice((1, 2, 3, 20))
        data = b"".join(events[at : at + size])
        at += size
        if style == 3 and len(data) > 2 and rng.random() < 0.3:
            cut = rng.randrange(1, len(data))
            body += _chunk(data[:cut], rng, odd) + _chunk(data[cut:], rng, odd)
        else:
            body += _chunk(data, rng, odd)
    if rng.random() < odd / 2:
        body = broken(body, rng, _PIECES, most=2)
    if rng.random() < 0.9:
        body += b"0\r\n\r\n"
    pieces = [*_split(body)]
    whole = len(pieces) if style == 0 else rng.choice((0, 5, 50))  # a chunk a read, then cut anywhere
    reads = [HEAD, *pieces[:whole]]
    body, mean, at = b"".join(pieces[whole:]), rng.choice((20, 300, 5000, 30000)), 0
    while at < len(body):
        end = at + rng.randrange(1, 2 * mean)
        reads.append(body[at:end])
        at = end
    return reads, len(events)


def _split(body: bytes) -> Iterator[bytes]:
    """Pieces that begin with what looks like a size line before an event."""
    at = [match.start() for match in re.finditer(rb"[0-9a-f]+\r\ndata: ", body)]
    for begin, end in zip([0, *at], [*at, len(body)], strict=True):
        if begin < end:
            yield body[begin:end]


def _chunk(data: bytes, rng: random.Random, odd: float) -> bytes:
    if not data:
        return b""
    line = b"%X" if rng.random() < odd / 4 else b"00%x" if rng.random() < odd / 4 else b"%x"
    extension = b";a=b" if rng.random() < odd / 6 else b""
    return line % len(data) + extension + b"\r\n" + data + b"\r\n"


class Found(NamedTuple):
    """How much was checked."""

    frames: int
    passed: int
    """How many of them went past the interpreter."""


def fuzz(frames: int, seed: int) -> Found:
    """Check so many events. Raises AssertionError with the seed of an answer that differs."""
    seeds = random.Random(seed)
    checked = passed = 0
    while checked < frames:
        one = seeds.getrandbits(48)
        rng = random.Random(one)
        reads, events = answer(rng)
        moods = rng.random() < 0.5
        through = run(reads, EpollPoller, one, moods)
        past = run(reads, lambda: SplicePoller(INTERVAL_BOUNDS, 9), one, moods)
        assert past.text == through.text, (one, reads)
        assert past.counts == through.counts, (one, past.counts, through.counts)
        checked += events
        passed += past.passed
    return Found(checked, passed)


def _again_sanitized(arguments: Sequence[str]) -> int:
    """Run this in a process whose extension is built with sanitizers."""
    import eidproxy

    source = Path(eidproxy.__file__).parent / "_splice.c"
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / f"_splice{sysconfig.get_config_var('EXT_SUFFIX')}"
        flags = ["-O1", "-g", "-fPIC", "-shared", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        command = ["gcc", *flags, f"-I{sysconfig.get_path('include')}", str(source), "-o", str(built)]
        subprocess.run(command, check=True)
        asan = subprocess.run(["gcc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True)
        environ = {**os.environ, "LD_PRELOAD": asan.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
        return subprocess.run(
            [sys.executable, "-c", _IN_ITS_PLACE, str(built), *arguments], env=environ, check=False
        ).returncode


_IN_ITS_PLACE = """
import importlib.util, runpy, sys
path = sys.argv.pop(1)
spec = importlib.util.spec_from_file_location("eidproxy._splice", path)
sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[spec.name])
runpy.run_module("tests.fuzz.shortcuts", run_name="__main__")
"""


def main() -> None:
    """Run it and say how much was checked."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.shortcuts")
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--sanitized", action="store_true")
    options = parser.parse_args()
    if options.sanitized:
        sys.exit(_again_sanitized(["--frames", str(options.frames), "--seed", str(options.seed)]))
    print(f"seed {options.seed}, {sys.modules['eidproxy._splice'].__file__}", flush=True)
    began = time.monotonic()
    found = fuzz(options.frames, options.seed)
    seconds = time.monotonic() - began
    print(f"{found.frames} frames, {found.frames / seconds:.0f}/s: {found.passed} past the interpreter, 0 differing")


if __name__ == "__main__":
    main()
