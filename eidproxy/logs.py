"""Logs: one line for each request and one for each change of state, from a closed schema.

A line holds members of enumerations, numbers and our own ids, never text that came from a caller or a router. An
exception is its class and the places it passed: its words may quote a prompt.
"""

import logging
import os
import select
import stat
import sys
import traceback
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import structlog

_encode = msgspec.json.Encoder().encode
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_MAX_LINE_BYTES = 4096
"""PIPE_BUF: a write of at most this much to a writable pipe neither blocks nor is split."""


class Event(StrEnum):
    """Every event there is."""

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


_ERRORS = frozenset({"router_rejected", "egress_blocked", "internal_error", "rules_missing"})
"""Reasons that an operator must mend."""


class RequestLine(msgspec.Struct, omit_defaults=True, tag_field="event", tag=Event.REQUEST.value):
    """The line of an ended request. Facts that are None are left out; `level` and `timestamp` are the log's."""

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
    level: str | None = None
    timestamp: str | None = None


class LineWriter:
    """Writes whole lines to a descriptor and never waits: a reader that stopped reading must not stop the proxy."""

    def __init__(self, descriptor: int, on_drop: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._on_drop = on_drop
        # A regular file takes whatever comes.
        self._may_block = not stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def msg(self, line: bytes | str) -> None:
        """Write one line, or drop it when nobody reads."""
        data = (line.encode() if isinstance(line, str) else line)[: _MAX_LINE_BYTES - 1] + b"\n"
        try:
            if self._may_block:
                ready = self._poll.poll(0)
                writable = bool(ready) and not ready[0][1] & (select.POLLERR | select.POLLNVAL)
            else:
                writable = True
            if writable:
                os.write(self._descriptor, data)
                return
        except OSError:
            pass  # a full disk or a closed pipe: counted like a reader that does not read
        self._on_drop()

    debug = info = warning = error = critical = msg


class Log:
    """The one way to write a line."""

    def __init__(self, level: str = "info", fmt: str = "auto", on_drop: Callable[[], None] = lambda: None) -> None:
        console = fmt == "console" or (fmt == "auto" and sys.stderr.isatty())
        renderer: Any = (
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
            if console
            else structlog.processors.JSONRenderer(serializer=_to_json)
        )
        self._writer = LineWriter(sys.stderr.fileno(), on_drop)
        self._lowest = logging.getLevelNamesMapping()[level.upper()]
        self._console = console
        self._logger = structlog.wrap_logger(
            self._writer,
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                renderer,
            ],
            wrapper_class=structlog.make_filtering_bound_logger(self._lowest),
        ).bind()

    def request(self, line: RequestLine) -> None:
        """One ended request."""
        level = "info"
        if line.outcome == "error":
            level = "error" if line.reason in _ERRORS else "warning"
        if self._lowest > _LEVELS[level]:
            return
        if self._console:
            facts = {name: fact for name, fact in msgspec.structs.asdict(line).items() if fact is not None}
            getattr(self._logger, level)(Event.REQUEST.value, **facts)
            return
        # The line that structlog would write. Its chain costs as much as all else that is done at a request's end.
        line.level = level
        line.timestamp = datetime.now(UTC).isoformat()[:-6] + "Z"
        self._writer.msg(_encode(line))

    def state(self, event: Event, **facts: str | int | float) -> None:
        """One change of state."""
        self._logger.info(event.value, **facts)

    def alarm(self, event: Event, **facts: str | int | float) -> None:
        """One change of state for the worse."""
        self._logger.error(event.value, **facts)

    def fault(self, where: str, error: BaseException) -> None:
        """An exception nobody expected: its class and the frames it passed, without its words and without values."""
        frames = [
            f"{Path(frame.filename).name}:{frame.lineno}:{frame.name}"
            for frame in traceback.extract_tb(error.__traceback__)[-8:]
        ]
        self._logger.error(Event.FAULT.value, where=where, error=type(error).__name__, frames=frames)


def _to_json(value: Any, **_: Any) -> bytes:
    return _encode(value)


def silence_libraries() -> None:
    """Take every other way to the outputs away: library loggers, warnings, unraisable exceptions, core dumps' words."""
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
