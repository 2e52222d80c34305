"""A real browser, and the page in it.

The tests speak to `base_url` with `token` and say what the server does through `stub`; another server can take its
place by overriding the three.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    Request,
    WebError,
    expect,
)

from tests.deploy.files import run
from tests.lab.browser import chromium
from tests.lab.tools import need, size, without
from tests.page.stub import Stub

# The quick form asks less of the machine: most tests share one tab. In the full form each has a browser context.
QUICK = size(1, 0) == 1

# How long anything on the page may take to come about.
PATIENCE_MS = 8000
expect.set_options(timeout=PATIENCE_MS)


def some(cases: Iterable[str], step: int) -> list[str]:
    """All of the cases in the full form, one in `step` in the quick one."""
    return list(cases)[:: size(step, 1)]


def token_of(subject: str, serial: int = 0) -> str:
    """A token whose claims can be read; nobody here checks its signature."""
    parts = ({"alg": "HS256", "typ": "JWT"}, {"sub": subject, "exp": 4102444800 + serial})
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, "c2lnbmF0dXJl"])


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One for all tests here.

    The edge of the tests signs for itself; that its pages are let pass does not hold for their service worker.
    """
    with chromium("--ignore-certificate-errors") as browser:
        yield browser


@pytest.fixture(scope="module")
def bare(browser: Browser) -> Iterator[Page]:
    """One page for the tests of a file that leave no trace on it."""
    with Stub() as stub:
        context = browser.new_context()
        watch = Watch(stub.base_url)
        watch.over(context)
        page = context.new_page()
        page.goto(f"{stub.base_url}/chat")
        yield page
        context.close()
        watch.judge()


@pytest.fixture(scope="package")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the locked packages that check the page's sources."""
    npm, _node = need("npm", "node")
    home = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", "vendor.js"):
        shutil.copy(Path(__file__).parent / name, home)
    done = run(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=home)
    if done.returncode != 0:
        without(f"npm cannot install the locked packages: {done.stderr[-500:]}")
    yield home
    shutil.rmtree(home / "node_modules")


@pytest.fixture
def stub() -> Iterator[Stub]:
    """The server with the scripted answers."""
    with Stub() as started:
        yield started


@pytest.fixture
def base_url(stub: Stub) -> str:
    """Where the page is."""
    return stub.base_url


@pytest.fixture
def token() -> str:
    """The token of the person at the page."""
    return token_of("mina")


class Watch:
    """What must not happen on any page: an error in the console, a request to another server."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self.faults: list[str] = []
        self.console: list[str] = []
        self.requested: list[str] = []

    def over(self, context: BrowserContext) -> None:
        """Watch every page of a context."""
        context.on("console", self._said)
        context.on("weberror", self._raised)
        context.on("request", self._asked)

    def leave(self, context: BrowserContext) -> None:
        """Watch it no more."""
        context.remove_listener("console", self._said)
        context.remove_listener("weberror", self._raised)
        context.remove_listener("request", self._asked)

    def _raised(self, error: WebError) -> None:
        self.faults.append(f"exception: {error.error}")

    def _asked(self, request: Request) -> None:
        self.requested.append(request.url)

    def _said(self, message: ConsoleMessage) -> None:
        self.console.append(message.text)
        # The browser itself notes each status of 400 and more there, also one the page has dealt with.
        of_fetch = message.text.startswith("Failed to load resource") and message.location["url"].endswith(
            ("/api/eid/chat", "/chat/state")
        )
        if message.type in ("error", "warning") and not of_fetch:
            self.faults.append(f"{message.type}: {message.text}")

    def judge(self) -> None:
        """Fail when something did happen."""
        home = urlsplit(self.base_url)[:2]
        foreign = [url for url in self.requested if urlsplit(url)[:2] != home]
        assert self.faults == []
        assert foreign == []
        assert self.requested


Opener = Callable[..., Page]


@pytest.fixture
def watch(base_url: str) -> Iterator[Watch]:
    """The watch over all pages of a test, judged at its end."""
    watch = Watch(base_url)
    yield watch
    watch.judge()


def person(browser: Browser) -> BrowserContext:
    """One person's browser: desktop size, light, Korean."""
    context = browser.new_context(viewport={"width": 1100, "height": 800}, locale="ko-KR", color_scheme="light")
    context.set_default_timeout(PATIENCE_MS)
    return context


@pytest.fixture(scope="module")
def shared(browser: Browser) -> Iterator[BrowserContext]:
    """A browser many tests use, one after the other: each has a server at another port, and so another origin."""
    with person(browser) as context:
        yield context


@pytest.fixture
def own() -> None:
    """For a test that leaves something behind in its browser: a clock that was set, for one."""


@pytest.fixture
def context(request: pytest.FixtureRequest, browser: Browser, watch: Watch) -> Iterator[BrowserContext]:
    """The browser of this test."""
    if not QUICK or "own" in request.fixturenames:
        with person(browser) as context:
            watch.over(context)
            yield context
        return
    context = request.getfixturevalue("shared")
    watch.over(context)
    yield context
    first, *others = context.pages or [context.new_page()]
    for page in others:
        page.close()
    context.set_offline(False)
    context.clear_permissions()
    first.goto("about:blank")
    watch.leave(context)


@pytest.fixture
def page(context: BrowserContext, base_url: str, token: str) -> Page:
    """The page, logged in."""
    page = context.pages[0] if context.pages else context.new_page()
    page.goto(f"{base_url}/chat#token={token}")
    page.get_by_role("button", name="로그아웃").wait_for()
    return page


@pytest.fixture
def looks() -> Path | None:
    """Where screenshots go, if anybody wants them: EIDPROXY_SCREENSHOTS."""
    wanted = os.environ.get("EIDPROXY_SCREENSHOTS")
    if not wanted:
        return None
    folder = Path(wanted)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


STORAGE = """
async () => {
  const read = (request) => new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  const kept = {local: {...localStorage}, session: {...sessionStorage}, conversations: [], turns: []};
  if (!(await indexedDB.databases()).some(({name}) => name === "eid")) return kept;
  const database = await read(indexedDB.open("eid"));
  for (const name of database.objectStoreNames) {
    kept[name] = await read(database.transaction(name).objectStore(name).getAll());
  }
  database.close();
  return kept;
}
"""


def storage(page: Page) -> dict[str, Any]:
    """All that the page keeps on the device."""
    kept = page.evaluate(STORAGE)
    assert isinstance(kept, dict)
    return kept


# --- What a person does, and what they see -------------------------------------------------------------------------


def ask(page: Page, question: str) -> None:
    """Write a question and send it with the button."""
    page.fill("#compose", question)
    page.click("#send")


def button(page: Page, name: str) -> Locator:
    """A button by its words."""
    return page.get_by_role("button", name=name, exact=True)


def answers(page: Page) -> list[str]:
    """The texts of all answers that are shown."""
    ready(page)
    # Not the inner text: that of turns out of view is not rendered.
    return page.locator(".answer .text").all_text_contents()


def ready(page: Page) -> None:
    """Wait until the page has read what is kept on the device."""
    page.wait_for_function("() => !document.body.classList.contains('starting')", polling=20)


def rested(page: Page) -> None:
    """Wait until nothing is under way."""
    # The assertions of Playwright look again after half a second only.
    page.wait_for_function("() => document.getElementById('log').ariaBusy === 'false'", polling=20)


def notice(page: Page) -> str:
    """Title and body of the notice at the end, once it is there."""
    expect(page.locator(".notice")).to_have_count(1)
    lines = page.locator(".notice > div").first.inner_text().split("\n")
    return "\n".join(line for line in lines if line)
