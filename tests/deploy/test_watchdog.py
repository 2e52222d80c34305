"""deploy/watchdog.sh against a fake /status and a fake restart: when it acts, and how often."""

from __future__ import annotations

import http.server
import json
import os
import plistlib
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.files import DEPLOY, passed, run
from tests.lab.proxy import Proxy
from tests.lab.router import Router
from tests.lab.tools import free_port, need

SCRIPT = DEPLOY / "watchdog.sh"
LIVE = {"state": "live", "since_seconds": 4000.1, "silent_ends": 0, "next_trial_seconds": None}


def wedged(seconds: float, silent_ends: int = 2) -> dict[str, Any]:
    """What /status says of a model server that hangs."""
    return {"state": "wedged", "since_seconds": seconds, "silent_ends": silent_ends, "next_trial_seconds": 12.5}


class Status:
    """A server that says what the test wants /status to say."""

    def __init__(self) -> None:
        self.daily: dict[str, Any] = LIVE
        self.deep: dict[str, Any] = LIVE
        self.key: str | None = None
        told = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                refused = told.key is not None and self.headers["Authorization"] != f"Bearer {told.key}"
                self.send_response(401 if refused else 200)
                self.end_headers()
                upstream = {"daily": told.daily, "deep": told.deep}
                value = {"version": "0", "streams": {"daily": 0, "deep": 0}, "upstream": upstream, "history": []}
                self.wfile.write(b"" if refused else json.dumps(value, separators=(",", ":")).encode())

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/status"


@pytest.fixture
def status() -> Iterator[Status]:
    """A /status of the test's own."""
    need("curl")
    told = Status()
    thread = threading.Thread(target=told.server.serve_forever, args=(0.05,))
    thread.start()
    yield told
    told.server.shutdown()
    thread.join()
    told.server.server_close()


class Watch:
    """The script, run as a timer runs it."""

    def __init__(self, status: Status, folder: Path) -> None:
        self.status = status
        self.stamp = folder / "a stamp"
        self.record = folder / "restarts"
        self.restart = folder / "restart"
        self.restart.write_text(f'#!/bin/sh\necho "$@" >>{shlex.quote(str(self.record))}\n')
        self.restart.chmod(0o755)

    def look(self, url: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        """One run."""
        return run(SCRIPT, "daily", url or self.status.url, self.stamp, self.restart, "the", "model server", env=env)

    def restarts(self, **env: str) -> int:
        """How many restarts there were, after one more run that ends well."""
        done = self.look(**env)
        assert done.returncode == 0, done.stderr
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        assert set(lines) <= {"the model server"}
        return len(lines)

    def age(self, minutes: float) -> None:
        """Let time pass for the script."""
        then = time.time() - minutes * 60
        os.utime(self.stamp, (then, then))


@pytest.fixture
def watch(status: Status, tmp_path: Path) -> Watch:
    """The script with a status and a command of the test's own."""
    return Watch(status, tmp_path)


@pytest.mark.parametrize(
    ("daily", "restarts"),
    [
        (LIVE, 0),
        ({**wedged(4000), "state": "suspect"}, 0),
        (wedged(0.123), 0),
        (wedged(59.999), 0),
        (wedged(60), 1),
        (wedged(60.001), 1),
        (wedged(123456.789), 1),
    ],
    ids=lambda value: f"{value['state']} {value['since_seconds']}" if isinstance(value, dict) else None,
)
def test_it_acts_after_a_minute(watch: Watch, daily: dict[str, Any], restarts: int) -> None:
    watch.status.daily = daily
    assert watch.restarts() == restarts


def test_the_other_mode_is_not_its_business(watch: Watch) -> None:
    watch.status.deep = wedged(600)
    assert watch.restarts() == 0


def test_at_most_once_in_five_minutes(watch: Watch) -> None:
    watch.status.daily = wedged(61)
    assert [watch.restarts(), watch.restarts()] == [1, 1]
    watch.status.daily = wedged(200, silent_ends=3)  # the restart did not help
    watch.age(4)
    assert watch.restarts() == 1
    watch.age(6)
    assert [watch.restarts(), watch.restarts()] == [2, 2]


def test_a_server_that_nobody_has_asked_since_is_left_alone(watch: Watch) -> None:
    """It may be well again: eidproxy sends no request of its own, so it cannot know."""
    watch.status.daily = wedged(61)
    assert watch.restarts() == 1
    watch.age(60)
    watch.status.daily = wedged(3700)
    assert watch.restarts() == 1


def test_the_next_hang_is_a_new_one(watch: Watch) -> None:
    watch.status.daily = wedged(61)
    assert watch.restarts() == 1
    watch.age(60)
    watch.status.daily = LIVE
    assert watch.restarts() == 1
    watch.status.daily = wedged(61)
    assert watch.restarts() == 2


def test_an_eidproxy_that_does_not_answer_says_nothing_about_the_model_server(watch: Watch) -> None:
    done = watch.look(f"http://127.0.0.1:{free_port()}/status")
    assert done.returncode != 0
    assert "curl" in done.stderr
    assert not watch.record.exists()


def test_an_api_key(watch: Watch, tmp_path: Path) -> None:
    watch.status.daily, watch.status.key = wedged(61), "k" * 32
    assert watch.look().returncode != 0
    header = tmp_path / "the header"
    header.write_text(f"Authorization: Bearer {watch.status.key}\n")
    assert watch.restarts(EIDPROXY_HEADER_FILE=str(header)) == 1


def test_a_proxy_variable_leads_nowhere(watch: Watch) -> None:
    watch.status.daily = wedged(61)
    assert watch.restarts(http_proxy="http://127.0.0.1:1", ALL_PROXY="http://127.0.0.1:1") == 1


def test_what_it_reads_is_what_eidproxy_writes(router: Router) -> None:
    """The script knows no JSON: the order and the blanks of the real /status are what its pattern wants."""
    with Proxy(router) as proxy:
        text = proxy.get("/status").body.decode()
    pattern = re.escape('"daily":{"state":"live","since_seconds":') + r"[0-9]+\.[0-9]+" + re.escape(',"silent_ends":0,')
    assert re.search(pattern, text), text


def test_both_timers_call_it_as_it_wants_to_be_called() -> None:
    unit = (DEPLOY / "eidproxy-watchdog.service").read_text("utf-8")
    [line] = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    job = plistlib.loads((DEPLOY / "com.eidproxy.watchdog.plist").read_bytes())
    for words in (job["ProgramArguments"], shlex.split(line)):
        assert words[:3] == ["/usr/local/libexec/eidproxy-watchdog", "daily", "http://127.0.0.1:8790/status"]
        assert len(words) > 4
    # The stamp must outlive a run: a oneshot's RuntimeDirectory would not.
    assert "StateDirectory=eidproxy-watchdog" in unit.splitlines()
    assert "${STATE_DIRECTORY}/" in line
    # launchd ignores a key that it does not know without a word.
    assert set(job) == {"Label", "ProgramArguments", "StartInterval", "StandardOutPath", "StandardErrorPath"}


def test_systemd_accepts_unit_and_timer(tmp_path: Path) -> None:
    (analyze,) = need("systemd-analyze")
    (true,) = need("true")
    text = (DEPLOY / "eidproxy-watchdog.service").read_text("utf-8")
    unit, timer = tmp_path / "eidproxy-watchdog.service", tmp_path / "eidproxy-watchdog.timer"
    unit.write_text(text.replace("/usr/local/libexec/eidproxy-watchdog ", f"{true} "))
    timer.write_text((DEPLOY / timer.name).read_text("utf-8"))
    assert passed(analyze, "verify", unit, timer) == ""
