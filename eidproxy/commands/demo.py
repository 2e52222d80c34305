"""`eidproxy demo`: an embedded router with both models, the proxy in front, a show, and three people who keep asking.

The show has four scenes in the terminal: an answer, the gate, refusals, and a model that hangs and comes back. Then the
people go on asking, so that the page at /demo, the chat with the live view beside it, has something to show.
"""

import asyncio
import itertools
import json
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
import unicodedata
import webbrowser
from contextlib import suppress
from functools import partial
from pathlib import Path

import click
import httpx

from eidproxy.commands.people import CHILD, HELLO, LOADING_SECONDS, MOTHER, NIGHT_JOB, PEOPLE, WHO, Person, daily, deep
from eidproxy.config import ChatSettings, LogSettings, RouterSettings, ServerSettings, Settings
from eidproxy.signals import INTERRUPTED, stop_signals
from eidproxy.site import demo_route
from eidproxy.testing.fake_router import FakeRouter, hang
from eidproxy.tokens import Tokens

_RULES = "Answer briefly and kindly. Never say which machine or model you are.\n"

_SILENT_SECONDS = 2.0
"""Silence after which the model counts as hanging: scaled down from 90 s and more, so that the scene is short."""
_RETRY_SECONDS = 2.0
"""How often the hanging model is tried again, likewise scaled down from 30 s."""

_WIDTH = 80
"""Maximum width of a line, so that each can be copied whole."""

_CHAT = "/v1/chat/completions"


async def demo(listener: socket.socket, *, once: bool, open_browser: bool) -> None:
    """Show the proxy on an open socket, then serve until a signal."""
    from eidproxy.app import Application

    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with FakeRouter() as router, tempfile.TemporaryDirectory(prefix="eidproxy-demo-") as folder:
        # Until the show is over, a signal ends the process at once.
        stop_signals.clean_up = partial(shutil.rmtree, folder, ignore_errors=True)
        router.play(daily, mode="daily")
        router.play(deep(), mode="deep")
        settings = _settings(router.url, listener.getsockname()[1], Path(folder))
        token = Tokens(settings.chat.jwt_secret or "", None, None, 0).issue("demo", 86400)
        application = Application(settings, [demo_route(token)])
        server = asyncio.create_task(application.server.serve([listener]))
        try:
            click.secho("eidproxy demo", bold=True)
            click.echo("An embedded router with two models, and eidproxy in front of it. Try it here:")
            click.secho(f"   {url}/demo\n", bold=True)
            if open_browser:
                _open_browser(f"{url}/demo")
            # Proxies of the environment are for other hosts; this one is here.
            async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
                await Show(client, router).play()
                if not once:
                    stop_signals.notify(asyncio.get_running_loop(), application.server.stop)
                    stop_signals.code = INTERRUPTED
                    _print_suggestions(url)
                    await _ask_until(server, client)
            application.server.stop()
            await server
        finally:
            server.cancel()
    stop_signals.clean_up = None


def _settings(router_url: str, port: int, folder: Path) -> Settings:
    rules = folder / "rules.txt"
    rules.write_text(_RULES, "utf-8")
    return Settings(
        router=RouterSettings(
            url=router_url,
            first_event_seconds=_SILENT_SECONDS,
            first_event_seconds_per_kib=0,
            wedge_retry_seconds=_RETRY_SECONDS,
        ),
        server=ServerSettings(port=port, drain_seconds=0),
        chat=ChatSettings(jwt_secret=secrets.token_urlsafe(32), rules_file=str(rules)),
        log=LogSettings(level="critical"),
    )


def _open_browser(url: str) -> None:
    """Open the browser in a thread: some return only when they are closed, and the demo may end first."""

    def open_and_report() -> None:
        if not webbrowser.open(url):
            click.echo("   (no browser was found; open this address yourself)\n")

    threading.Thread(target=open_and_report, daemon=True).start()


async def _ask_until(end: asyncio.Task[None], client: httpx.AsyncClient) -> None:
    """Let the people ask until the server ends."""
    people = [asyncio.create_task(_keep_asking(client, person)) for person in PEOPLE]
    await end
    for task in people:
        task.cancel()
    await asyncio.gather(*people, return_exceptions=True)


async def _keep_asking(client: httpx.AsyncClient, person: Person) -> None:
    """Ask one question after the other, with pauses. A refusal counts as an answer: people come back."""
    headers = {"X-Eid-Priority": person.priority}
    pauses = itertools.cycle(person.pause_seconds)
    for question, _ in itertools.cycle(person.questions):
        with suppress(httpx.HTTPError):
            async with client.stream("POST", _CHAT, json=_question(question), headers=headers) as answer:
                async for _ in answer.aiter_raw():
                    pass
        await asyncio.sleep(next(pauses))


def _question(text: str = WHO, model: str = "daily") -> dict[str, object]:
    return {"model": model, "stream": True, "messages": [{"role": "user", "content": text}]}


class Show:
    """The four scenes in the terminal."""

    def __init__(self, client: httpx.AsyncClient, router: FakeRouter) -> None:
        self._client = client
        self._router = router
        self._began_at = 0.0

    async def play(self) -> None:
        """Play all scenes."""
        await self._answer()
        await self._overtaking()
        await self._refusals()
        await self._hang()

    def _begin(self, title: str) -> None:
        click.secho(title, bold=True)
        self._began_at = time.monotonic()

    def _print_line(self, person: Person, text: str) -> None:
        click.echo(
            f"   {time.monotonic() - self._began_at:4.1f} s  {_pad(f'{person.name} ({person.english})', 24)}{text}"
        )

    async def _answer(self) -> None:
        self._begin("1. daily, streamed")
        first, end = 0.0, "cut"
        write = _WordWrapper()
        async with self._client.stream("POST", _CHAT, json=_question()) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    first = first or time.monotonic() - self._began_at
                    write(json.loads(line[6:])["choices"][0]["delta"].get("content", ""))
                elif line == "data: [DONE]":
                    end = "whole"
            gate, _, _ = answer.headers["server-timing"].partition(",")
        waited = gate.partition("=")[2]
        click.echo(f"\n   gate wait {waited} ms, time to first token {first * 1e3:.0f} ms, the answer is {end}\n")

    async def _overtaking(self) -> None:
        self._begin("2. The gate: one at a time, people before the night job")

        async def ask(person: Person) -> None:
            headers = {"X-Eid-Priority": person.priority, "X-Eid-Progress": "1"}
            async with self._client.stream("POST", _CHAT, json=_question(HELLO), headers=headers) as answer:
                async for line in answer.aiter_lines():
                    if '"queued"' in line:
                        self._print_line(person, f"waits, position {json.loads(line[6:])['eid']['position']}")
                    elif '"upstream"' in line:
                        self._print_line(person, "has the slot")

        async with asyncio.TaskGroup() as group:
            for person in (CHILD, NIGHT_JOB, MOTHER):
                group.create_task(ask(person))
                await asyncio.sleep(0.2)
        click.echo()

    async def _refusals(self) -> None:
        self._begin("3. Refusals: an unknown model, and a model that is loading")
        for model in ("gpt-4o", "deep"):
            answer = await self._client.post(_CHAT, json=_question(model=model))
            click.echo(f"   {model}: {_refusal_text(answer)}")
        click.echo()

    async def _hang(self) -> None:
        self._begin(f"4. The model hangs (timeout here: {_SILENT_SECONDS:g} s)")
        self._router.play(hang(), mode="daily")
        for person in (MOTHER, CHILD, NIGHT_JOB):
            asked_at = time.monotonic()
            answer = await self._client.post(_CHAT, json=_question(HELLO))
            took_seconds = time.monotonic() - asked_at
            self._print_line(
                person, f"{_refusal_text(answer)}{'' if took_seconds > _SILENT_SECONDS / 2 else ' (at once)'}"
            )
        self._router.play(daily, mode="daily")
        click.echo("           the model server is restarted")
        await asyncio.sleep(float(answer.headers.get("retry-after", _RETRY_SECONDS)))
        answer = await self._client.post(_CHAT, json=_question(HELLO))
        self._print_line(NIGHT_JOB, f"{answer.status_code}: the model is back and in use again")
        click.echo()


def _refusal_text(answer: httpx.Response) -> str:
    retry = answer.headers.get("retry-after")
    advice = f", retry in {retry} s" if retry else ""
    return f"{answer.status_code} {answer.json().get('error_reason')}{advice}"


def _print_suggestions(url: str) -> None:
    program = sys.argv[0] if Path(sys.argv[0]).name == "eidproxy" and len(sys.argv[0]) < 32 else "eidproxy"
    click.secho("The three keep asking until Ctrl-C. Try:", bold=True)
    click.echo(f"   chat and live view  {url}/demo")
    click.echo(f"   live view alone     {url}/")
    click.echo(f"   {program} top --url {url}")
    # A line end is whitespace in JSON, so the last two lines need no backslash.
    click.echo(f"   curl -N {url}{_CHAT} \\")
    click.echo('     -H \'Content-Type: application/json\' -d \'{"model": "daily",')
    click.echo('     "stream": true, "messages": [{"role": "user", "content": "안녕?"}]}\'')
    click.echo(f"   deep loads for {LOADING_SECONDS:.0f} s on the first request, then reasons and answers")


# Terminal cells


def _count_cells(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _pad(text: str, cells: int) -> str:
    return text + " " * max(cells - _count_cells(text), 1)


class _WordWrapper:
    """A writer that wraps words into lines as they come."""

    def __init__(self) -> None:
        self._column = 0

    def __call__(self, text: str) -> None:
        is_full = self._column + _count_cells(text) > _WIDTH - 8 and text.startswith(" ")
        if not self._column or is_full:
            click.echo("\n   " if is_full else "   ", nl=False)
            self._column, text = 3, text.lstrip(" ")
        click.echo(text, nl=False)
        self._column += _count_cells(text)
