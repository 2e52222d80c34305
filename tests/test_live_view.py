"""The live view: its files as they are served, the page in a real browser before a real eidproxy.

EIDPROXY_SCREENSHOTS=folder keeps the screenshots.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from eidproxy.pages import STATUS_POLICY, load_pages
from tests import tools
from tests.harness import CANARIES, CHAT, Proxy, RawClient, ask, chat, free_port, request_bytes, until
from tests.tools import need
from tests.upstream import Received, Router, Script, Step, status, stream

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
SIZES = {"desktop": (1100, 800), "phone": (360, 740), "small": (320, 568)}
PATIENCE_MS = 10_000
KEY = "key-5b1f0a"
DASH = "\N{EN DASH}"
TYPES = {
    "/": "text/html; charset=utf-8",
    "/live/status.css": "text/css; charset=utf-8",
    "/live/status.js": "text/javascript; charset=utf-8",
    "/live/icon.svg": "image/svg+xml",
}


# The files


@pytest.fixture(scope="module")
def served() -> Iterator[Proxy]:
    """An eidproxy for tests that only read."""
    with Router() as router, Proxy(router) as proxy:
        yield proxy


@pytest.mark.parametrize("path", TYPES)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_each_file_has_its_type_and_the_headers(served: Proxy, path: str, method: str) -> None:
    answer = ask(served, method, path)
    assert answer.status == 200
    headers = {name.lower(): value for name, value in answer.headers}
    assert headers.pop("content-length").isdecimal()
    assert headers.pop("x-request-id")
    assert headers == {
        "content-type": TYPES[path],
        "content-security-policy": STATUS_POLICY,
        "cross-origin-resource-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "cache-control": "no-store",
    }
    assert bool(answer.body) is (method == "GET")


def test_the_policy_is_strict() -> None:
    assert STATUS_POLICY == (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


@pytest.mark.parametrize(
    "path",
    [
        "/live",
        "/live/",
        "/live/status.html",
        "/live/../status.js",
        "/live/%2e%2e/cli.py",
        "/live//status.js",
        "/index.html",
    ],
)
def test_nothing_else_is_served(served: Proxy, path: str) -> None:
    assert ask(served, "GET", path).reason in ("not_found", "invalid_request")


def test_the_page_only_shows(served: Proxy) -> None:
    answer = ask(served, "POST", "/live/status.js")
    assert (answer.status, answer.get("allow")) == (405, "GET, HEAD")


def test_what_the_page_asks_for_is_not_logged(router: Router) -> None:
    with Proxy(router) as proxy:
        for path in (*TYPES, "/status", "/metrics"):
            assert proxy.get(path).status == 200
        assert proxy.get("/live/nothing").status == 404
        until(lambda: b"not_found" in proxy.output())  # the last that was asked for
        assert [line["reason"] for line in proxy.log() if line["event"] == "request"] == ["not_found"]


def test_a_key_guards_the_page_too(router: Router) -> None:
    with Proxy(router, EIDPROXY_SERVER_API_KEY=KEY) as proxy:
        for path in TYPES:
            assert ask(proxy, "GET", path).status == 401
            assert proxy.get(path).status == 200


def test_a_kind_of_file_without_a_type_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.js").write_text("1")
    assert load_pages(tmp_path) == {"inner/a.js": (b"1", "text/javascript; charset=utf-8")}
    (tmp_path / "b.exe").write_text("2")
    with pytest.raises(KeyError, match="exe"):
        load_pages(tmp_path)


# The page


class Watch:
    """What must not happen: an error in the console, a request to another server, a name that nobody may learn."""

    def __init__(self) -> None:
        self.may_be_gone = False
        """Whether the server may be away, or refuse: the browser notes each failed load itself."""
        self.faults: list[str] = []
        self.requested: list[str] = []

    def over(self, context: BrowserContext) -> None:
        """Watch every page of a context."""
        context.on("console", self._said)
        context.on("weberror", lambda error: self.faults.append(f"exception: {error.error}"))
        context.on("request", lambda request: self.requested.append(request.url))

    def count(self, path: str) -> int:
        """How often a path was asked for."""
        return sum(urlsplit(url).path == path for url in self.requested)

    def _said(self, message: ConsoleMessage) -> None:
        if not (self.may_be_gone and message.text.startswith("Failed to load resource")):
            self.faults.append(f"{message.type}: {message.text}")

    def judge(self) -> None:
        """Fail when something did happen."""
        assert self.faults == []
        assert len({urlsplit(url)[:2] for url in self.requested}) == 1
        assert {urlsplit(url).path for url in self.requested} <= {*TYPES, "/status", "/metrics"}


# Not for the whole session: while Playwright runs, no test could use asyncio.run.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    (program,) = need("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def watch() -> Iterator[Watch]:
    """The watch over all pages of a test, judged at its end."""
    watch = Watch()
    yield watch
    watch.judge()


Opener = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser, watch: Watch) -> Iterator[Opener]:
    """Opens the page of a proxy."""
    with ExitStack() as stack:

        def open_page(proxy: Proxy, size: str = "desktop", **options: Any) -> Page:
            width, height = SIZES[size]
            context = stack.enter_context(
                browser.new_context(
                    viewport={"width": width, "height": height},
                    is_mobile=size != "desktop",
                    device_scale_factor=1 if size == "desktop" else 2,
                    **options,
                )
            )
            context.set_default_timeout(PATIENCE_MS)
            watch.over(context)
            page = context.new_page()
            page.goto(proxy.url + "/")
            return page

        yield open_page


@pytest.fixture
def busy() -> Iterator[Router]:
    """A router that holds `hold`, says that it is warming to `fail` and answers the rest."""

    def script(request: Received) -> Script:
        steps: list[Step] = stream()
        if b"hold" in request.body:
            steps = stream(gate="hold")
        elif b"fail" in request.body:
            steps = status(503, {"error": {"type": "warming"}})
        return steps

    with Router(script=script) as router:
        yield router


def caller(proxy: Proxy, priority: str = "foreground", mode: str = "daily") -> RawClient:
    """Somebody who asks for what takes long."""
    client = RawClient(proxy)
    client.send(request_bytes("POST", CHAT, chat(mode, say="hold"), {"X-Eid-Priority": priority}))
    return client


def a_queue(proxy: Proxy, router: Router, stack: ExitStack) -> None:
    """One holder, a deep stream, 3 in the foreground and 10 in the background, an error and an answer."""
    assert ask(proxy, "POST", CHAT, chat("deep", say="fail")).reason == "warming"
    assert ask(proxy, "POST", CHAT, chat("daily", say="quick")).status == 200
    for mode in ("daily", "deep"):
        stack.enter_context(caller(proxy, mode=mode))
    router.wait_for(lambda: router.waiting("hold") == 2)
    for priority in ("background",) * 10 + ("foreground",) * 3:
        stack.enter_context(caller(proxy, priority))
    until(lambda: len(proxy.status()["gate"]["waiting"]) == 13)


def live(page: Page, word: str = "live") -> None:
    """Wait for a state of the page."""
    expect(page.locator("#state")).to_have_text(word, timeout=PATIENCE_MS)


def judged(page: Page) -> list[str]:
    """What axe-core finds, what stands out of the page sideways, and names that nobody may learn."""
    page.evaluate(AXE)
    found: dict[str, Any] = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    faults = [f"{one['id']}: {node['html']}" for one in found["violations"] for node in one["nodes"]]
    if page.evaluate("() => document.documentElement.scrollWidth > document.documentElement.clientWidth"):
        faults.append("wider than the screen")
    text = page.evaluate("() => document.documentElement.outerHTML")
    return faults + [canary for canary in CANARIES if canary in text]


@pytest.fixture
def looks(tmp_path: Path) -> Path:
    """Where screenshots go: EIDPROXY_SCREENSHOTS, or away after the test."""
    folder = Path(os.environ.get("EIDPROXY_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


LOOKS = [
    ("desktop", "light"),
    ("phone", "dark"),
    ("small", "light"),
    ("small", "dark"),
    ("phone", "light"),
    ("desktop", "dark"),
]


@pytest.mark.parametrize(("size", "theme"), LOOKS[: tools.size(2, len(LOOKS))])
def test_every_state_in_every_look(
    busy: Router, opened: Opener, watch: Watch, looks: Path, size: str, theme: str
) -> None:
    """Idle, a queue, draining, unreachable: axe-core finds nothing, nothing stands out sideways."""
    with ExitStack() as stack:
        proxy = stack.enter_context(Proxy(busy, EIDPROXY_GATE_WAIT_TIMEOUT_SECONDS=60))
        page = opened(proxy, size, color_scheme=theme)

        def look_at(state: str) -> None:
            page.screenshot(path=looks / f"live-{state}-{size}-{theme}.png", full_page=True)
            assert judged(page) == []

        live(page)
        expect(page.get_by_text("No request has ended yet.")).to_be_visible()
        look_at("idle")
        a_queue(proxy, busy, stack)
        expect(page.locator("#waiting")).to_have_text("13")
        expect(page.locator("#trends .spark").nth(2).locator("path")).to_have_attribute("d", re.compile("^M"))
        look_at("queue")
        proxy.terminate()
        live(page, "draining")
        look_at("draining")
        watch.may_be_gone = True
        proxy.kill()
        live(page, "unreachable")
        look_at("unreachable")


def test_what_the_gate_does_is_shown(busy: Router, opened: Opener) -> None:
    with ExitStack() as stack:
        proxy = stack.enter_context(Proxy(busy, EIDPROXY_STREAM_DEADLINE_SECONDS=120))
        page = opened(proxy)
        live(page)
        expect(page.locator("#slots li")).to_have_text(["free"])
        expect(page.locator("#router")).to_have_text(re.compile("^reachable, "))
        expect(page.locator("#deadline-stream")).to_have_text("2 min")
        expect(page.locator("#deadline-wait")).to_have_text("5 min")
        a_queue(proxy, busy, stack)
        expect(page.locator("#in-use")).to_have_text("1 of 1")
        expect(page.locator("#slots .who")).to_have_text(["daily, foreground"])
        expect(page.locator("#slots .age")).to_have_text([re.compile(r"^\d+\.\d s$")])
        expect(page.locator("#streams-deep")).to_have_text("1")
        expect(page.locator("#foreground-list .place")).to_have_text(["#1", "#2", "#3"])
        expect(page.locator("#background-list .place")).to_have_text([f"#{place}" for place in range(4, 12)])
        expect(page.locator("#background-more")).to_have_text(re.compile(r"^and 2 more, the oldest \d+\.\d s$"))
        expect(page.locator("#outcomes tr")).to_have_text([re.compile("^ok1.1$"), re.compile("^warming1.1$")])
        expect(page.locator("#outcomes .bad")).to_have_text(["+1"])
        expect(page.locator("#outcomes-total")).to_have_text("2 ended, 50.0 % of them ok")
        expect(page).to_have_title(f"13 waiting {DASH} eidproxy")
        expect(page.locator("#depth path")).to_have_attribute("d", re.compile("^M"))
        # One grant with a wait of its own, after the first scrape: a column, a mean, a number of requests.
        trend = page.get_by_role("img", name=re.compile("^Gate wait, foreground: mean .* over 2 requests"))
        expect(trend.locator("path")).to_have_attribute("d", re.compile("^M"))


def test_it_asks_once_a_second_and_not_while_hidden_or_paused(proxy: Proxy, opened: Opener, watch: Watch) -> None:
    page = opened(proxy)
    live(page)
    before = (watch.count("/status"), watch.count("/metrics"))
    page.wait_for_timeout(6500)
    asked = watch.count("/status") - before[0], watch.count("/metrics") - before[1]
    assert 3 <= asked[0] <= 7
    assert 1 <= asked[1] <= 2

    def quiet() -> int:
        """How often it asks in two seconds."""
        start = watch.count("/status")
        page.wait_for_timeout(2000)
        return watch.count("/status") - start

    hide = "(hidden) => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true}); %s }"
    tell = hide % "document.dispatchEvent(new Event('visibilitychange'));"
    page.evaluate(tell, True)
    live(page, "paused")
    assert quiet() == 0
    page.evaluate(tell, False)
    live(page)
    page.get_by_role("button", name="Pause").click()
    live(page, "paused")
    assert quiet() == 0
    page.evaluate(tell, True)
    page.evaluate(tell, False)
    assert quiet() == 0
    page.get_by_role("button", name="Resume").click()
    live(page)
    assert 1 <= quiet() <= 3


def test_another_process_behind_the_same_address(router: Router, opened: Opener, watch: Watch) -> None:
    port = free_port()
    with Proxy(router, EIDPROXY_SERVER_PORT=port) as proxy:
        for _ in range(3):
            assert ask(proxy, "POST", CHAT, chat("daily")).status == 200
        page = opened(proxy)
        live(page)
        expect(page.locator("#outcomes tr")).to_have_text([re.compile(f"^ok3{DASH}$")])
        watch.may_be_gone = True
        assert ask(proxy, "GET", "/healthz").status == 200
    live(page, "unreachable")
    expect(page.locator("#notice")).to_have_text("The proxy does not answer. Trying again each second.")
    expect(page.locator("#uptime")).to_have_text(re.compile(r"^last answer \d+ s ago$"))
    expect(page).to_have_title(f"unreachable {DASH} eidproxy")
    with Proxy(router, EIDPROXY_SERVER_PORT=port) as proxy:
        live(page)
        expect(page.locator("#notice")).to_be_hidden()
        assert ask(proxy, "POST", CHAT, chat("daily")).status == 200
        expect(page.locator("#outcomes tr")).to_have_text([re.compile(r"^ok1\+1$")])


def test_with_a_key_the_header_may_come_from_in_front(router: Router, opened: Opener, watch: Watch) -> None:
    port = free_port()
    with Proxy(router, EIDPROXY_SERVER_PORT=port, EIDPROXY_SERVER_API_KEY=KEY) as proxy:
        page = opened(proxy, extra_http_headers={"Authorization": f"Bearer {KEY}"})
        live(page)
        watch.may_be_gone = True
    with Proxy(router, EIDPROXY_SERVER_PORT=port, EIDPROXY_SERVER_API_KEY="another"):
        expect(page.locator("#notice")).to_contain_text("asks for its API key", timeout=PATIENCE_MS)


def test_the_keyboard_reaches_the_button(proxy: Proxy, opened: Opener) -> None:
    page = opened(proxy)
    live(page)
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Pause")).to_be_focused()
    page.keyboard.press("Enter")
    live(page, "paused")
    expect(page.get_by_role("button", name="Resume")).to_be_focused()
