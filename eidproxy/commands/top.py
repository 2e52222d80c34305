"""`eidproxy top`: the live view in a terminal. It polls `/status`, and asks once whether there is a chat.

The answer is decoded into closed types that accept only printable ASCII, so a server that is not eidproxy cannot send
control codes to the terminal. `view` makes lines of it; `show_once`, `watch` and `Screen` print them.
"""

import asyncio
import os
import re
import shutil
import signal
import ssl
import sys
import termios
import time
import tty
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

import httpx
import msgspec

from eidproxy.commands.view import Display, View, render
from eidproxy.config import Settings
from eidproxy.monitoring.status import Status
from eidproxy.signals import stop_signals

_PATIENCE_SECONDS = 5.0
"""Time limit for one request to the proxy."""
_MAX_ANSWER_BYTES = 4 << 20
"""Limit for an answer of the proxy: a server that sends more is not eidproxy."""
_UNREADABLE = "does not answer like eidproxy"


class TopError(Exception):
    """The proxy did not answer as it should. `is_final`: asking again will not help."""

    def __init__(self, message: str, *, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final


# Asking


def is_base_url(url: str) -> bool:
    """Return whether a URL is only scheme, host, port and path: no user, no password, no query, no fragment."""
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    more = parts.userinfo or parts.query or parts.fragment
    return parts.scheme in ("http", "https") and bool(parts.host) and not more and (parts.port or 1) <= 65535


def connect(settings: Settings, url: str | None) -> tuple[httpx.AsyncClient, str]:
    """Return a client for `url`, or for the listener in the settings, and the name to show for it."""
    server = settings.server
    headers = {} if server.api_key is None else {"Authorization": f"Bearer {server.api_key}"}
    uds = None
    if url is not None:
        name = base = url.rstrip("/")
    else:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(server.host, server.host)  # noqa: S104  # compared, not bound
        host = f"[{host}]" if ":" in host else host
        uds = server.uds
        base = "http://localhost" if uds else f"http://{host}:{server.port}"
        name = uds or base
        if settings.allowed_hosts.isdisjoint({"localhost" if uds else host.lower()}):
            headers["Host"] = min(settings.allowed_hosts)
    secure = base.startswith("https:")
    transport = httpx.AsyncHTTPTransport(
        uds=uds, trust_env=False, verify=ssl.create_default_context() if secure else True
    )
    client = httpx.AsyncClient(
        base_url=base,
        headers=headers,
        transport=transport,
        trust_env=False,
        follow_redirects=False,
        timeout=_PATIENCE_SECONDS,
    )
    return client, name


async def _get(client: httpx.AsyncClient, path: str) -> bytes:
    """Return the body of a 200. Raises TopError."""
    body = bytearray()
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS), client.stream("GET", path) as response:
            if response.status_code == 401:
                raise TopError(
                    "needs an API key: set EIDPROXY_SERVER_API_KEY or EIDPROXY_SERVER_API_KEY_FILE", is_final=True
                )
            if response.status_code != 200:
                word = response.headers.get("x-eid-error-reason", "")
                reason = f" {word}" if re.fullmatch("[a-z0-9_]{1,64}", word) else ""
                raise TopError(f"answers with status {response.status_code}{reason}")
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > _MAX_ANSWER_BYTES:
                    raise TopError(_UNREADABLE)
    except (httpx.HTTPError, TimeoutError, UnicodeError) as error:  # UnicodeError: the host is no valid name
        raise TopError(f"does not answer ({type(error).__name__})") from None
    return bytes(body)


async def ask(client: httpx.AsyncClient, view: View) -> None:
    """Request `/status` once and update the view. Raises TopError."""
    try:
        status = msgspec.json.decode(await _get(client, "status"), type=Status)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise TopError(_UNREADABLE) from None
    if view.has_chat is None:
        view.has_chat = await _has_chat(client)
    view.store(status, time.monotonic())


async def _has_chat(client: httpx.AsyncClient) -> bool:
    try:
        await _get(client, "chat/config")
    except TopError:
        return False
    return True


# The terminal


class Screen:
    """The terminal while it shows the view: alternate screen, no cursor, keys without Enter."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._keys = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._saved_settings: list[Any] | None = None

    def enter(self) -> None:
        """Switch the terminal to the view."""
        if self._keys is not None:
            self._saved_settings = termios.tcgetattr(self._keys)
            tty.setcbreak(self._keys)
        self._write("\x1b[?1049h\x1b[?25l")

    def leave(self) -> None:
        """Restore the terminal. Writes past the buffer: a signal may have come in the middle of a write."""
        with suppress(OSError, termios.error):  # the terminal is gone
            os.write(self._output.fileno(), b"\x1b[?25h\x1b[?1049l")
            if self._keys is not None and self._saved_settings is not None:
                termios.tcsetattr(self._keys, termios.TCSAFLUSH, self._saved_settings)

    def draw(self, view: View) -> None:
        """Draw over the last view: each line clears its rest, the last one everything below."""
        columns, rows = shutil.get_terminal_size()
        display = Display(columns, rows, True, "NO_COLOR" not in os.environ, _is_unicode(self._output))
        lines = render(view, display, time.monotonic())
        self._write("\x1b[H" + "\n".join(f"{line}\x1b[K" for line in lines) + "\x1b[J")

    def on_key(self, loop: asyncio.AbstractEventLoop, stop: Callable[[], None], view: View) -> None:
        """Call `stop` on q or when the terminal is gone; show or hide the help on ?."""
        keys = self._keys

        def on_input() -> None:
            assert keys is not None  # noqa: S101  # else no reader is added
            typed = os.read(keys, 64)
            if typed in (b"", b"q", b"Q"):
                stop()
            elif typed == b"?" or view.shows_help:
                view.shows_help = not view.shows_help
                self.draw(view)

        if keys is not None:
            loop.add_reader(keys, on_input)

    def _write(self, text: str) -> None:
        self._output.write(text)
        self._output.flush()


def _is_unicode(output: TextIO) -> bool:
    return "utf" in (output.encoding or "").lower()


def is_drawable(output: TextIO) -> bool:
    """Return whether the output is a terminal that can be drawn on."""
    return output.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


async def show_once(client: httpx.AsyncClient, name: str, output: TextIO) -> None:
    """Print the view once, as plain text. Raises TopError."""
    view = View(name)
    async with client:
        await ask(client, view)
    display = Display(unicode=_is_unicode(output))
    output.write("\n".join(render(view, display, time.monotonic())) + "\n")


async def watch(client: httpx.AsyncClient, name: str, interval: float, output: TextIO) -> None:
    """Show the view until Ctrl-C, q or SIGTERM. Raises TopError when asking again will not help.

    A signal ends the process at once and restores the terminal.
    """
    loop = asyncio.get_running_loop()
    view, screen, stopped = View(name), Screen(output), asyncio.Event()

    def suspend() -> None:
        screen.leave()
        os.kill(os.getpid(), signal.SIGSTOP)  # continues here after `fg`
        screen.enter()
        screen.draw(view)

    async def poll() -> None:
        while True:
            try:
                await ask(client, view)
            except TopError as error:
                if error.is_final:
                    raise
                view.fault = str(error)
            screen.draw(view)
            await asyncio.sleep(interval)

    stop_signals.clean_up, stop_signals.code = screen.leave, 0  # Ctrl-C is a usual way to leave: exit code 0
    screen.enter()
    try:
        loop.add_signal_handler(signal.SIGWINCH, screen.draw, view)
        loop.add_signal_handler(signal.SIGTSTP, suspend)
        screen.on_key(loop, stopped.set, view)
        screen.draw(view)
        async with client:
            tasks = {loop.create_task(poll()), loop.create_task(stopped.wait())}
            done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()
            await asyncio.wait(pending)
            for task in done:
                await task
    finally:
        screen.leave()
        stop_signals.clean_up = None
