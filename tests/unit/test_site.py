"""pages: what a browser is given, under which name, for how long; and what it is told when there is nothing to give."""

from __future__ import annotations

import asyncio
import gzip
import json
import posixpath
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect
from starlette.requests import Request
from starlette.routing import Route

from eidproxy import site
from eidproxy.app import chat_state
from eidproxy.gate import GateStatistics
from eidproxy.site import CHAT_POLICY, StaticFile, chat_routes, inline, load_pages
from eidproxy.tokens import Tokens
from eidproxy.vocabulary import Priority
from tests.lab.browser import chromium
from tests.lab.client import CHAT, Answer, RawClient, ask, chat, request_bytes
from tests.lab.proxy import Proxy
from tests.lab.router import Router
from tests.lab.script import stream
from tests.lab.tools import until

SECRET = "s" * 48
KEY = "key-5b1f0a"
FOREVER = "public, max-age=31536000, immutable"
ACCEPT = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
"""What a browser says when a person goes to an address."""

TYPES = {
    "chat.css": "text/css; charset=utf-8",
    "chat.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "icon-192.png": "image/png",
    "manifest.webmanifest": "application/manifest+json",
    "sw.js": "text/javascript; charset=utf-8",
}


def with_chat(router: Router, folder: Path, **settings: Any) -> Proxy:
    rules = folder / "rules.md"
    rules.write_text("Be kind.")
    return Proxy(router, EIDPROXY_CHAT_JWT_SECRET=SECRET, EIDPROXY_CHAT_RULES_FILE=rules, **settings)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """An eidproxy with chat and key, for tests that only read."""
    folder = tmp_path_factory.mktemp("chat")
    with Router() as router, with_chat(router, folder, EIDPROXY_SERVER_API_KEY=KEY) as proxy:
        yield proxy


def bearer() -> dict[str, str]:
    return {"Authorization": f"Bearer {Tokens(SECRET, None, None, 0).issue('mina', 600)}"}


# How long a browser may keep what


def references(page: Answer) -> list[str]:
    return re.findall(r'(?:href|src)="(/[^"]+)"', page.body.decode())


def test_what_the_page_refers_to_is_kept_for_ever(served: Proxy) -> None:
    found = references(ask(served, "GET", "/chat"))
    assert {path.rpartition("/")[2] for path in found} >= {"chat.css", "chat.js", "manifest.webmanifest"}
    for path in found:
        answer = ask(served, "GET", path)
        lasting = not path.endswith(".webmanifest")
        assert (answer.status, answer.get("cache-control")) == (200, FOREVER if lasting else "no-cache"), path


def test_modules_load_each_other_by_lasting_names(served: Proxy) -> None:
    """So no old file meets a new one, and the service worker knows them all."""
    seen: set[str] = set()
    ahead = [path for path in references(ask(served, "GET", "/chat")) if path.endswith(".js")]
    while ahead:
        script = ahead.pop()
        answer = ask(served, "GET", script)
        assert (answer.status, answer.get("cache-control")) == (200, FOREVER), script
        seen.add(script)
        for name in re.findall(r'(?:from|import)\s*\(?"([\w./-]+\.js)"', answer.body.decode()):
            inner = posixpath.normpath(posixpath.join(posixpath.dirname(script), name))
            ahead += [inner] if inner not in seen else []
    assert len(seen) >= 5
    assert seen <= set(kept_by_the_worker(served))


def kept_by_the_worker(proxy: Proxy) -> list[str]:
    match = re.search(r"const FILES = (\[.*\]);", ask(proxy, "GET", "/chat/sw.js").body.decode())
    assert match is not None
    found: list[str] = json.loads(match[1])
    return found


def test_every_kind_of_reference_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "chat"
    shutil.copytree(Path(site.__file__).parent / "pages" / "chat", folder)
    (folder / "chat.css").write_text("a{b:url(/chat/icon.svg)}c{d:url('/chat/icon.svg')}")
    (folder / "chat.js").write_text(
        'import "/chat/answer.js"; import("./x.js"); fetch("/chat/state"); open("/chat/sw.js")'
    )
    files = {
        route.path: asyncio.run(route.endpoint(Request({"type": "http", "headers": []})))
        for route in chat_routes("x", folder)
    }
    (digest,) = lasting(chat_routes("x", folder))
    icon = f"/chat/{digest}/icon.svg"
    assert files["/chat/chat.css"].body.decode() == f"a{{b:url({icon})}}c{{d:url('{icon}')}}"
    assert files["/chat/chat.js"].body.decode() == (
        f'import "/chat/{digest}/answer.js"; import("./x.js"); fetch("/chat/state"); open("/chat/sw.js")'
    )


@pytest.mark.parametrize("path", ["/chat", "/chat/sw.js", "/chat/manifest.webmanifest", "/chat/icon.svg"])
def test_a_name_that_stays_is_asked_for_again_and_not_sent_again(served: Proxy, path: str) -> None:
    first = ask(served, "GET", path)
    tag = first.get("etag")
    assert (first.status, first.get("cache-control")) == (200, "no-cache")
    assert tag is not None
    for told in (tag, f"W/{tag}", f'"other", {tag}'):
        again = ask(served, "GET", path, headers={"If-None-Match": told})
        assert (again.status, again.body, again.get("etag")) == (304, b"", tag)
        assert again.get("content-length") is None, "it would be that of the whole file (RFC 9110, 8.6)"
    assert ask(served, "GET", path, headers={"If-None-Match": '"other"'}).status == 200


def test_a_connection_goes_on_after_a_304(served: Proxy) -> None:
    tag = ask(served, "GET", "/chat").get("etag") or ""
    with RawClient(served) as client:
        for headers, status in (({"If-None-Match": tag}, 304), ({}, 200), ({"If-None-Match": tag}, 304)):
            client.send(request_bytes("GET", "/chat", None, headers))
            assert client.read_head().status == status
            client.read_body()


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_each_file_has_its_type_and_the_headers(served: Proxy, name: str, method: str) -> None:
    answer = ask(served, method, f"/chat/{name}")
    headers = {name.lower(): value for name, value in answer.headers}
    assert headers.pop("content-length").isdecimal()
    assert headers.pop("x-request-id")
    assert headers.pop("date")
    assert headers.pop("etag")
    assert headers.pop("vary", None) == (None if name.endswith(".png") else "accept-encoding")
    assert headers.pop("service-worker-allowed", None) == ("/chat" if name == "sw.js" else None)
    assert headers == {
        "content-type": TYPES[name],
        "content-security-policy": CHAT_POLICY,
        "cross-origin-resource-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "cache-control": "no-cache",
    }
    assert bool(answer.body) is (method == "GET")


def test_files_are_packed_for_who_takes_it(served: Proxy) -> None:
    for path in ("/chat", "/chat/chat.js", "/chat/icon.svg", "/chat/sw.js"):
        plain = ask(served, "GET", path)
        assert plain.get("content-encoding") is None
        for offer in ("gzip", "br, GZIP;q=0.5, *", "identity,gzip ; q=1"):
            packed = ask(served, "GET", path, headers={"Accept-Encoding": offer})
            assert (packed.get("content-encoding"), packed.get("etag")) == ("gzip", f"W/{plain.get('etag')}")
            assert gzip.decompress(packed.body) == plain.body
            assert len(packed.body) < len(plain.body)
        for offer in ("", "br", "gzip;q=0", "gzip; q=0.00", "x-gzip", "gzipped"):
            assert ask(served, "GET", path, headers={"Accept-Encoding": offer}).body == plain.body
        tag = packed.get("etag") or ""
        assert ask(served, "GET", path, headers={"Accept-Encoding": "gzip", "If-None-Match": tag}).status == 304
    picture = ask(served, "GET", "/chat/icon-192.png", headers={"Accept-Encoding": "gzip"})
    assert (picture.get("content-encoding"), picture.body[:4]) == (None, b"\x89PNG")


def test_what_is_no_file_is_not_kept(served: Proxy) -> None:
    assert ask(served, "GET", "/chat/config").get("cache-control") == "no-store"
    assert ask(served, "GET", "/chat/000000000000/chat.js").status == 404


def lasting(routes: list[Route]) -> set[str]:
    return {route.path.split("/")[2] for route in routes if route.path.count("/") > 2 and "vendor" not in route.path}


def test_a_file_that_changes_changes_every_name(tmp_path: Path) -> None:
    folder = tmp_path / "chat"
    shutil.copytree(Path(site.__file__).parent / "pages" / "chat", folder)
    (one,) = lasting(chat_routes("x", folder))
    assert lasting(chat_routes("y", folder)) == {one}, "the title is in none of them"
    (folder / "chat.css").write_text((folder / "chat.css").read_text() + " ")
    (other,) = lasting(chat_routes("x", folder))
    assert one != other


def test_a_kind_of_file_without_a_type_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.js").write_text("1")
    assert load_pages(tmp_path) == {"inner/a.js": (b"1", "text/javascript; charset=utf-8")}
    (tmp_path / "b.exe").write_text("2")
    with pytest.raises(KeyError, match="exe"):
        load_pages(tmp_path)


def test_the_policy_of_the_chat_is_strict() -> None:
    assert CHAT_POLICY == (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "font-src 'self'; manifest-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types eid-worker"
    )


def test_a_document_permits_what_is_inside_and_nothing_else() -> None:
    files = {
        "a.css": StaticFile(b"p{}", ""),
        "a.js": StaticFile(b"1", ""),
        "icon.svg": StaticFile(b"<svg/>", ""),
    }
    page = '<link rel="icon" href="icon.svg"><link rel="stylesheet" href="a.css"><script src="a.js"></script>'
    document = inline(page, files)
    assert document.body == (
        b'<link rel="icon" href="data:image/svg+xml;base64,PHN2Zy8+"><style>p{}</style><script>1</script>'
    )
    assert document.policy == (
        "default-src 'none'; style-src 'sha256-gG2yISYereRMiG2lMXrbiUgi0Ubw9p7QCeWcroOvy9Y='; "
        "script-src 'sha256-a4ayc/80/OGda4BO/1o/V0etpOqiLx1JwB5S3beHW0s='; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


# What the page asks


def test_the_page_learns_its_title_and_caps(router: Router, tmp_path: Path) -> None:
    caps: dict[str, Any] = {
        "EIDPROXY_CHAT_TITLE": "우리집 비서",
        "EIDPROXY_CHAT_MAX_MESSAGE_CHARS": 100,
        "EIDPROXY_CHAT_MAX_MESSAGES": 6,
        "EIDPROXY_CHAT_MAX_TOTAL_CHARS": 900,
    }
    with with_chat(router, tmp_path, EIDPROXY_SERVER_API_KEY=KEY, **caps) as proxy:
        answer = ask(proxy, "GET", "/chat/config")
        assert answer.json() == {
            "title": "우리집 비서",
            "max_message_chars": 100,
            "max_messages": 6,
            "max_total_chars": 900,
        }
        manifest = ask(proxy, "GET", "/chat/manifest.webmanifest").json()
        assert (manifest["name"], manifest["short_name"]) == ("우리집 비서", "우리집 비서")
        for icon in manifest["icons"]:
            assert ask(proxy, "GET", icon["src"]).get("content-type") == "image/png"


def test_without_a_title_it_has_ours(served: Proxy) -> None:
    assert ask(served, "GET", "/chat/config").json()["title"] == "이드"


def test_how_many_wait_is_told_to_who_is_logged_in(router: Router, tmp_path: Path) -> None:
    router.script = stream(gate="go")
    with with_chat(router, tmp_path) as proxy:
        refused = ask(proxy, "GET", "/chat/state")
        assert (refused.status, refused.reason) == (401, "unauthorized")

        def state() -> Any:
            return ask(proxy, "GET", "/chat/state", headers=bearer()).json()

        assert state() == {"waiting": 0, "eta_seconds": 0}
        with RawClient(proxy) as holder, RawClient(proxy) as one, RawClient(proxy) as other:
            for client, priority in ((holder, "foreground"), (one, "foreground"), (other, "background")):
                client.send(request_bytes("POST", CHAT, chat(), {"X-Eid-Priority": priority}))
                until(lambda: sum(proxy.status()["streams"].values()) == 1)
            until(lambda: len(proxy.status()["gate"]["waiting"]) == 2)
            assert state() == {"waiting": 1, "eta_seconds": None}, "a background request waits behind a person"
            router.release("go")
            for client in (holder, one, other):
                client.read_head()
                client.read_body()
        until(lambda: state() == {"waiting": 0, "eta_seconds": 0})


@pytest.mark.parametrize(
    ("slots", "in_use", "waiting", "mean", "expected"),
    [
        (1, 0, 0, None, (0, 0)),
        (1, 1, 0, None, (0, None)),
        (1, 1, 0, 8.0, (0, 8)),
        (1, 1, 2, 8.0, (2, 24)),
        (2, 2, 2, 8.0, (2, 12)),
        (2, 1, 0, 8.0, (0, 0)),
        (1, 0, 1, 8.0, (1, 16)),
    ],
)
def test_the_time_to_a_turn(slots: int, in_use: int, waiting: int, mean: float | None, expected: Any) -> None:
    depth = {Priority.FOREGROUND: waiting, Priority.BACKGROUND: 9}
    statistics = GateStatistics(
        slots=slots,
        in_use=in_use,
        queue_limit=64,
        settling=0,
        depth=depth,
        oldest_wait_seconds=dict.fromkeys(Priority, 0.0),
        mean_hold_seconds=mean,
    )
    assert chat_state(statistics) == {"waiting": expected[0], "eta_seconds": expected[1]}


def test_without_chat_there_is_none_of_it(router: Router) -> None:
    with Proxy(router) as proxy:
        for path in ("/chat", "/chat/config", "/chat/state", "/chat/sw.js", "/chat/manifest.webmanifest"):
            assert (ask(proxy, "GET", path).status, ask(proxy, "GET", path).reason) == (404, "not_found")


def test_a_rules_file_that_is_missing_is_told_at_the_start(router: Router, tmp_path: Path) -> None:
    rules = tmp_path / "nothing.md"
    with Proxy(router, EIDPROXY_CHAT_JWT_SECRET=SECRET, EIDPROXY_CHAT_RULES_FILE=rules, canaries=[str(rules)]) as proxy:
        (line,) = [line for line in proxy.log() if line["event"] == "rules_missing"]
    assert (line["level"], line["setting"]) == ("error", "chat.rules_file")


# Who goes astray


@pytest.mark.parametrize("path", ["/nothing", "/chat/nothing", "/Chat"])
def test_a_browser_that_goes_astray_is_shown_a_page(router: Router, tmp_path: Path, path: str) -> None:
    with with_chat(router, tmp_path) as proxy:
        machine, person = ask(proxy, "GET", path), ask(proxy, "GET", path, headers=ACCEPT)
    assert machine.json()["error_reason"] == "not_found"
    assert (person.status, person.get("x-eid-error-reason")) == (404, "not_found")
    text = person.body.decode()
    assert "여기에는 아무것도 없어요" in text
    assert "There is nothing here" in text
    assert 'href="/chat"' in text
    assert path not in text, "nothing that a caller says is repeated"
    assert not re.search(r"\{\w+\}", text.partition("</style>")[2]), "no word is left out"
    assert (person.get("content-type"), person.get("cache-control")) == ("text/html; charset=utf-8", "no-store")
    policy = person.get("content-security-policy") or ""
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "script-src" not in policy


def test_a_chat_that_is_off_says_so(proxy: Proxy) -> None:
    answer = ask(proxy, "GET", "/chat", headers=ACCEPT)
    assert (answer.status, answer.get("x-eid-error-reason")) == (404, "not_found")
    assert "대화 화면이 꺼져 있어요" in answer.body.decode()
    assert "chat.rules_file" in answer.body.decode()
    assert 'href="/"' in answer.body.decode()


def test_the_live_view_without_its_key_is_a_page_that_asks_for_it(served: Proxy) -> None:
    machine, person = ask(served, "GET", "/"), ask(served, "GET", "/", headers=ACCEPT)
    assert machine.json()["error_reason"] == "unauthorized"
    assert (person.status, person.get("x-eid-error-reason")) == (401, "unauthorized")
    assert person.get("www-authenticate") == "Bearer"
    assert person.body == served.get("/").body, "the view itself, which then asks"
    assert person.get("content-security-policy") == served.get("/").get("content-security-policy")
    other = ask(served, "GET", "/status", headers=ACCEPT)
    assert other.status == 401
    assert "열쇠가 필요해요" in other.body.decode()


def test_what_serves_machines_stays_json(served: Proxy) -> None:
    """Probes, other methods, and whoever takes anything."""
    assert ask(served, "GET", "/healthz", headers=ACCEPT).json() == {"status": "ok"}
    for method, path, accept in (("POST", "/nothing", ACCEPT["Accept"]), ("GET", "/nothing", "*/*")):
        answer = ask(served, method, path, headers={"Accept": accept, "Authorization": f"Bearer {KEY}"})
        assert (answer.status, answer.json()["error_reason"]) == (404, "not_found")


# Offline


def test_the_page_can_be_read_without_a_network(router: Router, tmp_path: Path) -> None:
    """The service worker keeps the page's files, and neither questions, answers, settings nor the queue."""
    faults: list[str] = []
    with with_chat(router, tmp_path) as proxy, chromium() as browser:
        context = browser.new_context(locale="ko-KR")
        context.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page = context.new_page()
        page.goto(f"{proxy.url}/chat")
        page.evaluate("() => navigator.serviceWorker.ready")
        page.reload()
        page.wait_for_function("() => navigator.serviceWorker.controller !== null")
        page.evaluate("() => Promise.all(['/chat/config', '/chat/state'].map((path) => fetch(path)))")
        kept = page.evaluate(
            """async () => {
              const names = await caches.keys();
              const keys = await Promise.all(names.map(async (name) => (await caches.open(name)).keys()));
              return keys.flat().map((request) => new URL(request.url).pathname);
            }"""
        )
        assert faults == ["Failed to load resource: the server responded with a status of 401 (Unauthorized)"]
        failed: list[str] = []
        context.on("requestfailed", lambda request: failed.append(urlsplit(request.url).path))
        proxy.kill()
        proxy.wait()
        page.reload()
        expect(page.locator("#compose")).to_be_visible()
        page.goto(f"{proxy.url}/chat")
        expect(page.locator("#compose")).to_be_visible()
    assert "/chat" in failed, "the network is asked first"
    assert set(failed).isdisjoint(set(kept) - {"/chat"})
    assert "/chat" in kept
    assert {path for path in kept if not re.fullmatch(r"/chat(/[0-9a-f]{12}/.+)?", path)} == set()
    assert [path for path in kept if path.endswith(("/chat.js", "/chat.css"))] != []


def test_the_worker_names_only_what_is_served(served: Proxy) -> None:
    files = kept_by_the_worker(served)
    assert files[0] == "/chat"
    assert all(ask(served, "GET", path).status == 200 for path in files)
    styles = {path for path in references(ask(served, "GET", "/chat")) if path.endswith(".css")}
    assert styles <= set(files)


def test_a_worker_without_its_marks_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "chat"
    shutil.copytree(Path(site.__file__).parent / "pages" / "chat", folder)
    (folder / "sw.js").write_text('const FILES = ["/chat"];')
    with pytest.raises(ValueError, match="digest"):
        chat_routes("x", folder)
