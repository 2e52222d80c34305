"""`eidproxy top`: what the live view shows, in a terminal. It asks `/status` and, each five seconds, `/metrics`.

The answer is read into closed types and only printable ASCII is taken, so a server that is not eidproxy cannot speak
to the terminal. Everything but `watch` and `Screen` takes values and returns values.
"""

import asyncio
import os
import re
import shutil
import signal
import ssl
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Annotated, Any, NamedTuple, TextIO

import httpx
import msgspec
from msgspec import Meta, Struct

from eidproxy.config import Settings
from eidproxy.signals import stop_signals

_METRICS_SECONDS = 5.0
_PATIENCE_SECONDS = 5.0
_WINDOW = 60
"""Samples of a trend that are kept: five minutes of them."""

_MAX_ANSWER_BYTES = 4 << 20
_LATE = 0.9
"""The part of a deadline after which an age is shown as late."""

_UNREADABLE = "does not answer like eidproxy"

# \Z and not $, which would let a line end pass.
Word = Annotated[str, Meta(pattern=r"^[ -~]{0,64}\Z")]


class Holder(Struct):
    """One slot in use."""

    mode: Word
    priority: Word
    age_seconds: float


class Waiter(Struct):
    """One place in the queue."""

    priority: Word
    position: int
    age_seconds: float


class GateStatus(Struct):
    """The gate."""

    slots: int
    in_use: int
    queue_limit: int
    holders: list[Holder]
    waiting: list[Waiter]
    mean_hold_seconds: float | None


class Deadlines(Struct):
    """How long a request may take and wait."""

    stream_seconds: float
    gate_wait_seconds: float


class RouterStatus(Struct):
    """The last look at the router."""

    reachable: bool | None
    checked_seconds_ago: float | None


class Status(Struct):
    """The answer of `/status` (contract, 2)."""

    version: Word
    uptime_seconds: float
    draining: bool
    gate: GateStatus
    streams: dict[Word, int]
    outcomes: dict[Word, int]
    deadlines: Deadlines
    router: RouterStatus


class Total(NamedTuple):
    """What a histogram has added up."""

    seconds: float = 0.0
    requests: int = 0

    @property
    def mean(self) -> float | None:
        """Seconds, or None when nothing was counted."""
        return self.seconds / self.requests if self.requests else None


class Trend:
    """One histogram of `/metrics` over time."""

    def __init__(self, title: str, family: str, labels: str) -> None:
        self.title = title
        self._names = [f"\neidproxy_{family}_seconds_{part}{{{labels}}} " for part in ("sum", "count")]
        self.total: Total | None = None
        self.samples: deque[Total] = deque(maxlen=_WINDOW)

    def add(self, text: str, *, is_new: bool = False) -> None:
        """Take what a scrape says; what came since the last one, or since a new process began, is a sample."""
        seconds, count = (_value(text, name) for name in self._names)
        last, self.total = self.total, Total(seconds, int(count))
        if last is not None:
            last = Total() if is_new else last
            self.samples.append(Total(seconds - last.seconds, self.total.requests - last.requests))

    @property
    def recent(self) -> Total:
        """The sum of the samples."""
        return Total(sum(one.seconds for one in self.samples), sum(one.requests for one in self.samples))


def _value(text: str, name: str) -> float:
    start = text.find(name)
    try:
        return float(text[start + len(name) :].split("\n", 1)[0]) if start >= 0 else 0.0
    except ValueError:
        raise TopError(_UNREADABLE) from None


class View:
    """All that is known about the proxy: its last answer, what was seen before, what is wrong now."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.status: Status | None = None
        self.fault: str | None = None
        self.answered_at = 0.0
        self.opened: dict[str, int] = {}
        """The outcomes when the view was opened."""
        self.started: float | None = None
        """When the process that answers began, as /metrics has it."""
        self.depths: deque[int] = deque(maxlen=_WINDOW)
        waits = [(f"gate wait, {word}", "gate_wait", f'outcome="granted",priority="{word}"') for word in _PRIORITIES]
        firsts = [(f"first token, {word}", "time_to_first_token", f'mode="{word}"') for word in ("daily", "deep")]
        self.trends = [Trend(*words) for words in (*waits, *firsts)]

    def show(self, status: Status, now: float) -> None:
        """Take an answer of `/status`."""
        if self.status is None:
            self.opened = status.outcomes
        self.status, self.fault, self.answered_at = status, None, now
        self.depths.append(len(status.gate.waiting))

    def scraped(self, text: str) -> None:
        """Take an answer of `/metrics`."""
        started = _value(text, "\neidproxy_start_time_seconds ")
        is_new = self.started is not None and started != self.started
        self.started = started
        if is_new:
            self.opened = {}
        for trend in self.trends:
            trend.add(text, is_new=is_new)

    def may_be_new(self, status: Status) -> bool:
        """Whether another process may have given this answer than the one before."""
        return self.fault is not None or (
            self.status is not None and status.uptime_seconds < self.status.uptime_seconds
        )


_PRIORITIES = ("foreground", "background")


class TopError(Exception):
    """The proxy did not answer as it should. `is_final`: asking again will not help."""

    def __init__(self, message: str, *, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final


# Asking


def is_place(url: str) -> bool:
    """Whether a URL names a place and nothing more: no user, no password, no query."""
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    more = parts.userinfo or parts.query or parts.fragment
    return parts.scheme in ("http", "https") and bool(parts.host) and not more and (parts.port or 1) <= 65535


def connect(settings: Settings, url: str | None) -> tuple[httpx.AsyncClient, str]:
    """A client for `url`, or for the address the settings name, and how to call that place."""
    server = settings.server
    headers = {} if server.api_key is None else {"Authorization": f"Bearer {server.api_key}"}
    uds = None
    if url is not None:
        name = base = url.rstrip("/")
    else:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(server.host, server.host)  # noqa: S104  # compared, not bound
        host = f"[{host}]" if ":" in host else host
        uds = server.uds
        base = "http://localhost" if uds else f"http://{host}:{server.port}"
        name = uds or base
        if settings.allowed_hosts.isdisjoint({"localhost" if uds else host.lower()}):
            headers["Host"] = min(settings.allowed_hosts)
    secure = base.startswith("https:")
    transport = httpx.AsyncHTTPTransport(
        uds=uds, trust_env=False, verify=ssl.create_default_context() if secure else True
    )
    client = httpx.AsyncClient(
        base_url=base,
        headers=headers,
        transport=transport,
        trust_env=False,
        follow_redirects=False,
        timeout=_PATIENCE_SECONDS,
    )
    return client, name


async def _get(client: httpx.AsyncClient, path: str) -> bytes:
    """The body of a 200. Raises TopError."""
    body = bytearray()
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS), client.stream("GET", path) as response:
            if response.status_code == 401:
                raise TopError(
                    "asks for its API key: set EIDPROXY_SERVER_API_KEY or EIDPROXY_SERVER_API_KEY_FILE", is_final=True
                )
            if response.status_code != 200:
                word = response.headers.get("x-eid-error-reason", "")
                reason = f" {word}" if re.fullmatch("[a-z0-9_]{1,64}", word) else ""
                raise TopError(f"answers with status {response.status_code}{reason}")
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > _MAX_ANSWER_BYTES:
                    raise TopError(_UNREADABLE)
    except (httpx.HTTPError, TimeoutError, UnicodeError) as error:  # the last: a name that is none
        raise TopError(f"does not answer ({type(error).__name__})") from None
    return bytes(body)


async def ask(client: httpx.AsyncClient, view: View, with_metrics: bool) -> bool:
    """Ask once and tell the view. Whether `/metrics` was asked too. Raises TopError."""
    body = await _get(client, "status")
    try:
        status = msgspec.json.decode(body, type=Status)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise TopError(_UNREADABLE) from None
    with_metrics = with_metrics or view.may_be_new(status)
    if with_metrics:
        view.scraped((await _get(client, "metrics")).decode("utf-8", "replace"))
    view.show(status, time.monotonic())
    return with_metrics


# Words


def seconds(value: float | None) -> str:
    """A duration that was measured."""
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 0.9995 else age(value)


def age(value: float) -> str:
    """A duration that runs."""
    return f"{value:.1f} s" if value < 59.95 else length(value)


def length(value: float) -> str:
    """A duration in whole seconds, minutes, hours and days."""
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{rest} s"


def limit(value: float) -> str:
    """A duration that was set."""
    return length(value) if value == int(value) else seconds(value)


# Drawing


class Look(NamedTuple):
    """How it is drawn."""

    columns: int | None = None
    """None: as wide and as high as it comes, for `--once`."""
    rows: int | None = None
    ansi: bool = False
    colour: bool = False
    unicode: bool = True


_STYLES = {"": "", "bold": "1", "dim": "2", "good": "1;32", "warn": "1;33", "bad": "1;31"}
_COLOURS = re.compile(";3[0-9]")

Span = tuple[str, str]
Line = list[Span]


def _paint(line: Line, look: Look) -> str:
    room = look.columns
    pieces = []
    for text, style in line:
        shown = text if room is None else text[: max(room, 0)]
        if room is not None:
            room -= len(shown)
        code = _STYLES[style] if look.colour else _COLOURS.sub("", _STYLES[style])
        pieces.append(f"\x1b[{code}m{shown}\x1b[0m" if look.ansi and code and shown else shown)
    return "".join(pieces).rstrip()


def _bar(part: float, width: int, look: Look) -> str:
    full = round(min(max(part, 0.0), 1.0) * width)
    on, off = ("█", "░") if look.unicode else ("#", ".")
    return on * full + off * (width - full)


def _spark(values: Sequence[float], width: int, look: Look) -> str:
    steps = "▁▂▃▄▅▆▇█" if look.unicode else "_.-=+*%#"
    values = list(values)[-max(width, 1) :]
    top = max(values, default=0.0)
    return "".join(
        " " if value <= 0 else steps[min(int(value / top * len(steps)), len(steps) - 1)] for value in values
    ).rjust(min(width, _WINDOW))


def render(view: View, look: Look, now: float) -> list[str]:
    """The lines of the view, no more and no longer than the terminal takes."""
    lines = [_paint(line, look) for line in _lines(view, look, now)]
    return lines if look.rows is None else lines[: look.rows]


def _lines(view: View, look: Look, now: float) -> Iterable[Line]:
    status = view.status
    yield _title(view, now)
    if view.fault is not None:
        yield [(f"{view.fault}; trying again: {view.name}", "bad")]
    elif status is not None and status.draining:
        yield [("running answers are finished, new requests are refused", "warn")]
    else:
        yield [(view.name, "dim")]
    if status is None:
        return
    gate, limits = status.gate, status.deadlines
    width = min(max((look.columns or 80) - 52, 4), 30)

    def aged(place: str, who: str, value: float, most: float) -> Line:
        style = "warn" if value > _LATE * most else ""
        return [
            (f"  {place:<5}{who:<22}", ""),
            (f"{age(value):>12}  ", style),
            (_bar(value / most, width, look), style),
        ]

    top: list[Line] = [
        [],
        _fact(
            "Gate", f"{gate.in_use} of {gate.slots} in use, a slot is held {seconds(gate.mean_hold_seconds)} on average"
        ),
        *(aged("", f"{one.mode}, {one.priority}", one.age_seconds, limits.stream_seconds) for one in gate.holders[:8]),
        *_waiting(view, gate, look),
    ]
    waiters = [
        aged(f"#{one.position}", one.priority, one.age_seconds, limits.gate_wait_seconds) for one in gate.waiting
    ]
    facts: list[Line] = [
        _fact("Streams", ", ".join(f"{mode} {count}" for mode, count in status.streams.items())),
        _fact("Router", *_router(status)),
        _fact("Deadlines", f"an answer {limit(limits.stream_seconds)}, a wait {limit(limits.gate_wait_seconds)}"),
        [],
        *_trends(view, look),
        [],
    ]
    total = sum(status.outcomes.values())
    outcomes = [_outcome(reason, count, view, look) for reason, count in _ordered(status.outcomes)]
    head = [_fact("Outcomes", f"{total} ended" if total else "no request has ended yet")]
    # What may be long shares the rows that are left: outcomes keep three, waiters get the rest.
    room = None if look.rows is None else max(look.rows - 2 - len(top) - len(facts) - len(head), 2)
    shown = _cut(waiters, None if room is None else max(room - min(len(outcomes), 3), 1))
    rest = None if room is None else max(room - len(shown), 1)
    yield from (*top, *shown, *facts, *head, *_cut(outcomes, rest))


def _title(view: View, now: float) -> Line:
    status = view.status
    line: Line = [("eidproxy", "bold")]
    if status is not None:
        line.append((f" {status.version}  ", ""))
        if view.fault is not None:
            line.append((f"last answer {length(now - view.answered_at)} ago  ", ""))
        else:
            line.append((f"up {length(status.uptime_seconds)}  ", ""))
    else:
        line.append(("  ", ""))
    if view.fault is not None:
        line.append(("unreachable", "bad"))
    elif status is None:
        line.append(("connecting", "dim"))
    else:
        line.append(("draining", "warn") if status.draining else ("live", "good"))
    return line


def _fact(name: str, text: str, style: str = "") -> Line:
    return [(f"{name:<11}", "bold"), (text, style)]


def _waiting(view: View, gate: GateStatus, look: Look) -> Iterable[Line]:
    line = _fact("Waiting", f"{len(gate.waiting)} of at most {gate.queue_limit}")
    if look.ansi and any(view.depths):
        line.append((f"  {_spark(view.depths, 30, look).lstrip()}", "dim"))
    yield line
    classes = []
    for priority in _PRIORITIES:
        ages = [one.age_seconds for one in gate.waiting if one.priority == priority]
        if ages:
            classes.append(f"{priority} {len(ages)}, oldest {age(max(ages))}")
    if classes:
        yield [("  " + "; ".join(classes), "")]


def _router(status: Status) -> tuple[str, str]:
    reachable, ago = status.router.reachable, status.router.checked_seconds_ago
    word = "not tried yet" if reachable is None else "reachable" if reachable else "unreachable"
    told = word if ago is None or status.draining else f"{word}, {length(ago)} ago"
    return told, "bad" if reachable is False else ""


def _trends(view: View, look: Look) -> Iterable[Line]:
    if look.ansi:
        yield [(f"{'Mean of':<24}{'5 minutes':>12}{'the start on':>14}", "bold")]
    else:
        yield [(f"{'Mean since the start':<24}{'':>12}{'requests':>10}", "bold")]
    for trend in view.trends:
        ever = trend.total or Total()
        if look.ansi:
            room = (look.columns or 80) - 53
            spark = _spark([one.mean or 0.0 for one in trend.samples], room, look)
            yield [(f"{trend.title:<24}{seconds(trend.recent.mean):>12}{seconds(ever.mean):>14}  {spark}", "")]
        else:
            yield [(f"{trend.title:<24}{seconds(ever.mean):>12}{ever.requests:>10}", "")]


def _ordered(outcomes: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(outcomes.items(), key=lambda item: (item[0] != "ok", -item[1], item[0]))


def _outcome(reason: str, count: int, view: View, look: Look) -> Line:
    since = count - view.opened.get(reason, 0)
    line: Line = [(f"  {reason:<30}{count:>10}", "")]
    if look.ansi and since:
        line.append((f"{f'+{since}':>10}", "" if reason in ("ok", "client_gone") else "warn"))
    return line


def _cut(lines: list[Line], room: int | None) -> list[Line]:
    """As many lines as there is room for; the last one says how many are left out."""
    if room is None or len(lines) <= room:
        return lines
    return [*lines[: room - 1], [(f"  and {len(lines) - room + 1} more", "dim")]]


# The terminal


class Screen:
    """The terminal while the view is on it: the other screen, no cursor, keys without Enter."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._keys = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._before: list[Any] | None = None

    def enter(self) -> None:
        """Take the terminal."""
        if self._keys is not None:
            self._before = termios.tcgetattr(self._keys)
            tty.setcbreak(self._keys)
        self._write("\x1b[?1049h\x1b[?25l")

    def leave(self) -> None:
        """Give it back as it was. Not through the buffer: a signal may have come in the middle of a write."""
        with suppress(OSError, termios.error):  # the terminal is gone
            os.write(self._output.fileno(), b"\x1b[?25h\x1b[?1049l")
            if self._keys is not None and self._before is not None:
                termios.tcsetattr(self._keys, termios.TCSAFLUSH, self._before)

    def draw(self, view: View) -> None:
        """Draw over what is there: each line clears its end, the last clears what is below."""
        columns, rows = shutil.get_terminal_size()
        look = Look(columns, rows, True, "NO_COLOR" not in os.environ, _is_unicode(self._output))
        lines = render(view, look, time.monotonic())
        self._write("\x1b[H" + "\n".join(f"{line}\x1b[K" for line in lines) + "\x1b[J")

    def on_key(self, loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
        """Call `stop` when q is pressed, or when the terminal is gone."""
        keys = self._keys
        if keys is not None:
            loop.add_reader(keys, lambda: stop() if os.read(keys, 64) in (b"", b"q", b"Q") else None)

    def _write(self, text: str) -> None:
        self._output.write(text)
        self._output.flush()


def _is_unicode(output: TextIO) -> bool:
    return "utf" in (output.encoding or "").lower()


def takes_a_view(output: TextIO) -> bool:
    """Whether the output is a terminal that can be drawn on."""
    return output.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


async def show_once(client: httpx.AsyncClient, name: str, output: TextIO) -> None:
    """Print the view once, as plain text. Raises TopError."""
    view = View(name)
    async with client:
        await ask(client, view, with_metrics=True)
    look = Look(unicode=_is_unicode(output))
    output.write("\n".join(render(view, look, time.monotonic())) + "\n")


async def watch(client: httpx.AsyncClient, name: str, interval: float, output: TextIO) -> None:
    """Show the view until Ctrl-C, q or SIGTERM. Raises TopError when asking again will not help.

    A signal ends the process there and then, with the terminal as it was.
    """
    loop = asyncio.get_running_loop()
    view, screen, stopped = View(name), Screen(output), asyncio.Event()

    def suspend() -> None:
        screen.leave()
        os.kill(os.getpid(), signal.SIGSTOP)  # it goes on here after `fg`
        screen.enter()
        screen.draw(view)

    async def poll() -> None:
        metrics_at = -_METRICS_SECONDS
        while True:
            try:
                if await ask(client, view, loop.time() - metrics_at >= _METRICS_SECONDS):
                    metrics_at = loop.time()
            except TopError as error:
                if error.is_final:
                    raise
                view.fault = str(error)
            screen.draw(view)
            await asyncio.sleep(interval)

    stop_signals.clean_up, stop_signals.code = screen.leave, 0  # that is how one leaves
    screen.enter()
    try:
        loop.add_signal_handler(signal.SIGWINCH, screen.draw, view)
        loop.add_signal_handler(signal.SIGTSTP, suspend)
        screen.on_key(loop, stopped.set)
        screen.draw(view)
        async with client:
            tasks = {loop.create_task(poll()), loop.create_task(stopped.wait())}
            done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()
            await asyncio.wait(pending)
            for task in done:
                await task
    finally:
        screen.leave()
        stop_signals.clean_up = None
