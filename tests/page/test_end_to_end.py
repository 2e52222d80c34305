"""The page through a real Caddy and a real eidproxy: what a person does, what they are told, what nobody is told.

Only the router is scripted. Each person has a browser of their own, whose every word with the network is written
down and searched at the end for what must not be there. EIDPROXY_SCREENSHOTS=folder keeps the screenshots.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from eidproxy.tokens import Tokens
from tests.deploy.test_edges import caddy
from tests.lab.client import CHAT, RawClient, chat, request_bytes
from tests.lab.proxy import Proxy, impatient
from tests.lab.router import Received, Router
from tests.lab.script import (
    FINGERPRINT,
    LAST_CHUNK,
    MODEL_PATH,
    Fin,
    Pause,
    Reset,
    Script,
    Send,
    Stall,
    Step,
    Wait,
    chunk,
    completion_chunk,
    event,
    status,
    stream,
    stream_head,
)
from tests.lab.tools import free_port, size, until
from tests.page.conftest import PATIENCE_MS, QUICK, Watch, answers, ask, button, notice, rested, some, storage
from tests.page.test_looks import LONG, SIZES, judged

SECRET = "end-to-end-secret-of-the-chat-page"
PERSONA = "You are eid. canary-persona-41cc"
RULES = "Be kind. canary-rules-0b9e"
NEW_RULES = "Be brief. canary-rules-77a1"

DEPARTURE_SECONDS = 0.250
LOOKS = ["phone-dark", "desktop-light", "phone-light", "desktop-dark"]

# What is the server's own business: nobody's page, storage, console, network or log may hold a word of it.
SECRETS = [
    "canary-persona",
    "canary-rules",
    SECRET,
    MODEL_PATH,
    "mlx-models",
    FINGERPRINT,
    "applegpu",
    "mac-mini",  # the alias and the host of the machine
    "qwen",
    "litellm",
    "1520292f-9b09",  # the id the router gave its answer
]


def echo(request: Received) -> Script:
    """An answer with the word of the person who asked."""
    asked = request.json["messages"][-1]["content"]
    found = re.search(r"canary-prompt-(\w+)", asked)
    return stream(["답이에요, ", f"canary-answer-{found[1]}" if found else "끝", "."])


def broken(code: int, reason: str) -> list[Step]:
    """A status of the router with its reason, and with much that is nobody's business."""
    told = {"message": f"{MODEL_PATH} at mac-mini.local: {PERSONA}", "type": reason, "code": code}
    return status(code, {"error": told}, [("x-litellm-model-api-base", "http://mac-mini.local:8080/v1")])


class Site:
    """Caddy and a router; between them, at a port that stays, eidproxy is started as a test needs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.router = Router(script=echo)
        self.port = free_port()
        self.base_url = ""
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.write("persona", PERSONA)
        self.write("rules", RULES)
        self._stack.callback(self._judge)
        self._stack.enter_context(self.router)
        edge = self._stack.enter_context(caddy(Proxy(EIDPROXY_SERVER_PORT=self.port), self.folder))
        self.base_url = f"https://localhost:{edge.port}"
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def write(self, name: str, text: str | None) -> None:
        """Put a new file in the place of the persona or of the rules, at once; None takes it away."""
        path = self.folder / name
        if text is None:
            path.unlink(missing_ok=True)
            return
        fresh = self.folder / f"{name}.new"
        fresh.write_text(text + "\n", "utf-8")
        os.replace(fresh, path)

    def serving(self, **settings: Any) -> Proxy:
        """eidproxy, not yet started, with its chat surface on."""
        return Proxy(
            self.router,
            canaries=[*SECRETS, "canary-prompt", "canary-answer", "eyJ"],
            EIDPROXY_SERVER_PORT=self.port,
            EIDPROXY_CHAT_JWT_SECRET=SECRET,
            EIDPROXY_CHAT_PERSONA_FILE=self.folder / "persona",
            EIDPROXY_CHAT_RULES_FILE=self.folder / "rules",
            EIDPROXY_LOG_LEVEL="debug",
            **settings,
        )

    def fresh(self) -> None:
        """Forget what an earlier test has done."""
        self.router.wait_for(lambda: self.router.concurrent == 0)
        self.router.reset()
        self.router.script = echo
        self.write("rules", RULES)

    def _judge(self) -> None:
        """Caddy's log tells as little as eidproxy's."""
        log = (self.folder / "log").read_text("utf-8", "replace")
        assert "serving initial configuration" in log
        assert [word for word in [*SECRETS, "canary-", "eyJ"] if word in log] == []


class Person:
    """Somebody with a browser; `word` stands in every question of theirs, and in the answers the router echoes."""

    def __init__(self, browser: Browser, site: Site, name: str, folder: Path, look: str) -> None:
        self.site = site
        self.name = name
        self.word = f"canary-prompt-{name}"
        self.tokens = [Tokens(SECRET, None, None, 0).issue(name, 600)]
        self.pages: list[Page] = []
        self.seen: list[str] = []
        self._idle: list[Page] = []
        self._har = folder / f"{name}.har"
        extent, theme = look.split("-")
        width, height = SIZES[extent]
        self.context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if theme == "dark" else "light",
            has_touch=extent != "desktop",
            is_mobile=extent != "desktop",
            device_scale_factor=1 if extent == "desktop" else 2,
            locale="ko-KR",
            reduced_motion="reduce",
            # Caddy made its own certificate.
            ignore_https_errors=True,
            record_har_path=self._har,
            record_har_content="embed",
        )
        self.context.set_default_timeout(PATIENCE_MS)
        self.watch = Watch(site.base_url)
        self.watch.over(self.context)

    @property
    def token(self) -> str:
        """The token now."""
        return self.tokens[-1]

    def issue(self, seconds: float, secret: str = SECRET) -> float:
        """Take a new token; when it ends."""
        self.tokens.append(Tokens(secret, None, None, 0).issue(self.name, seconds))
        return int(time.time()) + seconds

    def open(self) -> Page:
        """A new tab, logged in."""
        page = self._idle.pop() if self._idle else self.context.new_page()
        self.pages.append(page)
        page.goto(f"{self.site.base_url}/chat#token={self.token}")
        button(page, "로그아웃").wait_for()
        return page

    def ask(self, page: Page, question: str) -> None:
        """Send a question."""
        # A tab behind another one draws seldom.
        page.bring_to_front()
        ask(page, f"{question} {self.word}")

    def look_round(self) -> None:
        """Note all that is to be seen on the open pages and kept on the device."""
        for page in self.pages:
            if not page.is_closed():
                kept = storage(page)
                assert not any(token in json.dumps(kept["local"]) for token in self.tokens)
                kept["session"].pop("eid.token", None)
                self.seen += [page.content(), page.locator("body").inner_text(), json.dumps(kept, ensure_ascii=False)]

    def rest(self) -> None:
        """Be as new for the next test."""
        self.look_round()
        self._idle += [page for page in self.pages if not page.is_closed()] or [self.context.new_page()]
        self.pages = []
        for page in self._idle:
            if page.url != "about:blank":
                page.evaluate("() => sessionStorage.clear()")
                page.goto("about:blank")
        origin = {"origin": self.site.base_url, "storageTypes": "local_storage,indexeddb"}
        self.context.new_cdp_session(self._idle[0]).send("Storage.clearDataForOrigin", origin)
        self.issue(600)
        assert self.watch.faults == []

    def close(self) -> None:
        """Close the browser."""
        self.context.close()

    def judge(self, others: list[str]) -> None:
        """Fail when something was shown, kept, said or sent that must not be."""
        self.watch.judge()
        written = self._har.read_text("utf-8")
        network = json.loads(written)["log"]["entries"]
        here = "\n".join([*self.seen, *self.watch.console])
        ports = [f"127.0.0.1:{port}" for port in (self.site.port, self.site.router.port)]
        for word in [*SECRETS, *ports, *(f"canary-{kind}-{name}" for name in others for kind in ("prompt", "answer"))]:
            assert word not in here, word
            assert word not in written, word
        # The page has its own words for the machine that a reason names.
        assert "macbook" not in here
        for token in self.tokens:
            assert token not in here
        assert not any("canary-" in line for line in self.watch.console)
        for entry in network:
            asked, answered = entry["request"], entry["response"]
            path = asked["url"].removeprefix(self.site.base_url)
            assert path == "/api/eid/chat" or path.startswith("/chat")
            assert asked["cookies"] == answered["cookies"] == []
            assert "canary-" not in json.dumps([asked["url"], asked["headers"], answered["headers"]])
            given = [pair["value"] for pair in asked["headers"] if pair["name"].lower() == "authorization"]
            # The token goes where it is judged, and nowhere else.
            assert len(given) == (1 if path in ("/api/eid/chat", "/chat/state") else 0)
            assert not any(token in asked["url"] for token in self.tokens)
        # The search would have found something: what this person asked is in their own network log.
        if any(entry["request"]["method"] == "POST" for entry in network):
            assert self.word in written


@pytest.fixture(scope="module")
def calm_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Proxy]]:
    """The defaults, but a short queue, so that it can be filled."""
    with Site(tmp_path_factory.mktemp("calm")) as site, site.serving(EIDPROXY_GATE_MAX_WAITING=2) as proxy:
        yield site, proxy


@pytest.fixture(scope="module")
def hasty_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Proxy]]:
    """Short clocks and low caps."""
    with (
        Site(tmp_path_factory.mktemp("hasty")) as site,
        site.serving(
            EIDPROXY_GATE_WAIT_TIMEOUT_SECONDS=0.4,
            **impatient(0.5),
            EIDPROXY_STREAM_KEEPALIVE_SECONDS=0.3,
            EIDPROXY_STREAM_DEADLINE_SECONDS=1.2,
            EIDPROXY_CHAT_MAX_MESSAGE_CHARS=200,
            EIDPROXY_CHAT_MAX_MESSAGES=5,
            EIDPROXY_CHAT_MAX_TOTAL_CHARS=400,
        ) as proxy,
    ):
        yield site, proxy


@pytest.fixture
def site(calm_site: tuple[Site, Proxy]) -> Site:
    calm_site[0].fresh()
    return calm_site[0]


@pytest.fixture
def proxy(calm_site: tuple[Site, Proxy]) -> Proxy:
    return calm_site[1]


@pytest.fixture
def hasty(hasty_site: tuple[Site, Proxy]) -> Site:
    hasty_site[0].fresh()
    return hasty_site[0]


Meet = Callable[..., Person]


@pytest.fixture(scope="module")
def regulars() -> Iterator[dict[tuple[str, str], Person]]:
    """People who come in several tests, by their site and name: a new browser costs more than most tests."""
    people: dict[tuple[str, str], Person] = {}
    yield people
    judge(list(people.values()))


@pytest.fixture
def meet(
    browser: Browser,
    regulars: dict[tuple[str, str], Person],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Meet]:
    """Makes people. `own` is for a browser that cannot be used again. At the end all browsers are searched."""
    strangers: list[Person] = []
    here: list[Person] = []

    def made(site: Site, name: str, look: str = "desktop-light", own: bool = False) -> Person:
        if own or not QUICK:
            strangers.append(Person(browser, site, name, tmp_path, look))
            return strangers[-1]
        key = (site.base_url, name)
        if key not in regulars:
            regulars[key] = Person(browser, site, name, tmp_path_factory.mktemp(name), look)
        here.append(regulars[key])
        return here[-1]

    yield made
    for person in here:
        person.rest()
    for person in strangers:
        person.look_round()
    judge(strangers)


def judge(people: list[Person]) -> None:
    """Close their browsers and search what is left of them."""
    for person in people:
        person.close()
    for person in people:
        person.judge([other.name for other in people if other.name != person.name])


@pytest.mark.parametrize("secret", some(["canary-answer-junho", "canary-rules", FINGERPRINT], 3))
def test_the_judge_is_awake(browser: Browser, site: Site, tmp_path: Path, secret: str) -> None:
    """The control: one word too much in an answer is found."""
    mina = Person(browser, site, "mina", tmp_path, "desktop-light")
    page = mina.open()
    site.router.enqueue(stream([secret]))
    mina.ask(page, "질문")
    rested(page)
    mina.close()
    with pytest.raises(AssertionError, match=re.escape(secret)):
        mina.judge(["junho"])


def conversation(router: Router, number: int = -1) -> list[tuple[str, str]]:
    """The messages of a request at the router, without what was composed by the server."""
    system, *messages = router.requests[number].json["messages"]
    assert system["role"] == "system"
    return [(one["role"], one["content"]) for one in messages]


def cancelled(person: Person, page: Page, question: str) -> None:
    """Ask a question that is not answered, and see that it is over."""
    person.ask(page, question)
    rested(page)


# --- Asking ---------------------------------------------------------------------------------------------------------


def test_send_and_stream(site: Site, meet: Meet) -> None:
    """Two turns; the answer comes piece by piece, and the router gets what the server composed."""
    mina = meet(site, "mina")
    page = mina.open()
    assert page.url == f"{site.base_url}/chat"
    site.router.enqueue(stream(["안녕하세요, ", "canary-answer-mina ", "반가워요."], gate="first"))
    mina.ask(page, "인사해 줘요")
    expect(page.locator(".answer .text")).to_have_text("안녕하세요,")
    expect(page.locator("#status")).to_have_text("답변을 쓰고 있어요")
    site.router.release("first")
    expect(page.locator(".answer .text")).to_have_text("안녕하세요, canary-answer-mina 반가워요.")
    rested(page)
    page.get_by_role("radio", name="심층").check()
    mina.ask(page, "더 깊이요")
    expect(page.locator(".answer .text").nth(1)).to_have_text("답이에요, canary-answer-mina.")
    expect(page.locator(".badge")).to_have_text("심층")
    first, second = site.router.requests
    assert [first.model, second.model] == ["mac-mini-default", "qwen-macbook"]
    assert first.json["messages"][0] == {"role": "system", "content": f"{PERSONA}\n\n{RULES}"}
    assert conversation(site.router) == [
        ("user", f"인사해 줘요 {mina.word}"),
        ("assistant", "안녕하세요, canary-answer-mina 반가워요."),
        ("user", f"더 깊이요 {mina.word}"),
    ]
    page.reload()
    assert answers(page)[0] == "안녕하세요, canary-answer-mina 반가워요."


def test_queue_behind_another_tab(site: Site, proxy: Proxy, meet: Meet) -> None:
    """One is answered, two wait and see their place, a fourth is sent away with the time to come back."""
    mina, junho = meet(site, "mina"), meet(site, "junho")
    tabs = [mina.open(), mina.open(), junho.open(), junho.open()]
    site.router.enqueue(stream(["하나 ", "끝"], gate="first"), stream(["둘 ", "끝"], gate="second"))
    mina.ask(tabs[0], "첫째")
    expect(tabs[0].locator(".answer .text")).to_have_text("하나")
    mina.ask(tabs[1], "둘째")
    expect(tabs[1].locator("#status")).to_have_text("다음 차례예요앞 질문의 답변이 끝나면 바로 시작해요.")
    junho.ask(tabs[2], "셋째")
    expect(tabs[2].locator("#status")).to_have_text(
        "차례를 기다리고 있어요앞에 질문이 2개 있어요. 차례가 되면 바로 답할게요."
    )
    expect(button(tabs[2], "취소")).to_be_visible()
    cancelled(junho, tabs[3], "넷째")
    assert re.fullmatch(r"지금 기다리는 질문이 많아요\n\d+초 뒤에 다시 시도해 주세요\.", notice(tabs[3]))
    assert button(tabs[3], "다시 시도").count() == 0  # it counts down
    assert [one["position"] for one in proxy.status()["gate"]["waiting"]] == [1, 2]
    junho.look_round()

    site.router.release("first")
    expect(tabs[1].locator(".answer .text").last).to_have_text("둘")
    expect(tabs[2].locator("#status")).to_contain_text("다음 차례예요")
    assert answers(tabs[0]) == ["하나 끝"]
    site.router.release("second")
    expect(tabs[2].locator(".answer .text").last).to_have_text("답이에요, canary-answer-junho.")
    tabs[3].bring_to_front()
    retry = button(tabs[3], "다시 시도")
    expect(retry).to_be_enabled()
    retry.click()
    expect(tabs[3].locator(".answer .text").last).to_have_text("답이에요, canary-answer-junho.")
    assert site.router.max_concurrent == 1
    assert site.router.posts == 4


# --- Stopping and leaving -------------------------------------------------------------------------------------------

BUTTONS = {"stop": "중지", "new conversation": "새 대화", "logout": "대화를 지우고 로그아웃"}
PRESSES = {**BUTTONS, "cancel": "취소"}


def gone(page: Page, way: str) -> float:
    """Leave; the moment of it by the clock of the tests, which is the router's."""
    offset = time.time() - time.monotonic()
    if way == "logout":
        # It is asked about first.
        button(page, "로그아웃").click()
    if way in PRESSES:
        # Finding the button takes a while; the browser tells when it was pressed, to the millisecond.
        script = "(one) => { const now = performance.timeOrigin + performance.now(); one.click(); return now; }"
        pressed = button(page, PRESSES[way]).evaluate(script)
        return float(pressed) / 1000 - offset
    now = time.monotonic()
    if way == "reload":
        page.evaluate("() => location.reload()")
    else:
        page.close()
    return now


def prompt(measure: Callable[[], float], count: int) -> list[float]:
    """So many measurements, all within the limit. A machine may stall for a moment, so there are three tries at it."""
    rounds: list[list[float]] = []
    while len(rounds) < 3 and not any(max(taken) <= DEPARTURE_SECONDS for taken in rounds):
        rounds.append([measure() for _ in range(count)])
    best = min(rounds, key=max)
    assert 0 < max(best) <= DEPARTURE_SECONDS, rounds
    return best


@pytest.mark.parametrize("way", [*BUTTONS, "close the tab", "reload"])
def test_leaving_frees_the_gate(site: Site, proxy: Proxy, meet: Meet, way: str) -> None:
    """The upstream connection is closed and the next in the queue is at the router within 250 ms."""
    mina = meet(site, "mina")
    serials = itertools.count()

    def measure() -> float:
        page = mina.pages[-1] if mina.pages and not mina.pages[-1].is_closed() else mina.open()
        if way == "logout":
            page.goto(f"{site.base_url}/chat#token={mina.token}")
        site.fresh()
        said = f"여기까지 {next(serials)}"
        site.router.enqueue(stream([said, " 끝"], gate="held"), stream())
        mina.ask(page, "길게 써 줘요")
        expect(page.locator(".answer .text").last).to_have_text(said)
        with RawClient(proxy) as next_one:
            next_one.send(request_bytes("POST", CHAT, chat("daily", say="next")))
            until(lambda: len(proxy.status()["gate"]["waiting"]) == 1)
            left = gone(page, way)
            site.router.wait_for(lambda: site.router.posts == 2)
            assert next_one.read_head().status == 200
            next_one.read_body()
        if way == "stop":
            assert notice(page) == "답변을 중지했어요\n여기까지의 답변은 남아 있어요."
        elif way == "reload":
            assert notice(page) == "답변이 중간에 끊겼어요\n여기까지의 답변은 남아 있어요."
        assert site.router.max_concurrent == 1
        assert site.router.closes[0].at <= site.router.requests[1].at
        return site.router.requests[1].at - left

    taken = [seconds * 1000 for seconds in prompt(measure, size(2, 12))]
    print(f"{way}: gate free after p50 {statistics.median(taken):.1f} ms, max {max(taken):.1f} ms")


@pytest.mark.parametrize("way", ["cancel", "close the tab"])
def test_leaving_the_queue(site: Site, proxy: Proxy, meet: Meet, way: str) -> None:
    """Whoever leaves while they wait is out of the queue within 250 ms and never comes to the router."""
    mina, junho = meet(site, "mina"), meet(site, "junho")
    page = mina.open()
    site.router.enqueue(stream(["하나 ", "끝"], gate="held"))
    mina.ask(page, "첫째")
    expect(page.locator(".answer .text")).to_have_text("하나")

    def measure() -> float:
        other = junho.pages[-1] if junho.pages and way == "cancel" else junho.open()
        junho.ask(other, "둘째")
        expect(other.locator("#status")).to_contain_text("다음 차례예요")
        left = gone(other, way)
        until(lambda: not proxy.status()["gate"]["waiting"])
        taken = time.monotonic() - left
        if way == "cancel":
            assert notice(other) == "답변을 중지했어요"
        return taken

    taken = [seconds * 1000 for seconds in prompt(measure, size(1, 12))]
    print(f"{way}: out of the queue after p50 {statistics.median(taken):.1f} ms, max {max(taken):.1f} ms")
    site.router.release("held")
    expect(page.locator(".answer .text")).to_have_text("하나 끝")
    rested(page)
    assert site.router.posts == 1


# --- Cut off --------------------------------------------------------------------------------------------------------


def beginning(*texts: str) -> list[Step]:
    """The first events of an answer."""
    return [Send(stream_head()), *(Send(chunk(event(completion_chunk({"content": text})))) for text in texts)]


CUTS: dict[str, Step] = {"closed": Fin(), "reset": Reset(), "ended without a reason": Send(LAST_CHUNK)}


@pytest.mark.parametrize("how", CUTS)
def test_cut_and_continued(site: Site, meet: Meet, how: str) -> None:
    """What came before the cut stays, and the rest is asked for with it."""
    mina = meet(site, "mina")
    page = mina.open()
    site.router.enqueue([*beginning("자전거로 ", "한강을 "), Wait("read"), CUTS[how]], stream(["따라 달려요."]))
    mina.ask(page, "어디로 달려요?")
    expect(page.locator(".answer .text")).to_have_text("자전거로 한강을")
    site.router.release("read")
    assert notice(page) == "답변이 중간에 끊겼어요\n여기까지의 답변은 남아 있어요."
    button(page, "이어서 받기").click()
    expect(page.locator(".answer .text")).to_have_text("자전거로 한강을 따라 달려요.")
    rested(page)
    expect(page.locator(".notice")).to_have_count(0)
    question, part, request = conversation(site.router)
    assert question == ("user", f"어디로 달려요? {mina.word}")
    assert part == ("assistant", "자전거로 한강을 ")
    assert request[0] == "user"


def test_server_restarts(meet: Meet, tmp_path: Path) -> None:
    """A drain lets the running answer end; without a server, and when it dies, the page says so and goes on later."""
    with Site(tmp_path) as site:
        mina, junho = meet(site, "mina", own=True), meet(site, "junho", own=True)
        with site.serving() as proxy:
            page, other, third = mina.open(), junho.open(), junho.open()
            site.router.enqueue(stream(["하나 ", "끝"], gate="held"))
            mina.ask(page, "첫째")
            expect(page.locator(".answer .text")).to_have_text("하나")
            junho.ask(other, "둘째")
            expect(other.locator("#status")).to_contain_text("다음 차례예요")
            proxy.terminate()
            draining = "서버를 다시 시작하고 있어요\n잠시 뒤에 다시 시도해 주세요."
            assert notice(other) == draining
            junho.ask(third, "셋째")
            assert notice(third) == draining
            site.router.release("held")
            expect(page.locator(".answer .text")).to_have_text("하나 끝")
            rested(page)
            assert proxy.wait() == 0
        unreachable = "답변 서버에 연결하지 못했어요\n잠시 뒤에 다시 시도해 주세요."
        other.bring_to_front()
        button(other, "다시 시도").click()
        expect(other.locator(".notice strong")).to_have_text("답변 서버에 연결하지 못했어요")
        rested(other)
        assert notice(other) == unreachable
        with site.serving() as proxy:
            button(other, "다시 시도").click()
            expect(other.locator(".answer .text")).to_have_text("답이에요, canary-answer-junho.")
            site.router.enqueue([*beginning("여기까지 "), Wait("never")])
            mina.ask(page, "넷째")
            expect(page.locator(".answer .text").last).to_have_text("여기까지")
            proxy.kill()
            assert notice(page) == "답변이 중간에 끊겼어요\n여기까지의 답변은 남아 있어요."
            proxy.wait()
        with site.serving() as proxy:
            site.router.wait_for(lambda: site.router.concurrent == 0)
            button(page, "이어서 받기").click()
            expect(page.locator(".answer .text").last).to_have_text("여기까지 답이에요, 끝.")


# --- What went wrong ------------------------------------------------------------------------------------------------

TRY_LATER = "잠시 뒤에 다시 시도해 주세요."
AGAIN = "같은 질문을 다시 보내 주세요."

# The log only has reasons that are known.
UNKNOWN = "some_machine_unavailable"

# What the router does → title, body and buttons on the page.
FAILURES: dict[str, tuple[list[Step], str, str, list[str]]] = {
    "editor_busy": (
        broken(503, "editor_busy"),
        "지금은 다른 작업을 먼저 하고 있어요",
        "작업이 끝나면 답할 수 있어요. 잠시 뒤에 다시 시도해 주세요.",
        ["다시 시도"],
    ),
    "provider_not_configured": (
        broken(503, "provider_not_configured"),
        "아직 준비되지 않은 모드예요",
        "관리자에게 이 모드를 켜 달라고 말해 주세요.",
        ["다른 모드로 물어보기"],
    ),
    UNKNOWN: (
        broken(503, UNKNOWN),
        "지금은 답할 수 없어요",
        TRY_LATER,
        ["다시 시도"],
    ),
    "upstream_502": (
        status(502, b"<h1>mac-mini.local is down</h1>", [("Content-Type", "text/html")]),
        "답변을 만들다가 문제가 생겼어요",
        AGAIN,
        ["다시 시도"],
    ),
    "router_503": (status(503), "답변을 만들다가 문제가 생겼어요", AGAIN, ["다시 시도"]),
    "router_http_418": (status(418), "답변을 만들다가 문제가 생겼어요", AGAIN, ["다시 시도"]),
    "router_error": (broken(503, "qwen is out!"), "답변을 만들다가 문제가 생겼어요", AGAIN, ["다시 시도"]),
    "router_rejected": (
        broken(400, "invalid_model"),
        "지금은 답할 수 없어요",
        "관리자에게 설정을 확인해 달라고 말해 주세요.",
        ["다시 시도"],
    ),
    "egress_blocked": (
        status(302, b"", [("Location", "http://mac-mini.local/")]),
        "지금은 답할 수 없어요",
        "관리자에게 설정을 확인해 달라고 말해 주세요.",
        ["다시 시도"],
    ),
    "upstream_protocol_error": (
        status(200, {"choices": []}),
        "답변을 만들다가 문제가 생겼어요",
        AGAIN,
        ["다시 시도"],
    ),
    "upstream_error": (
        [Send(stream_head()), Send(chunk(event({"error": {"message": MODEL_PATH}}))), Send(LAST_CHUNK)],
        "답변을 만들다가 문제가 생겼어요",
        AGAIN,
        ["다시 시도"],
    ),
    "upstream_truncated": (
        [Send(stream_head()), Send(LAST_CHUNK)],
        "답변이 중간에 끊겼어요",
        TRY_LATER,
        ["다시 시도"],
    ),
    "router_RemoteProtocolError": (
        [Send(b"mac-mini.local\r\n\r\n"), Fin()],
        "답변 서버에 연결하지 못했어요",
        TRY_LATER,
        ["다시 시도"],
    ),
    "router_ReadError": ([Reset()], "답변 서버에 연결하지 못했어요", TRY_LATER, ["다시 시도"]),
}


def test_failures_of_the_router(site: Site, proxy: Proxy, meet: Meet) -> None:
    """Each in plain words with the next step, and none of them is part of the conversation afterwards."""
    mina = meet(site, "mina")
    page = mina.open()

    def lines() -> list[dict[str, Any]]:
        return [line for line in proxy.log() if line["event"] == "request" and line["surface"] == "chat"]

    def logged_of(number: int) -> str:
        """A line is written when its answer is, and a busy machine may show the answer first."""
        until(lambda: len(lines()) == before + number, what="the line of this request")
        return str(lines()[-1]["reason"])

    before, wrong = len(lines()), []
    for number, (reason, (script, *expected)) in enumerate(FAILURES.items(), 1):
        site.router.enqueue(script)
        cancelled(mina, page, f"질문 {number}")
        title, body = notice(page).split("\n")
        buttons = page.locator(".notice .row button").all_inner_texts()
        logged = logged_of(number)
        if [title, body, buttons] != expected or logged != ("other" if reason == UNKNOWN else reason):
            wrong.append((reason, title, body, buttons, logged))
        assert site.router.posts == number
    assert wrong == []
    mina.ask(page, "끝")
    expect(page.locator(".answer .text")).to_have_text("답이에요, canary-answer-mina.")
    assert conversation(site.router) == [("user", f"끝 {mina.word}")]


def test_router_cannot_be_reached(site: Site, meet: Meet) -> None:
    """Nobody listens; when somebody does again, 다시 시도 is enough."""
    mina = meet(site, "mina")
    page = mina.open()
    site.router.wait_for(lambda: site.router.open_sockets == 0)  # one that waits for the next request would do
    site.router.hang_up()
    try:
        cancelled(mina, page, "질문")
        assert notice(page) == "답변 서버에 연결하지 못했어요\n잠시 뒤에 다시 시도해 주세요."
    finally:
        site.router.listen()
    button(page, "다시 시도").click()
    expect(page.locator(".answer .text")).to_have_text("답이에요, canary-answer-mina.")


def test_deep_is_unavailable(site: Site, meet: Meet) -> None:
    """일상으로 물어보기 sends the same question to the other mode."""
    mina = meet(site, "mina")
    page = mina.open()
    site.router.enqueue(broken(503, "macbook_unavailable"))
    page.get_by_role("radio", name="심층").check()
    cancelled(mina, page, "질문")
    assert notice(page) == ("지금은 심층 모드를 쓸 수 없어요\n심층은 잠시 쉬고 있어요. 일상으로는 답할 수 있어요.")
    mina.look_round()
    button(page, "일상으로 물어보기").click()
    expect(page.locator(".answer .text")).to_have_text("답이에요, canary-answer-mina.")
    assert [one.model for one in site.router.requests] == ["qwen-macbook", "mac-mini-default"]


def test_warming_then_ready(site: Site, meet: Meet) -> None:
    """The page asks again by itself after ten seconds, which the clock of the browser jumps over."""
    mina = meet(site, "mina", own=True)
    page = mina.open()
    page.clock.install()
    site.router.enqueue(broken(503, "warming"))
    mina.ask(page, "질문")
    expect(page.locator("#status")).to_have_text(
        "답할 준비를 하고 있어요처음에는 1~2분쯤 걸려요. 준비되면 질문을 자동으로 다시 보낼게요."
    )
    mina.look_round()
    page.clock.fast_forward(10_100)
    expect(page.locator(".answer .text")).to_have_text("답이에요, canary-answer-mina.")
    rested(page)
    assert conversation(site.router, 0) == conversation(site.router, 1) == [("user", f"질문 {mina.word}")]
    assert site.router.posts == 2


def test_cold_then_now(site: Site, meet: Meet) -> None:
    """지금 시도 does not wait for the countdown."""
    mina = meet(site, "mina")
    page = mina.open()
    site.router.enqueue(broken(503, "upstream_cold"))
    mina.ask(page, "질문")
    expect(page.locator("#timing")).to_have_text(re.compile(r"^1\d초 뒤에 다시 시도할게요\.$"))
    assert site.router.posts == 1
    button(page, "지금 시도").click()
    expect(page.locator(".answer .text")).to_have_text("답이에요, canary-answer-mina.")


def test_turn_does_not_come(hasty: Site, hasty_site: tuple[Site, Proxy], meet: Meet) -> None:
    """The wait for the gate has an end."""
    mina = meet(hasty, "mina")
    page = mina.open()
    # Only the wall clock ends this one, after longer than anybody waits: silence would end sooner.
    hasty.router.enqueue(stream(["x"] * 20, interval=0.1))
    with RawClient(hasty_site[1]) as holder:
        holder.send(request_bytes("POST", CHAT, chat("daily", say="holder")))
        hasty.router.wait_for(lambda: hasty.router.concurrent == 1)
        cancelled(mina, page, "질문")
        assert notice(page) == "오래 기다렸지만 차례가 오지 않았어요\n잠시 뒤에 다시 시도해 주세요."
        assert hasty.router.posts == 1
    button(page, "다시 시도").click()
    expect(page.locator(".answer .text")).to_have_text("답이에요, canary-answer-mina.")


def test_silent_router(hasty: Site, meet: Meet) -> None:
    """Silence before the answer and in its middle are two things to the person."""
    mina = meet(hasty, "mina")
    page = mina.open()
    hasty.router.enqueue([Stall()], [*beginning("여기까지 "), Stall()])
    cancelled(mina, page, "하나")
    assert notice(page) == "답변이 시작되지 않았어요\n잠시 뒤에 다시 시도해 주세요."
    cancelled(mina, page, "둘")
    assert notice(page) == "답변이 중간에 끊겼어요\n여기까지의 답변은 남아 있어요."
    expect(page.locator(".answer .text")).to_have_text("여기까지")


def test_answer_without_end(hasty: Site, meet: Meet) -> None:
    """The wall clock ends an answer that goes on and on; what came stays and can be continued."""
    mina = meet(hasty, "mina")
    page = mina.open()

    def endless(_: Received) -> Iterator[Step]:
        yield from beginning("시작")
        while True:
            yield Pause(0.1)
            yield from beginning(" 또")[1:]

    hasty.router.script = endless
    cancelled(mina, page, "질문")
    assert notice(page) == "답변이 길어져서 여기서 멈췄어요\n이어서 받거나 질문을 나눠서 보내 주세요."
    assert answers(page)[0].startswith("시작 또 또")
    hasty.router.script = echo
    button(page, "이어서 받기").click()
    expect(page.locator(".answer .text")).to_have_text(re.compile("^시작 또 .*답이에요, 끝\\.$"))


# --- What is refused ------------------------------------------------------------------------------------------------


def test_refused_turn_then_a_good_one(hasty: Site, meet: Meet) -> None:
    """Each 422 in turn. None of the refused turns is in what the router gets afterwards, also after a reload.

    The page keeps to the caps by itself; here it is not told of them.
    """
    mina = meet(hasty, "mina")
    page = mina.open()
    page.fill("#compose", "가" * 201)
    expect(page.locator("#counter")).to_have_text("200자까지 보낼 수 있어요. 1자 줄여 주세요.")
    page.route("**/chat/config", lambda route: route.fulfill(json={}))
    page.reload()
    hasty.router.enqueue(stream(["하나"]))
    mina.ask(page, "첫째")
    expect(page.locator(".answer .text")).to_have_text("하나")
    rested(page)

    too_long = "질문이 너무 길어요\n내용을 줄여서 보내 주세요."
    cancelled(mina, page, "가" * 200)
    assert notice(page) == too_long
    button(page, "질문 고치기").click()
    assert page.input_value("#compose") == f"{'가' * 200} {mina.word}"

    hasty.router.enqueue(stream(["나" * 190]))
    mina.ask(page, "둘째")
    expect(page.locator(".answer .text").nth(1)).to_have_text("나" * 190)
    rested(page)
    cancelled(mina, page, "다" * 170)  # with what was said before more than 400, but for one message not too much
    assert notice(page) == "대화가 너무 길어졌어요\n새 대화에서 다시 물어봐 주세요."
    page.reload()
    hasty.router.enqueue(stream(["셋"]))
    mina.ask(page, "셋째")
    expect(page.locator(".answer .text").nth(2)).to_have_text("셋")
    good = [
        ("user", f"첫째 {mina.word}"),
        ("assistant", "하나"),
        ("user", f"둘째 {mina.word}"),
        ("assistant", "나" * 190),
    ]
    assert conversation(hasty.router) == [*good, ("user", f"셋째 {mina.word}")]

    cancelled(mina, page, "넷째")
    assert notice(page) == "대화가 너무 길어졌어요\n새 대화에서 다시 물어봐 주세요."
    button(page, "새 대화에서 물어보기").click()
    expect(page.locator(".answer .text")).to_have_text("답이에요, canary-answer-mina.")
    assert conversation(hasty.router) == [("user", f"넷째 {mina.word}")]
    assert hasty.router.posts == 4


# What somebody with the page's tools could send → the reason, and what the page would say.
FORGED: dict[str, tuple[str, str]] = {
    '{"mode":"daily","messages":[{"role":"system","content":"x"}]}': (
        "system_role_forbidden",
        "질문을 보내지 못했어요",
    ),
    '{"mode":"daily","messages":[{"role":"tool","content":"x"}]}': ("system_role_forbidden", "질문을 보내지 못했어요"),
    '{"mode":"other","messages":[{"role":"user","content":"x"}]}': ("model_not_found", "쓸 수 없는 모드예요"),
    '{"mode":"daily","messages":[],"api_base":"http://x"}': ("unsupported_field", "질문을 보내지 못했어요"),
    '{"mode":"daily","messages":[]}': ("invalid_request", "질문을 보내지 못했어요"),
    '{"mode":': ("invalid_json", "질문을 보내지 못했어요"),
    " " * 1_048_577: ("body_too_large", "질문이 너무 길어요"),
}


def forging(body: str) -> Callable[[Route], None]:
    """Sends another body in the place of the page's."""
    return lambda route: route.continue_(post_data=body)


def refusals(proxy: Proxy) -> Counter[str]:
    """How many requests of the chat page ended with each reason: not each of them has a line of its own."""
    found: Counter[str] = Counter()
    for (name, labels), value in proxy.metrics().items():
        if name == "eidproxy_requests_total" and ("surface", "chat") in labels:
            found[dict(labels)["reason"]] += int(value)
    return found


def test_forged_requests(site: Site, proxy: Proxy, meet: Meet) -> None:
    """What the page itself never sends is refused by the server, and told all the same."""
    mina = meet(site, "mina")
    page = mina.open()
    said = []
    for body in FORGED:
        page.route("**/api/eid/chat", forging(body), times=1)
        before = refusals(proxy)
        cancelled(mina, page, "질문")
        (reason,) = (refusals(proxy) - before).elements()
        said.append((reason, notice(page).split("\n")[0]))
    assert said == list(FORGED.values())
    assert site.router.posts == 0
    mina.ask(page, "끝")
    expect(page.locator(".answer .text")).to_have_text("답이에요, canary-answer-mina.")
    assert conversation(site.router) == [("user", f"끝 {mina.word}")]


def test_bad_login(site: Site, meet: Meet) -> None:
    """A token with the signature of somebody else changes nothing: whoever is here stays, with what they wrote."""
    mina = meet(site, "mina")
    page = mina.open()
    mina.ask(page, "하나")
    rested(page)
    forged = Tokens("x" * 32, None, None, 0).issue("junho", 600)
    page.evaluate("(token) => { location.hash = `token=${token}`; }", forged)
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("쓸 수 없는 로그인 코드예요.")
    page.keyboard.press("Escape")
    page.reload()
    assert answers(page) == ["답이에요, canary-answer-mina."]
    assert storage(page)["session"]["eid.token"] == mina.token
    assert site.router.posts == 1


def test_login_runs_out(site: Site, meet: Meet) -> None:
    """The time of a token really runs out; the question is sent after the next login."""
    mina = meet(site, "mina")
    for seconds in (2, 8, 30):  # on a slow machine the first may be over before the first answer
        ends = mina.issue(seconds)
        page = mina.open()
        cancelled(mina, page, "첫째")
        if answers(page):
            break
        page.close()
    until(lambda: time.time() > ends, timeout=seconds + 2)
    before = site.router.posts
    cancelled(mina, page, "둘째")
    assert notice(page) == "로그인이 만료됐어요\n다시 로그인해 주세요. 쓰던 질문은 남아 있어요."
    assert site.router.posts == before
    assert mina.token not in json.dumps(storage(page))
    mina.issue(600)
    page.locator(".notice").get_by_role("button", name="로그인").click()
    page.get_by_label("로그인 코드").fill(mina.token)
    page.get_by_role("dialog").get_by_role("button", name="로그인").click()
    expect(page.locator(".answer .text").nth(1)).to_have_text("답이에요, canary-answer-mina.")
    assert len(conversation(site.router)) == 3


# --- The rules, and what is kept ------------------------------------------------------------------------------------


def test_rules_are_read_for_each_request(site: Site, meet: Meet) -> None:
    """A new text counts from the next request on; without one nothing reaches the router."""
    mina = meet(site, "mina")
    page = mina.open()
    mina.ask(page, "하나")
    rested(page)
    site.write("rules", NEW_RULES)
    mina.ask(page, "둘")
    rested(page)
    systems = [one.json["messages"][0]["content"] for one in site.router.requests]
    assert systems == [f"{PERSONA}\n\n{RULES}", f"{PERSONA}\n\n{NEW_RULES}"]
    for missing in (None, "", " \n"):
        site.write("rules", missing)
        cancelled(mina, page, "셋")
        assert notice(page) == "지금은 답할 수 없어요\n관리자에게 설정을 확인해 달라고 말해 주세요."
    assert site.router.posts == 2
    site.write("rules", RULES)
    button(page, "다시 시도").click()
    expect(page.locator(".answer .text")).to_have_count(3)
    assert site.router.requests[-1].json["messages"][0]["content"] == f"{PERSONA}\n\n{RULES}"


def test_logout(site: Site, meet: Meet) -> None:
    """로그아웃 leaves nothing of the person in the browser, and the next one starts anew."""
    mina = meet(site, "mina")
    page = mina.open()
    mina.ask(page, "비밀 하나")
    rested(page)
    site.router.enqueue(stream(["비밀 ", "둘"], gate="held"))
    mina.ask(page, "비밀 둘")
    expect(page.locator(".answer .text").nth(1)).to_have_text("비밀")
    page.fill("#compose", "비밀 초안")
    assert mina.word in json.dumps(storage(page))
    button(page, "로그아웃").click()
    button(page, "대화를 지우고 로그아웃").click()
    site.router.wait_for(lambda: site.router.concurrent == 0)
    expect(page.get_by_text("먼저 로그인해 주세요.")).to_be_visible()

    def left(page: Page) -> str:
        return json.dumps(storage(page), ensure_ascii=False) + page.content() + page.input_value("#compose")

    words = (mina.word, "비밀", "mina", mina.token)
    for again in (False, True):
        if again:
            page.reload()
            expect(page.get_by_text("먼저 로그인해 주세요.")).to_be_visible()
        until(lambda: not any(word in left(page) for word in words), what="nothing left")
    mina.tokens.append(Tokens(SECRET, None, None, 0).issue("junho", 600))
    page.goto(f"{site.base_url}/chat#token={mina.token}")
    button(page, "로그아웃").wait_for()
    expect(page.locator(".exchange")).to_have_count(0)
    mina.ask(page, "새로")
    rested(page)
    assert conversation(site.router) == [("user", f"새로 {mina.word}")]


# --- To be looked at ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("look", LOOKS[: size(1, 4)])
def test_looks_for_real(site: Site, meet: Meet, looks: Path | None, look: str) -> None:
    """The states of a real conversation, judged by axe-core and kept for the eye."""
    mina, junho = meet(site, "mina", look, own=True), meet(site, "junho")
    faults: list[str] = []
    taken: list[str] = []

    def picture(name: str) -> None:
        taken.append(name)
        faults.extend(f"{name}: {fault}" for fault in judged(page))
        if looks:
            page.screenshot(path=looks / f"real-{look}-{len(taken)}-{name}.png")

    page = mina.open()
    picture("welcome")
    site.router.enqueue(stream([LONG[:150], LONG[150:]], gate="streaming"))
    mina.ask(page, "한강에서 자전거 타기 좋은 길을 알려 줘요")
    expect(page.locator(".answer .text")).to_contain_text("한강을")
    picture("streaming")
    site.router.release("streaming")
    rested(page)
    picture("answer")

    other = junho.open()
    site.router.enqueue(stream(["하나 ", "끝"], gate="held"))
    junho.ask(other, "먼저")
    expect(other.locator(".answer .text")).to_have_text("하나")
    mina.ask(page, "비 오는 날에는 어디가 좋아요?")
    expect(page.locator("#status")).to_contain_text("다음 차례예요")
    picture("queued")
    button(page, "취소").click()
    site.router.release("held")
    rested(other)

    site.router.enqueue([*beginning("비 오는 날에는 "), Wait("read"), Reset()], broken(503, "macbook_unavailable"))
    mina.ask(page, "비 오는 날에는요?")
    expect(page.locator(".answer .text").last).to_have_text("비 오는 날에는")
    site.router.release("read")
    rested(page)
    expect(page.locator(".notice")).to_be_in_viewport(ratio=1)
    picture("cut")
    page.get_by_role("radio", name="심층").check()
    cancelled(mina, page, "더 깊이 생각해 줘요")
    expect(page.locator(".notice")).to_be_in_viewport(ratio=1)
    picture("deep-unavailable")
    assert faults == []
    assert len(taken) == 6
