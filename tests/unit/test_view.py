"""view: what is drawn from values alone, in windows of every size."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from eidproxy.commands.view import (
    Display,
    View,
    chart,
    format_age,
    format_length,
    format_limit,
    format_measured,
    render,
)
from eidproxy.monitoring.status import ROWS, Status

LIVE = {"state": "live", "since_seconds": 900.0, "silent_ends": 0, "next_trial_seconds": None}


def told(**changes: Any) -> dict[str, Any]:
    """An answer of /status."""
    gate = {"slots": 1, "in_use": 0, "queue_limit": 64, "holders": [], "waiting": [], "mean_hold_seconds": None}
    return {
        "version": "0.1.0",
        "uptime_seconds": 3.5,
        "draining": False,
        "gate": {**gate, **changes.pop("gate", {})},
        "streams": {"daily": 0, "deep": 0},
        "outcomes": {},
        "deadlines": {"stream_seconds": 300.0, "gate_wait_seconds": 300.0},
        "router": {"reachable": None, "checked_seconds_ago": None},
        "upstream": {"daily": LIVE, "deep": LIVE},
        "history": [],
        **changes,
    }


def waiting(count: int) -> list[dict[str, Any]]:
    return [{"priority": "foreground", "position": place, "age_seconds": 100.0} for place in range(1, count + 1)]


def view_of(**changes: Any) -> View:
    view = View("http://127.0.0.1:8790")
    view.store(msgspec.convert(told(**changes), Status), 0.0)
    return view


@pytest.mark.parametrize(
    ("value", "word"),
    [(None, "-"), (0, "0 ms"), (0.0104, "10 ms"), (0.9994, "999 ms"), (0.9996, "1.0 s"), (12.34, "12.3 s")],
)
def test_a_measured_time_in_words(value: float | None, word: str) -> None:
    assert format_measured(value) == word


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (0.4, "0 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3599.6, "1 h 0 min"),
        (7384, "2 h 3 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_a_length_in_words(value: float, word: str) -> None:
    assert format_length(value) == word


def test_an_age_keeps_a_tenth_below_a_minute() -> None:
    assert [format_age(59.94), format_age(59.96), format_age(200)] == ["59.9 s", "1 min", "3 min 20 s"]


def test_a_limit_keeps_its_fraction() -> None:
    assert [format_limit(300.0), format_limit(0.25), format_limit(1.5)] == ["5 min", "250 ms", "1.5 s"]


@pytest.mark.parametrize("columns", [1, 20, 60, 80, 200])
@pytest.mark.parametrize("rows", [1, 5, 24, 60])
@pytest.mark.parametrize("waiters", [0, 1, 9, 64])
def test_never_more_than_the_terminal_takes(columns: int, rows: int, waiters: int) -> None:
    outcomes = {f"reason_{number}": number for number in range(1, 20)}
    lines = render(view_of(gate={"waiting": waiting(waiters)}, outcomes=outcomes), Display(columns, rows), 0.0)
    assert 1 <= len(lines) <= rows
    assert max(map(len, lines)) <= columns


def test_what_is_left_out_is_told() -> None:
    outcomes = {f"reason_{number}": 100 - number for number in range(10)}
    lines = render(view_of(gate={"waiting": waiting(64)}, outcomes=outcomes), Display(80, 30), 0.0)
    shown = sum(line.lstrip().startswith("#") for line in lines)
    reasons = sum("reason_" in line for line in lines)
    rests = [line.strip() for line in lines if " more" in line]
    assert (len(lines), shown, reasons) == (30, 12, 2)
    assert rests == ["and 52 more", "and 8 more"]
    assert "Waiting    64 (room for 64): 64 foreground, oldest 1 min 40 s" in lines


def holder(seconds_held: float = 2.0) -> dict[str, Any]:
    return {"mode": "daily", "priority": "foreground", "age_seconds": seconds_held}


def row(**changes: Any) -> dict[str, Any]:
    """A row of the history in which two requests waited and were answered."""
    spread = {"count": 2, "mean_seconds": 1.5, "p95_seconds": 4.2}
    return {"waiting": 3, "gate_wait": {"foreground": spread}, "first_token": {"deep": spread}, **changes}


def busy() -> View:
    """Seven wait, one is answered, five minutes were busy: what an evening looks like."""
    ages = [{"priority": "foreground", "position": place, "age_seconds": 8.0 / place} for place in range(1, 8)]
    gate = {"in_use": 1, "holders": [holder()], "waiting": ages, "mean_hold_seconds": 1.5}
    view = view_of(gate=gate, outcomes={"ok": 9, "warming": 1}, history=[row()] * ROWS)
    view.has_chat = True
    return view


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (100, 40), (200, 50), (120, 30)])
def test_the_whole_screen_is_used(columns: int, rows: int) -> None:
    """Everybody who waits is shown, and no more than three lines at the end are left over."""
    lines = render(busy(), Display(columns, rows, ansi=True), 0.0)
    plain = [re.sub("\x1b[^m]*m", "", line) for line in lines]
    text = "\n".join(plain)
    assert all(f"#{place} " in text for place in range(1, 8))
    assert len(lines) >= rows - 3
    assert max(map(len, plain)) >= columns - 2
    assert " more" not in text


def test_bars_are_on_the_scale_of_the_longest() -> None:
    lines = render(busy(), Display(80, 24), 0.0)
    bars = [line.count("█") for line in lines if line.lstrip().startswith(("#", "foreground"))]
    assert bars[:4] == [10, 42, 21, 14], "2, 8, 4 and 2.7 s: the longest has the whole bar"


def test_a_slot_whose_caller_left_says_so() -> None:
    view = view_of(gate={"in_use": 1, "holders": [holder() | {"settling": True}]})
    assert any(line.split()[:3] == ["its", "caller", "left"] for line in render(view, Display(80, 24), 0.0))


def test_the_history_is_the_servers() -> None:
    """Mean and 95th percentile of five minutes are there with the first answer."""
    (line,) = [line for line in render(busy(), Display(80, 24), 0.0) if line.startswith("first word, deep")]
    assert line.split() == ["first", "word,", "deep", "1.5", "s", "4.2", "s", "120"]
    (none,) = [line for line in render(busy(), Display(80, 24), 0.0) if line.startswith("first word, daily")]
    assert none.split() == ["first", "word,", "daily", "-", "-", "0"]


@pytest.mark.parametrize(
    ("values", "width", "height", "lines"),
    [
        ([1.0], 4, 1, ["   █"]),
        ([1.0, 8.0, 0.0], 3, 1, ["▁█ "]),
        ([1.0, 8.0, 4.0], 3, 2, [" █ ", "▂██"]),
        ([0.001, 8.0], 2, 1, ["▁█"]),
        ([], 3, 1, ["   "]),
        ([9.0] * 70, 3, 1, ["███"]),
    ],
)
def test_a_chart_ends_now_and_its_highest_takes_all_lines(
    values: list[float], width: int, height: int, lines: list[str]
) -> None:
    assert chart(values, width, height) == lines


def test_a_chart_is_stretched_to_the_width() -> None:
    (line,) = chart([1.0] * (ROWS // 2), 2 * ROWS, 1)
    assert line == " " * ROWS + "█" * ROWS


WEDGED = {"state": "wedged", "since_seconds": 184.0, "silent_ends": 2, "next_trial_seconds": 12.4}


@pytest.mark.parametrize(
    ("changes", "word", "reason"),
    [
        (
            {"router": {"reachable": False, "checked_seconds_ago": 5.0}},
            "router down",
            "the router does not answer (checked 5 s ago); every request is refused",
        ),
        (
            {"router": {"reachable": False, "checked_seconds_ago": 5.0, "hint": "local_network_privacy"}},
            "router down",
            "macOS denies eidproxy access to the local network; see deploy/README.md",
        ),
        (
            {"upstream": {"daily": WEDGED, "deep": LIVE}},
            "model stuck",
            "daily accepts requests but does not answer; next trial in 12 s",
        ),
        ({"draining": True}, "draining", "running answers finish, new requests are refused"),
    ],
)
def test_the_head_says_what_is_wrong(changes: dict[str, Any], word: str, reason: str) -> None:
    first, second, *rest = render(view_of(**changes), Display(80, 24), 0.0)
    assert word in first
    assert second == reason
    assert ("daily 0 (stuck 3 min 4 s)" in "\n".join(rest)) is ("upstream" in changes)
    alarm = render(view_of(**changes), Display(80, 24, ansi=True, colour=True), 0.0)[0]
    assert ("\x1b[1;7;31m" in alarm) is (word != "draining")


def test_nothing_looks_as_if_it_were_so_while_nobody_answers() -> None:
    view = busy()
    view.fault = "does not answer (ConnectError)"
    text = "\n".join(render(view, Display(80, 24), 7.0))
    assert "unreachable" in text
    assert "last answer 7 s ago" in text
    assert "first word, deep" in text, "what was stays"
    assert not re.search("Answering|Waiting|Router", text)


def test_help_explains_every_word() -> None:
    view = busy()
    view.shows_help = True
    lines = render(view, Display(80, 24), 0.0)
    assert max(map(len, lines[2:])) < 80, "no line is cut"
    for word in ("Answering", "Waiting", "wait ", "first word", "95 % in", "Ended", "q, Ctrl-C"):
        assert any(line.startswith(word) for line in lines), word


def test_it_leads_to_the_chat_where_there_is_one() -> None:
    view = view_of()
    assert render(view, Display(80, 24), 0.0)[1] == "http://127.0.0.1:8790"
    view.has_chat = True
    assert render(view, Display(80, 24), 0.0)[1] == "http://127.0.0.1:8790   chat http://127.0.0.1:8790/chat"


def test_without_a_terminal_everything_is_shown() -> None:
    text = "\n".join(render(view_of(gate={"waiting": waiting(64)}), Display(), 0.0))
    assert "#64" in text
    assert "\x1b" not in text


def test_colours_can_be_left_out() -> None:
    """NO_COLOR leaves bold and dim."""
    view = view_of(draining=True)
    coloured, plain = ("\n".join(render(view, Display(80, 24, ansi=True, colour=on), 0.0)) for on in (True, False))
    assert "\x1b[1;33m" in coloured
    assert "\x1b[1m" in plain
    assert "\x1b[1;3" not in plain


def test_a_terminal_without_unicode() -> None:
    lines = render(busy(), Display(80, 24, ansi=True, unicode=False), 0.0)
    assert any("##" in line and ".." in line for line in lines)
    assert "\n".join(lines).isascii()


def test_counts_begin_anew_with_another_process() -> None:
    """It began later than the one before, by our clock: its uptime may be the longer one when nobody looked."""
    view = View("")
    for now, uptime, ok in ((100.0, 1.0, 50), (101.1, 2.0, 51)):
        view.store(msgspec.convert(told(uptime_seconds=uptime, outcomes={"ok": ok}), Status), now)
    assert view.outcomes_at_open == {"ok": 50}
    view.store(msgspec.convert(told(uptime_seconds=20.0, outcomes={"ok": 2}), Status), 130.0)
    line = next(line for line in render(view, Display(80, 24, ansi=True), 0.0) if line.startswith("  ok"))
    assert line.split() == ["ok", "2", "+2"]
