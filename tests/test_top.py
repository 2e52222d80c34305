"""`eidproxy top`: what is drawn from values alone, `--once` as a script sees it, the live view in a real terminal."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest

from eidproxy.top import Look, Status, View, age, is_place, length, limit, render, seconds
from tests.harness import CHAT, ROOT, Proxy, RawClient, ask, chat, free_port, request_bytes, until
from tests.tools import need
from tests.upstream import Received, Router, Script, Step, status, stream

KEY = "key-5b1f0a"


def environment(**settings: str) -> dict[str, str]:
    """What a command of a user finds around it."""
    base = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**base, "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT), "TERM": "screen-256color", **settings}


def top(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """`eidproxy top` with these settings, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "eidproxy", "top", *arguments],
        env=environment(**settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


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
        **changes,
    }


def waiting(count: int) -> list[dict[str, Any]]:
    return [{"priority": "foreground", "position": place, "age_seconds": 100.0} for place in range(1, count + 1)]


def view_of(**changes: Any) -> View:
    view = View("http://127.0.0.1:8790")
    view.show(msgspec.convert(told(**changes), Status), 0.0)
    return view


# From values alone


@pytest.mark.parametrize(
    ("value", "word"),
    [(None, "-"), (0, "0 ms"), (0.0104, "10 ms"), (0.9994, "999 ms"), (0.9996, "1.0 s"), (12.34, "12.3 s")],
)
def test_a_measured_time_in_words(value: float | None, word: str) -> None:
    assert seconds(value) == word


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
    assert length(value) == word


def test_an_age_keeps_a_tenth_below_a_minute() -> None:
    assert [age(59.94), age(59.96), age(200)] == ["59.9 s", "1 min", "3 min 20 s"]


def test_a_limit_keeps_its_fraction() -> None:
    assert [limit(300.0), limit(0.25), limit(1.5)] == ["5 min", "250 ms", "1.5 s"]


@pytest.mark.parametrize("columns", [1, 20, 60, 80, 200])
@pytest.mark.parametrize("rows", [1, 5, 24, 60])
@pytest.mark.parametrize("waiters", [0, 1, 9, 64])
def test_never_more_than_the_terminal_takes(columns: int, rows: int, waiters: int) -> None:
    outcomes = {f"reason_{number}": number for number in range(1, 20)}
    lines = render(view_of(gate={"waiting": waiting(waiters)}, outcomes=outcomes), Look(columns, rows), 0.0)
    assert 1 <= len(lines) <= rows
    assert max(map(len, lines)) <= columns


def test_what_is_left_out_is_told() -> None:
    outcomes = {f"reason_{number}": 100 - number for number in range(10)}
    lines = render(view_of(gate={"waiting": waiting(64)}, outcomes=outcomes), Look(80, 30), 0.0)
    shown = sum(line.lstrip().startswith("#") for line in lines)
    reasons = sum("reason_" in line for line in lines)
    rests = [line.strip() for line in lines if " more" in line]
    assert (len(lines), shown, reasons) == (30, 9, 2)
    assert rests == ["and 55 more", "and 8 more"]
    assert "  foreground 64, oldest 1 min 40 s" in lines


def test_without_a_terminal_everything_is_shown() -> None:
    text = "\n".join(render(view_of(gate={"waiting": waiting(64)}), Look(), 0.0))
    assert "#64" in text
    assert "\x1b" not in text


def test_colours_can_be_left_out() -> None:
    """NO_COLOR leaves bold and dim."""
    view = view_of(draining=True)
    coloured, plain = ("\n".join(render(view, Look(80, 24, ansi=True, colour=on), 0.0)) for on in (True, False))
    assert "\x1b[1;33m" in coloured
    assert "\x1b[1m" in plain
    assert "\x1b[1;3" not in plain


def test_a_terminal_without_unicode() -> None:
    holder = {"mode": "daily", "priority": "foreground", "age_seconds": 150.0}
    lines = render(view_of(gate={"in_use": 1, "holders": [holder]}), Look(80, 24, ansi=True, unicode=False), 0.0)
    assert any("##" in line and ".." in line for line in lines)
    assert "\n".join(lines).isascii()


def test_trends_tell_what_came_between_two_scrapes() -> None:
    view = view_of()
    (trend,) = [one for one in view.trends if one.title == "first token, deep"]

    def scrape(total: float, count: int) -> str:
        name = "eidproxy_time_to_first_token_seconds"
        return f'# HELP x\n{name}_count{{mode="deep"}} {count}.0\n{name}_sum{{mode="deep"}} {total}\n'

    for total, count in ((10.0, 4), (10.0, 4), (16.0, 6)):
        trend.add(scrape(total, count))
    trend.add(scrape(1.0, 1), is_new=True)
    assert [(one.seconds, one.requests) for one in trend.samples] == [(0.0, 0), (6.0, 2), (1.0, 1)]
    assert trend.recent.mean == pytest.approx(7 / 3)
    line = next(line for line in render(view, Look(80, 24, ansi=True), 0.0) if line.startswith("first token, deep"))
    assert line.split()[3:] == ["2.3", "s", "1.0", "s", "█▃"]


def test_counts_begin_anew_with_another_process() -> None:
    view = view_of(uptime_seconds=100.0, outcomes={"ok": 50})
    view.scraped("# HELP x\neidproxy_start_time_seconds 1.5e+09\n")
    later = msgspec.convert(told(uptime_seconds=1.0, outcomes={"ok": 2}), Status)
    assert view.may_be_new(later)
    view.scraped("# HELP x\neidproxy_start_time_seconds 1.6e+09\n")
    view.show(later, 0.0)
    assert not view.may_be_new(later)
    line = next(line for line in render(view, Look(80, 24, ansi=True), 0.0) if line.startswith("  ok"))
    assert line.split() == ["ok", "2", "+2"]


@pytest.mark.parametrize(
    ("url", "good"),
    [
        ("http://127.0.0.1:8790", True),
        ("https://proxy.example/eid/", True),
        ("http://[::1]:8790", True),
        ("ftp://127.0.0.1", False),
        ("127.0.0.1:8790", False),
        ("http://", False),
        ("http://key@127.0.0.1", False),
        ("http://127.0.0.1/?a=b", False),
        ("http://127.0.0.1:99999999999", False),
    ],
)
def test_what_is_a_place(url: str, good: bool) -> None:
    assert is_place(url) is good


# Once


def test_once_is_plain_text(proxy: Proxy) -> None:
    assert ask(proxy, "POST", CHAT, chat("daily")).status == 200
    result = top("--once", "--url", proxy.url)
    assert (result.returncode, result.stderr) == (0, "")
    words = [line.split() for line in result.stdout.splitlines()]
    assert ["ok", "1"] in words
    assert ["Streams", "daily", "0,", "deep", "0"] in words
    assert ["Deadlines", "an", "answer", "5", "min,", "a", "wait", "5", "min"] in words
    assert any(line[:4] == ["first", "token,", "daily", line[3]] and line[-1] == "1" for line in words if len(line) > 4)
    assert "\x1b" not in result.stdout
    assert "live" in result.stdout.splitlines()[0]


def test_without_a_terminal_it_is_shown_once(proxy: Proxy) -> None:
    result = top("--url", proxy.url)
    assert result.returncode == 0
    assert "Waiting    0 of at most 64" in result.stdout


def test_who_waits_is_shown(router: Router) -> None:
    router.script = stream(gate="hold")
    with Proxy(router) as proxy:
        callers = [_caller(proxy, "foreground")]
        router.wait_for(lambda: router.waiting("hold") == 1)
        for number, priority in enumerate(("background", "foreground"), 1):
            callers.append(_caller(proxy, priority))
            until(lambda many=number: len(proxy.status()["gate"]["waiting"]) == many)  # type: ignore[misc]
        words = [line.split() for line in top("--once", "--url", proxy.url).stdout.splitlines()]
        for caller in callers:
            caller.close()
    assert ["daily,", "foreground"] in [line[:2] for line in words]
    assert [line[:2] for line in words if line and line[0].startswith("#")] == [
        ["#1", "foreground"],
        ["#2", "background"],
    ]


def test_the_address_is_that_of_the_settings(router: Router) -> None:
    with Proxy(router, EIDPROXY_SERVER_ALLOWED_HOSTS="eid.example") as proxy:
        places = {"EIDPROXY_SERVER_PORT": str(proxy.port), "EIDPROXY_SERVER_ALLOWED_HOSTS": "eid.example"}
        assert top("--once", **places).returncode == 0
        refused = top("--once", "--url", proxy.url)
        assert refused.returncode == 1
        assert refused.stderr == f"eidproxy: {proxy.url} answers with status 421 host_not_allowed\n"


def test_the_address_may_be_a_socket_file(router: Router, tmp_path: Path) -> None:
    path = str(tmp_path / "eid.sock")
    with Proxy(router, EIDPROXY_SERVER_UDS=path):
        result = top("--once", EIDPROXY_SERVER_UDS=path)
        assert result.returncode == 0
        assert path in result.stdout


def test_the_address_may_stand_in_a_file(proxy: Proxy, tmp_path: Path) -> None:
    file = tmp_path / "eidproxy.toml"
    file.write_text(f"[server]\nport = {proxy.port}\n")
    assert top("--once", "--config", str(file)).returncode == 0


def test_the_key_comes_from_the_environment(router: Router, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    with Proxy(router, EIDPROXY_SERVER_API_KEY=KEY) as proxy:
        for settings in ({"EIDPROXY_SERVER_API_KEY": KEY}, {"EIDPROXY_SERVER_API_KEY_FILE": str(file)}):
            assert top("--once", "--url", proxy.url, **settings).returncode == 0
        for settings in ({}, {"EIDPROXY_SERVER_API_KEY": "another"}):
            refused = top("--once", "--url", proxy.url, **settings)
            assert (refused.returncode, refused.stdout) == (1, "")
            assert "asks for its API key: set EIDPROXY_SERVER_API_KEY" in refused.stderr
            assert "another" not in refused.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "a" * 70])
def test_nobody_there(host: str) -> None:
    url = f"http://{host}:{free_port()}"
    result = top("--once", "--url", url)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(rf"eidproxy: {re.escape(url)} does not answer \(\w+Error\)\n", result.stderr)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b"\xff",
        b"{}",
        json.dumps(told(version="\x1b]0;owned\x07")).encode(),
        json.dumps(told(outcomes={"\x1b[2J": 1})).encode(),
        json.dumps(told(outcomes={"ok\n": 1})).encode(),
        b" " * (5 << 20),
    ],
    ids=["html", "list", "not UTF-8", "empty", "escape in a value", "escape in a name", "line end", "too large"],
)
def test_another_server_cannot_speak_to_the_terminal(router: Router, body: bytes) -> None:
    router.script = status(200, body)
    result = top("--once", "--url", router.url)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"eidproxy: {router.url} does not answer like eidproxy\n"


def test_it_goes_nowhere_else(router: Router) -> None:
    """No redirect is followed, and variables that name proxies are not read."""
    with Router() as other:
        router.script = status(302, b"", [("Location", f"{other.url}/status")])
        bait = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), other.url)
        result = top("--once", "--url", router.url, EIDPROXY_SERVER_API_KEY=KEY, **bait)
        assert result.stderr == f"eidproxy: {router.url} answers with status 302\n"
        assert [request.path for request in router.requests] == ["/status"]
        assert other.connections == 0


@pytest.mark.parametrize("arguments", [("--url", "http://a@b"), ("--interval", "0"), ("--api-key", "x")])
def test_wrong_use(arguments: tuple[str, ...]) -> None:
    assert top("--once", *arguments).returncode == 2


# In a terminal


def _caller(proxy: Proxy, priority: str) -> RawClient:
    client = RawClient(proxy)
    client.send(request_bytes("POST", CHAT, chat("daily"), {"X-Eid-Priority": priority}))
    return client


class Terminal:
    """A shell in tmux, on a server of its own."""

    def __init__(self, columns: int = 100, rows: int = 40) -> None:
        (self._tmux,) = need("tmux")
        self._socket = f"eidproxy-{uuid.uuid4().hex[:12]}"
        self._tell("-f", os.devnull, "new-session", "-d", "-x", str(columns), "-y", str(rows), "env PS1='$ ' sh")

    def type(self, text: str) -> None:
        """Type a line."""
        self._tell("send-keys", "-l", text)
        self._tell("send-keys", "Enter")

    def press(self, key: str) -> None:
        """Press one key."""
        self._tell("send-keys", key)

    def resize(self, columns: int, rows: int) -> None:
        """Make the window larger or smaller."""
        self._tell("resize-window", "-x", str(columns), "-y", str(rows))

    def lines(self) -> list[str]:
        """What stands on it."""
        return self._tell("capture-pane", "-p").splitlines()

    def shows(self, *words: str, timeout: float = 15.0) -> list[str]:
        """Wait until all of it stands there; what stands there then."""

        def found() -> list[str]:
            lines = self.lines()
            return lines if all(any(word in line for line in lines) for word in words) else []

        try:
            return until(found, timeout, f"{words}")
        except AssertionError as error:
            error.add_note("\n".join(self.lines()))
            raise

    def is_as_before(self) -> bool:
        """Whether it is on its first screen, with a cursor."""
        return self._tell("display-message", "-p", "#{alternate_on} #{cursor_flag}").split() == ["0", "1"]

    def _tell(self, *arguments: str) -> str:
        command = [self._tmux, "-L", self._socket, *arguments]
        return subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tell("kill-server")


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """A terminal with a shell that waits for a line."""
    with Terminal() as terminal:
        terminal.shows("$")
        yield terminal


def command(proxy: Proxy) -> str:
    """What is typed to see the view, and how it ended."""
    return f"{shlex.quote(sys.executable)} -m eidproxy top --interval 0.2 --url {proxy.url}; echo left with $?"


def by_words(router: Router) -> None:
    """A router that holds `hold`, fails `fail` and answers the rest."""

    def script(request: Received) -> Script:
        said = request.body
        steps: list[Step] = stream()
        if b"hold" in said:
            steps = stream(gate="hold")
        elif b"fail" in said:
            steps = status(503, {"error": {"type": "warming"}})
        return steps

    router.script = script


def test_live_from_start_to_end(router: Router, terminal: Terminal) -> None:
    """Start, queue, resize, drain, gone, back again, Ctrl-C: on one screen."""
    by_words(router)
    port = free_port()
    terminal.type("echo before")
    with Proxy(router, EIDPROXY_SERVER_PORT=port) as proxy:
        terminal.type(command(proxy))
        terminal.shows("live", "0 of 1 in use", "no request has ended yet")
        assert ask(proxy, "POST", CHAT, chat("deep", say="fail")).reason == "warming"
        assert ask(proxy, "POST", CHAT, chat("daily", say="quick")).status == 200
        held = RawClient(proxy)
        held.send(request_bytes("POST", CHAT, chat("daily", say="hold")))
        router.wait_for(lambda: router.waiting("hold") == 1)
        waiters = [_caller(proxy, priority) for priority in ("background", "foreground", "foreground")]
        lines = terminal.shows("1 of 1 in use", "3 of at most 64", "daily, foreground")
        assert [line.split()[:2] for line in lines if line.lstrip().startswith("#")] == [
            ["#1", "foreground"],
            ["#2", "foreground"],
            ["#3", "background"],
        ]
        assert ["warming", "1", "+1"] in [line.split() for line in lines]
        assert ["Streams", "daily", "1,", "deep", "0"] in [line.split() for line in lines]
        # The trends come with the next scrape.
        terminal.shows("█")
        text = "\n".join(terminal.lines())
        assert not any(canary in text for canary in proxy.canaries)

        terminal.resize(50, 12)
        small = until(lambda: _fits(terminal.lines(), 50, 12), what="the small screen")
        assert small[0].startswith("eidproxy")
        terminal.resize(120, 45)
        terminal.shows("#3", "first token, deep")

        proxy.terminate()
        terminal.shows("draining", "running answers are finished")
        for client in (held, *waiters):
            client.close()
        assert proxy.wait() == 0
        terminal.shows("unreachable", "does not answer (ConnectError); trying again")
    with Proxy(router, EIDPROXY_SERVER_PORT=port):
        terminal.shows("live", "no request has ended yet")
        terminal.press("C-c")
        lines = terminal.shows("left with 0")
    assert any(line == "before" for line in lines)
    assert terminal.is_as_before()


def _fits(lines: list[str], columns: int, rows: int) -> list[str]:
    whole = len(lines) <= rows and all(len(line) <= columns for line in lines)
    # Drawn anew: the window of the other size had more rows of the gate than this one has in all.
    return lines if whole and any("more" in line for line in lines) else []


def test_q_leaves_and_the_terminal_echoes_again(proxy: Proxy, terminal: Terminal) -> None:
    terminal.type(command(proxy))
    terminal.shows("live")
    assert not terminal.is_as_before()
    terminal.press("q")
    terminal.shows("left with 0")
    assert terminal.is_as_before()
    terminal.type("stty -a | tr ' ;' '\\n\\n' | grep -x -e echo -e icanon | tr '\\n' '+'; echo done")
    terminal.shows("echo+", "icanon+", "done")


def test_it_can_be_stopped_and_continued(proxy: Proxy, terminal: Terminal) -> None:
    terminal.type("set -m")
    terminal.type(command(proxy))
    terminal.shows("live")
    terminal.press("C-z")
    until(terminal.is_as_before, what="the first screen")
    terminal.type("fg; echo ended with $?")
    terminal.shows("live", "Deadlines")
    terminal.press("C-c")
    terminal.shows("ended with 0")
    assert terminal.is_as_before()


def test_a_key_that_is_wrong_ends_it(router: Router, terminal: Terminal) -> None:
    with Proxy(router, EIDPROXY_SERVER_API_KEY=KEY) as proxy:
        terminal.type(command(proxy))
        terminal.shows("asks for its API key", "left with 1")
        assert terminal.is_as_before()


def test_a_terminal_that_cannot_be_drawn_on(proxy: Proxy, terminal: Terminal) -> None:
    terminal.type(f"TERM=dumb {command(proxy)}")
    terminal.shows("Waiting    0 of at most 64", "left with 0")


def test_every_size_of_a_real_window(proxy: Proxy, terminal: Terminal) -> None:
    """Going from size to size leaves nothing of the size before."""
    terminal.type(command(proxy))
    terminal.shows("live")
    for columns, rows in itertools.product((30, 140), (6, 30)):
        terminal.resize(columns, rows)

        def is_whole(rows: int = rows) -> bool:
            lines = [line for line in terminal.lines() if line]
            heads = [sum(line.startswith(word) for line in lines) for word in ("eidproxy", "Gate", "Waiting", "Router")]
            return heads == ([1, 1, 1, 0] if rows == 6 else [1, 1, 1, 1])

        until(is_whole, what=f"{columns}x{rows}")
    terminal.press("q")
    terminal.shows("left with 0")
