"""demo: the show, the page in a browser, the people who keep asking, and its end at any moment."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from eidproxy.commands.people import PEOPLE, answer_to, tokens
from tests.lab.browser import FLAGS
from tests.lab.client import CHAT, ask, chat
from tests.lab.tools import free_port, need, until

PATIENCE_MS = 30_000


def cells(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in line)


class Demo(NamedTuple):
    """A demo that serves, and what it has said."""

    process: subprocess.Popen[str]
    port: int
    said: list[str]

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def started(*arguments: str, until_line: str = "deep loads for", **env: str) -> Iterator[Demo]:
    """A demo, once it has said a line that begins so."""
    command = [sys.executable, "-m", "eidproxy", "demo", *arguments]
    environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1", **env}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        said = []
        try:
            for line in process.stdout:
                said.append(line.rstrip("\n"))
                if line.strip().startswith(until_line):
                    break
            place = re.search(r":(\d+)/demo", "\n".join(said))
            yield Demo(process, int(place[1]) if place else 0, said)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    with started("--port", str(free_port())) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = need("chromium")[0]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


# --- The show ------------------------------------------------------------------------------------------------------


def test_the_show_has_four_scenes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "eidproxy", "demo", "--once", "--port", "0"],
        capture_output=True,
        text=True,
        timeout=90,
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    text = done.stdout
    assert "question at a time reach it." in re.sub(r"\s+", " ", text)
    assert "the answer is whole" in text
    order = [line.split("s  ")[1].split(" (")[0] for line in text.splitlines() if "has the slot" in line]
    assert order == ["아이", "엄마", "밤 작업"], "the mother overtakes the night job"
    assert "gpt-4o: 404 model_not_found" in text
    assert "deep: 503 warming, retry in" in text
    silent = [line for line in text.splitlines() if "upstream_silent" in line]
    (told,) = [line for line in text.splitlines() if "upstream_wedged" in line]
    assert len(silent) == 2, "two callers wait"
    assert told.endswith("(at once)"), "the third is told"
    assert text.index("the model server is restarted") < text.index("the model is back")


def test_every_line_can_be_copied_whole(demo: Demo) -> None:
    assert demo.said[-1].strip().startswith("deep loads for")
    too_long = [line for line in demo.said if cells(line) > 80]
    assert not too_long


def test_the_command_it_prints_works(demo: Demo) -> None:
    need("curl")
    start = next(at for at, line in enumerate(demo.said) if "curl -N" in line)
    command = "\n".join(demo.said[start : start + 3])
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert "안녕하세요" in "".join(re.findall(r'"content":"([^"]*)"', done.stdout))
    assert done.stdout.endswith("data: [DONE]\n\n")


def test_a_port_that_is_taken_is_stepped_over() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with started("--port", str(port), until_line="http") as running:
            assert running.said[0].startswith(f"Port {port} is in use; using ")
            assert running.port != port
            assert ask(running.address, "GET", "/healthz").status == 200


def test_open_opens_the_browser_and_does_not_wait_for_it(tmp_path: Path) -> None:
    """This one never ends; the demo does."""
    opened = tmp_path / "opened"
    program = tmp_path / "browser"
    program.write_text(f'#!/bin/sh\necho "$1" > {opened}\nexec sleep 600 <&- >&- 2>&-\n')
    program.chmod(0o755)
    with started("--port", "0", "--open", BROWSER=str(program)) as running:
        assert opened.read_text() == f"{running.url}/demo\n"
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(30) == 130


# --- The people ----------------------------------------------------------------------------------------------------


def test_people_keep_the_queue_moving(demo: Demo) -> None:
    """They ask one at a time each, and the view sees all of it: some wait, the background too, and none is refused."""

    def status() -> dict[str, object]:
        value = ask(demo.address, "GET", "/status").json()
        assert isinstance(value, dict)
        return value

    before = status()["outcomes"]
    waited: set[str] = set()

    def enough() -> bool:
        now = status()
        gate, outcomes = now["gate"], now["outcomes"]
        assert isinstance(gate, dict)
        assert isinstance(outcomes, dict)
        assert isinstance(before, dict)
        waited.update(one["priority"] for one in gate["waiting"])
        return outcomes.get("ok", 0) >= before.get("ok", 0) + 4 and "background" in waited

    until(enough, 60)


@pytest.mark.parametrize("question", ["안녕?", "Hello?"])
def test_an_answer_has_everything_in_the_language_of_the_question(question: str) -> None:
    answer = answer_to(question)
    assert bool(re.search("[가-힣]", answer)) is (question == "안녕?")
    for part in ("|---|", "\n1. ", "```python\n"):
        assert part in answer
    assert "".join(tokens(answer)) == answer


def test_every_question_of_the_people_has_its_answer() -> None:
    for person in PEOPLE:
        for question, answer in person.questions:
            assert answer_to(question) == answer
            assert "".join(tokens(answer)) == answer


def test_deep_thinks_before_it_answers(demo: Demo) -> None:
    def warm() -> bool:
        return ask(demo.address, "POST", CHAT, chat("deep"), timeout=60).status == 200

    until(warm, 60)
    answer = ask(demo.address, "POST", CHAT, chat("deep", say="Hello?"), timeout=60)
    deltas = [event.json()["choices"][0]["delta"] for event in answer.events()[:-1]]
    kinds = ["reasoning_content" if "reasoning_content" in delta else "content" for delta in deltas[:-1]]
    assert kinds == sorted(kinds, reverse=True)
    assert set(kinds) == {"reasoning_content", "content"}


# --- The page ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_the_page_is_logged_in_beside_the_live_view(demo: Demo, browser: Browser, size: tuple[int, int]) -> None:
    with browser.new_context(viewport={"width": size[0], "height": size[1]}, locale="ko-KR") as context:
        page: Page = context.new_page()
        faults: list[str] = []

        def said(message: ConsoleMessage) -> None:
            # What the browser only notes is none: on a busy machine, that a person had the focus before the page.
            if message.type in ("error", "warning"):
                faults.append(message.text)

        page.on("console", said)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"{demo.url}/demo")
        chat_frame, view = page.frame_locator("iframe").first, page.frame_locator("iframe").last
        expect(chat_frame.get_by_role("button", name="로그아웃")).to_be_visible(timeout=PATIENCE_MS)
        chat_frame.locator("#compose").fill("안녕?")
        chat_frame.locator("#send").click()
        for element in ("table", "ol > li", "pre code"):
            expect(chat_frame.locator(f".answer {element}").first).to_be_visible(timeout=PATIENCE_MS)
        expect(view.locator("#state")).to_have_text("정상", timeout=PATIENCE_MS)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert not faults


def test_only_the_demo_may_be_framed(demo: Demo) -> None:
    for path in ("/", "/chat"):
        assert "frame-ancestors 'self'" in (ask(demo.address, "GET", path).get("content-security-policy") or "")
    assert "frame-ancestors 'none'" in (ask(demo.address, "GET", "/demo").get("content-security-policy") or "")


# --- Its end -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["eidproxy", "2.", "4.", "deep loads for"])
def test_ctrl_c_at_any_moment(line: str, tmp_path: Path) -> None:
    with started("--port", "0", until_line=line, TMPDIR=str(tmp_path)) as running:
        running.process.send_signal(signal.SIGINT)
        assert running.process.stdout is not None
        rest = running.process.stdout.read()
        assert running.process.wait(30) == 130
    assert "Traceback" not in rest
    assert "rror" not in rest
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_the_first_word_comes_soon() -> None:
    """From the start of the process to the first line of the model, as a figure: 3 s are wanted, no bound is judged."""
    began = time.monotonic()
    with started("--port", "0", until_line="I run on") as running:
        took = time.monotonic() - began
        status = json.loads(ask(running.address, "GET", "/status").body)
    print(f"EIDPROXY demo: the first line of the answer after {took:.2f} s")
    assert status["gate"]["slots"] == 1
