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

import msgspec
import pytest
from msgspec import Struct, structs
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect

from eidproxy.monitoring import status as answer_types
from eidproxy.monitoring.status import ROWS, Status
from eidproxy.site import live_view
from tests.lab import tools
from tests.lab.browser import chromium
from tests.lab.client import CHAT, RawClient, ask, chat, request_bytes
from tests.lab.proxy import CANARIES, Proxy
from tests.lab.router import Received, Router
from tests.lab.script import Script, Step, status, stream
from tests.lab.tools import free_port, until

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
SIZES = {"desktop": (1280, 800), "phone": (390, 844), "small": (320, 568)}
PATIENCE_MS = 10_000
KEY = "key-5b1f0a"
DASH = "\N{EN DASH}"


# The document


@pytest.fixture(scope="module")
def served() -> Iterator[Proxy]:
    """An eidproxy for tests that only read."""
    with Router() as router, Proxy(router) as proxy:
        yield proxy


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_it_is_one_document(served: Proxy, method: str) -> None:
    answer = ask(served, method, "/")
    assert answer.status == 200
    headers = {name.lower(): value for name, value in answer.headers}
    assert headers.pop("content-length").isdecimal()
    assert headers.pop("x-request-id")
    assert headers.pop("date")
    assert headers == {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": live_view(has_chat=False).policy,
        "cross-origin-resource-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "cache-control": "no-store",
    }
    assert bool(answer.body) is (method == "GET")
    assert not re.search(rb'<(?:link|script|img)[^>]*(?:href|src)="(?!data:)', answer.body), "nothing else is loaded"


def test_the_policy_is_strict() -> None:
    digest = r"'sha256-[A-Za-z0-9+/]{43}='"
    assert re.fullmatch(
        rf"default-src 'none'; style-src {digest}; script-src {digest} {digest}; connect-src 'self'; "
        r"img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        live_view(has_chat=True).policy,
    )


def test_it_leads_to_the_chat_where_there_is_one() -> None:
    assert b'href="/chat"' in live_view(has_chat=True).body
    assert b'href="/chat"' not in live_view(has_chat=False).body


@pytest.mark.parametrize("path", ["/live", "/live/status.js", "/status.js", "/words.js", "/index.html", "/status.html"])
def test_nothing_else_is_served(served: Proxy, path: str) -> None:
    assert ask(served, "GET", path).reason == "not_found"


def test_the_page_only_shows(served: Proxy) -> None:
    answer = ask(served, "POST", "/")
    assert (answer.status, answer.get("allow")) == (405, "GET, HEAD")


def test_what_the_page_asks_for_is_not_logged(router: Router) -> None:
    with Proxy(router) as proxy:
        for path in ("/", "/status", "/metrics"):
            assert proxy.get(path).status == 200
        assert proxy.get("/live/nothing").status == 404
        until(lambda: b"not_found" in proxy.output())  # the last that was asked for
        assert [line["reason"] for line in proxy.log() if line["event"] == "request"] == ["not_found"]


# The page


class Watch:
    """What must not happen: an error in the console, a request to another server, a name that nobody may learn."""

    def __init__(self) -> None:
        self.may_be_gone = False
        """Whether the server may be away, or refuse: the browser notes each failed load itself."""
        self.servers: list[Proxy] = []
        """Whose pages these are. After the end of one, at the end of a test, its pages ask once more."""
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
        gone = self.may_be_gone or any(server.process.poll() is not None for server in self.servers)
        if not (gone and message.text.startswith("Failed to load resource")):
            self.faults.append(f"{message.type}: {message.text}")

    def judge(self) -> None:
        """Fail when something did happen."""
        assert self.faults == []
        assert len({urlsplit(url)[:2] for url in self.requested}) == 1
        assert {urlsplit(url).path for url in self.requested} <= {"/", "/status"}


UNKNOWN_FIELDS = """
window.unknown = new Set();
const guarded = (value) => typeof value !== "object" || value === null ? value : new Proxy(value, {
  get(target, name) {
    if (typeof name === "string" && name !== "then" && !(name in target)) window.unknown.add(name);
    const value = Reflect.get(target, name);
    return name === "outcomes" ? value : guarded(value);  // its keys are reasons
  },
});
const json = Response.prototype.json;
Response.prototype.json = async function () { return guarded(await json.call(this)); };
"""
"""Writes down each field that the page reads of an answer that has no such field."""


def optional_fields() -> set[str]:
    """What a status may leave out: fields with a default, and the words by which classes and modes are keyed."""
    kinds = [kind for kind in vars(answer_types).values() if isinstance(kind, type) and issubclass(kind, Struct)]
    fields = [field for kind in kinds for field in structs.fields(kind)]
    left_out = {field.name for field in fields if not field.required}
    return left_out | {"foreground", "background", "daily", "deep"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for this file."""
    with chromium() as browser:
        yield browser


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
            watch.servers.append(proxy)
            page = context.new_page()
            page.add_init_script(UNKNOWN_FIELDS)
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
    unknown = set(page.evaluate("() => [...window.unknown]")) - optional_fields()
    faults += [f"reads {name} of an answer, which has none" for name in unknown]
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
        # The first row of the history holds the quick answer.
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
        expect(page.locator("#in-use")).to_have_text("nobody")
        expect(page.locator("#router")).to_have_text("up")
        expect(page.locator("#deadline-stream")).to_have_text("2 min")
        expect(page.locator("#deadline-wait")).to_have_text("5 min")
        expect(page.locator("#queue")).to_be_hidden()
        a_queue(proxy, busy, stack)
        expect(page.locator("#in-use")).to_have_text("1 of 1")
        expect(page.locator("#slots .who")).to_have_text(["foreground"])
        expect(page.locator("#slots .age")).to_have_text([re.compile(r"^\d+\.\d s$")])
        expect(page.locator("#mean-hold")).to_have_text(re.compile(r"^\d+ ms$|^\d+\.\d s$"))
        expect(page.locator("#upstream-deep")).to_have_text("1 answering")
        expect(page.locator("#waiting")).to_have_text("13")
        expect(page.locator("#queue-limit")).to_have_text("room for 64")
        expect(page.locator("#foreground-list .who")).to_have_text(["#1", "#2", "#3"])
        expect(page.locator("#background-list .who")).to_have_text([f"#{place}" for place in range(4, 12)])
        expect(page.locator("#background-more")).to_have_text(re.compile(r"^and 2 more, the oldest \d+\.\d s$"))
        expect(page.locator("#outcomes tr")).to_have_text([re.compile("^ok1.1$"), re.compile("^warming1.1$")])
        expect(page.locator("#outcomes .bad")).to_have_text(["+1"])
        expect(page.locator("#outcomes-total")).to_have_text("2 ended, 50.0 % of them ok")
        expect(page).to_have_title(f"13 waiting {DASH} eidproxy")
        expect(page.locator("#depth path")).to_have_attribute("d", re.compile("^M"))


def bars(page: Page, selector: str) -> list[float]:
    """How long the bars of a list are, as a part of what they could be."""
    paths = page.locator(f"{selector} .bar path").all()
    return [float(re.split("[hv]", path.get_attribute("d") or "")[1]) / 100 for path in paths]


def answering(page: Page, **changes: Any) -> None:
    """Let the page be answered with these changes of an idle status."""
    gate = {"slots": 1, "in_use": 0, "queue_limit": 64, "holders": [], "waiting": [], "mean_hold_seconds": None}
    idle: dict[str, Any] = {
        "version": "0.1.0",
        "uptime_seconds": 300.0,
        "draining": False,
        "gate": {**gate, **changes.pop("gate", {})},
        "streams": {"daily": 0, "deep": 0},
        "outcomes": {},
        "deadlines": {"stream_seconds": 300.0, "gate_wait_seconds": 300.0},
        "router": {"reachable": True, "checked_seconds_ago": 2.0},
        "upstream": {"daily": LIVE, "deep": LIVE},
        "history": [],
    }
    told = {**idle, **changes}
    msgspec.convert(told, Status)
    page.unroute_all()
    page.route("**/status", lambda route: route.fulfill(json=told))


def test_the_history_is_there_when_the_page_is_opened(served: Proxy, opened: Opener) -> None:
    """Charts, means and the 95th percentile from the server: nothing begins with the page."""
    page = opened(served)
    spread = {"count": 2, "mean_seconds": 1.5, "p95_seconds": 4.2}
    empty = {"count": 0, "mean_seconds": None, "p95_seconds": 4.2}
    row = {"waiting": 3, "gate_wait": {"foreground": spread}, "first_token": {"daily": spread}}
    last = {"waiting": 0, "gate_wait": {"foreground": empty}, "first_token": {"daily": empty}}
    answering(page, history=[row] * (ROWS - 1) + [last])
    box = page.locator("#trends > div").first
    expect(box).to_contain_text("1.5 s")
    expect(box).to_contain_text("95 % within 4.2 s")
    expect(box).to_contain_text("118\N{MULTIPLICATION SIGN}")
    columns = box.locator(".spark path").get_attribute("d") or ""
    assert columns.count("M") == ROWS - 1
    expect(page.get_by_role("img", name=re.compile("^Waiting in the last five minutes, at most 3"))).to_be_visible()
    expect(page.locator("#trends > div").nth(1).locator("b")).to_have_text(DASH)
    assert judged(page) == []


def test_bars_are_on_the_scale_of_the_longest(served: Proxy, opened: Opener) -> None:
    """At everyday waits a scale of the deadline would leave every bar empty."""
    page = opened(served)
    waiting = [
        {"priority": "foreground", "position": 1, "age_seconds": 4.0},
        {"priority": "background", "position": 2, "age_seconds": 8.0},
    ]
    holder = {"mode": "daily", "priority": "foreground", "age_seconds": 2.0}
    answering(page, gate={"in_use": 1, "holders": [holder], "waiting": waiting})
    expect(page.locator("#waiting")).to_have_text("2")
    assert [bars(page, name) for name in ("#slots", "#foreground-list", "#background-list")] == [[0.25], [0.5], [1.0]]
    late = {"mode": "daily", "priority": "foreground", "age_seconds": 290.0, "settling": True}
    answering(page, gate={"in_use": 1, "holders": [late]})
    expect(page.locator("#slots .late")).to_have_count(1)
    expect(page.locator("#slots .who")).to_have_text("its caller left")


WEDGED = {"state": "wedged", "since_seconds": 184.0, "silent_ends": 2, "next_trial_seconds": 12.4}
SUSPECT = {"state": "suspect", "since_seconds": 40.0, "silent_ends": 1, "next_trial_seconds": None}
LIVE = {"state": "live", "since_seconds": 900.0, "silent_ends": 0, "next_trial_seconds": None}
ALARMS: list[tuple[dict[str, Any], str, str]] = [
    (
        {"router": {"reachable": False, "checked_seconds_ago": 5.0}},
        "router down",
        "The router does not answer (checked 5 s ago). Every request is refused until it does.",
    ),
    (
        {"router": {"reachable": False, "checked_seconds_ago": 5.0, "hint": "local_network_privacy"}},
        "router down",
        "The router does not answer (checked 5 s ago). Every request is refused until it does. "
        "macOS keeps this process from the local network: see deploy/README.md.",
    ),
    (
        {"upstream": {"daily": WEDGED, "deep": SUSPECT}},
        "model stuck",
        "The model behind daily takes requests and says nothing. Next trial in 13 s.",
    ),
]


@pytest.mark.parametrize(("changes", "word", "reason"), ALARMS, ids=["down", "hint", "wedged"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_what_is_wrong_is_in_the_head_and_red(
    served: Proxy, opened: Opener, looks: Path, changes: dict[str, Any], word: str, reason: str, theme: str
) -> None:
    page = opened(served, color_scheme=theme)
    live(page)
    ground = page.locator("#top").evaluate("node => getComputedStyle(node).backgroundColor")
    answering(page, **changes)
    live(page, word)
    expect(page.locator("#notice")).to_have_text(reason)
    red, green, blue = re.findall(
        r"\d+", page.locator("#top").evaluate("node => getComputedStyle(node).backgroundColor")
    )
    assert int(red) > 2 * max(int(green), int(blue))
    page.screenshot(path=looks / f"live-{word.replace(' ', '-')}-{theme}.png", full_page=True)
    assert judged(page) == []
    answering(page, upstream={"daily": LIVE, "deep": SUSPECT})
    live(page)
    assert page.locator("#top").evaluate("node => getComputedStyle(node).backgroundColor") == ground
    expect(page.locator("#upstream-deep")).to_have_text("silent 40 s")


def test_in_korean(served: Proxy, opened: Opener, watch: Watch) -> None:
    """The language is the browser's, can be changed, and is remembered for the chat page too."""
    page = opened(served, locale="ko-KR")
    live(page, "정상")
    expect(page.get_by_role("heading", name="보통 답변 시간")).to_be_visible()
    assert page.evaluate("() => document.documentElement.lang") == "ko"
    page.get_by_role("button", name="English").click()
    live(page)
    page.reload()
    live(page)
    assert page.evaluate("() => localStorage['eid.language']") == "en"
    page.get_by_role("button", name="한국어").click()
    live(page, "정상")
    assert judged(page) == []
    # Every word is there in both languages, with the same values to fill in.
    words = page.evaluate("() => WORDS")
    values = {
        language: {key: set(re.findall(r"{\w+}", text)) for key, text in words[language].items()} for language in words
    }
    assert values["ko"] == values["en"]


def test_it_asks_once_a_second_and_not_while_hidden_or_paused(proxy: Proxy, opened: Opener, watch: Watch) -> None:
    page = opened(proxy)
    live(page)
    before = watch.count("/status")
    page.wait_for_timeout(4500)
    assert 2 <= watch.count("/status") - before <= 5

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
    """While nobody answers nothing looks as if it were so; who answers next counts from nothing."""
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
    for name in ("#in-use", "#waiting", "#router", "#upstream-daily"):
        expect(page.locator(name)).to_have_text(DASH)
    with Proxy(router, EIDPROXY_SERVER_PORT=port) as proxy:
        live(page)
        expect(page.locator("#notice")).to_be_hidden()
        assert ask(proxy, "POST", CHAT, chat("daily")).status == 200
        expect(page.locator("#outcomes tr")).to_have_text([re.compile(r"^ok1\+1$")])


# The key


def test_a_key_opens_the_view_in_its_tab(router: Router, opened: Opener, watch: Watch) -> None:
    """401 with a form; a wrong key is told; the right one is kept in the tab, goes in the header, and nowhere else."""
    watch.may_be_gone = True
    with Proxy(router, EIDPROXY_SERVER_API_KEY=KEY) as proxy:
        page = opened(proxy)
        live(page, "locked")
        expect(page.locator("#key")).to_be_focused()
        expect(page.locator("#view")).to_be_hidden()
        assert judged(page) == []
        for wrong in ("another", "열쇠"):
            page.keyboard.type(wrong)
            page.keyboard.press("Enter")
            expect(page.locator("#login-error")).to_have_text("This key was not accepted.")
            expect(page.locator("#key")).to_have_value("")
            page.locator("#key").focus()
        before = watch.count("/status")
        page.wait_for_timeout(1500)
        assert watch.count("/status") == before, "nothing is asked while it is locked"
        page.keyboard.type(KEY)
        page.keyboard.press("Enter")
        live(page)
        page.reload()
        live(page)
        assert page.evaluate("() => [{...localStorage}, document.cookie]") == [{}, ""]
        assert page.evaluate("() => ({...sessionStorage})") == {"eid.key": KEY}
        assert not [url for url in watch.requested if KEY in url]
        # Another tab knows nothing of it.
        other = page.context.new_page()
        other.goto(proxy.url + "/")
        live(other, "locked")


def test_a_key_that_changed_is_asked_for(router: Router, opened: Opener, watch: Watch) -> None:
    port = free_port()
    watch.may_be_gone = True
    with Proxy(router, EIDPROXY_SERVER_PORT=port, EIDPROXY_SERVER_API_KEY=KEY) as proxy:
        page = opened(proxy, extra_http_headers={"Authorization": f"Bearer {KEY}"})
        live(page)
    with Proxy(router, EIDPROXY_SERVER_PORT=port, EIDPROXY_SERVER_API_KEY="another"):
        live(page, "locked")


def test_the_keyboard_reaches_the_button(proxy: Proxy, opened: Opener) -> None:
    page = opened(proxy)
    live(page)
    for _ in range(2):
        page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Pause")).to_be_focused()
    page.keyboard.press("Enter")
    live(page, "paused")
    expect(page.get_by_role("button", name="Resume")).to_be_focused()
