"""`eidproxy check --live`: does it work with *this* router? At most 7 requests and 100 tokens.

If an eidproxy runs here, it gets every question, as BACKGROUND: a question past its gate would be a second inference.
Otherwise an eidproxy in this process gets them, and the router itself gets those that judge its own bytes. Judgements
name shapes, not dialects. No answer, no alias and no name of a model is printed.
"""

import asyncio
import json
import math
import re
import secrets
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import click
import httpx
import msgspec
import uvloop

from eidproxy.commands.check import Finding, Report, ReportFinding, check_clocks, check_router, fail, note, ok, skip
from eidproxy.commands.look import Proxy, Read, Response, Router, is_done, is_eidproxy, split_stream
from eidproxy.commands.top import connect
from eidproxy.config import ChatSettings, LogSettings, Settings
from eidproxy.gate.choice import is_shared
from eidproxy.vocabulary import Mode

_COUNT = "Count from one to thirty in words."
_WORD = "Say hello in one word."
_TOOL = {
    "type": "function",
    "function": {
        "name": "current_time",
        "description": "The time now.",
        "parameters": {"type": "object", "properties": {}},
    },
}
_JSON_KEY = "eid_check"
"""A key that no model would choose: an answer with it has followed the schema."""
_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "greeting",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {_JSON_KEY: {"type": "string"}},
            "required": [_JSON_KEY],
            "additionalProperties": False,
        },
    },
}
_BEGINS_AS_ASKED = re.compile(r'\s*\{\s*"' + _JSON_KEY + r'"\s*:')

_MEASURE_KIB = 8
"""Size of a timed prompt: some 2,000 tokens, which fit into every context."""
_BYTES_A_TOKEN = 4
"""Holds for English, and roughly for Korean in UTF-8."""

_LEAVE_TOKENS = 256
"""`max_tokens` of the answer that is left at its first event: a server that does not stop is busy for a while."""
_READ_GAP_SECONDS = 0.01
"""Reads closer together than this were written, or buffered, as one."""
_TOO_QUICK_SECONDS = 0.3
"""A shorter time shows nothing about buffers or a busy server."""
_BUSY_FACTOR = 3
"""If the next answer takes this many times longer to begin than when idle, the model server is still busy."""
_SPEED_MARGIN = 1.5
"""Factor from the measured to the proposed seconds per KiB: a long prompt costs more for each KiB than a short one."""
_PROMPT_SHARE = 0.8
"""Fraction of the wall clock that a prompt may take; the rest is for the answer."""

_WAIT_REASONS = frozenset({"warming", "upstream_cold", "macbook_unavailable", "editor_busy"})
_BUSY_REASONS = frozenset({"gate_queue_full", "gate_wait_timeout", "draining", "overloaded", "gate_unavailable"})
_HANG_REASONS = frozenset(
    {"upstream_wedged", "upstream_silent", "router_ReadTimeout", "stream_deadline_exceeded", "no_answer"}
)
_KEY_REASONS = frozenset({"router_http_401", "router_http_403", "authentication_error", "invalid_api_key"})
_KEY_MESSAGE = re.compile(rb"api.?key|no_db_connection|authenticat|authoriz", re.IGNORECASE)
_ALIAS_REASONS = frozenset({"router_rejected", "router_http_404", "router_http_422", "not_found_error", "router_error"})
_LOADING_MESSAGE = re.compile(r"loading model", re.IGNORECASE)

_SUBJECTS = (
    *("key", "daily", "deep", "sign of life", "unbuffered", "whole", "nothing told", "stop", "tools", "json"),
    *("prompt speed", "leave in the prefill"),
)


class Interrupted(Exception):
    """A signal ended the eidproxy in this process."""


def live_check(settings: Settings, *, measure: bool, as_json: bool) -> bool:
    """Ask the router and print the findings. Return whether nothing would fail. Raises click.Abort on a signal."""
    report = Report(as_json)
    check = LiveCheck(settings, measure, report.add)
    try:
        uvloop.run(check.run())
    except Interrupted:
        raise click.Abort from None
    if not as_json:
        click.echo()
        for name, value in check.proposals.items():
            click.echo(f"proposed: {name} = {json.dumps(value)}")
        click.echo(f"asked: {check.requests} requests, about {check.tokens} tokens generated")
    return report.end(proposals=check.proposals, requests=check.requests, tokens=check.tokens)


class LiveCheck:
    """One run of the check: its questions and what they showed."""

    def __init__(self, settings: Settings, measure: bool, print_finding: ReportFinding) -> None:
        self.proposals: dict[str, str | int | float] = {}
        self.requests = 0
        self.tokens = 0
        self._settings = settings
        self._measure = measure
        self._subjects = _SUBJECTS if measure else _SUBJECTS[:-2]
        self._reported: set[str] = set()
        self._print_finding = print_finding

    async def run(self) -> None:
        """Ask what can be asked, and report the rest as `skip`, so that each run has the same lines."""
        check_clocks(self._settings, self._print_finding)
        self.requests += 1  # the `GET /v1/models` of look_at_router, which is no inference
        if await check_router(self._settings, self._print_finding):
            await self._ask_through_proxy()
        for subject in self._subjects:
            if subject not in self._reported:
                self._print_finding(skip(subject, "was not tested, since an earlier check failed"))

    def _report(self, *findings: Finding) -> None:
        for finding in findings:
            self._reported.add(finding.subject)
            self._print_finding(finding)

    async def _ask_through_proxy(self) -> None:
        running = await _find_running_proxy(self._settings)
        settings, patience_seconds = self._settings, self._settings.stream.deadline_seconds + 10
        if isinstance(running, Finding):
            self._print_finding(running)
            if running.level == "fail":
                return
        elif running is not None:
            self._print_finding(ok("eidproxy", "one runs here: the check uses it and its settings, as background"))
            async with aclosing(running):
                await self._ask(Proxy(running, patience_seconds + settings.gate.wait_timeout_seconds), None)
            return
        async with _own_proxy(settings) as (client, serving):
            router = None
            if not is_shared(settings.gate.url):  # with a shared gate another replica may be at the router
                from eidproxy.app import build_upstream

                aliases = {mode: settings.alias(mode) for mode in Mode}
                router = Router(build_upstream(settings), aliases, settings.stream.deadline_seconds)
            proxy = Proxy(client, patience_seconds + settings.gate.wait_timeout_seconds)
            asking = asyncio.create_task(self._ask(proxy, router))
            await asyncio.wait({asking, serving}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                asking.cancel()
                raise Interrupted
            await asking

    async def _ask(self, proxy: Proxy, router: Router | None) -> None:
        first = router or proxy
        daily = self._count(await first.ask(Mode.DAILY, question(_COUNT, 20)))
        deep = self._count(await first.ask(Mode.DEEP, question(_WORD, 1)))
        self._report(*judge_modes(daily, deep))
        if any(response.first_event_seconds is not None for response in (daily, deep)):
            aliases = [self._settings.alias(mode) for mode in Mode]
            self._report(judge_reasoning([daily, deep], aliases) if router else _skip_unseen("nothing told"))
        if daily.first_event_seconds is None:
            return
        whole = judge_whole(daily)
        self._report(
            judge_sign_of_life(daily) if router else _skip_unseen("sign of life"), judge_unbuffered(daily), whole
        )
        if whole.level == "fail":
            return
        idle_seconds = await self._ask_and_leave(proxy, daily)
        tools = question("What time is it? Use the tool.", 16, tools=[_TOOL])
        self._report(judge_tools(self._count(await proxy.ask(Mode.DAILY, tools))))
        asked = question(f"{_WORD} Answer in JSON.", 32, response_format=_FORMAT)
        self._report(judge_json(self._count(await proxy.ask(Mode.DAILY, asked))))
        if self._measure:
            await self._ask_a_long_prompt(proxy, idle_seconds)

    def _count(self, response: Response) -> Response:
        self.requests += 1
        self.tokens += response.tokens
        return response

    async def _ask_and_leave(self, proxy: Proxy, daily: Response) -> float:
        """Leave an answer at its first event and ask again. Return the seconds until an answer begins when idle."""
        left = self._count(await proxy.ask(Mode.DAILY, question(_COUNT, _LEAVE_TOKENS), leave_at_first_event=True))
        after = self._count(await proxy.ask(Mode.DAILY, question(_WORD, 1)))
        known = [response.first_event_seconds for response in (daily, left)]
        idle_seconds = min([seconds for seconds in known if seconds is not None], default=0.0)
        finding, busy_seconds = judge_stop(left, after, idle_seconds)
        self._report(finding)
        if busy_seconds is not None:
            self.proposals["gate.after_leave"] = "settle"
            self.proposals["gate.settle_seconds"] = math.ceil(busy_seconds)
        return idle_seconds

    async def _ask_a_long_prompt(self, proxy: Proxy, idle_seconds: float) -> None:
        """Time a prompt that is in no cache, then leave another one in its prefill."""
        whole = self._count(await proxy.ask(Mode.DAILY, question(_long_prompt(), 1)))
        finding, seconds_per_kib = judge_prompt_speed(whole, idle_seconds, self._settings.stream.deadline_seconds)
        self._report(finding)
        if seconds_per_kib is None:
            return
        self.proposals |= proposed_for(seconds_per_kib, self._settings)
        prefill_seconds = seconds_per_kib * _MEASURE_KIB
        if prefill_seconds < 4 * _TOO_QUICK_SECONDS / _BUSY_FACTOR:
            self._report(ok("leave in the prefill", "a prefill is too short to matter", prefill_seconds))
            self.proposals.setdefault("gate.after_leave", "release")
            return
        self._count(await proxy.ask(Mode.DAILY, question(_long_prompt(), 1), leave_after=prefill_seconds / 3))
        after = self._count(await proxy.ask(Mode.DAILY, question(_WORD, 1)))
        self._report(judge_leave(after, idle_seconds, prefill_seconds * 2 / 3, self.proposals))


def question(text: str, max_tokens: int, **fields: Any) -> dict[str, Any]:
    """Return the body of a request, without `model` and `stream`."""
    return {"messages": [{"role": "user", "content": text}], "max_tokens": max_tokens, "temperature": 0, **fields}


def _long_prompt() -> str:
    """Return 8 KiB with a random beginning, so that no prompt cache helps."""
    words = "the road goes over a hill and then along the river to an old mill where nobody lives any more "
    text = f"{secrets.token_hex(8)} " + words * (_MEASURE_KIB * 1024 // len(words) + 1)
    return f"{text[: _MEASURE_KIB * 1024]}\n\n{_WORD}"


def _skip_unseen(subject: str) -> Finding:
    return skip(subject, "cannot be judged through a running eidproxy or with a shared gate")


# --- Judgements: responses in, findings out ---------------------------------------------------------------------------


def judge_refusal(subject: str, response: Response) -> Finding:
    """Return the finding for a question that got no answer."""
    reason, seconds = response.reason or "no readable event", response.seconds
    if reason in _BUSY_REASONS:
        return skip(subject, f"the eidproxy that runs here refused the request ({reason}); check again later")
    if reason in _WAIT_REASONS:
        return note(subject, f"is not available now ({reason})", "wake or load it, and check again", seconds)
    if reason in _HANG_REASONS:
        remedy = "restart the model server; for a cold model, raise router.first_event_seconds"
        return fail(subject, f"does not answer ({reason})", remedy, seconds)
    if b"generation thread died" in response.body:
        return fail(subject, "the generation thread of the model server died", "restart the model server", seconds)
    if reason == "upstream_protocol_error":
        remedy = "let the router answer stream: true with an uncompressed text/event-stream"
        return fail(subject, f"the answer is not an event stream ({_status(response)}{reason})", remedy, seconds)
    if reason == "provider_not_configured":
        return fail(subject, f"the router does not have it ({reason})", "configure it in the router", seconds)
    if reason in _ALIAS_REASONS:
        remedy = f"the router must have a model with the name in models.{subject}.alias and accept its parameters"
        return fail(subject, f"the router refuses it ({_status(response)}{reason})", remedy, seconds)
    return fail(subject, f"no answer ({_status(response)}{reason})", "see the reason in deploy/reference.md", seconds)


def _status(response: Response) -> str:
    return "" if response.status in (None, 200) else f"{response.status}, "


def _wants_key(response: Response) -> bool:
    if response.reason is None:
        return False
    in_body = response.status == 400 and _KEY_MESSAGE.search(response.body) is not None
    return response.status in (401, 403) or response.reason in _KEY_REASONS or in_body


def judge_modes(daily: Response, deep: Response) -> list[Finding]:
    """Judge whether the router takes the key, and whether each mode answers."""
    for response in (daily, deep):
        if _wants_key(response):
            remedy = "set router.api_key (EIDPROXY_ROUTER_API_KEY or …_FILE) to the router's key"
            return [fail("key", "the router rejects the API key, or requires one", remedy, response.seconds)]
    findings = [ok("key", "the router accepts requests")] if None in (daily.reason, deep.reason) else []
    for subject, response in (("daily", daily), ("deep", deep)):
        if response.first_event_seconds is not None:
            findings.append(ok(subject, "answers", response.first_event_seconds))
        else:
            findings.append(judge_refusal(subject, response))
    return findings


def judge_sign_of_life(response: Response) -> Finding:
    """Judge the comments before and between events: none, comments that count, or a constant ping."""
    subject = "sign of life"
    comments = [item.value for item in split_stream(response.reads) if item.is_comment]
    if not comments:
        return ok(subject, "no comments: only the timeout for the first event limits silence")
    if len(set(comments)) > 1 or any(digit in comments[0] for digit in b"0123456789"):
        return ok(subject, "comments that count, so a long prompt does not look like a hang")
    remedy = "disable it in the router, or keep it: eidproxy ignores it"
    return note(subject, "a constant ping, which continues while the model hangs", remedy)


def judge_unbuffered(response: Response) -> Finding:
    """Judge whether twenty tokens came one by one."""
    subject = "unbuffered"
    events = [event for event in response.events if event.text or event.reasoning]
    groups, last = 0, -math.inf
    for seconds, data in response.reads:
        if b"data:" in data and seconds - last >= _READ_GAP_SECONDS:
            groups, last = groups + 1, seconds
    reads = sum(b"data:" in data for _, data in response.reads)
    if groups >= 5 or (len(events) >= 5 and reads * 2 >= len(events)):
        return ok(subject, f"{len(events)} events came in {reads} reads", response.seconds)
    if len(events) < 5:
        return skip(subject, "the answer was too short to judge")
    if reads * 4 < len(events) and response.seconds >= _TOO_QUICK_SECONDS:
        remedy = "disable buffering: proxy_buffering off, flush_interval -1, no compression"
        return fail(subject, f"{len(events)} events came in {reads} reads: something in between buffers", remedy)
    return skip(subject, "the answer was too fast to judge")


def judge_whole(response: Response) -> Finding:
    """Judge how the answer ended."""
    subject = "whole"
    if response.reason is not None or any(event.is_error for event in response.events):
        reason = response.reason or "upstream_error"
        return fail(subject, f"the answer is incomplete ({reason})", "see the router's log", response.seconds)
    said_done = any(is_done(item) for item in split_stream(response.reads) if not item.is_comment)
    if not any(event.finish_reason for event in response.events):
        remedy = "callers get upstream_truncated for each answer; fix or update the router"
        return fail(subject, "the answer ends without a finish reason", remedy, response.seconds)
    if not said_done:
        return note(subject, "a finish reason, but no [DONE]", "nothing is lost; update the router if possible")
    return ok(subject, "a finish reason and [DONE]", response.seconds)


def judge_reasoning(responses: list[Response], aliases: list[str]) -> Finding:
    """Judge whether the router writes about itself where the model's reasoning belongs."""
    subject = "nothing told"
    for response in responses:
        events = response.events
        first = next((at for at, event in enumerate(events) if event.has_model_fields), len(events))
        before = "".join(event.reasoning for event in events[:first])
        if before and (first < len(events) or _LOADING_MESSAGE.search(before)):
            remedy = "disable it (llama-swap: sendLoadingState: false); eidproxy drops these events"
            return note(subject, "the router sends its loading state as reasoning", remedy)
        reasoning = "".join(event.reasoning for event in events)
        if _LOADING_MESSAGE.search(reasoning) or any(alias in reasoning for alias in aliases):
            remedy = "callers would see it; disable it in the router (llama-swap: sendLoadingState: false)"
            return fail(subject, "the model's reasoning contains loading messages of the router", remedy)
    return ok(subject, "answers contain only what the model wrote")


def judge_stop(left: Response, after: Response, idle_seconds: float) -> tuple[Finding, float | None]:
    """Judge whether the model server stops when its caller leaves. Also return how many seconds it went on, or None."""
    subject = "stop"
    waited_seconds = after.first_event_seconds
    if left.reason is not None or after.reason is not None or waited_seconds is None:
        return judge_refusal(subject, left if left.reason is not None else after), None
    if waited_seconds <= _BUSY_FACTOR * idle_seconds + _TOO_QUICK_SECONDS:
        return ok(subject, "stops when the caller leaves: the next answer began at once", waited_seconds), None
    remedy = (
        "remove a gateway in between that hides disconnects (deploy/README.md names some), or set "
        'gate.after_leave = "settle", so that the next request is not sent too early'
    )
    return note(
        subject, "continues after the caller left: the next answer began late", remedy, waited_seconds
    ), waited_seconds


def judge_tools(response: Response) -> Finding:
    """Judge whether requests with tools are accepted."""
    if response.reason is not None:
        remedy = "configure a model, template or parser for tools in the model server"
        return fail("tools", f"are refused ({_status(response)}{response.reason})", remedy, response.seconds)
    return ok("tools", "are accepted", response.seconds)


def judge_json(response: Response) -> Finding:
    """Judge whether the answer follows `response_format`."""
    subject = "json"
    if response.reason is not None:
        remedy = "use a model server that supports it, or send no response_format"
        return fail(
            subject, f"response_format is refused ({_status(response)}{response.reason})", remedy, response.seconds
        )
    text = "".join(event.text for event in response.events)
    if not text.strip():
        return skip(subject, "cannot be judged: the model spent all its tokens on reasoning")
    if _BEGINS_AS_ASKED.match(text) is None:
        remedy = "validate answers, or use a model server that supports it (mlx_lm.server does not)"
        return note(subject, "response_format is accepted but ignored", remedy, response.seconds)
    return ok(subject, "the answer follows response_format", response.seconds)


def judge_prompt_speed(
    response: Response, idle_seconds: float, deadline_seconds: float
) -> tuple[Finding, float | None]:
    """Judge the speed of a prompt. Also return its seconds for each KiB, or None without an answer."""
    subject = "prompt speed"
    waited_seconds = response.first_event_seconds
    if response.reason is not None or waited_seconds is None:
        return judge_refusal(subject, response), None
    seconds_per_kib = max(waited_seconds - idle_seconds, 0.001) / _MEASURE_KIB
    rate, largest = 1024 / _BYTES_A_TOKEN / seconds_per_kib, deadline_seconds / seconds_per_kib
    reach = f"{deadline_seconds:g} s are enough for {largest:.0f} KiB"
    text = f"about {rate:.0f} tokens per second, {seconds_per_kib:.2g} s per KiB; {reach}"
    return ok(subject, text, waited_seconds), seconds_per_kib


def proposed_for(seconds_per_kib: float, settings: Settings) -> dict[str, str | int | float]:
    """Return the settings that follow from a speed in seconds for each KiB."""
    largest = int(_PROMPT_SHARE * settings.stream.deadline_seconds / seconds_per_kib) * 1024
    return {
        "router.first_event_seconds_per_kib": math.ceil(seconds_per_kib * _SPEED_MARGIN * 10) / 10,
        # 0 (no limit) where no body can be that large.
        "models.max_prompt_bytes": 0 if largest >= settings.server.max_body_bytes else largest,
    }


def judge_leave(
    after: Response, idle_seconds: float, rest_seconds: float, proposals: dict[str, str | int | float]
) -> Finding:
    """Judge what a caller that left with `rest_seconds` of prefill to go costs the next one; add to `proposals`."""
    subject = "leave in the prefill"
    waited_seconds = after.first_event_seconds
    if after.reason is not None or waited_seconds is None:
        return judge_refusal(subject, after)
    if waited_seconds <= max(_BUSY_FACTOR * idle_seconds + _TOO_QUICK_SECONDS, rest_seconds / 2):
        proposals.setdefault("gate.after_leave", "release")
        return ok(subject, "stops: the next answer began soon", waited_seconds)
    if "gate.after_leave" not in proposals:
        proposals["gate.after_leave"] = "first_event"
        proposals["gate.settle_seconds"] = max(20, math.ceil(2 * waited_seconds))
    remedy = 'set the proposed gate.after_leave; with mlx_lm.server, first set "--prompt-concurrency 1"'
    return note(subject, "the prefill continues after the caller left", remedy, waited_seconds)


# --- Which eidproxy is asked --------------------------------------------------------------------------------------


async def _find_running_proxy(settings: Settings) -> httpx.AsyncClient | Finding | None:
    """Return a client for the eidproxy at the configured address, a finding if we cannot ask it, None if none runs."""
    if settings.server.uds is None and not settings.server.port:
        return None
    client, _ = connect(settings, None)
    try:
        response = await client.get("/v1/models")
    except httpx.ConnectError:
        response = None
    except httpx.TransportError:
        response = httpx.Response(500)
    if response is not None and response.status_code == 200 and _is_from_eidproxy(response):
        return client
    await client.aclose()
    if response is None:
        return None
    if _is_from_eidproxy(response):
        reason = response.headers.get("x-eid-error-reason")
        remedy = "give check the settings of that eidproxy, or stop it"
        return fail("eidproxy", f"one runs here and refuses the check ({reason})", remedy)
    remedy = "stop it, or choose another server.port; serve cannot listen there"
    return note("eidproxy", "another program listens at the address of eidproxy", remedy)


def _is_from_eidproxy(response: httpx.Response) -> bool:
    return is_eidproxy(Response(response.status_code, None, [Read(0.0, response.content)], 0.0))


@asynccontextmanager
async def _own_proxy(settings: Settings) -> AsyncIterator[tuple[httpx.AsyncClient, asyncio.Task[None]]]:
    """Run an eidproxy of the check's own, for where none runs. Yield a client and the serving task.

    It has the router, the models and the gate of the settings, but no keys and no chat, and only this user can open its
    socket. A signal ends the task, so the caller must watch it.
    """
    from eidproxy.app import Application

    with tempfile.TemporaryDirectory(prefix="eidproxy-check-") as folder, socket.socket(socket.AF_UNIX) as listener:
        path = str(Path(folder, "socket"))
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)
        server = msgspec.structs.replace(
            settings.server, uds=path, api_key=None, background_api_key=None, allowed_hosts=(), drain_seconds=0.0
        )
        log = LogSettings(level="critical", format="json")
        settings = msgspec.structs.replace(settings, server=server, chat=ChatSettings(), log=log)
        application = Application(settings)
        serving = asyncio.create_task(application.server.serve([listener]))
        client, _ = connect(settings, None)
        try:
            async with client:
                yield client, serving
        finally:
            if not serving.done():
                application.server.stop()
            await serving
