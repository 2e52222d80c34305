"""The live view in a terminal, drawn from values alone: an answer of `/status` goes in, lines come out.

`top` asks for the answer and prints the lines.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from eidproxy.monitoring.status import ROWS, GateStatus, Spread, Status

_LATE_SHARE = 0.9
"""Fraction of a deadline after which an age is shown as late."""

_ANOTHER_PROCESS_SECONDS = 1.0
"""How much the start of the process, our clock minus its uptime, must move to show that it is another process."""

_TRENDS = (
    ("wait, foreground", "gate_wait", "foreground"),
    ("wait, background", "gate_wait", "background"),
    ("first word, daily", "first_token", "daily"),
    ("first word, deep", "first_token", "deep"),
)
"""The trends: the title, the field of a history row, and the key in that field."""


class View:
    """All that is known about the proxy: its last answer, the counts before the view, the current fault."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.status: Status | None = None
        self.fault: str | None = None
        self.answered_at = 0.0
        self.outcomes_at_open: dict[str, int] = {}
        """The outcomes when the view was opened; empty once another process answers."""
        self.started_at = 0.0
        """When the process that answered began, on our monotonic clock."""
        self.has_chat: bool | None = None
        """Whether the proxy serves the chat page; None before it was asked."""
        self.shows_help = False

    def store(self, status: Status, now: float) -> None:
        """Store an answer of `/status` that arrived at `now`."""
        started_at = now - status.uptime_seconds
        if self.status is None:
            self.outcomes_at_open = status.outcomes
        elif started_at > self.started_at + _ANOTHER_PROCESS_SECONDS:
            self.outcomes_at_open = {}
        self.status, self.fault = status, None
        self.answered_at, self.started_at = now, started_at


# Durations


def format_measured(value: float | None) -> str:
    """Format a measured duration."""
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 0.9995 else format_age(value)


def format_age(value: float) -> str:
    """Format a duration that is still growing."""
    return f"{value:.1f} s" if value < 59.95 else format_length(value)


def format_length(value: float) -> str:
    """Format a duration in whole seconds, minutes, hours and days."""
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


def format_limit(value: float) -> str:
    """Format a duration from the settings."""
    return format_length(value) if value == int(value) else format_measured(value)


# Drawing


class Display(NamedTuple):
    """The size and the abilities of the output."""

    columns: int | None = None
    """None for columns and rows: no limit, for `--once`."""
    rows: int | None = None
    ansi: bool = False
    colour: bool = False
    unicode: bool = True


_STYLES = {"": "", "bold": "1", "dim": "2", "good": "1;32", "warn": "1;33", "bad": "1;31", "alarm": "1;7;31"}
_COLOURS = re.compile(";3[0-9]")
_SIDE_BY_SIDE_COLUMNS = 120
"""From this many columns on, the current state and the history are side by side."""

_GAP = 3
"""Columns between the current state and the history."""
_MIN_STATE_LINES = 9
"""Minimum lines of the current state in a window of any size: they include the first waiter."""

_MIN_CHART_ROWS, _MAX_CHART_ROWS = 3, 12

Span = tuple[str, str]
Line = list[Span]


def _paint(line: Line, display: Display) -> str:
    columns_left = display.columns
    pieces = []
    for text, style in line:
        shown = text if columns_left is None else text[: max(columns_left, 0)]
        if columns_left is not None:
            columns_left -= len(shown)
        code = _STYLES[style] if display.colour else _COLOURS.sub("", _STYLES[style])
        pieces.append(f"\x1b[{code}m{shown}\x1b[0m" if display.ansi and code and shown else shown)
    return "".join(pieces).rstrip()


def _bar(part: float, width: int, display: Display) -> str:
    full = round(min(max(part, 0.0), 1.0) * width)
    on, off = ("█", "░") if display.unicode else ("#", ".")
    return on * full + off * (width - full)


def chart(values: Sequence[float], width: int, height: int, *, unicode: bool = True) -> list[str]:
    """Return a bar chart stretched to `width` columns, newest at the right; the highest bar has all `height` lines."""
    steps = " ▁▂▃▄▅▆▇█" if unicode else " _.-=+*%#"
    most = len(steps) - 1
    rows = min(width, ROWS)
    shown = [0.0] * (rows - len(values)) + list(values)[-rows:]
    top = max(shown, default=0.0)
    heights = [max(round(value / top * height * most), 1) if value > 0 else 0 for value in shown]
    columns = [heights[at * rows // width] for at in range(width)]
    return [
        "".join(steps[min(max(column - floor, 0), most)] for column in columns)
        for floor in range((height - 1) * most, -1, -most)
    ]


def render(view: View, display: Display, now: float) -> list[str]:
    """Return the lines of the view, cut to the size of the terminal."""
    lines = [_paint(line, display) for line in _view_lines(view, display, now)]
    return lines if display.rows is None else lines[: display.rows]


def _view_lines(view: View, display: Display, now: float) -> list[Line]:
    status = view.status
    head = _head_lines(view, display, now)
    if view.shows_help:
        return [*head, [], *([(line, "")] for line in _HELP)]
    if status is None:
        return head
    columns = display.columns or 80
    max_lines = None if display.rows is None else display.rows - len(head) - 1
    if view.fault is not None:
        # The current state is unknown, and nothing must look current.
        return [*head, [], *_history_lines(view, status, display, columns, max_lines)]
    if max_lines is None or columns < _SIDE_BY_SIDE_COLUMNS:
        state_lines, history_lines = _stack(view, status, display, columns, max_lines)
        return [*head, [], *state_lines, *history_lines]
    width = (columns - _GAP) // 2
    left = _state_lines(status, display, width, max_lines)
    right = _history_lines(view, status, display, columns - width - _GAP, max_lines)
    return [*head, [], *_join_columns(left, right, width + _GAP)]


def _stack(
    view: View, status: Status, display: Display, columns: int, max_lines: int | None
) -> tuple[list[Line], list[Line]]:
    """Return the current state and the history, one above the other. With too little room, cut queue and outcomes."""
    state_lines = _state_lines(status, display, columns, None)
    history_lines = _history_lines(view, status, display, columns, None)
    if max_lines is None:
        return [*state_lines, []], history_lines
    spare_lines = max_lines - len(state_lines) - len(history_lines)
    if spare_lines > 0:
        return [*state_lines, []], _history_lines(view, status, display, columns, len(history_lines) + spare_lines - 1)
    # Keep the trends and three outcomes as long as the queue still shows its first waiter.
    least = min(len(history_lines), 1 + len(_TRENDS) + 1 + 3)
    state_lines = _state_lines(status, display, columns, max(max_lines - least, _MIN_STATE_LINES))
    return state_lines, _history_lines(view, status, display, columns, max(max_lines - len(state_lines), 1))


def _join_columns(left: list[Line], right: list[Line], at: int) -> Iterator[Line]:
    for row in range(max(len(left), len(right))):
        line = left[row] if row < len(left) else []
        gap = at - sum(len(text) for text, _ in line)
        yield [*line, (" " * gap, ""), *(right[row] if row < len(right) else [])]


def _head_lines(view: View, display: Display, now: float) -> list[Line]:
    status, (word, style, reason) = view.status, _overall_state(view)
    line: Line = [("eidproxy", "bold")]
    if status is not None:
        line.append((f" {status.version}", ""))
    line += [("  ", ""), (f" {word} " if style == "alarm" else word, style), ("  ", "")]
    if status is not None and view.fault is not None:
        line.append((f"last answer {format_length(now - view.answered_at)} ago", ""))
    elif status is not None:
        line.append((f"up {format_length(status.uptime_seconds)}", ""))
    keys = "? help  q quit"
    used = sum(len(text) for text, _ in line)
    if display.columns is not None and display.columns - used > len(keys) + 2:
        line.append((keys.rjust(display.columns - used), "dim"))
    if reason:
        return [line, [(reason, "bad" if style == "alarm" else "warn")]]
    chat = f"   chat {view.name}/chat" if view.has_chat and not view.name.startswith("/") else ""
    return [line, [(view.name + chat, "dim")]]


def _overall_state(view: View) -> tuple[str, str, str]:
    """Return the word of the head, its style, and the reason when something is wrong (else "")."""
    status = view.status
    if view.fault is not None:
        return "unreachable", "alarm", f"{view.fault}; retrying: {view.name}"
    if status is None:
        return "connecting", "dim", ""
    if status.draining:
        return "draining", "warn", "running answers finish, new requests are refused"
    if status.router.reachable is False:
        looked = format_length(status.router.checked_seconds_ago or 0.0)
        if status.router.hint == "local_network_privacy":
            return "router down", "alarm", "macOS denies eidproxy access to the local network; see deploy/README.md"
        return "router down", "alarm", f"the router does not answer (checked {looked} ago); every request is refused"
    stuck = [mode for mode, entry in status.upstream.items() if entry.state == "wedged"]
    if stuck:
        waits = min(status.upstream[mode].next_trial_seconds or 0.0 for mode in stuck)
        trial = f"in {format_length(waits)}" if waits > 0 else "with the next request"
        return "model stuck", "alarm", f"{', '.join(stuck)} accepts requests but does not answer; next trial {trial}"
    return "live", "good", ""


_HELP = (
    "Answering    requests that the model works on now, and for how long;",
    "             a typical answer is the mean of the last ten or so",
    "Waiting      requests in the queue, #1 is next; the longest fills its bar",
    "wait         from the request to its slot",
    "first word   from the request to the first text of the answer",
    "95 % in      95 of 100 requests of the last five minutes took no longer",
    "Ended        how requests ended; + is since this view was opened",
    "",
    "q, Ctrl-C    quit",
    "Ctrl-Z       suspend",
    "?            back",
)


def _fact_line(name: str, text: str, style: str = "") -> Line:
    return [(f"{name:<11}", "bold"), (text, style)]


def _state_lines(status: Status, display: Display, width: int, max_lines: int | None) -> list[Line]:
    """Return the current state in at most `max_lines` lines: running requests, queue, router, chart."""
    gate, limits = status.gate, status.deadlines
    ages = [entry.age_seconds for entry in gate.holders] + [entry.age_seconds for entry in gate.waiting]
    longest = max(ages, default=0.0) or 1.0

    def age_line(place: str, who: str, value: float, most: float) -> Line:
        style = "warn" if value > _LATE_SHARE * most else ""
        bar = _bar(value / longest, max(width - 38, 4), display)
        return [(f"  {place:<4}{who:<18}", ""), (f"{format_age(value):>12}  ", style), (bar, style)]

    answering = f"{gate.in_use} of {gate.slots}"
    if gate.mean_hold_seconds is not None:
        answering += f", typical answer {format_measured(gate.mean_hold_seconds)}"
    lines = [_fact_line("Answering", answering)]
    lines += [
        age_line(
            "",
            "its caller left" if entry.settling is True else entry.priority,
            entry.age_seconds,
            limits.stream_seconds,
        )
        for entry in gate.holders[:8]
    ]
    lines.append(_queue_line(gate))
    running = ", ".join(_streams_text(mode, count, status) for mode, count in status.streams.items())
    answer_limit, wait_limit = format_limit(limits.stream_seconds), format_limit(limits.gate_wait_seconds)
    facts: list[Line] = [
        _fact_line("Router", *_router_text(status)),
        _fact_line("Answers", running),
        _fact_line("Limits", f"an answer {answer_limit}, a wait {wait_limit}"),
    ]
    waiters = [
        age_line(f"#{entry.position}", entry.priority, entry.age_seconds, limits.gate_wait_seconds)
        for entry in gate.waiting
    ]
    left = None if max_lines is None else max(max_lines - len(lines) - len(facts), 1)
    lines += [*_cut_lines(waiters, left), *facts]
    height = 0 if max_lines is None or not display.ansi else min(max_lines - len(lines) - 2, _MAX_CHART_ROWS)
    depths = [float(row.waiting) for row in status.history]
    if height < _MIN_CHART_ROWS or not any(depths):
        return lines
    title: Line = [(f"Waiting in the last five minutes, at most {max(depths):.0f}", "bold")]
    return [*lines, [], title, *([(text, "dim")] for text in chart(depths, width, height, unicode=display.unicode))]


def _queue_line(gate: GateStatus) -> Line:
    text = f"{len(gate.waiting)} (room for {gate.queue_limit})"
    if gate.waiting:
        counts = Counter(entry.priority for entry in gate.waiting)
        foreground_first = sorted(counts.items(), reverse=True)
        classes = [f"{count} {priority}" for priority, count in foreground_first]
        text += f": {', '.join(classes)}, oldest {format_age(max(entry.age_seconds for entry in gate.waiting))}"
    return _fact_line("Waiting", text)


def _streams_text(mode: str, count: int, status: Status) -> str:
    """Return a mode, its number of streams and, unless its model server is live, what that is and for how long."""
    upstream = status.upstream.get(mode)
    if upstream is None or upstream.state == "live":
        return f"{mode} {count}"
    word = {"suspect": "silent", "wedged": "stuck"}[upstream.state]
    return f"{mode} {count} ({word} {format_length(upstream.since_seconds)})"


def _router_text(status: Status) -> tuple[str, str]:
    reachable, ago = status.router.reachable, status.router.checked_seconds_ago
    word = "not checked yet" if reachable is None else "reachable" if reachable else "down"
    told = word if ago is None or status.draining else f"{word}, checked {format_length(ago)} ago"
    return told, "bad" if reachable is False else ""


def _history_lines(view: View, status: Status, display: Display, width: int, max_lines: int | None) -> list[Line]:
    """Return the last five minutes and the outcomes: the charts take spare lines, and outcomes that do not fit are cut.

    With very few `max_lines` there are more lines than that, and `render` cuts them.
    """
    outcomes = [_outcome_line(reason, count, view, display) for reason, count in _sort_outcomes(status.outcomes)]
    total = sum(status.outcomes.values())
    ended = f"{total} request{'' if total == 1 else 's'}" if total else "no request has ended yet"
    heading_line: Line = [(f"{'Last five minutes':<20}{'mean':>9}{'95 % in':>10}{'count':>8}", "bold")]
    ended_line = _fact_line("Ended", ended)
    used_lines = len([heading_line, *_TRENDS, ended_line, *outcomes])
    spare_lines = 0 if max_lines is None else max(max_lines - used_lines - 1, 0)  # one is kept to set "Ended" apart
    chart_rows = min(spare_lines // len(_TRENDS), _MAX_CHART_ROWS) if display.ansi else 0
    lines = [heading_line]
    for title, field, key in _TRENDS:
        spreads = [getattr(row, field).get(key) for row in status.history]
        lines += _trend_lines(title, spreads, display, width, chart_rows)
    if spare_lines > chart_rows * len(_TRENDS):
        lines.append([])
    lines.append(ended_line)
    return [*lines, *_cut_lines(outcomes, None if max_lines is None else max(max_lines - len(lines), 1))]


def _trend_lines(
    title: str, spreads: Sequence[Spread | None], display: Display, width: int, height: int
) -> Iterator[Line]:
    """Yield a line of figures, with the chart beside them when `height` is 0, else below."""
    count = sum(entry.count for entry in spreads if entry)
    total = sum(entry.count * (entry.mean_seconds or 0.0) for entry in spreads if entry)
    last = spreads[-1] if spreads else None
    mean = format_measured(total / count) if count else "-"
    p95 = format_measured(last.p95_seconds) if count and last else "-"
    line: Line = [(f"{title:<20}{mean:>9}{p95:>10}{count:>8}", "")]
    values = [(entry.mean_seconds or 0.0) if entry else 0.0 for entry in spreads]
    if display.ansi and height == 0 and width > 56:
        line.append(("  " + chart(values, width - 49, 1, unicode=display.unicode)[0], ""))
    yield line
    if height:
        yield from ([(text, "dim")] for text in chart(values, width, height, unicode=display.unicode))


def _sort_outcomes(outcomes: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(outcomes.items(), key=lambda item: (item[0] != "ok", -item[1], item[0]))


def _outcome_line(reason: str, count: int, view: View, display: Display) -> Line:
    since = count - view.outcomes_at_open.get(reason, 0)
    line: Line = [(f"  {reason:<30}{count:>10}", "")]
    if display.ansi and since:
        line.append((f"{f'+{since}':>10}", "" if reason in ("ok", "client_gone") else "warn"))
    return line


def _cut_lines(lines: list[Line], max_lines: int | None) -> list[Line]:
    """Return as many lines as there is room for; the last one says how many are left out."""
    if max_lines is None or len(lines) <= max_lines:
        return lines
    return [*lines[: max_lines - 1], [(f"  and {len(lines) - max_lines + 1} more", "dim")]]
