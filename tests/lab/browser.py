"""A real browser: Debian's Chromium, which asks nobody but the page's own server."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

from playwright.sync_api import Browser, sync_playwright

from tests.lab.tools import need, size

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


@contextlib.contextmanager
def chromium(*flags: str) -> Iterator[Browser]:
    """A browser. In the quick form it is the shell without windows, where there is one, which is lighter.

    Open it for a file or a folder and no longer: while Playwright runs, no test can run a loop of its own.
    """
    shell = shutil.which("chromium-headless-shell") if size(1, 0) else None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shell or need("chromium")[0], args=[*FLAGS, *flags])
        yield browser
        browser.close()
