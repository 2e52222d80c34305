"""`eidproxy check`: would this configuration work, here and now? Each line is ok, warn or fail, with the remedy."""

import asyncio
import resource
import time
from typing import NamedTuple

import click
import httpx

from eidproxy.config import ChatSettings, Loaded, Settings, shown
from eidproxy.surface import unreadable_files
from eidproxy.tokens import Tokens

_FEW_DESCRIPTORS = 1024
_EDGE_SECONDS = 60.0
_SHORT_ANSWER_SECONDS = 0.3
_COLORS = {"ok": "green", "warn": "yellow", "fail": "red"}


class Finding(NamedTuple):
    """One line: its level (`ok`, `warn`, `fail`) and what was found."""

    level: str
    text: str


def ok(text: str) -> Finding:
    """It works."""
    return Finding("ok", text)


def warn(text: str) -> Finding:
    """It would serve, but somebody would notice."""
    return Finding("warn", text)


def fail(text: str) -> Finding:
    """It would not serve, or not safely."""
    return Finding("fail", text)


async def findings(settings: Settings, public_url: str | None) -> list[Finding]:
    """Everything that can be said without serving."""
    found = _about_this_process()
    found += await _about_router(settings)
    found += await _about_gate(settings)
    found += _about_chat(settings.chat)
    if public_url is not None:
        found += await _about_edge(settings, public_url)
    return found


def check(loaded: Loaded, public_url: str | None) -> bool:
    """Print the settings and the findings; whether none of them is a failure."""
    rows = list(shown(loaded))
    width = max(len(path) for path, _, _ in rows)
    for path, value, origin in rows:
        click.echo(f"{path:<{width}}  {value}  ({origin})")
    click.echo()
    found = asyncio.run(findings(loaded.settings, public_url))
    for level, text in found:
        click.echo(f"{click.style(f'{level:<4}', fg=_COLORS[level])}  {text}", err=level == "fail")
    return all(level != "fail" for level, _ in found)


def _about_this_process() -> list[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = hard if hard != resource.RLIM_INFINITY else max(soft, _FEW_DESCRIPTORS)
    if limit < _FEW_DESCRIPTORS:
        return [warn(f"descriptors: only {limit}: raise the limit (LimitNOFILE, ulimit -n) to {_FEW_DESCRIPTORS}")]
    return [ok(f"descriptors: {limit}")]


async def _about_router(settings: Settings) -> list[Finding]:
    from eidproxy.app import build_upstream
    from eidproxy.upstream import EgressBlocked

    upstream = build_upstream(settings)
    name = f"{upstream.host} port {upstream.port}"
    try:
        async with asyncio.timeout(settings.router.connect_timeout_seconds):
            addresses = await upstream.addresses()
    except EgressBlocked as blocked:
        decision = blocked.decision
        address = decision.address or upstream.host
        return [
            fail(
                f"router: egress_blocked: {address} ({decision.verdict}): use an address of your own network",
            )
        ]
    except (httpx.TransportError, TimeoutError):
        return [fail(f"router: the name {upstream.host} cannot be resolved: mend the name or give an address")]
    found = [ok(f"router: would dial {address} port {upstream.port}") for address in addresses]
    try:
        (await upstream.connect()).abort()
    except EgressBlocked as blocked:
        found.append(fail(f"router: egress_blocked: {name} ({blocked.decision.verdict})"))
    except httpx.TransportError as error:
        found.append(
            warn(f"router: {name} does not answer (router_{type(error).__name__}): start it, or mend router.url")
        )
    else:
        found.append(ok("router: answers"))
    return found


async def _about_gate(settings: Settings) -> list[Finding]:
    if settings.gate.url is None:
        return [ok("gate: in the process")]
    from eidproxy.gate_redis import check_store

    told, fault = await check_store(settings.gate)
    found = [ok(f"gate: shared, {line}") for line in told]
    if fault is not None:
        found.append(fail(f"gate: {fault}"))
    return found


def _about_chat(chat: ChatSettings) -> list[Finding]:
    if not chat.enabled:
        return [ok("chat surface: off (it needs chat.jwt_secret and chat.rules_file)")]
    unreadable = [
        fail(f"{setting}: cannot be read, so every question gets 503 rules_missing: write the file, or let it be read")
        for setting in unreadable_files(chat)
    ]
    return unreadable or [ok("chat surface: on")]


async def _about_edge(settings: Settings, public_url: str) -> list[Finding]:
    """What the edge in front makes of the chat surface's stream, and what it shows that it should not."""
    if not settings.chat.enabled:
        return [warn("public url: cannot be tried while the chat surface is off")]
    async with httpx.AsyncClient(base_url=public_url, trust_env=False, timeout=_EDGE_SECONDS) as client:
        try:
            return [await _closed(client), await _streamed(client, settings.chat)]
        except (httpx.TransportError, httpx.InvalidURL) as error:
            return [fail(f"public url: {type(error).__name__}: is the edge running, is the address right?")]


async def _closed(client: httpx.AsyncClient) -> Finding:
    paths = ("/v1/models", "/metrics", "/status")
    opened = [path for path in paths if (await client.get(path)).is_success]
    if opened:
        return fail(f"public url: shows {', '.join(opened)}: let the edge pass /chat and /api/eid/ only")
    return ok("public url: shows nothing but the chat surface")


async def _streamed(client: httpx.AsyncClient, chat: ChatSettings) -> Finding:
    """Ask for a short answer and look how its events come: a buffer gives many of them at once."""
    assert chat.jwt_secret is not None  # noqa: S101  # the surface is enabled
    token = Tokens(chat.jwt_secret, chat.jwt_audience, chat.jwt_issuer, chat.jwt_leeway_seconds).issue("check", 120)
    question = {"mode": "daily", "messages": [{"role": "user", "content": "Count from one to thirty."}]}
    headers = {"Authorization": f"Bearer {token}"}
    began = time.monotonic()
    async with client.stream("POST", "/api/eid/chat", json=question, headers=headers) as answer:
        reads = [(time.monotonic() - began, data.count(b"\n\n")) async for data in answer.aiter_raw()]
        encoding = answer.headers.get("content-encoding")
        if answer.status_code != 200 or not reads:
            return fail(f"public url: the stream got status {answer.status_code}")
    if encoding is not None:
        return fail(f"public url: the stream is compressed ({encoding}): leave text/event-stream alone")
    first, last = reads[0][0], reads[-1][0]
    if last < _SHORT_ANSWER_SECONDS:
        return warn("public url: the answer was too short to tell whether the stream is buffered")
    if len(reads) < sum(events for _, events in reads) / 4:
        return fail("public url: the stream is buffered: let the edge flush at once (proxy_buffering off)")
    return ok(f"public url: the stream arrives as it is sent (first event after {first * 1e3:.0f} ms)")
