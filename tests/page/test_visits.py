"""What a visit costs: bytes of the first and of the second, and when the first key can be pressed on a slow line."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from eidproxy.tokens import Tokens
from tests.lab.proxy import Proxy
from tests.page.conftest import PATIENCE_MS
from tests.page.test_end_to_end import SECRET, Site


class Counter:
    """A relay in front of a port that counts what goes to the browser, whoever in it has asked: page or worker."""

    def __init__(self, port: int) -> None:
        self.received = 0
        self._to = port
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Counter:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def taken(self) -> int:
        """The bytes since this was asked last."""
        with self._lock:
            count, self.received = self.received, 0
        return count

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._relay, args=(near,), daemon=True).start()

    def _relay(self, near: socket.socket) -> None:
        with near, socket.create_connection(("127.0.0.1", self._to)) as far, contextlib.suppress(OSError):
            # The end of one direction is the end: neither a browser nor the edge closes half of a connection.
            while True:
                for source in select.select([near, far], [], [])[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    with self._lock:
                        self.received += len(data) if source is far else 0
                    (near if source is far else far).sendall(data)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Proxy]]:
    """eidproxy with its edge."""
    with Site(tmp_path_factory.mktemp("visits")) as site, site.serving() as proxy:
        yield site, proxy


@pytest.fixture(params=["direct", "edge"])
def way(request: pytest.FixtureRequest, served: tuple[Site, Proxy]) -> Iterator[tuple[str, str, Counter]]:
    """The page by itself and behind Caddy: the name of the way, the address, and the count of its bytes."""
    site, proxy = served
    port = proxy.port if request.param == "direct" else int(site.base_url.rpartition(":")[2])
    with Counter(port) as counter:
        scheme = "http" if request.param == "direct" else "https"
        yield request.param, f"{scheme}://localhost:{counter.port}", counter


@pytest.fixture
def visitor(browser: Browser) -> Iterator[BrowserContext]:
    """A browser that was never here."""
    context = browser.new_context(ignore_https_errors=True, locale="ko-KR")
    context.set_default_timeout(PATIENCE_MS)
    yield context
    context.close()


# When the field was to be seen, when one could ask, and when the grammar was there.
TIMES = """
new PerformanceObserver((list) => {
  for (const {name, startTime} of list.getEntries()) if (name === "first-contentful-paint") window.firstKey = startTime;
}).observe({type: "paint", buffered: true});
addEventListener("DOMContentLoaded", () => {
  new MutationObserver(() => {
    if (!document.body.classList.contains("starting")) window.firstQuestion ??= performance.now();
  }).observe(document.body, {attributes: true});
});
"""

WORKING = "() => navigator.serviceWorker.ready.then(() => true)"
GRAMMAR = "() => performance.getEntriesByType('resource').some(({name}) => name.endsWith('/vendor/markdown-it.js'))"


def settled(page: Page) -> None:
    """Wait until the page has everything, its worker too."""
    page.wait_for_function(GRAMMAR, polling=50)
    page.evaluate(WORKING)
    page.wait_for_load_state("networkidle")


def test_bytes(visitor: BrowserContext, way: tuple[str, str, Counter]) -> None:
    """The first visit is small, since everything is packed; the second asks for nothing but the page's own news."""
    name, address, counter = way
    token = Tokens(SECRET, None, None, 0).issue("mina", 600)
    page = visitor.new_page()
    page.goto(f"{address}/chat#token={token}")
    settled(page)
    first = counter.taken()
    page.close()
    page = visitor.new_page()
    page.goto(f"{address}/chat")
    settled(page)
    second = counter.taken()
    print(f"{name}: first visit {first / 1000:.1f} kB, second {second / 1000:.1f} kB")
    # Behind a certificate that it does not know a browser keeps no file it loads: its worker asks for each once more.
    assert first < (180_000 if name == "direct" else 2 * 180_000)
    assert second < 20_000


def test_first_key_is_kept(visitor: BrowserContext, way: tuple[str, str, Counter]) -> None:
    """The field is there with the document and its style, before any script: a key pressed then is not lost."""
    _, address, _ = way
    page = visitor.new_page()
    held: list[Route] = []
    page.route("**/chat.js", lambda route: held.append(route))
    page.goto(f"{address}/chat", wait_until="commit")
    page.locator("#compose").press_sequentially("가")
    assert page.evaluate("() => document.body.classList.contains('starting')")
    for route in held:
        route.continue_()
    expect(page.locator("#send")).to_be_enabled()
    assert page.input_value("#compose") == "가"


def test_slow_line(visitor: BrowserContext, way: tuple[str, str, Counter]) -> None:
    """When one can write, ask, and see tables, at 400 kbit/s and 400 ms."""
    name, address, _ = way
    page = visitor.new_page()
    page.set_default_timeout(60_000)
    page.add_init_script(TIMES)
    session = visitor.new_cdp_session(page)
    session.send("Network.enable")
    line = {"offline": False, "latency": 400, "downloadThroughput": 50_000, "uploadThroughput": 50_000}
    session.send("Network.emulateNetworkConditions", line)
    page.goto(f"{address}/chat", wait_until="commit")
    page.wait_for_function("() => window.firstKey && window.firstQuestion", polling=20)
    page.wait_for_function(GRAMMAR, polling=50)
    key, question, styled = page.evaluate("() => [window.firstKey, window.firstQuestion, performance.now()]")
    print(f"{name}: first key {key / 1000:.1f} s, question {question / 1000:.1f} s, tables {styled / 1000:.1f} s")
    # The grammar is a third of the page, and nobody waits for it to ask.
    assert question < styled
