"""The scripted router: a server that says what a test tells it to say and counts what reaches it.

It is the judge of eidproxy's promises, so it shares no code with eidproxy and uses no HTTP library: a script may put
any byte on the wire, and every count is taken at its own sockets, in one thread, in the order of the kernel's events.

    with Router() as router:
        router.script = stream(["Hello", " world"], gate="middle")
        ...                                     # a client posts
        router.wait_for(lambda: router.waiting("middle") == 1)
        router.release("middle")
        router.wait_for(lambda: router.concurrent == 0)
        assert router.max_concurrent == 1
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.lab.script import Drained, Fin, Pause, Reset, Script, Send, Stall, Trickle, Wait, stream

T = TypeVar("T")

# --- What is recorded --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Received:
    """One request that came in whole."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    json: Any
    head: bytes
    connection: int
    at: float
    ended_at: float | None = None
    """When the answer was finished or the peer had left."""

    def header(self, name: str) -> str | None:
        """The value of the only header of that name. Two of them are a mistake of the test's subject."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) <= 1, f"{name} stands {len(values)} times"
        return values[0] if values else None

    @property
    def model(self) -> str | None:
        """The alias that was asked for."""
        model = self.json.get("model") if isinstance(self.json, dict) else None
        return model if isinstance(model, str) else None


@dataclass(frozen=True, slots=True)
class Close:
    """How and when a peer closed its connection."""

    how: str
    """`fin`, `reset`, or `tls` when the peer refused the handshake."""
    phase: str
    """`request`: before a whole request came; `answer`: while a script was playing; `after`: later."""
    at: float
    connection: int
    request: Received | None


# --- The router --------------------------------------------------------------------------------------------------


class _PeerLeft(Exception):
    """The peer was found gone while a script was writing."""


class _BadRequest(Exception):
    """What came in is not strict HTTP/1.1."""


class _Barrier:
    def __init__(self) -> None:
        self.open = False
        self.permits = 0
        self.waiting: list[asyncio.Future[None]] = []


class Router:
    """A router on a real socket, in a thread of its own. Use it as a context manager.

    `script` is played for each request: a list of steps, or a function from the `Received` request to steps. Scripts
    given to `enqueue` are used up first. On exit the router fails the test when its peer sent bad HTTP or a script
    raised (`faults`), unless the test fails already.

    The loop sees the kernel's events in their order, so it does not count two inferences where one connection was
    closed before the other was used. Two that overlap for less than a turn of the loop (some 0.1 ms) may count as one:
    a script that waits at a barrier makes an overlap last.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        script: Script | Callable[[Received], Script] | None = None,
        tls: ssl.SSLContext | None = None,
        listener: socket.socket | None = None,
    ) -> None:
        self.script: Script | Callable[[Received], Script] = stream() if script is None else script
        self.tls = tls
        if listener is None:
            listener = socket.create_server(
                (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=4096
            )
        listener.setblocking(False)
        self._listener = listener
        self.host: str
        self.port: int
        self.host, self.port = listener.getsockname()[:2]
        # One lock for all that another thread may look at; it is also what `wait_for` sleeps on.
        self._changed = threading.Condition(threading.RLock())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="router", daemon=True)
        self._open: set[_Connection] = set()
        self._queue: collections.deque[Script] = collections.deque()
        self._barriers: dict[str, _Barrier] = collections.defaultdict(_Barrier)
        self._live: dict[int, str | None] = {}  # connection to model, for each inference
        self._requests: list[Received] = []
        self._closes: list[Close] = []
        self._faults: list[str] = []
        self._max_concurrent = 0
        self._max_by_model: dict[str, int] = {}
        self._connections = 0

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, for a client that dials it."""
        return (self.host, self.port)

    @property
    def url(self) -> str:
        """The value for LLM_ROUTER_URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    # What it counted

    @property
    def concurrent(self) -> int:
        """Inferences now: POST received whole, and neither the answer finished nor the peer gone."""
        with self._changed:
            return len(self._live)

    @property
    def max_concurrent(self) -> int:
        """The most inferences there were at one time."""
        with self._changed:
            return self._max_concurrent

    @property
    def max_concurrent_by_model(self) -> dict[str, int]:
        """The same for each model alias."""
        with self._changed:
            return dict(self._max_by_model)

    @property
    def open_sockets(self) -> int:
        """Connections the peer has not closed and the router has not reset."""
        with self._changed:
            return len(self._open)

    @property
    def busy_sockets(self) -> int:
        """Those of them that are not idle. One that is has answered, and its request asked for it to be kept."""
        with self._changed:
            return sum(not connection.is_idle for connection in self._open)

    @property
    def connections(self) -> int:
        """Connections accepted in all."""
        with self._changed:
            return self._connections

    @property
    def posts(self) -> int:
        """POST requests received whole."""
        with self._changed:
            return sum(request.method == "POST" for request in self._requests)

    @property
    def requests(self) -> list[Received]:
        """Every request received whole, in order."""
        with self._changed:
            return list(self._requests)

    @property
    def closes(self) -> list[Close]:
        """Every close by a peer, in order."""
        with self._changed:
            return list(self._closes)

    @property
    def faults(self) -> list[str]:
        """Bad HTTP from the peer, and exceptions of scripts. A test that expects one clears it with `reset`."""
        with self._changed:
            return list(self._faults)

    def waiting(self, barrier: str) -> int:
        """How many scripts stand at this barrier."""
        with self._changed:
            # One whose peer has left is cancelled at once, and takes itself off the list a tick later.
            return sum(not turn.done() for turn in self._barriers[barrier].waiting)

    def __repr__(self) -> str:
        with self._changed:
            return (
                f"<Router concurrent={self.concurrent} max={self._max_concurrent} posts={self.posts} "
                f"open_sockets={len(self._open)} connections={self._connections} "
                f"closes={[(close.how, close.phase) for close in self._closes[-5:]]} faults={self._faults}>"
            )

    # What a test does with it

    def wait_for(self, predicate: Callable[[], T], timeout: float = 30.0) -> T:
        """Sleep until the predicate holds; it is asked again at each event of the router."""
        with self._changed:
            self._changed.wait_for(predicate, timeout)
            value = predicate()
            assert value, f"not reached within {timeout} s: {self!r}"
            return value

    def look(self) -> None:
        """Return once it has seen all that its sockets had to show when this was called."""
        for _ in range(2):  # what arrives together with a call is read after it
            self._in_loop(lambda: None)

    def enqueue(self, *scripts: Script) -> None:
        """Play these for the next requests, one each, before `script` is used."""
        with self._changed:
            self._queue.extend(scripts)

    def release(self, barrier: str, count: int | None = None) -> None:
        """Open a barrier for good, or let exactly `count` scripts pass, those that stand there first."""
        self._loop.call_soon_threadsafe(self._release, barrier, count)

    def reset(self) -> None:
        """Forget all counts, queued scripts and barriers. What is open stays open, what plays goes on."""
        with self._changed:
            self._queue.clear()
            self._requests.clear()
            self._closes.clear()
            self._faults.clear()
            for barrier in self._barriers.values():
                barrier.open, barrier.permits = False, 0
            self._connections = len(self._open)
            self._max_concurrent = len(self._live)
            self._max_by_model = dict(collections.Counter(model for model in self._live.values() if model is not None))

    def hang_up(self) -> None:
        """Stop listening; new connections are refused. Open ones stay."""
        self._in_loop(self._stop_listening)

    def listen(self) -> None:
        """Listen again on the same port."""
        self._in_loop(self._start_listening)

    def __enter__(self) -> Self:
        self._loop.call_soon(self._loop.add_reader, self._listener, self._accept)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        if error is None:
            assert not self._faults, self._faults

    # In the loop's thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _in_loop(self, function: Callable[[], None]) -> None:
        async def call() -> None:
            function()

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(10)

    def _stop_listening(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)
            self._listener.close()

    def _start_listening(self) -> None:
        self._stop_listening()
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._listener = socket.create_server(self.address, family=family, backlog=4096)
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._accept)

    async def _shut(self) -> None:
        self._stop_listening()
        for connection in list(self._open):
            connection.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            while True:
                sock, _ = self._listener.accept()
                with self._changed:
                    self._connections += 1
                    self._open.add(_Connection(self, sock, self._connections))
                    self._changed.notify_all()

    def _release(self, name: str, count: int | None) -> None:
        with self._changed:
            barrier = self._barriers[name]
            if count is None:
                barrier.open = True
            else:
                barrier.permits += count
            while barrier.waiting and (barrier.open or barrier.permits):
                turn = barrier.waiting.pop(0)
                if not turn.done():
                    turn.set_result(None)
                    barrier.permits -= not barrier.open
            self._changed.notify_all()

    async def _pass(self, name: str) -> None:
        with self._changed:
            barrier = self._barriers[name]
            if barrier.open:
                return
            if barrier.permits:
                barrier.permits -= 1
                return
            turn = self._loop.create_future()
            barrier.waiting.append(turn)
            self._changed.notify_all()
        try:
            await turn
        except asyncio.CancelledError:
            if turn in barrier.waiting:
                with self._changed:
                    barrier.waiting.remove(turn)
                    self._changed.notify_all()
            elif turn.done() and not turn.cancelled() and not barrier.open:
                # Let through, and gone in the same tick: the turn belongs to the next one.
                self._release(name, 1)
            raise

    def _choose(self, request: Received) -> Script:
        with self._changed:
            if self._queue:
                return self._queue.popleft()
        return self.script(request) if callable(self.script) else self.script

    def _began(self, request: Received, *, gone: bool) -> None:
        # The kernel may show a close a moment late, when it came while we read that very socket. So ask those that are
        # playing once more: who has left by now is not counted, and neither is a newcomer that has left already.
        for connection in [each for each in self._open if each.task is not None]:
            connection.readable()
        with self._changed:
            self._requests.append(request)
            if request.method == "POST" and not gone:
                model = request.model
                self._live[request.connection] = model
                self._max_concurrent = max(self._max_concurrent, len(self._live))
                if model is not None:
                    now = sum(each == model for each in self._live.values())
                    self._max_by_model[model] = max(self._max_by_model.get(model, 0), now)
            self._changed.notify_all()

    def _ended(self, request: Received) -> None:
        with self._changed:
            if request.ended_at is None:
                request.ended_at = time.monotonic()
                self._live.pop(request.connection, None)
                self._changed.notify_all()

    def _fault(self, text: str) -> None:
        with self._changed:
            self._faults.append(text)
            self._changed.notify_all()


class _Connection:
    """One accepted socket. Everything here runs in the router's loop."""

    def __init__(self, router: Router, sock: socket.socket, number: int) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.router = router
        self.sock = sock
        self.number = number
        self.loop = router._loop
        self.buffer = bytearray()
        self.request: Received | None = None
        self.task: asyncio.Task[None] | None = None
        self.gone = False
        self.finished = False
        self.tls = _Tls(router.tls) if router.tls is not None else None
        self.loop.add_reader(sock, self.readable)

    @property
    def is_idle(self) -> bool:
        """Whether its last answer is over and neither side began anything else."""
        request = self.request
        if request is None or request.ended_at is None or request.header("Connection") != "keep-alive":
            return False
        return self.task is None and not self.buffer and not self.finished

    # Reading

    def readable(self) -> None:
        # Read up to the end that is there. A request and the close behind it must be seen in one turn, or the next
        # request would be counted while this one seems to go on.
        how = None
        while how is None:
            try:
                data = self.sock.recv(262144)
            except BlockingIOError:
                break
            except OSError:
                how = "reset"
            else:
                how = self.take(data) if data else "fin"
        if self.task is None:
            self.advance(gone=how is not None)
        if how is not None:
            self.left(how)

    def take(self, data: bytes) -> str | None:
        """Keep what came; how the peer left when TLS says that it did."""
        how = None
        if self.tls is not None:
            data, how = self.tls.open(data)
            with contextlib.suppress(OSError):
                self.sock.send(self.tls.sealed())
        if not self.finished:
            self.buffer += data
        return how

    def advance(self, *, gone: bool = False) -> None:
        """Start the script of the next request, once that request is whole. After our own close nothing counts."""
        if self.finished or self.gone:
            return
        try:
            request = _parse(self.buffer, self.number)
        except _BadRequest as error:
            self.router._fault(f"bad request: {error}: {bytes(self.buffer[:200])!r}")
            self.reset()
            return
        if request is not None:
            self.request = request
            self.router._began(request, gone=gone)
            if not gone:
                self.task = self.loop.create_task(self.answer(request))

    # Answering

    async def answer(self, request: Received) -> None:
        try:
            await self.play(self.router._choose(request))
        except _PeerLeft:
            return
        except Exception as error:  # noqa: BLE001 - a script is a test's own code; its fault must be seen
            # Not connected: the peer reset the connection once it had what it wanted.
            if not (isinstance(error, OSError) and error.errno == errno.ENOTCONN):
                self.router._fault(f"script: {error!r}")
            self.router._ended(request)
            self.reset()
            return
        # No await between the last byte and here: the next request cannot be counted before this one has ended.
        self.task = None
        self.router._ended(request)
        if self.buffer:
            self.advance()

    async def play(self, script: Script) -> None:
        for step in script:
            match step:
                case bytes():
                    await self.send(step)
                case Send(data):
                    await self.send(data)
                case Trickle(data, piece, interval):
                    for start in range(0, len(data), piece):
                        if start and interval:
                            await asyncio.sleep(interval)
                        await self.send(data[start : start + piece])
                case Pause(seconds):
                    await asyncio.sleep(seconds)
                case Wait(barrier):
                    await self.router._pass(barrier)
                case Drained():
                    await self.drained()
                case Stall():
                    await self.loop.create_future()
                case Fin():
                    self.fin()
                    return
                case Reset():
                    self.reset()
                    return

    async def send(self, data: bytes) -> None:
        # A turn for the others before the write, never after it: see `answer`.
        await asyncio.sleep(0)
        view = memoryview(data if self.tls is None else self.tls.seal(data))
        while view:
            try:
                sent = self.sock.send(view)
            except BlockingIOError:
                await self.writable()
            except OSError:
                self.left("reset")
                raise _PeerLeft from None
            else:
                view = view[sent:]

    async def writable(self) -> None:
        ready = self.loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        self.loop.add_writer(self.sock, wake)
        try:
            await ready
        finally:
            if not self.gone:
                self.loop.remove_writer(self.sock)

    async def drained(self) -> None:
        while True:
            left = _unread(self.sock)
            if left is None:
                await asyncio.sleep(0.002)
                return
            if left == 0:
                return
            await asyncio.sleep(0.0002)

    # Closing

    def left(self, how: str) -> None:
        """The peer closed."""
        if self.gone:
            return
        at = time.monotonic()
        phase = "request" if self.request is None else "answer" if self.request.ended_at is None else "after"
        with self.router._changed:
            self.router._closes.append(Close(how, phase, at, self.number, self.request))
            self.close()

    def fin(self) -> None:
        self.finished = True
        if self.request is not None:
            self.router._ended(self.request)
        if self.tls is not None:
            self.tls.bid_farewell()
            with contextlib.suppress(OSError):
                self.sock.send(self.tls.sealed())
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Give everything back: the count, the script, the socket."""
        if self.gone:
            return
        self.gone = True
        if self.request is not None:
            self.router._ended(self.request)
        if self.task is not None and self.task is not asyncio.current_task(self.loop):
            self.task.cancel()
        self.loop.remove_writer(self.sock)
        self.loop.remove_reader(self.sock)
        self.sock.close()
        with self.router._changed:
            self.router._open.discard(self)
            self.router._changed.notify_all()


class _Tls:
    """TLS over two memory buffers, so that the raw socket stays ours to watch and to reset."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.shaken = False

    def open(self, data: bytes) -> tuple[bytes, str | None]:
        """The plain text, and how the peer left if it said so."""
        self.incoming.write(data)
        plain = b""
        try:
            if not self.shaken:
                self.object.do_handshake()
                self.shaken = True
            while piece := self.object.read(65536):
                plain += piece
        except ssl.SSLWantReadError:
            return plain, None
        except ssl.SSLZeroReturnError:
            return plain, "fin"
        except ssl.SSLError:
            return plain, "tls"
        return plain, "fin"

    def seal(self, data: bytes) -> bytes:
        self.object.write(data)
        return self.sealed()

    def sealed(self) -> bytes:
        return self.outgoing.read()

    def bid_farewell(self) -> None:
        with contextlib.suppress(ssl.SSLError):
            self.object.unwrap()


def _parse(buffer: bytearray, connection: int) -> Received | None:
    """Take one whole request off the buffer, or None while it is not whole. Strict: this is a judge."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        if len(buffer) > 65536:
            raise _BadRequest("endless head")
        return None
    raw = bytes(buffer[: end + 4])
    lines = raw[:-4].split(b"\r\n")
    if any(b"\n" in line or b"\r" in line or b"\0" in line for line in lines):
        raise _BadRequest("control bytes in the head")
    words = lines[0].decode("latin-1").split(" ")
    if len(words) != 3 or words[2] != "HTTP/1.1" or not words[1].startswith("/"):
        raise _BadRequest("request line")
    headers: list[tuple[str, str]] = []
    for line in lines[1:]:
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon or not name or name != name.strip() or " " in name:
            raise _BadRequest("header line")
        headers.append((name, value.strip(" \t")))

    def values(name: str) -> list[str]:
        return [value for key, value in headers if key.lower() == name]

    if len(values("host")) != 1:
        raise _BadRequest("Host")
    lengths, codings = values("content-length"), values("transfer-encoding")
    if len(lengths) + len(codings) > 1:
        raise _BadRequest("two framings")
    start = end + 4
    if codings:
        if codings != ["chunked"]:
            raise _BadRequest("Transfer-Encoding")
        found = _dechunk(buffer, start)
        if found is None:
            return None
        body, stop = found
    else:
        length = lengths[0] if lengths else "0"
        if not (length.isascii() and length.isdigit()):
            raise _BadRequest("Content-Length")
        stop = start + int(length)
        if len(buffer) < stop:
            return None
        body = bytes(buffer[start:stop])
    del buffer[:stop]
    try:
        document = json.loads(body) if body else None
    except ValueError:
        document = None
    return Received(words[0], words[1], headers, body, document, raw, connection, time.monotonic())


def _dechunk(buffer: bytearray, at: int) -> tuple[bytes, int] | None:
    body = b""
    while True:
        line = buffer.find(b"\r\n", at)
        if line < 0:
            return None
        try:
            size = int(bytes(buffer[at:line]), 16)
        except ValueError:
            raise _BadRequest("chunk size") from None
        after = line + 2 + size
        if len(buffer) < after + 2:
            return None
        if buffer[after : after + 2] != b"\r\n":
            raise _BadRequest("chunk end")
        body += buffer[line + 2 : after]
        at = after + 2
        if size == 0:
            return body, at


def _unread(sock: socket.socket) -> int | None:
    """How many bytes we sent that the peer has not read; None when the kernel does not tell.

    Asks the kernel for the peer's end of the connection (sock_diag(7), one exact look-up).
    """
    if not hasattr(socket, "AF_NETLINK"):
        return None
    ours, theirs = sock.getsockname(), sock.getpeername()
    pack = socket.inet_pton
    family = sock.family
    end = struct.pack("!HH", theirs[1], ours[1])
    end += pack(family, theirs[0]).ljust(16, b"\0") + pack(family, ours[0]).ljust(16, b"\0")
    # inet_diag_req_v2: family, protocol, extensions, padding, states; then the socket's id, any interface and cookie.
    ask = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF) + end + b"\0" * 4 + b"\xff" * 8
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as netlink:
        netlink.sendto(struct.pack("=IHHII", 16 + len(ask), 20, 1, 1, 0) + ask, (0, 0))
        answer = netlink.recv(8192)
    if struct.unpack_from("=H", answer, 4)[0] != 20:
        return None
    # inet_diag_msg: 4 bytes, the id (48), expires, then rqueue. What is still on the way stands in our own queue.
    unread: int = struct.unpack_from("=I", answer, 16 + 4 + 48 + 4)[0]
    return unread + _unsent(sock)


def _unsent(sock: socket.socket) -> int:
    import fcntl
    import termios

    waiting: int = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0" * 4))[0]
    return waiting
