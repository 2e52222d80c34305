"""What the types of the settings cannot express: faults of the whole, and settings that contradict each other."""

import math
import re
import ssl
from collections.abc import Iterator, Mapping
from typing import Any

from eidproxy.config.settings import ROUTER_URL_FORM, Settings, refusal_text, router_address
from eidproxy.egress import VERDICTS, EgressPolicy, Verdict, is_loopback, is_name, parse_allowed_networks, parse_literal
from eidproxy.errors import MAX_RETRY_SECONDS
from eidproxy.gate.choice import url_faults
from eidproxy.inbound.chat import REQUEST_FIELDS
from eidproxy.vocabulary import AfterLeave


def contradictions(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield, by path, settings that contradict each other but are valid: `check` reports them, `serve` accepts them."""
    router, gate, deadline_seconds = settings.router, settings.gate, settings.stream.deadline_seconds
    clocks = [("router.read_timeout_seconds", router.read_timeout_seconds)]
    clocks.append(("router.first_event_seconds", router.first_event_seconds))
    if gate.after_leave is not AfterLeave.RELEASE:
        clocks.append(("gate.settle_seconds", gate.settle_seconds))
    for name, seconds in clocks:
        if seconds > deadline_seconds:
            limit = f"stream.deadline_seconds ({deadline_seconds:g} s)"
            yield name, f"{seconds:g} s is longer than {limit}, which ends the request first"
    if router.wedge_after and router.wedge_retry_seconds > MAX_RETRY_SECONDS:
        told = f"longer than the largest Retry-After ({MAX_RETRY_SECONDS} s), so some callers come back too early"
        yield "router.wedge_retry_seconds", f"{router.wedge_retry_seconds:g} s is {told}"


def cross_check(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the faults that types cannot express."""
    yield from _router_faults(settings)
    host = settings.server.host
    address = parse_literal(host.partition("%")[0])  # a listener may have an address with the name of an interface
    if address is None and not is_name(host):
        yield "server.host: must be an IP address or a host name"
    is_local = host == "localhost" or (address is not None and is_loopback(address))
    if not is_local and settings.server.uds is None and settings.server.api_key is None:
        yield "server.host: is not loopback, so server.api_key is required"
    background = settings.server.background_api_key
    if background is not None and background == settings.server.api_key:
        yield "server.background_api_key: must be another key than server.api_key"
    if background is not None and settings.server.api_key is None:
        yield "server.background_api_key: needs server.api_key; without it every caller is foreground"
    yield from _params_faults(settings)
    if settings.gate.url is not None:
        yield from (f"gate.url: {fault}" for fault in url_faults(settings.gate.url))
    elif environ.get("WEB_CONCURRENCY", "1") not in ("", "1"):
        yield "environment WEB_CONCURRENCY: must be 1; for more processes, run replicas with gate.url"
    chat = settings.chat
    if (chat.jwt_secret is None) != (chat.rules_file is None):
        missing = "chat.jwt_secret" if chat.jwt_secret is None else "chat.rules_file"
        yield f"{missing}: the chat surface needs both chat.jwt_secret and chat.rules_file"
    if chat.jwt_secret is not None and len(chat.jwt_secret.encode()) < 32:
        yield "chat.jwt_secret: must have at least 32 bytes"


_FORBIDDEN_WORDS = (
    # These lead to another machine, or around what the operator set there.
    *("api", "base", "url", "uri", "endpoint", "host", "server", "proxy", "proxies", "http", "ssl", "header", "extra"),
    *("transfer", "bootstrap", "mcp", "plugin", "search", "file", "path", "image", "audio"),
    # These choose another model or provider, or foreign code.
    *("model", "deploy", "provider", "region", "location", "project", "rout", "fallback", "adapter", "processor"),
    *("custom", "litellm", "azure", "aws", "vertex", "bedrock", "watson", "sagemaker", "retries", "retry"),
    # These add a key or an identity.
    *("key", "secret", "password", "auth", "credential", "organization", "tenant", "user", "team"),
    # These show a request to others, or keep a copy of it.
    *("callback", "hook", "logger", "logging", "metadata", "tags", "trace", "caching", "mock", "guardrail"),
)
_RESERVED_NAMES = REQUEST_FIELDS | {"function_call", "prompt", "input", "cache", "ttl", "engine"}


def _params_faults(settings: Settings) -> Iterator[str]:
    """Yield a fault for each of the operator's constants that could lead a request elsewhere or undo what was checked.

    Refused are the names that a request may have itself, and names with a word of `_FORBIDDEN_WORDS` anywhere in them:
    nobody can list each parameter of each router that sets a place, a key or a listener (LiteLLM has some two hundred).
    """
    for mode, params in (("daily", settings.models.daily.params), ("deep", settings.models.deep.params)):
        for name, value in params.items():
            path = f"models.{mode}.params.{name}"
            if name in _RESERVED_NAMES:
                yield f"{path}: is a field of the request, which eidproxy checks and sets itself"
            elif not re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,63}", name):
                yield f"{path}: must be a name of at most 64 ASCII letters, digits and underscores"
            elif any(word in name.lower() for word in _FORBIDDEN_WORDS):
                yield f"{path}: is not permitted, since it could redirect or expose a request"
            elif not _fits_json(value):
                yield f"{path}: has a value that JSON cannot hold: a date, an infinity or too large a number"


def _fits_json(value: Any) -> bool:
    """Return whether a value of TOML can be written as JSON: no date, no infinity, no integer of more than 64 bits."""
    if isinstance(value, dict):
        return all(map(_fits_json, value.values()))
    if isinstance(value, list):
        return all(map(_fits_json, value))
    if isinstance(value, int):
        return -(2**63) <= value < 2**64
    return isinstance(value, str) or (isinstance(value, float) and math.isfinite(value))


def _router_faults(settings: Settings) -> Iterator[str]:
    url = settings.router.url
    if not url:
        yield "router.url: is required; set LLM_ROUTER_URL, for example http://127.0.0.1:4000"
        return
    try:
        networks = parse_allowed_networks(settings.router.allowed_networks)
    except ValueError:
        yield (
            "router.allowed_networks: each must be a network within the permitted ones, such as 192.168.1.0/24 or"
            " fd00:1::/64; the setting can only narrow them"
        )
        return
    if settings.router.ca_file is not None:
        try:
            ssl.create_default_context(cafile=settings.router.ca_file)
        except (OSError, ValueError):  # ssl.SSLError is an OSError
            yield "router.ca_file: cannot be read, or contains no certificates"
    try:
        host, port, _ = router_address(url)
    except ValueError:
        yield f"router.url: {ROUTER_URL_FORM}"
        return
    address = parse_literal(host)
    if address is None and not is_name(host):
        yield "router.url: the host must be an IP address in standard notation or a DNS name"
    elif address is not None:
        decision = EgressPolicy(networks or EgressPolicy().networks).decide(str(address))
        if not decision.permitted:
            yield f"router.url: egress_blocked: {address} {refusal_text(settings, decision.verdict)}"
        elif parse_literal(settings.server.host) == address and port == settings.server.port:
            yield f"router.url: egress_blocked: {address} port {port} {VERDICTS[Verdict.LOOP]}"
