"""The pages a browser loads: the files of a folder, read once at start and served from memory.

- `chat_routes` serves the chat page and its files. Each file has two names: `/chat/<digest>/<file>`, which the page
  uses and browsers may cache for ever, and `/chat/<file>`, which they revalidate each time (service worker, manifest).
- `live_view` is one document with style, script and icon inside, so that it loads without the API key and can ask for
  the key itself (DESIGN, 45).
- `for_browser` turns a refusal into a page for a person who opened an address.

No request reads the disk, so no spelling of a path leads out of a folder.
"""

import base64
import functools
import gzip
import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from eidproxy.errors import Refusal

CHAT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; font-src 'self'; "
    "manifest-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types eid-worker"
)
"""The Content-Security-Policy of the chat page: it may load from and connect to its own origin alone.

No string can become markup or script. Trusted Types count the address of a service worker as script, so one policy is
allowed: `eid-worker` of offline.js, which returns the same constant for any input.
"""

SECURITY_HEADERS = {
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Sent beside the policy with every page and file."""

IMMUTABLE = "public, max-age=31536000, immutable"
REVALIDATED = "no-cache"

_FOLDER = Path(__file__).parent / "pages"

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}

_ALWAYS_ASKED_FOR = frozenset({"sw.js", "manifest.webmanifest"})
"""Files whose address may not change, since browsers request it again later."""

_REFERENCE = re.compile(r"""(?<=["'(])/chat/([^"'()?#]+)(?=["')])""")
"""An absolute reference to a file, in an attribute, an import or a `url()`. Relative ones need no change."""

_TYPES_WITH_REFERENCES = ("text/html", "text/css", "text/javascript")

_COMPRESSED_TYPES = (*_TYPES_WITH_REFERENCES, "application/manifest+json", "image/svg+xml", "text/plain")
"""Content types that are sent with gzip to callers that accept it."""


class StaticFile(NamedTuple):
    """One file as it is sent."""

    body: bytes
    content_type: str


class Document(NamedTuple):
    """A page with everything that it needs inside, and the Content-Security-Policy that permits nothing else."""

    body: bytes
    policy: str


def load_pages(folder: Path) -> dict[str, StaticFile]:
    """Read every file below a folder, by its path inside it. Raises KeyError for a suffix that is not in `_TYPES`."""
    return {
        path.relative_to(folder).as_posix(): StaticFile(path.read_bytes(), _TYPES[path.suffix])
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# The chat page


def framed_by_own(policy: str) -> str:
    """Return a policy that also lets pages of the same origin show the page in a frame. Only the demo does."""
    return policy.replace("frame-ancestors 'none'", "frame-ancestors 'self'")


def chat_routes(title: str, folder: Path = _FOLDER / "chat", *, policy: str = CHAT_POLICY) -> list[Route]:
    """Return the routes of the chat page, its files, its manifest and its service worker."""
    files = load_pages(folder)
    page = files.pop("chat.html")
    digest = _digest(files)
    offline_paths = [f"/chat/{digest}/{name}" for name in files if _is_needed_offline(name)]
    page = _with_digest(page, digest, files)
    files = {name: _with_digest(file, digest, files) for name, file in files.items()}
    files |= {
        "manifest.webmanifest": _with_title(files["manifest.webmanifest"], title),
        "sw.js": _with_file_list(files["sw.js"], digest, ["/chat", *offline_paths]),
    }
    worker_headers = {"service-worker-allowed": "/chat"}  # the default scope, /chat/, would not contain the page
    return [
        Route("/chat", _serve_file(page, REVALIDATED, policy)),
        *(Route(f"/chat/{digest}/{name}", _serve_file(file, IMMUTABLE, policy)) for name, file in files.items()),
        *(
            Route(f"/chat/{name}", _serve_file(file, REVALIDATED, policy, worker_headers if name == "sw.js" else {}))
            for name, file in files.items()
        ),
    ]


def _digest(files: Mapping[str, StaticFile]) -> str:
    """Return one digest for all files that a page loads, for their addresses: old and new never mix (DESIGN, 46)."""
    digest = hashlib.sha256()
    for name, file in files.items():
        digest.update(f"{name} {len(file.body)}\n".encode() + file.body)
    return digest.hexdigest()[:12]


def _is_needed_offline(name: str) -> bool:
    return name not in _ALWAYS_ASKED_FOR and not name.endswith((".png", ".txt"))


def _with_digest(file: StaticFile, digest: str, files: Mapping[str, StaticFile]) -> StaticFile:
    """Return the file with its absolute references rewritten to the names with the digest."""
    if not file.content_type.startswith(_TYPES_WITH_REFERENCES):
        return file

    def add_digest(match: re.Match[str]) -> str:
        name = match[1]
        return f"/chat/{digest}/{name}" if name in files and name not in _ALWAYS_ASKED_FOR else match[0]

    return file._replace(body=_REFERENCE.sub(add_digest, file.body.decode()).encode())


def _with_title(manifest: StaticFile, title: str) -> StaticFile:
    value = json.loads(manifest.body) | {"name": title, "short_name": title}
    return manifest._replace(body=json.dumps(value, ensure_ascii=False).encode())


def _with_file_list(worker: StaticFile, digest: str, paths: list[str]) -> StaticFile:
    body = worker.body
    for old, new in ((b'"digest"', json.dumps(digest)), (b'["files"]', json.dumps(paths))):
        if body.count(old) != 1:
            raise ValueError(f"sw.js: {old.decode()} must stand there once")
        body = body.replace(old, new.encode())
    return worker._replace(body=body)


def _serve_file(
    file: StaticFile, caching: str, policy: str, more: Mapping[str, str] | None = None
) -> Callable[[Request], Awaitable[Response]]:
    headers = {
        "content-type": file.content_type,
        "content-security-policy": policy,
        "cache-control": caching,
        "etag": f'"{hashlib.sha256(file.body).hexdigest()[:24]}"',
        **SECURITY_HEADERS,
        **(more or {}),
    }
    compressed = _compress(file.body) if file.content_type.startswith(_COMPRESSED_TYPES) else None
    if compressed is not None:
        headers["vary"] = "accept-encoding"

    async def serve(request: Request) -> Response:
        if _has_current_copy(request, headers["etag"]):
            return Response(status_code=304, headers=headers)
        if compressed is not None and _takes_gzip(request):
            # Other bytes under the same strong tag would be wrong (RFC 9110, 8.8.3).
            return Response(compressed, headers=headers | {"content-encoding": "gzip", "etag": f"W/{headers['etag']}"})
        return Response(file.body, headers=headers)

    return serve


@functools.cache
def _compress(body: bytes) -> bytes | None:
    """Return the bytes with gzip, for callers without an edge in front; None when that saves nothing."""
    compressed = gzip.compress(body, mtime=0)
    return compressed if len(compressed) < len(body) else None


def _takes_gzip(request: Request) -> bool:
    """Return whether the caller names gzip and does not forbid it (RFC 9110, 12.5.3)."""
    for offer in request.headers.get("accept-encoding", "").lower().split(","):
        coding, _, weight = offer.partition(";")
        if coding.strip() == "gzip":
            return not re.fullmatch(r"\s*q=0(\.0{0,3})?\s*", weight)
    return False


def _has_current_copy(request: Request, tag: str) -> bool:
    """Return whether the caller's cached copy is this file.

    The comparison is weak (RFC 9110, 13.1.2), since the tag of a packed file is weak.
    """
    given = request.headers.get("if-none-match", "")
    return any(one.strip().removeprefix("W/") == tag for one in given.split(","))


# Documents


def inline(page: str, files: Mapping[str, StaticFile]) -> Document:
    """Return a page with its style sheets, scripts and icon inlined, and a policy that permits no others."""
    sources: dict[str, list[str]] = {"style": [], "script": []}

    def embed(tag: str, name: str) -> str:
        body = files[name].body
        sources[tag].append(f"'sha256-{base64.b64encode(hashlib.sha256(body).digest()).decode()}'")
        return f"<{tag}>{body.decode()}</{tag}>"

    page = re.sub(r'<link rel="stylesheet" href="([^"]+)">', lambda match: embed("style", match[1]), page)
    page = re.sub(r'<script src="([^"]+)"></script>', lambda match: embed("script", match[1]), page)
    icon = base64.b64encode(files["icon.svg"].body).decode()
    page = page.replace('href="icon.svg"', f'href="data:image/svg+xml;base64,{icon}"')
    directives = [f"{tag}-src {' '.join(hashes)}; " for tag, hashes in sources.items() if hashes]
    policy = (
        f"default-src 'none'; {''.join(directives)}connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Document(page.encode(), policy)


def _document(name: str) -> Document:
    files = load_pages(_FOLDER / name)
    return inline(files[f"{name}.html"].body.decode(), files)


_REFUSAL_PAGE = _document("refusal")
_DEMO_PAGE = _document("demo")
_LIVE_VIEW = _document("status")
_LIVE_VIEW_WITHOUT_CHAT = _LIVE_VIEW._replace(body=re.sub(rb'<a id="chat".*?</a>\s*', b"", _LIVE_VIEW.body))


def live_view(*, has_chat: bool) -> Document:
    """Return the live view, with a link to the chat if there is one."""
    return _LIVE_VIEW if has_chat else _LIVE_VIEW_WITHOUT_CHAT


def live_route(*, has_chat: bool, is_framed: bool = False) -> Route:
    """Return the route of the live view; `is_framed` lets the demo show it in a frame."""
    document = live_view(has_chat=has_chat)
    if is_framed:
        document = document._replace(policy=framed_by_own(document.policy))
    return _document_route("/", document)


def demo_route(token: str) -> Route:
    """Return the route of the demo's page: the chat, logged in with the token, and the live view beside it."""
    page = _DEMO_PAGE._replace(body=_DEMO_PAGE.body.replace(b"{token}", token.encode()))
    return _document_route("/demo", page._replace(policy=f"{page.policy}; frame-src 'self'"))


def _document_route(path: str, document: Document) -> Route:
    async def show(_: Request) -> Response:
        return Response(document.body, headers=dict(_document_headers(document)))

    return Route(path, show)


def _document_headers(document: Document) -> list[tuple[str, str]]:
    return [
        ("content-type", _TYPES[".html"]),
        ("content-security-policy", document.policy),
        *SECURITY_HEADERS.items(),
    ]


# Refusals


class ShownRefusal(Refusal):
    """A refusal with a page instead of JSON: the same status, and the same headers beside those of the page."""

    def __init__(self, refusal: Refusal, document: Document) -> None:
        super().__init__(refusal.reason, refusal.param, retry_seconds=refusal.retry_seconds)
        self.content_type = _TYPES[".html"].encode()
        self._refusal = refusal
        self._document = document

    @property
    def status(self) -> int:
        """See `Refusal.status`."""
        return self._refusal.status

    def headers(self) -> list[tuple[bytes, bytes]]:
        """See `Refusal.headers`."""
        own = [(name.title().encode(), value.encode()) for name, value in _document_headers(self._document)[1:]]
        return [*self._refusal.headers(), *own]

    def body(self, request_id: str) -> bytes:  # noqa: ARG002  # it stands in the header
        """Return the page, in place of the JSON of `Refusal.body`."""
        return self._document.body


class _Words(NamedTuple):
    """The text of a refusal page: Korean first, English beside it."""

    title: str
    text: str
    english_title: str
    english: str


_WORDS = {
    "not_found": _Words(
        "여기에는 아무것도 없어요",
        "주소를 다시 확인해 주세요.",
        "There is nothing here",
        "Please check the address.",
    ),
    "unauthorized": _Words(
        "열쇠가 필요해요",
        "이 주소는 API 키가 있어야 열 수 있어요. 첫 화면에서 키를 입력할 수 있어요.",
        "A key is needed",
        "This address asks for the API key. The live view has a field for it.",
    ),
}
_CHAT_IS_OFF = _Words(
    "대화 화면이 꺼져 있어요",
    "관리자에게 대화 화면을 켜 달라고 말해 주세요.",
    "The chat is not switched on",
    "Ask the operator: it needs chat.jwt_secret and chat.rules_file.",
)
_OTHER = _Words(
    "이 주소는 열 수 없어요",
    "주소를 다시 확인해 주세요.",
    "This address cannot be opened",
    "Please check the address.",
)


def for_browser(refusal: Refusal, path: str, *, has_chat: bool) -> Refusal:
    """Return the refusal as a page. For the live view without a key it is the view itself, which asks for the key."""
    if refusal.reason == "unauthorized" and path == "/":
        return ShownRefusal(refusal, live_view(has_chat=has_chat))
    is_chat = path == "/chat" or path.startswith("/chat/")
    words = _CHAT_IS_OFF if is_chat and not has_chat else _WORDS.get(refusal.reason, _OTHER)
    text = _REFUSAL_PAGE.body.decode()
    for name, value in words._asdict().items():
        text = text.replace(f"{{{name}}}", value)
    text = text.replace("{reason}", refusal.reason)
    target, korean, english = (
        ("/chat", "대화로 가기", "Go to the chat") if has_chat else ("/", "첫 화면으로", "Live view")
    )
    text = text.replace("{target}", target).replace("{link}", korean).replace("{english_link}", english)
    return ShownRefusal(refusal, _REFUSAL_PAGE._replace(body=text.encode()))
