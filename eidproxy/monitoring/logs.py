"""Logs: one line for each request and one for each change of state, from a closed schema.

A line holds members of enumerations, numbers and our own ids, never text that came from a caller or a router. An
exception is logged as its class and its frames, without its message, which may quote a prompt.
"""

import contextlib
import fcntl
import logging
import os
import select
import stat
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import structlog

from eidproxy.errors import OPERATOR_REASONS
from eidproxy.monitoring.record import RequestRecord
from eidproxy.vocabulary import Outcome

_encode = msgspec.json.Encoder().encode
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_MAX_LINE_BYTES = 4096
"""Linux's PIPE_BUF: a write of at most this much to a writable pipe neither blocks nor is split."""


_REFUSALS_SECONDS = 1.0
"""A flood of refusals gets one line in each of these intervals."""
_REFUSALS_AT_ONCE = 8
"""How many refusals are logged at once: a person's few mistakes have a line each; a flood has one a second."""
_FOLLOW_SECONDS = 1.0
"""The shortest time between two looks at whether the log file was rotated."""


class Event(StrEnum):
    """The name of each kind of log line."""

    REQUEST = "request"
    STARTED = "started"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAULT = "fault"
    ROUTER_REACHABLE = "router_reachable"
    ROUTER_UNREACHABLE = "router_unreachable"
    GATE_AVAILABLE = "gate_available"
    GATE_UNAVAILABLE = "gate_unavailable"
    EGRESS_BLOCKED = "egress_blocked"
    RULES_MISSING = "rules_missing"
    UPSTREAM_STATE = "upstream_state"


class RequestLine(msgspec.Struct, omit_defaults=True, tag_field="event", tag=Event.REQUEST.value):
    """The line of an ended request. Facts that are None are left out."""

    reason: str
    request_id: str
    surface: str
    mode: str
    outcome: str
    status: int
    total_ms: float
    priority: str | None = None
    gate_wait_ms: float | None = None
    ttft_ms: float | None = None
    chunks: int | None = None
    bytes: int | None = None
    trace_id: str | None = None
    left_out: int | None = None
    """How many refusals before this one have no line; see `Refusals`."""


class LineWriter:
    """A writer of whole lines to a descriptor that never waits: a reader that stopped reading must not stop the proxy.

    It follows a rotated file: when its name leads to another file, the descriptor is opened again. launchd opens the
    file only once, and newsyslog only renames it (DESIGN, 35).
    """

    def __init__(
        self,
        descriptor: int,
        on_drop: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        call_soon: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        """`call_soon` is the loop's, for `gather`; without it each line is written at once."""
        self._descriptor = descriptor
        self._call_soon = call_soon
        self._gathered: list[bytes] = []
        """The lines of this turn that are not yet written."""
        self._gathered_bytes = 0
        self._is_flush_scheduled = False
        self._on_drop = on_drop
        self._clock = clock
        self._rotation_checked_at = clock()
        # A regular file is always writable, so it is not polled.
        self._may_block = not stat.S_ISREG(os.fstat(descriptor).st_mode)
        # `poll` says that a pipe takes PIPE_BUF bytes: 4,096 on Linux, 512 on macOS.
        self._max_shared_bytes = select.PIPE_BUF if self._may_block else _MAX_LINE_BYTES
        self._path = None if self._may_block else _path_of(descriptor)
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def msg(self, line: bytes | str) -> None:
        """Write one line, cut to 4,096 bytes, behind those that are gathered; drop it if it cannot be written now."""
        self.flush()
        self._write(_cut(line.encode() if isinstance(line, str) else line), 1)

    debug = info = warning = error = critical = msg

    def gather(self, line: bytes) -> None:
        """Write one line by the end of the loop's turn, in one write with others of that turn.

        No more than one write is held: a pipe's reader gets its time while a turn ends many requests, and a process
        that dies takes few lines with it.
        """
        if self._call_soon is None:
            self.msg(line)
            return
        line = _cut(line)
        if self._gathered_bytes + len(line) > self._max_shared_bytes:
            self.flush()
        if not self._is_flush_scheduled:
            self._is_flush_scheduled = True
            self._call_soon(self._flush_at_turn_end)
        self._gathered.append(line)
        self._gathered_bytes += len(line)

    def _flush_at_turn_end(self) -> None:
        self._is_flush_scheduled = False
        self.flush()

    def flush(self) -> None:
        """Write what is gathered."""
        if self._gathered:
            lines, self._gathered, self._gathered_bytes = self._gathered, [], 0
            self._write(b"".join(lines), len(lines))

    def stop_gathering(self) -> None:
        """Write what is gathered, and from now on each line at once: the loop makes no more turns."""
        self._call_soon = None
        self.flush()

    def _write(self, data: bytes, lines: int) -> None:
        try:
            if self._may_block:
                ready = self._poll.poll(0)
                writable = bool(ready) and not ready[0][1] & (select.POLLERR | select.POLLNVAL)
            else:
                writable = True
                self._reopen_if_rotated()
            if writable:
                written = os.write(self._descriptor, data)
                lines = 0 if written == len(data) else lines - data.count(b"\n", 0, written)
        except OSError:
            pass  # a full disk or a closed pipe: counted like a reader that stopped reading
        for _ in range(lines):
            self._on_drop()

    def _reopen_if_rotated(self) -> None:
        now = self._clock()
        if self._path is None or now - self._rotation_checked_at < _FOLLOW_SECONDS:
            return
        self._rotation_checked_at = now
        with contextlib.suppress(OSError):  # no new file yet, or not ours: the old one is better than none
            named, ours = os.stat(self._path), os.fstat(self._descriptor)
            if stat.S_ISREG(named.st_mode) and not os.path.samestat(named, ours):
                opened = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                os.dup2(opened, self._descriptor)
                os.close(opened)


def _cut(line: bytes) -> bytes:
    return line[: _MAX_LINE_BYTES - 1] + b"\n"


def _path_of(descriptor: int) -> str | None:
    """Return the path of an open file, or None where the system does not tell it."""
    try:
        if sys.platform == "darwin":
            return os.fsdecode(fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0"))
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return None


class Log:
    """The log: every line is written through it."""

    def __init__(
        self,
        level: str,
        fmt: str,
        on_drop: Callable[[], None] = lambda: None,
        call_soon: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        """`call_soon` is the loop's: with it the lines of requests that end in one turn share a write."""
        console = fmt == "console" or (fmt == "auto" and sys.stderr.isatty())
        renderer: Any = (
            ConsoleRenderer(colour=sys.stderr.isatty() and "NO_COLOR" not in os.environ)
            if console
            else structlog.processors.JSONRenderer(serializer=_to_json)
        )
        self._writer = LineWriter(sys.stderr.fileno(), on_drop, call_soon=call_soon)
        self._lowest_level = logging.getLevelNamesMapping()[level.upper()]
        self._console = console
        self._logger = structlog.wrap_logger(
            self._writer,
            processors=[_add_timestamp, renderer],
            wrapper_class=structlog.make_filtering_bound_logger(self._lowest_level),
        ).bind()

    def request(self, record: RequestRecord, left_out: int | None = None) -> None:
        """Log an ended request: level error if an operator must mend the cause, warning for other errors, else info."""
        label = record.label
        level = "info"
        if record.outcome is Outcome.ERROR:
            level = "error" if record.must_be_mended or label in OPERATOR_REASONS else "warning"
        if self._lowest_level > _LEVELS[level]:
            return
        line = RequestLine(
            reason=label if label == "other" else record.reason or "none",
            request_id=record.request_id,
            surface=record.surface,
            mode=record.mode,
            outcome=record.outcome,
            status=record.status,
            total_ms=round(record.seconds * 1e3, 1),
            priority=record.priority,
            gate_wait_ms=_milliseconds(record.gate_wait),
            ttft_ms=_milliseconds(record.first_event),
            chunks=record.chunks,
            bytes=record.bytes,
            trace_id=record.trace_id,
            left_out=left_out,
        )
        if self._console:
            facts = {name: fact for name, fact in msgspec.structs.asdict(line).items() if fact is not None}
            getattr(self._logger, level)(Event.REQUEST.value, **facts)
            return
        # The line that structlog would write. Its processors cost as much as everything else at a request's end.
        self._writer.gather(
            b'{"timestamp":"%b","level":"%b",%b' % (_timestamp().encode(), level.encode(), _encode(line)[1:])
        )

    def stop_gathering(self) -> None:
        """See `LineWriter.stop_gathering`."""
        self._writer.stop_gathering()

    def state(self, event: Event, **facts: str | int | float) -> None:
        """Log a change of state, at level info."""
        self._logger.info(event.value, **facts)

    def alarm(self, event: Event, **facts: str | int | float) -> None:
        """Log a change of state for the worse, at level error."""
        self._logger.error(event.value, **facts)

    def fault(self, where: str, error: BaseException) -> None:
        """Log an unexpected exception: its class and its last eight frames, without its message and without values."""
        frames = [
            f"{Path(frame.filename).name}:{frame.lineno}:{frame.name}"
            for frame in traceback.extract_tb(error.__traceback__)[-8:]
        ]
        self._logger.error(Event.FAULT.value, where=where, error=type(error).__name__, frames=frames)


class Refusals:
    """The rate limit of log lines for requests refused before the relay: eight at once, then one a second.

    Any client can cause tens of thousands of refusals a second, so a line for each would fill a disk. The line at the
    end of a second is that of its last refusal, and its `left_out` counts the others: lines and `left_out` add up to
    all refusals. The metrics count each refusal by its reason. Each second in which no line was held back allows one
    more at once, up to eight.
    """

    def __init__(self, log: Log, call_later: Callable[[float, Callable[[], None]], object]) -> None:
        self._log = log
        self._call_later = call_later
        self._lines_left = _REFUSALS_AT_ONCE
        self._held_back: RequestRecord | None = None
        self._left_out = 0

    def add(self, record: RequestRecord) -> None:
        """Log a refused request, or hold its line back until the end of the second."""
        if self._lines_left:
            if self._lines_left == _REFUSALS_AT_ONCE:
                self._call_later(_REFUSALS_SECONDS, self._on_interval_end)
            self._lines_left -= 1
            self._log.request(record)
            return
        if self._held_back is not None:
            self._left_out += 1
        self._held_back = record

    def flush(self) -> None:
        """Write the line that is held back, if there is one."""
        if self._held_back is not None:
            self._log.request(self._held_back, self._left_out or None)
            self._held_back, self._left_out = None, 0

    def _on_interval_end(self) -> None:
        if self._held_back is None:
            self._lines_left += 1
        self.flush()
        if self._lines_left < _REFUSALS_AT_ONCE:
            self._call_later(_REFUSALS_SECONDS, self._on_interval_end)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 1)


_cached_second, _cached_second_text = -1, ""


def _timestamp() -> str:
    """Return the time in UTC with microseconds (RFC 3339). The second's text is cached: a line then costs half."""
    global _cached_second, _cached_second_text
    second, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
    if second != _cached_second:
        _cached_second, _cached_second_text = second, datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{_cached_second_text}.{microseconds:06d}Z"


def _add_timestamp(_logger: Any, level: str, facts: Any) -> dict[str, Any]:
    """Put timestamp, level and event first, in this order: a line is read from the left."""
    return {"timestamp": _timestamp(), "level": level, "event": facts.pop("event"), **facts}


class ConsoleRenderer:
    """A structlog processor that writes short lines for a person at a terminal, what matters first.

    18:22:59 ok daily fg 200 wait 3.9s ttft 0.1s total 5.1s 50 chunks 2fb5fcda
    """

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour

    def __call__(self, _logger: Any, level: str, facts: dict[str, Any]) -> str:
        """See structlog's processors."""
        local_time = datetime.fromisoformat(facts["timestamp"]).astimezone()
        if facts["event"] == Event.REQUEST:
            word, rest = _request_words(facts)
        else:
            word, rest = facts["event"], _fact_words(facts)
        style = _STYLES["ok" if word == "ok" else level]
        shown = f"\x1b[{style}m{word}\x1b[0m" if self._colour and style else word
        return " ".join([f"{local_time:%H:%M:%S}", shown, *rest])


_STYLES = {"ok": "32", "info": "", "warning": "33", "error": "1;31"}
_SHORT_PRIORITIES = {"foreground": "fg", "background": "bg"}
_OWN_ID_LENGTH = 24
"""The length of the ids that we make; an id of another length is a caller's."""


def _request_words(facts: dict[str, Any]) -> tuple[str, list[str]]:
    """Return how a request ended, and its other facts in the order in which a reader looks for them."""
    words = []
    if facts["surface"] == "chat":
        words.append("chat")
    if facts["mode"] != "none":
        words.append(facts["mode"])
    if "priority" in facts:
        words.append(_SHORT_PRIORITIES.get(facts["priority"], facts["priority"]))
    words.append(str(facts["status"]))
    words += [
        f"{name} {facts[key] / 1000:.1f}s"
        for name, key in (("wait", "gate_wait_ms"), ("ttft", "ttft_ms"), ("total", "total_ms"))
        if key in facts
    ]
    if facts.get("chunks"):
        words.append(f"{facts['chunks']} chunks")
    request_id = facts["request_id"]
    # Our own ids are random, so their first digits differ. A caller's ids may all begin alike.
    words.append(request_id[:8] if len(request_id) == _OWN_ID_LENGTH else request_id)
    if "trace_id" in facts:
        words.append(f"trace {facts['trace_id']}")
    if "left_out" in facts:
        words.append(f"and {facts['left_out']} more refused")
    return "ok" if facts["outcome"] == "ok" else facts["reason"], words


def _fact_words(facts: dict[str, Any]) -> list[str]:
    if facts["event"] == Event.DRAINING:
        running, at_most = facts["running"], facts["at_most_seconds"]
        advice = f": ends in at most {at_most:g} s; Ctrl-C again stops now" if running else ""
        return [f"{running} running{advice}"]
    words = []
    for name, fact in facts.items():
        if name not in ("timestamp", "level", "event"):
            words += [name, " < ".join(reversed(fact)) if isinstance(fact, list) else str(fact)]
    return words


def _to_json(value: Any, **_: Any) -> bytes:
    return _encode(value)


def silence_libraries() -> None:
    """Silence the loggers of libraries, logging's last resort, and all warnings."""
    logging.lastResort = None
    root = logging.getLogger()
    root.handlers = [logging.NullHandler()]
    root.setLevel(logging.CRITICAL + 1)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "httpx", "httpcore", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = False
        logger.disabled = True
    warnings.simplefilter("ignore")
