"""`eidproxy check`: would this configuration work, here and now? Each line is a finding, with what to do about it."""

import asyncio
import json
import platform
import ssl
import sys
import sysconfig
import time
from collections.abc import Callable
from typing import NamedTuple

import click
import httpx
import uvloop

from eidproxy.commands.look import is_eidproxy, request_models
from eidproxy.config import ChatSettings, Loaded, Settings, contradictions, describe_settings, refusal_text
from eidproxy.egress import EgressBlocked
from eidproxy.gate.choice import check_gate
from eidproxy.router.hints import Hint
from eidproxy.router.reasons import reason_of_fault
from eidproxy.router.upstream import Upstream
from eidproxy.surface import unreadable_files
from eidproxy.tokens import Tokens

_FEW_DESCRIPTORS = 1024
"""A lower limit is reported: half of the descriptors are connections (DESIGN, 16)."""
_EDGE_SECONDS = 60.0
"""Time limit for an answer through the edge: the model may have to be loaded."""
_EDGE_CONNECT_SECONDS = 5.0
_SHORT_ANSWER_SECONDS = 0.3
"""A shorter answer may arrive in one piece even through an edge that does not buffer."""
_ROUTER_REQUEST_SECONDS = 2.0
"""Time limit for each probe of the router: TLS, HTTP, whether it is an eidproxy. None of them is an inference."""

_COLORS = {"ok": "green", "note": "yellow", "fail": "red", "skip": "cyan"}

PRIVACY = (
    "macOS denies agents access to the local network, even if the same program works in a terminal; run eidproxy as a "
    "daemon (deploy/README.md, A Mac mini)"
)


class Finding(NamedTuple):
    """One line of a report: level (`ok`, `note`, `fail`, `skip`), subject, text, remedy, and the seconds it took."""

    level: str
    subject: str
    text: str
    remedy: str | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        duration = "" if self.seconds is None else f" ({self.seconds:.2f} s)"
        return f"{self.subject}: {self.text}{duration}{'' if self.remedy is None else f': {self.remedy}'}"


def ok(subject: str, text: str, seconds: float | None = None) -> Finding:
    """Return a finding: it works."""
    return Finding("ok", subject, text, None, seconds)


def note(subject: str, text: str, remedy: str, seconds: float | None = None) -> Finding:
    """Return a finding: it serves, but somebody may notice."""
    return Finding("note", subject, text, remedy, seconds)


def fail(subject: str, text: str, remedy: str, seconds: float | None = None) -> Finding:
    """Return a finding: it would not serve, or not safely."""
    return Finding("fail", subject, text, remedy, seconds)


def skip(subject: str, text: str) -> Finding:
    """Return a finding: it was not asked, or cannot be judged."""
    return Finding("skip", subject, text)


ReportFinding = Callable[[Finding], None]


class Report:
    """Prints findings as they come, or all of them as JSON at the end."""

    def __init__(self, as_json: bool) -> None:
        self.found: list[Finding] = []
        self._as_json = as_json

    def add(self, finding: Finding) -> None:
        """Add a finding."""
        self.found.append(finding)
        if not self._as_json:
            level = click.style(f"{finding.level:<4}", fg=_COLORS[finding.level])
            click.echo(f"{level}  {finding}", err=finding.level == "fail")

    def end(self, **facts: object) -> bool:
        """Return whether nothing would fail. A JSON report is printed now, with the facts."""
        if self._as_json:
            click.echo(json.dumps({"findings": [each._asdict() for each in self.found], **facts}, indent=2))
        return all(finding.level != "fail" for finding in self.found)


def check(loaded: Loaded, public_url: str | None, *, everything: bool = False, as_json: bool = False) -> bool:
    """Print the settings that differ from their default (or all) and the findings; return whether none is a fail."""
    rows = list(describe_settings(loaded, everything=everything))
    if not as_json:
        width = max(len(path) for path, _, _ in rows)
        for path, value, origin in rows:
            click.echo(f"{path:<{width}}  {value}  ({origin})")
        click.echo()
    report = Report(as_json)
    uvloop.run(_check_everything(loaded.settings, public_url, report.add))
    return report.end(settings={path: {"value": value, "origin": origin} for path, value, origin in rows})


async def _check_everything(settings: Settings, public_url: str | None, report: ReportFinding) -> None:
    """Report everything that can be found without an inference."""
    await check_router(settings, report)
    check_clocks(settings, report)
    await _check_gate(settings, report)
    _check_chat(settings.chat, report)
    _check_process(settings, report)
    if public_url is not None:
        await _check_edge(settings, public_url, report)


def is_optimized() -> bool:
    """Return whether this Python was built with optimization. The system's own does not say: it counts as such."""
    return sys.base_prefix == "/usr" or "--enable-optimizations" in str(sysconfig.get_config_var("CONFIG_ARGS"))


def _check_process(settings: Settings, report: ReportFinding) -> None:
    from eidproxy.app import why_not_accelerated
    from eidproxy.inbound.server import raise_descriptor_limit

    python = f"Python {platform.python_version()}"
    # Both are `ok` in any case: without them eidproxy is slower, not wrong.
    slow = "" if is_optimized() else ", built without --enable-optimizations, so each event takes a sixth longer"
    report(ok("interpreter", python + slow))
    why_not = why_not_accelerated(settings)
    report(ok("accelerator", "on" if why_not is None else f"off: {why_not}"))
    limit = raise_descriptor_limit()
    if limit < _FEW_DESCRIPTORS:
        report(note("descriptors", f"only {limit}", f"raise the limit (LimitNOFILE, ulimit -n) to {_FEW_DESCRIPTORS}"))
    else:
        report(ok("descriptors", str(limit)))


def check_clocks(settings: Settings, report: ReportFinding) -> None:
    """Report settings that are valid one by one but contradict each other."""
    for name, text in contradictions(settings):
        report(note(name, text, "lower it, or raise the limit"))


async def check_router(settings: Settings, report: ReportFinding) -> bool:
    """Resolve and dial the router, and report what answers. Return whether it can be asked. Makes no inference."""
    from eidproxy.app import build_upstream

    upstream = build_upstream(settings)
    name = f"{upstream.host} port {upstream.port}"
    try:
        async with asyncio.timeout(settings.router.connect_timeout_seconds):
            addresses = await upstream.addresses()
    except EgressBlocked as blocked:
        address = blocked.decision.address or upstream.host
        text = f"egress_blocked: {address} {refusal_text(settings, blocked.decision.verdict)}"
        report(fail("router", text, "use an address in a private network"))
        return False
    except (httpx.TransportError, TimeoutError):
        report(fail("router", f"the name {upstream.host} cannot be resolved", "fix the name, or use an address"))
        return False
    for address in addresses:
        report(ok("router", f"would dial {address} port {upstream.port}"))
    secure = settings.router_address[2]
    if secure and (fault := await _tls_fault(settings, addresses, upstream.port)) is not None:
        report(fault)
        return False
    try:
        (await upstream.connect()).abort()
    except EgressBlocked as blocked:
        report(
            fail(
                "router",
                f"egress_blocked: {name} {refusal_text(settings, blocked.decision.verdict)}",
                "set router.url to the router itself",
            )
        )
        return False
    except httpx.TransportError as error:
        remedy = PRIVACY if upstream.hint is Hint.LOCAL_NETWORK_PRIVACY else "start the router, or fix router.url"
        report(fail("router", f"{name} does not answer ({reason_of_fault(error)})", remedy))
        return False
    return await _check_what_answers(settings, upstream, report)


async def _check_what_answers(settings: Settings, upstream: Upstream, report: ReportFinding) -> bool:
    response = await request_models(upstream, min(_ROUTER_REQUEST_SECONDS, settings.router.connect_timeout_seconds))
    if is_eidproxy(response):
        report(
            fail("router", "is an eidproxy, so requests would wait in two queues or loop", "name the router behind it")
        )
        return False
    if response.reason == "router_RemoteProtocolError" and not settings.router_address[2]:
        report(fail("router", "answers, but not in HTTP", "if it speaks TLS, write https:// in router.url"))
        return False
    report(ok("router", "answers"))
    return True


async def _tls_fault(settings: Settings, addresses: list[str], port: int) -> Finding | None:
    """Return why TLS with the router fails, or None. An unreachable router is another fault, not reported here."""
    host = settings.router_address[0]
    patience_seconds = min(_ROUTER_REQUEST_SECONDS, settings.router.connect_timeout_seconds)
    context = ssl.create_default_context(cafile=settings.router.ca_file)
    fault: Finding | None = None
    for address in addresses:
        try:
            if not await _is_port_open(address, port, patience_seconds):
                continue
            async with asyncio.timeout(patience_seconds):
                _, writer = await asyncio.open_connection(address, port, ssl=context, server_hostname=host)
            writer.transport.abort()
            return None
        except ssl.SSLCertVerificationError as error:
            text = f"TLS: the certificate is not trusted ({error.verify_message})"
            fault = fail("router", text, "set router.ca_file to its CA certificate, or fix the host name in router.url")
        except (TimeoutError, ConnectionError, ssl.SSLError):
            text = "TLS: the port is open but does not speak TLS"
            fault = fail("router", text, "write http:// in router.url, or enable TLS in the router")
        except OSError:
            continue
    return fault


async def _is_port_open(address: str, port: int, patience_seconds: float) -> bool:
    try:
        async with asyncio.timeout(patience_seconds):
            _, writer = await asyncio.open_connection(address, port)
    except (OSError, TimeoutError):
        return False
    writer.transport.abort()
    return True


async def _check_gate(settings: Settings, report: ReportFinding) -> None:
    """Report what the gate is, and why it cannot serve now. Only a shared gate can fail."""
    from eidproxy.app import gate_terms

    facts, fault = await check_gate(gate_terms(settings))
    for fact in facts:
        report(ok("gate", fact))
    if fault is not None:
        report(fail("gate", fault, "fix the store or gate.url; until then requests for daily get 503 gate_unavailable"))


def _check_chat(chat: ChatSettings, report: ReportFinding) -> None:
    if not chat.enabled:
        report(ok("chat surface", "off (needs chat.jwt_secret and chat.rules_file)"))
        return
    unreadable = unreadable_files(chat)
    for setting in unreadable:
        text = "cannot be read, so every chat request gets 503 rules_missing"
        report(fail(setting, text, "create the file, or let this user read it"))
    if not unreadable:
        report(ok("chat surface", "on"))


async def _check_edge(settings: Settings, public_url: str, report: ReportFinding) -> None:
    """Report what the edge in front does to the chat surface's stream, and what it exposes but should not."""
    if not settings.chat.enabled:
        report(note("public url", "the chat surface is off", "set chat.jwt_secret and chat.rules_file"))
        return
    # The system's store, so that an authority installed on this machine counts, such as Caddy's own.
    trust = ssl.create_default_context()
    timeout = httpx.Timeout(_EDGE_SECONDS, connect=_EDGE_CONNECT_SECONDS)
    async with httpx.AsyncClient(base_url=public_url, trust_env=False, timeout=timeout, verify=trust) as client:
        try:
            report(await _check_exposed_paths(client))
            report(await _check_stream(client, settings.chat))
        except (httpx.TransportError, httpx.InvalidURL) as error:
            report(_edge_fault(error))


def _edge_fault(error: Exception) -> Finding:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            text = f"TLS: the certificate is not trusted by this machine ({cause.verify_message})"
            return fail("public url", text, "install the edge's CA certificate, or use a name in its certificate")
        if isinstance(cause, ssl.SSLError):  # also SSLWantReadError: the handshake was never answered
            return fail("public url", "TLS: the port is open but does not speak TLS", "write http://, or fix the edge")
        cause = cause.__cause__ or cause.__context__
    return fail("public url", type(error).__name__, "start the edge, or fix the URL")


async def _check_exposed_paths(client: httpx.AsyncClient) -> Finding:
    paths = ("/v1/models", "/metrics", "/status")
    opened = [path for path in paths if (await client.get(path)).is_success]
    if opened:
        return fail("public url", f"shows {', '.join(opened)}", "let the edge pass only /chat and /api/eid/")
    return ok("public url", "shows nothing but the chat surface")


async def _check_stream(client: httpx.AsyncClient, chat: ChatSettings) -> Finding:
    """Ask for a short answer and judge how its events arrive: a buffer delivers many of them at once."""
    assert chat.jwt_secret is not None  # noqa: S101  # the surface is enabled
    token = Tokens(chat.jwt_secret, chat.jwt_audience, chat.jwt_issuer, chat.jwt_leeway_seconds).issue("check", 120)
    question = {"mode": "daily", "messages": [{"role": "user", "content": "Count from one to thirty."}]}
    headers = {"Authorization": f"Bearer {token}"}
    began_at = time.monotonic()
    async with client.stream("POST", "/api/eid/chat", json=question, headers=headers) as answer:
        reads = [(time.monotonic() - began_at, data.count(b"\n\n")) async for data in answer.aiter_raw()]
        encoding = answer.headers.get("content-encoding")
        if answer.status_code != 200 or not reads:
            text = f"the stream got status {answer.status_code}"
            return fail("public url", text, "let the edge pass POST /api/eid/chat to this eidproxy")
    if encoding is not None:
        return fail("public url", f"the stream is compressed ({encoding})", "do not compress text/event-stream")
    first, last = reads[0][0], reads[-1][0]
    if last < _SHORT_ANSWER_SECONDS:
        return skip("public url", "the answer was too short to judge whether the stream is buffered")
    if len(reads) < sum(events for _, events in reads) / 4:
        return fail("public url", "the stream is buffered", "disable buffering in the edge (proxy_buffering off)")
    return ok("public url", f"the stream arrives as it is sent (first event after {first * 1e3:.0f} ms)")
