"""The pages a browser loads: the files of a folder, read once at start and served from memory.

    page_routes("status", path="/", prefix="/live", policy=STATUS_POLICY)

serves `pages/status/status.html` at `/` and every other file of the folder below `/live/`. Nothing is looked up on the
disk for a request, so no spelling of a path leads out of the folder.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

STATUS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the live view may load and speak to: its own origin alone, no markup can widen it."""

CHAT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; font-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""The same for the chat page, where text of a model is shown: no string can become markup or script either."""

_FOLDER = Path(__file__).parent / "pages"

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".woff2": "font/woff2",
}


class StaticFile(NamedTuple):
    """One file as it is sent."""

    body: bytes
    content_type: str


def load_pages(folder: Path) -> dict[str, StaticFile]:
    """Every file below a folder, by its path inside it. Raises KeyError for a kind of file that has no type here."""
    return {
        path.relative_to(folder).as_posix(): StaticFile(path.read_bytes(), _TYPES[path.suffix])
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def page_routes(name: str, *, path: str, prefix: str, policy: str) -> list[Route]:
    """Routes for the page `<name>.html` at `path` and the other files of its folder below `prefix`."""
    files = load_pages(_FOLDER / name)
    page = files.pop(f"{name}.html")
    return [
        Route(path, _serve(page, policy)),
        *(Route(f"{prefix}/{inner}", _serve(file, policy)) for inner, file in files.items()),
    ]


def _serve(file: StaticFile, policy: str) -> Callable[[Request], Awaitable[Response]]:
    headers = {
        "content-type": file.content_type,
        "content-security-policy": policy,
        "cross-origin-resource-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }

    async def serve(_: Request) -> Response:
        return Response(file.body, headers=headers)

    return serve
