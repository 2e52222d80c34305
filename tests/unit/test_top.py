"""`eidproxy top`: `--once` as a script sees it, the live view in a real terminal."""

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
from typing import Self

import pytest

from eidproxy.commands.top import is_base_url
from tests.lab.client import CHAT, RawClient, ask, chat, request_bytes
from tests.lab.proxy import Proxy
from tests.lab.router import Received, Router
from tests.lab.script import Script, Step, status, stream
from tests.lab.tools import ROOT, free_port, need, until
from tests.unit.test_view import told

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
def test_what_is_a_base_url(url: str, good: bool) -> None:
    assert is_base_url(url) is good


# Once


def test_once_is_plain_text(proxy: Proxy) -> None:
    assert ask(proxy, "POST", CHAT, chat("daily")).status == 200
    result = top("--once", "--url", proxy.url)
    assert (result.returncode, result.stderr) == (0, "")
    words = [line.split() for line in result.stdout.splitlines()]
    assert ["ok", "1"] in words
    assert ["Answers", "daily", "0,", "deep", "0"] in words
    assert ["Limits", "an", "answer", "5", "min,", "a", "wait", "5", "min"] in words
    assert any(line[:3] == ["first", "word,", "daily"] for line in words)
    assert proxy.url in result.stdout
    assert "/chat" not in result.stdout, "there is none"
    assert "\x1b" not in result.stdout
    assert "live" in result.stdout.splitlines()[0]


def test_a_look_is_no_request(proxy: Proxy) -> None:
    """It asks whether there is a chat; what it counts is not itself."""
    before = proxy.status()["outcomes"]
    assert top("--once", "--url", proxy.url).returncode == 0
    assert proxy.status()["outcomes"] == before


def test_without_a_terminal_it_is_shown_once(proxy: Proxy) -> None:
    result = top("--url", proxy.url)
    assert result.returncode == 0
    assert "Waiting    0 (room for 64)" in result.stdout


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
    assert ["Answering", "1", "of", "1"] in words
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
            assert "needs an API key: set EIDPROXY_SERVER_API_KEY" in refused.stderr
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
        terminal.shows("live", "0 of 1", "no request has ended yet")
        assert ask(proxy, "POST", CHAT, chat("deep", say="fail")).reason == "warming"
        assert ask(proxy, "POST", CHAT, chat("daily", say="quick")).status == 200
        held = RawClient(proxy)
        held.send(request_bytes("POST", CHAT, chat("daily", say="hold")))
        router.wait_for(lambda: router.waiting("hold") == 1)
        waiters = [_caller(proxy, priority) for priority in ("background", "foreground", "foreground")]
        terminal.shows("1 of 1, typical answer", "3 (room for 64): 2 foreground, 1 background")

        def is_whole() -> bool:
            words = [line.split() for line in terminal.lines()]
            return (
                [line[:2] for line in words if line and line[0].startswith("#")]
                == [["#1", "foreground"], ["#2", "foreground"], ["#3", "background"]]
                and ["warming", "1", "+1"] in words
                and ["Answers", "daily", "1,", "deep", "0"] in words
            )

        until(is_whole, what="the queue, the outcomes and the answers")  # a screen that is being drawn is not whole
        text = "\n".join(terminal.lines())
        assert not any(canary in text for canary in proxy.canaries)

        terminal.resize(50, 12)
        until(lambda: _fits(terminal.lines(), 50, 12), what="the small screen")
        terminal.resize(120, 45)
        terminal.shows("#3", "first word, deep")
        terminal.press("?")
        terminal.shows("Ctrl-Z       suspend")
        terminal.press("?")
        terminal.shows("#3", "first word, deep")

        proxy.terminate()
        terminal.shows("draining", "running answers finish")
        for client in (held, *waiters):
            client.close()
        assert proxy.wait() == 0
        terminal.shows("unreachable", "does not answer (ConnectError); retrying")
    with Proxy(router, EIDPROXY_SERVER_PORT=port):
        terminal.shows("live", "no request has ended yet")
        terminal.press("C-c")
        lines = terminal.shows("left with 0")
        assert "before" in lines
    assert terminal.is_as_before()


def _fits(lines: list[str], columns: int, rows: int) -> bool:
    whole = len(lines) <= rows and all(len(line) <= columns for line in lines)
    # Drawn anew: what has no room any more is gone.
    return whole and "".join(lines[:1]).startswith("eidproxy") and not any(line.startswith("Ended") for line in lines)


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
    terminal.shows("live", "Limits")
    terminal.press("C-c")
    terminal.shows("ended with 0")
    assert terminal.is_as_before()


def test_a_key_that_is_wrong_ends_it(router: Router, terminal: Terminal) -> None:
    with Proxy(router, EIDPROXY_SERVER_API_KEY=KEY) as proxy:
        terminal.type(command(proxy))
        terminal.shows("needs an API key", "left with 1")
        assert terminal.is_as_before()


def test_a_terminal_that_cannot_be_drawn_on(proxy: Proxy, terminal: Terminal) -> None:
    terminal.type(f"TERM=dumb {command(proxy)}")
    terminal.shows("Waiting    0 (room for 64)", "left with 0")


def test_every_size_of_a_real_window(proxy: Proxy, terminal: Terminal) -> None:
    """Going from size to size leaves nothing of the size before."""
    terminal.type(command(proxy))
    terminal.shows("live")
    for columns, rows in itertools.product((30, 140), (5, 30)):
        terminal.resize(columns, rows)

        def is_whole(rows: int = rows) -> bool:
            lines = [line for line in terminal.lines() if line]
            heads = [
                sum(line.startswith(word) for line in lines) for word in ("eidproxy", "Answering", "Waiting", "Router")
            ]
            return heads == ([1, 1, 1, 0] if rows == 5 else [1, 1, 1, 1])

        until(is_whole, what=f"{columns}x{rows}")
    terminal.press("q")
    terminal.shows("left with 0")
