"""shortcut: events that go past the interpreter are those that would go through it, and are told as those are."""

from __future__ import annotations

import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from eidproxy.monitoring.metrics import INTERVAL_BOUNDS
from eidproxy.relay.chunk import Frames, Template
from eidproxy.relay.splice import Splice
from eidproxy.router.shortcut import IS_BUILT, Passed, Shortcut, Shortcuts
from eidproxy.router.transport import EpollPoller, SplicePoller
from tests.fuzz import shortcuts
from tests.fuzz.shortcuts import HEAD, Line, Outcome
from tests.lab.client import CHAT, RawClient, chat, request_bytes
from tests.lab.proxy import Proxy, impatient, sample
from tests.lab.router import Router
from tests.lab.script import (
    DONE,
    LAST_CHUNK,
    Drained,
    Pause,
    Reset,
    Send,
    Stall,
    Step,
    Wait,
    chunk,
    completion_chunk,
    stream_head,
)
from tests.lab.script import event as router_event
from tests.lab.stream import parse_sse, told
from tests.lab.tools import size, until, without

LAST = b"0\r\n\r\n"


@pytest.fixture(autouse=True)
def _built() -> None:
    if sys.platform != "linux":
        pytest.skip("the extension is for Linux alone")
    if not IS_BUILT:
        without("the extension is not built: it takes Linux, a C compiler and Python's headers")


def event(text: str = "a", **fields: Any) -> bytes:
    """One event of a router, as bytes."""
    return router_event(completion_chunk({"content": text}, **fields))


def both(*reads: bytes) -> Outcome:
    """What becomes of an answer past the interpreter. Through it, it must be the same."""
    past = shortcuts.run([HEAD, *reads], lambda: SplicePoller(INTERVAL_BOUNDS, 9), 1, False)
    through = shortcuts.run([HEAD, *reads], EpollPoller, 1, False)
    assert (past.text, past.counts) == (through.text, through.counts)
    assert through.passed == 0
    return past


USUAL = [chunk(event(f"word {number}")) for number in range(20)]


def test_usual_events_go_past() -> None:
    """All but the first, which begins the answer, and the second, from which the template is taken."""
    assert both(*USUAL).passed == 18


@pytest.mark.parametrize("field", ["content", "reasoning_content", "reasoning"])
def test_text_goes_past_in_each_field(field: str) -> None:
    said = ["가나다", 'q"uo\\te', "new\nline", "😀 ", "\u2028", "\x7f", "x" * 5000]
    reads = [chunk(_raw({field: text})) for text in ("a", "b", *said)]
    assert both(*reads).passed == len(said)


def _raw(delta: dict[str, Any]) -> bytes:
    """An event whose text is not spelled in ASCII."""
    import msgspec

    return b"data: " + msgspec.json.encode(completion_chunk(delta)) + b"\n\n"


CUT = b"".join(USUAL)
STRANGE = {
    "the end": chunk(router_event(completion_chunk({}, "stop"))) + chunk(DONE) + LAST,
    "no text": chunk(event("")),
    "text in another spelling": chunk(_raw({"content": "\x01"})),
    "a slash with an escape": chunk(event("a").replace(b'"a"', b'"\\/"')),
    "half a character": chunk(event("a").replace(b'"a"', b'"\xea\xb0"')),
    "a surrogate": chunk(event("a").replace(b'"a"', b'"\\ud83d"')),
    "a control byte": chunk(event("a").replace(b'"a"', b'"\t"')),
    "a quote without an escape": chunk(event("a").replace(b'"a"', b'"a"b"')),
    "another id": chunk(event("a").replace(b"1520292f", b"ffffffff")),
    "usage": chunk(event("a", usage={"prompt_tokens": 1, "completion_tokens": 2})),
    "a comment": chunk(b": ping\n\n"),
    "an error": chunk(b'data: {"error":{"message":"x"}}\n\n'),
    "a tool call": chunk(
        router_event(completion_chunk({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f"}}]}))
    ),
    "CRLF": chunk(event("a").replace(b"\n", b"\r\n")),
    "two lines": chunk(event("a").replace(b"\n\n", b"\ndata: \n\n")),
    "an event over two chunks": chunk(event("a")[:40]) + chunk(event("a")[40:]),
    "a chunk extension": chunk(event("a")).replace(b"\r\n", b";x=y\r\n", 1),
    "a size with many zeros": b"00000000" + chunk(event("a")),
    "no size": b"\r\n" + event("a"),
    "a wrong end of a chunk": chunk(event("a"))[:-2] + b"xx",
    "no HTTP": b"hello",
    "the last chunk alone": LAST,
    "a trailer": b"0\r\nX: y\r\n\r\n",
    "a cut within an event": chunk(event("a"))[:60],
    "a cut within a size": b"f",
    "a cut within the end of a chunk": chunk(event("a"))[:-1],
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_things_go_through(name: str) -> None:
    """Whatever comes between usual events is what it always was, and so is what follows it."""
    got = both(*USUAL, STRANGE[name], *USUAL)
    assert got.passed >= 18


@pytest.mark.parametrize("name", STRANGE)
def test_strange_things_behind_usual_ones_in_a_read(name: str) -> None:
    both(*USUAL[:5], USUAL[5] + STRANGE[name] + USUAL[6], *USUAL[7:])


def test_cut_anywhere() -> None:
    """Whole events of a read go past, and the rest waits for the next one."""
    passed = []
    for length in (1, 2, 3, 7, 50, 211, 1000):
        pieces = [CUT[at : at + length] for at in range(0, len(CUT), length)]
        passed.append(both(*USUAL[:3], *pieces, *USUAL).passed)
    print(passed)
    assert max(passed) == 41


def test_many_events_in_a_chunk() -> None:
    assert both(*USUAL[:3], chunk(b"".join(event(str(number)) for number in range(500)))).passed == 501


def test_a_flood_ends_with_a_chunk_once() -> None:
    """No read of a flood ends where a chunk ends, so one is made to."""
    flood = CUT * 40
    pieces = [flood[at : at + 1000] for at in range(0, len(flood), 1000)]
    assert both(*pieces).passed > 700


def test_fuzz(seed: int) -> None:
    assert shortcuts.fuzz(size(20_000, 10_000_000), seed).passed > 0


def test_the_fuzzer_goes_past_the_interpreter() -> None:
    """With one seed, since a few floods decide how many do."""
    found = shortcuts.fuzz(20_000, 1)
    assert found.passed > found.frames / 10


def _leaks(self: Frames, data: bytes) -> Template | None:
    """A template that leaves the event as the router said it."""
    template = _proved(self, data)
    return template and template._replace(new_before=template.before, new_after=template.after)


def _uncounted(self: Splice, passed: Passed) -> None:
    """Events go past, and nobody counts them."""


_proved = Frames.template


@pytest.mark.parametrize(
    ("kind", "name", "spoilt"), [(Frames, "template", _leaks), (Splice, "count_passed", _uncounted)]
)
def test_control_the_fuzzer_can_fail(kind: type, name: str, spoilt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind, name, spoilt)
    with pytest.raises(AssertionError):
        shortcuts.fuzz(100_000, 1)


def test_an_event_of_two_lines_is_no_template() -> None:
    """What stands on the second line of one is, without its name, no part of any event."""
    one = event("b").replace(b', "', b',\ndata: "', 1)
    odd = event("b").replace(b', "', b',\n"', 1)
    both(chunk(event("a")), chunk(one), chunk(one), *[chunk(odd)] * 3)


def test_where_a_chunk_ends_with_the_next_one_aiming_ends() -> None:
    """Its end comes before the next size line: each aimed read brings two bytes, and is not tried for ever."""
    first, *others = USUAL
    reads = [first[:-2], *(b"\r\n" + other[:-2] for other in others)]
    assert both(*reads).passed == 0


def test_no_more_than_there_is_room_for() -> None:
    assert shortcuts.run([HEAD, *USUAL], lambda: SplicePoller(INTERVAL_BOUNDS, 0), 1, False).passed == 0


# From outside


class Steady:
    """A caller of an answer that has become steady: many events came one by one, and the router waits."""

    def __init__(self, proxy: Proxy, client: RawClient, model: str) -> None:
        self.proxy = proxy
        self.client = client
        client.send(request_bytes("POST", CHAT, chat(model)))
        assert client.read_head().status == 200
        self._events = client.events()
        self.body = b""
        while b'"19"' not in self.body:
            self.body += next(self._events)

    def rest(self) -> bytes:
        """Everything that comes until the end."""
        return self.body + b"".join(self._events)


def steps(*more: Step, words: Iterable[Step] = ()) -> Iterator[Step]:
    """Twenty events, each of them read by itself, and what follows."""
    first: list[Step] = [Send(stream_head())]
    for number in range(20):
        first += [Send(chunk(event(str(number)))), Drained()]
    yield from (*first, Wait("steady"))
    yield from words
    yield from more


END: tuple[Step, ...] = (Send(chunk(router_event(completion_chunk({}, "stop"))) + chunk(DONE) + LAST_CHUNK),)


@contextmanager
def steady(
    *more: Step,
    words: Iterable[Step] = (),
    model: str = "daily",
    receive_buffer: int | None = None,
    **settings: Any,
) -> Iterator[Any]:
    """A router, and a caller whose answer is steady."""
    with (
        Router() as router,
        Proxy(router, **{"EIDPROXY_ACCELERATOR": "on", **settings}) as proxy,
        RawClient(proxy, receive_buffer=receive_buffer) as client,
    ):
        router.enqueue(steps(*more, words=words))
        yield router, proxy, Steady(proxy, client, model)


def doubled(proxy: Proxy) -> int:
    """How many sockets of a process have a second descriptor."""
    found = Counter[str]()
    for path in Path(f"/proc/{proxy.pid}/fd").iterdir():
        try:
            found[os.readlink(path)] += 1
        except FileNotFoundError:
            continue
    return sum(1 for name, count in found.items() if name.startswith("socket:") and count > 1)


@pytest.mark.parametrize("mode", ["on", "off"])
def test_the_same_is_said_and_counted(mode: str) -> None:
    with steady(*END, EIDPROXY_ACCELERATOR=mode) as (router, proxy, caller):
        assert doubled(proxy) == (mode == "on")
        metrics = proxy.metrics()
        assert metrics[sample("eidproxy_stream_chunks_total", mode="daily")] == 20
        assert metrics[sample("eidproxy_stream_bytes_total", mode="daily")] == len(caller.body)
        assert metrics[sample("eidproxy_chunk_interval_seconds_count", mode="daily")] == 19
        router.release("steady")
        body = caller.rest()
        answer = told(body)
        assert answer.text == "".join(map(str, range(20)))
        assert len({tuple(sorted(one.json())) for one in parse_sse(body) if one.data != "[DONE]"}) == 1
        assert doubled(proxy) == 0
        until(lambda: "chunks" in proxy.log()[-1])
        line = proxy.log()[-1]
        assert (line["outcome"], line["chunks"]) == ("ok", 21)
        assert proxy.metric("eidproxy_fields_stripped_total", field="model") == 21


def test_silence_is_told_and_what_follows_it_goes_on() -> None:
    more = [Send(chunk(event(f"more {number} "))) for number in range(30)]
    with steady(*more, *END, EIDPROXY_STREAM_KEEPALIVE_SECONDS=0.2) as (router, _, caller):
        while b": keepalive" not in caller.body:
            caller.body += next(caller._events)
        router.release("steady")
        answer = told(caller.rest())
        assert answer.text == "".join(map(str, range(20))) + "".join(f"more {number} " for number in range(30))


@pytest.mark.parametrize("way", ["fin", "rst"])
def test_a_caller_that_leaves_is_noticed(way: str) -> None:
    with steady(Stall()) as (router, proxy, caller):
        assert doubled(proxy) == 1
        getattr(caller.client, way)()
        router.wait_for(lambda: router.concurrent == 0)
        until(lambda: doubled(proxy) == 0)
        if way == "fin":
            caller.client.recv_all()  # to its end, which comes though the connection had two descriptors


def test_a_router_that_breaks_is_told() -> None:
    with steady(Send(chunk(event("cut"))[:50]), Drained(), Reset(), EIDPROXY_ROUTER_WEDGE_AFTER=0) as (
        router,
        _,
        caller,
    ):
        router.release("steady")
        answer = told(caller.rest())
        assert answer.text == "".join(map(str, range(20)))
        assert len(answer.errors) == 1


def test_clocks_run_on() -> None:
    """The router is silent for too long, after events that went past the interpreter."""
    with steady(Stall(), **impatient(1.0)) as (_, _, caller):
        assert len(told(caller.rest()).errors) == 1


def test_clocks_know_of_what_went_past() -> None:
    """An answer takes longer than the router may be silent, and nobody looks at the metrics meanwhile."""
    words: list[Step] = []
    for number in range(30):
        words += [Send(chunk(event(f"w{number}"))), Pause(0.1)]
    with steady(*words, *END, **impatient(1.5)) as (router, _, caller):
        router.release("steady")
        answer = told(caller.rest())
        assert answer.errors == []
        assert answer.text.endswith("w29")


def test_a_slow_caller_holds_the_router_up_and_gets_all() -> None:
    text = "x" * 2000
    more = [Send(chunk(event(text))) for _ in range(2000)]
    with steady(*more, *END, receive_buffer=4096, EIDPROXY_STREAM_BUFFER_BYTES=65536) as (router, proxy, caller):
        before = proxy.rss()
        router.release("steady")
        until(lambda: proxy.metric("eidproxy_stream_chunks_total", mode="daily") > 20)
        assert len(told(caller.rest()).text) == len("".join(map(str, range(20)))) + 2000 * 2000
        assert proxy.rss() - before < 3_000_000


def test_an_answer_that_goes_past_is_a_sign_of_life() -> None:
    """One request ends in silence while another is answered past the interpreter: the server does not hang."""
    settings = {**impatient(1.0), "EIDPROXY_ROUTER_READ_TIMEOUT_SECONDS": 60, "EIDPROXY_ROUTER_WEDGE_AFTER": 1}
    words: Iterator[Step] = (step for _ in range(10_000) for step in (Send(chunk(event("w"))), Pause(0.02)))
    with steady(words=words, model="deep", **settings) as (router, proxy, caller), RawClient(proxy) as other:
        router.enqueue([Send(stream_head()), Stall()])
        router.release("steady")
        for _ in range(75):  # longer than a first event may take: the clock has looked at it, and will not soon again
            next(caller._events)
        until(lambda: doubled(proxy) == 1)
        other.send(request_bytes("POST", CHAT, chat("deep")))
        assert other.read_head().get("X-Eid-Error-Reason") == "upstream_silent"
        assert proxy.status()["upstream"]["deep"]["state"] == "live"
        assert next(caller._events)


# Nothing is left lying


@contextmanager
def lines(count: int, clock: Callable[[], float] = time.monotonic) -> Iterator[list[Line]]:
    """Answers of one selector that go past the interpreter."""
    read_poller = shortcuts.read_poller_of(lambda: SplicePoller(INTERVAL_BOUNDS, 9), clock)
    every = [Line(read_poller, random.Random(1)) for _ in range(count)]
    try:
        for line in every:
            for data in (HEAD, *USUAL[:4]):
                line.far.sendall(data)
                line.until_read()
            line.exchange.end_shortcut()
            assert line.relay.passed == 2
            line.far.sendall(USUAL[4])
            line.until_read()
        assert read_poller.shortcuts is not None
        assert len(read_poller.shortcuts.running) == count
        yield every
    finally:
        for line in every:
            line.close()


def test_what_one_turn_leaves_the_next_one_reads() -> None:
    """The time of a turn is over after one socket, and of what was read at the others the kernel knows no more."""
    ticks = iter(range(1_000_000))
    with lines(3, lambda: float(next(ticks))) as every:
        for line in every:
            line.far.sendall(STRANGE["the end"])
        every[0]._read_ready()
        assert [line.relay.over for line in every].count("done") == 1
        for _ in range(5):
            every[0].loop.turn()
        assert [line.relay.over for line in every] == ["done", "done", "done"]


def test_what_is_found_while_the_rest_is_due_waits_and_is_not_lost() -> None:
    """The turn has used its time, and nothing is left of it; of what a shortcut reads now the kernel knows no more."""
    ticks = iter(range(1_000_000))
    with lines(3, lambda: float(next(ticks))) as every:
        *first, late = every
        for line in first:
            line.far.sendall(STRANGE["the end"])
        late._read_ready()
        late.loop.turn()
        assert [line.relay.over for line in first] == ["done", "done"]
        late.far.sendall(STRANGE["the end"])
        late._read_ready()
        assert late.relay.over is None
        late.loop.turn()
        assert late.relay.over == "done"


def test_what_was_read_is_given_to_who_looks() -> None:
    """A part of an event was read when somebody ends the shortcut: silence is silence, and nothing more is unread."""
    with lines(1) as (line,):
        line.far.sendall(USUAL[5][:60])
        line.until_read()
        line.exchange.end_shortcut()
        line.loop.turn()
        assert not line.exchange.has_unread()
        line.far.sendall(USUAL[5][60:])
        line.until_read()
        assert line.relay.stream.chunks == 6


def test_what_was_read_waits_while_the_caller_does() -> None:
    """A paused exchange hands nothing on, and hands it on when it goes on."""
    with lines(1) as (line,):
        line.far.sendall(USUAL[5] + USUAL[6][:60])
        line.until_read()
        line.exchange.pause()
        line.loop.turn()
        line.exchange.resume()
        line.loop.turn()
        line.far.sendall(USUAL[6][60:])
        line.until_read()
        assert line.relay.stream.chunks == 7


def test_telling_fails_and_the_connection_is_closed() -> None:
    """As when any other callback fails: it is told, and nothing stays open."""
    with lines(1) as (line,):

        class Failing:
            def count_passed(self, passed: Passed) -> None:
                raise LookupError

        cast(Any, line.transport)._shortcut._counter = Failing()
        line.far.sendall(USUAL[5])
        line.until_read()
        assert line.loop.faults == []
        line.far.sendall(STRANGE["the end"])
        line.until_read()
        assert [type(fault) for fault in line.loop.faults] == [LookupError]
        assert line.transport.is_closing()
        assert line.relay.over == "ReadError"


def test_what_cannot_be_given_back_ends_the_answer() -> None:
    """Without memory for what was read the answer has a hole, and must not go on."""

    class Poller:
        def take(self, _: int) -> None:
            return None

        def disarm(self, _: int) -> tuple[bytes, int]:
            raise MemoryError

    every = Shortcuts.__new__(Shortcuts)
    every.poller, every.running = cast(Any, Poller()), set()

    class Reader:
        asked = 0

        def read_soon(self) -> None:
            self.asked += 1

    reader = Reader()
    one = Shortcut(every, 5, reader)
    one._counter = cast(Any, object())
    with pytest.raises(MemoryError):
        one.end()
    assert reader.asked == 1
    with pytest.raises(OSError, match="Input/output"):
        one.read()


def test_a_flood_aims_no_further_than_a_read_goes() -> None:
    """A router says how long its chunk is, and not how much is read at once."""
    body = b"".join(USUAL[0][5:-2] for _ in range(2000))
    both(chunk(body)[:3000], chunk(body)[3000:60000], chunk(body)[60000:])
