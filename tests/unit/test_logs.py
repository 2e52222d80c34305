"""logs: lines that hold nothing they should not, and that never wait."""

import contextlib
import json
import logging
import os
import re
import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from eidproxy.monitoring.logs import ConsoleRenderer, Event, LineWriter, Log, Refusals, silence_libraries
from eidproxy.monitoring.record import RequestRecord
from eidproxy.vocabulary import Priority, Surface
from tests.lab.client import ANSWER_CANARY, CHAT, PROMPT_CANARY, ask, chat
from tests.lab.proxy import Proxy
from tests.lab.router import Router
from tests.lab.tools import until


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        os.close(descriptor)


def test_a_pipe_that_nobody_reads_costs_lines_not_time(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    dropped: list[None] = []
    out = LineWriter(writer, lambda: dropped.append(None))
    line = b"x" * 500
    for _ in range(1000):
        out.msg(line)  # one that waits waits for ever
    assert dropped, "a pipe holds 64 KiB"
    kept = os.read(reader, 1_000_000)
    assert kept == (line + b"\n") * (1000 - len(dropped)), "what was written is whole lines"
    out.msg(line)
    assert os.read(reader, 1_000_000) == line + b"\n", "read again, written again"


def test_a_closed_pipe_is_no_fault() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    dropped: list[None] = []
    try:
        LineWriter(writer, lambda: dropped.append(None)).msg("line")
    finally:
        os.close(writer)
    assert len(dropped) == 1


on_linux = pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="pipes of packets are Linux's")
Packets = tuple[Callable[[], list[bytes]], int]


@pytest.fixture
def packets() -> Iterator[Packets]:
    """A reader of what each write wrote (pipe(7), O_DIRECT), and the descriptor to write to."""
    reader, writer = os.pipe2(os.O_DIRECT | os.O_NONBLOCK)

    def read() -> list[bytes]:
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(os.read(reader, 4096))
        return found

    yield read, writer
    for descriptor in (reader, writer):
        os.close(descriptor)


@on_linux
def test_the_requests_of_one_turn_share_a_write(packets: Packets) -> None:
    read, descriptor = packets
    soon: list[Callable[[], None]] = []
    writer = LineWriter(descriptor, lambda: None, call_soon=soon.append)
    for word in (b"one", b"two"):
        writer.gather(word)
    assert read() == []
    soon.pop()()
    assert (read(), soon) == ([b"one\ntwo\n"], [])
    writer.gather(b"three")
    writer.msg("four")  # a change of state is written now, and in its place
    assert read() == [b"three\n", b"four\n"]
    soon.pop()()
    assert read() == []


@on_linux
def test_no_more_than_one_write_is_held(packets: Packets) -> None:
    """A turn that ends thousands of requests would fill the pipe before its reader had any time."""
    read, descriptor = packets
    soon: list[Callable[[], None]] = []
    writer = LineWriter(descriptor, lambda: None, call_soon=soon.append)
    found = []
    for size in (2047, 2047, 1, 5000, 4094, 1):
        writer.gather(b"x" * size)
        found.append([len(packet) for packet in read()])
    assert found == [[], [], [4096], [2], [4096], [4095]]
    assert len(soon) == 1
    soon.pop()()
    assert read() == [b"x\n"]


def test_lines_that_a_full_disk_cuts_off_are_counted(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    dropped: list[None] = []
    soon: list[Callable[[], None]] = []
    file = tmp_path / "log"
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    writer = LineWriter(descriptor, lambda: dropped.append(None), call_soon=soon.append)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (250, hard))
        for _ in range(4):
            writer.gather(b"x" * 99)
        soon.pop()()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
        os.close(descriptor)
    assert (file.read_bytes().count(b"\n"), len(dropped)) == (2, 2)


def test_each_line_of_a_shared_write_that_is_dropped_is_counted() -> None:
    reader, descriptor = os.pipe()
    os.close(reader)
    dropped: list[None] = []
    soon: list[Callable[[], None]] = []
    writer = LineWriter(descriptor, lambda: dropped.append(None), call_soon=soon.append)
    try:
        writer.gather(b"one")
        writer.gather(b"two")
        soon.pop()()
    finally:
        os.close(descriptor)
    assert len(dropped) == 2


@on_linux
def test_when_the_loop_makes_no_more_turns_each_line_is_written_at_once(packets: Packets) -> None:
    read, descriptor = packets
    writer = LineWriter(descriptor, lambda: None, call_soon=lambda _: None)
    writer.gather(b"one")
    writer.stop_gathering()
    writer.gather(b"two")
    assert read() == [b"one\n", b"two\n"]


def lines(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capfd.readouterr().err.splitlines()]


def test_a_fault_is_a_class_and_places(capfd: pytest.CaptureFixture[str]) -> None:
    def fails(prompt: str) -> None:
        raise ValueError(prompt)

    try:
        fails(PROMPT_CANARY)
    except ValueError as error:
        Log("info", "json").fault("relay", error)
    (line,) = lines(capfd)
    assert (line["event"], line["error"], line["where"]) == ("fault", "ValueError", "relay")
    assert line["frames"][-1].startswith("test_logs.py:")
    assert PROMPT_CANARY not in json.dumps(line)


def test_a_file_that_is_rotated_is_followed(tmp_path: Path) -> None:
    """As newsyslog and logrotate do it: the file is renamed, then made anew."""
    file, rotated, now = tmp_path / "log", tmp_path / "log.0", [0.0]
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    writer = LineWriter(descriptor, lambda: None, lambda: now[0])
    writer.msg("one")
    now[0] = 10.0
    writer.msg("two")  # it is still there
    file.rename(rotated)
    now[0] = 20.0
    writer.msg("three")  # there is no other yet
    file.touch()
    writer.msg("four")  # looked at a moment ago
    now[0] = 30.0
    writer.msg("five")
    writer.msg("six")
    os.close(descriptor)
    assert rotated.read_text() == "one\ntwo\nthree\nfour\n"
    assert file.read_text() == "five\nsix\n"


def test_what_is_no_file_in_its_place_is_not_followed(tmp_path: Path) -> None:
    file, rotated, now = tmp_path / "log", tmp_path / "log.0", [0.0]
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    writer = LineWriter(descriptor, lambda: None, lambda: now[0])
    file.rename(rotated)
    os.mkfifo(file)  # opening it would wait for a reader
    now[0] = 10.0
    writer.msg("one")
    os.close(descriptor)
    assert rotated.read_text() == "one\n"


def request(reason: str | None, **facts: Any) -> RequestRecord:
    known = {"request_id": "id-1", "surface": Surface.PROXY, "mode": "daily", "status": 200, "seconds": 0.0015}
    return RequestRecord(reason=reason, **{**known, **facts})


def refused(name: str) -> RequestRecord:
    return request("not_found", request_id=name, mode="none", status=404, seconds=0.0004)


def test_levels_of_requests(capfd: pytest.CaptureFixture[str]) -> None:
    log = Log("info", "json")
    log.request(request(None, chunks=2))
    log.request(request("client_gone"))
    log.request(request("upstream_truncated"))
    log.request(request("router_rejected"))
    log.state(Event.STARTED, port=1)
    written = lines(capfd)
    assert [line["level"] for line in written] == ["info", "info", "warning", "error", "info"]
    assert "trace_id" not in written[0]
    Log("warning", "json").request(request(None, chunks=2))
    assert lines(capfd) == []


def test_json_begins_with_the_moment(capfd: pytest.CaptureFixture[str]) -> None:
    """A line that is cut off still says when, how bad and what; `trace_id` stands there only when there is one."""
    log = Log("info", "json")
    log.request(request(None, chunks=2))
    log.state(Event.STARTED, port=1)
    for line in lines(capfd):
        assert list(line)[:3] == ["timestamp", "level", "event"]
        assert datetime.fromisoformat(line["timestamp"]).tzinfo is not None
        assert line.keys().isdisjoint({"trace_id", "priority"})


OWN_ID = "2fb5fcda9e8d7c6b5a493827"


@pytest.mark.parametrize(
    ("record", "shown"),
    [
        (
            request(
                None,
                request_id=OWN_ID,
                seconds=5.1,
                priority=Priority.FOREGROUND,
                gate_wait=3.9,
                first_event=0.1,
                chunks=50,
                bytes=9000,
            ),
            "ok daily fg 200 wait 3.9s ttft 0.1s total 5.1s 50 chunks 2fb5fcda",
        ),
        (
            request(
                "gate_queue_full",
                request_id="mine",
                surface=Surface.CHAT,
                mode="deep",
                status=503,
                seconds=0.02,
                priority=Priority.BACKGROUND,
                gate_wait=0.0,
                chunks=0,
                trace_id="ab" * 16,
            ),
            f"gate_queue_full chat deep bg 503 wait 0.0s total 0.0s mine trace {'ab' * 16}",
        ),
        (refused(OWN_ID), "not_found 404 total 0.0s 2fb5fcda"),
        (
            request("client_gone", request_id=OWN_ID, mode="deep", status=499, seconds=0.9),
            "client_gone deep 499 total 0.9s 2fb5fcda",
        ),
    ],
    ids=["ok", "error", "no mode", "left"],
)
def test_a_terminal_gets_one_short_line(record: RequestRecord, shown: str, capfd: pytest.CaptureFixture[str]) -> None:
    Log("info", "console").request(record)
    (told,) = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d", told[:8])
    assert told[9:] == shown


def test_states_on_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    log = Log("info", "console")
    log.state(Event.STARTED, version="1.0", port=8790)
    log.state(Event.DRAINING, running=1, at_most_seconds=60.0)
    log.state(Event.DRAINING, running=0, at_most_seconds=60.0)
    log.alarm(Event.RULES_MISSING, setting="chat.rules_file")
    assert [line[9:] for line in capfd.readouterr().err.splitlines()] == [
        "started version 1.0 port 8790",
        "draining 1 running: ends in at most 60 s; Ctrl-C again stops now",
        "draining 0 running",
        "rules_missing setting chat.rules_file",
    ]


@pytest.mark.parametrize(("level", "style"), [("info", "32"), ("warning", "33"), ("error", "1;31")])
def test_a_colour_says_how_bad(level: str, style: str) -> None:
    facts: dict[str, Any] = {
        "timestamp": "2026-11-26T21:40:51Z",
        "event": "request",
        "surface": "proxy",
        "mode": "deep",
    }
    facts |= {"status": 200, "request_id": "x", "outcome": "ok" if level == "info" else "error", "reason": "word"}
    word = "ok" if level == "info" else "word"
    assert f"\x1b[{style}m{word}\x1b[0m" in ConsoleRenderer(colour=True)(None, level, facts)
    assert "\x1b" not in ConsoleRenderer(colour=False)(None, level, facts)


def test_refusals_have_a_line_a_second(capfd: pytest.CaptureFixture[str]) -> None:
    """On a clock of the test's own: what was left out is told, and nothing twice."""
    due: list[Callable[[], None]] = []
    refusals = Refusals(Log("info", "json"), lambda seconds, call: due.append(call))

    def told() -> list[tuple[str, int]]:
        return [(line["request_id"], line.get("left_out", 0)) for line in lines(capfd)]

    def refuse(*names: str) -> None:
        for name in names:
            refusals.add(refused(name))

    few = [f"few {number}" for number in range(8)]
    refuse(*few, "a", "b", "c")
    assert told() == [(name, 0) for name in few]
    due.pop()()
    assert told() == [("c", 2)]
    refuse("d")
    assert told() == []  # in the second of that line
    due.pop()()
    assert told() == [("d", 0)]
    due.pop()()
    refuse("e", "f")  # a second without a refusal allows one at once
    assert told() == [("e", 0)]
    due.pop()()
    assert told() == [("f", 0)]
    for _ in range(8):
        due.pop()()
    assert not due  # eight seconds without a refusal end it
    refuse(*few, "g", "h")
    refusals.flush()  # as at the end of the process
    refusals.flush()
    assert told() == [*((name, 0) for name in few), ("h", 1)]
    due.pop()()
    assert told() == []


def test_a_flood_of_refusals_is_a_few_lines(router: Router) -> None:
    with Proxy(router) as proxy:
        began = time.monotonic()
        for number in range(400):
            ask(proxy, "GET", f"/nothing/{number}")
            ask(proxy, "POST", CHAT, b"no json")
        seconds = time.monotonic() - began
        assert proxy.status()["outcomes"] == {"not_found": 400, "invalid_json": 400}

        def found() -> list[dict[str, Any]]:
            return [line for line in proxy.log() if line["event"] == "request"]

        until(lambda: sum(1 + line.get("left_out", 0) for line in found()) == 800)
        assert {line["reason"] for line in found()} <= {"not_found", "invalid_json"}
        assert len(found()) <= seconds + 10  # eight, one for each second, and the last


def test_libraries_are_silent(capfd: pytest.CaptureFixture[str]) -> None:
    pid = os.fork()  # what it changes is global
    if not pid:
        silence_libraries()
        for name in (None, "uvicorn.error", "httpx", "asyncio", "somebody.else"):
            logging.getLogger(name).critical(PROMPT_CANARY)
        warnings.warn(PROMPT_CANARY, stacklevel=1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert capfd.readouterr() == ("", "")


def test_the_proxy_serves_when_nobody_reads_its_output(router: Router, tmp_path: Path) -> None:
    """A supervisor that stopped reading: the pipe is full after some 300 requests."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    holder = os.open(fifo, os.O_RDWR)
    try:
        with Proxy(router, prefix=["sh", "-c", f'exec "$0" "$@" 2>{fifo}']) as proxy:
            for _ in range(600):
                assert ask(proxy, "GET", "/v1/models").status == 200
            assert ask(proxy, "POST", CHAT, chat("daily")).told().text == "Hello world"
            assert proxy.metric("eidproxy_log_lines_dropped_total") > 0
    finally:
        os.close(holder)


def test_a_canary_in_the_output_is_found(router: Router) -> None:
    """The control of every suite's grep over the output."""
    prefix = ["sh", "-c", f'echo {ANSWER_CANARY}; exec "$0" "$@"']
    with pytest.raises(AssertionError, match=ANSWER_CANARY), Proxy(router, prefix=prefix):
        pass
